// What is ordered before what, and what each cell of memory remembers: see race.hpp.
//
// The order is CUDA's, not the one in which the emulator happened to run: a barrier orders the block's
// threads,
// __syncwarp the lanes of its mask, a fence followed by an atomic everything that another thread reads after
// an atomic on the same address. Shuffles and votes order nothing: CUDA's guide says that they imply no
// memory barrier.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/simt/engine.hpp"
#include "kernels/simt/race.hpp"

namespace vesal::kernels::simt {
namespace {

constexpr size_t kPageShift = 12;

bool writes(RaceUse use) { return use != RaceUse::read && use != RaceUse::atomic_read; }
bool is_atomic(RaceUse use) { return use != RaceUse::read && use != RaceUse::write; }

std::unique_ptr<RaceCell, RaceRegion::Free> make_cells(size_t count) {
  // calloc: large shadows cost memory only where they are touched, and zeros are an empty cell.
  auto* cells = static_cast<RaceCell*>(std::calloc(std::max<size_t>(count, 1), sizeof(RaceCell)));
  check<DeviceError>(cells != nullptr, "simt: out of memory for ", count, " cells of shadow memory");
  return std::unique_ptr<RaceCell, RaceRegion::Free>(cells);
}

}  // namespace

void RaceRegion::Free::operator()(RaceCell* cells) const { std::free(cells); }

void RaceKnowledge::add(uint32_t block, uint32_t thread, uint32_t clock) {
  uint32_t& known = known_[{block, thread}];
  known = std::max(known, clock);
}

void RaceKnowledge::join(const RaceKnowledge& other) {
  for (const auto& [who, clock] : other.known_) {
    add(who.first, who.second, clock);
  }
}

bool RaceKnowledge::covers(const RaceAccess& access) const {
  const auto reaches = [&](uint32_t thread) {
    const auto found = known_.find({access.block, thread});
    return found != known_.end() && access.clock <= found->second;
  };
  return reaches(access.thread) || reaches(kAllThreads);
}

void RaceDetector::Links::join(const Links& other) {
  acquired.join(other.acquired);
  device_fence.join(other.device_fence);
  block_fence.join(other.block_fence);
}

// Never destroyed: blocks in static objects may be freed after the end of main.
RaceDetector& RaceDetector::instance() {
  static RaceDetector* const detector = new RaceDetector;
  return *detector;
}

RaceDetector*& RaceDetector::active() {
  static constinit thread_local RaceDetector* detector = nullptr;
  return detector;
}

// ---- Regions ----

void RaceDetector::allocated(const void* start, size_t bytes) {
  auto region = std::make_unique<RaceRegion>();
  region->start = reinterpret_cast<uintptr_t>(start);
  region->bytes = bytes;
  const auto place =
      std::upper_bound(device_.begin(), device_.end(), region->start,
                       [](uintptr_t address, const auto& each) { return address < each->start; });
  device_.insert(place, std::move(region));
}

void RaceDetector::freed(const void* start) {
  const auto address = reinterpret_cast<uintptr_t>(start);
  const auto found = std::lower_bound(device_.begin(), device_.end(), address,
                                      [](const auto& each, uintptr_t value) { return each->start < value; });
  if (found != device_.end() && (*found)->start == address) {
    std::replace(recent_.begin(), recent_.end(), found->get(), static_cast<RaceRegion*>(nullptr));
    device_.erase(found);
  }
}

void RaceDetector::add_shared(const char* name, const void* start, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(start);
  for (const RaceRegion& region : shared_) {
    if (region.start == address && region.shared_name == name) {
      return;
    }
  }
  RaceRegion region;
  region.start = address;
  region.bytes = bytes;
  region.shared_name = name;
  region.cells = arena_cells_.get() + (address - arena_);  // room for a cell per byte
  shared_.push_back(std::move(region));
}

RaceRegion* RaceDetector::find_shared(uintptr_t address) {
  for (RaceRegion& region : shared_) {
    if (address - region.start < region.bytes) {
      return &region;
    }
  }
  return nullptr;
}

RaceRegion* RaceDetector::find_device(uintptr_t address) {
  RaceRegion*& recent = recent_[(address >> kPageShift) % recent_.size()];
  if (recent != nullptr && address - recent->start < recent->bytes) {
    return recent;
  }
  const auto next = std::upper_bound(device_.begin(), device_.end(), address,
                                     [](uintptr_t value, const auto& each) { return value < each->start; });
  if (next == device_.begin() || address - (*std::prev(next))->start >= (*std::prev(next))->bytes) {
    return nullptr;
  }
  recent = std::prev(next)->get();
  give_cells(*recent);
  return recent;
}

RaceRegion* RaceDetector::find(uintptr_t address, size_t bytes) {
  RaceRegion* const region = address - arena_ < arena_bytes_ ? find_shared(address) : find_device(address);
  return region != nullptr && bytes <= region->end() - address ? region : nullptr;
}

void RaceDetector::give_cells(RaceRegion& region) {
  if (region.cells == nullptr) {
    region.own_cells = make_cells((region.bytes + 3) / 4);
    region.cells = region.own_cells.get();
  }
}

// From a cell for four bytes to one for each, which all four remember what the old one did.
void RaceDetector::refine(RaceRegion& region) {
  const RaceCell* const coarse = region.cells;
  std::unique_ptr<RaceCell, RaceRegion::Free> fine;
  RaceCell* target = region.cells;
  if (region.own_cells != nullptr) {
    fine = make_cells(region.bytes);
    target = fine.get();
  }
  for (size_t byte = region.bytes; byte-- > 0;) {  // from behind: a shared array refines in place
    target[byte] = coarse[byte / 4];
  }
  if (fine != nullptr) {
    region.own_cells = std::move(fine);
    region.cells = target;
  }
  region.shift = 0;
}

// ---- Order ----

void RaceDetector::begin_launch(int threads, const void* arguments, size_t argument_bytes, const void* arena,
                                size_t arena_bytes) {
  threads_ = threads;
  arguments_ = reinterpret_cast<uintptr_t>(arguments);
  argument_bytes_ = argument_bytes;
  arena_ = reinterpret_cast<uintptr_t>(arena);
  arena_bytes_ = arena_bytes;
  if (arena_cell_count_ < arena_bytes) {
    arena_cells_ = make_cells(arena_bytes);
    arena_cell_count_ = arena_bytes;
  }
  shared_.clear();
  first_block_ += static_cast<uint32_t>(blocks_.size());
  blocks_.clear();
  locations_.clear();
  report_.found = false;
  now_.resize(static_cast<size_t>(threads));
  lanes_.resize(static_cast<size_t>(threads));
  if (counter_ != nullptr) {
    const void* kernel = nullptr;
    std::memcpy(&kernel, arguments, sizeof(kernel));
    counter_->begin_launch(kernel, threads);
  }
}

void RaceDetector::begin_block(uint3 block) {
  block_ = first_block_ + static_cast<uint32_t>(blocks_.size());
  blocks_.push_back(block);
  clock_ = 1;
  barrier_clock_ = 0;
  std::fill(now_.begin(), now_.end(), clock_);
  std::fill(lanes_.begin(), lanes_.end(), std::array<uint32_t, 32>{});
  block_links_ = {};
  links_.clear();
  if (counter_ != nullptr) {
    counter_->begin_block();
  }
}

void RaceDetector::end_block() {
  if (counter_ != nullptr) {
    counter_->end_phase();
  }
}

void RaceDetector::enter(int thread, const void* stack, size_t stack_bytes) {
  thread_ = thread;
  stack_ = reinterpret_cast<uintptr_t>(stack);
  stack_bytes_ = stack_bytes;
  active() = this;
}

void RaceDetector::block_barrier() {
  barrier_clock_ = clock_++;
  std::fill(now_.begin(), now_.end(), clock_);
  for (const auto& [thread, links] : links_) {
    block_links_.join(links);
  }
  links_.clear();
  if (counter_ != nullptr) {
    counter_->end_phase();
  }
}

void RaceDetector::warp_barrier(int warp, uint32_t mask) {
  const auto first = static_cast<size_t>(warp) * 32;
  std::array<uint32_t, 32> joined{};
  for (size_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0) {
      for (size_t i = 0; i < 32; ++i) {
        joined[i] = std::max(joined[i], lanes_[first + lane][i]);
      }
    }
  }
  for (size_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0) {
      joined[lane] = now_[first + lane];
    }
  }
  ++clock_;
  Links links;
  for (size_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0) {
      lanes_[first + lane] = joined;
      now_[first + lane] = clock_;
      if (const auto found = links_.find(static_cast<int>(first + lane)); found != links_.end()) {
        links.join(found->second);
      }
    }
  }
  if (!links.acquired.empty() || !links.block_fence.empty()) {
    for (size_t lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) != 0) {
        links_[static_cast<int>(first + lane)] = links;
      }
    }
  }
}

// Everything that the thread has done or knows is passed on by its later atomics. Barriers hand the fence on
// to the block's other threads: fences are cumulative.
void RaceDetector::fence(bool whole_device) {
  Links& links = links_[thread_];
  RaceKnowledge known = block_links_.acquired;
  known.join(links.acquired);
  known.add(block_, RaceKnowledge::kAllThreads, barrier_clock_);
  known.add(block_, static_cast<uint32_t>(thread_), now_[static_cast<size_t>(thread_)]);
  const auto first = static_cast<uint32_t>(thread_ / 32 * 32);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (const uint32_t clock = lanes_[static_cast<size_t>(thread_)][lane]; clock > barrier_clock_) {
      known.add(block_, first + lane, clock);
    }
  }
  links.block_fence.join(known);
  if (whole_device) {
    links.device_fence.join(known);
  }
  now_[static_cast<size_t>(thread_)] = ++clock_;
}

void RaceDetector::pass_on(uintptr_t address) {
  const bool reads = current_.use != RaceUse::atomic_write;
  if (const auto found = locations_.find(address); reads && found != locations_.end()) {
    Links& links = links_[thread_];
    links.acquired.join(found->second.device);
    if (found->second.block == block_) {
      links.acquired.join(found->second.in_block);
    }
  }
  const auto own = links_.find(thread_);
  const bool fenced =
      !block_links_.block_fence.empty() || (own != links_.end() && !own->second.block_fence.empty());
  if (!writes(current_.use) || !fenced) {
    return;
  }
  Location& location = locations_[address];
  if (location.block != block_) {
    location.block = block_;
    location.in_block = {};
  }
  location.device.join(block_links_.device_fence);
  location.in_block.join(block_links_.block_fence);
  if (own != links_.end()) {
    location.device.join(own->second.device_fence);
    location.in_block.join(own->second.block_fence);
  }
}

bool RaceDetector::is_ordered(const RaceAccess& earlier) const {
  if (earlier.block == block_) {
    if (earlier.thread == thread_ || earlier.clock <= barrier_clock_) {
      return true;
    }
    if (earlier.thread / 32 == thread_ / 32 &&
        earlier.clock <= lanes_[static_cast<size_t>(thread_)][earlier.thread % 32]) {
      return true;
    }
  }
  if (block_links_.acquired.covers(earlier)) {
    return true;
  }
  const auto own = links_.find(thread_);
  return own != links_.end() && own->second.acquired.covers(earlier);
}

// Whether an access that a cell remembers may happen at the same time as the present one. Shared memory is a
// block's own; earlier launches are over.
bool RaceDetector::is_concurrent(const RaceRegion& region, const RaceAccess& earlier) const {
  if (region.shared_name != nullptr ? earlier.block != block_ : earlier.block < first_block_) {
    return false;
  }
  return !is_ordered(earlier);
}

// ---- Accesses ----

// Host code writes device memory unseen, so that there the value decides: what no kernel wrote and still
// holds the poison of allocate() was written by nobody.
bool RaceDetector::is_initialised(const RaceRegion& region, size_t cell) const {
  const RaceAccess& write = region.cells[cell].write;
  if (region.shared_name != nullptr) {
    return write.block == block_;
  }
  if (write.block != 0) {
    return true;
  }
  const size_t word = (cell << region.shift) & ~size_t{3};
  if (word + 4 > region.bytes) {
    return true;
  }
  return std::memcmp(reinterpret_cast<const void*>(region.start + word), &kPoison, sizeof(kPoison)) != 0;
}

void RaceDetector::access(uintptr_t address, size_t bytes, RaceUse use, bool natural, const void* code) {
  if (address - stack_ < stack_bytes_ || bytes == 0) {
    return;
  }
  if (use == RaceUse::read && is_index(address)) {
    return;
  }
  current_.use = use;
  current_.address = address;
  current_.bytes = bytes;
  current_.code = code_offset(code);
  RaceRegion* const region = find(address, bytes);
  if (region == nullptr) {
    if (writes(use) || !is_readable(address, bytes)) {
      fail(ErrorKind::out_of_region, nullptr, false);
    }
    return;
  }
  if (natural && address % bytes != 0) {
    fail(ErrorKind::misaligned_access, nullptr, false);
  }
  if (region->shift != 0 && ((address | bytes) & 3) != 0) {
    refine(*region);
  }
  const size_t first = (address - region->start) >> region->shift;
  const size_t last = (address + bytes - 1 - region->start) >> region->shift;
  for (size_t cell = first; cell <= last; ++cell) {
    check(*region, cell);
  }
  if (is_atomic(use)) {
    pass_on(address);
  } else if (counter_ != nullptr) {
    const bool shared = region->shared_name != nullptr;
    counter_->add(thread_, shared ? static_cast<uint32_t>(region - shared_.data()) + 1 : 0,
                  shared ? address - region->start : address, bytes, natural, current_.code);
  }
}

void RaceDetector::check(RaceRegion& region, size_t index) {
  RaceCell& cell = region.cells[index];
  const RaceUse use = current_.use;
  const RaceAccess now{.block = block_,
                       .clock = now_[static_cast<size_t>(thread_)],
                       .code = current_.code,
                       .thread = static_cast<uint16_t>(thread_),
                       .atomic = is_atomic(use)};
  const auto conflicts = [&](const RaceAccess& earlier) {
    return is_concurrent(region, earlier) && !(earlier.atomic && now.atomic);
  };
  if ((use == RaceUse::read || use == RaceUse::atomic_read || use == RaceUse::atomic_update) &&
      !is_initialised(region, index)) {
    fail(ErrorKind::uninitialised_read, nullptr, false);
  }
  if (!writes(use)) {
    if (conflicts(cell.write)) {
      fail(ErrorKind::read_write_race, &cell.write, true);
    }
    remember_read(region, cell, now);
    return;
  }
  if (conflicts(cell.write)) {
    fail(ErrorKind::write_write_race, &cell.write, true);
  }
  for (const RaceAccess& read : cell.reads) {
    if (conflicts(read)) {
      fail(ErrorKind::read_write_race, &read, false);
    }
  }
  cell = {.write = now, .reads = {}};  // whoever races with those reads races with this write too
}

// Two readers are enough to accuse any later writer: at most one of them is the writer itself. They come from
// different warps where they can, since a __syncwarp may order the writer after all readers of one.
void RaceDetector::remember_read(const RaceRegion& region, RaceCell& cell, const RaceAccess& now) {
  for (RaceAccess& read : cell.reads) {
    if (read.block == now.block && read.thread == now.thread) {
      if (read.atomic || !now.atomic) {  // the plain read conflicts with more
        read = now;
      }
      return;
    }
  }
  for (RaceAccess& read : cell.reads) {
    if (!is_concurrent(region, read)) {
      read = now;
      return;
    }
  }
  const auto warp = [](const RaceAccess& access) { return std::pair(access.block, access.thread / 32); };
  if (warp(cell.reads[0]) == warp(cell.reads[1]) && warp(now) != warp(cell.reads[0])) {
    cell.reads[1] = now;
  }
}

void RaceDetector::fail(ErrorKind kind, const RaceAccess* other, bool other_wrote) {
  report_ = current_;
  report_.found = true;
  report_.kind = kind;
  report_.other_wrote = other_wrote;
  if (other != nullptr) {
    report_.other = *other;
  }
  leave();
  Engine::current()->stop_for_report();
}

}  // namespace vesal::kernels::simt
