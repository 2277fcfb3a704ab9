// The overlap losses as plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/overlap_loss/overlap_loss.hpp"

namespace vesal::kernels::reference {

template <class T>
std::vector<T> overlap_probabilities(const OverlapLossParams& p, const T* x) {
  std::vector<T> y(x, x + p.channels);
  if (!p.softmax) {
    for (T& value : y) {
      value = T(1) / (T(1) + std::exp(-value));
    }
    return y;
  }
  const T largest = *std::max_element(y.begin(), y.end());
  T total = 0;
  for (T& value : y) {
    value = std::exp(value - largest);
    total += value;
  }
  for (T& value : y) {
    value /= total;
  }
  return y;
}

// Whether voxel `v` (of n * voxels) counts in channel c, and its t there.
inline bool overlap_counts(const OverlapLossParams& p, const uint8_t* targets, int64_t v, int64_t c) {
  return targets[p.softmax ? v : v * p.channels + c] != p.ignore_label;
}
inline bool overlap_target(const OverlapLossParams& p, const uint8_t* targets, int64_t v, int64_t c) {
  return p.softmax ? targets[v] == c : targets[v * p.channels + c] == 1;
}

// slopes as in the contract.
template <class T>
T overlap_loss_forward(const OverlapLossParams& p, const T* logits, const uint8_t* targets, T* slopes) {
  std::vector<T> sums(static_cast<size_t>(p.groups() * p.channels * 3), T(0));  // of p t, p, t
  for (int64_t v = 0; v < p.n * p.voxels; ++v) {
    const std::vector<T> probability = overlap_probabilities(p, logits + v * p.channels);
    const int64_t group = p.batch ? 0 : v / p.voxels;
    for (int64_t c = 0; c < p.channels; ++c) {
      if (overlap_counts(p, targets, v, c)) {
        T* sum = sums.data() + (group * p.channels + c) * 3;
        const T t = overlap_target(p, targets, v, c) ? T(1) : T(0);
        sum[0] += probability[static_cast<size_t>(c)] * t;
        sum[1] += probability[static_cast<size_t>(c)];
        sum[2] += t;
      }
    }
  }
  const T terms = T(p.groups() * (p.channels - p.first_channel));
  T loss = 0;
  std::fill_n(slopes, p.groups() * p.channels * 2, T(0));
  for (int64_t k = 0; k < p.groups() * p.channels; ++k) {
    if (k % p.channels < p.first_channel) {
      continue;
    }
    const T* sum = sums.data() + k * 3;
    const bool dice = p.kind == Overlap::dice;
    const T a = dice ? T(2) * sum[0] + T(p.smooth) : sum[0] + T(p.smooth);
    const T b = dice ? sum[1] + sum[2] + T(p.smooth) : sum[1] + sum[2] - sum[0] + T(p.smooth);
    loss += (T(1) - a / b) / terms;
    // The quotient rule at t = 0 and at t = 1.
    const T at_zero = a / (b * b);
    const T at_one = dice ? (a - T(2) * b) / (b * b) : -b / (b * b);
    slopes[2 * k] = at_zero / terms;
    slopes[2 * k + 1] = (at_zero - at_one) / terms;
  }
  return loss;
}

template <class T>
void overlap_loss_backward(const OverlapLossParams& p, const T* logits, const uint8_t* targets,
                           const T* slopes, T weight, T* dlogits) {
  for (int64_t v = 0; v < p.n * p.voxels; ++v) {
    const std::vector<T> probability = overlap_probabilities(p, logits + v * p.channels);
    const int64_t group = p.batch ? 0 : v / p.voxels;
    std::vector<T> slope(probability.size(), T(0));
    T projected = 0;
    for (int64_t c = 0; c < p.channels; ++c) {
      if (overlap_counts(p, targets, v, c)) {
        const T* s = slopes + (group * p.channels + c) * 2;
        slope[static_cast<size_t>(c)] = s[0] - (overlap_target(p, targets, v, c) ? s[1] : T(0));
        projected += slope[static_cast<size_t>(c)] * probability[static_cast<size_t>(c)];
      }
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      T& d = dlogits[v * p.channels + c];
      const T pc = probability[static_cast<size_t>(c)];
      const T g = slope[static_cast<size_t>(c)];
      d = !overlap_counts(p, targets, v, c) ? T(0)
          : p.softmax                       ? weight * pc * (g - projected)
                                            : weight * pc * (T(1) - pc) * g;
    }
  }
}

}  // namespace vesal::kernels::reference
