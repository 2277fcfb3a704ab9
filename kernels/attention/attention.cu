// Attention on a GPU, float32 arithmetic (tiles in shared memory too, whatever q, k and v are stored as), in
// the portable dialect.
//
// What it computes: attention.hpp. For N samples, h heads of d dimensions, Lq queries, Lk keys:
//   forward   at least 2 N h d (Lq + Lk) numbers moved, 4 N h Lq Lk d flops and N h Lq Lk exponentials
//   backward  at least 4 N h d (Lq + Lk) numbers moved; 10 N h Lq Lk d flops in one pass over the scores, 14
//   here,
//             because dq and dk, dv are found in two kernels that each recompute scores and dp (no float
//             atomics)
// What limits it: the float32 units, then shared-memory reads: each thread reads a key's or value's four
// numbers for four multiply-adds. How: a thread (kSplit neighbouring threads where head_dim is large) owns a
// query, or in the second backward kernel a key, with its vectors in registers; blocks step through the other
// side in tiles of kTile tokens in shared memory. A block's part of the axial bias and of its gradient lies
// in shared memory where it fits. Where there are too few of them to fill a GPU, several blocks share the
// other side of the same rows (split_count, by the shape alone), leave partial sums in the workspace, and a
// last kernel adds those in order.
#include <algorithm>

#include "kernels/attention/attention.hpp"
#include "kernels/context/attention_rows_device.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(attention_forward_workspace_bytes)
VESAL_DECLARE_BACKENDS(attention_forward)
VESAL_DECLARE_BACKENDS(attention_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(attention_backward)

namespace VESAL_BACKEND {
namespace {

constexpr int64_t kSharedAxialBytes = 64 * 1024;  // larger ones are read from and added to global memory
// A pass with fewer blocks than kSplitBlocks, about two rounds of a large GPU, is split into as many more as
// fit, of kSplitTokens tokens of the other side or more.
constexpr int64_t kSplitBlocks = 1024;
constexpr int64_t kSplitTokens = 64;
constexpr int64_t kMaxSplits = 32;
constexpr int kCombineThreads = 256;

template <int kDims, int kSplit, int kThreads>
struct Variant : RowLayout<kDims, kSplit, kThreads> {
  // Blocks that share a multiprocessor, at least: leaves 128 registers a thread.
  static constexpr int kBlocks = 512 / kThreads;
  // Keys whose scores a thread holds at once: beside a whole row of 16 numbers there is room for four.
  static constexpr int kGroup = kDims == 16 && kSplit == 1 ? 4 : 8;
  static constexpr int kTile = kDims * kSplit > 128 ? 16 : 32;  // tokens of a tile in shared memory
};

// Calls body(variant) for the smallest variant that holds head_dim.
template <class Body>
void with_variant(int head_dim, Body&& body) {
  if (head_dim <= 8) {
    body(Variant<8, 1, 64>{});
  } else if (head_dim <= 16) {
    body(Variant<16, 1, 64>{});
  } else if (head_dim <= 32) {
    body(Variant<16, 2, 128>{});
  } else if (head_dim <= 64) {
    body(Variant<16, 4, 128>{});
  } else if (head_dim <= 96) {
    body(Variant<12, 8, 128>{});
  } else if (head_dim <= 128) {
    body(Variant<16, 8, 256>{});
  } else {
    body(Variant<16, 16, 256>{});
  }
}

// Among how many blocks `others` tokens are shared, where `rows` of the other side make a block.
int64_t split_count(const AttentionParams& p, int64_t tokens, int64_t rows, int64_t others) {
  const int64_t blocks = p.n * ceil_div(tokens, rows) * p.heads;
  return std::max<int64_t>(1, std::min({kSplitBlocks / blocks, kMaxSplits, others / kSplitTokens}));
}

// Plain data, passed to kernels by value.
struct Geometry {
  int64_t queries, keys;
  int64_t q_stride, k_stride, v_stride;
  int64_t bias_sample,
      bias_head;  // numbers from one sample's or head's bias to the next; 0 where they share it
  int heads, dim;
  float scale;
  int grid[3];           // of the keys
  int axial;             // grid[0] + grid[1] + grid[2]; 0 without an axial bias
  int64_t axial_stride;  // numbers from one query's axial bias to the next one's
};

Geometry geometry_of(const AttentionParams& p, bool axial) {
  Geometry g{};
  g.queries = p.queries;
  g.keys = p.keys;
  g.q_stride = p.q_stride;
  g.k_stride = p.k_stride;
  g.v_stride = p.v_stride;
  g.bias_head = p.bias_heads == 1 ? 0 : p.queries * p.keys;
  g.bias_sample = p.bias_samples == 1 ? 0 : p.bias_heads * p.queries * p.keys;
  g.heads = p.heads;
  g.dim = p.head_dim;
  g.scale = p.scale;
  for (int axis = 0; axis < 3 && axial; ++axis) {
    g.grid[axis] = p.key_grid[static_cast<size_t>(axis)];
    g.axial += g.grid[axis];
  }
  g.axial_stride = int64_t{g.heads} * g.axial;
  return g;
}

// Which sample and which rows of queries or keys a block owns.
struct Place {
  int64_t first;
  int sample;
  int head;
};

template <class V>
VESAL_DEVICE Place block_place(int64_t length) {
  const int64_t tiles = (length + V::kRows - 1) / V::kRows;
  return {blockIdx.x % tiles * V::kRows, static_cast<int>(blockIdx.x / tiles), static_cast<int>(blockIdx.y)};
}

// The tokens of the other side that are this block's.
struct Share {
  int64_t begin, end;
};

template <class V>
VESAL_DEVICE Share block_share(int64_t length) {
  const int64_t tiles = (length + V::kTile - 1) / V::kTile;
  const int64_t begin = tiles * blockIdx.z / gridDim.z * V::kTile;
  const int64_t end = tiles * (blockIdx.z + 1) / gridDim.z * V::kTile;
  return {begin, end < length ? end : length};
}

// A token's vector of one head, times `factor`; zeros where `real` is false, which are not read.
template <class V, class T>
VESAL_DEVICE void load_own(const T* VESAL_RESTRICT row, bool real, int dim, float factor, int lane,
                           float (&own)[V::kDims]) {
  VESAL_UNROLL
  for (int i = 0; i < V::kDims; ++i) {
    const int c = dimension<V>(lane, i);
    own[i] = real && c < dim ? factor * widen(row[c]) : 0.0f;
  }
}

template <class V, class T>
VESAL_DEVICE void store_own(const float (&own)[V::kDims], float factor, int dim, int lane, T* row) {
  VESAL_UNROLL
  for (int i = 0; i < V::kDims; ++i) {
    const int c = dimension<V>(lane, i);
    if (c < dim) {
      row[c] = narrow<T>(factor * own[i]);
    }
  }
}

template <class V>
VESAL_DEVICE void clear(float (&own)[V::kDims]) {
  VESAL_UNROLL
  for (int i = 0; i < V::kDims; ++i) {
    own[i] = 0.0f;
  }
}

// Whether a key is there to be seen, and which entries of a query's axial bias are its.
struct TileKey {
  int visible;
  int axial[3];
};

VESAL_DEVICE TileKey tile_key(const Geometry& g, const uint8_t* VESAL_RESTRICT key_mask, int64_t sample,
                              int64_t key) {
  TileKey result{};
  result.visible = key < g.keys && (key_mask == nullptr || key_mask[sample * g.keys + key] != 0) ? 1 : 0;
  if (g.axial > 0) {
    const int index = static_cast<int>(key);
    const int line = index / g.grid[2];
    result.axial[0] = line / g.grid[1];
    result.axial[1] = g.grid[0] + line % g.grid[1];
    result.axial[2] = g.grid[0] + g.grid[1] + index % g.grid[2];
  }
  return result;
}

// Fills `keys`, and rows of k and v: those of kTile keys from `first` on. Between two barriers of its own.
template <class V, class T>
VESAL_DEVICE void enter_keys(const Geometry& g, const Place& place, const T* VESAL_RESTRICT k,
                             const T* VESAL_RESTRICT v, const uint8_t* VESAL_RESTRICT key_mask, int64_t first,
                             TileKey* keys, float* k_rows, float* v_rows) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (thread < V::kTile) {
    keys[thread] = tile_key(g, key_mask, place.sample, first + thread);
  }
  __syncthreads();
  for (int e = thread; e < V::kTile * V::kWidth; e += V::kThreads) {
    const int j = e / V::kWidth;
    const int c = e % V::kWidth;
    const bool read = keys[j].visible != 0 && c < g.dim;
    const int64_t token = place.sample * g.keys + first + j;
    k_rows[e] = read ? widen(k[token * g.k_stride + place.head * g.dim + c]) : 0.0f;
    v_rows[e] = read ? widen(v[token * g.v_stride + place.head * g.dim + c]) : 0.0f;
  }
  __syncthreads();
}

// What is added to scale * q . k; either row may be null.
VESAL_DEVICE float biased(float score, const float* axial_row, const TileKey& key, const float* bias_row,
                          int64_t j) {
  if (axial_row != nullptr) {
    score += axial_row[key.axial[0]] + axial_row[key.axial[1]] + axial_row[key.axial[2]];
  }
  return bias_row != nullptr ? score + bias_row[j] : score;
}

// The axial bias of a block's queries: rows `stride` apart.
struct AxialRows {
  const float* start;
  int64_t stride;
};

VESAL_DEVICE int shared_axial_stride(int axial) {
  return axial | 1;
}  // odd, so that rows begin in different banks

// In shared memory, the next barrier makes it readable, or where it is.
template <class V>
VESAL_DEVICE AxialRows enter_axial(const Geometry& g, const Place& place,
                                   const float* VESAL_RESTRICT axial_bias, float* shared) {
  const int64_t begin = ((place.sample * g.queries + place.first) * g.heads + place.head) * g.axial;
  if (shared == nullptr) {
    return {axial_bias + begin, g.axial_stride};
  }
  const int own_stride = shared_axial_stride(g.axial);
  for (int row = static_cast<int>(threadIdx.x) / 32; row < V::kRows; row += V::kThreads / 32) {
    for (int a = static_cast<int>(threadIdx.x) % 32; a < g.axial && place.first + row < g.queries; a += 32) {
      shared[row * own_stride + a] = axial_bias[begin + row * g.axial_stride + a];
    }
  }
  return {shared, own_stride};
}

VESAL_DEVICE const float* query_bias_row(const Geometry& g, const Place& place, const float* bias,
                                         int64_t query) {
  return bias + place.sample * g.bias_sample + place.head * g.bias_head + query * g.keys;
}

// What the blocks that share a query's keys leave for combine_kernel: [split][row] the largest score and the
// sum of exp(score - largest), [split][row][dim] the sum of the values times that.
struct Partials {
  float *largest, *sum, *values;
};

// Block (sample x query tile, head, split): out and lse of kRows queries, or their partials.
template <class T, class V>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(V::kThreads, V::kBlocks)
    forward_kernel(Geometry g, const T* VESAL_RESTRICT q, const T* VESAL_RESTRICT k,
                   const T* VESAL_RESTRICT v, const uint8_t* VESAL_RESTRICT key_mask,
                   const float* VESAL_RESTRICT bias, const float* VESAL_RESTRICT axial_bias,
                   T* VESAL_RESTRICT out, float* VESAL_RESTRICT lse, Partials partials, int64_t rows,
                   int shared_axial) {
  VESAL_SHARED(float4, k_rows, [V::kTile][V::kWidth / 4]);
  VESAL_SHARED(float4, v_rows, [V::kTile][V::kWidth / 4]);
  VESAL_SHARED(TileKey, keys, [V::kTile]);
  VESAL_DYN_SHARED(float, dynamic);
  const Place place = block_place<V>(g.queries);
  const int lane = static_cast<int>(threadIdx.x) % V::kSplit;
  const int own_row = static_cast<int>(threadIdx.x) / V::kSplit;
  const int64_t query = place.first + own_row;
  const bool real = query < g.queries;
  const int64_t row = (place.sample * g.queries + query) * g.heads + place.head;
  const float* axial_row = nullptr;
  if (g.axial > 0) {
    const AxialRows axial = enter_axial<V>(g, place, axial_bias, shared_axial != 0 ? dynamic : nullptr);
    axial_row = real ? axial.start + own_row * axial.stride : nullptr;
  }
  const float* bias_row = real && bias != nullptr ? query_bias_row(g, place, bias, query) : nullptr;
  float own[V::kDims];
  float sum_out[V::kDims];
  load_own<V>(q + (place.sample * g.queries + query) * g.q_stride + place.head * g.dim, real, g.dim, g.scale,
              lane, own);
  clear<V>(sum_out);
  float largest = -INFINITY;
  float sum = 0.0f;
  const Share share = block_share<V>(g.keys);
  if (bias_row != nullptr) {
    bias_row += share.begin;
  }
  for (int64_t first = share.begin; first < share.end; first += V::kTile) {
    enter_keys<V>(g, place, k, v, key_mask, first, keys, reinterpret_cast<float*>(k_rows),
                  reinterpret_cast<float*>(v_rows));
    for (int group = 0; group < V::kTile; group += V::kGroup) {
      float scores[V::kGroup];
      float top = largest;
      VESAL_UNROLL
      for (int j = 0; j < V::kGroup; ++j) {
        scores[j] = dot_row<V>(own, k_rows[group + j], lane);
      }
      // A loop of its own: the keys' places need not lie in registers beside their vectors.
      VESAL_UNROLL
      for (int j = 0; j < V::kGroup; ++j) {
        const TileKey key = keys[group + j];
        scores[j] = key.visible != 0 ? biased(scores[j], axial_row, key, bias_row, group + j) : -INFINITY;
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
      for (int j = 0; j < V::kGroup; ++j) {
        const float e = expf(scores[j] - reference);
        sum += e;
        add_row<V>(sum_out, e, v_rows[group + j], lane);
      }
    }
    if (bias_row != nullptr) {
      bias_row += V::kTile;
    }
  }
  if (!real) {
    return;
  }
  if (gridDim.z > 1) {
    const int64_t part = blockIdx.z * rows + row;
    store_own<V>(sum_out, 1.0f, g.dim, lane, partials.values + part * g.dim);
    if (lane == 0) {
      partials.largest[part] = largest;
      partials.sum[part] = sum;
    }
    return;
  }
  const bool attended = largest != -INFINITY;
  store_own<V>(sum_out, attended ? 1.0f / sum : 0.0f, g.dim, lane, out + row * g.dim);
  if (lse != nullptr && lane == 0) {
    lse[row] = attended ? largest + logf(sum) : 0.0f;
  }
}

// Thread (row, dimension): out and lse from the partials, in the order of the splits.
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kCombineThreads)
    combine_kernel(int64_t rows, int dim, int splits, const float* VESAL_RESTRICT largest,
                   const float* VESAL_RESTRICT sum, const float* VESAL_RESTRICT values, T* VESAL_RESTRICT out,
                   float* VESAL_RESTRICT lse) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x;
  if (i >= rows * dim) {
    return;
  }
  const int64_t row = i / dim;
  float top = -INFINITY;
  for (int split = 0; split < splits; ++split) {
    top = fmaxf(top, largest[split * rows + row]);
  }
  const bool attended = top != -INFINITY;
  const float reference = attended ? top : 0.0f;
  float total = 0.0f;
  float value = 0.0f;
  for (int split = 0; split < splits; ++split) {
    const int64_t part = split * rows + row;
    const float factor = expf(largest[part] - reference);
    total = fmaf(factor, sum[part], total);
    value = fmaf(factor, values[part * dim + i % dim], value);
  }
  out[i] = narrow<T>(attended ? value / total : 0.0f);
  if (lse != nullptr && i % dim == 0) {
    lse[row] = attended ? top + logf(total) : 0.0f;
  }
}

// Thread (token, head, number): `factor` times the sum of the splits' partials [split][token, head][count],
// in order; tokens of the target are `stride` apart.
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kCombineThreads)
    add_partials_kernel(int64_t tokens, int heads, int count, int splits,
                        const float* VESAL_RESTRICT partials, float factor, T* VESAL_RESTRICT target,
                        int64_t stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x;
  const int64_t width = static_cast<int64_t>(heads) * count;
  if (i >= tokens * width) {
    return;
  }
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) {
    sum += partials[split * tokens * width + i];
  }
  target[i / width * stride + i % width] = narrow<T>(factor * sum);
}

// Block (sample x query tile, head, split): dq, delta and daxial_bias of kRows queries; where the keys are
// split, partial sums of dq and daxial_bias, [split][row][dim] and [split][row][axial], instead.
template <class T, class V>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(V::kThreads, V::kBlocks)
    query_gradients_kernel(Geometry g, const T* VESAL_RESTRICT q, const T* VESAL_RESTRICT k,
                           const T* VESAL_RESTRICT v, const uint8_t* VESAL_RESTRICT key_mask,
                           const float* VESAL_RESTRICT bias, const float* VESAL_RESTRICT axial_bias,
                           const T* VESAL_RESTRICT out, const float* VESAL_RESTRICT lse,
                           const T* VESAL_RESTRICT dout, T* VESAL_RESTRICT dq, float* VESAL_RESTRICT delta,
                           float* daxial_bias, float* VESAL_RESTRICT partials, int64_t rows,
                           int shared_axial) {
  VESAL_SHARED(float4, k_rows, [V::kTile][V::kWidth / 4]);
  VESAL_SHARED(float4, v_rows, [V::kTile][V::kWidth / 4]);
  VESAL_SHARED(TileKey, keys, [V::kTile]);
  VESAL_DYN_SHARED(float, dynamic);
  const Place place = block_place<V>(g.queries);
  const int lane = static_cast<int>(threadIdx.x) % V::kSplit;
  const int own_row = static_cast<int>(threadIdx.x) / V::kSplit;
  const int64_t query = place.first + own_row;
  const bool real = query < g.queries;
  const int64_t row = (place.sample * g.queries + query) * g.heads + place.head;
  daxial_bias += blockIdx.z * rows * g.axial;
  const float* axial_row = nullptr;
  float* axial_sums = nullptr;  // of this row; only lane 0 adds to them
  if (g.axial > 0) {
    const AxialRows axial = enter_axial<V>(g, place, axial_bias, shared_axial != 0 ? dynamic : nullptr);
    if (real) {
      axial_row = axial.start + own_row * axial.stride;
      axial_sums =
          shared_axial != 0 ? dynamic + (V::kRows + own_row) * axial.stride : daxial_bias + row * g.axial;
      for (int a = 0; a < g.axial && lane == 0; ++a) {
        axial_sums[a] = 0.0f;
      }
    }
  }
  const float* bias_row = real && bias != nullptr ? query_bias_row(g, place, bias, query) : nullptr;
  float own[V::kDims];
  float drow[V::kDims];
  float sum_dq[V::kDims];
  load_own<V>(q + (place.sample * g.queries + query) * g.q_stride + place.head * g.dim, real, g.dim, g.scale,
              lane, own);
  load_own<V>(dout + row * g.dim, real, g.dim, 1.0f, lane, drow);
  clear<V>(sum_dq);
  float own_delta = 0.0f;
  VESAL_UNROLL
  for (int i = 0; i < V::kDims; ++i) {
    const int c = dimension<V>(lane, i);
    if (real && c < g.dim) {
      own_delta = fmaf(drow[i], widen(out[row * g.dim + c]), own_delta);
    }
  }
  own_delta = sum_split<V>(own_delta);
  const float own_lse = real ? lse[row] : 0.0f;
  if (real && lane == 0 && blockIdx.z == 0) {
    delta[row] = own_delta;
  }
  const Share share = block_share<V>(g.keys);
  for (int64_t first = share.begin; first < share.end; first += V::kTile) {
    enter_keys<V>(g, place, k, v, key_mask, first, keys, reinterpret_cast<float*>(k_rows),
                  reinterpret_cast<float*>(v_rows));
    for (int j = 0; j < V::kTile && first + j < share.end; ++j) {
      const TileKey key = keys[j];
      const float dot = dot_row<V>(own, k_rows[j], lane);
      const float dprobability = dot_row<V>(drow, v_rows[j], lane);
      float dscore = 0.0f;
      if (real && key.visible != 0) {
        const float score = biased(dot, axial_row, key, bias_row, first + j);
        dscore = expf(score - own_lse) * (dprobability - own_delta);
        if (axial_sums != nullptr && lane == 0) {
          axial_sums[key.axial[0]] += dscore;
          axial_sums[key.axial[1]] += dscore;
          axial_sums[key.axial[2]] += dscore;
        }
      }
      add_row<V>(sum_dq, dscore, k_rows[j], lane);
    }
  }
  if (real) {
    if (gridDim.z > 1) {
      store_own<V>(sum_dq, 1.0f, g.dim, lane, partials + (blockIdx.z * rows + row) * g.dim);
    } else {
      store_own<V>(sum_dq, g.scale, g.dim, lane,
                   dq + (place.sample * g.queries + query) * g.q_stride + place.head * g.dim);
    }
    if (shared_axial != 0 && lane == 0) {
      for (int a = 0; a < g.axial; ++a) {
        daxial_bias[row * g.axial + a] = axial_sums[a];
      }
    }
  }
}

// Block (sample x key tile, head, split): dk and dv of kRows keys; where the queries are split, partial sums
// of both, [split][token, head][dim], instead.
template <class T, class V>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(V::kThreads, V::kBlocks)
    key_gradients_kernel(Geometry g, const T* VESAL_RESTRICT q, const T* VESAL_RESTRICT k,
                         const T* VESAL_RESTRICT v, const uint8_t* VESAL_RESTRICT key_mask,
                         const float* VESAL_RESTRICT bias, const float* VESAL_RESTRICT axial_bias,
                         const float* VESAL_RESTRICT lse, const T* VESAL_RESTRICT dout,
                         const float* VESAL_RESTRICT delta, T* VESAL_RESTRICT dk, T* VESAL_RESTRICT dv,
                         float* VESAL_RESTRICT partial_dk, float* VESAL_RESTRICT partial_dv, int64_t rows) {
  VESAL_SHARED(float4, q_rows, [V::kTile][V::kWidth / 4]);  // times scale
  VESAL_SHARED(float4, dout_rows, [V::kTile][V::kWidth / 4]);
  VESAL_SHARED(float, row_lse, [V::kTile]);
  VESAL_SHARED(float, row_delta, [V::kTile]);
  const Place place = block_place<V>(g.keys);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % V::kSplit;
  const int64_t key_index = place.first + thread / V::kSplit;
  const TileKey key = tile_key(g, key_mask, place.sample, key_index);
  const bool visible = key.visible != 0;
  const bool real = key_index < g.keys;
  const int64_t token = place.sample * g.keys + key_index;
  // What is added to this key's score, of the query at hand: pointers that step from query to query, since
  // registers are short.
  const Share share = block_share<V>(g.queries);
  const float* axial_row =
      g.axial > 0 ? axial_bias + ((place.sample * g.queries + share.begin) * g.heads + place.head) * g.axial
                  : nullptr;
  const float* bias_entry =
      bias != nullptr ? query_bias_row(g, place, bias, share.begin) + key_index : nullptr;
  float own_k[V::kDims];
  float own_v[V::kDims];
  float sum_dk[V::kDims];
  float sum_dv[V::kDims];
  load_own<V>(k + token * g.k_stride + place.head * g.dim, visible, g.dim, 1.0f, lane, own_k);
  load_own<V>(v + token * g.v_stride + place.head * g.dim, visible, g.dim, 1.0f, lane, own_v);
  clear<V>(sum_dk);
  clear<V>(sum_dv);
  for (int64_t first = share.begin; first < share.end; first += V::kTile) {
    __syncthreads();
    for (int e = thread; e < V::kTile * V::kWidth; e += V::kThreads) {
      const int c = e % V::kWidth;
      const int64_t query = first + e / V::kWidth;
      const bool read = query < g.queries && c < g.dim;
      const int64_t query_token = place.sample * g.queries + query;
      reinterpret_cast<float*>(q_rows)[e] =
          read ? g.scale * widen(q[query_token * g.q_stride + place.head * g.dim + c]) : 0.0f;
      reinterpret_cast<float*>(dout_rows)[e] =
          read ? widen(dout[(query_token * g.heads + place.head) * g.dim + c]) : 0.0f;
    }
    const int count = static_cast<int>(g.queries - first < V::kTile ? g.queries - first : V::kTile);
    if (thread < count) {
      const int64_t row = (place.sample * g.queries + first + thread) * g.heads + place.head;
      row_lse[thread] = lse[row];
      row_delta[thread] = delta[row];
    }
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      const float dot = dot_row<V>(own_k, q_rows[i], lane);
      const float probability =
          visible ? expf(biased(dot, axial_row, key, bias_entry, 0) - row_lse[i]) : 0.0f;
      if (axial_row != nullptr) {
        axial_row += g.axial_stride;
      }
      if (bias_entry != nullptr) {
        bias_entry += g.keys;
      }
      add_row<V>(sum_dv, probability, dout_rows[i], lane);
      // Only now: one more number beside the score's reads would not fit in the registers.
      const float dprobability = dot_row<V>(own_v, dout_rows[i], lane);
      add_row<V>(sum_dk, probability * (dprobability - row_delta[i]), q_rows[i], lane);
    }
  }
  if (real) {
    if (gridDim.z > 1) {
      const int64_t part = (blockIdx.z * rows + token * g.heads + place.head) * g.dim;
      store_own<V>(sum_dk, 1.0f, g.dim, lane, partial_dk + part);
      store_own<V>(sum_dv, 1.0f, g.dim, lane, partial_dv + part);
    } else {
      store_own<V>(sum_dk, 1.0f, g.dim, lane, dk + token * g.k_stride + place.head * g.dim);
      store_own<V>(sum_dv, 1.0f, g.dim, lane, dv + token * g.v_stride + place.head * g.dim);
    }
  }
}

// Bytes of shared memory for `arrays` arrays of a block's axial bias; 0 where they would be too many.
template <class V>
int64_t shared_axial_bytes(const Geometry& g, int arrays) {
  const int64_t bytes =
      int64_t{arrays} * V::kRows * (int64_t{g.axial} | 1) * static_cast<int64_t>(sizeof(float));
  return g.axial > 0 && bytes <= kSharedAxialBytes ? bytes : 0;
}

// How the passes over a shape are split, and where their partial sums lie in the workspaces (in floats).
struct Plan {
  int64_t rows, tokens;                                 // of queries, and of keys, times heads
  int64_t forward_splits, query_splits, key_splits;     // of the keys for out, and for dq; of the queries
  int64_t largest, sum, values, forward_total;          // forward
  int64_t delta, partials, daxial, dv, backward_total;  // backward; dk's lie where dq's have been added up
};

Plan plan_of(const AttentionParams& p) {
  Plan plan{};
  plan.rows = p.n * p.queries * p.heads;
  plan.tokens = p.n * p.keys * p.heads;
  with_variant(p.head_dim, [&](auto variant) {
    using V = decltype(variant);
    plan.forward_splits = plan.query_splits = split_count(p, p.queries, V::kRows, p.keys);
    plan.key_splits = split_count(p, p.keys, V::kRows, p.queries);
  });
  if (plan.forward_splits > 1) {
    plan.sum = plan.forward_splits * plan.rows;
    plan.values = 2 * plan.sum;
    plan.forward_total = plan.values + plan.sum * p.head_dim;
  }
  // The grid means something only where it is the keys'.
  const auto& [d, h, w] = p.key_grid;
  const bool grid = d >= 1 && h >= 1 && w >= 1 && int64_t{d} * h <= p.keys && int64_t{d} * h * w == p.keys;
  const int64_t query_parts = plan.query_splits > 1 ? plan.query_splits * plan.rows : 0;
  const int64_t key_parts = plan.key_splits > 1 ? plan.key_splits * plan.tokens : 0;
  plan.partials = plan.rows;
  plan.daxial = plan.partials + query_parts * p.head_dim;
  plan.dv = plan.partials + key_parts * p.head_dim;
  plan.backward_total =
      std::max(plan.daxial + query_parts * (grid ? p.axial_size() : 0), plan.dv + key_parts * p.head_dim);
  return plan;
}

template <class T>
void add_partials(StreamHandle stream, int64_t tokens, int heads, int count, int64_t splits,
                  const float* partials, float factor, T* target, int64_t stride) {
  launch(stream, {.grid = ceil_div(tokens * heads * count, kCombineThreads), .block = kCombineThreads},
         add_partials_kernel<T>, tokens, heads, count, static_cast<int>(splits), partials, factor, target,
         stride);
}

}  // namespace

size_t attention_forward_workspace_bytes(Context&, const AttentionParams& params) {
  return static_cast<size_t>(plan_of(params).forward_total) * sizeof(float);
}

void attention_forward(Context& context, const AttentionParams& params, const AttentionInputs& inputs,
                       Data out_, float* lse, Workspace workspace) {
  const float* bias = inputs.bias.as<float>("attention_forward: bias");
  const float* axial_bias = inputs.axial_bias.as<float>("attention_forward: axial_bias");
  const Geometry g = geometry_of(params, axial_bias != nullptr);
  const Plan plan = plan_of(params);
  float* scratch = static_cast<float*>(workspace.data);
  const Partials partials = plan.forward_splits > 1
                                ? Partials{scratch + plan.largest, scratch + plan.sum, scratch + plan.values}
                                : Partials{};
  with_storage("attention_forward", {inputs.q, inputs.k, inputs.v, out_}, [&]<class T>(T) {
    const T* q = inputs.q.as<T>("attention_forward: q");
    const T* k = inputs.k.as<T>("attention_forward: k");
    const T* v = inputs.v.as<T>("attention_forward: v");
    T* out = out_.as<T>("attention_forward: out");
    with_variant(params.head_dim, [&](auto variant) {
      using V = decltype(variant);
      const int64_t shared = shared_axial_bytes<V>(g, 1);
      launch(context.stream(),
             {.grid = {params.n * ceil_div(params.queries, V::kRows), params.heads, plan.forward_splits},
              .block = V::kThreads,
              .shared_bytes = shared},
             forward_kernel<T, V>, g, q, k, v, inputs.key_mask, bias, axial_bias, out, lse, partials,
             plan.rows, shared > 0 ? 1 : 0);
    });
    if (plan.forward_splits > 1) {
      launch(context.stream(),
             {.grid = ceil_div(plan.rows * params.head_dim, kCombineThreads), .block = kCombineThreads},
             combine_kernel<T>, plan.rows, params.head_dim, static_cast<int>(plan.forward_splits),
             static_cast<const float*>(partials.largest), static_cast<const float*>(partials.sum),
             static_cast<const float*>(partials.values), out, lse);
    }
  });
}

size_t attention_backward_workspace_bytes(Context&, const AttentionParams& params) {
  return static_cast<size_t>(plan_of(params).backward_total) * sizeof(float);
}

void attention_backward(Context& context, const AttentionParams& params, const AttentionInputs& inputs,
                        ConstData out_, const float* lse, ConstData dout_,
                        const AttentionGradients& gradients, Workspace workspace) {
  const float* bias = inputs.bias.as<float>("attention_backward: bias");
  const float* axial_bias = inputs.axial_bias.as<float>("attention_backward: axial_bias");
  float* daxial_bias = gradients.daxial_bias.as<float>("attention_backward: daxial_bias");
  const Geometry g = geometry_of(params, axial_bias != nullptr);
  const Plan plan = plan_of(params);
  float* scratch = static_cast<float*>(workspace.data);
  float* delta = scratch + plan.delta;
  const bool split_keys = plan.query_splits > 1;
  const bool split_queries = plan.key_splits > 1;
  float* partial_dq = split_keys ? scratch + plan.partials : nullptr;
  float* partial_daxial = split_keys && g.axial > 0 ? scratch + plan.daxial : nullptr;
  float* partial_dk = split_queries ? scratch + plan.partials : nullptr;
  float* partial_dv = split_queries ? scratch + plan.dv : nullptr;
  with_storage(
      "attention_backward",
      {inputs.q, inputs.k, inputs.v, out_, dout_, gradients.dq, gradients.dk, gradients.dv}, [&]<class T>(T) {
        const T* q = inputs.q.as<T>("attention_backward: q");
        const T* k = inputs.k.as<T>("attention_backward: k");
        const T* v = inputs.v.as<T>("attention_backward: v");
        const T* out = out_.as<T>("attention_backward: out");
        const T* dout = dout_.as<T>("attention_backward: dout");
        T* dq = gradients.dq.as<T>("attention_backward: dq");
        T* dk = gradients.dk.as<T>("attention_backward: dk");
        T* dv = gradients.dv.as<T>("attention_backward: dv");
        with_variant(params.head_dim, [&](auto variant) {
          using V = decltype(variant);
          const int64_t shared = shared_axial_bytes<V>(g, 2);
          launch(context.stream(),
                 {.grid = {params.n * ceil_div(params.queries, V::kRows), params.heads, plan.query_splits},
                  .block = V::kThreads,
                  .shared_bytes = shared},
                 query_gradients_kernel<T, V>, g, q, k, v, inputs.key_mask, bias, axial_bias, out, lse, dout,
                 dq, delta, split_keys ? partial_daxial : daxial_bias, partial_dq, plan.rows,
                 shared > 0 ? 1 : 0);
          if (split_keys) {
            add_partials(context.stream(), params.n * params.queries, params.heads, params.head_dim,
                         plan.query_splits, partial_dq, params.scale, dq, params.q_stride);
            if (g.axial > 0) {
              add_partials(context.stream(), params.n * params.queries, params.heads, g.axial,
                           plan.query_splits, partial_daxial, 1.0f, daxial_bias, g.axial_stride);
            }
          }
          launch(context.stream(),
                 {.grid = {params.n * ceil_div(params.keys, V::kRows), params.heads, plan.key_splits},
                  .block = V::kThreads},
                 key_gradients_kernel<T, V>, g, q, k, v, inputs.key_mask, bias, axial_bias, lse, dout, delta,
                 dk, dv, partial_dk, partial_dv, plan.tokens);
          if (split_queries) {
            add_partials(context.stream(), params.n * params.keys, params.heads, params.head_dim,
                         plan.key_splits, partial_dk, 1.0f, dk, params.k_stride);
            add_partials(context.stream(), params.n * params.keys, params.heads, params.head_dim,
                         plan.key_splits, partial_dv, 1.0f, dv, params.v_stride);
          }
        });
      });
}

}  // namespace VESAL_BACKEND
}  // namespace vesal::kernels
