// Stacks and the context switch: see fiber.hpp.
#include "kernels/simt/fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "base/error.hpp"

#ifndef VESAL_SIMT_UCONTEXT
extern "C" void vesal_simt_switch(void** save, void* load);

#if defined(__x86_64__)
// System V: rbx, rbp, r12 to r15 and the stack pointer survive a call. The switch ends in an indirect jump,
// which the processor predicts by target, not in a return, which it would predict from the other fiber's
// calls.
__asm__(R"(
.text
.p2align 4
.globl vesal_simt_switch
.hidden vesal_simt_switch
.type vesal_simt_switch, @function
vesal_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size vesal_simt_switch, .-vesal_simt_switch
)");
#elif defined(__aarch64__)
// AAPCS64: x19 to x30, the low halves of v8 to v15 and the stack pointer survive a call.
__asm__(R"(
.text
.p2align 4
.globl vesal_simt_switch
.hidden vesal_simt_switch
.type vesal_simt_switch, %function
vesal_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  br x30
.size vesal_simt_switch, .-vesal_simt_switch
)");
#endif
#endif

namespace vesal::kernels::simt {
namespace {

// Instrumented frames are several times larger, and a sanitizer's report runs on the fiber's stack.
#if VESAL_SANITIZED
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kStaggerSteps = 64;
constexpr size_t kStaggerBytes = 64;

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Stack::Stack(size_t index) {
  const size_t whole = kStackBytes + page_bytes();
  mapping_ = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check<DeviceError>(mapping_ != MAP_FAILED, "simt: no memory for the stack of a kernel thread");
  bottom_ = static_cast<unsigned char*>(mapping_) + page_bytes();
  if (mprotect(mapping_, page_bytes(), PROT_NONE) != 0) {
    munmap(mapping_, whole);
    throw DeviceError("simt: cannot protect the end of a kernel thread's stack");
  }
  offset_ = index * 5 % kStaggerSteps * kStaggerBytes;
}

Stack::~Stack() {
  asan_unpoison(bottom_, kStackBytes);
  munmap(mapping_, kStackBytes + page_bytes());
}

size_t Stack::bytes() const { return kStackBytes; }

#ifdef VESAL_SIMT_UCONTEXT

void Stack::prepare(Context& context, void (*entry)()) {
  check<DeviceError>(getcontext(&context.state) == 0, "simt: getcontext failed");
  context.state.uc_stack.ss_sp = bottom_;
  context.state.uc_stack.ss_size = kStackBytes - offset_;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#else

void Stack::prepare(Context& context, void (*entry)()) {
  unsigned char* top = bottom_ + kStackBytes - offset_;
#if defined(__x86_64__)
  // Six registers, the entry point, and a null return address: at the entry point the stack pointer is 8
  // modulo 16, as after a call; sanitizers crash while reporting if it is not.
  auto* frame = reinterpret_cast<void**>(top - 80);
  for (int i = 0; i < 10; ++i) {
    frame[i] = nullptr;
  }
  frame[6] = reinterpret_cast<void*>(entry);
#else
  auto* frame = reinterpret_cast<void**>(top - 160);
  for (int i = 0; i < 20; ++i) {
    frame[i] = nullptr;
  }
  frame[11] = reinterpret_cast<void*>(entry);
#endif
  context.stack_pointer = frame;
}

void switch_context(Context& from, Context& to) { vesal_simt_switch(&from.stack_pointer, to.stack_pointer); }

#endif

}  // namespace vesal::kernels::simt
