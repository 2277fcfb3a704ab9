// Attention on a GPU, float32 arithmetic (tiles in shared memory too, whatever q, k and v are stored as), in
// the portable dialect.
//
// What it computes: attention.hpp. For N samples, h heads of d dimensions, Lq queries, Lk keys:
//   forward   at least 2 N h d (Lq + Lk) numbers moved, 4 N h Lq Lk d flops and N h Lq Lk exponentials
//   backward  at least 4 N h d (Lq + Lk) numbers moved; 10 N h Lq Lk d flops in one pass over the scores, 14
//   here,
//             because dq and dk, dv are found in two kernels that each recompute scores and dp (no float
//             atomics)
// What limits it: the float32 units, then shared-memory reads. How: a block owns kRows queries, or in the
// second backward kernel keys, and steps through kCols tokens of the other side at a time. Scores and sums
// are products of tiles in shared memory: a thread has kOwn rows, every second one of its warp's, by every
// 16th column of the scores, and by four dimensions of each chunk of the sums, so that it reads four numbers
// at once and uses each several times. Scores become probabilities in registers and go back through shared
// memory, within a warp. Heads of more than 64 dimensions are cut into chunks of 64, which share one tile.
// Where there are too few blocks to fill a GPU, several share the other side of the same rows (split_count,
// by the shape alone), leave partial sums in the workspace, and a last kernel adds those in order.
#include <algorithm>
#include <initializer_list>

#include "kernels/attention/attention.hpp"
#include "kernels/context/block_reduce.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/quads.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/simt/device.hpp"
#include "kernels/simt/rolled.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(attention_forward_workspace_bytes)
VESAL_DECLARE_BACKENDS(attention_forward)
VESAL_DECLARE_BACKENDS(attention_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(attention_backward)

namespace VESAL_BACKEND {
namespace {

// Of dynamic shared memory; an axial bias beyond that is read from and its gradient added to global memory.
constexpr int64_t kMostShared = 96 * 1024;
constexpr int64_t kMaxSplits = 32;
constexpr int kCombineThreads = 256;
constexpr int kPartQuads = 4;  // of dimensions that a product adds up at a time
constexpr int kDeltaThreads = 128;
constexpr int kDeltaRows = 32;
constexpr int kDeltaDims = 64;

// Sizes of tiles. kWidth is head_dim padded.
template <int kWidthValue, int kRowsValue, int kColsValue>
struct TileLayout {
  static constexpr int kWidth = kWidthValue;
  static constexpr int kThreads = 256;
  static constexpr int kRows = kRowsValue;  // of the block's own side
  static constexpr int kCols = kColsValue;  // tokens of the other side at a time
  static constexpr int kBlocks =
      512 / kThreads;  // that share a multiprocessor: leaves 128 registers a thread
  static constexpr int kWarpRows = kRows / (kThreads / 32);
  static constexpr int kOwn = kWarpRows / 2;                // rows of a thread
  static constexpr int kScores = kCols / 16;                // columns of a thread
  static constexpr int kChunk = kWidth < 64 ? kWidth : 64;  // dimensions in shared memory at a time
  static constexpr int kChunks = kWidth / kChunk;
  static constexpr int kLanes = kChunk / 4;           // lanes that share out a chunk's dimensions
  static constexpr int kGroups = 16 / kLanes;         // groups of them share out the other side's tokens
  static constexpr int kStride = kLanes + 1;          // float4s of a row: rows begin in different banks
  static constexpr int kScoreStride = kCols / 4 + 4;  // float4s; a warp's two rows write different banks
  static constexpr int own_tiles() { return kChunks == 1 ? 2 : 1; }  // of the backward kernels
  static_assert(kRows * kLanes % kThreads == 0 && kCols * kLanes % kThreads == 0);
  static_assert(kRows <= kThreads && kCols <= kThreads);

  // Bytes of shared memory with `own` tiles of the block's side.
  static constexpr int64_t bytes(int own) {
    return 16 * int64_t{own * kRows * kStride + kCols * kStride + kRows * kScoreStride};
  }
};

// Calls body(layout of the forward pass, of dq, of dk and dv) for the smallest that hold head_dim.
template <class Body>
void with_layouts(int head_dim, Body&& body) {
  if (head_dim <= 16) {
    body(TileLayout<16, 64, 64>{}, TileLayout<16, 64, 64>{}, TileLayout<16, 64, 64>{});
  } else if (head_dim <= 32) {
    body(TileLayout<32, 64, 64>{}, TileLayout<32, 64, 64>{}, TileLayout<32, 64, 64>{});
  } else if (head_dim <= 64) {
    body(TileLayout<64, 64, 64>{}, TileLayout<64, 64, 64>{}, TileLayout<64, 64, 64>{});
  } else if (head_dim <= 128) {
    body(TileLayout<128, 64, 32>{}, TileLayout<128, 32, 64>{}, TileLayout<128, 32, 32>{});
  } else {
    body(TileLayout<256, 32, 64>{}, TileLayout<256, 32, 32>{}, TileLayout<256, 32, 32>{});
  }
}

// Among how many blocks the steps through `others` tokens are shared, where V::kRows of `tokens` make a
// block: as many as leave a large GPU one round of blocks.
template <class V>
int64_t split_count(const AttentionParams& p, int64_t tokens, int64_t others) {
  constexpr int64_t kRound = 132 * V::kBlocks;
  const int64_t blocks = p.n * ceil_div(tokens, V::kRows) * p.heads;
  return std::max<int64_t>(1, std::min({kRound / blocks, kMaxSplits, ceil_div(others, V::kCols)}));
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
  const int tiles = static_cast<int>((length + V::kRows - 1) / V::kRows);
  const int block = static_cast<int>(blockIdx.x);
  return {int64_t{block % tiles} * V::kRows, block / tiles, static_cast<int>(blockIdx.y)};
}

// The tokens of the other side that are this block's.
struct Share {
  int64_t begin, end;
};

template <class V>
VESAL_DEVICE Share block_share(int64_t length) {
  const auto tiles = static_cast<unsigned>((length + V::kCols - 1) / V::kCols);  // below 2^26, of 32 shares
  const int64_t begin = int64_t{tiles * blockIdx.z / gridDim.z} * V::kCols;
  const int64_t end = int64_t{tiles * (blockIdx.z + 1) / gridDim.z} * V::kCols;
  return {begin, end < length ? end : length};
}

VESAL_DEVICE int at_most(int64_t count, int limit) { return count < limit ? static_cast<int>(count) : limit; }

// A thread's part of the tiles: rows row + 2 i, columns lane + 16 j.
struct Cell {
  int lane, row;
  int warp_row;  // the warp's first
};

template <class V>
VESAL_DEVICE Cell own_cell() {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp_row = thread / 32 * V::kWarpRows;
  // Neighbouring lanes have one column: a warp reads its 16 columns and 2 rows in few passes.
  return {thread % 32 / 2, warp_row + thread % 2, warp_row};
}

// Fills rows of a tile with a chunk of the dimensions of as many tokens' vectors, times `factor`: `count`
// rounded up to sixteens, of kN. Rows that admit(row) refuses, which are not read, and what lies beyond dim
// are zeros. `wide`: four numbers can be read at once.
template <class V, int kN, class T, class Admit>
VESAL_DEVICE void load_tile(const T* VESAL_RESTRICT first, int64_t stride, int count, int chunk, int dim,
                            float factor, int wide, float4* tile, const Admit& admit) {
  constexpr int kStep = V::kThreads / V::kLanes;
  // Reads on their way at a time; widening takes registers too.
  constexpr int kMost = sizeof(T) == sizeof(float) || V::kWidth != 32 ? 4 : 1;
  constexpr int kBatch = kN / kStep < kMost ? kN / kStep : kMost;
  const int quad = static_cast<int>(threadIdx.x) % V::kLanes;
  const int c = chunk * V::kChunk + quad * 4;
  const int end = (count + 15) / 16 * 16;
  VESAL_ROLLED
  for (int begin = static_cast<int>(threadIdx.x) / V::kLanes; begin < end; begin += kBatch * kStep) {
    float4 values[kBatch];
    VESAL_UNROLL
    for (int k = 0; k < kBatch; ++k) {
      const int row = begin + k * kStep;
      values[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (c < dim && row < count && admit(row)) {
        const T* source = first + row * stride + c;
        if (wide != 0) {
          values[k] = load4(Input<T>{source});
        } else {
          values[k].x = widen(source[0]);
          values[k].y = c + 1 < dim ? widen(source[1]) : 0.0f;
          values[k].z = c + 2 < dim ? widen(source[2]) : 0.0f;
          values[k].w = c + 3 < dim ? widen(source[3]) : 0.0f;
        }
      }
    }
    VESAL_UNROLL
    for (int k = 0; k < kBatch; ++k) {
      tile[(begin + k * kStep) * V::kStride + quad] =
          make_float4(factor * values[k].x, factor * values[k].y, factor * values[k].z, factor * values[k].w);
    }
  }
}

struct AllRows {
  VESAL_DEVICE bool operator()(int) const { return true; }
};

// Chunks that hold dimensions.
template <class V>
VESAL_DEVICE int chunk_count(int dim) {
  return V::kChunks == 1 ? 1 : (dim + V::kChunk - 1) / V::kChunk;
}

// Quads of a chunk that hold dimensions.
template <class V>
VESAL_DEVICE int chunk_quads(int chunk, int dim) {
  return (at_most(dim - chunk * V::kChunk, V::kChunk) + 3) / 4;
}

template <int kCount>
VESAL_DEVICE void clear(float (&sums)[kCount]) {
  VESAL_UNROLL
  for (int i = 0; i < kCount; ++i) {
    sums[i] = 0.0f;
  }
}
template <int kCount, class Row>
VESAL_DEVICE void clear(Row (&sums)[kCount]) {
  VESAL_UNROLL
  for (int i = 0; i < kCount; ++i) {
    clear(sums[i]);
  }
}

// Columns kFirst to kFirst + kCount of add_products. kPartQuads quads of dimensions are added up by
// themselves first, which keeps rounding errors of long heads small.
template <class V, int kFirst, int kCount>
VESAL_DEVICE void add_columns(const float4* own, const float4* others, int quads,
                              float (&sums)[V::kOwn][V::kScores]) {
  VESAL_ROLLED
  for (int begin = 0; begin < quads; begin += kPartQuads) {
    const int end = begin + kPartQuads < quads ? begin + kPartQuads : quads;
    float part[V::kOwn][kCount];
    clear(part);
    VESAL_ROLLED
    for (int t = begin; t < end; ++t) {
      float4 b[kCount];
      VESAL_UNROLL
      for (int j = 0; j < kCount; ++j) {
        b[j] = others[(kFirst + j) * 16 * V::kStride + t];
      }
      VESAL_UNROLL
      for (int i = 0; i < V::kOwn; ++i) {
        const float4 a = own[2 * i * V::kStride + t];
        VESAL_UNROLL
        for (int j = 0; j < kCount; ++j) {
          part[i][j] = fmaf(a.x, b[j].x, part[i][j]);
          part[i][j] = fmaf(a.y, b[j].y, part[i][j]);
          part[i][j] = fmaf(a.z, b[j].z, part[i][j]);
          part[i][j] = fmaf(a.w, b[j].w, part[i][j]);
        }
      }
    }
    VESAL_UNROLL
    for (int i = 0; i < V::kOwn; ++i) {
      VESAL_UNROLL
      for (int j = 0; j < kCount; ++j) {
        sums[i][kFirst + j] += part[i][j];
      }
    }
  }
}

// Adds the products of a thread's rows of one tile with its columns, rows of another, over the first `quads`
// quads of dimensions, in order. Sixteen columns at a time are left out where `count` ends before them.
template <class V>
VESAL_DEVICE void add_products(const Cell& cell, const float4* own_tile, const float4* other_tile, int quads,
                               int count, float (&sums)[V::kOwn][V::kScores]) {
  const float4* own = own_tile + cell.row * V::kStride;
  const float4* others = other_tile + cell.lane * V::kStride;
  if (count > 16 * (V::kScores - 1)) {
    add_columns<V, 0, V::kScores>(own, others, quads, sums);
    return;
  }
  add_columns<V, 0, 1>(own, others, quads, sums);
  if constexpr (V::kScores > 2) {
    if (count > 16) {
      add_columns<V, 1, 1>(own, others, quads, sums);
    }
  }
  if constexpr (V::kScores > 3) {
    if (count > 32) {
      add_columns<V, 2, 1>(own, others, quads, sums);
    }
  }
}

// Adds the rows of a tile, `count` tokens of the other side, times the thread's rows of `scores` (zeros
// beyond the count): four dimensions of a chunk; where kGroups > 1, the part of this group of lanes.
template <class V>
VESAL_DEVICE void add_tokens(const Cell& cell, const float4* scores, const float4* tile, int count,
                             float (&sums)[V::kOwn][4]) {
  const int group = cell.lane / V::kLanes;
  const float4* factors = scores + cell.row * V::kScoreStride;
  const float4* tokens = tile + cell.lane % V::kLanes;
  const int steps = (count + 4 * V::kGroups - 1) / (4 * V::kGroups);
  VESAL_ROLLED
  for (int step = 0; step < steps; ++step) {
    const int t = step * V::kGroups + group;
    float4 b[4];
    VESAL_UNROLL
    for (int k = 0; k < 4; ++k) {
      b[k] = tokens[(4 * t + k) * V::kStride];
    }
    VESAL_UNROLL
    for (int i = 0; i < V::kOwn; ++i) {
      const float4 a = factors[2 * i * V::kScoreStride + t];
      const float factor[4] = {a.x, a.y, a.z, a.w};
      VESAL_UNROLL
      for (int k = 0; k < 4; ++k) {
        sums[i][0] = fmaf(factor[k], b[k].x, sums[i][0]);
        sums[i][1] = fmaf(factor[k], b[k].y, sums[i][1]);
        sums[i][2] = fmaf(factor[k], b[k].z, sums[i][2]);
        sums[i][3] = fmaf(factor[k], b[k].w, sums[i][3]);
      }
    }
  }
}

// add_tokens for one chunk: the sums lie in registers, where only constants are places.
template <class V>
VESAL_DEVICE void add_chunk(const Cell& cell, const float4* scores, const float4* tile, int count, int chunk,
                            float (&sums)[V::kChunks][V::kOwn][4]) {
  VESAL_UNROLL
  for (int c = 0; c < V::kChunks; ++c) {
    if (chunk == c) {
      add_tokens<V>(cell, scores, tile, count, sums[c]);
    }
  }
}

// Adds up the groups' parts; each lane gets the sum.
template <class V>
VESAL_DEVICE void add_groups(float (&sums)[V::kChunks][V::kOwn][4]) {
  VESAL_UNROLL
  for (int distance = 2 * V::kLanes; distance < 32; distance *= 2) {
    VESAL_UNROLL
    for (int i = 0; i < V::kOwn; ++i) {
      VESAL_UNROLL
      for (int k = 0; k < 4; ++k) {
        sums[0][i][k] += __shfl_xor_sync(kFullWarp, sums[0][i][k], distance);
      }
    }
  }
}

// Writes the sums of the thread's row i, times `factor`.
template <class V, class T>
VESAL_DEVICE void store_row(const Cell& cell, const float (&sums)[V::kChunks][V::kOwn][4], int i,
                            float factor, int dim, T* row) {
  if (cell.lane >= V::kLanes) {
    return;
  }
  VESAL_UNROLL
  for (int chunk = 0; chunk < V::kChunks; ++chunk) {
    VESAL_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int c = chunk * V::kChunk + cell.lane * 4 + k;
      if (c < dim) {
        row[c] = narrow<T>(factor * sums[chunk][i][k]);
      }
    }
  }
}

// Whether a key is there to be seen, and which entries of a query's axial bias are its.
struct TileKey {
  int visible;
  int axial[3];
};

VESAL_DEVICE bool admits(const Geometry& g, const uint8_t* VESAL_RESTRICT key_mask, int64_t sample,
                         int64_t key) {
  return key < g.keys && (key_mask == nullptr || key_mask[sample * g.keys + key] != 0);
}

VESAL_DEVICE TileKey tile_key(const Geometry& g, const uint8_t* VESAL_RESTRICT key_mask, int64_t sample,
                              int64_t key) {
  TileKey result{};
  result.visible = admits(g, key_mask, sample, key) ? 1 : 0;
  if (g.axial > 0) {
    const int index = static_cast<int>(key);
    const int line = index / g.grid[2];
    result.axial[0] = line / g.grid[1];
    result.axial[1] = g.grid[0] + line % g.grid[1];
    result.axial[2] = g.grid[0] + g.grid[1] + index % g.grid[2];
  }
  return result;
}

// The axial bias of consecutive queries: rows `stride` apart; null without one.
struct AxialRows {
  const float* start;
  int64_t stride;
};

// Odd, so that rows begin in different banks.
VESAL_HOST_DEVICE inline int shared_axial_stride(int axial) { return axial | 1; }

// That of `count` queries from `first` on: copied to shared memory, the next barrier makes it readable, or
// where it is.
template <class V>
VESAL_DEVICE AxialRows enter_axial(const Geometry& g, const Place& place, int64_t first, int count,
                                   const float* VESAL_RESTRICT axial_bias, float* shared) {
  const float* start = axial_bias + ((place.sample * g.queries + first) * g.heads + place.head) * g.axial;
  if (shared == nullptr) {
    return {start, g.axial_stride};
  }
  const int stride = shared_axial_stride(g.axial);
  const int thread = static_cast<int>(threadIdx.x);
  for (int row = thread / 32; row < count; row += V::kThreads / 32) {
    for (int a = thread % 32; a < g.axial; a += 32) {
      shared[row * stride + a] = start[row * g.axial_stride + a];
    }
  }
  return {shared, stride};
}

VESAL_DEVICE const float* query_bias_row(const Geometry& g, const Place& place, const float* bias,
                                         int64_t query) {
  return bias + place.sample * g.bias_sample + place.head * g.bias_head + query * g.keys;
}

// Adds bias_of(row, column) to a thread's scores, of `rows` rows and `columns` columns of the block. They
// pass through the score tile, so that this is a loop over memory: the addresses of biases and all the scores
// have no room in the registers together.
template <class V, class Bias>
VESAL_DEVICE void add_biases(const Cell& cell, int rows, int columns, float4* score_tile, const Bias& bias_of,
                             float (&scores)[V::kOwn][V::kScores]) {
  float* place = reinterpret_cast<float*>(score_tile);
  VESAL_UNROLL
  for (int i = 0; i < V::kOwn; ++i) {
    VESAL_UNROLL
    for (int j = 0; j < V::kScores; ++j) {
      place[(cell.row + 2 * i) * 4 * V::kScoreStride + cell.lane + 16 * j] = scores[i][j];
    }
  }
  const int end = cell.warp_row + V::kWarpRows < rows ? cell.warp_row + V::kWarpRows : rows;
  VESAL_ROLLED
  for (int row = cell.row; row < end; row += 2) {
    VESAL_ROLLED
    for (int column = cell.lane; column < columns; column += 16) {
      place[row * 4 * V::kScoreStride + column] += bias_of(row, column);
    }
  }
  VESAL_UNROLL
  for (int i = 0; i < V::kOwn; ++i) {
    VESAL_UNROLL
    for (int j = 0; j < V::kScores; ++j) {
      scores[i][j] = place[(cell.row + 2 * i) * 4 * V::kScoreStride + cell.lane + 16 * j];
    }
  }
}

VESAL_DEVICE float axial_sum(const float* entries, const TileKey& key) {
  return entries[key.axial[0]] + entries[key.axial[1]] + entries[key.axial[2]];
}

// Rows are queries, columns keys from `first` on: adds the biases to the products, and makes -infinity of
// what is hidden or not there. `axial` begins at the block's first query.
template <class V>
VESAL_DEVICE void finish_scores(const Geometry& g, const Place& place, const Cell& cell, int64_t first,
                                int real, int count, const TileKey* keys, const AxialRows& axial,
                                const float* VESAL_RESTRICT bias, float4* score_tile,
                                float (&scores)[V::kOwn][V::kScores]) {
  if (axial.start != nullptr || bias != nullptr) {
    const float* bias_rows = bias != nullptr ? query_bias_row(g, place, bias, place.first) + first : nullptr;
    add_biases<V>(
        cell, real, count, score_tile,
        [&](int row, int column) {
          const TileKey key = keys[column];
          float sum = 0.0f;
          if (axial.start != nullptr) {
            sum = axial_sum(axial.start + row * axial.stride, key);
          }
          return bias_rows != nullptr && key.visible != 0 ? sum + bias_rows[row * g.keys + column] : sum;
        },
        scores);
  }
  VESAL_UNROLL
  for (int j = 0; j < V::kScores; ++j) {
    if (keys[cell.lane + 16 * j].visible == 0) {
      VESAL_UNROLL
      for (int i = 0; i < V::kOwn; ++i) {
        scores[i][j] = -INFINITY;
      }
    }
  }
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
                   int shared_axial, int wide) {
  VESAL_SHARED(TileKey, keys, [V::kCols]);
  VESAL_DYN_SHARED(float4, own_tile);
  float4* other_tile = own_tile + V::kRows * V::kStride;
  float4* score_tile = other_tile + V::kCols * V::kStride;
  const Place place = block_place<V>(g.queries);
  const Cell cell = own_cell<V>();
  const int real = at_most(g.queries - place.first, V::kRows);
  const bool active = cell.warp_row < real;
  AxialRows axial{nullptr, 0};
  if (g.axial > 0) {
    axial = enter_axial<V>(
        g, place, place.first, real, axial_bias,
        shared_axial != 0 ? reinterpret_cast<float*>(score_tile + V::kRows * V::kScoreStride) : nullptr);
  }
  const T* own_q = q + (place.sample * g.queries + place.first) * g.q_stride + place.head * g.dim;
  if constexpr (V::kChunks == 1) {
    load_tile<V, V::kRows>(own_q, g.q_stride, real, 0, g.dim, g.scale, wide, own_tile, AllRows{});
  }
  float sums[V::kChunks][V::kOwn][4];
  float largest[V::kOwn];
  float sum[V::kOwn];
  clear(sums);
  clear(sum);
  VESAL_UNROLL
  for (int i = 0; i < V::kOwn; ++i) {
    largest[i] = -INFINITY;
  }
  const int chunks = chunk_count<V>(g.dim);
  const Share share = block_share<V>(g.keys);
  for (int64_t first = share.begin; first < share.end; first += V::kCols) {
    const int count = at_most(share.end - first, V::kCols);
    const auto admit = [&](int row) { return admits(g, key_mask, place.sample, first + row); };
    const int64_t token = place.sample * g.keys + first;
    float scores[V::kOwn][V::kScores];
    clear(scores);
    VESAL_ROLLED
    for (int chunk = 0; chunk < chunks; ++chunk) {
      __syncthreads();
      if (chunk == 0 && threadIdx.x < V::kCols) {
        keys[threadIdx.x] = tile_key(g, key_mask, place.sample, first + threadIdx.x);
      }
      if constexpr (V::kChunks > 1) {
        load_tile<V, V::kRows>(own_q, g.q_stride, real, chunk, g.dim, g.scale, wide, own_tile, AllRows{});
      }
      load_tile<V, V::kCols>(k + token * g.k_stride + place.head * g.dim, g.k_stride, count, chunk, g.dim,
                             1.0f, wide, other_tile, admit);
      __syncthreads();
      if (active) {
        add_products<V>(cell, own_tile, other_tile, chunk_quads<V>(chunk, g.dim), count, scores);
      }
    }
    if (active) {
      finish_scores<V>(g, place, cell, first, real, count, keys, axial, bias, score_tile, scores);
      VESAL_UNROLL
      for (int i = 0; i < V::kOwn; ++i) {
        float top = largest[i];
        VESAL_UNROLL
        for (int j = 0; j < V::kScores; ++j) {
          top = fmaxf(top, scores[i][j]);
        }
        VESAL_UNROLL
        for (int distance = 2; distance < 32; distance *= 2) {
          top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, distance));
        }
        // Nothing seen yet: any finite reference gives zeros.
        const float reference = top == -INFINITY ? 0.0f : top;
        const float factor = expf(largest[i] - reference);
        largest[i] = top;
        sum[i] *= factor;
        VESAL_UNROLL
        for (int chunk = 0; chunk < V::kChunks; ++chunk) {
          VESAL_UNROLL
          for (int c = 0; c < 4; ++c) {
            sums[chunk][i][c] *= factor;
          }
        }
        float* target = reinterpret_cast<float*>(score_tile + (cell.row + 2 * i) * V::kScoreStride);
        VESAL_UNROLL
        for (int j = 0; j < V::kScores; ++j) {
          const float e = expf(scores[i][j] - reference);
          sum[i] += e;
          target[cell.lane + 16 * j] = e;
        }
      }
    }
    VESAL_ROLLED
    for (int chunk = 0; chunk < chunks; ++chunk) {
      __syncthreads();
      load_tile<V, V::kCols>(v + token * g.v_stride + place.head * g.dim, g.v_stride, count, chunk, g.dim,
                             1.0f, wide, other_tile, admit);
      __syncthreads();
      if (active) {
        add_chunk<V>(cell, score_tile, other_tile, count, chunk, sums);
      }
    }
  }
  if (!active) {
    return;
  }
  add_groups<V>(sums);
  VESAL_UNROLL
  for (int i = 0; i < V::kOwn; ++i) {
    VESAL_UNROLL
    for (int distance = 2; distance < 32; distance *= 2) {
      sum[i] += __shfl_xor_sync(kFullWarp, sum[i], distance);
    }
    if (cell.row + 2 * i >= real) {
      continue;
    }
    const int64_t row = (place.sample * g.queries + place.first + cell.row + 2 * i) * g.heads + place.head;
    if (gridDim.z > 1) {
      const int64_t part = blockIdx.z * rows + row;
      store_row<V>(cell, sums, i, 1.0f, g.dim, partials.values + part * g.dim);
      if (cell.lane == 0) {
        partials.largest[part] = largest[i];
        partials.sum[part] = sum[i];
      }
    } else {
      const bool attended = largest[i] != -INFINITY;
      store_row<V>(cell, sums, i, attended ? 1.0f / sum[i] : 0.0f, g.dim, out + row * g.dim);
      if (lse != nullptr && cell.lane == 0) {
        lse[row] = attended ? largest[i] + logf(sum[i]) : 0.0f;
      }
    }
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

// Block (32 rows of queries times heads): delta, the product of out and dout, in add_products' order, so that
// a lone key's dp - delta is exactly 0.
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kDeltaThreads)
    delta_kernel(int64_t rows, int dim, const T* VESAL_RESTRICT out, const T* VESAL_RESTRICT dout,
                 float* VESAL_RESTRICT delta) {
  VESAL_SHARED(float, outs, [kDeltaRows][kDeltaDims + 1]);
  VESAL_SHARED(float, douts, [kDeltaRows][kDeltaDims + 1]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kDeltaRows;
  const int real = at_most(rows - first, kDeltaRows);
  float sum = 0.0f;
  for (int c0 = 0; c0 < dim; c0 += kDeltaDims) {
    const int dims = at_most(dim - c0, kDeltaDims);
    __syncthreads();
    const int c = thread % kDeltaDims;
    VESAL_ROLLED
    for (int row = thread / kDeltaDims; row < real; row += kDeltaThreads / kDeltaDims) {
      if (c < dims) {
        outs[row][c] = widen(out[(first + row) * dim + c0 + c]);
        douts[row][c] = widen(dout[(first + row) * dim + c0 + c]);
      }
    }
    __syncthreads();
    for (int begin = 0; thread < real && begin < dims; begin += 4 * kPartQuads) {
      const int end = begin + 4 * kPartQuads < dims ? begin + 4 * kPartQuads : dims;
      float part = 0.0f;
      for (int i = begin; i < end; ++i) {
        part = fmaf(douts[thread][i], outs[thread][i], part);
      }
      sum += part;
    }
  }
  if (thread < real) {
    delta[first + thread] = sum;
  }
}

// Adds a tile's dscores to the sums of the axial bias' gradient, [row][axial], of a warp's `real` rows. Each
// axis adds what lies together first: columns, lines, then lines to rows and planes of the grid. `lines`
// [row][line_stride] holds the sums of a line of keys as far as they are in the tile.
template <class V>
VESAL_DEVICE void add_axial(const Geometry& g, int64_t first, int count, int real, const float* dscores,
                            float* lines, int line_stride, float* sums, int64_t stride) {
  constexpr int kFloats = 4 * V::kScoreStride;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int width = g.grid[2];
  const int height = g.grid[1];
  const int column = static_cast<int>(first) % width;
  const int line = static_cast<int>(first) / width;
  const int columns = width < count ? width : count;
  const int line_count = (column + count - 1) / width + 1;
  VESAL_ROLLED
  for (int e = lane; e < real * columns; e += 32) {
    const int row = e / columns;
    const int begin = e % columns;
    float sum = 0.0f;
    VESAL_ROLLED
    for (int j = begin; j < count; j += width) {
      sum += dscores[row * kFloats + j];
    }
    sums[row * stride + g.grid[0] + height + (column + begin) % width] += sum;
  }
  VESAL_ROLLED
  for (int e = lane; e < real * line_count; e += 32) {
    const int row = e / line_count;
    const int l = e % line_count;
    const int begin = l * width - column;
    const int end = begin + width < count ? begin + width : count;
    float sum = 0.0f;
    VESAL_ROLLED
    for (int j = begin > 0 ? begin : 0; j < end; ++j) {
      sum += dscores[row * kFloats + j];
    }
    lines[row * line_stride + l] = sum;
  }
  __syncwarp(kFullWarp);
  const int heights = height < line_count ? height : line_count;
  VESAL_ROLLED
  for (int e = lane; e < real * heights; e += 32) {
    const int row = e / heights;
    const int begin = e % heights;
    float sum = 0.0f;
    VESAL_ROLLED
    for (int l = begin; l < line_count; l += height) {
      sum += lines[row * line_stride + l];
    }
    sums[row * stride + g.grid[0] + (line + begin) % height] += sum;
  }
  const int plane_line = line % height;
  const int planes = (plane_line + line_count - 1) / height + 1;
  VESAL_ROLLED
  for (int e = lane; e < real * planes; e += 32) {
    const int row = e / planes;
    const int plane = e % planes;
    const int begin = plane * height - plane_line;
    const int end = begin + height < line_count ? begin + height : line_count;
    float sum = 0.0f;
    VESAL_ROLLED
    for (int l = begin > 0 ? begin : 0; l < end; ++l) {
      sum += lines[row * line_stride + l];
    }
    sums[row * stride + line / height + plane] += sum;
  }
}

// Lines of the key grid that a tile of keys meets, at most.
template <class V>
VESAL_HOST_DEVICE int most_lines(const Geometry& g) {
  const int lines = (V::kCols - 1) / g.grid[2] + 2;
  return lines < V::kCols ? lines : V::kCols;
}

// Block (sample x query tile, head, split): dq and daxial_bias of kRows queries; where the keys are split,
// partial sums of both, [split][row][dim] and [split][row][axial], instead.
template <class T, class V>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(V::kThreads, V::kBlocks)
    query_gradients_kernel(Geometry g, const T* VESAL_RESTRICT q, const T* VESAL_RESTRICT k,
                           const T* VESAL_RESTRICT v, const uint8_t* VESAL_RESTRICT key_mask,
                           const float* VESAL_RESTRICT bias, const float* VESAL_RESTRICT axial_bias,
                           const float* VESAL_RESTRICT lse, const T* VESAL_RESTRICT dout,
                           const float* VESAL_RESTRICT delta, T* VESAL_RESTRICT dq, float* daxial_bias,
                           float* VESAL_RESTRICT partials, int64_t rows, int shared_axial, int wide) {
  VESAL_SHARED(TileKey, keys, [V::kCols]);
  VESAL_SHARED(float, row_lse, [V::kRows]);
  VESAL_SHARED(float, row_delta, [V::kRows]);
  VESAL_DYN_SHARED(float4, q_tile);
  float4* dout_tile = q_tile + (V::own_tiles() - 1) * V::kRows * V::kStride;
  float4* other_tile = dout_tile + V::kRows * V::kStride;
  float4* score_tile = other_tile + V::kCols * V::kStride;
  float* lines = reinterpret_cast<float*>(score_tile + V::kRows * V::kScoreStride);
  const int thread = static_cast<int>(threadIdx.x);
  const Place place = block_place<V>(g.queries);
  const Cell cell = own_cell<V>();
  const int real = at_most(g.queries - place.first, V::kRows);
  const bool active = cell.warp_row < real;
  const int64_t first_row = (place.sample * g.queries + place.first) * g.heads + place.head;
  AxialRows axial{nullptr, 0};
  float* axial_sums = nullptr;
  if (g.axial > 0) {
    float* shared = lines + V::kRows * most_lines<V>(g);
    axial = enter_axial<V>(g, place, place.first, real, axial_bias, shared_axial != 0 ? shared : nullptr);
    axial_sums = shared_axial != 0 ? shared + V::kRows * axial.stride
                                   : daxial_bias + (blockIdx.z * rows + first_row) * g.axial;
    for (int row = thread / 32; row < real; row += V::kThreads / 32) {
      for (int a = thread % 32; a < g.axial; a += 32) {
        axial_sums[row * axial.stride + a] = 0.0f;
      }
    }
  }
  if (thread < V::kRows) {
    row_lse[thread] = thread < real ? lse[first_row + int64_t{thread} * g.heads] : 0.0f;
    row_delta[thread] = thread < real ? delta[first_row + int64_t{thread} * g.heads] : 0.0f;
  }
  const T* own_q = q + (place.sample * g.queries + place.first) * g.q_stride + place.head * g.dim;
  const T* own_dout = dout + first_row * g.dim;
  const int64_t dout_stride = int64_t{g.heads} * g.dim;
  if constexpr (V::kChunks == 1) {
    load_tile<V, V::kRows>(own_q, g.q_stride, real, 0, g.dim, g.scale, wide, q_tile, AllRows{});
    load_tile<V, V::kRows>(own_dout, dout_stride, real, 0, g.dim, 1.0f, wide, dout_tile, AllRows{});
  }
  float sums[V::kChunks][V::kOwn][4];
  clear(sums);
  const int chunks = chunk_count<V>(g.dim);
  const Share share = block_share<V>(g.keys);
  for (int64_t first = share.begin; first < share.end; first += V::kCols) {
    const int count = at_most(share.end - first, V::kCols);
    const auto admit = [&](int row) { return admits(g, key_mask, place.sample, first + row); };
    const int64_t token = place.sample * g.keys + first;
    const T* keys_first = k + token * g.k_stride + place.head * g.dim;
    float products[V::kOwn][V::kScores];
    clear(products);
    VESAL_ROLLED
    for (int chunk = 0; chunk < chunks; ++chunk) {
      __syncthreads();
      if (chunk == 0 && thread < V::kCols) {
        keys[thread] = tile_key(g, key_mask, place.sample, first + thread);
      }
      if constexpr (V::kChunks > 1) {
        load_tile<V, V::kRows>(own_q, g.q_stride, real, chunk, g.dim, g.scale, wide, q_tile, AllRows{});
      }
      load_tile<V, V::kCols>(keys_first, g.k_stride, count, chunk, g.dim, 1.0f, wide, other_tile, admit);
      __syncthreads();
      if (active) {
        add_products<V>(cell, q_tile, other_tile, chunk_quads<V>(chunk, g.dim), count, products);
      }
    }
    // Probabilities wait in shared memory, where their own thread finds them again: registers are short.
    if (active) {
      finish_scores<V>(g, place, cell, first, real, count, keys, axial, bias, score_tile, products);
      VESAL_UNROLL
      for (int i = 0; i < V::kOwn; ++i) {
        const int row = cell.row + 2 * i;
        float* target = reinterpret_cast<float*>(score_tile + row * V::kScoreStride);
        VESAL_UNROLL
        for (int j = 0; j < V::kScores; ++j) {
          target[cell.lane + 16 * j] = expf(products[i][j] - row_lse[row]);
        }
      }
    }
    clear(products);
    VESAL_ROLLED
    for (int chunk = 0; chunk < chunks; ++chunk) {
      __syncthreads();
      if constexpr (V::kChunks > 1) {
        load_tile<V, V::kRows>(own_dout, dout_stride, real, chunk, g.dim, 1.0f, wide, dout_tile, AllRows{});
      }
      load_tile<V, V::kCols>(v + token * g.v_stride + place.head * g.dim, g.v_stride, count, chunk, g.dim,
                             1.0f, wide, other_tile, admit);
      __syncthreads();
      if (active) {
        add_products<V>(cell, dout_tile, other_tile, chunk_quads<V>(chunk, g.dim), count, products);
      }
    }
    if (active) {
      VESAL_UNROLL
      for (int i = 0; i < V::kOwn; ++i) {
        const int row = cell.row + 2 * i;
        float* target = reinterpret_cast<float*>(score_tile + row * V::kScoreStride);
        VESAL_UNROLL
        for (int j = 0; j < V::kScores; ++j) {
          target[cell.lane + 16 * j] *= products[i][j] - row_delta[row];
        }
      }
      __syncwarp(kFullWarp);
      if (g.axial > 0) {
        add_axial<V>(g, first, count, at_most(real - cell.warp_row, V::kWarpRows),
                     reinterpret_cast<const float*>(score_tile + cell.warp_row * V::kScoreStride),
                     lines + cell.warp_row * most_lines<V>(g), most_lines<V>(g),
                     axial_sums + cell.warp_row * axial.stride, axial.stride);
      }
    }
    VESAL_ROLLED
    for (int chunk = 0; chunk < chunks; ++chunk) {
      __syncthreads();
      load_tile<V, V::kCols>(keys_first, g.k_stride, count, chunk, g.dim, 1.0f, wide, other_tile, admit);
      __syncthreads();
      if (active) {
        add_chunk<V>(cell, score_tile, other_tile, count, chunk, sums);
      }
    }
  }
  if (shared_axial != 0) {
    __syncthreads();
    float* target = daxial_bias + (blockIdx.z * rows + first_row) * g.axial;
    for (int row = thread / 32; row < real; row += V::kThreads / 32) {
      for (int a = thread % 32; a < g.axial; a += 32) {
        target[row * g.axial_stride + a] = axial_sums[row * axial.stride + a];
      }
    }
  }
  if (!active) {
    return;
  }
  add_groups<V>(sums);
  VESAL_UNROLL
  for (int i = 0; i < V::kOwn; ++i) {
    const int64_t row = cell.row + 2 * i;
    if (row >= real) {
      continue;
    }
    if (gridDim.z > 1) {
      store_row<V>(cell, sums, i, 1.0f, g.dim,
                   partials + (blockIdx.z * rows + first_row + row * g.heads) * g.dim);
    } else {
      store_row<V>(cell, sums, i, g.scale, g.dim,
                   dq + (place.sample * g.queries + place.first + row) * g.q_stride + place.head * g.dim);
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
                         float* VESAL_RESTRICT partial_dk, float* VESAL_RESTRICT partial_dv, int64_t rows,
                         int shared_axial, int wide) {
  VESAL_SHARED(TileKey, keys, [V::kRows]);
  VESAL_SHARED(float, column_lse, [V::kCols]);
  VESAL_SHARED(float, column_delta, [V::kCols]);
  VESAL_DYN_SHARED(float4, k_tile);
  float4* v_tile = k_tile + (V::own_tiles() - 1) * V::kRows * V::kStride;
  float4* other_tile = v_tile + V::kRows * V::kStride;
  float4* score_tile = other_tile + V::kCols * V::kStride;
  float* axial_tile = reinterpret_cast<float*>(score_tile + V::kRows * V::kScoreStride);
  const int thread = static_cast<int>(threadIdx.x);
  const Place place = block_place<V>(g.keys);
  const Cell cell = own_cell<V>();
  const int real = at_most(g.keys - place.first, V::kRows);
  const bool active = cell.warp_row < real;
  const int64_t first_token = place.sample * g.keys + place.first;
  const T* own_k = k + first_token * g.k_stride + place.head * g.dim;
  const T* own_v = v + first_token * g.v_stride + place.head * g.dim;
  const auto admit = [&](int row) { return admits(g, key_mask, place.sample, place.first + row); };
  if (thread < V::kRows) {
    keys[thread] = tile_key(g, key_mask, place.sample, place.first + thread);
  }
  if constexpr (V::kChunks == 1) {
    load_tile<V, V::kRows>(own_k, g.k_stride, real, 0, g.dim, 1.0f, wide, k_tile, admit);
    load_tile<V, V::kRows>(own_v, g.v_stride, real, 0, g.dim, 1.0f, wide, v_tile, admit);
  }
  float sums_dk[V::kChunks][V::kOwn][4];
  float sums_dv[V::kChunks][V::kOwn][4];
  clear(sums_dk);
  clear(sums_dv);
  const int chunks = chunk_count<V>(g.dim);
  const Share share = block_share<V>(g.queries);
  for (int64_t first = share.begin; first < share.end; first += V::kCols) {
    const int count = at_most(share.end - first, V::kCols);
    const int64_t query = place.sample * g.queries + first;
    const T* queries = q + query * g.q_stride + place.head * g.dim;
    AxialRows axial{nullptr, 0};
    float products[V::kOwn][V::kScores];
    clear(products);
    VESAL_ROLLED
    for (int chunk = 0; chunk < chunks; ++chunk) {
      __syncthreads();
      if (chunk == 0) {
        if (thread < count) {
          const int64_t row = (query + thread) * g.heads + place.head;
          column_lse[thread] = lse[row];
          column_delta[thread] = delta[row];
        }
        if (g.axial > 0) {
          axial =
              enter_axial<V>(g, place, first, count, axial_bias, shared_axial != 0 ? axial_tile : nullptr);
        }
      }
      if constexpr (V::kChunks > 1) {
        load_tile<V, V::kRows>(own_k, g.k_stride, real, chunk, g.dim, 1.0f, wide, k_tile, admit);
      }
      load_tile<V, V::kCols>(queries, g.q_stride, count, chunk, g.dim, g.scale, wide, other_tile, AllRows{});
      __syncthreads();
      if (active) {
        add_products<V>(cell, k_tile, other_tile, chunk_quads<V>(chunk, g.dim), count, products);
      }
    }
    if (active) {
      if (axial.start != nullptr || bias != nullptr) {
        add_biases<V>(
            cell, real, count, score_tile,
            [&](int row, int column) {
              const TileKey key = keys[row];
              float sum = 0.0f;
              if (axial.start != nullptr) {
                sum = axial_sum(axial.start + column * axial.stride, key);
              }
              return bias != nullptr && key.visible != 0
                         ? sum + query_bias_row(g, place, bias, first + column)[place.first + row]
                         : sum;
            },
            products);
      }
      VESAL_UNROLL
      for (int i = 0; i < V::kOwn; ++i) {
        const int row = cell.row + 2 * i;
        const bool visible = keys[row].visible != 0;
        float* target = reinterpret_cast<float*>(score_tile + row * V::kScoreStride);
        VESAL_UNROLL
        for (int j = 0; j < V::kScores; ++j) {
          const int column = cell.lane + 16 * j;
          target[column] = visible && column < count ? expf(products[i][j] - column_lse[column]) : 0.0f;
        }
      }
    }
    clear(products);
    VESAL_ROLLED
    for (int chunk = 0; chunk < chunks; ++chunk) {
      __syncthreads();
      if constexpr (V::kChunks > 1) {
        load_tile<V, V::kRows>(own_v, g.v_stride, real, chunk, g.dim, 1.0f, wide, v_tile, admit);
      }
      load_tile<V, V::kCols>(dout + (query * g.heads + place.head) * g.dim, int64_t{g.heads} * g.dim, count,
                             chunk, g.dim, 1.0f, wide, other_tile, AllRows{});
      __syncthreads();
      if (active) {
        add_chunk<V>(cell, score_tile, other_tile, count, chunk, sums_dv);
        add_products<V>(cell, v_tile, other_tile, chunk_quads<V>(chunk, g.dim), count, products);
      }
    }
    if (active) {
      __syncwarp(kFullWarp);
      VESAL_UNROLL
      for (int i = 0; i < V::kOwn; ++i) {
        float* target = reinterpret_cast<float*>(score_tile + (cell.row + 2 * i) * V::kScoreStride);
        VESAL_UNROLL
        for (int j = 0; j < V::kScores; ++j) {
          const int column = cell.lane + 16 * j;
          if (column < count) {
            target[column] *= products[i][j] - column_delta[column];
          }
        }
      }
    }
    VESAL_ROLLED
    for (int chunk = 0; chunk < chunks; ++chunk) {
      __syncthreads();
      load_tile<V, V::kCols>(queries, g.q_stride, count, chunk, g.dim, g.scale, wide, other_tile, AllRows{});
      __syncthreads();
      if (active) {
        add_chunk<V>(cell, score_tile, other_tile, count, chunk, sums_dk);
      }
    }
  }
  if (!active) {
    return;
  }
  add_groups<V>(sums_dk);
  add_groups<V>(sums_dv);
  VESAL_UNROLL
  for (int i = 0; i < V::kOwn; ++i) {
    const int64_t row = cell.row + 2 * i;
    if (row >= real) {
      continue;
    }
    const int64_t token = first_token + row;
    if (gridDim.z > 1) {
      const int64_t part = (blockIdx.z * rows + token * g.heads + place.head) * g.dim;
      store_row<V>(cell, sums_dk, i, 1.0f, g.dim, partial_dk + part);
      store_row<V>(cell, sums_dv, i, 1.0f, g.dim, partial_dv + part);
    } else {
      store_row<V>(cell, sums_dk, i, 1.0f, g.dim, dk + token * g.k_stride + place.head * g.dim);
      store_row<V>(cell, sums_dv, i, 1.0f, g.dim, dv + token * g.v_stride + place.head * g.dim);
    }
  }
}

// How the passes over a shape are split, and where their partial sums lie in the workspaces (in floats).
struct Plan {
  int64_t rows, tokens;                              // queries, and keys, times heads
  int64_t forward_splits, key_splits, query_splits;  // of the keys, for out and for dq; of the queries
  int64_t largest, sum, values, forward;             // the last is all of them
  int64_t delta, dq, daxial, dk, dv, backward;       // dk and dv lie where dq and daxial have been added up
};

Plan plan_of(const AttentionParams& p) {
  Plan plan{};
  plan.rows = p.n * p.queries * p.heads;
  plan.tokens = p.n * p.keys * p.heads;
  with_layouts(p.head_dim, [&](auto of_forward, auto of_queries, auto of_keys) {
    plan.forward_splits = split_count<decltype(of_forward)>(p, p.queries, p.keys);
    plan.key_splits = split_count<decltype(of_queries)>(p, p.queries, p.keys);
    plan.query_splits = split_count<decltype(of_keys)>(p, p.keys, p.queries);
  });
  const int64_t forward_parts = plan.forward_splits > 1 ? plan.forward_splits * plan.rows : 0;
  plan.sum = forward_parts;
  plan.values = 2 * forward_parts;
  plan.forward = plan.values + forward_parts * p.head_dim;
  const int64_t query_parts = plan.key_splits > 1 ? plan.key_splits * plan.rows : 0;
  const int64_t key_parts = plan.query_splits > 1 ? plan.query_splits * plan.tokens : 0;
  // The grid means something only where it is the keys'.
  const auto& [d, h, w] = p.key_grid;
  const bool grid = d >= 1 && h >= 1 && w >= 1 && int64_t{d} * h <= p.keys && int64_t{d} * h * w == p.keys;
  plan.dq = plan.dk = plan.rows;
  plan.daxial = plan.dq + query_parts * p.head_dim;
  plan.dv = plan.dk + key_parts * p.head_dim;
  plan.backward =
      std::max(plan.daxial + query_parts * (grid ? p.axial_size() : 0), plan.dv + key_parts * p.head_dim);
  return plan;
}

// Whether four numbers of every vector can be read at once.
template <class T>
bool is_wide(const Geometry& g, std::initializer_list<const T*> tensors) {
  const auto aligned = [](const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(T)) == 0;
  };
  return (g.dim | g.q_stride | g.k_stride | g.v_stride) % 4 == 0 &&
         std::all_of(tensors.begin(), tensors.end(), aligned);
}

// Dynamic shared memory of a launch: `bytes`, and as many of an axial bias where that fits.
struct SharedBytes {
  int64_t bytes;
  int axial;  // whether it is there
};

SharedBytes with_axial(const Geometry& g, int64_t bytes, int64_t axial_rows) {
  const int64_t axial = axial_rows * shared_axial_stride(g.axial) * static_cast<int64_t>(sizeof(float));
  return g.axial > 0 && bytes + axial <= kMostShared ? SharedBytes{bytes + axial, 1} : SharedBytes{bytes, 0};
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
  return static_cast<size_t>(plan_of(params).forward) * sizeof(float);
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
    const int wide = is_wide(g, {q, k, v}) ? 1 : 0;
    with_layouts(params.head_dim, [&](auto of_forward, auto, auto) {
      using V = decltype(of_forward);
      const SharedBytes shared = with_axial(g, V::bytes(1), V::kRows);
      launch(context.stream(),
             {.grid = {params.n * ceil_div(params.queries, V::kRows), params.heads, plan.forward_splits},
              .block = V::kThreads,
              .shared_bytes = shared.bytes},
             forward_kernel<T, V>, g, q, k, v, inputs.key_mask, bias, axial_bias, out, lse, partials,
             plan.rows, shared.axial, wide);
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
  return static_cast<size_t>(plan_of(params).backward) * sizeof(float);
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
  const bool split_keys = plan.key_splits > 1;
  const bool split_queries = plan.query_splits > 1;
  float* partial_dq = split_keys ? scratch + plan.dq : nullptr;
  float* partial_daxial = split_keys && g.axial > 0 ? scratch + plan.daxial : nullptr;
  float* partial_dk = split_queries ? scratch + plan.dk : nullptr;
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
        const int wide = is_wide(g, {q, k, v, dout}) ? 1 : 0;
        launch(context.stream(), {.grid = ceil_div(plan.rows, kDeltaRows), .block = kDeltaThreads},
               delta_kernel<T>, plan.rows, params.head_dim, out, dout, delta);
        with_layouts(params.head_dim, [&](auto, auto of_queries, auto of_keys) {
          using Q = decltype(of_queries);
          const int64_t lines =
              g.axial > 0 ? int64_t{Q::kRows} * most_lines<Q>(g) * static_cast<int64_t>(sizeof(float)) : 0;
          SharedBytes shared = with_axial(g, Q::bytes(Q::own_tiles()) + lines, 2 * Q::kRows);
          launch(context.stream(),
                 {.grid = {params.n * ceil_div(params.queries, Q::kRows), params.heads, plan.key_splits},
                  .block = Q::kThreads,
                  .shared_bytes = shared.bytes},
                 query_gradients_kernel<T, Q>, g, q, k, v, inputs.key_mask, bias, axial_bias, lse, dout,
                 static_cast<const float*>(delta), dq, split_keys ? partial_daxial : daxial_bias, partial_dq,
                 plan.rows, shared.axial, wide);
          if (split_keys) {
            add_partials(context.stream(), params.n * params.queries, params.heads, params.head_dim,
                         plan.key_splits, partial_dq, params.scale, dq, params.q_stride);
            if (g.axial > 0) {
              add_partials(context.stream(), params.n * params.queries, params.heads, g.axial,
                           plan.key_splits, partial_daxial, 1.0f, daxial_bias, g.axial_stride);
            }
          }
          using K = decltype(of_keys);
          shared = with_axial(g, K::bytes(K::own_tiles()), K::kCols);
          launch(context.stream(),
                 {.grid = {params.n * ceil_div(params.keys, K::kRows), params.heads, plan.query_splits},
                  .block = K::kThreads,
                  .shared_bytes = shared.bytes},
                 key_gradients_kernel<T, K>, g, q, k, v, inputs.key_mask, bias, axial_bias, lse, dout,
                 static_cast<const float*>(delta), dk, dv, partial_dk, partial_dv, plan.tokens, shared.axial,
                 wide);
          if (split_queries) {
            add_partials(context.stream(), params.n * params.keys, params.heads, params.head_dim,
                         plan.query_splits, partial_dk, 1.0f, dk, params.k_stride);
            add_partials(context.stream(), params.n * params.keys, params.heads, params.head_dim,
                         plan.query_splits, partial_dv, 1.0f, dv, params.v_stride);
          }
        });
      });
}

}  // namespace VESAL_BACKEND
}  // namespace vesal::kernels
