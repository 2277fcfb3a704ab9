// Requests, their conflicts and their sectors: see race_access.hpp.
#include "kernels/simt/race_access.hpp"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "kernels/simt/race.hpp"

namespace vesal::kernels::simt {
namespace {

constexpr size_t kLanes = 32;
constexpr size_t kBanks = 32;
constexpr uintptr_t kBankBytes = 4;
constexpr uintptr_t kSectorBytes = 32;

using Addresses = std::array<uintptr_t, kLanes>;

// How many passes the lanes of one part of a request need: the most different words in one bank.
int passes(uint32_t mask, const Addresses& addresses, size_t bytes) {
  std::array<uintptr_t, kLanes> words;  // 32 at most: a part moves 128 bytes
  std::array<int8_t, kLanes> next;      // word of the same bank
  std::array<int8_t, kBanks> first;
  std::array<int8_t, kBanks> count{};
  first.fill(-1);
  int8_t used = 0;
  int8_t most = 0;
  const size_t words_of_lane = std::max<size_t>(bytes / kBankBytes, 1);
  for (; mask != 0; mask &= mask - 1) {
    const uintptr_t start = addresses[static_cast<size_t>(std::countr_zero(mask))] / kBankBytes;
    for (uintptr_t word = start; word < start + words_of_lane; ++word) {
      const size_t bank = word % kBanks;
      int8_t known = first[bank];
      while (known >= 0 && words[static_cast<size_t>(known)] != word) {
        known = next[static_cast<size_t>(known)];
      }
      if (known < 0) {
        words[static_cast<size_t>(used)] = word;
        next[static_cast<size_t>(used)] = first[bank];
        first[bank] = used++;
        most = std::max(most, ++count[bank]);
      }
    }
  }
  return most;
}

double conflict_factor(uint32_t mask, const Addresses& addresses, size_t bytes) {
  const size_t lanes_of_part = bytes == 16 ? 8 : bytes == 8 ? 16 : kLanes;
  const uint32_t part = 0xffffffffu >> (kLanes - lanes_of_part);
  int needed = 0;
  int ideal = 0;
  for (size_t lane = 0; lane < kLanes; lane += lanes_of_part) {
    if (const uint32_t active = mask & part << lane; active != 0) {
      needed += passes(active, addresses, bytes);
      ++ideal;
    }
  }
  return static_cast<double>(needed) / ideal;
}

double sector_factor(uint32_t mask, const Addresses& addresses, size_t bytes) {
  const auto lanes = static_cast<size_t>(std::popcount(mask));
  std::array<uintptr_t, kLanes> sectors;  // an aligned access lies in one
  size_t count = 0;
  for (; mask != 0; mask &= mask - 1) {
    const uintptr_t sector = addresses[static_cast<size_t>(std::countr_zero(mask))] / kSectorBytes;
    // From the newest back: neighbouring lanes mostly share one.
    const auto newest = std::make_reverse_iterator(sectors.begin() + static_cast<ptrdiff_t>(count));
    if (std::find(newest, sectors.rend(), sector) == sectors.rend()) {
      sectors[count++] = sector;
    }
  }
  const size_t ideal = (lanes * bytes + kSectorBytes - 1) / kSectorBytes;
  return std::max(1.0, static_cast<double>(count) / static_cast<double>(ideal));
}

// Without return type, arguments and the namespaces that all kernels share.
std::string short_name(std::string name) {
  for (const std::string_view part :
       {"vesal::kernels::simt::", "vesal::kernels::", "(anonymous namespace)::"}) {
    for (size_t at = 0; (at = name.find(part)) != std::string::npos;) {
      name.erase(at, part.size());
    }
  }
  if (name.starts_with("void ")) {
    name.erase(0, 5);
  }
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == '(' && depth == 0) {
      name.erase(i);
    }
  }
  return name;
}

void write_report() {
  const std::vector<KernelAccesses> all = counted_accesses();
  std::string text;
  for (const KernelAccesses& each : all) {
    text += program_invocation_short_name;
    const auto add = [&](const AccessCost& cost, const std::string& place) {
      text += concat("\t", cost.requests, "\t", cost.mean(), "\t", cost.worst, "\t", place);
    };
    add(each.conflicts, each.worst_conflict);
    add(each.sectors, each.worst_sectors);
    text += concat("\t", each.kernel, "\n");
  }
  const char* path = std::getenv("VESAL_ACCESS_REPORT");
  // One write: programs that run at the same time add to the same file.
  const int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0 || write(file, text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      close(file) != 0) {
    std::fprintf(stderr, "VESAL_ACCESS_REPORT: %s: cannot be written\n", path);
    std::_Exit(1);
  }
}

}  // namespace

void AccessCost::add(double factor, uint32_t code) {
  ++requests;
  sum += factor;
  if (factor > worst) {
    worst = factor;
    worst_code = code;
  }
}

void count_accesses(bool on) {
  RaceDetector& race = RaceDetector::instance();
  const std::lock_guard lock(race.mutex());
  race.counter() = on ? std::make_unique<AccessCounter>() : nullptr;
}

std::vector<KernelAccesses> counted_accesses() {
  RaceDetector& race = RaceDetector::instance();
  const std::lock_guard lock(race.mutex());
  return race.counter() != nullptr ? race.counter()->summary() : std::vector<KernelAccesses>();
}

std::unique_ptr<AccessCounter> AccessCounter::from_environment() {
  const char* path = std::getenv("VESAL_ACCESS_REPORT");
  if (path == nullptr || *path == '\0') {
    return nullptr;
  }
  std::atexit(write_report);
  return std::make_unique<AccessCounter>();
}

void AccessCounter::begin_launch(const void* kernel, int threads) {
  kernel_ = &kernels_[kernel];
  log_.resize(static_cast<size_t>(threads));
}

void AccessCounter::begin_block() {
  for (auto& accesses : log_) {  // left by a block that failed
    accesses.clear();
  }
}

void AccessCounter::end_phase() {
  for (size_t first = 0; first < log_.size(); first += kLanes) {
    const size_t lanes = std::min(kLanes, log_.size() - first);
    for (size_t lane = 0; lane < lanes; ++lane) {
      ++reader_;
      for (const Access& access : log_[first + lane]) {
        // nvcc moves a struct in pieces that its alignment allows.
        const size_t piece = access.natural                                      ? access.bytes
                             : (access.address | access.bytes) % kBankBytes == 0 ? kBankBytes
                                                                                 : 1;
        for (size_t done = 0; done < access.bytes; done += piece) {
          add_request(lane, access, access.address + done, piece);
        }
      }
      log_[first + lane].clear();
    }
    judge_warp();
  }
}

void AccessCounter::add_request(size_t lane, const Access& access, uintptr_t address, size_t bytes) {
  Site& site = site_of(access, bytes);
  if (site.reader != reader_) {
    site.reader = reader_;
    site.executions = 0;
  }
  const size_t request = site.executions++;
  if (request == site.masks.size()) {
    site.masks.push_back(0);
    site.addresses.emplace_back();
  }
  site.masks[request] |= uint32_t{1} << lane;
  // Arrays have places of their own, whatever their distance here is.
  site.addresses[request][lane] = (uintptr_t{access.space} << 32) + address;
}

AccessCounter::Site& AccessCounter::site_of(const Access& access, size_t bytes) {
  const uint64_t key = uint64_t{access.code} << 8 | bytes << 1 | (access.space != 0 ? 1 : 0);
  Recent& recent = kernel_->recent[(key ^ key >> 10) % kernel_->recent.size()];
  if (recent.key != key) {
    const auto [found, is_new] = kernel_->site_index.try_emplace(key, kernel_->sites.size());
    if (is_new) {
      Site& site = kernel_->sites.emplace_back();
      site.code = access.code;
      site.shared = access.space != 0;
      site.bytes = bytes;
    }
    recent = {key, found->second};
  }
  return kernel_->sites[recent.site];
}

void AccessCounter::judge_warp() {
  for (Site& site : kernel_->sites) {
    for (size_t request = 0; request < site.masks.size(); ++request) {
      const uint32_t mask = site.masks[request];
      const Addresses& addresses = site.addresses[request];
      if (site.shared) {
        kernel_->conflicts.add(conflict_factor(mask, addresses, site.bytes), site.code);
      } else {
        kernel_->sectors.add(sector_factor(mask, addresses, site.bytes), site.code);
      }
    }
    site.masks.clear();
    site.addresses.clear();
  }
}

std::vector<KernelAccesses> AccessCounter::summary() const {
  std::vector<uint32_t> codes;
  for (const auto& [kernel, counts] : kernels_) {
    // code_offset() wants a return address.
    codes.push_back(RaceDetector::code_offset(static_cast<const char*>(kernel) + 1));
    codes.push_back(counts.conflicts.worst_code);
    codes.push_back(counts.sectors.worst_code);
  }
  const std::vector<CodePlace> places = places_of(codes);
  std::vector<KernelAccesses> result;
  auto place = places.begin();
  for (const auto& [kernel, counts] : kernels_) {
    const auto source = [&](const AccessCost& cost) {
      const CodePlace& where = *place++;
      return cost.worst > 1 ? where.source : std::string();
    };
    KernelAccesses each;
    each.kernel = short_name((place++)->function);
    each.conflicts = counts.conflicts;
    each.sectors = counts.sectors;
    each.worst_conflict = source(counts.conflicts);
    each.worst_sectors = source(counts.sectors);
    result.push_back(std::move(each));
  }
  std::sort(result.begin(), result.end(),
            [](const KernelAccesses& a, const KernelAccesses& b) { return a.kernel < b.kernel; });
  return result;
}

}  // namespace vesal::kernels::simt
