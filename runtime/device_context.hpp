// Everything one device needs while a network runs on it: stream, allocator, kernel caches, the tape that
// records, and the position in the random sequence. One per device and host thread; ops take it as their
// first argument.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/context/context.hpp"
#include "runtime/allocator.hpp"

namespace vesal {

class Tape;

// A queue of work on a device.
class Stream {
 public:
  explicit Stream(Device device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  StreamHandle handle() const { return handle_; }
  void synchronize() const;

 private:
  Device device_;
  StreamHandle handle_;
};

// A point in a stream's work, for timing and for waiting across streams.
class Event {
 public:
  explicit Event(Device device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(const Stream& stream);
  // Makes later work of `stream` wait for this event.
  void make_wait(const Stream& stream) const;
  // Milliseconds from `start` to this event; waits for this event.
  double milliseconds_since(const Event& start) const;

 private:
  Device device_;
  void* native_ = nullptr;
};

// Scratch memory for one kernel call; goes back to the allocator when it leaves scope.
class Scratch {
 public:
  Scratch(std::shared_ptr<void> memory, size_t bytes) : memory_(std::move(memory)), bytes_(bytes) {}
  operator kernels::Workspace() const { return {memory_.get(), bytes_}; }

 private:
  std::shared_ptr<void> memory_;
  size_t bytes_;
};

// Where a context stands in the random sequence.
struct RandomPosition {
  uint64_t seed = 0, step = 0, op = 0;
};

class DeviceContext {
 public:
  // Throws DeviceError when the device is not there.
  explicit DeviceContext(Device device);
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  Device device() const { return device_; }
  const Stream& stream() const { return stream_; }
  Allocator& allocator() const { return *allocator_; }
  kernels::Context& kernels() { return kernels_; }

  Scratch scratch(size_t bytes);
  void synchronize() const { stream_.synchronize(); }

  // The tape that records differentiable ops, or null: nothing is saved and no gradient flows.
  Tape* tape() const { return tape_; }

  // Random numbers are keyed by (seed, step, op): set the first two at the start of a step; each op that
  // draws takes the next op number.
  void seed_step(uint64_t seed, uint64_t step) { random_ = {seed, step, 0}; }
  uint64_t seed() const { return random_.seed; }
  uint64_t step() const { return random_.step; }
  uint64_t next_random_op() { return random_.op++; }
  const RandomPosition& random_position() const { return random_; }

  // An op runs a second time to restore what its backward pass needs (runtime/checkpoint.hpp): it
  // gives the same values, and state beside them, such as running statistics, must not move again.
  bool recomputing() const { return recomputing_; }

 private:
  friend class TapeScope;
  friend class RecomputeScope;

  Device device_;
  Stream stream_;
  std::shared_ptr<Allocator> allocator_;
  kernels::Context kernels_;
  Tape* tape_ = nullptr;
  RandomPosition random_;
  bool recomputing_ = false;
};

// Makes a context record on `tape` while it lives; TapeScope(context, nullptr) is a no-grad scope.
class TapeScope {
 public:
  TapeScope(DeviceContext& context, Tape* tape) : context_(context), previous_(context.tape_) {
    context.tape_ = tape;
  }
  ~TapeScope() { context_.tape_ = previous_; }
  TapeScope(const TapeScope&) = delete;
  TapeScope& operator=(const TapeScope&) = delete;

 private:
  DeviceContext& context_;
  Tape* previous_;
};

// While it lives, ops draw from an earlier position of the random sequence and know that they are repeated.
class RecomputeScope {
 public:
  RecomputeScope(DeviceContext& context, const RandomPosition& position)
      : context_(context), resume_(context.random_position()), nested_(context.recomputing_) {
    context.random_ = position;
    context.recomputing_ = true;
  }
  ~RecomputeScope() {
    context_.random_ = resume_;
    context_.recomputing_ = nested_;
  }
  RecomputeScope(const RecomputeScope&) = delete;
  RecomputeScope& operator=(const RecomputeScope&) = delete;

 private:
  DeviceContext& context_;
  RandomPosition resume_;
  bool nested_;
};

}  // namespace vesal
