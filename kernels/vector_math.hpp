// Elementary functions as branch-free float32 expressions that GCC vectorises inside a loop; for CPU kernels.
// Errors are in units in the last place (ulp) of the exact result and are measured over dense sweeps of the
// whole domain in tests/kernels/elementwise_test.cpp. The polynomials were fitted for this file (least
// squares in 113-bit arithmetic, reweighted towards the smallest largest relative error).
#pragma once

#include <bit>
#include <cstdint>

namespace vesal::kernels {

// e^x within 1 ulp, subnormal results included; 0 below -103.98, infinity above 88.7228, NaN stays NaN.
// Cody-Waite reduction x = n ln 2 + r, |r| <= ln 2 / 2, and a degree-7 Taylor polynomial (remainder < 2^-27).
// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
inline float vector_exp(float x) {
  const float above = x < -104.0f ? -104.0f : x;
  const float clamped = above > 89.0f ? 89.0f : above;
  const float shifted = __builtin_fmaf(clamped, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  const float r = __builtin_fmaf(n, -1.42860677e-6f, __builtin_fmaf(n, -0.693145752f, clamped));
  float p = 1.98412698e-4f;
  p = __builtin_fmaf(p, r, 1.38888889e-3f);
  p = __builtin_fmaf(p, r, 8.33333333e-3f);
  p = __builtin_fmaf(p, r, 4.16666667e-2f);
  p = __builtin_fmaf(p, r, 1.66666667e-1f);
  p = __builtin_fmaf(p, r, 0.5f);
  p = __builtin_fmaf(p, r, 1.0f);
  p = __builtin_fmaf(p, r, 1.0f);
  // Two factors: 2^128 and 2^-150 are no floats, but the product may be one.
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(12582912.0f);
  const int32_t half = exponent >> 1;
  const float a = std::bit_cast<float>(static_cast<uint32_t>(half + 127) << 23);
  const float b = std::bit_cast<float>(static_cast<uint32_t>(exponent - half + 127) << 23);
  return p * a * b;
}

// e^x - 1 for x <= 0 within 3 ulp; -1 below -18, 0 above 0; NaN stays NaN. As vector_exp, with the 1 taken
// off where it cancels nothing: 2^n (e^r - 1) + (2^n - 1).
inline float vector_expm1_below(float x) {
  const float above = x < -18.0f ? -18.0f : x;
  const float clamped = above > 0.0f ? 0.0f : above;
  const float shifted = __builtin_fmaf(clamped, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  const float r = __builtin_fmaf(n, -1.42860677e-6f, __builtin_fmaf(n, -0.693145752f, clamped));
  float p = 1.98412698e-4f;
  p = __builtin_fmaf(p, r, 1.38888889e-3f);
  p = __builtin_fmaf(p, r, 8.33333333e-3f);
  p = __builtin_fmaf(p, r, 4.16666667e-2f);
  p = __builtin_fmaf(p, r, 1.66666667e-1f);
  p = __builtin_fmaf(p, r, 0.5f);
  const float small = __builtin_fmaf(r * r, p, r);
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(12582912.0f);
  const float scale = std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
  return __builtin_fmaf(small, scale, scale - 1.0f);
}

// erf(x) within 6 ulp, never beyond +-1; NaN stays NaN. x * P(x^2) / Q(x^2) of degrees 5 and 5 (relative
// error 2^-25.7) on |x| < 3.92, beyond which erf rounds to +-1.
inline float vector_erf(float x) {
  const float z = x * x;
  float p = 2.050083668e-06f;
  p = __builtin_fmaf(p, z, 2.848836795e-04f);
  p = __builtin_fmaf(p, z, 3.765651248e-03f);
  p = __builtin_fmaf(p, z, 5.274883042e-02f);
  p = __builtin_fmaf(p, z, 1.904072366e-01f);
  p = __builtin_fmaf(p, z, 1.128379146f);
  float q = 3.809172796e-05f;
  q = __builtin_fmaf(q, z, 1.162544156e-03f);
  q = __builtin_fmaf(q, z, 1.496928545e-02f);
  q = __builtin_fmaf(q, z, 1.141094348e-01f);
  q = __builtin_fmaf(q, z, 5.020767607e-01f);
  q = __builtin_fmaf(q, z, 1.0f);
  const float value = x * p / q;
  const float saturated = x >= 3.92f ? 1.0f : (x <= -3.92f ? -1.0f : value);
  const float below = saturated > 1.0f ? 1.0f : saturated;
  return below < -1.0f ? -1.0f : below;
}

// tanh(x) within 5 ulp, never beyond +-1; NaN stays NaN. x * P(x^2) / Q(x^2) of degrees 4 and 4 (relative
// error 2^-25.5) on |x| < 9.02, beyond which tanh rounds to +-1.
inline float vector_tanh(float x) {
  const float z = x * x;
  float p = 1.331907981e-08f;
  p = __builtin_fmaf(p, z, 2.058348757e-05f);
  p = __builtin_fmaf(p, z, 3.494034964e-03f);
  p = __builtin_fmaf(p, z, 1.337971829e-01f);
  p = __builtin_fmaf(p, z, 9.999999790e-01f);
  float q = 7.762022857e-07f;
  q = __builtin_fmaf(q, z, 3.283093487e-04f);
  q = __builtin_fmaf(q, z, 2.587107476e-02f);
  q = __builtin_fmaf(q, z, 4.671303353e-01f);
  q = __builtin_fmaf(q, z, 1.0f);
  const float value = x * p / q;
  const float saturated = x >= 9.02f ? 1.0f : (x <= -9.02f ? -1.0f : value);
  const float below = saturated > 1.0f ? 1.0f : saturated;
  return below < -1.0f ? -1.0f : below;
}

// 1 / (1 + e^-x) within 3 ulp (0 below -103.98), without overflow; NaN stays NaN.
inline float vector_sigmoid(float x) {
  const float e = vector_exp(x < 0.0f ? x : -x);  // e^-|x|
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// log(1 + u) for u in [0, 1] within 2 ulp: 2 atanh(s), s = u / (2 + u), with a degree-5 polynomial in s^2 <=
// 1/9 (relative error 2^-33).
inline float vector_log1p_unit(float u) {
  const float s = u / (2.0f + u);
  const float z = s * s;
  float p = 2.441306830e-01f;
  p = __builtin_fmaf(p, z, 2.139325060e-01f);
  p = __builtin_fmaf(p, z, 2.862072211e-01f);
  p = __builtin_fmaf(p, z, 3.999869090e-01f);
  p = __builtin_fmaf(p, z, 6.666667931e-01f);
  return __builtin_fmaf(p * z, s, 2.0f * s);
}

// log(1 + e^x) without overflow or cancellation: max(x, 0) + log1p(e^-|x|), within 3 ulp. NaN stays
// NaN.
inline float vector_softplus(float x) {
  const float e = vector_exp(x < 0.0f ? x : -x);
  return (x < 0.0f ? 0.0f : x) + vector_log1p_unit(e);
}

}  // namespace vesal::kernels
