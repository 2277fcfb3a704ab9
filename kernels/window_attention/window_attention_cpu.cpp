// Window attention on the CPU. A task is one head of a chunk of windows; it gathers a window's q, k and v
// into small contiguous tiles on its stack and works through them eight query rows at a time, vectorised over
// the keys (scores) and over the head dimension (outputs). The backward pass recomputes the probabilities
// from lse.
//
// The relative position bias of windows of up to 128 tokens is expanded once a task, and its gradient
// collected in the same dense form; larger windows go through the table row by row. Each task sums its bias
// gradient into its own table in the workspace; the tables are added in the order of the chunks, so no result
// depends on the number of threads. Tiles are float32, whatever qkv is stored as.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/parallel.hpp"
#include "kernels/context/attention_tiles_cpu.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/vector_lanes.hpp"
#include "kernels/window_attention/window_attention.hpp"
#include "kernels/window_attention/window_geometry.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(window_attention_forward)
VESAL_DECLARE_BACKENDS(window_attention_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(window_attention_backward)

namespace cpu {
namespace {

constexpr int kMaxTile = 512;            // tokens of a tile
constexpr int kTileFloats = 8192;        // numbers of a tile: tokens x padded head_dim
constexpr int kDenseTokens = 128;        // windows up to here have their bias expanded
constexpr int kTableRows = 4096;         // bias tables up to here are copied per head
constexpr int64_t kWindowsPerChunk = 4;  // aim; windows of a task
constexpr int64_t kMaxChunks = 64;

struct Shape {
  WindowGeometry geometry;
  int heads;
  int head_dim;
  int padded_dim;  // head_dim rounded up to whole registers
  int tile;        // tokens of a tile, a multiple of kKeyStep and kRows
  float scale;
  int64_t chunks;
  int64_t token_stride;  // of qkv

  int64_t channels() const { return int64_t{heads} * head_dim; }
};

Shape shape_of(const WindowAttentionParams& params) {
  Shape s{};
  s.geometry = window_geometry(params);
  s.heads = params.heads;
  s.head_dim = params.head_dim;
  s.padded_dim = static_cast<int>(round_up_to_lanes(params.head_dim));
  constexpr int kStep = 32;
  static_assert(kStep % kKeyStep == 0 && kStep % kRows == 0);
  s.tile = std::min(kMaxTile, kTileFloats / s.padded_dim / kStep * kStep);
  s.scale = params.scale;
  s.chunks = std::clamp<int64_t>(s.geometry.windows / kWindowsPerChunk, 1, kMaxChunks);
  s.token_stride = 3 * params.channels();
  return s;
}

// Tokens [begin, end) of a window, in order: visit(position from begin, token).
template <class Visit>
void visit_tokens(const WindowGeometry& g, const WindowPlace& place, int begin, int end, Visit&& visit) {
  int x = begin % g.window[2];
  int y = begin / g.window[2] % g.window[1];
  int z = begin / (g.window[2] * g.window[1]);
  int bias_x = begin % g.bias_window[2];
  int bias_y = begin / g.bias_window[2] % g.bias_window[1];
  int bias_z = begin / (g.bias_window[2] * g.bias_window[1]);
  int64_t row_index = -1;
  int row_code = 0;
  const auto enter_row = [&] {
    const int vz = window_voxel(g, place, 0, z);
    const int vy = window_voxel(g, place, 1, y);
    row_index = vz < 0 || vy < 0 ? -1 : ((place.sample * g.extent[0] + vz) * g.extent[1] + vy) * g.extent[2];
    row_code = window_region(g, place, 0, z) * 4 + window_region(g, place, 1, y) * 2;
  };
  enter_row();
  for (int l = begin; l < end; ++l) {
    const int vx = window_voxel(g, place, 2, x);
    const bool padding = row_index < 0 || vx < 0;
    WindowToken token;
    token.index = padding ? -1 : row_index + vx;
    token.code = padding && g.mask_padding != 0 ? kHiddenToken : row_code + window_region(g, place, 2, x);
    token.offset = bias_offset(g, bias_z, bias_y, bias_x);
    visit(l - begin, token);
    if (++x == g.window[2]) {
      x = 0;
      if (++y == g.window[1]) {
        y = 0;
        ++z;
      }
      enter_row();
    }
    if (++bias_x == g.bias_window[2]) {
      bias_x = 0;
      if (++bias_y == g.bias_window[1]) {
        bias_y = 0;
        ++bias_z;
      }
    }
  }
}

// One head's column of the bias table, such that the bias of i and j is at(offset_j - offset_i + centre).
struct BiasColumn {
  const float* start;
  int64_t stride;

  float at(int64_t position) const { return start[position * stride]; }
};

BiasColumn bias_column(const Shape& s, const float* table, int head, float* copy) {
  const int64_t rows = s.geometry.bias_rows;
  const BiasColumn column{table + (rows - 1) * s.heads + head, -int64_t{s.heads}};
  if (rows > kTableRows) {
    return column;
  }
  for (int64_t row = 0; row < rows; ++row) {
    copy[row] = column.at(row);
  }
  return {copy, 1};
}

void bias_row(const BiasColumn& column, int64_t position, const int32_t* offsets, int length, float* out) {
  if (column.stride == 1) {
    const float* start = column.start + position;
    for (int j = 0; j < length; ++j) {
      out[j] = start[offsets[j]];
    }
    return;
  }
  for (int j = 0; j < length; ++j) {
    out[j] = column.at(position + offsets[j]);
  }
}

// The expanded bias [tokens][tokens rounded up to kKeyStep] of one head; `offsets` are those of all tokens.
void expand_bias(const Shape& s, const BiasColumn& column, const int32_t* offsets, int padded_tokens,
                 float* dense) {
  const int centre = (s.geometry.bias_rows - 1) / 2;
  for (int i = 0; i < s.geometry.tokens; ++i) {
    float* row = dense + int64_t{i} * padded_tokens;
    bias_row(column, centre - offsets[i], offsets, s.geometry.tokens, row);
    std::fill(row + s.geometry.tokens, row + padded_tokens, 0.0f);
  }
}

// What is known about the tokens of a tile beside their numbers.
struct TileTokens {
  int64_t index[kMaxTile];
  alignas(64) int32_t code[kMaxTile];
  alignas(64) int32_t offset[kMaxTile];
  int32_t local[kMaxTile];
  int count;
  int length;    // count rounded up; the tokens beyond count are hidden
  bool uniform;  // all codes equal, none beyond count
};

// The keys [begin, end) of a window.
void enter_keys(const Shape& s, const WindowPlace& place, int begin, int end, TileTokens& keys) {
  keys.count = end - begin;
  keys.length = (keys.count + kKeyStep - 1) / kKeyStep * kKeyStep;
  keys.uniform = keys.count == keys.length;
  visit_tokens(s.geometry, place, begin, end, [&](int j, const WindowToken& token) {
    keys.index[j] = token.index;
    keys.code[j] = token.code;
    keys.offset[j] = token.offset;
    keys.uniform = keys.uniform && token.code == keys.code[0];
  });
  for (int j = keys.count; j < keys.length; ++j) {
    keys.index[j] = -1;
    keys.code[j] = kHiddenToken;
    keys.offset[j] = 0;
  }
}

// The queries among tokens [begin, end): those that are not padding.
void enter_queries(const Shape& s, const WindowPlace& place, int begin, int end, TileTokens& queries) {
  int count = 0;
  visit_tokens(s.geometry, place, begin, end, [&](int i, const WindowToken& token) {
    if (token.index >= 0) {
      queries.index[count] = token.index;
      queries.code[count] = token.code;
      queries.offset[count] = token.offset;
      queries.local[count] = begin + i;
      ++count;
    }
  });
  queries.count = count;
  queries.length = (count + kRows - 1) / kRows * kRows;
}

// A key's numbers, as row j of `rows` [length][padded_dim] and, or, column j of `transposed`
// [head_dim][length].
template <class In>
void enter_key(const Shape& s, In source, int j, int length, float* rows, float* transposed) {
  if (rows != nullptr) {
    float* row = rows + int64_t{j} * s.padded_dim;
    for (int c = 0; c < s.padded_dim;
         ++c) {  // a masked load; std::copy_n would call memmove for a few numbers
      row[c] = c < s.head_dim ? source[c] : 0.0f;
    }
  }
  if (transposed != nullptr) {
    for (int c = 0; c < s.head_dim; ++c) {
      transposed[int64_t{c} * length + j] = source[c];
    }
  }
}

// Part (1 k, 2 v) of each key: as rows [length][padded_dim] and, or, transposed [head_dim][length].
template <class T>
void gather_keys(const Shape& s, Input<T> qkv, const float* qkv_bias, int head, int part,
                 const TileTokens& keys, float* rows, float* transposed) {
  const int64_t column = (int64_t{part} * s.heads + head) * s.head_dim;
  const float zeros[96] = {};
  for (int j = 0; j < keys.length; ++j) {
    if (keys.index[j] >= 0) {
      enter_key(s, qkv + (keys.index[j] * s.token_stride + column), j, keys.length, rows, transposed);
    } else {  // what is hidden is never read
      const bool seen = keys.code[j] != kHiddenToken && qkv_bias != nullptr;
      enter_key(s, seen ? qkv_bias + column : zeros, j, keys.length, rows, transposed);
    }
  }
}

// Rows [queries.length][padded_dim] of `source`, token `stride` apart, times `factor`; zero beyond
// queries.count.
template <class In>
void gather_rows(const Shape& s, In source, int64_t stride, float factor, const TileTokens& queries,
                 float* rows) {
  for (int i = 0; i < queries.length; ++i) {
    float* row = rows + int64_t{i} * s.padded_dim;
    const In from = source + queries.index[std::min(i, queries.count - 1)] * stride;
    const int count = i < queries.count ? s.head_dim : 0;
    for (int c = 0; c < s.padded_dim; ++c) {
      row[c] = c < count ? factor * from[c] : 0.0f;
    }
  }
}

// Adds the bias of one query to its scores and hides the keys that it may not see.
void bias_and_mask(const float* bias, int32_t code, const TileTokens& keys, float* scores) {
  if (keys.uniform && keys.code[0] == code) {
    for (int j = 0; j < keys.length; j += kLanes) {
      store_lanes(scores + j, load_lanes(scores + j) + load_lanes(bias + j));
    }
    return;
  }
  const LanesInt own = code - LanesInt{};
  const Lanes hidden = all_lanes(-std::numeric_limits<float>::infinity());
  for (int j = 0; j < keys.length; j += kLanes) {
    const Lanes sum = load_lanes(scores + j) + load_lanes(bias + j);
    store_lanes(scores + j, load_lanes(keys.code + j) == own ? sum : hidden);
  }
}

// The biases of one query for a tile of keys: a row of the dense form, or looked up into `buffer`.
struct BiasRows {
  const float* dense;  // null for large windows
  int padded_tokens;
  BiasColumn column;
  int centre;

  const float* row(const TileTokens& queries, int i, const TileTokens& keys, float* buffer) const {
    if (dense != nullptr) {
      return dense + int64_t{queries.local[i]} * padded_tokens;
    }
    bias_row(column, centre - queries.offset[i], keys.offset, keys.count, buffer);
    std::fill(buffer + keys.count, buffer + keys.length, 0.0f);
    return buffer;
  }
};

// What a task of either pass sets up once.
struct BiasScratch {
  alignas(64) float dense[kDenseTokens * kDenseTokens];
  alignas(64) float table[kTableRows];
  int32_t offsets[kDenseTokens];
};

BiasRows prepare_bias(const Shape& s, const float* table, int head, BiasScratch& scratch) {
  const BiasColumn column = bias_column(s, table, head, scratch.table);
  const int tokens = s.geometry.tokens;
  const int padded_tokens = (tokens + kKeyStep - 1) / kKeyStep * kKeyStep;
  BiasRows rows{nullptr, padded_tokens, column, (s.geometry.bias_rows - 1) / 2};
  // A dense row serves a whole tile of keys, so all keys have to fit into one.
  if (tokens <= kDenseTokens && tokens <= s.tile) {
    const WindowPlace place = window_place(s.geometry, 0);
    visit_tokens(s.geometry, place, 0, tokens,
                 [&](int l, const WindowToken& token) { scratch.offsets[l] = token.offset; });
    expand_bias(s, column, scratch.offsets, padded_tokens, scratch.dense);
    rows.dense = scratch.dense;
  }
  return rows;
}

struct ForwardScratch {
  BiasScratch bias;
  alignas(64) float keys[kTileFloats];
  alignas(64) float values[kTileFloats];
  alignas(64) float queries[kTileFloats];
  alignas(64) float out[kTileFloats];
  alignas(64) float scores[kRows * kMaxTile];
  alignas(64) float bias_buffer[kMaxTile];
  float largest[kMaxTile];
  float sum[kMaxTile];
  TileTokens key_tokens;
  TileTokens query_tokens;
};

template <class T>
void forward_task(const Shape& s, Input<T> qkv, const float* qkv_bias, const float* bias_table, Output<T> out,
                  float* lse, int64_t chunk, int head) {
  ForwardScratch scratch;
  TileTokens& keys = scratch.key_tokens;
  TileTokens& queries = scratch.query_tokens;
  const BiasRows bias = prepare_bias(s, bias_table, head, scratch.bias);
  const int tokens = s.geometry.tokens;
  const int64_t first = s.geometry.windows * chunk / s.chunks;
  const int64_t last = s.geometry.windows * (chunk + 1) / s.chunks;
  for (int64_t window = first; window < last; ++window) {
    const WindowPlace place = window_place(s.geometry, window);
    for (int row_begin = 0; row_begin < tokens; row_begin += s.tile) {
      enter_queries(s, place, row_begin, std::min(row_begin + s.tile, tokens), queries);
      if (queries.count == 0) {
        continue;
      }
      gather_rows(s, qkv + int64_t{head} * s.head_dim, s.token_stride, s.scale, queries, scratch.queries);
      std::fill_n(scratch.out, int64_t{queries.length} * s.padded_dim, 0.0f);
      std::fill_n(scratch.largest, queries.length, -std::numeric_limits<float>::infinity());
      std::fill_n(scratch.sum, queries.length, 0.0f);
      for (int key_begin = 0; key_begin < tokens; key_begin += s.tile) {
        enter_keys(s, place, key_begin, std::min(key_begin + s.tile, tokens), keys);
        gather_keys<T>(s, qkv, qkv_bias, head, 1, keys, nullptr, scratch.keys);
        gather_keys<T>(s, qkv, qkv_bias, head, 2, keys, scratch.values, nullptr);
        for (int i = 0; i < queries.length; i += kRows) {
          multiply_rows(scratch.queries + int64_t{i} * s.padded_dim, s.padded_dim, scratch.keys, keys.length,
                        s.head_dim, keys.length, scratch.scores, kMaxTile);
          for (int r = 0; r < kRows; ++r) {
            const int query = std::min(i + r, queries.count - 1);
            bias_and_mask(bias.row(queries, query, keys, scratch.bias_buffer), queries.code[query], keys,
                          scratch.scores + int64_t{r} * kMaxTile);
          }
          float factor[kRows];
          softmax_step(scratch.scores, kMaxTile, keys.length, scratch.largest + i, scratch.sum + i, factor);
          combine(scratch.scores, kMaxTile, scratch.values, s.padded_dim, keys.count, factor,
                  scratch.out + int64_t{i} * s.padded_dim);
        }
      }
      for (int i = 0; i < queries.count; ++i) {
        const float* row = scratch.out + int64_t{i} * s.padded_dim;
        const Output<T> target = out + (queries.index[i] * s.channels() + int64_t{head} * s.head_dim);
        const float inverse = 1.0f / scratch.sum[i];
        for (int c = 0; c < s.head_dim; ++c) {
          target[c] = row[c] * inverse;
        }
        if (lse != nullptr) {
          lse[queries.index[i] * s.heads + head] = scratch.largest[i] + std::log(scratch.sum[i]);
        }
      }
    }
  }
}

struct BackwardScratch {
  BiasScratch bias;
  alignas(64) float dense_gradient[kDenseTokens * kDenseTokens];
  alignas(64) float keys[kTileFloats];
  alignas(64) float keys_transposed[kTileFloats];
  alignas(64) float values_transposed[kTileFloats];
  alignas(64) float dkeys[kTileFloats];
  alignas(64) float dvalues[kTileFloats];
  alignas(64) float queries[kTileFloats];
  alignas(64) float dout[kTileFloats];
  alignas(64) float probability[kRows * kMaxTile];
  alignas(64) float dscores[kRows * kMaxTile];
  alignas(64) float dqueries[kRows * 96];
  alignas(64) float bias_buffer[kMaxTile];
  float lse[kMaxTile];
  float delta[kMaxTile];
  TileTokens key_tokens;
  TileTokens query_tokens;
};

template <class T>
struct BackwardData {
  Input<T> qkv;
  const float* qkv_bias;
  const float* bias_table;
  Input<T> out;
  const float* lse;
  Input<T> dout;
  Output<T> dqkv;
  float* tables;   // [chunks][heads][bias_rows], reversed
  float* padding;  // [chunks][heads][2][head_dim]: what flows into padding tokens' k and v
};

// delta_i = dout_i . out_i, and lse; rows beyond count get what makes all their probabilities 0.
template <class T>
void enter_rows(const Shape& s, const BackwardData<T>& data, int head, const TileTokens& queries,
                BackwardScratch& scratch) {
  const int64_t column = int64_t{head} * s.head_dim;
  gather_rows(s, data.qkv + column, s.token_stride, s.scale, queries, scratch.queries);
  gather_rows(s, data.dout + column, s.channels(), 1.0f, queries, scratch.dout);
  for (int i = 0; i < queries.length; ++i) {
    scratch.lse[i] = std::numeric_limits<float>::infinity();
    scratch.delta[i] = 0.0f;
    if (i < queries.count) {
      const Input<T> out = data.out + (queries.index[i] * s.channels() + column);
      const float* dout = scratch.dout + int64_t{i} * s.padded_dim;
      float sum = 0.0f;
      for (int c = 0; c < s.head_dim; ++c) {  // in multiply_rows' order: a lone key's dp - delta is exactly 0
        sum = __builtin_fmaf(dout[c], out[c], sum);
      }
      scratch.lse[i] = data.lse[queries.index[i] * s.heads + head];
      scratch.delta[i] = sum;
    }
  }
}

template <class T>
void backward_task(const Shape& s, const BackwardData<T>& data, int64_t chunk, int head) {
  BackwardScratch scratch;
  TileTokens& keys = scratch.key_tokens;
  TileTokens& queries = scratch.query_tokens;
  const BiasRows bias = prepare_bias(s, data.bias_table, head, scratch.bias);
  const int tokens = s.geometry.tokens;
  float* table = data.tables + (chunk * s.heads + head) * s.geometry.bias_rows;
  float* padding = data.padding + (chunk * s.heads + head) * 2 * s.head_dim;
  std::fill_n(table, s.geometry.bias_rows, 0.0f);
  std::fill_n(padding, 2 * s.head_dim, 0.0f);
  if (bias.dense != nullptr) {
    std::fill_n(scratch.dense_gradient, int64_t{tokens} * bias.padded_tokens, 0.0f);
  }
  // dq of a window whose keys are several tiles, until the last of them; row = token of the window.
  std::vector<float> dq_sums(static_cast<size_t>(tokens > s.tile ? int64_t{tokens} * s.head_dim : 0));
  const int64_t first = s.geometry.windows * chunk / s.chunks;
  const int64_t last = s.geometry.windows * (chunk + 1) / s.chunks;
  for (int64_t window = first; window < last; ++window) {
    const WindowPlace place = window_place(s.geometry, window);
    for (int key_begin = 0; key_begin < tokens; key_begin += s.tile) {
      enter_keys(s, place, key_begin, std::min(key_begin + s.tile, tokens), keys);
      gather_keys<T>(s, data.qkv, data.qkv_bias, head, 1, keys, scratch.keys, scratch.keys_transposed);
      gather_keys<T>(s, data.qkv, data.qkv_bias, head, 2, keys, nullptr, scratch.values_transposed);
      std::fill_n(scratch.dkeys, int64_t{keys.length} * s.padded_dim, 0.0f);
      std::fill_n(scratch.dvalues, int64_t{keys.length} * s.padded_dim, 0.0f);
      for (int row_begin = 0; row_begin < tokens; row_begin += s.tile) {
        enter_queries(s, place, row_begin, std::min(row_begin + s.tile, tokens), queries);
        enter_rows(s, data, head, queries, scratch);
        for (int i = 0; i < queries.length; i += kRows) {
          const float* block_queries = scratch.queries + int64_t{i} * s.padded_dim;
          const float* block_dout = scratch.dout + int64_t{i} * s.padded_dim;
          multiply_rows(block_queries, s.padded_dim, scratch.keys_transposed, keys.length, s.head_dim,
                        keys.length, scratch.probability, kMaxTile);
          multiply_rows(block_dout, s.padded_dim, scratch.values_transposed, keys.length, s.head_dim,
                        keys.length, scratch.dscores, kMaxTile);
          for (int r = 0; r < kRows; ++r) {
            const int query = std::min(i + r, queries.count - 1);
            bias_and_mask(bias.row(queries, query, keys, scratch.bias_buffer), queries.code[query], keys,
                          scratch.probability + int64_t{r} * kMaxTile);
          }
          softmax_backward(scratch.probability, scratch.dscores, kMaxTile, keys.length, scratch.lse + i,
                           scratch.delta + i);
          for (int r = 0; r < kRows && i + r < queries.count; ++r) {
            const float* row = scratch.dscores + int64_t{r} * kMaxTile;
            if (bias.dense != nullptr) {
              float* sum = scratch.dense_gradient + int64_t{queries.local[i + r]} * bias.padded_tokens;
              for (int j = 0; j < keys.length; j += kLanes) {
                store_lanes(sum + j, load_lanes(sum + j) + load_lanes(row + j));
              }
            } else {
              float* sum = table + bias.centre - queries.offset[i + r];
              for (int j = 0; j < keys.count; ++j) {
                sum[keys.offset[j]] += row[j];
              }
            }
          }
          spread(scratch.probability, kMaxTile, block_dout, s.padded_dim, keys.count, scratch.dvalues);
          spread(scratch.dscores, kMaxTile, block_queries, s.padded_dim, keys.count, scratch.dkeys);
          const float factor[kRows] = {};
          std::fill_n(scratch.dqueries, int64_t{kRows} * s.padded_dim, 0.0f);
          combine(scratch.dscores, kMaxTile, scratch.keys, s.padded_dim, keys.count, factor,
                  scratch.dqueries);
          for (int r = 0; r < kRows && i + r < queries.count; ++r) {
            const float* row = scratch.dqueries + int64_t{r} * s.padded_dim;
            const Output<T> target =
                data.dqkv + (queries.index[i + r] * s.token_stride + int64_t{head} * s.head_dim);
            if (dq_sums.empty()) {
              for (int c = 0; c < s.head_dim; ++c) {
                target[c] = s.scale * row[c];
              }
              continue;
            }
            float* sum = dq_sums.data() + int64_t{queries.local[i + r]} * s.head_dim;
            for (int c = 0; c < s.head_dim; ++c) {
              sum[c] = (key_begin == 0 ? 0.0f : sum[c]) + s.scale * row[c];
            }
            if (key_begin + s.tile >= tokens) {
              for (int c = 0; c < s.head_dim; ++c) {
                target[c] = sum[c];
              }
            }
          }
        }
      }
      for (int j = 0; j < keys.count; ++j) {
        const float* dkey = scratch.dkeys + int64_t{j} * s.padded_dim;
        const float* dvalue = scratch.dvalues + int64_t{j} * s.padded_dim;
        if (keys.index[j] >= 0) {
          const Output<T> target =
              data.dqkv + (keys.index[j] * s.token_stride + s.channels() + int64_t{head} * s.head_dim);
          const Output<T> value_target = target + s.channels();
          for (int c = 0; c < s.head_dim; ++c) {
            target[c] = dkey[c];
            value_target[c] = dvalue[c];
          }
        } else if (keys.code[j] != kHiddenToken) {
          for (int c = 0; c < s.head_dim; ++c) {
            padding[c] += dkey[c];
            padding[s.head_dim + c] += dvalue[c];
          }
        }
      }
    }
  }
  if (bias.dense != nullptr) {
    for (int i = 0; i < tokens; ++i) {
      const float* row = scratch.dense_gradient + int64_t{i} * bias.padded_tokens;
      float* sum = table + bias.centre - scratch.bias.offsets[i];
      for (int j = 0; j < tokens; ++j) {
        sum[scratch.bias.offsets[j]] += row[j];
      }
    }
  }
}

void assign(float& target, float value, GradMode mode) {
  target = mode == GradMode::accumulate ? target + value : value;
}

}  // namespace

void window_attention_forward(Context&, const WindowAttentionParams& params, ConstData qkv_,
                              ConstData qkv_bias_, ConstData bias_table_, Data out_, float* lse) {
  const float* qkv_bias = qkv_bias_.as<float>("window_attention_forward: qkv_bias");
  const float* bias_table = bias_table_.as<float>("window_attention_forward: bias_table");
  const Shape s = shape_of(params);
  with_storage("window_attention_forward", {qkv_, out_}, [&]<class T>(T) {
    const auto qkv = input<T>(qkv_, "window_attention_forward: qkv");
    const auto out = output<T>(out_, "window_attention_forward: out");
    parallel_for(s.chunks * s.heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        forward_task<T>(s, qkv, qkv_bias, bias_table, out, lse, task / s.heads,
                        static_cast<int>(task % s.heads));
      }
    });
  });
}

size_t window_attention_backward_workspace_bytes(Context&, const WindowAttentionParams& params) {
  const Shape s = shape_of(params);
  const int64_t per_task = s.geometry.bias_rows + 2 * int64_t{s.head_dim};
  return static_cast<size_t>(s.chunks * s.heads * per_task) * sizeof(float);
}

void window_attention_backward(Context&, const WindowAttentionParams& params, ConstData qkv_,
                               ConstData qkv_bias_, ConstData bias_table_, ConstData out_, const float* lse,
                               ConstData dout_, Data dqkv_, Data dqkv_bias_, Data dbias_table_, GradMode mode,
                               Workspace workspace) {
  const Shape s = shape_of(params);
  const int64_t rows = s.geometry.bias_rows;
  float* tables = static_cast<float*>(workspace.data);
  float* padding = tables + s.chunks * s.heads * rows;
  with_storage("window_attention_backward", {qkv_, out_, dout_, dqkv_}, [&]<class T>(T) {
    const BackwardData<T> data{input<T>(qkv_, "window_attention_backward: qkv"),
                               qkv_bias_.as<float>("window_attention_backward: qkv_bias"),
                               bias_table_.as<float>("window_attention_backward: bias_table"),
                               input<T>(out_, "window_attention_backward: out"),
                               lse,
                               input<T>(dout_, "window_attention_backward: dout"),
                               output<T>(dqkv_, "window_attention_backward: dqkv"),
                               tables,
                               padding};
    parallel_for(s.chunks * s.heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        backward_task(s, data, task / s.heads, static_cast<int>(task % s.heads));
      }
    });
  });
  float* dqkv_bias = dqkv_bias_.as<float>("window_attention_backward: dqkv_bias");
  float* dbias_table = dbias_table_.as<float>("window_attention_backward: dbias_table");
  parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int head = 0; head < s.heads; ++head) {
        float sum = 0.0f;
        for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
          sum += tables[(chunk * s.heads + head) * rows + rows - 1 - row];
        }
        assign(dbias_table[row * s.heads + head], sum, mode);
      }
    }
  });
  if (dqkv_bias == nullptr) {
    return;
  }
  for (int64_t column = 0; column < s.channels(); ++column) {
    const int64_t head = column / s.head_dim;
    const int64_t c = column % s.head_dim;
    assign(dqkv_bias[column], 0.0f, mode);  // a padding token asks nothing
    for (int64_t part = 0; part < 2; ++part) {
      float sum = 0.0f;
      for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
        sum += padding[((chunk * s.heads + head) * 2 + part) * s.head_dim + c];
      }
      assign(dqkv_bias[(part + 1) * s.channels() + column], sum, mode);
    }
  }
}

}  // namespace cpu
}  // namespace vesal::kernels
