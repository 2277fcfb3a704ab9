// Reports of the race lane in words: what an address belongs to, and where in the source an instruction
// stands.
#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "kernels/simt/race.hpp"

namespace vesal::kernels::simt {
namespace {

// How far past a region an address still counts as an overrun of it: within the guards.
constexpr uintptr_t kNearby = 256;

struct Range {
  uintptr_t start = 0;
  uintptr_t end = 0;
};

// What the loaded objects hold of constants and code, and where the program's image starts.
struct Image {
  uintptr_t base = 0;
  std::vector<Range> constants;
};

const Image& image() {
  static const Image found = [] {
    Image result;
    bool first = true;
    const auto visit = [&](const dl_phdr_info& object) {
      if (std::exchange(first, false)) {  // the program itself
        result.base = object.dlpi_addr;
      }
      for (int i = 0; i < object.dlpi_phnum; ++i) {
        const auto& segment = object.dlpi_phdr[i];
        // Constants with pointers in them are written while the program is loaded, and read-only from then
        // on.
        if ((segment.p_type == PT_LOAD && (segment.p_flags & PF_W) == 0) || segment.p_type == PT_GNU_RELRO) {
          const uintptr_t start = object.dlpi_addr + segment.p_vaddr;
          result.constants.push_back({start, start + segment.p_memsz});
        }
      }
    };
    dl_iterate_phdr(
        [](dl_phdr_info* object, size_t, void* opaque) {
          (*static_cast<decltype(visit)*>(opaque))(*object);
          return 0;
        },
        const_cast<void*>(static_cast<const void*>(&visit)));
    return result;
  }();
  return found;
}

const char* verb(RaceUse use) {
  switch (use) {
    case RaceUse::read:
      return "reads";
    case RaceUse::write:
      return "writes";
    case RaceUse::atomic_read:
      return "atomically reads";
    case RaceUse::atomic_write:
      return "atomically writes";
    case RaceUse::atomic_exchange:
    case RaceUse::atomic_update:
      return "atomically updates";
  }
  return "?";
}

std::string name_of(const RaceRegion& region) {
  return region.shared_name != nullptr
             ? concat("the shared memory ", region.shared_name, " (", region.bytes, " bytes)")
             : concat("a device block of ", region.bytes, " bytes");
}

std::string source_of(uint32_t code) { return places_of({code}).front().source; }

}  // namespace

// Asked of addr2line, which comes with the compiler; the offset in the program where there is none. Of a
// chain of inlined calls the innermost outside the emulator and the standard library is meant.
std::vector<CodePlace> places_of(const std::vector<uint32_t>& codes) {
  std::array<char, 4096> program{};
  const ssize_t length = readlink("/proc/self/exe", program.data(), program.size() - 1);
  std::ostringstream command;
  command << "addr2line -a -f -C -i -e '"
          << std::string_view(program.data(), static_cast<size_t>(std::max<ssize_t>(length, 0))) << "'"
          << std::hex;
  for (const uint32_t code : codes) {
    command << " 0x" << code;
  }
  command << " 2>/dev/null";
  std::vector<CodePlace> places;
  if (FILE* const pipe = popen(command.str().c_str(), "r")) {
    char* line = nullptr;
    size_t capacity = 0;
    // For each address a line with it, then for each call of the chain one with a function and one with a
    // place.
    bool is_function = false;
    for (ssize_t read = 0; (read = getline(&line, &capacity, pipe)) > 0;) {
      const std::string_view text(line, static_cast<size_t>(read - (line[read - 1] == '\n' ? 1 : 0)));
      const auto names = [&](std::string_view part) { return text.find(part) != std::string_view::npos; };
      if (text.starts_with("0x")) {
        places.emplace_back();
        is_function = true;
      } else if (is_function) {
        places.back().function = text;
        is_function = false;
      } else {
        // The emulator's copy of a .cu lies in the build's kernels/simt/.
        const bool is_emulator = names("kernels/simt/") && !names("_simt.cpp:");
        if (places.back().source.empty() && !names("??") && !is_emulator && !names("/c++/")) {
          const std::string_view name = text.substr(text.find_last_of('/') + 1);
          places.back().source = name.substr(0, name.find(' '));
        }
        is_function = true;
      }
    }
    std::free(line);
    pclose(pipe);
  }
  places.resize(codes.size());
  for (size_t i = 0; i < codes.size(); ++i) {
    if (places[i].source.empty()) {
      std::ostringstream offset;
      offset << "code at 0x" << std::hex << codes[i];
      places[i].source = offset.str();
    }
  }
  return places;
}

// A return address stands behind its call: one byte less lies within.
uint32_t RaceDetector::code_offset(const void* code) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - image().base - 1);
}

// threadIdx and its like: thread_local variables here, registers on a GPU.
bool RaceDetector::is_index(uintptr_t address) {
  for (const uint3* const index : {&threadIdx, &blockIdx, &blockDim, &gridDim}) {
    if (address - reinterpret_cast<uintptr_t>(index) < sizeof(uint3)) {
      return true;
    }
  }
  return false;
}

bool RaceDetector::is_readable(uintptr_t address, size_t bytes) const {
  const auto within = [&](uintptr_t start, size_t size) {
    return address - start < size && bytes <= size - (address - start);
  };
  if (within(arguments_, argument_bytes_)) {
    return true;
  }
  for (const Range& range : image().constants) {
    if (within(range.start, range.end - range.start)) {
      return true;
    }
  }
  return false;
}

std::string RaceDetector::describe_address(uintptr_t address) const {
  const RaceRegion* before = nullptr;
  const RaceRegion* behind = nullptr;
  const auto consider = [&](const RaceRegion& region) {
    if (region.start <= address && (before == nullptr || region.start > before->start)) {
      before = &region;
    } else if (region.start > address && (behind == nullptr || region.start < behind->start)) {
      behind = &region;
    }
  };
  for (const RaceRegion& region : shared_) {
    consider(region);
  }
  for (const auto& region : device_) {
    consider(*region);
  }
  if (before != nullptr && address < before->end()) {
    return concat(name_of(*before), " at offset ", address - before->start);
  }
  const uintptr_t past = before != nullptr ? address - before->end() : kNearby;
  const uintptr_t ahead = behind != nullptr ? behind->start - address : kNearby;
  if (past < kNearby && past <= ahead) {
    return concat(past, " bytes past the end of ", name_of(*before));
  }
  if (ahead < kNearby) {
    return concat(ahead, " bytes before the start of ", name_of(*behind));
  }
  std::ostringstream text;
  text << "0x" << std::hex << address;
  if (is_index(address)) {
    return text.str() + ", an index of CUDA's";
  }
  if (address - arguments_ < argument_bytes_) {
    return text.str() + ", the kernel's arguments";
  }
  return text.str() + ", which is no memory of the device: host memory, or freed";
}

std::string RaceDetector::take_report(const std::function<std::string(int)>& name_of_thread) {
  const Report& report = report_;
  report_.found = false;
  std::string text = concat("it ", verb(report.use), " ", report.bytes, " bytes at ",
                            describe_address(report.address), " (", source_of(report.code), ")");
  const auto other = [&] {
    const uint3& block = blocks_[report.other.block - first_block_];
    const bool same = report.other.block == block_;
    return concat(
        ", which ", same ? "" : concat("block (", block.x, ", ", block.y, ", ", block.z, "), "), "thread ",
        name_of_thread(report.other.thread), same ? " of the same block " : " ",
        report.other.atomic ? "atomically " : "", report.other_wrote ? "wrote" : "read", " (",
        source_of(report.other.code), ") ",
        same ? "with no barrier between them" : "in the same launch, with no fence and atomic to order them");
  };
  switch (report.kind) {
    case ErrorKind::write_write_race:
    case ErrorKind::read_write_race:
      return text + other();
    case ErrorKind::uninitialised_read:
      return text + ", which nobody has written, or not yet";
    case ErrorKind::misaligned_access:
      return concat(text, ", which is not aligned to ", report.bytes);
    default:
      return text;
  }
}

}  // namespace vesal::kernels::simt
