// What -fsanitize=thread makes of a kernel's loads, stores and atomics: calls to the functions below. The
// sanitizer's own library is not linked; its interface is served here, for GCC's calls. Outside kernels the
// hooks only do what the instruction would have done.
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "kernels/simt/race.hpp"

using vesal::kernels::simt::RaceDetector;
using vesal::kernels::simt::RaceUse;

namespace {

// Inlined into each hook, whose return address is the place in the kernel.
[[gnu::always_inline]] inline void seen(const volatile void* address, size_t bytes, RaceUse use,
                                        bool natural) {
  if (RaceDetector* const detector = RaceDetector::active()) {
    detector->access(reinterpret_cast<uintptr_t>(address), bytes, use, natural, __builtin_return_address(0));
  }
}

// The order that the caller asks for is replaced by the strongest: nobody measures here.
constexpr int kOrder = __ATOMIC_SEQ_CST;

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void** object, void*) { seen(object, sizeof(void*), RaceUse::write, true); }
void __tsan_vptr_read(void** object) { seen(object, sizeof(void*), RaceUse::read, true); }
void __tsan_read_range(void* address, unsigned long bytes) { seen(address, bytes, RaceUse::read, false); }
void __tsan_write_range(void* address, unsigned long bytes) { seen(address, bytes, RaceUse::write, false); }

#define VESAL_RACE_PLAIN(bytes)                                                                      \
  void __tsan_read##bytes(void* address) { seen(address, bytes, RaceUse::read, true); }              \
  void __tsan_write##bytes(void* address) { seen(address, bytes, RaceUse::write, true); }            \
  void __tsan_unaligned_read##bytes(void* address) { seen(address, bytes, RaceUse::read, false); }   \
  void __tsan_unaligned_write##bytes(void* address) { seen(address, bytes, RaceUse::write, false); } \
  void __tsan_volatile_read##bytes(void* address) { seen(address, bytes, RaceUse::read, true); }     \
  void __tsan_volatile_write##bytes(void* address) { seen(address, bytes, RaceUse::write, true); }
VESAL_RACE_PLAIN(1)
VESAL_RACE_PLAIN(2)
VESAL_RACE_PLAIN(4)
VESAL_RACE_PLAIN(8)
VESAL_RACE_PLAIN(16)
#undef VESAL_RACE_PLAIN

#define VESAL_RACE_UPDATE(bits, T, name)                              \
  T __tsan_atomic##bits##_##name(volatile T* address, T value, int) { \
    seen(address, sizeof(T), RaceUse::atomic_update, true);           \
    return __atomic_##name(address, value, kOrder);                   \
  }
#define VESAL_RACE_EXCHANGE_IF(bits, T, name, weak)                                                        \
  int __tsan_atomic##bits##_compare_exchange_##name(volatile T* address, T* expected, T value, int, int) { \
    seen(address, sizeof(T), RaceUse::atomic_update, true);                                                \
    return __atomic_compare_exchange_n(address, expected, value, weak, kOrder, kOrder);                    \
  }
#define VESAL_RACE_ATOMICS(bits, T)                                     \
  T __tsan_atomic##bits##_load(const volatile T* address, int) {        \
    seen(address, sizeof(T), RaceUse::atomic_read, true);               \
    return __atomic_load_n(address, kOrder);                            \
  }                                                                     \
  void __tsan_atomic##bits##_store(volatile T* address, T value, int) { \
    seen(address, sizeof(T), RaceUse::atomic_write, true);              \
    __atomic_store_n(address, value, kOrder);                           \
  }                                                                     \
  T __tsan_atomic##bits##_exchange(volatile T* address, T value, int) { \
    seen(address, sizeof(T), RaceUse::atomic_exchange, true);           \
    return __atomic_exchange_n(address, value, kOrder);                 \
  }                                                                     \
  VESAL_RACE_UPDATE(bits, T, fetch_add)                                 \
  VESAL_RACE_UPDATE(bits, T, fetch_sub)                                 \
  VESAL_RACE_UPDATE(bits, T, fetch_and)                                 \
  VESAL_RACE_UPDATE(bits, T, fetch_or)                                  \
  VESAL_RACE_UPDATE(bits, T, fetch_xor)                                 \
  VESAL_RACE_UPDATE(bits, T, fetch_nand)                                \
  VESAL_RACE_EXCHANGE_IF(bits, T, strong, false)                        \
  VESAL_RACE_EXCHANGE_IF(bits, T, weak, true)
VESAL_RACE_ATOMICS(8, uint8_t)
VESAL_RACE_ATOMICS(16, uint16_t)
VESAL_RACE_ATOMICS(32, uint32_t)
VESAL_RACE_ATOMICS(64, uint64_t)
#undef VESAL_RACE_ATOMICS
#undef VESAL_RACE_EXCHANGE_IF
#undef VESAL_RACE_UPDATE

// A kernel's fences come by engine::fence, which knows their reach; these are host code's.
void __tsan_atomic_thread_fence(int) { std::atomic_thread_fence(std::memory_order_seq_cst); }
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"
