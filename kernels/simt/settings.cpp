// Process-wide settings, the names of errors and the list of warnings: see schedule.hpp and error.hpp.
#include "kernels/simt/settings.hpp"

#include <charconv>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <string_view>

#include "kernels/simt/error.hpp"

namespace vesal::kernels::simt {
namespace {

constexpr size_t kMostWarnings = 100;
constexpr int kMostWorkers = 256;

template <class T>
T parse_number(std::string_view text, const char* variable) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  check<UsageError>(error == std::errc() && end == text.data() + text.size() && !text.empty(), variable,
                    ": found \"", text, "\", expected a number");
  return value;
}

void check_workers(int workers) {
  check<UsageError>(workers >= 1 && workers <= kMostWorkers, "simt workers: found ", workers,
                    ", expected 1 to ", kMostWorkers);
}

struct Shared {
  std::mutex mutex;
  Settings settings = settings_from_environment();
  std::deque<std::string> warnings;
};

Shared& shared() {
  static Shared instance;
  return instance;
}

}  // namespace

Settings settings_from_environment() {
  Settings settings;
  if (const char* text = std::getenv("VESAL_SIMT_SCHEDULE")) {
    const std::string_view name = text;
    constexpr std::string_view random = "random:";
    if (name == "reverse") {
      settings.schedule = Schedule::reverse;
    } else if (name.starts_with(random)) {
      settings.schedule = Schedule::random;
      settings.seed = parse_number<uint64_t>(name.substr(random.size()), "VESAL_SIMT_SCHEDULE");
    } else {
      check<UsageError>(name == "forward", "VESAL_SIMT_SCHEDULE: found \"", name,
                        "\", expected forward, reverse or random:SEED");
    }
  }
  if (const char* text = std::getenv("VESAL_SIMT_WORKERS")) {
    settings.workers = parse_number<int>(text, "VESAL_SIMT_WORKERS");
    check_workers(settings.workers);
  }
  return settings;
}

Settings current_settings() {
  const std::lock_guard lock(shared().mutex);
  return shared().settings;
}

void set_schedule(Schedule schedule, uint64_t seed) {
  const std::lock_guard lock(shared().mutex);
  shared().settings.schedule = schedule;
  shared().settings.seed = seed;
}

Schedule schedule() { return current_settings().schedule; }

void set_workers(int workers) {
  check_workers(workers);
  const std::lock_guard lock(shared().mutex);
  shared().settings.workers = workers;
}

int workers() { return current_settings().workers; }

void set_block_sample(uint64_t blocks) {
  check<UsageError>(blocks != 1, "simt block sample: found 1, expected 0 (all) or at least 2");
  const std::lock_guard lock(shared().mutex);
  shared().settings.block_sample = blocks;
}

uint64_t block_sample() { return current_settings().block_sample; }

void set_limits(const Limits& limits) {
  const std::lock_guard lock(shared().mutex);
  shared().settings.limits = limits;
}

Limits limits() { return current_settings().limits; }

void add_warning(const std::string& message) {
  const std::lock_guard lock(shared().mutex);
  if (shared().warnings.size() == kMostWarnings) {
    shared().warnings.pop_front();
  }
  shared().warnings.push_back(message);
}

std::vector<std::string> warnings() {
  const std::lock_guard lock(shared().mutex);
  return {shared().warnings.begin(), shared().warnings.end()};
}

void clear_warnings() {
  const std::lock_guard lock(shared().mutex);
  shared().warnings.clear();
}

const char* name_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::launch_limit:
      return "launch_limit";
    case ErrorKind::shared_limit:
      return "shared_limit";
    case ErrorKind::host_pointer:
      return "host_pointer";
    case ErrorKind::divergent_barrier:
      return "divergent_barrier";
    case ErrorKind::deadlock:
      return "deadlock";
    case ErrorKind::mask_mismatch:
      return "mask_mismatch";
    case ErrorKind::operation_mismatch:
      return "operation_mismatch";
    case ErrorKind::inactive_lane:
      return "inactive_lane";
    case ErrorKind::exited_lane:
      return "exited_lane";
    case ErrorKind::bad_argument:
      return "bad_argument";
    case ErrorKind::out_of_bounds_shared:
      return "out_of_bounds_shared";
    case ErrorKind::guard_overwritten:
      return "guard_overwritten";
    case ErrorKind::kernel_exception:
      return "kernel_exception";
    case ErrorKind::write_write_race:
      return "write_write_race";
    case ErrorKind::read_write_race:
      return "read_write_race";
    case ErrorKind::uninitialised_read:
      return "uninitialised_read";
    case ErrorKind::out_of_region:
      return "out_of_region";
    case ErrorKind::misaligned_access:
      return "misaligned_access";
  }
  return "?";
}

}  // namespace vesal::kernels::simt
