// Fibers: stacks of their own, and a switch between them that saves only what a function call must preserve.
// The floating-point control words are deliberately not part of a fiber: a kernel rounds as its launching
// thread does.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/simt/sanitizer.hpp"

#if !defined(VESAL_SIMT_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define VESAL_SIMT_UCONTEXT 1
#endif
#ifdef VESAL_SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace vesal::kernels::simt {

// A suspended flow of control.
struct Context {
#ifdef VESAL_SIMT_UCONTEXT
  ucontext_t state;
#else
  void* stack_pointer = nullptr;
#endif
};

// A stack with an inaccessible page below it.
class Stack {
 public:
  // `index` staggers where the used part begins: stacks whose hot lines share cache sets would evict each
  // other.
  explicit Stack(size_t index);
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  void* bottom() const { return bottom_; }
  size_t bytes() const;
  // A context that calls entry() on this stack when it is switched to; entry never returns.
  void prepare(Context& context, void (*entry)());

 private:
  void* mapping_ = nullptr;
  unsigned char* bottom_ = nullptr;
  size_t offset_ = 0;
};

// Suspends the running flow into `from` and resumes `to`.
void switch_context(Context& from, Context& to);

}  // namespace vesal::kernels::simt
