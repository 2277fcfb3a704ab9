// From a contract function to the implementation of the context's device.
//
// A family's .cpp lists its functions with VESAL_DECLARE_BACKENDS, checks the arguments once, and forwards with
// VESAL_DISPATCH. The implementations have the same name and signature in namespaces cpu, simt and cuda.
#pragma once

#include "kernels/context/context.hpp"

// Declares cpu::name, simt::name and cuda::name with the signature of the public function `name`.
// Use at namespace vesal::kernels.
#define VESAL_DECLARE_BACKENDS(name) \
  namespace cpu {                    \
  decltype(::vesal::kernels::name) name; \
  }                                  \
  namespace simt {                   \
  decltype(::vesal::kernels::name) name; \
  }                                  \
  namespace cuda {                   \
  decltype(::vesal::kernels::name) name; \
  }

#if VESAL_WITH_CUDA
#define VESAL_DISPATCH_CUDA(...) return cuda::__VA_ARGS__
#else
#define VESAL_DISPATCH_CUDA(...) \
  throw ::vesal::DeviceError("this build of vesal has no CUDA backend; build it where a CUDA toolkit is installed")
#endif

// VESAL_DISPATCH(context, conv3d_forward(context, params, x, ...)); as the last statement of a contract function.
#define VESAL_DISPATCH(context, ...)            \
  switch ((context).device().type) {            \
    case ::vesal::DeviceType::cpu:              \
      return cpu::__VA_ARGS__;                  \
    case ::vesal::DeviceType::simt:             \
      return simt::__VA_ARGS__;                 \
    case ::vesal::DeviceType::cuda:             \
      VESAL_DISPATCH_CUDA(__VA_ARGS__);         \
  }                                             \
  throw ::vesal::DeviceError("unknown device")
