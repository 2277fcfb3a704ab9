// The scheduler and the waits of kernel threads: see engine.hpp.
#include "kernels/simt/engine.hpp"

#include <algorithm>
#include <bit>
#include <exception>

#include "kernels/simt/settings.hpp"

namespace vesal::kernels::simt {

constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local uint3 blockDim{};
constinit thread_local uint3 gridDim{};

namespace {

// Unwinds the thread that failed up to fiber_main, so that nothing it holds is lost; it never crosses a
// switch. The other fibers of the block are abandoned where they wait, in frames of the engine and of the
// kernel that own nothing.
struct Failure {};

constexpr uint32_t kAllLanes = 0xffffffffu;

constexpr uint32_t bit(int lane) { return uint32_t{1} << lane; }
// Lanes above and below `lane`; all of them for -1 and 32.
constexpr uint32_t above(int lane) { return lane >= 31 ? 0 : kAllLanes << (lane + 1); }
constexpr uint32_t below(int lane) { return lane <= 0 ? 0 : lane >= 32 ? kAllLanes : bit(lane) - 1; }

// The first set bit after `cursor` in rising order, around the end; `bits` is not 0.
int next_up(uint32_t bits, int cursor) {
  const uint32_t later = bits & above(cursor);
  return std::countr_zero(later != 0 ? later : bits);
}
int next_down(uint32_t bits, int cursor) {
  const uint32_t later = bits & below(cursor);
  return 31 - std::countl_zero(later != 0 ? later : bits);
}

// Calls body(lane) for each set bit, rising.
template <class Body>
void for_each_lane(uint32_t lanes, Body&& body) {
  for (; lanes != 0; lanes &= lanes - 1) {
    body(std::countr_zero(lanes));
  }
}

std::string hex(uint32_t mask) {
  std::ostringstream out;
  out << "0x" << std::hex << mask;
  return out.str();
}

std::string place(const engine::Location& where) {
  const std::string path = where.file_name();
  return concat(path.substr(path.find_last_of('/') + 1), ":", where.line());
}

bool same_place(const engine::Location& a, const engine::Location& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

const char* name_of(engine::Barrier kind) {
  switch (kind) {
    case engine::Barrier::sync:
      return "__syncthreads";
    case engine::Barrier::count:
      return "__syncthreads_count";
    case engine::Barrier::all:
      return "__syncthreads_and";
    case engine::Barrier::any:
      return "__syncthreads_or";
  }
  return "?";
}

const char* name_of(engine::WarpOp op) {
  using engine::WarpOp;
  switch (op) {
    case WarpOp::sync:
      return "__syncwarp";
    case WarpOp::shuffle:
      return "__shfl_sync";
    case WarpOp::shuffle_up:
      return "__shfl_up_sync";
    case WarpOp::shuffle_down:
      return "__shfl_down_sync";
    case WarpOp::shuffle_xor:
      return "__shfl_xor_sync";
    case WarpOp::ballot:
      return "__ballot_sync";
    case WarpOp::any:
      return "__any_sync";
    case WarpOp::all:
      return "__all_sync";
    case WarpOp::match_any:
      return "__match_any_sync";
    case WarpOp::reduce_add:
      return "__reduce_add_sync";
    case WarpOp::reduce_min:
    case WarpOp::reduce_umin:
      return "__reduce_min_sync";
    case WarpOp::reduce_max:
    case WarpOp::reduce_umax:
      return "__reduce_max_sync";
    case WarpOp::reduce_and:
      return "__reduce_and_sync";
    case WarpOp::reduce_or:
      return "__reduce_or_sync";
    case WarpOp::reduce_xor:
      return "__reduce_xor_sync";
  }
  return "?";
}

uint64_t reduce(engine::WarpOp op, uint64_t a, uint64_t b) {
  using engine::WarpOp;
  const auto ua = static_cast<uint32_t>(a);
  const auto ub = static_cast<uint32_t>(b);
  const auto sa = static_cast<int32_t>(ua);
  const auto sb = static_cast<int32_t>(ub);
  switch (op) {
    case WarpOp::reduce_add:
      return ua + ub;
    case WarpOp::reduce_min:
      return static_cast<uint32_t>(std::min(sa, sb));
    case WarpOp::reduce_max:
      return static_cast<uint32_t>(std::max(sa, sb));
    case WarpOp::reduce_umin:
      return std::min(ua, ub);
    case WarpOp::reduce_umax:
      return std::max(ua, ub);
    case WarpOp::reduce_and:
      return ua & ub;
    case WarpOp::reduce_or:
      return ua | ub;
    default:
      return ua ^ ub;
  }
}

}  // namespace

Engine*& Engine::current() {
  static constinit thread_local Engine* engine = nullptr;
  return engine;
}

Engine::Engine() : threads_(kMaxThreads) {}

void Engine::begin_launch(const LaunchConfig& config, void (*run_thread)(const void*), const void* call,
                          size_t call_bytes) {
  config_ = &config;
  run_thread_ = run_thread;
  call_ = call;
  const Settings settings = current_settings();
  schedule_ = settings.schedule;
  seed_ = settings.seed;
  warned_exited_ = false;
  const auto x = static_cast<unsigned>(config.block.x);
  const auto y = static_cast<unsigned>(config.block.y);
  const auto z = static_cast<unsigned>(config.block.z);
  thread_count_ = static_cast<int>(x * y * z);
  warp_count_ = (thread_count_ + kWarpSize - 1) / kWarpSize;
  indices_.resize(static_cast<size_t>(thread_count_));
  for (unsigned i = 0; i < indices_.size(); ++i) {
    indices_[i] = {i % x, i / x % y, i / (x * y)};
  }
  blockDim = {x, y, z};
  gridDim = {static_cast<unsigned>(config.grid.x), static_cast<unsigned>(config.grid.y),
             static_cast<unsigned>(config.grid.z)};
  const auto shared_bytes = static_cast<size_t>(config.shared_bytes.value);
  arena_.begin_launch(shared_bytes, settings.limits);
  if constexpr (kRace) {
    RaceDetector& race = RaceDetector::instance();
    race.begin_launch(thread_count_, call, call_bytes, arena_.memory(), arena_.capacity());
    race.add_shared("of dynamic size", arena_.dynamic(), shared_bytes);
  }
}

void Engine::run_block(uint3 block) {
  block_ = block;
  blockIdx = block;
  arena_.begin_block();
  if constexpr (kRace) {
    RaceDetector::instance().begin_block(block);
  }
  for (int warp = 0; warp < warp_count_; ++warp) {
    const int lanes = std::min(kWarpSize, thread_count_ - warp * kWarpSize);
    const uint32_t existing = below(lanes);
    warps_[static_cast<size_t>(warp)] = {.existing = existing, .ready = existing};
  }
  ready_warps_ = below(warp_count_);
  warp_cursor_ = schedule_ == Schedule::reverse ? warp_count_ - 1 : 0;
  lane_cursor_ = schedule_ == Schedule::reverse ? kWarpSize : -1;
  live_ = thread_count_;
  arrived_ = 0;
  failed_ = false;
  random_state_ = seed_ ^ ((uint64_t{block.z} * 65536 + block.y) << 32 | block.x);

  current_ = pick();
  Thread& first = threads_[static_cast<size_t>(current_)];
  set_indices(current_);
  first.fiber = take_fiber();
  first.fiber->stack.prepare(first.context, fiber_main);
  Engine* const outer = std::exchange(current(), this);
#if VESAL_SIMT_ASAN
  void* fake_stack = nullptr;
  entered_from_host_ = true;
  __sanitizer_start_switch_fiber(&fake_stack, first.fiber->stack.bottom(), first.fiber->stack.bytes());
#endif
  switch_context(host_, first.context);
#if VESAL_SIMT_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  current() = outer;

  if constexpr (kRace) {
    RaceDetector& race = RaceDetector::instance();
    if (race.has_report()) {
      record(race.report_kind(), race.take_report([&](int thread) { return name_of_thread(thread); }));
    } else if (!failed_) {
      race.end_block();
    }
  }
  if (failed_) {
    for (int i = 0; i < thread_count_; ++i) {
      Thread& thread = threads_[static_cast<size_t>(i)];
      if (thread.fiber != nullptr) {
        thread.fiber->abandoned = true;
        free_fibers_.push_back(std::exchange(thread.fiber, nullptr));
      }
    }
    throw SimtError(error_kind_, error_);
  }
  if (const std::string damage = arena_.damage(); !damage.empty()) {
    throw SimtError(ErrorKind::out_of_bounds_shared, concat(describe(*config_), ": block (", block.x, ", ",
                                                            block.y, ", ", block.z, "): ", damage));
  }
}

// A fiber runs thread after thread as long as the next one is new; it ends where it would have to resume
// another fiber.
void Engine::fiber_main() {
  Engine& self = *current();
#if VESAL_SIMT_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (std::exchange(self.entered_from_host_, false)) {
    self.host_bottom_ = bottom;
    self.host_bytes_ = bytes;
  }
#endif
  for (;;) {
    int next = -1;
    try {
      self.enter_kernel();
      self.run_thread_(self.call_);
      leave_kernel();
      next = self.finish_thread();
    } catch (const Failure&) {
      leave_kernel();  // fail() has recorded it
    } catch (const std::exception& error) {
      leave_kernel();
      self.record(ErrorKind::kernel_exception, concat("an exception left the kernel: ", error.what()));
    } catch (...) {
      leave_kernel();
      self.record(ErrorKind::kernel_exception, "an exception that is no std::exception left the kernel");
    }
    if (self.failed_) {
      self.leave_to_host();
    }
    Thread& ended = self.threads_[static_cast<size_t>(self.current_)];
    Fiber* const fiber = std::exchange(ended.fiber, nullptr);
    if (next >= 0 && self.threads_[static_cast<size_t>(next)].fiber == nullptr) {
      self.threads_[static_cast<size_t>(next)].fiber = fiber;
      self.current_ = next;
      self.set_indices(next);
      continue;
    }
    self.free_fibers_.push_back(fiber);
    if (next >= 0) {
      self.leave_to_thread(next);
    } else {
      self.leave_to_host();
    }
  }
}

Engine::Fiber* Engine::take_fiber() {
  if (free_fibers_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>(fibers_.size()));
    return fibers_.back().get();
  }
  Fiber* const fiber = free_fibers_.back();
  free_fibers_.pop_back();
  if (fiber->abandoned) {  // frames that never returned left their red zones behind
    asan_unpoison(fiber->stack.bottom(), fiber->stack.bytes());
    fiber->abandoned = false;
  }
  return fiber;
}

void Engine::set_indices(int thread) { threadIdx = indices_[static_cast<size_t>(thread)]; }

void Engine::set_ready(int warp, uint32_t lanes) {
  if (lanes != 0) {
    warps_[static_cast<size_t>(warp)].ready |= lanes;
    ready_warps_ |= bit(warp);
  }
}

uint64_t Engine::random_bits() {  // splitmix64
  uint64_t z = (random_state_ += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

int Engine::take(int warp, int lane) {
  Warp& w = warps_[static_cast<size_t>(warp)];
  w.ready &= ~bit(lane);
  if (w.ready == 0) {
    ready_warps_ &= ~bit(warp);
  }
  return warp * kWarpSize + lane;
}

// Forward and reverse stay in a warp while it has ready lanes, which keeps its stacks in the cache.
int Engine::pick() {
  if (ready_warps_ == 0) {
    return -1;
  }
  if (schedule_ == Schedule::random) {
    const auto any_of = [&](uint32_t bits) {
      int skip = static_cast<int>(random_bits() % static_cast<unsigned>(std::popcount(bits)));
      for (; skip > 0; --skip) {
        bits &= bits - 1;
      }
      return std::countr_zero(bits);
    };
    const int warp = any_of(ready_warps_);
    return take(warp, any_of(warps_[static_cast<size_t>(warp)].ready));
  }
  const bool forward = schedule_ == Schedule::forward;
  if ((ready_warps_ & bit(warp_cursor_)) == 0) {
    warp_cursor_ = forward ? next_up(ready_warps_, warp_cursor_) : next_down(ready_warps_, warp_cursor_);
    lane_cursor_ = forward ? -1 : kWarpSize;
  }
  const uint32_t ready = warps_[static_cast<size_t>(warp_cursor_)].ready;
  lane_cursor_ = forward ? next_up(ready, lane_cursor_) : next_down(ready, lane_cursor_);
  return take(warp_cursor_, lane_cursor_);
}

void Engine::suspend() {
  const int next = pick();
  if (next < 0) {
    report_stall();
  }
  if (next != current_) {
    resume(next);
  }
}

void Engine::resume(int next) {
  Thread& from = threads_[static_cast<size_t>(current_)];
  Thread& to = threads_[static_cast<size_t>(next)];
  if (to.fiber == nullptr) {
    to.fiber = take_fiber();
    to.fiber->stack.prepare(to.context, fiber_main);
  }
  current_ = next;
  set_indices(next);
#if VESAL_SIMT_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.fiber->stack.bottom(), to.fiber->stack.bytes());
#endif
  switch_context(from.context, to.context);
#if VESAL_SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// Neither of the next two returns: red zones around their locals would stay on a stack that is used again.
VESAL_SIMT_NO_ASAN void Engine::leave_to_thread(int next) {
  Thread& to = threads_[static_cast<size_t>(next)];
  current_ = next;
  set_indices(next);
#if VESAL_SIMT_ASAN
  __sanitizer_start_switch_fiber(nullptr, to.fiber->stack.bottom(), to.fiber->stack.bytes());
#endif
  Context unused;
  switch_context(unused, to.context);
}

VESAL_SIMT_NO_ASAN void Engine::leave_to_host() {
#if VESAL_SIMT_ASAN
  __sanitizer_start_switch_fiber(nullptr, host_bottom_, host_bytes_);
#endif
  Context unused;
  switch_context(unused, host_);
}

void Engine::record(ErrorKind kind, const std::string& message) {
  failed_ = true;
  error_kind_ = kind;
  error_ = concat(describe(*config_), ": block (", block_.x, ", ", block_.y, ", ", block_.z, "), thread ",
                  name_of_thread(current_), ": ", message);
}

void Engine::fail(ErrorKind kind, const std::string& message) {
  record(kind, message);
  throw Failure{};
}

void Engine::stop_for_report() {
  failed_ = true;
  leave_to_host();
}

int Engine::finish_thread() {
  const int warp = current_ / kWarpSize;
  const int lane = current_ % kWarpSize;
  Warp& w = warps_[static_cast<size_t>(warp)];
  w.exited |= bit(lane);
  --live_;
  for_each_lane(w.waiting, [&](int other) {
    const Thread& thread = threads_[static_cast<size_t>(warp * kWarpSize + other)];
    if ((thread.request.mask & bit(lane)) != 0) {
      fail(ErrorKind::exited_lane,
           concat("it returned, but thread ", name_of_thread(warp * kWarpSize + other), " waits for it in ",
                  name_of(thread.request.op), " with mask ", hex(thread.request.mask), " (",
                  place(thread.where), ")"));
    }
  });
  if (live_ == 0) {
    return -1;
  }
  if (arrived_ == live_) {
    release_barrier();
  }
  const int next = pick();
  if (next < 0) {
    report_stall();
  }
  return next;
}

int Engine::block_barrier(engine::Barrier kind, bool predicate, const engine::Location& where) {
  Thread& thread = threads_[static_cast<size_t>(current_)];
  thread.where = where;
  if (arrived_ == 0) {
    barrier_kind_ = kind;
    barrier_where_ = where;
    barrier_thread_ = current_;
    barrier_count_ = 0;
  } else if (kind != barrier_kind_ || !same_place(where, barrier_where_)) {
    const bool same_kind = kind == barrier_kind_;
    fail(same_kind ? ErrorKind::divergent_barrier : ErrorKind::operation_mismatch,
         concat("it waits in ", name_of(kind), " at ", place(where), " while thread ",
                name_of_thread(barrier_thread_), " waits in ", name_of(barrier_kind_), " at ",
                place(barrier_where_), "; all threads of a block must reach the same barrier"));
  }
  warps_[static_cast<size_t>(current_ / kWarpSize)].at_barrier |= bit(current_ % kWarpSize);
  ++arrived_;
  barrier_count_ += predicate ? 1 : 0;
  if (arrived_ == live_) {
    release_barrier();
  }
  suspend();
  return barrier_result_;
}

void Engine::release_barrier() {
  switch (barrier_kind_) {
    case engine::Barrier::sync:
    case engine::Barrier::count:
      barrier_result_ = barrier_count_;
      break;
    case engine::Barrier::all:
      barrier_result_ = barrier_count_ == arrived_ ? 1 : 0;
      break;
    case engine::Barrier::any:
      barrier_result_ = barrier_count_ > 0 ? 1 : 0;
      break;
  }
  if (live_ < thread_count_ && !warned_exited_) {
    warned_exited_ = true;
    add_warning(concat(describe(*config_), ": block (", block_.x, ", ", block_.y, ", ", block_.z,
                       "): ", thread_count_ - live_, " of ", thread_count_, " threads returned before the ",
                       name_of(barrier_kind_), " at ", place(barrier_where_),
                       " that the others wait in; hardware before compute capability 7.0 hangs here"));
  }
  if constexpr (kRace) {
    RaceDetector::instance().block_barrier();
  }
  arrived_ = 0;
  for (int warp = 0; warp < warp_count_; ++warp) {
    set_ready(warp, std::exchange(warps_[static_cast<size_t>(warp)].at_barrier, 0));
  }
  // The next phase starts where the block started.
  warp_cursor_ = schedule_ == Schedule::reverse ? warp_count_ - 1 : 0;
  lane_cursor_ = schedule_ == Schedule::reverse ? kWarpSize : -1;
}

uint64_t Engine::warp_operation(engine::WarpOp op, unsigned mask, uint64_t value, unsigned bytes, int operand,
                                int width, const engine::Location& where) {
  const int warp = current_ / kWarpSize;
  const int lane = current_ % kWarpSize;
  Warp& w = warps_[static_cast<size_t>(warp)];
  Thread& thread = threads_[static_cast<size_t>(current_)];
  thread.where = where;
  thread.request = {op, bytes, mask, operand, width, value, 0};
  const auto call = [&] { return concat(name_of(op), " with mask ", hex(mask), " at ", place(where)); };
  if ((mask & bit(lane)) == 0) {
    fail(ErrorKind::mask_mismatch, concat("it calls ", call(), ", which leaves its own lane ", lane, " out"));
  }
  if ((mask & ~w.existing) != 0) {
    fail(ErrorKind::inactive_lane,
         concat("it calls ", call(), ", but its warp has only ", std::popcount(w.existing), " lanes"));
  }
  if ((mask & w.exited) != 0) {
    fail(ErrorKind::exited_lane,
         concat("it calls ", call(), ", but ", name_of_lanes(warp, mask & w.exited), " have returned"));
  }
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) {
    fail(ErrorKind::bad_argument,
         concat("it calls ", call(), ", width ", width, ": expected 1, 2, 4, 8, 16 or 32"));
  }
  w.waiting |= bit(lane);
  uint32_t same = bit(lane);
  for_each_lane(w.waiting & mask & ~bit(lane), [&](int other) {
    const Thread& peer = threads_[static_cast<size_t>(warp * kWarpSize + other)];
    const bool matches = peer.request.op == op && peer.request.bytes == bytes;
    if (peer.request.mask == mask && matches) {
      same |= bit(other);
    } else if ((peer.request.mask & bit(lane)) !=
               0) {  // each waits for the other: this can never be resolved
      fail(peer.request.mask == mask ? ErrorKind::operation_mismatch : ErrorKind::mask_mismatch,
           concat("it calls ", call(), ", but thread ", name_of_thread(warp * kWarpSize + other),
                  " waits for it in ", name_of(peer.request.op), " of ", peer.request.bytes,
                  " bytes with mask ", hex(peer.request.mask), " at ", place(peer.where)));
    }
  });
  if (same == mask) {
    release_warp(warp, mask);
  }
  suspend();
  return thread.request.result;
}

// Computes every lane's result at once: a lane that goes on early may ask for the next operation before the
// others have looked at this one's values.
void Engine::release_warp(int warp, uint32_t mask) {
  using engine::WarpOp;
  Warp& w = warps_[static_cast<size_t>(warp)];
  Thread* const lanes = &threads_[static_cast<size_t>(warp * kWarpSize)];
  const WarpOp op = lanes[std::countr_zero(mask)].request.op;
  switch (op) {
    case WarpOp::sync:
      if constexpr (kRace) {
        RaceDetector::instance().warp_barrier(warp, mask);
      }
      break;
    case WarpOp::shuffle:
    case WarpOp::shuffle_up:
    case WarpOp::shuffle_down:
    case WarpOp::shuffle_xor:
      for_each_lane(mask, [&](int lane) {
        Request& request = lanes[lane].request;
        const int first = lane & ~(request.width - 1);
        const int last = first + request.width - 1;
        int source = lane;
        if (op == WarpOp::shuffle) {
          source = first | (request.operand & (request.width - 1));
        } else if (op == WarpOp::shuffle_up) {
          source = lane - (request.operand & 31);
          source = source < first ? lane : source;
        } else if (op == WarpOp::shuffle_down) {
          source = lane + (request.operand & 31);
          source = source > last ? lane : source;
        } else {
          source = lane ^ (request.operand & 31);
          source = source > last ? lane : source;
        }
        if ((mask & bit(source)) == 0) {
          fail(ErrorKind::inactive_lane,
               concat("thread ", name_of_thread(warp * kWarpSize + lane), " reads lane ", source, " in ",
                      name_of(op), " at ", place(lanes[lane].where), ", which is not in mask ", hex(mask)));
        }
        request.result = lanes[source].request.value;
      });
      break;
    case WarpOp::ballot:
    case WarpOp::any:
    case WarpOp::all: {
      uint32_t votes = 0;
      for_each_lane(mask, [&](int lane) { votes |= lanes[lane].request.value != 0 ? bit(lane) : 0; });
      const uint64_t result = op == WarpOp::ballot ? votes : op == WarpOp::any ? votes != 0 : votes == mask;
      for_each_lane(mask, [&](int lane) { lanes[lane].request.result = result; });
      break;
    }
    case WarpOp::match_any:
      for_each_lane(mask, [&](int lane) {
        uint32_t equal = 0;
        for_each_lane(mask, [&](int other) {
          equal |= lanes[other].request.value == lanes[lane].request.value ? bit(other) : 0;
        });
        lanes[lane].request.result = equal;
      });
      break;
    default: {
      uint32_t rest = mask & (mask - 1);
      uint64_t result = lanes[std::countr_zero(mask)].request.value;
      for_each_lane(rest, [&](int lane) { result = reduce(op, result, lanes[lane].request.value); });
      for_each_lane(mask, [&](int lane) { lanes[lane].request.result = result; });
      break;
    }
  }
  w.waiting &= ~mask;
  set_ready(warp, mask);
}

void Engine::yield() {
  const int warp = current_ / kWarpSize;
  set_ready(warp, bit(current_ % kWarpSize));
  // Otherwise the scheduler would stay in this warp.
  if (schedule_ == Schedule::forward) {
    warp_cursor_ = next_up(ready_warps_, warp_cursor_);
    lane_cursor_ = warp_cursor_ == warp ? lane_cursor_ : -1;
  } else if (schedule_ == Schedule::reverse) {
    warp_cursor_ = next_down(ready_warps_, warp_cursor_);
    lane_cursor_ = warp_cursor_ == warp ? lane_cursor_ : kWarpSize;
  }
  suspend();
}

void* Engine::static_shared(const engine::SharedSite& site) {
  std::string problem;
  void* const found = arena_.find(site, problem);
  if (found == nullptr) {
    fail(ErrorKind::shared_limit, problem);
  }
  if constexpr (kRace) {
    RaceDetector::instance().add_shared(site.name, found, site.bytes);
  }
  return found;
}

// Nobody is ready. Masks that differ among waiting lanes are the usual cause, a barrier in a branch the
// other.
void Engine::report_stall() {
  bool masks_differ = false;
  for (int warp = 0; warp < warp_count_; ++warp) {
    const Warp& w = warps_[static_cast<size_t>(warp)];
    for_each_lane(w.waiting, [&](int lane) {
      const uint32_t mask = threads_[static_cast<size_t>(warp * kWarpSize + lane)].request.mask;
      for_each_lane(mask & w.waiting, [&](int other) {
        masks_differ |= threads_[static_cast<size_t>(warp * kWarpSize + other)].request.mask != mask;
      });
    });
  }
  fail(arrived_ == 0 && masks_differ ? ErrorKind::mask_mismatch : ErrorKind::deadlock,
       concat("no thread of the block can go on: ", states()));
}

std::string Engine::name_of_thread(int thread) const {
  const uint3& index = indices_[static_cast<size_t>(thread)];
  return concat("(", index.x, ", ", index.y, ", ", index.z, ") [warp ", thread / kWarpSize, ", lane ",
                thread % kWarpSize, "]");
}

std::string Engine::name_of_lanes(int warp, uint32_t lanes) const {
  return concat("the lanes ", hex(lanes), " of warp ", warp);
}

// One entry for each run of neighbouring threads that wait in the same place.
std::string Engine::states() const {
  std::string text;
  std::string previous;
  int first = 0;
  const auto close = [&](int end) {
    if (!previous.empty()) {
      text += concat(text.empty() ? "" : "; ", "threads ", first, " to ", end - 1, " ", previous);
    }
  };
  for (int i = 0; i < thread_count_; ++i) {
    const Warp& w = warps_[static_cast<size_t>(i / kWarpSize)];
    const uint32_t lane = bit(i % kWarpSize);
    const Thread& thread = threads_[static_cast<size_t>(i)];
    std::string state = "are ready";
    if ((w.exited & lane) != 0) {
      state = "have returned";
    } else if ((w.at_barrier & lane) != 0) {
      state = concat("wait in ", name_of(barrier_kind_), " at ", place(thread.where));
    } else if ((w.waiting & lane) != 0) {
      state = concat("wait in ", name_of(thread.request.op), " with mask ", hex(thread.request.mask), " at ",
                     place(thread.where));
    }
    if (state != previous) {
      close(i);
      previous = state;
      first = i;
    }
  }
  close(thread_count_);
  return text;
}

namespace {

// The time that a thread spends in the engine.
class Outside {
 public:
  Outside() { Engine::leave_kernel(); }
  ~Outside() { Engine::current()->enter_kernel(); }
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;
};

}  // namespace

namespace engine {

void* static_shared(const SharedSite& site) {
  const Outside outside;
  return Engine::current()->static_shared(site);
}
void* dynamic_shared() { return Engine::current()->dynamic_shared(); }
int block_barrier(Barrier kind, bool predicate, const Location& where) {
  const Outside outside;
  return Engine::current()->block_barrier(kind, predicate, where);
}
uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, unsigned bytes, int operand, int width,
                        const Location& where) {
  const Outside outside;
  return Engine::current()->warp_operation(op, mask, value, bytes, operand, width, where);
}
void yield() {
  const Outside outside;
  Engine::current()->yield();
}
void fence(Scope scope) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if constexpr (kRace) {
    const Outside outside;
    RaceDetector::instance().fence(scope == Scope::device);
  }
}

}  // namespace engine
}  // namespace vesal::kernels::simt
