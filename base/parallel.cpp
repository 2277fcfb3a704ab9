#include "base/parallel.hpp"

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>

#include "base/error.hpp"
#include "base/thread_limit.hpp"

namespace vesal {
namespace {

std::atomic<int> configured_threads{0};
thread_local int thread_limit = 0;  // of this thread; 0: none

// Processors granted by the cgroup's quota, or 0 where there is no limit.
int cgroup_quota() {
  {
    std::ifstream file("/sys/fs/cgroup/cpu.max");
    std::string quota;
    double period = 0;
    if (file >> quota >> period && quota != "max" && period > 0) {
      return std::max(1, static_cast<int>(std::ceil(std::stod(quota) / period)));
    }
  }
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota = 0;
  double period = 0;
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) {
    return std::max(1, static_cast<int>(std::ceil(quota / period)));
  }
  return 0;
}

}  // namespace

int available_threads() {
  static const int count = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    int threads = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    if (const int quota = cgroup_quota(); quota > 0) {
      threads = std::min(threads, quota);
    }
    if (const char* text = std::getenv("OMP_NUM_THREADS")) {
      if (const int wanted = std::atoi(text); wanted > 0) {
        threads = std::min(threads, wanted);
      }
    }
    return std::max(1, threads);
  }();
  return count;
}

int thread_count() {
  if (configured_threads.load(std::memory_order_relaxed) == 0) {
    set_thread_count(available_threads());
  }
  const int configured = configured_threads.load(std::memory_order_relaxed);
  return thread_limit > 0 ? std::min(thread_limit, configured) : configured;
}

void set_thread_count(int threads) {
  check<UsageError>(threads >= 1, "threads: found ", threads, ", expected at least 1");
  configured_threads.store(threads, std::memory_order_relaxed);
  omp_set_dynamic(0);
  omp_set_num_threads(threads);  // oneDNN reads this
}

ThreadLimit::ThreadLimit(int threads) {
  check<UsageError>(threads >= 1, "thread limit: found ", threads, ", expected at least 1");
  thread_limit = threads;
}

ThreadLimit::~ThreadLimit() { thread_limit = 0; }

}  // namespace vesal
