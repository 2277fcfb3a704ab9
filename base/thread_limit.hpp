// Fewer threads for one thread of the host: a background thread that prepares data should not start as many
// helpers as the computation beside it.
#pragma once

namespace vesal {

// While it lives, thread_count() is at most `threads` on the thread that made it. Does not nest.
class ThreadLimit {
 public:
  explicit ThreadLimit(int threads);
  ~ThreadLimit();
  ThreadLimit(const ThreadLimit&) = delete;
  ThreadLimit& operator=(const ThreadLimit&) = delete;
};

}  // namespace vesal
