// Threads on the host: how many, and a loop that is cut the same way every time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>

namespace vesal {

// Processors this process may really use: the smallest of the affinity mask, the cgroup's CPU quota (v1 and
// v2, rounded up) and OMP_NUM_THREADS where it is set. At least 1.
int available_threads();

// The number of threads that parallel loops use; available_threads() until it is set. Throws UsageError
// below 1.
int thread_count();
void set_thread_count(int threads);

// Calls body(begin, end) on consecutive ranges that cover [0, n). The cut depends on n, grain and
// thread_count() only, and a range never holds fewer than `grain` items unless n does, so small loops stay on
// the calling thread. When a body throws (memory runs out), the other ranges are still done, and one of the
// exceptions arrives at the caller.
template <class Body>
void parallel_for(int64_t n, int64_t grain, Body&& body) {
  if (n <= 0) {
    return;
  }
  const int64_t pieces = std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, thread_count());
  if (pieces == 1) {
    body(int64_t{0}, n);
    return;
  }
  std::exception_ptr failure;  // an exception that left the parallel region would end the process
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(pieces))
  for (int64_t piece = 0; piece < pieces; ++piece) {
    try {
      body(n * piece / pieces, n * (piece + 1) / pieces);
    } catch (...) {
#pragma omp critical(vesal_parallel_for)
      failure = std::current_exception();
    }
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

}  // namespace vesal
