// Pieces of stored tensors as floats, for CPU code that accumulates where it writes, whose vectors are
// written out, or whose sums the compiler orders (omp simd reduction): what such code gives then does not
// depend on the storage type.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/context/storage.hpp"

namespace vesal::kernels::cpu {

// Scratch for the functions below; float32 needs none.
template <class T>
std::vector<float> float_scratch(int64_t count) {
  return std::vector<float>(std::is_same_v<T, float> ? 0 : static_cast<size_t>(count));
}

// from[0 .. count) as floats: where they are for float32, else widened into `scratch`.
template <class T>
const float* as_floats(const T* from, int64_t count, float* scratch) {
  if constexpr (std::is_same_v<T, float>) {
    return from;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      scratch[i] = widen(from[i]);
    }
    return scratch;
  }
}

// Calls write(floats) for the floats that become to[0 .. count): those themselves for float32, else
// `scratch`, which is then rounded.
template <class T, class Write>
void write_floats(T* to, int64_t count, float* scratch, Write&& write) {
  if constexpr (std::is_same_v<T, float>) {
    write(to);
  } else {
    write(scratch);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      to[i] = narrow<T>(scratch[i]);
    }
  }
}

}  // namespace vesal::kernels::cpu
