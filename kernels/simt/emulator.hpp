// CUDA's device language for the emulator: what a kernel names without declaring it, and launch(). Included
// by device.hpp when the compiler is not nvcc. Kernels live in namespace vesal::kernels::simt and find all of
// it there.
//
// Each thread of a block is a fiber that runs until it has to wait: at a block barrier, or in a warp
// operation until every lane of its mask has arrived. docs/simt.md says what is checked and what cannot be.
//
// Overloads follow CUDA's headers on purpose: a call that is ambiguous there shall not compile here.
#pragma once

#include <math.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <source_location>  // also says by a macro whether it works
#include <tuple>
#include <type_traits>
#include <utility>

#include "base/device.hpp"
#include "kernels/simt/error.hpp"
#include "kernels/simt/launch_config.hpp"
#include "kernels/simt/memory.hpp"
#include "kernels/simt/schedule.hpp"

namespace vesal::kernels::simt {

// ---- Vector types ----

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct float3 {
  float x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct int3 {
  int x, y, z;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- Where a thread is: the engine sets these before it resumes a fiber; kernels only read them ----

extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local uint3 blockDim;
extern constinit thread_local uint3 gridDim;
inline constexpr int warpSize = 32;

// ---- The engine's entry points; kernels use what is built on them below ----

namespace engine {

// Where in the source a thread waits.
#ifdef __cpp_lib_source_location
using Location = std::source_location;
#else  // clang before 16
class Location {
 public:
  constexpr Location() = default;
  static constexpr Location current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE(),
                                    unsigned column = __builtin_COLUMN()) {
    return {file, line, column};
  }
  constexpr const char* file_name() const { return file_; }
  constexpr unsigned line() const { return line_; }
  constexpr unsigned column() const { return column_; }

 private:
  constexpr Location(const char* file, unsigned line, unsigned column)
      : file_(file), line_(line), column_(column) {}
  const char* file_ = "";
  unsigned line_ = 0;
  unsigned column_ = 0;
};
#endif

struct SharedSite {
  const char* name;
  size_t bytes;
  size_t alignment;
};

// The running block's copy of a static shared variable, and its dynamic shared memory.
void* static_shared(const SharedSite& site);
void* dynamic_shared();

enum class Barrier { sync, count, all, any };
int block_barrier(Barrier kind, bool predicate, const Location& where);

enum class WarpOp {
  sync,
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
  any,
  all,
  match_any,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_umin,
  reduce_umax,
  reduce_and,
  reduce_or,
  reduce_xor,
};
// Waits for the lanes of `mask`, then returns this lane's share of the result. `bytes` is the size of a
// shuffled value.
uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, unsigned bytes, int operand, int width,
                        const Location& where);

// A full fence of the host in any case; the race lane tells the two apart.
enum class Scope { block, device };
void fence(Scope scope);

// Lets the other threads of the block run.
void yield();

// Throws unless the pointer is null or in device memory.
void check_pointer_argument(const LaunchConfig& config, int index, const void* pointer);

// Checks the launch and runs it: run_thread(call) once for each thread of the grid. `call` begins with the
// kernel's address, by which the race lane names it, and holds its arguments, in `call_bytes` bytes.
void run(const LaunchConfig& config, void (*run_thread)(const void* call), const void* call,
         size_t call_bytes);

template <class T>
inline constexpr bool kIsShuffled =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, long> ||
    std::is_same_v<T, unsigned long> || std::is_same_v<T, long long> ||
    std::is_same_v<T, unsigned long long> || std::is_same_v<T, float> || std::is_same_v<T, double>;

template <class T>
T shuffle(WarpOp op, unsigned mask, T value, int operand, int width, const Location& where) {
  static_assert(kIsShuffled<T>, "CUDA shuffles int, unsigned, long, long long, float and double");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(op, mask, bits, sizeof(T), operand, width, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace engine

// ---- Barriers and warp operations ----

inline void __syncthreads(engine::Location where = engine::Location::current()) {
  engine::block_barrier(engine::Barrier::sync, false, where);
}
inline int __syncthreads_count(int predicate, engine::Location where = engine::Location::current()) {
  return engine::block_barrier(engine::Barrier::count, predicate != 0, where);
}
inline int __syncthreads_and(int predicate, engine::Location where = engine::Location::current()) {
  return engine::block_barrier(engine::Barrier::all, predicate != 0, where);
}
inline int __syncthreads_or(int predicate, engine::Location where = engine::Location::current()) {
  return engine::block_barrier(engine::Barrier::any, predicate != 0, where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, engine::Location where = engine::Location::current()) {
  engine::warp_operation(engine::WarpOp::sync, mask, 0, 0, 0, 32, where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source_lane, int width = 32,
              engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::shuffle, mask, value, source_lane, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::shuffle_up, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::shuffle_down, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::shuffle_xor, mask, value, lane_mask, width, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              engine::Location where = engine::Location::current()) {
  return static_cast<unsigned>(
      engine::warp_operation(engine::WarpOp::ballot, mask, predicate != 0, 4, 0, 32, where));
}
inline int __any_sync(unsigned mask, int predicate, engine::Location where = engine::Location::current()) {
  return static_cast<int>(engine::warp_operation(engine::WarpOp::any, mask, predicate != 0, 4, 0, 32, where));
}
inline int __all_sync(unsigned mask, int predicate, engine::Location where = engine::Location::current()) {
  return static_cast<int>(engine::warp_operation(engine::WarpOp::all, mask, predicate != 0, 4, 0, 32, where));
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, engine::Location where = engine::Location::current()) {
  return static_cast<unsigned>(
      engine::shuffle(engine::WarpOp::match_any, mask,
                      static_cast<unsigned long long>(
                          std::bit_cast<std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>(value)),
                      0, 32, where));
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value,
                                  engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_add, mask, value, 0, 32, where);
}
inline int __reduce_add_sync(unsigned mask, int value, engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_add, mask, value, 0, 32, where);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value,
                                  engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_umin, mask, value, 0, 32, where);
}
inline int __reduce_min_sync(unsigned mask, int value, engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_min, mask, value, 0, 32, where);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value,
                                  engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_umax, mask, value, 0, 32, where);
}
inline int __reduce_max_sync(unsigned mask, int value, engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_max, mask, value, 0, 32, where);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value,
                                  engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_and, mask, value, 0, 32, where);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value,
                                 engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_or, mask, value, 0, 32, where);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value,
                                  engine::Location where = engine::Location::current()) {
  return engine::shuffle(engine::WarpOp::reduce_xor, mask, value, 0, 32, where);
}

// ---- Memory: fences, cached accesses, atomics (real ones: blocks may run on several host threads) ----

inline void __threadfence() { engine::fence(engine::Scope::device); }
inline void __threadfence_block() { engine::fence(engine::Scope::block); }
inline void __nanosleep(unsigned) { engine::yield(); }

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
void __stcg(T* pointer, std::type_identity_t<T> value) {
  *pointer = value;
}
template <class T>
void __stcs(T* pointer, std::type_identity_t<T> value) {
  *pointer = value;
}

namespace engine {

// Replaces *address by next(old value) atomically and returns the old value.
template <class T, class Next>
T atomic_update(T* address, Next next) {
  std::atomic_ref<T> reference(*address);
  T old = reference.load(std::memory_order_relaxed);
  while (!reference.compare_exchange_weak(old, next(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace engine

#define VESAL_SIMT_INTEGER_ATOMICS(T)                                                                 \
  inline T atomicAdd(T* address, T value) {                                                           \
    return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);                  \
  }                                                                                                   \
  inline T atomicAnd(T* address, T value) {                                                           \
    return std::atomic_ref<T>(*address).fetch_and(value, std::memory_order_relaxed);                  \
  }                                                                                                   \
  inline T atomicOr(T* address, T value) {                                                            \
    return std::atomic_ref<T>(*address).fetch_or(value, std::memory_order_relaxed);                   \
  }                                                                                                   \
  inline T atomicXor(T* address, T value) {                                                           \
    return std::atomic_ref<T>(*address).fetch_xor(value, std::memory_order_relaxed);                  \
  }                                                                                                   \
  inline T atomicExch(T* address, T value) {                                                          \
    return std::atomic_ref<T>(*address).exchange(value, std::memory_order_relaxed);                   \
  }                                                                                                   \
  inline T atomicMin(T* address, T value) {                                                           \
    return engine::atomic_update(address, [=](T old) { return value < old ? value : old; });          \
  }                                                                                                   \
  inline T atomicMax(T* address, T value) {                                                           \
    return engine::atomic_update(address, [=](T old) { return value > old ? value : old; });          \
  }                                                                                                   \
  inline T atomicCAS(T* address, T expected, T value) {                                               \
    std::atomic_ref<T>(*address).compare_exchange_strong(expected, value, std::memory_order_relaxed); \
    return expected;                                                                                  \
  }
VESAL_SIMT_INTEGER_ATOMICS(int)
VESAL_SIMT_INTEGER_ATOMICS(unsigned)
VESAL_SIMT_INTEGER_ATOMICS(unsigned long long)
#undef VESAL_SIMT_INTEGER_ATOMICS

inline int atomicSub(int* address, int value) {
  return std::atomic_ref<int>(*address).fetch_sub(value, std::memory_order_relaxed);
}
inline unsigned atomicSub(unsigned* address, unsigned value) {
  return std::atomic_ref<unsigned>(*address).fetch_sub(value, std::memory_order_relaxed);
}
inline float atomicExch(float* address, float value) {
  return std::atomic_ref<float>(*address).exchange(value, std::memory_order_relaxed);
}
// Not for kernels whose result shows the order of the additions: the house is deterministic.
inline float atomicAdd(float* address, float value) {
  return engine::atomic_update(address, [=](float old) { return old + value; });
}

// ---- Arithmetic ----

#define VESAL_SIMT_MIN_MAX(R, A, B)                                                       \
  inline R min(A a, B b) {                                                                \
    return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); \
  }                                                                                       \
  inline R max(A a, B b) {                                                                \
    return static_cast<R>(a) > static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); \
  }
VESAL_SIMT_MIN_MAX(int, int, int)
VESAL_SIMT_MIN_MAX(unsigned, unsigned, unsigned)
VESAL_SIMT_MIN_MAX(unsigned, int, unsigned)
VESAL_SIMT_MIN_MAX(unsigned, unsigned, int)
VESAL_SIMT_MIN_MAX(long, long, long)
VESAL_SIMT_MIN_MAX(unsigned long, unsigned long, unsigned long)
VESAL_SIMT_MIN_MAX(unsigned long, long, unsigned long)
VESAL_SIMT_MIN_MAX(unsigned long, unsigned long, long)
VESAL_SIMT_MIN_MAX(long long, long long, long long)
VESAL_SIMT_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
VESAL_SIMT_MIN_MAX(unsigned long long, long long, unsigned long long)
VESAL_SIMT_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef VESAL_SIMT_MIN_MAX
// As fminf and fmaxf: a NaN loses against a number.
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }
inline double min(float a, double b) { return ::fmin(a, b); }
inline double max(float a, double b) { return ::fmax(a, b); }
inline double min(double a, float b) { return ::fmin(a, b); }
inline double max(double a, float b) { return ::fmax(a, b); }

inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// Never part of a fused multiply-add, also in a build that makes them (VESAL_SIMT_CONTRACT).
inline float __fadd_rn(float a, float b) { return __builtin_assoc_barrier(a + b); }
inline float __fsub_rn(float a, float b) { return __builtin_assoc_barrier(a - b); }
inline float __fmul_rn(float a, float b) { return __builtin_assoc_barrier(a * b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return ::sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
// Position of the lowest set bit counted from 1; 0 for 0.
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  x = ((x >> 1) & 0x55555555u) | ((x & 0x55555555u) << 1);
  x = ((x >> 2) & 0x33333333u) | ((x & 0x33333333u) << 2);
  x = ((x >> 4) & 0x0f0f0f0fu) | ((x & 0x0f0f0f0fu) << 4);
  return __builtin_bswap32(x);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }

// ---- Launch ----

// Runs the kernel to its end; the stream is ignored. Arguments are converted and copied once, as hardware
// does. Pointer arguments must be null or device memory; pointers inside structs cannot be seen and are not
// checked.
template <class... Params, class... Args>
void launch(StreamHandle, const LaunchConfig& config, void (*kernel)(Params...), Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "launch: wrong number of kernel arguments");
  static_assert((std::is_trivially_copyable_v<Params> && ...), "launch: kernel arguments are plain data");
  static_assert((sizeof(Params) + ... + 0) <= kMaxArgumentBytes,
                "launch: more than 4096 bytes of kernel arguments");
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> values;
  };
  const Call call{kernel, std::tuple<Params...>{as_parameter<Params>(std::forward<Args>(args))...}};
  int index = 0;
  const auto check_argument = [&](const auto& value) {
    if constexpr (std::is_pointer_v<std::remove_cvref_t<decltype(value)>>) {
      if (!is_empty(config)) {
        engine::check_pointer_argument(config, index, value);
      }
    }
    ++index;
  };
  std::apply([&](const auto&... value) { (check_argument(value), ...); }, call.values);
  engine::run(
      config,
      [](const void* opaque) {
        const Call& each = *static_cast<const Call*>(opaque);
        std::apply(each.kernel, each.values);
      },
      &call, sizeof(call));
}

}  // namespace vesal::kernels::simt
