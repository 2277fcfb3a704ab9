// The losses and their targets as plain loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/losses/losses.hpp"

namespace vesal::kernels::reference {

inline bool in_region(uint8_t label, int64_t region) {
  const bool whole = label == 1 || label == 2 || label == 3;
  const bool core = label == 1 || label == 3;
  const bool enhancing = label == 3;
  return region == 0 ? whole : region == 1 ? core : enhancing;
}

inline void region_targets(int64_t voxels, const uint8_t* labels, uint8_t* targets) {
  for (int64_t v = 0; v < voxels; ++v) {
    for (int64_t r = 0; r < 3; ++r) {
      targets[v * 3 + r] = in_region(labels[v], r) ? 1 : 0;
    }
  }
}

inline void edge_targets(int64_t n, int64_t d, int64_t h, int64_t w, const uint8_t* labels, uint8_t* edges) {
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t z = 0; z < d; ++z) {
      for (int64_t y = 0; y < h; ++y) {
        for (int64_t x = 0; x < w; ++x) {
          const int64_t here = ((s * d + z) * h + y) * w + x;
          edges[here] = 0;
          for (int64_t dz = -1; dz <= 1; ++dz) {
            for (int64_t dy = -1; dy <= 1; ++dy) {
              for (int64_t dx = -1; dx <= 1; ++dx) {
                if (z + dz < 0 || z + dz >= d || y + dy < 0 || y + dy >= h || x + dx < 0 || x + dx >= w) {
                  continue;
                }
                const int64_t there = ((s * d + z + dz) * h + y + dy) * w + x + dx;
                for (int64_t r = 0; r < 3; ++r) {
                  if (in_region(labels[here], r) != in_region(labels[there], r)) {
                    edges[here] = 1;
                  }
                }
              }
            }
          }
        }
      }
    }
  }
}

template <class T>
T sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

// -t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)), without overflow.
template <class T>
T bce_with_logit(T x, T t) {
  return (x > 0 ? x : T(0)) - x * t + std::log1p(std::exp(-std::abs(x)));
}

// dice as in the contract: [n or 1, regions, 2].
template <class T>
T region_loss_forward(const RegionLossParams& p, const T* logits, const uint8_t* targets, T* dice) {
  const int64_t groups = p.batch_dice ? 1 : p.n;
  T bce = 0;
  for (int64_t k = 0; k < groups * p.regions; ++k) {
    dice[2 * k] = T(p.smooth);
    dice[2 * k + 1] = T(p.smooth);
  }
  for (int64_t s = 0; s < p.n; ++s) {
    for (int64_t v = 0; v < p.voxels; ++v) {
      for (int64_t r = 0; r < p.regions; ++r) {
        const int64_t i = (s * p.voxels + v) * p.regions + r;
        const T t = T(targets[i]);
        const T probability = sigmoid(logits[i]);
        bce += bce_with_logit(logits[i], t);
        T* ratio = dice + ((p.batch_dice ? 0 : s) * p.regions + r) * 2;
        ratio[0] += T(2) * probability * t;
        ratio[1] += probability + t;
      }
    }
  }
  T dice_loss = 0;
  for (int64_t k = 0; k < groups * p.regions; ++k) {
    dice_loss += T(1) - dice[2 * k] / dice[2 * k + 1];
  }
  const auto mean = [](T sum, int64_t count) { return count > 0 ? sum / T(count) : T(0); };
  return T(p.bce_weight) * mean(bce, p.n * p.voxels * p.regions) +
         T(p.dice_weight) * mean(dice_loss, groups * p.regions);
}

// d/dx of -A/B with A = 2 sum(p t) + smooth, B = sum p + sum t + smooth: -(2 t B - A) / B^2 * p (1 - p).
template <class T>
void region_loss_backward(const RegionLossParams& p, const T* logits, const uint8_t* targets, const T* dice,
                          T weight, T* dlogits) {
  const int64_t groups = p.batch_dice ? 1 : p.n;
  for (int64_t s = 0; s < p.n; ++s) {
    for (int64_t v = 0; v < p.voxels; ++v) {
      for (int64_t r = 0; r < p.regions; ++r) {
        const int64_t i = (s * p.voxels + v) * p.regions + r;
        const T t = T(targets[i]);
        const T probability = sigmoid(logits[i]);
        const T* ratio = dice + ((p.batch_dice ? 0 : s) * p.regions + r) * 2;
        const T from_dice = -(T(2) * t * ratio[1] - ratio[0]) / (ratio[1] * ratio[1]) * probability *
                            (T(1) - probability) / T(groups * p.regions);
        const T from_bce = (probability - t) / T(p.n * p.voxels * p.regions);
        dlogits[i] = weight * (T(p.dice_weight) * from_dice + T(p.bce_weight) * from_bce);
      }
    }
  }
}

inline void edge_counts(const EdgeLossParams& p, const uint8_t* targets, double* counts) {
  counts[0] = counts[1] = 0;
  for (int64_t v = 0; v < p.voxels; ++v) {
    counts[0] += targets[v] == 1;
    counts[1] += targets[v] == 0;
  }
}

// The weight of a voxel in the mean.
template <class T>
T edge_voxel_weight(const EdgeLossParams& p, uint8_t target, const double* counts) {
  const T all = T(counts[0] + counts[1]);
  if (target > 1 || all == 0) {
    return T(0);
  }
  return (target == 1 ? T(counts[1]) / all : T(p.negative_factor) * T(counts[0]) / all) / all;
}

template <class T>
T edge_loss_forward(const EdgeLossParams& p, const T* logits, const uint8_t* targets, const double* counts) {
  T total = 0;
  for (int64_t v = 0; v < p.voxels; ++v) {
    if (targets[v] <= 1) {
      total += edge_voxel_weight<T>(p, targets[v], counts) * bce_with_logit(logits[v], T(targets[v]));
    }
  }
  return total;
}

template <class T>
void edge_loss_backward(const EdgeLossParams& p, const T* logits, const uint8_t* targets,
                        const double* counts, T weight, T* dlogits) {
  for (int64_t v = 0; v < p.voxels; ++v) {
    dlogits[v] = targets[v] > 1 ? T(0)
                                : weight * edge_voxel_weight<T>(p, targets[v], counts) *
                                      (sigmoid(logits[v]) - T(targets[v]));
  }
}

}  // namespace vesal::kernels::reference
