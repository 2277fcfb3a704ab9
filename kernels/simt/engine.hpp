// Runs the blocks of a launch, one block at a time: a fiber for each thread, a scheduler, and the bookkeeping
// that tells a legal wait from one that never ends.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/simt/emulator.hpp"
#include "kernels/simt/fiber.hpp"
#include "kernels/simt/race.hpp"
#include "kernels/simt/shared_arena.hpp"

namespace vesal::kernels::simt {

// One host thread uses an engine at a time; a fiber never outlives the block that started it.
class Engine {
 public:
  Engine();

  // Before the first block of a launch.
  void begin_launch(const LaunchConfig& config, void (*run_thread)(const void*), const void* call,
                    size_t call_bytes);
  // Runs one block to its end. Throws SimtError; the engine is usable afterwards.
  void run_block(uint3 block);

  // Called from kernel code, on a fiber of this engine.
  void* static_shared(const engine::SharedSite& site);
  void* dynamic_shared() { return arena_.dynamic(); }
  int block_barrier(engine::Barrier kind, bool predicate, const engine::Location& where);
  uint64_t warp_operation(engine::WarpOp op, unsigned mask, uint64_t value, unsigned bytes, int operand,
                          int width, const engine::Location& where);
  void yield();

  // Around kernel code: the race lane looks at nothing else.
  void enter_kernel() {
    if constexpr (kRace) {
      const Stack& stack = threads_[static_cast<size_t>(current_)].fiber->stack;
      RaceDetector::instance().enter(current_, stack.bottom(), stack.bytes());
    }
  }
  static void leave_kernel() {
    if constexpr (kRace) {
      RaceDetector::instance().leave();
    }
  }
  // Ends the block because the race lane has found something. Does not return, and nothing is unwound: the
  // compiler believes that a load or a store cannot throw.
  void stop_for_report();

  // The engine that runs on this host thread, null outside launches.
  static Engine*& current();

 private:
  static constexpr int kWarpSize = 32;
  static constexpr int kMaxThreads = 1024;

  struct Fiber {
    explicit Fiber(size_t index) : stack(index) {}
    Stack stack;
    bool abandoned = false;
  };

  // What a thread asked for in a warp operation, and what it gets.
  struct Request {
    engine::WarpOp op = engine::WarpOp::sync;
    unsigned bytes = 0;
    unsigned mask = 0;
    int operand = 0;
    int width = kWarpSize;
    uint64_t value = 0;
    uint64_t result = 0;
  };

  struct alignas(64) Thread {
    Context context;
    Fiber* fiber = nullptr;  // null before its start and after its end
    engine::Location where;  // of the wait
    Request request;
#if VESAL_SIMT_ASAN
    void* fake_stack = nullptr;
#endif
  };

  // Each lane is in exactly one of ready (or running), at_barrier, waiting (in a warp operation) and exited.
  struct Warp {
    uint32_t existing = 0;
    uint32_t ready = 0;
    uint32_t at_barrier = 0;
    uint32_t waiting = 0;
    uint32_t exited = 0;
  };

  static void fiber_main();
  void set_ready(int warp, uint32_t lanes);
  // The next thread to run, taken out of the ready set, or -1.
  int pick();
  int take(int warp, int lane);
  // Gives up the processor; returns when this thread is picked again.
  void suspend();
  void resume(int thread);
  // Switches away for good from a fiber that is no longer needed.
  void leave_to_thread(int thread);
  void leave_to_host();
  // After a thread's return: the next thread to run, or -1 at the end of the block.
  int finish_thread();
  void release_barrier();
  void release_warp(int warp, uint32_t mask);
  void report_stall();
  void record(ErrorKind kind, const std::string& message);
  // Records the error and unwinds the running thread, which ends the block. Never called on the host's stack.
  [[noreturn]] void fail(ErrorKind kind, const std::string& message);

  Fiber* take_fiber();
  void set_indices(int thread);
  std::string name_of_thread(int thread) const;
  std::string name_of_lanes(int warp, uint32_t lanes) const;
  std::string states() const;
  uint64_t random_bits();

  // Of the launch.
  const LaunchConfig* config_ = nullptr;
  void (*run_thread_)(const void*) = nullptr;
  const void* call_ = nullptr;
  Schedule schedule_ = Schedule::forward;
  uint64_t seed_ = 0;
  int thread_count_ = 0;
  int warp_count_ = 0;
  std::vector<uint3> indices_;
  bool warned_exited_ = false;
  SharedArena arena_;

  // Of the block.
  std::vector<Thread> threads_;
  std::array<Warp, kMaxThreads / kWarpSize> warps_;
  uint32_t ready_warps_ = 0;
  int warp_cursor_ = 0;  // forward and reverse: where the search for the next thread goes on
  int lane_cursor_ = 0;
  int current_ = -1;
  int live_ = 0;     // threads that have not returned
  int arrived_ = 0;  // of them, at the block barrier
  engine::Barrier barrier_kind_ = engine::Barrier::sync;
  engine::Location barrier_where_;
  int barrier_thread_ = 0;  // the first that arrived
  int barrier_count_ = 0;   // predicates that were true
  int barrier_result_ = 0;
  uint64_t random_state_ = 0;
  uint3 block_{};

  bool failed_ = false;
  ErrorKind error_kind_ = ErrorKind::deadlock;
  std::string error_;

  Context host_;
#if VESAL_SIMT_ASAN
  const void* host_bottom_ = nullptr;
  size_t host_bytes_ = 0;
  bool entered_from_host_ = false;
#endif
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_fibers_;
};

}  // namespace vesal::kernels::simt
