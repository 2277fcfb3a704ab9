// From a launch to its blocks: limits, order of the blocks, host threads that share them.
#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/simt/engine.hpp"
#include "kernels/simt/settings.hpp"

namespace vesal::kernels::simt {
namespace {

// Engines wait here between launches: their stacks are worth keeping.
class EnginePool {
 public:
  std::unique_ptr<Engine> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) {
      return std::make_unique<Engine>();
    }
    std::unique_ptr<Engine> engine = std::move(idle_.back());
    idle_.pop_back();
    return engine;
  }
  void give_back(std::unique_ptr<Engine> engine) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(engine));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Engine>> idle_;
};

// Never destroyed: a launch may come from a static object's destructor.
EnginePool& pool() {
  static EnginePool* const instance = new EnginePool;
  return *instance;
}

// A permutation of [0, count) without a table: step -> (start + step * stride) mod count, the stride prime to
// count.
class BlockOrder {
 public:
  BlockOrder(const Settings& settings, uint64_t count) : schedule_(settings.schedule), count_(count) {
    if (schedule_ == Schedule::random) {
      const uint64_t mixed = (settings.seed + 1) * 0x9e3779b97f4a7c15ull;
      start_ = mixed % count;
      stride_ = (mixed >> 20) % count;
      while (std::gcd(stride_, count) != 1) {
        ++stride_;
      }
    }
  }
  uint64_t operator[](uint64_t step) const {
    switch (schedule_) {
      case Schedule::forward:
        return step;
      case Schedule::reverse:
        return count_ - 1 - step;
      case Schedule::random:
        return static_cast<uint64_t>((start_ + static_cast<unsigned __int128>(step) * stride_) % count_);
    }
    return step;
  }

 private:
  Schedule schedule_;
  uint64_t count_;
  uint64_t start_ = 0;
  uint64_t stride_ = 1;
};

}  // namespace

namespace engine {

void check_pointer_argument(const LaunchConfig& config, int index, const void* pointer) {
  if (pointer != nullptr && !is_device_pointer(pointer)) {
    throw SimtError(ErrorKind::host_pointer, concat(describe(config), ": argument ", index, " (", pointer,
                                                    ") is not in device memory: a host pointer, or freed"));
  }
}

void run(const LaunchConfig& config, void (*run_thread)(const void*), const void* call, size_t call_bytes) {
  check<DeviceError>(Engine::current() == nullptr, "simt: ", describe(config),
                     ": kernels cannot launch kernels");
  Settings settings = current_settings();
  std::unique_lock<std::mutex> alone;
  if constexpr (kRace) {
    alone = std::unique_lock(RaceDetector::instance().mutex());
    settings.workers = 1;
  }
  if (const char* broken = broken_launch_limit(config)) {
    throw SimtError(ErrorKind::launch_limit,
                    concat(describe(config), ": ", broken, " (", sizes(config), ")"));
  }
  if (static_cast<size_t>(config.shared_bytes.value) > settings.limits.total_shared) {
    throw SimtError(ErrorKind::shared_limit,
                    concat(describe(config), ": more dynamic shared memory than ",
                           settings.limits.total_shared, " bytes (", sizes(config), ")"));
  }
  if (is_empty(config)) {
    return;
  }
  const auto grid_x = static_cast<uint64_t>(config.grid.x);
  const auto grid_y = static_cast<uint64_t>(config.grid.y);
  const uint64_t count = grid_x * grid_y * static_cast<uint64_t>(config.grid.z);
  const uint64_t sample =
      settings.block_sample == 0 ? count : std::min<uint64_t>(settings.block_sample, count);
  const BlockOrder order(settings, sample);

  std::atomic<uint64_t> next_step{0};
  std::atomic<bool> stop{false};
  std::mutex error_mutex;
  std::exception_ptr error;
  uint64_t error_step = sample;

  const auto work = [&] {
    std::unique_ptr<Engine> engine = pool().take();
    uint64_t step = 0;
    try {
      engine->begin_launch(config, run_thread, call, call_bytes);
      while (!stop.load(std::memory_order_relaxed) && (step = next_step.fetch_add(1)) < sample) {
        uint64_t block = order[step];
        if (sample < count) {
          block = static_cast<uint64_t>(static_cast<unsigned __int128>(block) * (count - 1) / (sample - 1));
        }
        engine->run_block({static_cast<unsigned>(block % grid_x),
                           static_cast<unsigned>(block / grid_x % grid_y),
                           static_cast<unsigned>(block / (grid_x * grid_y))});
      }
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (step < error_step) {  // of several failures the first in order is reported
        error_step = step;
        error = std::current_exception();
      }
      stop.store(true, std::memory_order_relaxed);
    }
    pool().give_back(std::move(engine));
  };

  const auto helpers =
      static_cast<size_t>(std::min<uint64_t>(static_cast<uint64_t>(settings.workers), sample)) - 1;
  std::vector<std::jthread> threads;
  threads.reserve(helpers);
  for (size_t i = 0; i < helpers; ++i) {
    threads.emplace_back(work);
  }
  work();
  threads.clear();  // joins
  if (error) {
    std::rethrow_exception(error);
  }
  try {
    check_guards();
  } catch (const SimtError& damage) {
    throw SimtError(damage.kind(), concat("found after ", describe(config), ": ", damage.what()));
  }
}

}  // namespace engine
}  // namespace vesal::kernels::simt
