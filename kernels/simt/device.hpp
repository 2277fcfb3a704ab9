// The portable kernel dialect. A .cu file that includes this is compiled by nvcc (VESAL_BACKEND is cuda) and
// by a C++ compiler for the emulator (VESAL_BACKEND is simt); all of it sits in namespace
// vesal::kernels::VESAL_BACKEND.
//
//   VESAL_KERNEL void name(args)        a kernel; may be a template
//   VESAL_DEVICE                        a device function
//   VESAL_LAUNCH_BOUNDS(threads, ...)   after `void`: an upper limit of the block, for the register allocator
//   VESAL_RESTRICT, VESAL_UNROLL        restrict pointer; before a loop of constant length
//   VESAL_SHARED(T, name, [N][M]);      static shared array of a trivial type (no extents: a scalar)
//   VESAL_DYN_SHARED(T, name);          the block's dynamic shared memory as `T* name`, aligned to 16 bytes
//   launch(stream, {.grid = {x, y, z}, .block = {x, y, z}, .shared_bytes = n}, kernel, arguments...)
//
// Everything else is CUDA's own spelling: threadIdx, __syncthreads(), __shfl_down_sync(), atomicAdd(),
// fmaf(); the emulator declares what it knows in its namespace (emulator.hpp), so that an unknown intrinsic
// fails to compile there. A launch with an empty grid does nothing. Launch errors are DeviceErrors that name
// the launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "base/device.hpp"
#include "base/error.hpp"
#include "kernels/simt/launch_config.hpp"

#ifdef __CUDACC__

#define VESAL_KERNEL __global__
#define VESAL_DEVICE __device__
#define VESAL_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
#define VESAL_RESTRICT __restrict__
#define VESAL_UNROLL _Pragma("unroll")
#define VESAL_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define VESAL_DYN_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char vesal_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(vesal_dynamic_shared)

#include <cuda_runtime.h>

namespace vesal::kernels::cuda {

inline void check_launch(cudaError_t status, const LaunchConfig& config) {
  check<DeviceError>(status == cudaSuccess, "cuda: ", describe(config), ": ", cudaGetErrorString(status),
                     " (", sizes(config), ")");
}

template <class... Params, class... Args>
void launch(StreamHandle stream, const LaunchConfig& config, void (*kernel)(Params...), Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "launch: wrong number of kernel arguments");
  static_assert((std::is_trivially_copyable_v<Params> && ...), "launch: kernel arguments are plain data");
  static_assert((sizeof(Params) + ... + 0) <= kMaxArgumentBytes,
                "launch: more than 4096 bytes of kernel arguments");
  if (const char* broken = broken_launch_limit(config)) {
    throw DeviceError(concat("cuda: ", describe(config), ": ", broken, " (", sizes(config), ")"));
  }
  if (is_empty(config)) {
    return;
  }
  const void* function = reinterpret_cast<const void*>(kernel);
  const auto shared_bytes = static_cast<size_t>(config.shared_bytes.value);
  if (shared_bytes > 0) {
    // Beyond the default of 48 KiB (static and dynamic together) a kernel has to opt in. Always up to the
    // device's limit, so that two host threads that launch it with different sizes do not undo each other's
    // choice.
    cudaFuncAttributes attributes{};
    check_launch(cudaFuncGetAttributes(&attributes, function), config);
    if (static_cast<int64_t>(shared_bytes) > attributes.maxDynamicSharedSizeBytes) {
      int device = 0;
      int limit = 0;
      check_launch(cudaGetDevice(&device), config);
      check_launch(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), config);
      check_launch(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        limit - static_cast<int>(attributes.sharedSizeBytes)),
                   config);
    }
  }
  std::tuple<Params...> values{as_parameter<Params>(std::forward<Args>(args))...};
  const auto start = [&](auto&... value) {
    void* pointers[sizeof...(Params) + 1] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
    const dim3 grid(static_cast<unsigned>(config.grid.x), static_cast<unsigned>(config.grid.y),
                    static_cast<unsigned>(config.grid.z));
    const dim3 block(static_cast<unsigned>(config.block.x), static_cast<unsigned>(config.block.y),
                     static_cast<unsigned>(config.block.z));
    check_launch(cudaLaunchKernel(function, grid, block, pointers, shared_bytes,
                                  static_cast<cudaStream_t>(stream.native)),
                 config);
  };
  std::apply(start, values);
}

}  // namespace vesal::kernels::cuda

#else

#ifdef __SANITIZE_THREAD__
// The race lane: with what it calls inlined, since GCC does not instrument the store of a struct that a call
// returns, and the linker might choose host code's copy of an inline function, which is not instrumented at
// all.
#define VESAL_KERNEL __attribute__((flatten))
#else
#define VESAL_KERNEL
#endif
#define VESAL_DEVICE __attribute__((unused))
#define VESAL_LAUNCH_BOUNDS(...)
#define VESAL_RESTRICT __restrict__
#define VESAL_UNROLL
// The array lives in the running block's arena, in a slot named by the address of a constant of this very
// place.
#define VESAL_SHARED(T, name, ...)                                                              \
  using name##_shared_type = T __VA_ARGS__;                                                     \
  static_assert(std::is_trivially_default_constructible_v<name##_shared_type>,                  \
                "shared memory has no constructors: use a type without default member values"); \
  static constexpr ::vesal::kernels::simt::engine::SharedSite name##_shared_site{               \
      #name, sizeof(name##_shared_type), alignof(name##_shared_type)};                          \
  [[maybe_unused]] name##_shared_type& name =                                                   \
      *static_cast<name##_shared_type*>(::vesal::kernels::simt::engine::static_shared(name##_shared_site))
#define VESAL_DYN_SHARED(T, name) \
  [[maybe_unused]] T* name = static_cast<T*>(::vesal::kernels::simt::engine::dynamic_shared())

#include "kernels/simt/emulator.hpp"

#endif
