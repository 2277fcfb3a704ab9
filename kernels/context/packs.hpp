// Neighbouring elements read and written as one, in the portable kernel dialect; for .cu files. Four float32
// are 16 bytes, the most that a thread moves at once: a quarter of the requests, and of the work that finds
// the places.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/context/storage.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {

inline constexpr int kPack = 4;

template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T values[kWidth];
  VESAL_DEVICE const T& operator[](int k) const { return values[k]; }
  VESAL_DEVICE T& operator[](int k) { return values[k]; }
};

// In registers: no alignment, so that loops over k alone decide what is kept.
template <int kWidth>
struct Floats {
  float values[kWidth];
  VESAL_DEVICE float operator[](int k) const { return values[k]; }
  VESAL_DEVICE float& operator[](int k) { return values[k]; }
};

// p is aligned to the pack.
template <int kWidth, class T>
VESAL_DEVICE Pack<T, kWidth> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(p);
}

template <int kWidth, class T>
VESAL_DEVICE void store_pack(T* p, const Pack<T, kWidth>& pack) {
#ifdef __CUDA_ARCH__
  // In some loops nvcc takes the store of a struct apart; it does not do that to its own vectors.
  constexpr size_t kBytes = sizeof(Pack<T, kWidth>);
  if constexpr (kBytes == 16) {
    __stcg(reinterpret_cast<uint4*>(p), std::bit_cast<uint4>(pack));
    return;
  } else if constexpr (kBytes == 8) {
    __stcg(reinterpret_cast<uint2*>(p), std::bit_cast<uint2>(pack));
    return;
  }
#endif
  *reinterpret_cast<Pack<T, kWidth>*>(p) = pack;
}

// The same of stored numbers, as floats.
template <int kWidth, class T>
VESAL_DEVICE Floats<kWidth> load_floats(const T* p) {
  const Pack<T, kWidth> pack = load_pack<kWidth>(p);
  Floats<kWidth> floats;
  VESAL_UNROLL
  for (int k = 0; k < kWidth; ++k) {
    floats[k] = widen(pack[k]);
  }
  return floats;
}

template <int kWidth, class T>
VESAL_DEVICE void store_floats(T* p, const Floats<kWidth>& floats) {
  Pack<T, kWidth> pack;
  VESAL_UNROLL
  for (int k = 0; k < kWidth; ++k) {
    pack[k] = narrow<T>(floats[k]);
  }
  store_pack<kWidth>(p, pack);
}

// Whether all of these begin where a pack of kPack may.
template <class... T>
bool can_pack(const T*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % (kPack * sizeof(T)) == 0) && ...);
}

}  // namespace vesal::kernels::VESAL_BACKEND
