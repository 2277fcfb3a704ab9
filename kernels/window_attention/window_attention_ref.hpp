// Window attention as a reader would write it down: for every window and head, every query row over all keys.
// Padding, roll and the three regions per axis are applied literally. A template on the scalar type, so that
// tests evaluate it in double (exact) and in float (what a naive implementation reaches).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/window_attention/window_attention.hpp"

namespace vesal::kernels::reference {

// A token of a window: where it is in the padded volume, and what follows from that.
struct AttentionToken {
  int64_t row = -1;                // in [n * d * h * w]; -1 for padding
  int region = 0;                  // 0 to 26
  std::array<int64_t, 3> place{};  // in the bias table's window
};

// The place that the bias table has for token number l of a window.
inline std::array<int64_t, 3> attention_place(const WindowAttentionParams& p, int64_t l) {
  const std::array<int, 3> b = p.table_window();
  return {l / (int64_t{b[1]} * b[2]), l / b[2] % b[1], l % b[2]};
}

// The tokens of window (sample, wz, wy, wx), from the definition of pad, roll by -shift, cut.
inline std::vector<AttentionToken> attention_window(const WindowAttentionParams& p, int64_t sample,
                                                    const std::array<int64_t, 3>& window) {
  const std::array<int64_t, 3> extent{p.d, p.h, p.w};
  std::vector<AttentionToken> tokens;
  std::array<int64_t, 3> local{};
  for (local[0] = 0; local[0] < p.window[0]; ++local[0]) {
    for (local[1] = 0; local[1] < p.window[1]; ++local[1]) {
      for (local[2] = 0; local[2] < p.window[2]; ++local[2]) {
        AttentionToken token;
        token.place = attention_place(p, static_cast<int64_t>(tokens.size()));
        bool real = true;
        std::array<int64_t, 3> voxel{};
        for (int axis = 0; axis < 3; ++axis) {
          const int64_t padded = (extent[axis] + p.window[axis] - 1) / p.window[axis] * p.window[axis];
          const int64_t rolled = window[axis] * p.window[axis] + local[axis];
          voxel[axis] = (rolled + p.shift[axis]) % padded;
          real = real && voxel[axis] < extent[axis];
          int region = 0;
          if (p.shift[axis] > 0) {
            region = rolled < padded - p.window[axis] ? 0 : (rolled < padded - p.shift[axis] ? 1 : 2);
          }
          token.region = token.region * 3 + region;
        }
        if (real) {
          token.row = ((sample * p.d + voxel[0]) * p.h + voxel[1]) * p.w + voxel[2];
        }
        tokens.push_back(token);
      }
    }
  }
  return tokens;
}

inline int64_t attention_bias_row(const WindowAttentionParams& p, const AttentionToken& i,
                                  const AttentionToken& j) {
  const std::array<int, 3> b = p.table_window();
  int64_t row = 0;
  for (int axis = 0; axis < 3; ++axis) {
    row = row * (2 * b[axis] - 1) + i.place[axis] - j.place[axis] + b[axis] - 1;
  }
  return row;
}

inline bool attention_sees(const WindowAttentionParams& p, const AttentionToken& i, const AttentionToken& j) {
  return i.region == j.region && (j.row >= 0 || p.padding == PaddingMode::attend);
}

// Element c of part (0 q, 1 k, 2 v) of head m of a token.
template <class T>
T attention_part(const WindowAttentionParams& p, const T* qkv, const T* qkv_bias, const AttentionToken& token,
                 int part, int m, int c) {
  const int64_t column = (int64_t{part} * p.heads + m) * p.head_dim + c;
  if (token.row >= 0) {
    return qkv[token.row * 3 * p.channels() + column];
  }
  return qkv_bias == nullptr ? T(0) : qkv_bias[column];
}

// Calls body(tokens of a window, head) for each window and head.
template <class Body>
void for_each_window(const WindowAttentionParams& p, Body&& body) {
  const std::array<int64_t, 3> extent{p.d, p.h, p.w};
  std::array<int64_t, 3> counts{};
  for (int axis = 0; axis < 3; ++axis) {
    counts[axis] = (extent[axis] + p.window[axis] - 1) / p.window[axis];
  }
  for (int64_t sample = 0; sample < p.n; ++sample) {
    for (int64_t wz = 0; wz < counts[0]; ++wz) {
      for (int64_t wy = 0; wy < counts[1]; ++wy) {
        for (int64_t wx = 0; wx < counts[2]; ++wx) {
          const std::vector<AttentionToken> tokens = attention_window(p, sample, {wz, wy, wx});
          for (int m = 0; m < p.heads; ++m) {
            body(tokens, m);
          }
        }
      }
    }
  }
}

// Scores of one query against all keys of its window; -infinity where masked.
template <class T>
std::vector<T> attention_scores(const WindowAttentionParams& p, const T* qkv, const T* qkv_bias,
                                const T* bias_table, const std::vector<AttentionToken>& tokens,
                                const AttentionToken& query, int m) {
  std::vector<T> scores(tokens.size(), -std::numeric_limits<T>::infinity());
  for (size_t j = 0; j < tokens.size(); ++j) {
    if (attention_sees(p, query, tokens[j])) {
      T dot = 0;
      for (int c = 0; c < p.head_dim; ++c) {
        dot += attention_part(p, qkv, qkv_bias, query, 0, m, c) *
               attention_part(p, qkv, qkv_bias, tokens[j], 1, m, c);
      }
      scores[j] =
          static_cast<T>(p.scale) * dot + bias_table[attention_bias_row(p, query, tokens[j]) * p.heads + m];
    }
  }
  return scores;
}

// Turns scores into probabilities and returns log(sum(exp(scores))).
template <class T>
T attention_softmax(std::vector<T>& scores) {
  T largest = -std::numeric_limits<T>::infinity();
  for (const T score : scores) {
    largest = std::max(largest, score);
  }
  T sum = 0;
  for (T& score : scores) {
    score = std::exp(score - largest);
    sum += score;
  }
  for (T& score : scores) {
    score /= sum;
  }
  return largest + std::log(sum);
}

template <class T>
void window_attention_forward(const WindowAttentionParams& p, const T* qkv, const T* qkv_bias,
                              const T* bias_table, T* out, T* lse) {
  for_each_window(p, [&](const std::vector<AttentionToken>& tokens, int m) {
    for (const AttentionToken& query : tokens) {
      if (query.row < 0) {
        continue;
      }
      std::vector<T> probability = attention_scores(p, qkv, qkv_bias, bias_table, tokens, query, m);
      const T log_sum = attention_softmax(probability);
      if (lse != nullptr) {
        lse[query.row * p.heads + m] = log_sum;
      }
      for (int c = 0; c < p.head_dim; ++c) {
        T sum = 0;
        for (size_t j = 0; j < tokens.size(); ++j) {
          sum += probability[j] * attention_part(p, qkv, qkv_bias, tokens[j], 2, m, c);
        }
        out[query.row * p.channels() + m * p.head_dim + c] = sum;
      }
    }
  });
}

// Overwrites dqkv, dqkv_bias [3, heads, head_dim] (may be null) and dbias_table. As the contract has it, from
// the forward pass's out and lse (in the float evaluation these are rounded, which bounds what any float32
// backward can reach): p_ij = exp(score_ij - lse_i), ds_ij = p_ij (dp_ij - sum over l of p_il dp_il), and
// that sum is dout_i . out_i.
template <class T>
void window_attention_backward(const WindowAttentionParams& p, const T* qkv, const T* qkv_bias,
                               const T* bias_table, const T* out, const T* lse, const T* dout, T* dqkv,
                               T* dqkv_bias, T* dbias_table) {
  std::fill_n(dqkv, p.tokens() * 3 * p.channels(), T(0));
  std::fill_n(dbias_table, p.bias_rows() * p.heads, T(0));
  if (dqkv_bias != nullptr) {
    std::fill_n(dqkv_bias, 3 * p.channels(), T(0));
  }
  for_each_window(p, [&](const std::vector<AttentionToken>& tokens, int m) {
    const auto add = [&](const AttentionToken& token, int part, int c, T value) {
      const int64_t column = (int64_t{part} * p.heads + m) * p.head_dim + c;
      if (token.row >= 0) {
        dqkv[token.row * 3 * p.channels() + column] += value;
      } else if (dqkv_bias != nullptr) {
        dqkv_bias[column] += value;
      }
    };
    for (const AttentionToken& query : tokens) {
      if (query.row < 0) {
        continue;
      }
      const std::vector<T> scores = attention_scores(p, qkv, qkv_bias, bias_table, tokens, query, m);
      const T* out_row = out + query.row * p.channels() + m * p.head_dim;
      const T* dout_row = dout + query.row * p.channels() + m * p.head_dim;
      T mean = 0;
      for (int c = 0; c < p.head_dim; ++c) {
        mean += dout_row[c] * out_row[c];
      }
      for (size_t j = 0; j < tokens.size(); ++j) {
        if (!attention_sees(p, query, tokens[j])) {
          continue;
        }
        T dprobability = 0;
        for (int c = 0; c < p.head_dim; ++c) {
          dprobability += dout_row[c] * attention_part(p, qkv, qkv_bias, tokens[j], 2, m, c);
        }
        const T probability = std::exp(scores[j] - lse[query.row * p.heads + m]);
        const T dscore = probability * (dprobability - mean);
        dbias_table[attention_bias_row(p, query, tokens[j]) * p.heads + m] += dscore;
        for (int c = 0; c < p.head_dim; ++c) {
          const T scale = static_cast<T>(p.scale);
          add(tokens[j], 2, c, probability * dout_row[c]);
          add(tokens[j], 1, c, scale * dscore * attention_part(p, qkv, qkv_bias, query, 0, m, c));
          add(query, 0, c, scale * dscore * attention_part(p, qkv, qkv_bias, tokens[j], 1, m, c));
        }
      }
    }
  });
}

}  // namespace vesal::kernels::reference
