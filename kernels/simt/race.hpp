// The race lane (builds with VESAL_RACE): every load and store of a kernel is checked against shadow memory.
//
// The kernels are compiled with -fsanitize=thread, whose calls land in race_hooks.cpp instead of in a
// sanitizer's library; race_detector.cpp decides what is ordered, race_report.cpp says it in words, and
// race_access.cpp counts what the accesses would cost. Builds without VESAL_RACE contain none of them, and
// the engine's calls below stand behind `if constexpr (kRace)`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/simt/emulator.hpp"
#include "kernels/simt/race_access.hpp"

namespace vesal::kernels::simt {

#if VESAL_RACE
inline constexpr bool kRace = true;
#else
inline constexpr bool kRace = false;
#endif

// Where an instruction stands.
struct CodePlace {
  std::string function;  // that it was compiled into: the kernel
  std::string source;    // "reduce.cu:57"
};
// Of instructions by their offsets in the program, in that order.
std::vector<CodePlace> places_of(const std::vector<uint32_t>& codes);

// One access as shadow memory remembers it. Blocks have serial numbers that grow over the life of the
// process, 0 for none; a thread's clock grows at each point where it meets others, so that (block, thread,
// clock) says when.
struct RaceAccess {
  uint32_t block = 0;
  uint32_t clock = 0;
  uint32_t code = 0;  // of the instruction, from the start of the program
  uint16_t thread = 0;
  bool atomic = false;
};

// What is remembered of four bytes, or of one where something narrower is accessed.
struct RaceCell {
  RaceAccess write;
  std::array<RaceAccess, 2> reads;
};

// A device allocation or an array in shared memory. The shadow of a device allocation is made at its first
// access.
struct RaceRegion {
  struct Free {
    void operator()(RaceCell* cells) const;
  };

  uintptr_t start = 0;
  size_t bytes = 0;
  const char* shared_name = nullptr;  // null for device memory
  unsigned shift = 2;                 // a cell stands for 1 << shift bytes
  RaceCell* cells = nullptr;
  std::unique_ptr<RaceCell, Free> own_cells;  // shared arrays share theirs

  uintptr_t end() const { return start + bytes; }
};

// Which accesses of which threads, up to which clock, a fence or an atomic passes on.
class RaceKnowledge {
 public:
  static constexpr uint32_t kAllThreads = 0xffffffffu;

  bool empty() const { return known_.empty(); }
  void add(uint32_t block, uint32_t thread, uint32_t clock);
  void join(const RaceKnowledge& other);
  bool covers(const RaceAccess& access) const;

 private:
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> known_;
};

// An exchange reads too, but asks for no initialised value.
enum class RaceUse { read, write, atomic_read, atomic_write, atomic_exchange, atomic_update };

// All of it belongs to the launch that holds the mutex: launches of a race build run one at a time, on one
// host thread.
class RaceDetector {
 public:
  static RaceDetector& instance();
  // The detector while this host thread executes kernel code; null in host code and in the engine, so that
  // what the compiler instrumented there is not checked.
  static RaceDetector*& active();

  std::mutex& mutex() { return mutex_; }
  // Of what the launches' accesses cost; null while nobody asks. Take the mutex.
  std::unique_ptr<AccessCounter>& counter() { return counter_; }

  static uint32_t code_offset(const void* code);

  // Device memory comes and goes. Take the mutex.
  void allocated(const void* start, size_t bytes);
  void freed(const void* start);

  // From the engine.
  void begin_launch(int threads, const void* arguments, size_t argument_bytes, const void* arena,
                    size_t arena_bytes);
  void begin_block(uint3 block);
  void end_block();
  void add_shared(const char* name, const void* start, size_t bytes);
  void enter(int thread, const void* stack, size_t stack_bytes);
  void leave() { active() = nullptr; }
  void block_barrier();
  void warp_barrier(int warp, uint32_t mask);
  void fence(bool whole_device);

  // From the hooks. `natural`: the address should be a multiple of the size. Does not return after a finding:
  // the block is abandoned, and the engine asks for the report.
  void access(uintptr_t address, size_t bytes, RaceUse use, bool natural, const void* code);

  bool has_report() const { return report_.found; }
  ErrorKind report_kind() const { return report_.kind; }
  // In words, and forgets it.
  std::string take_report(const std::function<std::string(int thread)>& name_of_thread);

 private:
  // What a thread has learnt from atomics, and what its fences would pass on.
  struct Links {
    RaceKnowledge acquired;
    RaceKnowledge device_fence;
    RaceKnowledge block_fence;

    void join(const Links& other);
  };
  // What atomics on one address pass on: to everyone, and within the block that used it last.
  struct Location {
    RaceKnowledge device;
    RaceKnowledge in_block;
    uint32_t block = 0;
  };
  struct Report {
    bool found = false;
    ErrorKind kind = ErrorKind::out_of_region;
    RaceUse use = RaceUse::read;
    uintptr_t address = 0;
    size_t bytes = 0;
    uint32_t code = 0;
    bool other_wrote = false;
    RaceAccess other;
  };

  RaceRegion* find(uintptr_t address, size_t bytes);
  RaceRegion* find_shared(uintptr_t address);
  RaceRegion* find_device(uintptr_t address);
  static bool is_index(uintptr_t address);
  // Arguments of the kernel, its indices and constants: memory that is no region and may be read.
  bool is_readable(uintptr_t address, size_t bytes) const;
  void give_cells(RaceRegion& region);
  void refine(RaceRegion& region);
  bool is_ordered(const RaceAccess& earlier) const;
  bool is_concurrent(const RaceRegion& region, const RaceAccess& earlier) const;
  bool is_initialised(const RaceRegion& region, size_t cell) const;
  void check(RaceRegion& region, size_t cell);
  void remember_read(const RaceRegion& region, RaceCell& cell, const RaceAccess& now);
  void pass_on(uintptr_t address);
  void fail(ErrorKind kind, const RaceAccess* other, bool other_wrote);
  std::string describe_address(uintptr_t address) const;

  std::mutex mutex_;
  std::unique_ptr<AccessCounter> counter_ = AccessCounter::from_environment();
  std::vector<std::unique_ptr<RaceRegion>> device_;  // by address
  std::array<RaceRegion*, 1024> recent_{};           // device regions by page, where one was found

  // Of the launch.
  int threads_ = 0;
  uintptr_t arguments_ = 0;
  size_t argument_bytes_ = 0;
  uintptr_t arena_ = 0;
  size_t arena_bytes_ = 0;
  std::unique_ptr<RaceCell, RaceRegion::Free> arena_cells_;
  size_t arena_cell_count_ = 0;
  std::vector<RaceRegion> shared_;
  uint32_t first_block_ = 1;
  std::vector<uint3> blocks_;  // from first_block_ on
  std::unordered_map<uintptr_t, Location> locations_;

  // Of the block.
  uint32_t block_ = 0;
  uint32_t clock_ = 0;
  uint32_t barrier_clock_ = 0;                   // accesses up to here lie before the last barrier
  std::vector<uint32_t> now_;                    // each thread's clock
  std::vector<std::array<uint32_t, 32>> lanes_;  // up to which clock a thread knows each lane of its warp
  Links block_links_;                            // known to all threads since the last barrier
  std::map<int, Links> links_;                   // of threads that have some of their own

  // Of the running thread.
  int thread_ = 0;
  uintptr_t stack_ = 0;
  size_t stack_bytes_ = 0;

  // The access under examination, and what was found.
  Report current_;
  Report report_;
};

}  // namespace vesal::kernels::simt
