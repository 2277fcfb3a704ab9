// Window attention on a GPU, float32 arithmetic (tiles in shared memory too, whatever qkv is stored as), in
// the portable dialect.
//
// What it computes: window_attention.hpp. For T real tokens, windows of n tokens, h heads of d dimensions:
//   forward   at least 4 T h d (read qkv, bias table once; write out) numbers moved, 4 T n h d flops + T n h
//   exponentials backward  at least 9 T h d numbers moved; 10 T n h d flops in one pass over the scores, 14 T
//   n h d here, because
//             dq and dk, dv are found in two kernels that each recompute scores and dp (no float atomics
//             needed)
// What limits it: n / 4 multiply-adds per byte (n = 64: 16), so the float32 units, then shared-memory reads:
// each thread reads a key's or value's four numbers for four multiply-adds. How: a thread (kSplit
// neighbouring threads where head_dim is large) owns a query row, or in the second backward kernel a key,
// with its vectors in registers; blocks step through the window in tiles of kTile tokens in shared memory.
// The softmax is running (Milakov and Gimelshein 2018; Dao et al. 2022), the backward pass recomputes it from
// lse. Shift, padding and the regions of the mask are index arithmetic (window_geometry.hpp). Bias gradient:
// each warp adds to a table of its own. For one key the rows of a warp hit different entries, and a warp
// barrier separates the keys, so the order is fixed; tables of all warps and chunks are then added in order.
#include <algorithm>

#include "kernels/context/attention_rows_device.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/simt/device.hpp"
#include "kernels/window_attention/window_attention.hpp"
#include "kernels/window_attention/window_geometry.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(window_attention_forward)
VESAL_DECLARE_BACKENDS(window_attention_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(window_attention_backward)

namespace VESAL_BACKEND {
namespace {

constexpr int kTile = 32;                        // tokens of a tile in shared memory
constexpr int kGroup = 8;                        // keys whose scores a thread holds at once
constexpr int kSharedTableRows = 4096;           // larger bias tables are read from global memory
constexpr int kSharedGradientBytes = 72 * 1024;  // with the table; larger ones: in global memory
constexpr int kHiddenQuery = -2;                 // equals no key's code
constexpr int64_t kMaxBlocks = 1024;             // of the backward kernels: chunks x heads
constexpr int64_t kMaxTableBytes = int64_t{32} << 20;

// Calls body(variant) for the smallest variant that holds head_dim.
template <class Body>
void with_variant(int head_dim, Body&& body) {
  if (head_dim <= 8) {
    body(RowLayout<8, 1, 64>{});
  } else if (head_dim <= 12) {
    body(RowLayout<12, 1, 64>{});
  } else if (head_dim <= 16) {
    body(RowLayout<16, 1, 64>{});
  } else if (head_dim <= 32) {
    body(RowLayout<16, 2, 128>{});
  } else if (head_dim <= 64) {
    body(RowLayout<16, 4, 128>{});
  } else {
    body(RowLayout<24, 4, 128>{});
  }
}

struct Heads {
  int count;
  int dim;
  float scale;
};

// What a tile keeps about its tokens.
struct TileToken {
  int64_t index;
  int code;
  int offset;
};

VESAL_DEVICE TileToken tile_token(const WindowGeometry& g, const WindowPlace& place, int local) {
  if (local >= g.tokens) {
    return {-1, kHiddenToken, 0};
  }
  const WindowToken token = window_token(g, place, local);
  return {token.index, token.code, token.offset};
}

// Number c of part (0 q, 1 k, 2 v) of a token; what is hidden is not read.
template <class T>
VESAL_DEVICE float part_of(const Heads& heads, const T* VESAL_RESTRICT qkv,
                           const float* VESAL_RESTRICT qkv_bias, int64_t index, int code, int part, int head,
                           int c) {
  if (c >= heads.dim) {
    return 0.0f;
  }
  const int column = (part * heads.count + head) * heads.dim + c;
  if (index >= 0) {
    return widen(qkv[index * (3 * heads.count * heads.dim) + column]);
  }
  return code >= 0 && qkv_bias != nullptr ? qkv_bias[column] : 0.0f;
}

template <class V, class T>
VESAL_DEVICE void load_own(const Heads& heads, const T* qkv, const float* qkv_bias, int64_t index, int code,
                           int part, int head, int lane, float factor, float (&own)[V::kDims]) {
  VESAL_UNROLL
  for (int i = 0; i < V::kDims; ++i) {
    own[i] = factor * part_of(heads, qkv, qkv_bias, index, code, part, head, dimension<V>(lane, i));
  }
}

// The bias table's column of one head: in shared memory where it fits.
struct BiasTable {
  const float* start;
  int stride;
};

VESAL_DEVICE BiasTable enter_bias(const WindowGeometry& g, const Heads& heads,
                                  const float* VESAL_RESTRICT table, int head, float* shared) {
  if (g.bias_rows > kSharedTableRows) {
    return {table + head, heads.count};
  }
  for (int row = static_cast<int>(threadIdx.x); row < g.bias_rows; row += static_cast<int>(blockDim.x)) {
    shared[row] = table[static_cast<int64_t>(row) * heads.count + head];
  }
  return {shared, 1};
}

VESAL_DEVICE float bias_at(const BiasTable& bias, int row) {
  return bias.start[static_cast<int64_t>(row) * bias.stride];
}

// Block (window x row tile, head): out and lse of kRows query rows.
template <class T, class V>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(V::kThreads, 1)
    forward_kernel(WindowGeometry g, Heads heads, const T* VESAL_RESTRICT qkv,
                   const float* VESAL_RESTRICT qkv_bias, const float* VESAL_RESTRICT bias_table,
                   T* VESAL_RESTRICT out, float* VESAL_RESTRICT lse) {
  VESAL_SHARED(float4, keys, [kTile][V::kWidth / 4]);
  VESAL_SHARED(float4, values, [kTile][V::kWidth / 4]);
  VESAL_SHARED(TileToken, tokens, [kTile]);
  VESAL_DYN_SHARED(float, shared_table);
  const int thread = static_cast<int>(threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  const int lane = thread % V::kSplit;
  const int row_tiles = (g.tokens + V::kRows - 1) / V::kRows;
  const WindowPlace place = window_place(g, blockIdx.x / row_tiles);
  const int row = static_cast<int>(blockIdx.x % row_tiles) * V::kRows + thread / V::kSplit;
  const int centre = (g.bias_rows - 1) / 2;
  const BiasTable bias = enter_bias(g, heads, bias_table, head, shared_table);
  const TileToken query = tile_token(g, place, row);
  float q[V::kDims];
  float sum_out[V::kDims];
  load_own<V>(heads, qkv, nullptr, query.index, query.code, 0, head, lane, heads.scale, q);
  VESAL_UNROLL
  for (int i = 0; i < V::kDims; ++i) {
    sum_out[i] = 0.0f;
  }
  float largest = -INFINITY;
  float sum = 0.0f;
  for (int first = 0; first < g.tokens; first += kTile) {
    __syncthreads();
    if (thread < kTile) {
      tokens[thread] = tile_token(g, place, first + thread);
    }
    __syncthreads();
    for (int e = thread; e < kTile * V::kWidth; e += V::kThreads) {
      const int j = e / V::kWidth;
      const int c = e % V::kWidth;
      const TileToken key = tokens[j];
      reinterpret_cast<float*>(keys)[e] = part_of(heads, qkv, qkv_bias, key.index, key.code, 1, head, c);
      reinterpret_cast<float*>(values)[e] = part_of(heads, qkv, qkv_bias, key.index, key.code, 2, head, c);
    }
    __syncthreads();
    for (int group = 0; group < kTile; group += kGroup) {
      float scores[kGroup];
      float top = largest;
      VESAL_UNROLL
      for (int j = 0; j < kGroup; ++j) {
        const TileToken key = tokens[group + j];
        const float dot = dot_row<V>(q, keys[group + j], lane);
        const bool visible = query.index >= 0 && key.code == query.code;
        scores[j] = visible ? dot + bias_at(bias, query.offset - key.offset + centre) : -INFINITY;
        top = fmaxf(top, scores[j]);
      }
      // Nothing seen yet: any finite reference gives zeros.
      const float reference = top == -INFINITY ? 0.0f : top;
      const float factor = expf(largest - reference);
      largest = top;
      sum *= factor;
      VESAL_UNROLL
      for (int i = 0; i < V::kDims; ++i) {
        sum_out[i] *= factor;
      }
      VESAL_UNROLL
      for (int j = 0; j < kGroup; ++j) {
        const float e = expf(scores[j] - reference);
        sum += e;
        add_row<V>(sum_out, e, values[group + j], lane);
      }
    }
  }
  if (query.index < 0) {
    return;
  }
  const float inverse = 1.0f / sum;
  T* target = out + query.index * (heads.count * heads.dim) + head * heads.dim;
  VESAL_UNROLL
  for (int i = 0; i < V::kDims; ++i) {
    const int c = dimension<V>(lane, i);
    if (c < heads.dim) {
      target[c] = narrow<T>(sum_out[i] * inverse);
    }
  }
  if (lse != nullptr && lane == 0) {
    lse[query.index * heads.count + head] = largest + logf(sum);
  }
}

// Block (chunk of window x row tile, head): dq and delta of the query rows, and the warps' bias gradients
// tables [chunks][heads][warps][bias_rows].
template <class T, class V>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(V::kThreads, 1)
    backward_queries_kernel(WindowGeometry g, Heads heads, const T* VESAL_RESTRICT qkv,
                            const float* VESAL_RESTRICT qkv_bias, const float* VESAL_RESTRICT bias_table,
                            const T* VESAL_RESTRICT out, const float* VESAL_RESTRICT lse,
                            const T* VESAL_RESTRICT dout, T* VESAL_RESTRICT dqkv, float* VESAL_RESTRICT delta,
                            float* VESAL_RESTRICT tables, int shared_gradient) {
  VESAL_SHARED(float4, keys, [kTile][V::kWidth / 4]);
  VESAL_SHARED(float4, values, [kTile][V::kWidth / 4]);
  VESAL_SHARED(TileToken, tokens, [kTile]);
  VESAL_DYN_SHARED(float, dynamic);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int head = static_cast<int>(blockIdx.y);
  const int lane = thread % V::kSplit;
  const int row_tiles = (g.tokens + V::kRows - 1) / V::kRows;
  const int64_t items = g.windows * row_tiles;
  const int64_t begin = items * blockIdx.x / gridDim.x;
  const int64_t end = items * (blockIdx.x + 1) / gridDim.x;
  const int centre = (g.bias_rows - 1) / 2;
  const BiasTable bias = enter_bias(g, heads, bias_table, head, dynamic);
  float* kept =
      tables + ((static_cast<int64_t>(blockIdx.x) * heads.count + head) * V::kWarps + warp) * g.bias_rows;
  float* gradient = kept;
  if (shared_gradient != 0) {
    gradient = dynamic + (g.bias_rows > kSharedTableRows ? 0 : g.bias_rows) + warp * g.bias_rows;
  }
  for (int row = thread % 32; row < g.bias_rows; row += 32) {
    gradient[row] = 0.0f;
  }
  __syncwarp(kFullWarp);
  for (int64_t item = begin; item < end; ++item) {
    const WindowPlace place = window_place(g, item / row_tiles);
    const int row = static_cast<int>(item % row_tiles) * V::kRows + thread / V::kSplit;
    const TileToken query = tile_token(g, place, row);
    const bool real = query.index >= 0;
    float q[V::kDims];
    float drow[V::kDims];
    float dq[V::kDims];
    load_own<V>(heads, qkv, nullptr, query.index, query.code, 0, head, lane, heads.scale, q);
    const int64_t out_row = query.index * (heads.count * heads.dim) + head * heads.dim;
    float own_delta = 0.0f;
    VESAL_UNROLL
    for (int i = 0; i < V::kDims; ++i) {
      const int c = dimension<V>(lane, i);
      drow[i] = 0.0f;
      dq[i] = 0.0f;
      if (real && c < heads.dim) {
        drow[i] = widen(dout[out_row + c]);
        own_delta = fmaf(drow[i], widen(out[out_row + c]), own_delta);
      }
    }
    own_delta = sum_split<V>(own_delta);
    float own_lse = 0.0f;
    if (real) {
      own_lse = lse[query.index * heads.count + head];
      if (lane == 0) {
        delta[query.index * heads.count + head] = own_delta;
      }
    }
    for (int first = 0; first < g.tokens; first += kTile) {
      __syncthreads();
      if (thread < kTile) {
        tokens[thread] = tile_token(g, place, first + thread);
      }
      __syncthreads();
      for (int e = thread; e < kTile * V::kWidth; e += V::kThreads) {
        const int j = e / V::kWidth;
        const int c = e % V::kWidth;
        const TileToken key = tokens[j];
        reinterpret_cast<float*>(keys)[e] = part_of(heads, qkv, qkv_bias, key.index, key.code, 1, head, c);
        reinterpret_cast<float*>(values)[e] = part_of(heads, qkv, qkv_bias, key.index, key.code, 2, head, c);
      }
      __syncthreads();
      for (int j = 0; j < kTile; ++j) {
        const TileToken key = tokens[j];
        const float dot = dot_row<V>(q, keys[j], lane);
        const float dprobability = dot_row<V>(drow, values[j], lane);
        const bool visible = real && key.code == query.code;
        const int bias_row = query.offset - key.offset + centre;
        float dscore = 0.0f;
        if (visible) {
          dscore = expf(dot + bias_at(bias, bias_row) - own_lse) * (dprobability - own_delta);
          if (lane == 0) {
            gradient[bias_row] += dscore;
          }
        }
        __syncwarp(kFullWarp);
        add_row<V>(dq, dscore, keys[j], lane);
      }
    }
    if (real) {
      T* target = dqkv + query.index * (3 * heads.count * heads.dim) + head * heads.dim;
      VESAL_UNROLL
      for (int i = 0; i < V::kDims; ++i) {
        const int c = dimension<V>(lane, i);
        if (c < heads.dim) {
          target[c] = narrow<T>(heads.scale * dq[i]);
        }
      }
    }
  }
  if (shared_gradient != 0) {
    for (int row = thread % 32; row < g.bias_rows; row += 32) {
      kept[row] = gradient[row];
    }
  }
}

// Block (chunk of window x key tile, head): dk and dv of the keys, and what flows into padding tokens:
// padding [chunks][heads][2][head_dim].
template <class T, class V>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(V::kThreads, 1)
    backward_keys_kernel(WindowGeometry g, Heads heads, const T* VESAL_RESTRICT qkv,
                         const float* VESAL_RESTRICT qkv_bias, const float* VESAL_RESTRICT bias_table,
                         const float* VESAL_RESTRICT lse, const T* VESAL_RESTRICT dout,
                         const float* VESAL_RESTRICT delta, T* VESAL_RESTRICT dqkv,
                         float* VESAL_RESTRICT padding) {
  static_assert(V::kRows <= 2 * kTile && V::kWidth <= V::kThreads);
  VESAL_SHARED(float4, rows, [2 * kTile][V::kWidth / 4]);  // kTile scaled queries, then kTile rows of dout
  VESAL_SHARED(TileToken, tokens, [kTile]);
  VESAL_SHARED(float, row_lse, [kTile]);
  VESAL_SHARED(float, row_delta, [kTile]);
  VESAL_DYN_SHARED(float, shared_table);
  const int thread = static_cast<int>(threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  const int lane = thread % V::kSplit;
  const int own_row = thread / V::kSplit;
  const int key_tiles = (g.tokens + V::kRows - 1) / V::kRows;
  const int64_t items = g.windows * key_tiles;
  const int64_t begin = items * blockIdx.x / gridDim.x;
  const int64_t end = items * (blockIdx.x + 1) / gridDim.x;
  const int centre = (g.bias_rows - 1) / 2;
  const BiasTable bias = enter_bias(g, heads, bias_table, head, shared_table);
  float* flat = reinterpret_cast<float*>(rows);
  float padding_dk = 0.0f;  // thread c: column c
  float padding_dv = 0.0f;
  for (int64_t item = begin; item < end; ++item) {
    const WindowPlace place = window_place(g, item / key_tiles);
    const TileToken key = tile_token(g, place, static_cast<int>(item % key_tiles) * V::kRows + own_row);
    float k[V::kDims];
    float v[V::kDims];
    float dk[V::kDims];
    float dv[V::kDims];
    load_own<V>(heads, qkv, qkv_bias, key.index, key.code, 1, head, lane, 1.0f, k);
    load_own<V>(heads, qkv, qkv_bias, key.index, key.code, 2, head, lane, 1.0f, v);
    VESAL_UNROLL
    for (int i = 0; i < V::kDims; ++i) {
      dk[i] = 0.0f;
      dv[i] = 0.0f;
    }
    for (int first = 0; first < g.tokens; first += kTile) {
      __syncthreads();
      if (thread < kTile) {
        TileToken query = tile_token(g, place, first + thread);
        row_lse[thread] = 0.0f;
        row_delta[thread] = 0.0f;
        if (query.index >= 0) {
          row_lse[thread] = lse[query.index * heads.count + head];
          row_delta[thread] = delta[query.index * heads.count + head];
        } else {
          query.code = kHiddenQuery;
        }
        tokens[thread] = query;
      }
      __syncthreads();
      for (int e = thread; e < kTile * V::kWidth; e += V::kThreads) {
        const int c = e % V::kWidth;
        const TileToken query = tokens[e / V::kWidth];
        flat[e] = heads.scale * part_of(heads, qkv, nullptr, query.index, query.code, 0, head, c);
        flat[kTile * V::kWidth + e] = query.index >= 0 && c < heads.dim
                                          ? widen(dout[(query.index * heads.count + head) * heads.dim + c])
                                          : 0.0f;
      }
      __syncthreads();
      for (int i = 0; i < kTile; ++i) {
        const TileToken query = tokens[i];
        const float dot = dot_row<V>(k, rows[i], lane);
        const float dprobability = dot_row<V>(v, rows[kTile + i], lane);
        float probability = 0.0f;
        if (key.code == query.code) {
          probability = expf(dot + bias_at(bias, query.offset - key.offset + centre) - row_lse[i]);
        }
        const float dscore = probability * (dprobability - row_delta[i]);
        add_row<V>(dv, probability, rows[kTile + i], lane);
        add_row<V>(dk, dscore, rows[i], lane);
      }
    }
    if (key.index >= 0) {
      T* target = dqkv + key.index * (3 * heads.count * heads.dim) + (heads.count + head) * heads.dim;
      VESAL_UNROLL
      for (int i = 0; i < V::kDims; ++i) {
        const int c = dimension<V>(lane, i);
        if (c < heads.dim) {
          target[c] = narrow<T>(dk[i]);
          target[heads.count * heads.dim + c] = narrow<T>(dv[i]);
        }
      }
    }
    const bool padded = key.index < 0 && key.code >= 0;
    if (__syncthreads_or(padded ? 1 : 0) != 0) {
      // First dk, then dv through shared memory; thread c adds column c up in the order of the keys.
      VESAL_UNROLL
      for (int i = 0; i < V::kDims; ++i) {
        flat[own_row * V::kWidth + dimension<V>(lane, i)] = padded ? dk[i] : 0.0f;
      }
      __syncthreads();
      for (int j = 0; thread < V::kWidth && j < V::kRows; ++j) {
        padding_dk += flat[j * V::kWidth + thread];
      }
      __syncthreads();
      VESAL_UNROLL
      for (int i = 0; i < V::kDims; ++i) {
        flat[own_row * V::kWidth + dimension<V>(lane, i)] = padded ? dv[i] : 0.0f;
      }
      __syncthreads();
      for (int j = 0; thread < V::kWidth && j < V::kRows; ++j) {
        padding_dv += flat[j * V::kWidth + thread];
      }
    }
  }
  if (thread < heads.dim) {
    float* target = padding + (static_cast<int64_t>(blockIdx.x) * heads.count + head) * 2 * heads.dim;
    target[thread] = padding_dk;
    target[heads.dim + thread] = padding_dv;
  }
}

// Thread (bias row, head): the sum of all partial tables, in order.
VESAL_KERNEL void sum_tables_kernel(int chunks, int heads, int warps, int bias_rows,
                                    const float* VESAL_RESTRICT tables, float* VESAL_RESTRICT dbias_table,
                                    int accumulate) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  if (row >= bias_rows) {
    return;
  }
  float sum = 0.0f;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    for (int warp = 0; warp < warps; ++warp) {
      sum += tables[((static_cast<int64_t>(chunk) * heads + head) * warps + warp) * bias_rows + row];
    }
  }
  float* target = dbias_table + static_cast<int64_t>(row) * heads + head;
  *target = accumulate != 0 ? *target + sum : sum;
}

// Thread per number of dqkv_bias [3, heads, head_dim]: the sum over chunks, in order; 0 for q, which padding
// never asks.
VESAL_KERNEL void sum_padding_kernel(int chunks, int heads, int head_dim, const float* VESAL_RESTRICT padding,
                                     float* VESAL_RESTRICT dqkv_bias, int accumulate) {
  const int channels = heads * head_dim;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= 3 * channels) {
    return;
  }
  const int part = i / channels;
  const int head = i % channels / head_dim;
  float sum = 0.0f;
  for (int chunk = 0; part > 0 && chunk < chunks; ++chunk) {
    sum += padding[((static_cast<int64_t>(chunk) * heads + head) * 2 + part - 1) * head_dim + i % head_dim];
  }
  dqkv_bias[i] = accumulate != 0 ? dqkv_bias[i] + sum : sum;
}

// How the backward pass is cut, and where its parts lie in the workspace (in floats).
struct BackwardPlan {
  int64_t chunks;
  int warps;
  int64_t tables;
  int64_t padding;
  int64_t delta;
  int64_t total;
};

BackwardPlan plan_backward(const WindowAttentionParams& params) {
  const WindowGeometry g = window_geometry(params);
  BackwardPlan plan{};
  with_variant(params.head_dim, [&](auto variant) {
    using V = decltype(variant);
    const int64_t items = g.windows * ceil_div(g.tokens, V::kRows);
    const int64_t table_bytes =
        int64_t{params.heads} * V::kWarps * g.bias_rows * static_cast<int64_t>(sizeof(float));
    plan.warps = V::kWarps;
    plan.chunks = std::max<int64_t>(
        1, std::min({items, std::max<int64_t>(1, kMaxBlocks / params.heads), kMaxTableBytes / table_bytes}));
  });
  plan.tables = 0;
  plan.padding = plan.chunks * params.heads * plan.warps * g.bias_rows;
  plan.delta = plan.padding + plan.chunks * 2 * params.channels();
  plan.total = plan.delta + params.tokens() * params.heads;
  return plan;
}

int64_t bias_bytes(const WindowGeometry& g) {
  return g.bias_rows > kSharedTableRows ? 0 : int64_t{g.bias_rows} * static_cast<int64_t>(sizeof(float));
}

}  // namespace

void window_attention_forward(Context& context, const WindowAttentionParams& params, ConstData qkv_,
                              ConstData qkv_bias_, ConstData bias_table_, Data out_, float* lse) {
  const float* qkv_bias = qkv_bias_.as<float>("window_attention_forward: qkv_bias");
  const float* bias_table = bias_table_.as<float>("window_attention_forward: bias_table");
  const WindowGeometry g = window_geometry(params);
  const Heads heads{params.heads, params.head_dim, params.scale};
  with_storage("window_attention_forward", {qkv_, out_}, [&]<class T>(T) {
    const T* qkv = qkv_.as<T>("window_attention_forward: qkv");
    T* out = out_.as<T>("window_attention_forward: out");
    with_variant(params.head_dim, [&](auto variant) {
      using V = decltype(variant);
      const int64_t row_tiles = ceil_div(g.tokens, V::kRows);
      launch(context.stream(),
             {.grid = {g.windows * row_tiles, params.heads},
              .block = V::kThreads,
              .shared_bytes = bias_bytes(g)},
             forward_kernel<T, V>, g, heads, qkv, qkv_bias, bias_table, out, lse);
    });
  });
}

size_t window_attention_backward_workspace_bytes(Context&, const WindowAttentionParams& params) {
  return static_cast<size_t>(plan_backward(params).total) * sizeof(float);
}

void window_attention_backward(Context& context, const WindowAttentionParams& params, ConstData qkv_,
                               ConstData qkv_bias_, ConstData bias_table_, ConstData out_, const float* lse,
                               ConstData dout_, Data dqkv_, Data dqkv_bias_, Data dbias_table_, GradMode mode,
                               Workspace workspace) {
  const float* qkv_bias = qkv_bias_.as<float>("window_attention_backward: qkv_bias");
  const float* bias_table = bias_table_.as<float>("window_attention_backward: bias_table");
  float* dqkv_bias = dqkv_bias_.as<float>("window_attention_backward: dqkv_bias");
  float* dbias_table = dbias_table_.as<float>("window_attention_backward: dbias_table");
  const WindowGeometry g = window_geometry(params);
  const Heads heads{params.heads, params.head_dim, params.scale};
  const BackwardPlan plan = plan_backward(params);
  float* scratch = static_cast<float*>(workspace.data);
  float* tables = scratch + plan.tables;
  float* padding = scratch + plan.padding;
  float* delta = scratch + plan.delta;
  const int accumulate = mode == GradMode::accumulate ? 1 : 0;
  with_storage("window_attention_backward", {qkv_, out_, dout_, dqkv_}, [&]<class T>(T) {
    const T* qkv = qkv_.as<T>("window_attention_backward: qkv");
    const T* out = out_.as<T>("window_attention_backward: out");
    const T* dout = dout_.as<T>("window_attention_backward: dout");
    T* dqkv = dqkv_.as<T>("window_attention_backward: dqkv");
    with_variant(params.head_dim, [&](auto variant) {
      using V = decltype(variant);
      const int64_t gradient_bytes = int64_t{g.bias_rows} * V::kWarps * static_cast<int64_t>(sizeof(float));
      const bool shared_gradient = bias_bytes(g) + gradient_bytes <= kSharedGradientBytes;
      launch(context.stream(),
             {.grid = {plan.chunks, params.heads},
              .block = V::kThreads,
              .shared_bytes = bias_bytes(g) + (shared_gradient ? gradient_bytes : 0)},
             backward_queries_kernel<T, V>, g, heads, qkv, qkv_bias, bias_table, out, lse, dout, dqkv, delta,
             tables, shared_gradient ? 1 : 0);
      launch(context.stream(),
             {.grid = {plan.chunks, params.heads}, .block = V::kThreads, .shared_bytes = bias_bytes(g)},
             backward_keys_kernel<T, V>, g, heads, qkv, qkv_bias, bias_table, lse, dout, delta, dqkv,
             padding);
    });
  });
  constexpr int kBlock = 128;
  launch(context.stream(), {.grid = {ceil_div(g.bias_rows, kBlock), params.heads}, .block = kBlock},
         sum_tables_kernel, static_cast<int>(plan.chunks), params.heads, plan.warps, g.bias_rows, tables,
         dbias_table, accumulate);
  if (dqkv_bias != nullptr) {
    launch(context.stream(), {.grid = ceil_div(3 * params.channels(), kBlock), .block = kBlock},
           sum_padding_kernel, static_cast<int>(plan.chunks), params.heads, params.head_dim, padding,
           dqkv_bias, accumulate);
  }
}

}  // namespace VESAL_BACKEND
}  // namespace vesal::kernels
