// The decomposed relative position on a GPU, float32 arithmetic, in the portable dialect.
//
// What it computes: relative_position.hpp. For T queries (tokens and heads), A numbers of axial bias each and
// d dimensions: 2 T A d flops forward, 4 T A d backward; at least T (d + A) numbers moved forward. What
// limits it: reads of shared memory, then the float32 units; the tables stay in the caches. How: as products
// of matrices. Queries at one place of an axis see the same rows of its table, so that the forward pass is,
// for each place, a product of those queries with those rows, in tiles of 64 x 32. A table's gradient is a
// product over all queries, sorted by place, of the axial bias' gradient, moved to the rows that it belongs
// to, with the queries: blocks take fixed pieces of the queries, whose partial sums the workspace holds until
// they are added in order. dq has a thread a dimension, over all three axes, so that it is rounded once;
// heads of a token share what the thread reads of the tables.
#include <algorithm>

#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/relative_position/relative_position.hpp"
#include "kernels/simt/device.hpp"
#include "kernels/simt/rolled.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(relative_position_forward)
VESAL_DECLARE_BACKENDS(relative_position_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(relative_position_backward)

namespace VESAL_BACKEND {
namespace {

constexpr int kBlock = 128;
constexpr int kTileQueries = 64;  // of the forward pass
constexpr int kTileKeys = 32;
constexpr int kTileDims = 64;
constexpr int kTileWidth = kTileDims / 4 + 1;  // float4s of a row in shared memory: rows meet other banks
constexpr int kTileRows = 32;                  // of a table's gradient
constexpr int kPieceQueries = 32;              // in shared memory at a time
constexpr int kHeads = 4;                      // of a token that a block of dq takes
constexpr int kKeys = 64;                      // whose factors it holds at a time
constexpr int kWarps = 8;                      // that add pieces

// Plain data, passed to kernels by value.
struct Geometry {
  int64_t n, queries, q_stride;
  int heads, dim, axial;
};

Geometry geometry_of(const RelativePositionParams& p) {
  return {p.n, p.queries(), p.q_stride, p.heads, p.head_dim, static_cast<int>(p.axial_size())};
}

// Where a query's vector begins in q, and which row of the axial bias is its.
struct QueryRow {
  int64_t vector, row;
};

// Query number i of those at `place` of the axis, heads fastest.
VESAL_DEVICE QueryRow query_row(const Geometry& g, const RelativePositionAxis& axis, int place, int64_t i) {
  const int64_t others = g.queries / axis.queries;
  const int64_t head = i % g.heads;
  const int64_t other = i / g.heads;
  const int64_t token = other / others * g.queries + axis.token(place, other % others);
  return {token * g.q_stride + head * g.dim, token * g.heads + head};
}

// Block (place x tile of its queries, tile of keys); a table that is null gives zeros.
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kBlock)
    forward_kernel(Geometry g, RelativePositionAxis axis, const T* VESAL_RESTRICT q,
                   const float* VESAL_RESTRICT table, float* VESAL_RESTRICT axial_bias) {
  VESAL_SHARED(float4, queries, [kTileQueries][kTileWidth]);
  VESAL_SHARED(float4, entries, [kTileKeys][kTileWidth]);
  VESAL_SHARED(QueryRow, rows, [kTileQueries]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t count = g.n * (g.queries / axis.queries) * g.heads;  // queries at a place
  const int64_t tiles = (count + kTileQueries - 1) / kTileQueries;
  const int place = static_cast<int>(blockIdx.x / tiles);
  const int64_t first = blockIdx.x % tiles * kTileQueries;
  const int first_key = static_cast<int>(blockIdx.y) * kTileKeys;
  const int real = static_cast<int>(count - first < kTileQueries ? count - first : kTileQueries);
  const int keys = axis.keys - first_key < kTileKeys ? axis.keys - first_key : kTileKeys;
  if (thread < real) {
    rows[thread] = query_row(g, axis, place, first + thread);
  }
  // Queries own + 16 i, keys lane + 8 j.
  const int lane = thread % 8;
  const int own = thread / 8;
  float sums[4][4] = {};
  for (int c0 = 0; table != nullptr && c0 < g.dim; c0 += kTileDims) {
    __syncthreads();
    for (int e = thread; e < kTileQueries * kTileDims; e += kBlock) {
      const int m = e / kTileDims;
      const int c = e % kTileDims;
      const bool read = m < real && c0 + c < g.dim;
      reinterpret_cast<float*>(queries[m])[c] = read ? widen(q[rows[m].vector + c0 + c]) : 0.0f;
    }
    for (int e = thread; e < kTileKeys * kTileDims; e += kBlock) {
      const int j = e / kTileDims;
      const int c = e % kTileDims;
      const bool read = j < keys && c0 + c < g.dim;
      reinterpret_cast<float*>(entries[j])[c] =
          read ? table[static_cast<int64_t>(axis.row(place, first_key + j)) * g.dim + c0 + c] : 0.0f;
    }
    __syncthreads();
    const int quads = ((g.dim - c0 < kTileDims ? g.dim - c0 : kTileDims) + 3) / 4;
    for (int t = 0; t < quads; ++t) {
      float4 b[4];
      VESAL_UNROLL
      for (int j = 0; j < 4; ++j) {
        b[j] = entries[lane + 8 * j][t];
      }
      VESAL_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float4 a = queries[own + 16 * i][t];
        VESAL_UNROLL
        for (int j = 0; j < 4; ++j) {
          sums[i][j] = fmaf(a.x, b[j].x, sums[i][j]);
          sums[i][j] = fmaf(a.y, b[j].y, sums[i][j]);
          sums[i][j] = fmaf(a.z, b[j].z, sums[i][j]);
          sums[i][j] = fmaf(a.w, b[j].w, sums[i][j]);
        }
      }
    }
  }
  __syncthreads();
  VESAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int m = own + 16 * i;
    if (m < real) {
      float* target = axial_bias + rows[m].row * g.axial + axis.offset + first_key;
      VESAL_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (lane + 8 * j < keys) {
          target[lane + 8 * j] = sums[i][j];
        }
      }
    }
  }
}

// The axes and their tables, or null.
struct TableAxis {
  RelativePositionAxis axis;
  const float* table;
};
struct TableAxes {
  TableAxis axes[3];
};

// Adds one axis' part of dq[token, head .. head + kHeads, c], token within the sample; `source` is the axial
// bias' gradient of the first of the `heads` heads, `factors` are shared. The whole block calls it, with c <
// 0 in threads that own no dimension.
VESAL_DEVICE void add_axis(const Geometry& g, const TableAxis& a, const float* VESAL_RESTRICT source,
                           int heads, int token, int c, float4 (&factors)[kHeads][kKeys / 4],
                           float (&sums)[kHeads]) {
  if (a.table == nullptr) {
    return;
  }
  const int place = token / a.axis.inner % a.axis.queries;
  const int64_t step = static_cast<int64_t>(a.axis.key_step) * g.dim;  // to the row of the key before
  for (int first = 0; first < a.axis.keys; first += kKeys) {
    const int keys = a.axis.keys - first < kKeys ? a.axis.keys - first : kKeys;
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kHeads * kKeys; e += kTileDims) {
      const int m = e / kKeys;
      const int j = e % kKeys;
      reinterpret_cast<float*>(factors[m])[j] =
          m < heads && j < keys ? source[m * g.axial + a.axis.offset + first + j] : 0.0f;
    }
    __syncthreads();
    if (c >= 0) {
      const float* entry = a.table + static_cast<int64_t>(a.axis.row(place, first)) * g.dim + c;
      int j = 0;
      VESAL_ROLLED
      for (; j + 4 <= keys; j += 4) {
        const float x = entry[0];
        const float y = entry[-step];
        const float z = entry[-2 * step];
        const float w = entry[-3 * step];
        VESAL_UNROLL
        for (int m = 0; m < kHeads; ++m) {
          const float4 factor = factors[m][j / 4];
          sums[m] = fmaf(factor.x, x, sums[m]);
          sums[m] = fmaf(factor.y, y, sums[m]);
          sums[m] = fmaf(factor.z, z, sums[m]);
          sums[m] = fmaf(factor.w, w, sums[m]);
        }
        entry -= 4 * step;
      }
      VESAL_ROLLED
      for (; j < keys; ++j) {
        VESAL_UNROLL
        for (int m = 0; m < kHeads; ++m) {
          sums[m] = fmaf(reinterpret_cast<const float*>(factors[m])[j], *entry, sums[m]);
        }
        entry -= step;
      }
    }
  }
}

// Block (token x kHeads heads, 64 dimensions), thread (dimension).
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kTileDims)
    query_gradients_kernel(Geometry g, TableAxes tables, const float* VESAL_RESTRICT daxial_bias,
                           T* VESAL_RESTRICT dq, int accumulate) {
  VESAL_SHARED(float4, factors, [kHeads][kKeys / 4]);
  const int groups = (g.heads + kHeads - 1) / kHeads;
  const int64_t token = static_cast<int>(blockIdx.x) / groups;
  const int first = static_cast<int>(blockIdx.x) % groups * kHeads;
  const int heads = g.heads - first < kHeads ? g.heads - first : kHeads;
  const int dimension = static_cast<int>(blockIdx.y) * kTileDims + static_cast<int>(threadIdx.x);
  const int c = dimension < g.dim ? dimension : -1;
  T* target = dq + token * g.q_stride + static_cast<int64_t>(first) * g.dim + dimension;
  const float* source = daxial_bias + (token * g.heads + first) * g.axial;
  float sums[kHeads];
  VESAL_UNROLL
  for (int m = 0; m < kHeads; ++m) {
    sums[m] = accumulate != 0 && c >= 0 && m < heads ? widen(target[m * g.dim]) : 0.0f;
  }
  const int within = static_cast<int>(blockIdx.x) / groups % static_cast<int>(g.queries);
  VESAL_UNROLL
  for (int a = 0; a < 3; ++a) {
    add_axis(g, tables.axes[a], source, heads, within, c, factors, sums);
  }
  VESAL_UNROLL
  for (int m = 0; m < kHeads; ++m) {
    if (c >= 0 && m < heads) {
      target[m * g.dim] = narrow<T>(sums[m]);
    }
  }
}

// Block (32 rows of the table x piece of the queries, 64 dimensions): partials [piece][row][dim].
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kBlock)
    table_partials_kernel(Geometry g, RelativePositionAxis axis, const T* VESAL_RESTRICT q,
                          const float* VESAL_RESTRICT daxial_bias, float* VESAL_RESTRICT partials, int pieces,
                          int table_rows) {
  VESAL_SHARED(float4, factors, [kPieceQueries][kTileRows / 4]);
  VESAL_SHARED(float4, vectors, [kPieceQueries][kTileDims / 4]);
  VESAL_SHARED(QueryRow, rows, [kPieceQueries]);
  VESAL_SHARED(int, places, [kPieceQueries]);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 16;  // dimensions 4 lane + ..., rows 4 own + ...
  const int own = thread / 16;
  const int64_t piece = static_cast<int>(blockIdx.x) % pieces;
  const int first_row = static_cast<int>(blockIdx.x) / pieces * kTileRows;
  const int first_dim = static_cast<int>(blockIdx.y) * kTileDims;
  const int64_t count = g.n * (g.queries / axis.queries) * g.heads;  // queries at a place
  const int64_t all = count * axis.queries;
  const int64_t end = all * (piece + 1) / pieces;
  float sums[4][4] = {};
  for (int64_t first = all * piece / pieces; first < end; first += kPieceQueries) {
    const int real = static_cast<int>(end - first < kPieceQueries ? end - first : kPieceQueries);
    const int lowest = axis.row(static_cast<int>(first / count), axis.keys - 1);
    const int highest = axis.row(static_cast<int>((first + real - 1) / count), 0);
    if (highest < first_row || lowest >= first_row + kTileRows) {
      continue;
    }
    __syncthreads();
    if (thread < real) {
      const int64_t i = first + thread;
      places[thread] = static_cast<int>(i / count);
      rows[thread] = query_row(g, axis, places[thread], i % count);
    }
    __syncthreads();
    for (int e = thread; e < kPieceQueries * kTileRows; e += kBlock) {
      const int m = e / kTileRows;
      const int key = m < real ? axis.key(places[m], first_row + e % kTileRows) : -1;
      reinterpret_cast<float*>(factors)[e] =
          key >= 0 ? daxial_bias[rows[m].row * g.axial + axis.offset + key] : 0.0f;
    }
    for (int e = thread; e < kPieceQueries * kTileDims; e += kBlock) {
      const int m = e / kTileDims;
      const int c = first_dim + e % kTileDims;
      reinterpret_cast<float*>(vectors)[e] = m < real && c < g.dim ? widen(q[rows[m].vector + c]) : 0.0f;
    }
    __syncthreads();
    for (int m = 0; m < real; ++m) {
      const float4 a = factors[m][own];
      const float4 b = vectors[m][lane];
      const float factor[4] = {a.x, a.y, a.z, a.w};
      VESAL_UNROLL
      for (int i = 0; i < 4; ++i) {
        sums[i][0] = fmaf(factor[i], b.x, sums[i][0]);
        sums[i][1] = fmaf(factor[i], b.y, sums[i][1]);
        sums[i][2] = fmaf(factor[i], b.z, sums[i][2]);
        sums[i][3] = fmaf(factor[i], b.w, sums[i][3]);
      }
    }
  }
  VESAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = first_row + own * 4 + i;
    float* target = partials + (piece * table_rows + row) * g.dim;
    VESAL_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int c = first_dim + lane * 4 + k;
      if (row < table_rows && c < g.dim) {
        target[c] = sums[i][k];
      }
    }
  }
}

// Block (32 numbers of the table), thread (number, warp): adds the pieces up.
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(32 * kWarps)
    table_gradients_kernel(int64_t numbers, int pieces, const float* VESAL_RESTRICT partials,
                           float* VESAL_RESTRICT dtable, int accumulate) {
  VESAL_SHARED(float, sums, [kWarps][32]);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0.0f;
  for (int piece = static_cast<int>(threadIdx.y); piece < pieces && i < numbers; piece += kWarps) {
    sum += partials[piece * numbers + i];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && i < numbers) {
    for (int warp = 1; warp < kWarps; ++warp) {
      sum += sums[warp][threadIdx.x];
    }
    dtable[i] = accumulate != 0 ? dtable[i] + sum : sum;
  }
}

// Into how many pieces of 64 queries or more an axis' queries are cut, by the shape alone: enough for two
// rounds of a large GPU.
int64_t piece_count(const RelativePositionParams& p, int axis) {
  const int64_t tiles = ceil_div(p.table_rows(axis), kTileRows) * ceil_div(p.head_dim, kTileDims);
  const int64_t queries = p.n * p.queries() * p.heads;
  return std::clamp<int64_t>(1024 / tiles, 1, std::min<int64_t>(256, ceil_div(queries, 64)));
}

}  // namespace

void relative_position_forward(Context& context, const RelativePositionParams& params, ConstData q_,
                               const RelativePositionTables& tables, Data axial_bias_) {
  float* axial_bias = axial_bias_.as<float>("relative_position_forward: axial_bias");
  const Geometry g = geometry_of(params);
  const auto axes = relative_position_axes(params);
  with_storage("relative_position_forward", {q_}, [&]<class T>(T) {
    const T* q = q_.as<T>("relative_position_forward: q");
    for (size_t a = 0; a < 3; ++a) {
      const float* table = tables[a].as<float>("relative_position_forward: table");
      const int64_t count = g.n * (g.queries / axes[a].queries) * g.heads;
      launch(context.stream(),
             {.grid = {axes[a].queries * ceil_div(count, kTileQueries), ceil_div(axes[a].keys, kTileKeys)},
              .block = kBlock},
             forward_kernel<T>, g, axes[a], q, table, axial_bias);
    }
  });
}

size_t relative_position_backward_workspace_bytes(Context&, const RelativePositionParams& params) {
  int64_t numbers = 0;
  for (int axis = 0; axis < 3; ++axis) {
    numbers = std::max(numbers, piece_count(params, axis) * params.table_rows(axis) * params.head_dim);
  }
  return static_cast<size_t>(numbers) * sizeof(float);
}

void relative_position_backward(Context& context, const RelativePositionParams& params, ConstData q_,
                                const RelativePositionTables& tables, ConstData daxial_bias_, Data dq_,
                                GradMode dq_mode, const RelativePositionTableGradients& dtables,
                                GradMode table_mode, Workspace workspace) {
  const float* daxial_bias = daxial_bias_.as<float>("relative_position_backward: daxial_bias");
  float* partials = static_cast<float*>(workspace.data);
  const Geometry g = geometry_of(params);
  const auto axes = relative_position_axes(params);
  TableAxes table_axes;
  for (size_t a = 0; a < 3; ++a) {
    table_axes.axes[a] = {axes[a], tables[a].as<float>("relative_position_backward: table")};
  }
  with_storage("relative_position_backward", {q_, dq_}, [&]<class T>(T) {
    const T* q = q_.as<T>("relative_position_backward: q");
    T* dq = dq_.as<T>("relative_position_backward: dq");
    launch(context.stream(),
           {.grid = {g.n * g.queries * ceil_div(g.heads, kHeads), ceil_div(g.dim, kTileDims)},
            .block = kTileDims},
           query_gradients_kernel<T>, g, table_axes, daxial_bias, dq,
           dq_mode == GradMode::accumulate ? 1 : 0);
    for (size_t a = 0; a < 3; ++a) {
      float* dtable = dtables[a].as<float>("relative_position_backward: dtable");
      if (dtable != nullptr) {
        const int axis = static_cast<int>(a);
        const int64_t rows = params.table_rows(axis);
        const int64_t pieces = piece_count(params, axis);
        launch(context.stream(),
               {.grid = {pieces * ceil_div(rows, kTileRows), ceil_div(g.dim, kTileDims)}, .block = kBlock},
               table_partials_kernel<T>, g, axes[a], q, daxial_bias, partials, static_cast<int>(pieces),
               static_cast<int>(rows));
        launch(context.stream(), {.grid = ceil_div(rows * g.dim, 32), .block = {32, kWarps}},
               table_gradients_kernel, rows * g.dim, static_cast<int>(pieces),
               static_cast<const float*>(partials), dtable, table_mode == GradMode::accumulate ? 1 : 0);
      }
    }
  });
}

}  // namespace VESAL_BACKEND
}  // namespace vesal::kernels
