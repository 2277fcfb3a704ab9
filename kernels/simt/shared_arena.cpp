// Slots and red zones of a block's shared memory: see shared_arena.hpp.
#include "kernels/simt/shared_arena.hpp"

#include <algorithm>
#include <cstdlib>

#include "kernels/simt/sanitizer.hpp"

namespace vesal::kernels::simt {
namespace {

constexpr size_t kRedZoneBytes = 64;
constexpr size_t kMostSlots = 256;
constexpr size_t kAlignment = 128;
constexpr unsigned char kRedZonePattern[4] = {0xa5, 0xa5, 0xaf,
                                              0x7f};  // a NaN, for kernels that only read it

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Under AddressSanitizer the zones are poisoned, hence the exemption from its checks.
VESAL_SIMT_NO_ASAN void fill_red_zone(unsigned char* zone) {
  for (size_t i = 0; i < kRedZoneBytes; ++i) {
    zone[i] = kRedZonePattern[i % 4];
  }
}

VESAL_SIMT_NO_ASAN bool is_whole(const unsigned char* zone) {
  for (size_t i = 0; i < kRedZoneBytes; ++i) {
    if (zone[i] != kRedZonePattern[i % 4]) {
      return false;
    }
  }
  return true;
}

}  // namespace

void SharedArena::Free::operator()(unsigned char* memory) const { std::free(memory); }

SharedArena::~SharedArena() {
  if (memory_ != nullptr) {
    asan_unpoison(memory_.get(), capacity_);
  }
}

void SharedArena::begin_launch(size_t dynamic_bytes, const Limits& limits) {
  const size_t needed =
      round_up(std::max(limits.total_shared, dynamic_bytes) + kMostSlots * (2 * kRedZoneBytes + kAlignment),
               kAlignment);
  if (needed > capacity_) {
    if (memory_ != nullptr) {
      asan_unpoison(memory_.get(), capacity_);
    }
    memory_.reset(static_cast<unsigned char*>(std::aligned_alloc(kAlignment, needed)));
    check<DeviceError>(memory_ != nullptr, "simt: out of memory for a block's shared memory");
    capacity_ = needed;
    asan_poison(memory_.get(), capacity_);
  } else if (used_ > 0) {
    asan_poison(memory_.get(), used_);
  }
  limits_ = limits;
  slots_.clear();
  used_ = 0;
  static_bytes_ = 0;
  dynamic_bytes_ = dynamic_bytes;
  // Aligned to 16 bytes, as VESAL_DYN_SHARED declares it, and on purpose to no more.
  dynamic_ = place(dynamic_bytes, 32, 16);
}

// Reserves `bytes` at an address that is `shift` modulo `alignment`, with red zones directly before and
// behind.
unsigned char* SharedArena::place(size_t bytes, size_t alignment, size_t shift) {
  const size_t start = round_up(used_ + kRedZoneBytes, alignment) + shift;
  unsigned char* address = memory_.get() + start;
  fill_red_zone(address - kRedZoneBytes);
  fill_red_zone(address + bytes);
  asan_unpoison(address, bytes);
  used_ = start + bytes + kRedZoneBytes;
  return address;
}

void SharedArena::begin_block() {
  poison_fill(dynamic_, dynamic_bytes_);
  for (Slot& slot : slots_) {
    slot.live = false;
  }
}

void* SharedArena::find(const engine::SharedSite& site, std::string& problem) {
  const auto found =
      std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) { return slot.site == &site; });
  if (found != slots_.end() && found->live) {
    return found->start;
  }
  if (found != slots_.end()) {
    found->live = true;
    poison_fill(found->start, site.bytes);
    return found->start;
  }
  const size_t total_static = static_bytes_ + site.bytes;
  if (total_static > limits_.static_shared || total_static + dynamic_bytes_ > limits_.total_shared ||
      slots_.size() == kMostSlots) {
    problem = concat("with ", site.name, " (", site.bytes, " bytes) the block uses ", total_static,
                     " bytes of static and ", dynamic_bytes_, " bytes of dynamic shared memory in ",
                     slots_.size() + 1, " variables; the limits are ", limits_.static_shared,
                     " bytes static, ", limits_.total_shared, " bytes in all and ", kMostSlots, " variables");
    return nullptr;
  }
  static_bytes_ = total_static;
  slots_.push_back(
      {&site, place(site.bytes, std::min(std::max<size_t>(site.alignment, 16), kAlignment), 0), true});
  poison_fill(slots_.back().start, site.bytes);
  return slots_.back().start;
}

std::string SharedArena::damage() const {
  const auto inspect = [](const unsigned char* start, size_t bytes, const char* name) -> std::string {
    if (!is_whole(start - kRedZoneBytes)) {
      return concat("the bytes before ", name, " (", bytes, " bytes) were overwritten");
    }
    if (!is_whole(start + bytes)) {
      return concat("the bytes past the end of ", name, " (", bytes, " bytes) were overwritten");
    }
    return {};
  };
  std::string found = inspect(dynamic_, dynamic_bytes_, "the dynamic shared memory");
  for (size_t i = 0; found.empty() && i < slots_.size(); ++i) {
    found = inspect(slots_[i].start, slots_[i].site->bytes, slots_[i].site->name);
  }
  return found;
}

}  // namespace vesal::kernels::simt
