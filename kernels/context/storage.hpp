// Storage types of activations and weights: float32, bf16 and f16 in memory, float32 in registers. A kernel
// that is a template on the storage type T takes Input<T> and Output<T>, which read and write floats; for
// float32 they are plain pointers, so that its code stays what it was.
//
// Which tensors follow the storage type, in every contract that says "stored": activations, weight matrices
// and convolution weights, and the gradients of activations; all of one call share it. Always float32:
// biases, the scale and shift of norms, statistics, losses, and every gradient of a parameter (master weights
// and their sums are float32).
#pragma once

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "base/data.hpp"
#include "base/host_device.hpp"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace vesal::kernels {

VESAL_HOST_DEVICE inline float widen(float value) { return value; }
VESAL_HOST_DEVICE inline float widen(bf16 value) { return static_cast<float>(value); }
VESAL_HOST_DEVICE inline float widen(f16 value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  // Without branches, for loops over many; f16::operator float says the same more plainly.
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t shifted = magnitude << 13;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(shifted) * 0x1p112f);
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00u ? shifted | 0x7f800000u : finite));
#endif
}

// Rounds to nearest even.
template <class T>
VESAL_HOST_DEVICE T narrow(float value) {
  if constexpr (!std::is_same_v<T, f16>) {
    return static_cast<T>(value);
  } else {
    f16 result;
#ifdef __CUDA_ARCH__
    result.bits = __half_as_ushort(__float2half_rn(value));
#else
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t magnitude = u & 0x7fffffffu;
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    // Beside 0.5 the last place is worth 2^-24, as it is in a subnormal half.
    const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;  // NaN, infinity
    result.bits = static_cast<uint16_t>(((u >> 16) & 0x8000u) | (magnitude >= 0x477ff000u ? large : finite));
#endif
    return result;
  }
}

// What reads like a const float*.
template <class T>
struct Reader {
  const T* pointer;
  VESAL_HOST_DEVICE float operator[](int64_t i) const { return widen(pointer[i]); }
  VESAL_HOST_DEVICE Reader operator+(int64_t offset) const { return {pointer + offset}; }
  VESAL_HOST_DEVICE explicit operator bool() const { return pointer != nullptr; }
};

// What reads and writes like a float*.
template <class T>
struct Writer {
  struct Place {
    T* pointer;
    VESAL_HOST_DEVICE operator float() const { return widen(*pointer); }
    VESAL_HOST_DEVICE const Place& operator=(float value) const {
      *pointer = narrow<T>(value);
      return *this;
    }
    VESAL_HOST_DEVICE const Place& operator=(const Place& other) const {
      *pointer = *other.pointer;
      return *this;
    }
    VESAL_HOST_DEVICE const Place& operator+=(float value) const {
      return *this = static_cast<float>(*this) + value;
    }
  };
  T* pointer;
  VESAL_HOST_DEVICE Place operator[](int64_t i) const { return {pointer + i}; }
  VESAL_HOST_DEVICE Writer operator+(int64_t offset) const { return {pointer + offset}; }
  VESAL_HOST_DEVICE explicit operator bool() const { return pointer != nullptr; }
  VESAL_HOST_DEVICE operator Reader<T>() const { return {pointer}; }
};

template <class T>
using Input = std::conditional_t<std::is_same_v<T, float>, const float*, Reader<T>>;
template <class T>
using Output = std::conditional_t<std::is_same_v<T, float>, float*, Writer<T>>;

template <class T>
Input<T> input(const ConstData& data, const char* what) {
  return Input<T>{data.as<T>(what)};
}
template <class T>
Output<T> output(const Data& data, const char* what) {
  return Output<T>{data.as<T>(what)};
}

// Calls body(T{}) for the storage type that the tensors share; null ones do not count. ShapeError, naming
// `what`, where two differ or where it is no type that activations are stored as.
template <class Body>
decltype(auto) with_storage(const char* what, std::initializer_list<ConstData> tensors, Body&& body) {
  DType dtype = DType::f32;
  bool found = false;
  for (const ConstData& tensor : tensors) {
    if (!tensor) {
      continue;
    }
    check<ShapeError>(!found || tensor.dtype == dtype, what, ": tensors are stored as ", name_of(dtype),
                      " and ", name_of(tensor.dtype), ", expected one type");
    dtype = tensor.dtype;
    found = true;
  }
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(bf16{});
    case DType::f16:
      return body(f16{});
    default:
      throw ShapeError(
          concat(what, ": a tensor is stored as ", name_of(dtype), ", expected f32, bf16 or f16"));
  }
}

}  // namespace vesal::kernels
