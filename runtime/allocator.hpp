// A caching allocator for one device: blocks come back to a free list and are reused, so that a steady
// training step takes nothing from the system. All users of a device's allocator work on one stream, in whose
// order blocks are reused: a block may be handed out again while earlier kernels still run, because later
// kernels wait for them.
//
// Off on simt and in sanitizer builds: there every block is its own, so that an overrun is caught.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/device.hpp"

namespace vesal {

struct AllocationStatistics {
  size_t current_bytes = 0;       // in use, as asked for
  size_t peak_bytes = 0;          // the largest current_bytes so far
  size_t reserved_bytes = 0;      // taken from the system: in use and cached
  size_t system_allocations = 0;  // calls to the system so far
  std::map<std::string, size_t> current_by_tag;
  std::map<std::string, size_t> peak_by_tag;
};

class Allocator : public std::enable_shared_from_this<Allocator> {
 public:
  explicit Allocator(Device device);
  ~Allocator();
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  // At least `bytes` bytes, aligned to 256, owned by the pointer. Counted under the current AllocationTag.
  // On lack of memory cached blocks are given back and the request is tried again; then DeviceError.
  std::shared_ptr<void> allocate(size_t bytes);

  // Gives all cached blocks back to the system.
  void release_cached();
  AllocationStatistics statistics() const;
  // Starts a new peak measurement at the present use.
  void reset_peak();
  Device device() const { return device_; }
  bool caching() const { return caching_; }

 private:
  struct SizeClass {
    std::vector<void*> free;  // has room for all `count`
    size_t count = 0;         // blocks of this size, free and in use
  };
  void* take(size_t rounded);
  void drop_free_blocks();
  void give_back(void* pointer, size_t bytes, size_t rounded, const std::string& tag) noexcept;

  const Device device_;
  const bool caching_;
  mutable std::mutex mutex_;
  std::map<size_t, SizeClass> size_classes_;
  AllocationStatistics statistics_;
};

// Names what allocations of this thread are for while it lives: "activations", "parameters", "workspace".
class AllocationTag {
 public:
  explicit AllocationTag(const char* tag);
  ~AllocationTag();
  AllocationTag(const AllocationTag&) = delete;
  AllocationTag& operator=(const AllocationTag&) = delete;

 private:
  const char* previous_;
};

}  // namespace vesal
