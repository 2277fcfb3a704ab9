// Sparse graph kernels: building the graph, edge weights, and the sparse products.
//
// Nearest neighbours: M^2 * F * 3 operations (subtract, multiply, add; no fused multiply-add, so that all
// devices round alike and choose the same edges) on M * F * 4 bytes: limited by arithmetic. A block of 8
// warps keeps 32 queries; tiles of 64 candidates pass through shared memory; a warp holds the 32 best keys of
// each of its 4 queries, one a lane. For k > 32 the tiles are passed again for the next 32. The adjacency is
// a bitmap in the workspace (M^2 / 8 bytes, one sample at a time) set with integer atomicOr, whose result has
// no order; counting, scanning and writing the rows is limited by latency. Edge weights and products: 17 or
// so edges a row; limited by gathers from the L2 cache.
#include <algorithm>
#include <cmath>

#include "base/size.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/graph/graph.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

using Key = unsigned long long;  // distance bits above, candidate below: smaller is nearer, ties by index

constexpr int kWarps = 8;
constexpr int kQueriesPerWarp = 4;
constexpr int kQueries = kWarps * kQueriesPerWarp;
constexpr int kCandidates = 64;
constexpr int kChunk = 32;  // features in shared memory at a time
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr unsigned kInfinityBits = 0x7f800000u;
constexpr Key kNoKey = ~0ull;
constexpr int kScanThreads = 1024;
constexpr int kRowLanes = 8;  // threads that share a row of edges
constexpr int kBlock = 256;

struct Grid {
  int nodes, d, h, w, words;  // of one set
  int regions;                // 0: the nodes are the grid's points
  int branches, modalities;
};

// Which nodes are absent; all there when the pointer is null.
struct Mask {
  const unsigned char* available;
  int64_t nodes_per_set;

  VESAL_DEVICE bool absent(int64_t node) const {
    return available != nullptr && available[node / nodes_per_set] == 0;
  }
};

VESAL_DEVICE bool bit_of(const unsigned* bits, int i) { return (bits[i / 32] >> (i % 32) & 1u) != 0; }

// Bit j of row i's adjacency as far as it needs no features, for the 32 columns of one word.
VESAL_DEVICE unsigned spatial_word(const Grid& g, int i, int word) {
  unsigned bits = 0;
  const int x = i % g.w, y = i / g.w % g.h, z = i / (g.w * g.h);
  const int plane = g.w * g.h;
  const int columns[7] = {i,
                          x > 0 ? i - 1 : i,
                          x + 1 < g.w ? i + 1 : i,
                          y > 0 ? i - g.w : i,
                          y + 1 < g.h ? i + g.w : i,
                          z > 0 ? i - plane : i,
                          z + 1 < g.d ? i + plane : i};
  VESAL_UNROLL
  for (int c = 0; c < 7; ++c) {
    bits |= columns[c] / 32 == word ? 1u << (columns[c] % 32) : 0u;
  }
  return bits;
}

// The type of an edge within a set; spatial [nodes, words] tells it for regions.
VESAL_DEVICE unsigned char own_edge_type(const Grid& g, const unsigned* spatial, int i, int j) {
  if (g.regions > 0) {
    const bool touching = bit_of(spatial + static_cast<int64_t>(i) * g.words, j);
    return i == j ? kSelfEdge : (touching ? kSpatialEdge : kSemanticEdge);
  }
  const int dx = i % g.w - j % g.w;
  const int dy = i / g.w % g.h - j / g.w % g.h;
  const int dz = i / (g.w * g.h) - j / (g.w * g.h);
  const int steps = (dx < 0 ? -dx : dx) + (dy < 0 ? -dy : dy) + (dz < 0 ? -dz : dz);
  return static_cast<unsigned char>(min(steps, 2));
}

// A set's bitmap before the nearest nodes: itself and its spatial neighbours.
VESAL_KERNEL void fill_bitmap(Grid g, const unsigned* VESAL_RESTRICT spatial,
                              unsigned* VESAL_RESTRICT bitmap) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < static_cast<int64_t>(g.nodes) * g.words) {
    const int i = static_cast<int>(index / g.words);
    const int word = static_cast<int>(index % g.words);
    if (g.regions > 0) {
      bitmap[index] = spatial[index] | (i / 32 == word ? 1u << (i % 32) : 0u);
    } else {
      bitmap[index] = spatial_word(g, i, word);
    }
  }
}

VESAL_KERNEL void clear_words(int64_t count, unsigned* VESAL_RESTRICT words) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < count) {
    words[index] = 0u;
  }
}

VESAL_DEVICE void link_regions(const Grid& g, int a, int b, unsigned* spatial) {
  if (a != b && b >= 0 && b < g.regions) {
    atomicOr(spatial + static_cast<int64_t>(a) * g.words + b / 32, 1u << (b % 32));
    atomicOr(spatial + static_cast<int64_t>(b) * g.words + a / 32, 1u << (a % 32));
  }
}

// spatial [nodes, words]: the regions that touch; occupied [words]: those that have a voxel. One thread a
// voxel.
VESAL_KERNEL void mark_regions(Grid g, const int* VESAL_RESTRICT labels, unsigned* VESAL_RESTRICT spatial,
                               unsigned* VESAL_RESTRICT occupied) {
  const int64_t plane = static_cast<int64_t>(g.h) * g.w;
  const int64_t v = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int label = v < g.d * plane ? labels[v] : -1;
  if (label < 0 || label >= g.regions) {
    return;
  }
  atomicOr(occupied + label / 32, 1u << (label % 32));
  if (v % g.w + 1 < g.w) {
    link_regions(g, label, labels[v + 1], spatial);
  }
  if (v / g.w % g.h + 1 < g.h) {
    link_regions(g, label, labels[v + g.w], spatial);
  }
  if (v / plane + 1 < g.d) {
    link_regions(g, label, labels[v + plane], spatial);
  }
}

// Puts a warp's candidate keys into its sorted list (lane l holds the l-th smallest key) as far as they are
// below the list's `kept`-th.
VESAL_DEVICE void insert_keys(Key key, int kept, int lane, Key& list) {
  Key limit = __shfl_sync(kFullWarp, list, kept - 1);
  unsigned pending = __ballot_sync(kFullWarp, key < limit);
  while (pending != 0) {
    const int source = __ffs(static_cast<int>(pending)) - 1;
    const Key inserted = __shfl_sync(kFullWarp, key, source);
    const int position = __popc(__ballot_sync(kFullWarp, list < inserted));
    const Key before = __shfl_up_sync(kFullWarp, list, 1);
    list = lane < position ? list : (lane == position ? inserted : before);
    if (lane == source) {
      key = kNoKey;
    }
    limit = __shfl_sync(kFullWarp, list, kept - 1);
    pending = __ballot_sync(kFullWarp, key < limit);
  }
}

template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kWarps * 32)
    link_nearest(Input<T> features, int count, int neighbours, Grid g,
                 const unsigned* VESAL_RESTRICT occupied, const unsigned char* VESAL_RESTRICT available,
                 unsigned* VESAL_RESTRICT bitmap) {
  VESAL_SHARED(float, candidates, [kChunk][kCandidates + 1]);
  VESAL_SHARED(float, queries, [kChunk][kQueries + 1]);
  if (available != nullptr && *available == 0) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_query = static_cast<int>(blockIdx.x) * kQueries;
  Key bound[kQueriesPerWarp];  // the last key of the pass before, which found all below it
  VESAL_UNROLL
  for (int q = 0; q < kQueriesPerWarp; ++q) {
    bound[q] = 0;
  }
  for (int done = 0; done < neighbours; done += 32) {
    const int kept = min(32, neighbours - done);
    Key list[kQueriesPerWarp];
    VESAL_UNROLL
    for (int q = 0; q < kQueriesPerWarp; ++q) {
      list[q] = kNoKey;
    }
    for (int tile = 0; tile < g.nodes; tile += kCandidates) {
      float distance[kQueriesPerWarp][2];
      VESAL_UNROLL
      for (int q = 0; q < kQueriesPerWarp; ++q) {
        distance[q][0] = 0.0f;
        distance[q][1] = 0.0f;
      }
      for (int chunk = 0; chunk < count; chunk += kChunk) {
        const int length = min(kChunk, count - chunk);
        __syncthreads();
        for (int row = warp; row < kCandidates; row += kWarps) {
          const bool valid = lane < length && tile + row < g.nodes;
          candidates[lane][row] =
              valid ? features[static_cast<int64_t>(tile + row) * count + chunk + lane] : 0.0f;
        }
        for (int row = warp; row < kQueries; row += kWarps) {
          const bool valid = lane < length && first_query + row < g.nodes;
          queries[lane][row] =
              valid ? features[static_cast<int64_t>(first_query + row) * count + chunk + lane] : 0.0f;
        }
        __syncthreads();
        for (int f = 0; f < length; ++f) {
          const float c0 = candidates[f][lane];
          const float c1 = candidates[f][lane + 32];
          VESAL_UNROLL
          for (int q = 0; q < kQueriesPerWarp; ++q) {
            const float query = queries[f][warp * kQueriesPerWarp + q];
            const float e0 = __fsub_rn(c0, query);
            const float e1 = __fsub_rn(c1, query);
            distance[q][0] = __fadd_rn(distance[q][0], __fmul_rn(e0, e0));
            distance[q][1] = __fadd_rn(distance[q][1], __fmul_rn(e1, e1));
          }
        }
      }
      VESAL_UNROLL
      for (int q = 0; q < kQueriesPerWarp; ++q) {
        const int i = first_query + warp * kQueriesPerWarp + q;
        VESAL_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int j = tile + half * 32 + lane;
          // As unsigned integers, infinity and NaN of either sign are above every finite distance.
          const unsigned bits = __float_as_uint(distance[q][half]);
          Key key = (static_cast<Key>(bits) << 32) | static_cast<unsigned>(j);
          const bool seen = done > 0 && key <= bound[q];
          if (i >= g.nodes || j >= g.nodes || j == i || bits >= kInfinityBits || seen ||
              (occupied != nullptr && !(bit_of(occupied, i) && bit_of(occupied, j)))) {
            key = kNoKey;
          }
          insert_keys(key, kept, lane, list[q]);
        }
      }
    }
    VESAL_UNROLL
    for (int q = 0; q < kQueriesPerWarp; ++q) {
      const int i = first_query + warp * kQueriesPerWarp + q;
      if (lane < kept && list[q] != kNoKey) {
        const int j = static_cast<int>(list[q] & 0xffffffffu);
        atomicOr(bitmap + static_cast<int64_t>(i) * g.words + j / 32, 1u << (j % 32));
        atomicOr(bitmap + static_cast<int64_t>(j) * g.words + i / 32, 1u << (i % 32));
      }
      bound[q] = __shfl_sync(kFullWarp, list[q], kept - 1);
    }
  }
}

// The edges of a node to the other sets.
VESAL_DEVICE int cross_edges(const Grid& g, const unsigned* occupied, int i) {
  return occupied == nullptr || bit_of(occupied, i) ? g.branches - 1 + g.modalities - 1 : 0;
}

// The number of edges of each row; one warp a row.
VESAL_KERNEL void count_edges(const unsigned* VESAL_RESTRICT bitmap, Grid g,
                              const unsigned* VESAL_RESTRICT occupied, int* VESAL_RESTRICT counts) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32);
  int count = 0;
  if (row < g.nodes) {
    for (int word = lane; word < g.words; word += 32) {
      count += __popc(bitmap[static_cast<int64_t>(row) * g.words + word]);
    }
  }
  count = __reduce_add_sync(kFullWarp, count);
  if (row < g.nodes && lane == 0) {
    counts[row] = count + cross_edges(g, occupied, row);
  }
}

// offsets[1 .. nodes] holds counts; turns them into sums that begin at offsets[0]. One block.
VESAL_KERNEL void scan_counts(int nodes, int first_sample, int* VESAL_RESTRICT offsets) {
  VESAL_SHARED(int, sums, [kScanThreads]);
  const int thread = static_cast<int>(threadIdx.x);
  const int length = (nodes + kScanThreads - 1) / kScanThreads;
  const int begin = min(thread * length, nodes);
  const int end = min(begin + length, nodes);
  int total = 0;
  for (int i = begin; i < end; ++i) {
    total += offsets[i + 1];
  }
  sums[thread] = total;
  const int base = first_sample ? 0 : offsets[0];
  __syncthreads();
  for (int step = 1; step < kScanThreads; step *= 2) {
    const int before = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  int running = base + sums[thread] - total;
  for (int i = begin; i < end; ++i) {
    running += offsets[i + 1];
    offsets[i + 1] = running;
  }
  if (first_sample && thread == 0) {
    offsets[0] = 0;
  }
}

// The edges of node i of `set` to node i of the sets [first, last); returns the place behind them.
VESAL_DEVICE int write_cross_edges(const Grid& g, int set, int first, int last, int first_node, int i,
                                   int edge, int* columns, unsigned char* types) {
  for (int other = first; other < last; ++other) {
    const bool same_modality = other % g.modalities == set % g.modalities;
    if (same_modality || other / g.modalities == set / g.modalities) {
      columns[edge] = first_node + other * g.nodes + i;
      types[edge] = same_modality ? kCrossBranchEdge : kCrossModalityEdge;
      ++edge;
    }
  }
  return edge;
}

// Columns in ascending order and types; one warp a row, each lane the set bits of one word. The first node is
// the sample's.
VESAL_KERNEL void write_rows(const unsigned* VESAL_RESTRICT bitmap, Grid g,
                             const unsigned* VESAL_RESTRICT spatial, const unsigned* VESAL_RESTRICT occupied,
                             int set, int first_node, const int* VESAL_RESTRICT offsets,
                             int* VESAL_RESTRICT columns, unsigned char* VESAL_RESTRICT types) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32);
  const bool valid = row < g.nodes;
  int base = valid ? offsets[row] : 0;
  const bool crosses = valid && cross_edges(g, occupied, row) > 0;
  const int sets = g.branches * g.modalities;
  if (crosses && lane == 0) {
    base = write_cross_edges(g, set, 0, set, first_node, row, base, columns, types);
  }
  base = __shfl_sync(kFullWarp, base, 0);
  for (int first = 0; first < g.words; first += 32) {
    const int word = first + lane;
    unsigned bits = valid && word < g.words ? bitmap[static_cast<int64_t>(row) * g.words + word] : 0u;
    const int count = __popc(bits);
    int through = count;
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(kFullWarp, through, static_cast<unsigned>(step));
      through += lane >= step ? before : 0;
    }
    int edge = base + through - count;
    while (bits != 0) {
      const int j = word * 32 + __ffs(static_cast<int>(bits)) - 1;
      columns[edge] = first_node + set * g.nodes + j;
      types[edge] = own_edge_type(g, spatial, row, j);
      bits &= bits - 1;
      ++edge;
    }
    base += __shfl_sync(kFullWarp, through, 31);
  }
  if (crosses && lane == 0) {
    write_cross_edges(g, set, set + 1, sets, first_node, row, base, columns, types);
  }
}

// The row that this thread works on with kRowLanes - 1 others, and the edges it begins and ends at. Rows
// beyond the last have no edges: their threads still take part in the sums.
struct RowSlice {
  int row;
  int lane;
  int begin;
  int end;
};

VESAL_DEVICE RowSlice row_slice(int nodes, const int* offsets) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  RowSlice slice;
  slice.row = static_cast<int>(thread / kRowLanes);
  slice.lane = static_cast<int>(thread % kRowLanes);
  slice.begin = slice.row < nodes ? offsets[slice.row] : 0;
  slice.end = slice.row < nodes ? offsets[slice.row + 1] : 0;
  return slice;
}

template <class T>
VESAL_DEVICE T sum_over_lanes(T value) {
  for (int step = kRowLanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, step);
  }
  return value;
}

VESAL_KERNEL void write_transpose(int nodes, const int* VESAL_RESTRICT offsets,
                                  const int* VESAL_RESTRICT columns, int* VESAL_RESTRICT transpose) {
  const RowSlice slice = row_slice(nodes, offsets);
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    const int j = columns[e];
    int low = offsets[j];
    int high = offsets[j + 1] - 1;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (columns[middle] < slice.row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    transpose[e] = low;
  }
}

// A row's degree sum exp(theta) over the edges that are not cut as largest theta and the sum of
// exp(theta - largest), and these edges by type; -inf and 0 where all are cut. The same values in all lanes.
struct RowSum {
  float largest;
  float sum;
  int count[kEdgeTypes];
};

VESAL_DEVICE RowSum row_sum(const RowSlice& slice, const Mask& mask, const int* columns,
                            const unsigned char* types, const float* theta) {
  RowSum row;
  VESAL_UNROLL
  for (int t = 0; t < kEdgeTypes; ++t) {
    row.count[t] = 0;
  }
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    const int type = mask.absent(columns[e]) ? kEdgeTypes : types[e];
    VESAL_UNROLL
    for (int t = 0; t < kEdgeTypes; ++t) {
      row.count[t] += type == t ? 1 : 0;
    }
  }
  row.largest = -INFINITY;
  VESAL_UNROLL
  for (int t = 0; t < kEdgeTypes; ++t) {
    row.count[t] = sum_over_lanes(row.count[t]);
    row.largest = row.count[t] > 0 ? fmaxf(row.largest, theta[t]) : row.largest;
  }
  row.sum = 0.0f;
  VESAL_UNROLL
  for (int t = 0; t < kEdgeTypes; ++t) {
    row.sum += row.count[t] > 0 ? static_cast<float>(row.count[t]) * expf(theta[t] - row.largest) : 0.0f;
  }
  return row;
}

VESAL_KERNEL void symmetric_degrees(int nodes, Mask mask, const int* VESAL_RESTRICT offsets,
                                    const int* VESAL_RESTRICT columns,
                                    const unsigned char* VESAL_RESTRICT types,
                                    const float* VESAL_RESTRICT theta, float* VESAL_RESTRICT largest,
                                    float* VESAL_RESTRICT scale) {
  const RowSlice slice = row_slice(nodes, offsets);
  const RowSum row = row_sum(slice, mask, columns, types, theta);
  if (slice.row < nodes && slice.lane == 0) {
    largest[slice.row] = row.largest;
    scale[slice.row] = 1.0f / sqrtf(row.sum);
  }
}

template <class T>
VESAL_KERNEL void symmetric_values(int nodes, Mask mask, const int* VESAL_RESTRICT offsets,
                                   const int* VESAL_RESTRICT columns,
                                   const unsigned char* VESAL_RESTRICT types,
                                   const float* VESAL_RESTRICT theta, const float* VESAL_RESTRICT largest,
                                   const float* VESAL_RESTRICT scale, Output<T> values) {
  const RowSlice slice = row_slice(nodes, offsets);
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    const int j = columns[e];
    const float t = theta[types[e]];
    const float exponent = 0.5f * (t - largest[slice.row]) + 0.5f * (t - largest[j]);
    values[e] = mask.absent(j) ? 0.0f : expf(exponent) * scale[slice.row] * scale[j];
  }
}

// log value = theta - log(D_i) / 2 - log(D_j) / 2, and d log(D_i) / d theta_t is type t's share of D_i.
template <class T>
VESAL_KERNEL void symmetric_backward(int nodes, Mask mask, const int* VESAL_RESTRICT offsets,
                                     const int* VESAL_RESTRICT columns,
                                     const unsigned char* VESAL_RESTRICT types,
                                     const int* VESAL_RESTRICT transpose, const float* VESAL_RESTRICT theta,
                                     Input<T> values, Input<T> dvalues, double* VESAL_RESTRICT partial) {
  const RowSlice slice = row_slice(nodes, offsets);
  const RowSum row = row_sum(slice, mask, columns, types, theta);
  double direct[kEdgeTypes];
  VESAL_UNROLL
  for (int t = 0; t < kEdgeTypes; ++t) {
    direct[t] = 0.0;
  }
  double through_degree = 0.0;
  const bool sends = slice.row < nodes && !mask.absent(slice.row);
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    const bool receives = !mask.absent(columns[e]);
    const double here = receives ? static_cast<double>(values[e]) * static_cast<double>(dvalues[e]) : 0.0;
    const int mirrored = transpose[e];
    const int type = types[e];
    VESAL_UNROLL
    for (int t = 0; t < kEdgeTypes; ++t) {
      direct[t] += type == t ? here : 0.0;
    }
    through_degree +=
        here + (sends ? static_cast<double>(values[mirrored]) * static_cast<double>(dvalues[mirrored]) : 0.0);
  }
  through_degree = sum_over_lanes(through_degree);
  VESAL_UNROLL
  for (int t = 0; t < kEdgeTypes; ++t) {
    direct[t] = sum_over_lanes(direct[t]);
    if (slice.row < nodes && slice.lane == 0) {
      const double share = row.count[t] > 0 ? static_cast<double>(row.count[t]) *
                                                  static_cast<double>(expf(theta[t] - row.largest)) /
                                                  static_cast<double>(row.sum)
                                            : 0.0;
      partial[static_cast<int64_t>(slice.row) * kEdgeTypes + t] = direct[t] - 0.5 * share * through_degree;
    }
  }
}

// sums[t] = sum over the nodes of partial [nodes, kEdgeTypes]; block t.
VESAL_KERNEL void sum_over_nodes(const double* VESAL_RESTRICT partial, int nodes, int accumulate,
                                 float* VESAL_RESTRICT sums) {
  VESAL_SHARED(double, shared, [kBlock]);
  const int type = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (int i = thread; i < nodes; i += kBlock) {
    sum += partial[static_cast<int64_t>(i) * kEdgeTypes + type];
  }
  shared[thread] = sum;
  for (int step = kBlock / 2; step > 0; step /= 2) {
    __syncthreads();
    if (thread < step) {
      shared[thread] += shared[thread + step];
    }
  }
  if (thread == 0) {
    sums[type] = static_cast<float>(shared[0]) + (accumulate ? sums[type] : 0.0f);
  }
}

template <class T>
VESAL_KERNEL void attention_scores(int nodes, Mask mask, const int* VESAL_RESTRICT offsets,
                                   const int* VESAL_RESTRICT columns,
                                   const unsigned char* VESAL_RESTRICT types, float slope, Input<T> a,
                                   Input<T> b, const float* VESAL_RESTRICT theta, Output<T> scores) {
  const RowSlice slice = row_slice(nodes, offsets);
  const float own = slice.row < nodes && !mask.absent(slice.row) ? a[slice.row] : 0.0f;
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    const int j = columns[e];
    const float sum = own + b[j] + theta[types[e]];
    scores[e] = mask.absent(j) ? -INFINITY : (sum > 0.0f ? sum : slope * sum);
  }
}

template <class T>
VESAL_KERNEL void attention_backward(int nodes, Mask mask, const int* VESAL_RESTRICT offsets,
                                     const int* VESAL_RESTRICT columns,
                                     const unsigned char* VESAL_RESTRICT types,
                                     const int* VESAL_RESTRICT transpose, float slope, Input<T> a, Input<T> b,
                                     const float* VESAL_RESTRICT theta, Input<T> dscores, Output<T> da,
                                     Output<T> db, double* VESAL_RESTRICT partial) {
  const RowSlice slice = row_slice(nodes, offsets);
  double by_type[kEdgeTypes];
  VESAL_UNROLL
  for (int t = 0; t < kEdgeTypes; ++t) {
    by_type[t] = 0.0;
  }
  double column_sum = 0.0;
  const bool sends = slice.row < nodes && !mask.absent(slice.row);
  const float own = sends ? a[slice.row] : 0.0f;
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    const int j = columns[e];
    const int mirrored = transpose[e];
    const int type = types[e];
    const bool receives = !mask.absent(j);
    float gradient = 0.0f;
    if (receives) {
      gradient = own + b[j] + theta[type] > 0.0f ? dscores[e] : slope * dscores[e];
    }
    if (sends) {
      const float other = receives ? a[j] : 0.0f;
      const bool positive = other + b[slice.row] + theta[type] > 0.0f;
      column_sum += static_cast<double>(positive ? dscores[mirrored] : slope * dscores[mirrored]);
    }
    VESAL_UNROLL
    for (int t = 0; t < kEdgeTypes; ++t) {
      by_type[t] += type == t ? static_cast<double>(gradient) : 0.0;
    }
  }
  column_sum = sum_over_lanes(column_sum);
  double row_total = 0.0;
  VESAL_UNROLL
  for (int t = 0; t < kEdgeTypes; ++t) {
    by_type[t] = sum_over_lanes(by_type[t]);
    row_total += by_type[t];
    if (slice.row < nodes && slice.lane == 0) {
      partial[static_cast<int64_t>(slice.row) * kEdgeTypes + t] = by_type[t];
    }
  }
  if (slice.row < nodes && slice.lane == 0) {
    da[slice.row] = sends ? static_cast<float>(row_total) : 0.0f;
    db[slice.row] = static_cast<float>(column_sum);
  }
}

template <class T>
VESAL_KERNEL void segment_softmax(int nodes, const int* VESAL_RESTRICT offsets, Input<T> scores,
                                  Output<T> values) {
  const RowSlice slice = row_slice(nodes, offsets);
  float largest = -INFINITY;
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    largest = fmaxf(largest, scores[e]);
  }
  for (int step = kRowLanes / 2; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, step));
  }
  const float base = largest == -INFINITY ? 0.0f : largest;
  float sum = 0.0f;
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    sum += expf(scores[e] - base);
  }
  sum = sum_over_lanes(sum);
  const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    values[e] = expf(scores[e] - base) * scale;
  }
}

template <class T>
VESAL_KERNEL void segment_softmax_backward(int nodes, const int* VESAL_RESTRICT offsets, Input<T> values,
                                           Input<T> dvalues, Output<T> dscores) {
  const RowSlice slice = row_slice(nodes, offsets);
  float mean = 0.0f;
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    mean += values[e] * dvalues[e];
  }
  mean = sum_over_lanes(mean);
  for (int e = slice.begin + slice.lane; e < slice.end; e += kRowLanes) {
    dscores[e] = values[e] * (dvalues[e] - mean);
  }
}

// One thread an element of y: neighbouring threads read neighbouring features, and the edges as broadcasts. A
// cut edge's source is not read; in the transposed product the row is the source.
template <class T>
VESAL_KERNEL void spmm(int nodes, Mask mask, const int* VESAL_RESTRICT offsets,
                       const int* VESAL_RESTRICT columns, const int* VESAL_RESTRICT order, int64_t features,
                       Input<T> values, Input<T> z, int accumulate, Output<T> y) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= nodes * features) {
    return;
  }
  const int64_t row = index / features;
  const int64_t feature = index - row * features;
  float sum = accumulate ? y[index] : 0.0f;
  const bool transposed = order != nullptr;
  const int end = transposed && mask.absent(row) ? 0 : offsets[row + 1];
  for (int e = offsets[row]; e < end; ++e) {
    const int j = columns[e];
    if (transposed || !mask.absent(j)) {
      sum = fmaf(values[transposed ? order[e] : e], z[j * features + feature], sum);
    }
  }
  y[index] = sum;
}

// One warp a row; kRowLanes lanes an edge, so that four edges are in flight.
template <class T>
VESAL_KERNEL void sddmm(int nodes, Mask mask, const int* VESAL_RESTRICT offsets,
                        const int* VESAL_RESTRICT columns, int64_t features, Input<T> a, Input<T> b,
                        Output<T> out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int begin = row < nodes ? offsets[row] : 0;
  const int end = row < nodes ? offsets[row + 1] : 0;
  for (int first = begin; first < end; first += 32 / kRowLanes) {
    const int e = first + lane / kRowLanes;
    float sum = 0.0f;
    if (e < end && !mask.absent(columns[e])) {
      const int64_t j = columns[e];
      for (int64_t f = lane % kRowLanes; f < features; f += kRowLanes) {
        sum = fmaf(a[row * features + f], b[j * features + f], sum);
      }
    }
    sum = sum_over_lanes(sum);
    if (e < end && lane % kRowLanes == 0) {
      out[e] = sum;
    }
  }
}

template <class T>
VESAL_KERNEL void mask_nodes(int64_t count, Mask mask, int64_t features, Input<T> z, Output<T> y) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < count) {
    y[index] = mask.absent(index / features) ? 0.0f : z[index];
  }
}

Mask mask_of(const Graph& graph) { return {graph.available, graph.nodes_per_set}; }

int64_t row_blocks(int64_t nodes, int lanes) { return ceil_div(nodes * lanes, kBlock); }

}  // namespace

size_t graph_build_workspace_bytes(Context&, const GraphParams& p) {
  const int64_t nodes = p.nodes_per_set();
  const int64_t words = ceil_div(nodes, 32);
  return static_cast<size_t>(p.regions > 0 ? (2 * nodes + 1) * words * 4 : nodes * words * 4);
}

void graph_build(Context& context, const GraphParams& p, ConstData features, const int32_t* labels,
                 const Graph& graph, Workspace workspace) {
  const int64_t nodes = p.nodes_per_set();
  const int64_t words = ceil_div(nodes, 32);
  const int64_t voxels = p.d * p.h * p.w;
  auto* bitmap = static_cast<unsigned*>(workspace.data);
  unsigned* spatial = p.regions > 0 ? bitmap + nodes * words : nullptr;
  unsigned* occupied = p.regions > 0 ? spatial + nodes * words : nullptr;
  const Grid grid{static_cast<int>(nodes),      static_cast<int>(p.d),         static_cast<int>(p.h),
                  static_cast<int>(p.w),        static_cast<int>(words),       static_cast<int>(p.regions),
                  static_cast<int>(p.branches), static_cast<int>(p.modalities)};
  const auto k = static_cast<int>(std::min<int64_t>(p.neighbours, nodes - 1));
  for (int64_t block = 0; block < p.n * p.sets(); ++block) {
    const int64_t sample = block / p.sets();
    const auto set = static_cast<int>(block % p.sets());
    if (p.regions > 0 && set == 0) {
      launch(context.stream(), {.grid = ceil_div((nodes + 1) * words, kBlock), .block = kBlock}, clear_words,
             (nodes + 1) * words, spatial);
      launch(context.stream(), {.grid = ceil_div(voxels, kBlock), .block = kBlock}, mark_regions, grid,
             labels + sample * voxels, spatial, occupied);
    }
    int* offsets = graph.row_offsets + block * nodes;
    launch(context.stream(), {.grid = ceil_div(nodes * words, kBlock), .block = kBlock}, fill_bitmap, grid,
           spatial, bitmap);
    if (k > 0) {
      with_storage("graph_build", {features}, [&]<class T>(T) {
        launch(context.stream(), {.grid = ceil_div(nodes, kQueries), .block = kWarps * 32}, link_nearest<T>,
               input<T>(features, "graph_build: features") + block * nodes * p.features,
               static_cast<int>(p.features), k, grid, occupied,
               graph.available == nullptr ? nullptr : graph.available + block, bitmap);
      });
    }
    launch(context.stream(), {.grid = row_blocks(nodes, 32), .block = kBlock}, count_edges, bitmap, grid,
           occupied, offsets + 1);
    launch(context.stream(), {.grid = 1, .block = kScanThreads}, scan_counts, static_cast<int>(nodes),
           block == 0 ? 1 : 0, offsets);
    launch(context.stream(), {.grid = row_blocks(nodes, 32), .block = kBlock}, write_rows, bitmap, grid,
           spatial, occupied, set, static_cast<int>(sample * p.nodes_per_sample()), offsets, graph.columns,
           graph.types);
  }
  launch(context.stream(), {.grid = row_blocks(graph.nodes, kRowLanes), .block = kBlock}, write_transpose,
         static_cast<int>(graph.nodes), graph.row_offsets, graph.columns, graph.transpose);
}

size_t graph_symmetric_weights_workspace_bytes(Context&, const Graph& graph) {
  return static_cast<size_t>(graph.nodes) * kEdgeTypes * sizeof(double);
}

void graph_symmetric_weights_forward(Context& context, const Graph& graph, ConstData theta_, Data values,
                                     Workspace workspace) {
  const float* theta = theta_.as<float>("graph_symmetric_weights_forward: theta");
  auto* largest = static_cast<float*>(workspace.data);
  const auto nodes = static_cast<int>(graph.nodes);
  launch(context.stream(), {.grid = row_blocks(nodes, kRowLanes), .block = kBlock}, symmetric_degrees, nodes,
         mask_of(graph), graph.row_offsets, graph.columns, graph.types, theta, largest, largest + nodes);
  with_storage("graph_symmetric_weights_forward", {values}, [&]<class T>(T) {
    launch(context.stream(), {.grid = row_blocks(nodes, kRowLanes), .block = kBlock}, symmetric_values<T>,
           nodes, mask_of(graph), graph.row_offsets, graph.columns, graph.types, theta, largest,
           largest + nodes, output<T>(values, "graph_symmetric_weights_forward: values"));
  });
}

void graph_symmetric_weights_backward(Context& context, const Graph& graph, ConstData theta, ConstData values,
                                      ConstData dvalues, Data dtheta, GradMode mode, Workspace workspace) {
  auto* partial = static_cast<double*>(workspace.data);
  const auto nodes = static_cast<int>(graph.nodes);
  with_storage("graph_symmetric_weights_backward", {values, dvalues}, [&]<class T>(T) {
    launch(context.stream(), {.grid = row_blocks(nodes, kRowLanes), .block = kBlock}, symmetric_backward<T>,
           nodes, mask_of(graph), graph.row_offsets, graph.columns, graph.types, graph.transpose,
           theta.as<float>("graph_symmetric_weights_backward: theta"),
           input<T>(values, "graph_symmetric_weights_backward: values"),
           input<T>(dvalues, "graph_symmetric_weights_backward: dvalues"), partial);
  });
  launch(context.stream(), {.grid = graph.type_count, .block = kBlock}, sum_over_nodes, partial, nodes,
         mode == GradMode::accumulate ? 1 : 0, dtheta.as<float>("graph_symmetric_weights_backward: dtheta"));
}

void graph_attention_scores_forward(Context& context, const Graph& graph, float slope, ConstData a,
                                    ConstData b, ConstData theta, Data scores) {
  const auto nodes = static_cast<int>(graph.nodes);
  with_storage("graph_attention_scores_forward", {a, b, scores}, [&]<class T>(T) {
    launch(context.stream(), {.grid = row_blocks(nodes, kRowLanes), .block = kBlock}, attention_scores<T>,
           nodes, mask_of(graph), graph.row_offsets, graph.columns, graph.types, slope,
           input<T>(a, "graph_attention_scores_forward: a"), input<T>(b, "graph_attention_scores_forward: b"),
           theta.as<float>("graph_attention_scores_forward: theta"),
           output<T>(scores, "graph_attention_scores_forward: scores"));
  });
}

size_t graph_attention_scores_workspace_bytes(Context&, const Graph& graph) {
  return static_cast<size_t>(graph.nodes) * kEdgeTypes * sizeof(double);
}

void graph_attention_scores_backward(Context& context, const Graph& graph, float slope, ConstData a,
                                     ConstData b, ConstData theta, ConstData dscores, Data da, Data db,
                                     Data dtheta, GradMode mode, Workspace workspace) {
  auto* partial = static_cast<double*>(workspace.data);
  const auto nodes = static_cast<int>(graph.nodes);
  with_storage("graph_attention_scores_backward", {a, b, dscores, da, db}, [&]<class T>(T) {
    launch(context.stream(), {.grid = row_blocks(nodes, kRowLanes), .block = kBlock}, attention_backward<T>,
           nodes, mask_of(graph), graph.row_offsets, graph.columns, graph.types, graph.transpose, slope,
           input<T>(a, "graph_attention_scores_backward: a"),
           input<T>(b, "graph_attention_scores_backward: b"),
           theta.as<float>("graph_attention_scores_backward: theta"),
           input<T>(dscores, "graph_attention_scores_backward: dscores"),
           output<T>(da, "graph_attention_scores_backward: da"),
           output<T>(db, "graph_attention_scores_backward: db"), partial);
  });
  launch(context.stream(), {.grid = graph.type_count, .block = kBlock}, sum_over_nodes, partial, nodes,
         mode == GradMode::accumulate ? 1 : 0, dtheta.as<float>("graph_attention_scores_backward: dtheta"));
}

void graph_segment_softmax_forward(Context& context, const Graph& graph, ConstData scores, Data values) {
  const auto nodes = static_cast<int>(graph.nodes);
  with_storage("graph_segment_softmax_forward", {scores, values}, [&]<class T>(T) {
    launch(context.stream(), {.grid = row_blocks(nodes, kRowLanes), .block = kBlock}, segment_softmax<T>,
           nodes, graph.row_offsets, input<T>(scores, "graph_segment_softmax_forward: scores"),
           output<T>(values, "graph_segment_softmax_forward: values"));
  });
}

void graph_segment_softmax_backward(Context& context, const Graph& graph, ConstData values, ConstData dvalues,
                                    Data dscores) {
  const auto nodes = static_cast<int>(graph.nodes);
  with_storage("graph_segment_softmax_backward", {values, dvalues, dscores}, [&]<class T>(T) {
    launch(context.stream(), {.grid = row_blocks(nodes, kRowLanes), .block = kBlock},
           segment_softmax_backward<T>, nodes, graph.row_offsets,
           input<T>(values, "graph_segment_softmax_backward: values"),
           input<T>(dvalues, "graph_segment_softmax_backward: dvalues"),
           output<T>(dscores, "graph_segment_softmax_backward: dscores"));
  });
}

void graph_spmm(Context& context, const Graph& graph, int64_t features, ConstData values, ConstData z,
                bool transposed, Data y, GradMode mode) {
  with_storage("graph_spmm", {values, z, y}, [&]<class T>(T) {
    launch(context.stream(), {.grid = ceil_div(graph.nodes * features, kBlock), .block = kBlock}, spmm<T>,
           static_cast<int>(graph.nodes), mask_of(graph), graph.row_offsets, graph.columns,
           transposed ? graph.transpose : nullptr, features, input<T>(values, "graph_spmm: values"),
           input<T>(z, "graph_spmm: z"), mode == GradMode::accumulate ? 1 : 0, output<T>(y, "graph_spmm: y"));
  });
}

void graph_sddmm(Context& context, const Graph& graph, int64_t features, ConstData a, ConstData b, Data out) {
  with_storage("graph_sddmm", {a, b, out}, [&]<class T>(T) {
    launch(context.stream(), {.grid = row_blocks(graph.nodes, 32), .block = kBlock}, sddmm<T>,
           static_cast<int>(graph.nodes), mask_of(graph), graph.row_offsets, graph.columns, features,
           input<T>(a, "graph_sddmm: a"), input<T>(b, "graph_sddmm: b"), output<T>(out, "graph_sddmm: out"));
  });
}

void graph_mask_nodes(Context& context, const Graph& graph, int64_t features, ConstData z, Data y) {
  const int64_t count = graph.nodes * features;
  with_storage("graph_mask_nodes", {z, y}, [&]<class T>(T) {
    launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock}, mask_nodes<T>, count,
           mask_of(graph), features, input<T>(z, "graph_mask_nodes: z"), output<T>(y, "graph_mask_nodes: y"));
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
