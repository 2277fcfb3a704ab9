// The small products and softmax steps of which attention on the CPU is made: eight query rows against a tile
// of keys, in registers. `ld_...` and `ld` are the numbers from one row of an array to the next; arrays are
// padded so that whole registers may be read and written: lengths that are multiples of kKeyStep, dimensions
// that are multiples of kLanes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/vector_lanes.hpp"

namespace vesal::kernels::cpu {

inline constexpr int kRows = 8;              // query rows of a register block
inline constexpr int kKeyStep = 2 * kLanes;  // keys of a register block

// out[r][j] = sum over c of rows[r][c] * columns[c][j] for kRows rows and `length` columns.
inline void multiply_rows(const float* rows, int64_t ld_rows, const float* columns, int64_t ld_columns,
                          int depth, int length, float* out, int64_t ld_out) {
  for (int j = 0; j < length; j += kKeyStep) {
    Lanes sum[kRows][2] = {};
    for (int c = 0; c < depth; ++c) {
      const Lanes b0 = load_lanes(columns + c * ld_columns + j);
      const Lanes b1 = load_lanes(columns + c * ld_columns + j + kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Lanes a = all_lanes(rows[r * ld_rows + c]);
        sum[r][0] = fma_lanes(a, b0, sum[r][0]);
        sum[r][1] = fma_lanes(a, b1, sum[r][1]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      store_lanes(out + r * ld_out + j, sum[r][0]);
      store_lanes(out + r * ld_out + j + kLanes, sum[r][1]);
    }
  }
}

// out[r][c] = out[r][c] * factor[r] + sum over j of weights[r][j] * values[j][c], kWidth registers of
// columns.
template <int kWidth>
inline void combine_columns(const float* weights, int64_t ld_weights, const float* values, int64_t ld,
                            int length, const float* factor, float* out) {
  Lanes sum[kRows][kWidth];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) {
      sum[r][v] = load_lanes(out + r * ld + v * kLanes) * factor[r];
    }
  }
  for (int j = 0; j < length; ++j) {
    Lanes b[kWidth];
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) {
      b[v] = load_lanes(values + j * ld + v * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Lanes a = all_lanes(weights[r * ld_weights + j]);
#pragma GCC unroll 2
      for (int v = 0; v < kWidth; ++v) {
        sum[r][v] = fma_lanes(a, b[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) {
      store_lanes(out + r * ld + v * kLanes, sum[r][v]);
    }
  }
}

inline void combine(const float* weights, int64_t ld_weights, const float* values, int padded_dim, int length,
                    const float* factor, float* out) {
  int c = 0;
  for (; c + 2 * kLanes <= padded_dim; c += 2 * kLanes) {
    combine_columns<2>(weights, ld_weights, values + c, padded_dim, length, factor, out + c);
  }
  if (c < padded_dim) {
    combine_columns<1>(weights, ld_weights, values + c, padded_dim, length, factor, out + c);
  }
}

// target[j][c] += sum over r of weights[r][j] * rows[r][c], kWidth registers of columns.
template <int kWidth>
inline void spread_columns(const float* weights, int64_t ld_weights, const float* rows, int64_t ld,
                           int length, float* target) {
  Lanes row[kRows][kWidth];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) {
      row[r][v] = load_lanes(rows + r * ld + v * kLanes);
    }
  }
  for (int j = 0; j < length; ++j) {
    // Two sums each, so that the additions of one do not wait for the other.
    Lanes even[kWidth];
    Lanes odd[kWidth] = {};
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) {
      even[v] = load_lanes(target + j * ld + v * kLanes);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r += 2) {
      const Lanes first = all_lanes(weights[r * ld_weights + j]);
      const Lanes second = all_lanes(weights[(r + 1) * ld_weights + j]);
#pragma GCC unroll 2
      for (int v = 0; v < kWidth; ++v) {
        even[v] = fma_lanes(first, row[r][v], even[v]);
        odd[v] = fma_lanes(second, row[r + 1][v], odd[v]);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) {
      store_lanes(target + j * ld + v * kLanes, even[v] + odd[v]);
    }
  }
}

inline void spread(const float* weights, int64_t ld_weights, const float* rows, int padded_dim, int length,
                   float* target) {
  int c = 0;
  for (; c + 2 * kLanes <= padded_dim; c += 2 * kLanes) {
    spread_columns<2>(weights, ld_weights, rows + c, padded_dim, length, target + c);
  }
  if (c < padded_dim) {
    spread_columns<1>(weights, ld_weights, rows + c, padded_dim, length, target + c);
  }
}

// Scores of eight queries -> exp(score - largest so far) in place; updates the rows' running maximum and sum,
// and says by what factor earlier sums shrink (the running softmax of Milakov and Gimelshein 2018).
inline void softmax_step(float* scores, int64_t ld, int length, float* largest, float* sum, float* factor) {
  for (int r = 0; r < kRows; ++r) {
    float* row = scores + r * ld;
    Lanes top = load_lanes(row);
    for (int j = kLanes; j < length; j += kLanes) {
      top = max_lanes(top, load_lanes(row + j));
    }
    const float before = largest[r];
    const float now = std::max(before, max_of_lanes(top));
    // Nothing seen yet: any finite reference gives zeros.
    const float reference = now == -std::numeric_limits<float>::infinity() ? 0.0f : now;
    Lanes total{};
    for (int j = 0; j < length; j += kLanes) {
      const Lanes e = exp_lanes(load_lanes(row + j) - reference);
      store_lanes(row + j, e);
      total += e;
    }
    factor[r] = before == now ? 1.0f : 0.0f;
    if (before < now && before > -std::numeric_limits<float>::infinity()) {
      factor[r] = std::exp(before - now);
    }
    sum[r] = sum[r] * factor[r] + sum_of_lanes(total);
    largest[r] = now;
  }
}

// Turns eight rows of biased scores into probabilities, and of dp into ds.
inline void softmax_backward(float* probability, float* dscores, int64_t ld, int length, const float* lse,
                             const float* delta) {
  for (int r = 0; r < kRows; ++r) {
    float* p = probability + r * ld;
    float* d = dscores + r * ld;
    for (int j = 0; j < length; j += kLanes) {
      const Lanes e = exp_lanes(load_lanes(p + j) - lse[r]);
      store_lanes(p + j, e);
      store_lanes(d + j, e * (load_lanes(d + j) - delta[r]));
    }
  }
}

}  // namespace vesal::kernels::cpu
