#include "runtime/allocator.hpp"

#include <algorithm>
#include <bit>

#include "base/error.hpp"
#include "runtime/device_api.hpp"

namespace vesal {
namespace {

thread_local const char* current_tag = "other";

// Size classes: multiples of 512 bytes up to 1 MiB, then eighths of the next power of two, so that slightly
// different sizes share blocks and at most an eighth is wasted.
size_t round_size(size_t bytes) {
  constexpr size_t small_step = 512;
  constexpr size_t large = size_t{1} << 20;
  if (bytes <= large) {
    return std::max(small_step, (bytes + small_step - 1) / small_step * small_step);
  }
  const size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

bool caching_on(Device device) {
#if VESAL_SANITIZED
  (void)device;
  return false;
#else
  return device.type != DeviceType::simt;
#endif
}

}  // namespace

Allocator::Allocator(Device device) : device_(device), caching_(caching_on(device)) {}

Allocator::~Allocator() { release_cached(); }

std::shared_ptr<void> Allocator::allocate(size_t bytes) {
  const size_t rounded = caching_ ? round_size(bytes) : bytes;
  auto back = [self = shared_from_this(), bytes, rounded, tag = std::string(current_tag)](void* block) {
    self->give_back(block, bytes, rounded, tag);
  };
  void* pointer = nullptr;
  {
    const std::lock_guard lock(mutex_);
    size_t& tagged = statistics_.current_by_tag[current_tag];
    size_t& tagged_peak = statistics_.peak_by_tag[current_tag];
    pointer = take(rounded);
    statistics_.current_bytes += bytes;
    statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.current_bytes);
    tagged += bytes;
    tagged_peak = std::max(tagged_peak, tagged);
  }
  // Outside the lock: where there is no memory for the pointer's own bookkeeping, it gives the block back at
  // once.
  return {pointer, std::move(back)};
}

void* Allocator::take(size_t rounded) {
  if (!caching_) {
    void* pointer = device_api::allocate(device_, rounded);
    ++statistics_.system_allocations;
    statistics_.reserved_bytes += rounded;
    return pointer;
  }
  SizeClass& blocks = size_classes_[rounded];
  if (!blocks.free.empty()) {
    void* pointer = blocks.free.back();
    blocks.free.pop_back();
    return pointer;
  }
  if (blocks.free.capacity() <= blocks.count) {
    blocks.free.reserve(2 * blocks.count + 1);  // so that giving back, which must not fail, needs no memory
  }
  void* pointer = nullptr;
  try {
    pointer = device_api::allocate(device_, rounded);
  } catch (const DeviceError&) {
    drop_free_blocks();
    pointer = device_api::allocate(device_, rounded);
  }
  ++blocks.count;
  ++statistics_.system_allocations;
  statistics_.reserved_bytes += rounded;
  return pointer;
}

void Allocator::give_back(void* pointer, size_t bytes, size_t rounded, const std::string& tag) noexcept {
  const std::lock_guard lock(mutex_);
  statistics_.current_bytes -= bytes;
  statistics_.current_by_tag.find(tag)->second -= bytes;
  if (caching_) {
    size_classes_.find(rounded)->second.free.push_back(pointer);
  } else {
    device_api::deallocate(device_, pointer);
    statistics_.reserved_bytes -= rounded;
  }
}

void Allocator::drop_free_blocks() {
  for (auto& [size, blocks] : size_classes_) {
    for (void* block : blocks.free) {
      device_api::deallocate(device_, block);
      statistics_.reserved_bytes -= size;
    }
    blocks.count -= blocks.free.size();
    blocks.free.clear();
  }
}

void Allocator::release_cached() {
  const std::lock_guard lock(mutex_);
  drop_free_blocks();
}

AllocationStatistics Allocator::statistics() const {
  const std::lock_guard lock(mutex_);
  return statistics_;
}

void Allocator::reset_peak() {
  const std::lock_guard lock(mutex_);
  statistics_.peak_bytes = statistics_.current_bytes;
  statistics_.peak_by_tag = statistics_.current_by_tag;
}

AllocationTag::AllocationTag(const char* tag) : previous_(current_tag) { current_tag = tag; }
AllocationTag::~AllocationTag() { current_tag = previous_; }

}  // namespace vesal
