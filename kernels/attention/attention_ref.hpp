// Attention as a reader would write it down: for every sample, head and query a row of scores over all keys.
// A template on the scalar type, so that tests evaluate it in double (exact) and in float (what a naive
// implementation reaches).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/attention.hpp"

namespace vesal::kernels::reference {

// The arrays of attention.hpp in one scalar type; null where the contract allows it.
template <class T>
struct Attention {
  AttentionParams p;
  const T* q;
  const T* k;
  const T* v;
  const uint8_t* key_mask = nullptr;
  const T* bias = nullptr;
  const T* axial_bias = nullptr;

  int64_t at(int64_t stride, int64_t token, int m) const {
    return token * (stride == 0 ? p.channels() : stride) + int64_t{m} * p.head_dim;
  }
  int64_t q_at(int64_t s, int m, int64_t i) const { return at(p.q_stride, s * p.queries + i, m); }
  int64_t k_at(int64_t s, int m, int64_t j) const { return at(p.k_stride, s * p.keys + j, m); }
  int64_t v_at(int64_t s, int m, int64_t j) const { return at(p.v_stride, s * p.keys + j, m); }
  // Of out, dout, and times 1 / head_dim of lse.
  int64_t out_at(int64_t s, int m, int64_t i) const { return at(0, s * p.queries + i, m); }
  int64_t lse_at(int64_t s, int m, int64_t i) const { return (s * p.queries + i) * p.heads + m; }
  // The three entries of the query's axial bias that belong to key j.
  std::array<int64_t, 3> axial_at(int64_t s, int m, int64_t i, int64_t j) const {
    const auto& [d, h, w] = p.key_grid;
    const int64_t row = lse_at(s, m, i) * p.axial_size();
    return {row + j / w / h, row + d + j / w % h, row + d + h + j % w};
  }
  bool admits(int64_t s, int64_t j) const { return key_mask == nullptr || key_mask[s * p.keys + j] != 0; }

  // -infinity where the mask hides the key.
  std::vector<T> scores(int64_t s, int m, int64_t i) const {
    std::vector<T> row(static_cast<size_t>(p.keys), -std::numeric_limits<T>::infinity());
    for (int64_t j = 0; j < p.keys; ++j) {
      if (!admits(s, j)) {
        continue;
      }
      T dot = 0;
      for (int c = 0; c < p.head_dim; ++c) {
        dot += q[q_at(s, m, i) + c] * k[k_at(s, m, j) + c];
      }
      T score = static_cast<T>(p.scale) * dot;
      if (bias != nullptr) {
        const int64_t bs = p.bias_samples == 1 ? 0 : s;
        const int64_t bm = p.bias_heads == 1 ? 0 : m;
        score += bias[((bs * p.bias_heads + bm) * p.queries + i) * p.keys + j];
      }
      if (axial_bias != nullptr) {
        for (const int64_t position : axial_at(s, m, i, j)) {
          score += axial_bias[position];
        }
      }
      row[static_cast<size_t>(j)] = score;
    }
    return row;
  }

  template <class Body>
  void for_each_query(Body&& body) const {
    for (int64_t s = 0; s < p.n; ++s) {
      for (int m = 0; m < p.heads; ++m) {
        for (int64_t i = 0; i < p.queries; ++i) {
          body(s, m, i);
        }
      }
    }
  }
};

template <class T>
void attention_forward(const Attention<T>& a, T* out, T* lse) {
  const AttentionParams& p = a.p;
  std::fill_n(out, p.n * p.queries * p.channels(), T(0));
  a.for_each_query([&](int64_t s, int m, int64_t i) {
    std::vector<T> row = a.scores(s, m, i);
    const T largest = *std::max_element(row.begin(), row.end());
    T log_sum = 0;
    if (largest != -std::numeric_limits<T>::infinity()) {
      T sum = 0;
      for (T& score : row) {
        score = std::exp(score - largest);
        sum += score;
      }
      log_sum = largest + std::log(sum);
      for (int64_t j = 0; j < p.keys; ++j) {
        const T probability = row[static_cast<size_t>(j)] / sum;
        for (int c = 0; c < p.head_dim && a.admits(s, j); ++c) {
          out[a.out_at(s, m, i) + c] += probability * a.v[a.v_at(s, m, j) + c];
        }
      }
    }
    if (lse != nullptr) {
      lse[a.lse_at(s, m, i)] = log_sum;
    }
  });
}

// dq, dk, dv (strided as q, k, v: only what belongs to them is written) and daxial_bias (may be null). From
// the forward pass's out and lse, as the contract has it (in the float evaluation these are rounded, which
// bounds what any float32 backward can reach): p_ij = exp(score_ij - lse_i), ds_ij = p_ij (dout_i . v_j -
// dout_i . out_i).
template <class T>
void attention_backward(const Attention<T>& a, const T* out, const T* lse, const T* dout, T* dq, T* dk, T* dv,
                        T* daxial_bias) {
  const AttentionParams& p = a.p;
  for (int64_t s = 0; s < p.n; ++s) {
    for (int m = 0; m < p.heads; ++m) {
      for (int64_t i = 0; i < p.queries; ++i) {
        std::fill_n(dq + a.q_at(s, m, i), p.head_dim, T(0));
      }
      for (int64_t j = 0; j < p.keys; ++j) {
        std::fill_n(dk + a.k_at(s, m, j), p.head_dim, T(0));
        std::fill_n(dv + a.v_at(s, m, j), p.head_dim, T(0));
      }
    }
  }
  if (daxial_bias != nullptr) {
    std::fill_n(daxial_bias, p.n * p.queries * p.heads * p.axial_size(), T(0));
  }
  a.for_each_query([&](int64_t s, int m, int64_t i) {
    const std::vector<T> row = a.scores(s, m, i);
    const T* dout_row = dout + a.out_at(s, m, i);
    T mean = 0;
    for (int c = 0; c < p.head_dim; ++c) {
      mean += dout_row[c] * out[a.out_at(s, m, i) + c];
    }
    for (int64_t j = 0; j < p.keys; ++j) {
      const T score = row[static_cast<size_t>(j)];
      if (score == -std::numeric_limits<T>::infinity()) {
        continue;
      }
      const T probability = std::exp(score - lse[a.lse_at(s, m, i)]);
      T dprobability = 0;
      for (int c = 0; c < p.head_dim; ++c) {
        dprobability += dout_row[c] * a.v[a.v_at(s, m, j) + c];
      }
      const T dscore = probability * (dprobability - mean);
      const T scaled = static_cast<T>(p.scale) * dscore;
      for (int c = 0; c < p.head_dim; ++c) {
        dq[a.q_at(s, m, i) + c] += scaled * a.k[a.k_at(s, m, j) + c];
        dk[a.k_at(s, m, j) + c] += scaled * a.q[a.q_at(s, m, i) + c];
        dv[a.v_at(s, m, j) + c] += probability * dout_row[c];
      }
      if (daxial_bias != nullptr) {
        for (const int64_t position : a.axial_at(s, m, i, j)) {
          daxial_bias[position] += dscore;
        }
      }
    }
  });
}

}  // namespace vesal::kernels::reference
