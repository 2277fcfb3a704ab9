// Sine and cosine of a rotary angle, shared by the CPU and the CUDA kernels. Frequencies are in turns, so
// that taking off whole quarters of a turn is exact, and of twice float32's precision, so that far places are
// as exact as near ones. CUDA's sinf keeps a table on its stack for large angles; these do not need one.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/host_device.hpp"
#include "kernels/rotary/rotary.hpp"

namespace vesal::kernels {

inline constexpr int kMaxRotaryPairs = 128;

// turns + rest: turns from one place to the next, pair by pair. Plain data, passed to kernels by value.
struct RotaryFrequencies {
  float turns[kMaxRotaryPairs];
  float rest[kMaxRotaryPairs];
};

inline RotaryFrequencies rotary_frequencies(const RotaryParams& params) {
  RotaryFrequencies frequencies{};
  for (int i = 0; i < params.pairs(); ++i) {
    const double exponent = -static_cast<double>(i) / params.pairs();
    const double turns = std::pow(static_cast<double>(params.theta), exponent) * 0.5 / M_PI;
    frequencies.turns[i] = static_cast<float>(turns);
    frequencies.rest[i] = static_cast<float>(turns - static_cast<double>(frequencies.turns[i]));
  }
  return frequencies;
}

struct RotaryAngle {
  float cosine, sine;
};

// Of `place` steps of turns + rest, for places up to 2^20: within 2^-22 of the sine and cosine of the exact
// angle. Taylor polynomials on an eighth of a turn to either side of the nearest quarter (remainders below
// 2^-29).
VESAL_HOST_DEVICE inline RotaryAngle rotary_angle(int place, float turns, float rest) {
  const float t = static_cast<float>(place);
  const float angle = t * turns;
  const float lost = fmaf(t, turns, -angle) + t * rest;  // what rounding took from the angle
  const float quarters = rintf(4.0f * angle);
  const float x = 6.28318530717958648f * ((angle - 0.25f * quarters) + lost);
  const float z = x * x;
  float s = 2.75573192e-6f;
  s = fmaf(s, z, -1.98412698e-4f);
  s = fmaf(s, z, 8.33333333e-3f);
  s = fmaf(s, z, -1.66666667e-1f);
  s = fmaf(s * z, x, x);
  float c = -2.75573192e-7f;
  c = fmaf(c, z, 2.48015873e-5f);
  c = fmaf(c, z, -1.38888889e-3f);
  c = fmaf(c, z, 4.16666667e-2f);
  c = fmaf(c, z, -0.5f);
  c = fmaf(c, z, 1.0f);
  const int64_t quarter = static_cast<int64_t>(quarters) & 3;
  const float cosine = (quarter & 1) == 0 ? c : s;
  const float sine = (quarter & 1) == 0 ? s : c;
  return {quarter == 1 || quarter == 2 ? -cosine : cosine, quarter >= 2 ? -sine : sine};
}

}  // namespace vesal::kernels
