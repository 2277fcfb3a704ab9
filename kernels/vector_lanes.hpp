// As many floats as one vector register of the target holds, with the few operations that register-blocked
// CPU kernels need: GCC's vector extension plus fused multiply-add, which the build's -ffp-contract=off
// otherwise keeps apart.
#pragma once

#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace vesal::kernels {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__) && defined(__FMA__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t LanesInt __attribute__((vector_size(kLanes * sizeof(int32_t))));
// The same in memory, at any address that a float may have.
typedef float LanesInMemory __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t LanesIntInMemory
    __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4), may_alias));

constexpr int64_t round_up_to_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

inline Lanes load_lanes(const float* p) { return *reinterpret_cast<const LanesInMemory*>(p); }
inline LanesInt load_lanes(const int32_t* p) { return *reinterpret_cast<const LanesIntInMemory*>(p); }
inline void store_lanes(float* p, Lanes v) { *reinterpret_cast<LanesInMemory*>(p) = v; }
inline Lanes all_lanes(float x) { return x - Lanes{}; }

// a * b + c, rounded once.
inline Lanes fma_lanes(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  Lanes result;
  for (int l = 0; l < kLanes; ++l) {
    result[l] = __builtin_fmaf(a[l], b[l], c[l]);
  }
  return result;
#endif
}

inline Lanes max_lanes(Lanes a, Lanes b) { return a > b ? a : b; }

// v with lane l in place l ^ kDistance.
template <int kDistance>
inline Lanes swap_lanes(Lanes v) {
  LanesInt from;
  for (int l = 0; l < kLanes; ++l) {
    from[l] = l ^ kDistance;
  }
  return __builtin_shuffle(v, from);
}

// The blocks of kDistance x kDistance beside the diagonal of each block of twice that size change places.
template <int kDistance>
inline void transpose_step(Lanes (&rows)[kLanes]) {
  LanesInt above, below;
  for (int l = 0; l < kLanes; ++l) {
    above[l] = (l & kDistance) != 0 ? kLanes + l - kDistance : l;
    below[l] = (l & kDistance) != 0 ? kLanes + l : l + kDistance;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kDistance) == 0) {
      const Lanes a = rows[i], b = rows[i + kDistance];
      rows[i] = __builtin_shuffle(a, b, above);
      rows[i + kDistance] = __builtin_shuffle(a, b, below);
    }
  }
}

// rows[i][l] becomes rows[l][i].
inline void transpose_lanes(Lanes (&rows)[kLanes]) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  if constexpr (kLanes >= 8) {
    transpose_step<4>(rows);
  }
  if constexpr (kLanes >= 16) {
    transpose_step<8>(rows);
  }
}

// Sum and maximum over the lanes of one register, by halving: the order depends on kLanes only.
inline float sum_of_lanes(Lanes v) {
  if constexpr (kLanes >= 16) {
    v += swap_lanes<8>(v);
  }
  if constexpr (kLanes >= 8) {
    v += swap_lanes<4>(v);
  }
  v += swap_lanes<2>(v);
  v += swap_lanes<1>(v);
  return v[0];
}
inline float max_of_lanes(Lanes v) {
  if constexpr (kLanes >= 16) {
    v = max_lanes(v, swap_lanes<8>(v));
  }
  if constexpr (kLanes >= 8) {
    v = max_lanes(v, swap_lanes<4>(v));
  }
  v = max_lanes(v, swap_lanes<2>(v));
  v = max_lanes(v, swap_lanes<1>(v));
  return v[0];
}

// e^x for x <= 88, within 2 units in the last place; 0 below -87.3. Same polynomial as vector_exp
// (vector_math.hpp).
inline Lanes exp_lanes(Lanes x) {
  const Lanes clamped = max_lanes(x, all_lanes(-87.3f));
  const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Lanes n = (clamped * 1.44269504f + to_integer) - to_integer;
  const Lanes r = fma_lanes(n, all_lanes(-1.42860677e-6f), fma_lanes(n, all_lanes(-0.693145752f), clamped));
  Lanes p = all_lanes(1.98412698e-4f);
  p = fma_lanes(p, r, all_lanes(1.38888889e-3f));
  p = fma_lanes(p, r, all_lanes(8.33333333e-3f));
  p = fma_lanes(p, r, all_lanes(4.16666667e-2f));
  p = fma_lanes(p, r, all_lanes(1.66666667e-1f));
  p = fma_lanes(p, r, all_lanes(0.5f));
  p = fma_lanes(p, r, all_lanes(1.0f));
  p = fma_lanes(p, r, all_lanes(1.0f));
  const LanesInt exponent = (__builtin_convertvector(n, LanesInt) + 127) << 23;
  const Lanes value = p * reinterpret_cast<Lanes>(exponent);
  return x < all_lanes(-87.3f) ? Lanes{} : value;
}

}  // namespace vesal::kernels
