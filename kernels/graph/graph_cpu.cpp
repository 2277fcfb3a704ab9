// Graph kernels on the host.
//
// Nearest neighbours: brute force over tiles of 64 candidates whose features are stored feature-major, so
// that the 16 lanes of a vector are 16 candidates and each distance adds its terms in the order of the
// features: the order, and with it every bit, that the other devices use too. Four queries share each load of
// a tile.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/graph/graph.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kTile = 64;   // candidates
constexpr int64_t kRows = 4;    // queries that share the loads of a tile
constexpr int64_t kPanel = 32;  // queries whose heaps are open at a time
constexpr int64_t kRowGrain = 64;
constexpr uint32_t kInfinityBits = 0x7f800000u;

// 16 and 8 floats; GCC splits the operations where the processor's vectors are shorter.
using Lanes [[gnu::vector_size(64)]] = float;
using HalfLanes [[gnu::vector_size(32)]] = float;

int64_t words_per_row(int64_t nodes) { return ceil_div(nodes, 32); }
int64_t found_neighbours(const GraphParams& p) {
  return std::min<int64_t>(p.neighbours, p.nodes_per_sample() - 1);
}

// The parts of graph_build's workspace, each aligned to 64 bytes.
struct BuildLayout {
  size_t bitmap = 0, tiles = 0, heaps = 0, total = 0;  // offsets in bytes
  int64_t workers = 1;

  explicit BuildLayout(const GraphParams& p) : workers(thread_count()) {
    const auto rounded = [](int64_t bytes) { return static_cast<size_t>(ceil_div(bytes, 64) * 64); };
    const int64_t nodes = p.nodes_per_sample();
    const int64_t k = found_neighbours(p);
    total += rounded(nodes * words_per_row(nodes) * 4);
    tiles = total;
    total += k > 0 ? rounded(checked_mul(ceil_div(nodes, kTile) * kTile * 4, p.features)) : 0;
    heaps = total;
    total += rounded(workers * kPanel * k * 8);
  }
};

int edge_type(const GraphParams& p, int64_t i, int64_t j) {
  const int64_t dw = std::abs(i % p.w - j % p.w);
  const int64_t dh = std::abs(i / p.w % p.h - j / p.w % p.h);
  const int64_t dd = std::abs(i / (p.w * p.h) - j / (p.w * p.h));
  return static_cast<int>(std::min<int64_t>(dw + dh + dd, 2));
}

void set_bit(uint32_t* bitmap, int64_t words, int64_t i, int64_t j) {
  std::atomic_ref<uint32_t>(bitmap[i * words + j / 32]).fetch_or(1u << (j % 32), std::memory_order_relaxed);
}

// Row i with the edges that do not depend on the features: itself and its neighbours in the grid.
void fill_spatial_row(const GraphParams& p, int64_t i, uint32_t* row) {
  const auto set = [row](int64_t j) { row[j / 32] |= 1u << (j % 32); };
  const int64_t x = i % p.w, y = i / p.w % p.h, z = i / (p.w * p.h);
  set(i);
  if (x > 0) set(i - 1);
  if (x + 1 < p.w) set(i + 1);
  if (y > 0) set(i - p.w);
  if (y + 1 < p.h) set(i + p.w);
  if (z > 0) set(i - p.w * p.h);
  if (z + 1 < p.d) set(i + p.w * p.h);
}

// features [nodes, count] to tiles [ceil(nodes / 64), count, 64]; the candidates beyond the last node are
// NaN, which is never near.
void fill_tile(const float* features, int64_t nodes, int64_t count, int64_t tile, float* target) {
  const int64_t first = tile * kTile;
  for (int64_t l = 0; l < kTile; ++l) {
    const float* source = features + (first + l) * count;
    if (first + l < nodes) {
      for (int64_t f = 0; f < count; ++f) {
        target[f * kTile + l] = source[f];
      }
    } else {
      for (int64_t f = 0; f < count; ++f) {
        target[f * kTile + l] = NAN;
      }
    }
  }
}

// Squared distances of four queries to a tile's 64 candidates: sums of (candidate - query)^2 in the order of
// the features, each product and each sum rounded (the build turns contraction off).
void tile_distances(const float* const (&query)[kRows], const float* tile, int64_t count,
                    float (&out)[kRows][kTile]) {
  static_assert(kTile == 64 && kRows == 4);
  Lanes a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{}, c0{}, c1{}, c2{}, c3{}, d0{}, d1{}, d2{}, d3{};
  for (int64_t f = 0; f < count; ++f) {
    Lanes t[4];
    std::memcpy(t, tile + f * kTile, sizeof(t));
    const auto add = [&t](float q, Lanes& s0, Lanes& s1, Lanes& s2, Lanes& s3) {
      const Lanes e0 = t[0] - q, e1 = t[1] - q, e2 = t[2] - q, e3 = t[3] - q;
      s0 += e0 * e0;
      s1 += e1 * e1;
      s2 += e2 * e2;
      s3 += e3 * e3;
    };
    add(query[0][f], a0, a1, a2, a3);
    add(query[1][f], b0, b1, b2, b3);
    add(query[2][f], c0, c1, c2, c3);
    add(query[3][f], d0, d1, d2, d3);
  }
  const Lanes all[kRows][4] = {{a0, a1, a2, a3}, {b0, b1, b2, b3}, {c0, c1, c2, c3}, {d0, d1, d2, d3}};
  std::memcpy(out, all, sizeof(out));
}

// The k smallest keys (distance bits, then candidate) seen so far, the largest of them on top. Candidates
// come in ascending order, so that a distance equal to the top's loses.
struct Heap {
  uint64_t* keys;
  int64_t size = 0;
  uint32_t limit = kInfinityBits;  // a candidate has to be nearer than this

  void offer(uint32_t bits, int64_t candidate, int64_t k) {
    const uint64_t key = (static_cast<uint64_t>(bits) << 32) | static_cast<uint64_t>(candidate);
    if (size == k) {
      std::pop_heap(keys, keys + size);
      --size;
    }
    keys[size++] = key;
    std::push_heap(keys, keys + size);
    if (size == k) {
      limit = static_cast<uint32_t>(keys[0] >> 32);
    }
  }
};

// Adds the edges to the k nearest nodes of queries [first, last), at most kPanel of them.
void link_panel(const float* features, const float* tiles, int64_t nodes, int64_t count, int64_t k,
                int64_t first, int64_t last, uint64_t* heap_storage, uint32_t* bitmap) {
  Heap heaps[kPanel];
  for (int64_t r = 0; r < last - first; ++r) {
    heaps[r] = Heap{heap_storage + r * k};
  }
  const int64_t words = words_per_row(nodes);
  for (int64_t tile = 0; tile < ceil_div(nodes, kTile); ++tile) {
    for (int64_t row = first; row < last; row += kRows) {
      const float* query[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        query[r] = features + std::min(row + r, last - 1) * count;
      }
      alignas(64) float distance[kRows][kTile];
      tile_distances(query, tiles + tile * count * kTile, count, distance);
      for (int64_t r = 0; r < std::min(kRows, last - row); ++r) {
        Heap& heap = heaps[row - first + r];
        // As unsigned integers, finite distances keep their order and infinity and NaN of either sign are
        // above them.
        alignas(64) uint32_t bits[kTile];
        std::memcpy(bits, distance[r], sizeof(bits));
        for (int64_t group = 0; group < kTile; group += 16) {
          uint32_t any = 0;
          for (int64_t l = group; l < group + 16; ++l) {
            any |= bits[l] < heap.limit ? 1u : 0u;
          }
          for (int64_t l = group; any != 0 && l < group + 16; ++l) {
            const int64_t candidate = tile * kTile + l;
            if (bits[l] < heap.limit && candidate != row + r) {
              heap.offer(bits[l], candidate, k);
            }
          }
        }
      }
    }
  }
  for (int64_t row = first; row < last; ++row) {
    const Heap& heap = heaps[row - first];
    for (int64_t e = 0; e < heap.size; ++e) {
      const auto j = static_cast<int64_t>(heap.keys[e] & 0xffffffffu);
      set_bit(bitmap, words, row, j);
      set_bit(bitmap, words, j, row);
    }
  }
}

void link_nearest(const float* features, int64_t nodes, int64_t count, int64_t k, int64_t workers,
                  float* tiles, uint64_t* heaps, uint32_t* bitmap) {
  parallel_for(ceil_div(nodes, kTile), 4, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      fill_tile(features, nodes, count, tile, tiles + tile * count * kTile);
    }
  });
  const int64_t panels = ceil_div(nodes, kPanel);
  parallel_for(std::min(workers, panels), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t panel = worker; panel < panels; panel += std::min(workers, panels)) {
        link_panel(features, tiles, nodes, count, k, panel * kPanel, std::min((panel + 1) * kPanel, nodes),
                   heaps + worker * kPanel * k, bitmap);
      }
    }
  });
}

// The edges (i, j) come in ascending i, and so do the columns i of row j: the next edge of row j is the one
// looked for. `next` [nodes] is scratch.
void write_transpose(const Graph& graph, int64_t first_node, int64_t nodes, int32_t* next) {
  std::copy_n(graph.row_offsets + first_node, nodes, next);
  for (int64_t e = graph.row_offsets[first_node]; e < graph.row_offsets[first_node + nodes]; ++e) {
    graph.transpose[e] = next[graph.columns[e] - first_node]++;
  }
}

// Calls body(i, first edge, one past the last edge) for every row i, in parallel over rows.
template <class RowBody>
void for_each_row(const Graph& graph, RowBody&& body) {
  parallel_for(graph.nodes, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      body(i, int64_t{graph.row_offsets[i]}, int64_t{graph.row_offsets[i + 1]});
    }
  });
}

// Sums partial [nodes, kEdgeTypes] over the nodes, first in blocks of 256 and then over the blocks.
void sum_over_nodes(const double* partial, int64_t nodes, float* sums, GradMode mode) {
  double total[kEdgeTypes] = {};
  for (int64_t first = 0; first < nodes; first += 256) {
    double block[kEdgeTypes] = {};
    for (int64_t i = first; i < std::min(first + 256, nodes); ++i) {
      for (int t = 0; t < kEdgeTypes; ++t) {
        block[t] += partial[i * kEdgeTypes + t];
      }
    }
    for (int t = 0; t < kEdgeTypes; ++t) {
      total[t] += block[t];
    }
  }
  for (int t = 0; t < kEdgeTypes; ++t) {
    sums[t] = static_cast<float>(total[t]) + (mode == GradMode::accumulate ? sums[t] : 0.0f);
  }
}

// What a row of exp(theta[type]) sums to: largest = max theta, sum = sum of exp(theta - largest) >= 1.
struct RowSum {
  float largest;
  float sum;
  int32_t count[kEdgeTypes];
};

RowSum row_sum(const Graph& graph, const float* theta, int64_t begin, int64_t end) {
  RowSum row{-INFINITY, 0.0f, {}};
  for (int64_t e = begin; e < end; ++e) {
    ++row.count[graph.types[e]];
  }
  for (int t = 0; t < kEdgeTypes; ++t) {
    row.largest = row.count[t] > 0 ? std::max(row.largest, theta[t]) : row.largest;
  }
  for (int t = 0; t < kEdgeTypes; ++t) {
    if (row.count[t] > 0) {
      row.sum += static_cast<float>(row.count[t]) * std::exp(theta[t] - row.largest);
    }
  }
  return row;
}

}  // namespace

size_t graph_build_workspace_bytes(Context&, const GraphParams& params) { return BuildLayout(params).total; }

void graph_build(Context&, const GraphParams& p, ConstData features_, const Graph& graph,
                 Workspace workspace) {
  const float* features = features_.as<float>("graph_build: features");
  if (graph.nodes == 0) {
    return;
  }
  const BuildLayout layout(p);
  auto* memory = static_cast<unsigned char*>(workspace.data);
  auto* bitmap = reinterpret_cast<uint32_t*>(memory);
  auto* tiles = reinterpret_cast<float*>(memory + layout.tiles);
  auto* heaps = reinterpret_cast<uint64_t*>(memory + layout.heaps);
  const int64_t nodes = p.nodes_per_sample();
  const int64_t words = words_per_row(nodes);
  const int64_t k = found_neighbours(p);
  graph.row_offsets[0] = 0;
  for (int64_t sample = 0; sample < p.n; ++sample) {
    parallel_for(nodes, kRowGrain, [&](int64_t begin, int64_t end) {
      std::fill(bitmap + begin * words, bitmap + end * words, 0u);
      for (int64_t i = begin; i < end; ++i) {
        fill_spatial_row(p, i, bitmap + i * words);
      }
    });
    if (k > 0) {
      link_nearest(features + sample * nodes * p.features, nodes, p.features, k, layout.workers, tiles, heaps,
                   bitmap);
    }
    int32_t* offsets = graph.row_offsets + sample * nodes;
    parallel_for(nodes, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int32_t count = 0;
        for (int64_t word = 0; word < words; ++word) {
          count += std::popcount(bitmap[i * words + word]);
        }
        offsets[i + 1] = count;
      }
    });
    for (int64_t i = 0; i < nodes; ++i) {
      offsets[i + 1] += offsets[i];
    }
    parallel_for(nodes, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t e = offsets[i];
        for (int64_t word = 0; word < words; ++word) {
          for (uint32_t bits = bitmap[i * words + word]; bits != 0; bits &= bits - 1) {
            const int64_t j = word * 32 + std::countr_zero(bits);
            graph.columns[e] = static_cast<int32_t>(sample * nodes + j);
            graph.types[e] = static_cast<uint8_t>(edge_type(p, i, j));
            ++e;
          }
        }
      }
    });
    write_transpose(graph, sample * nodes, nodes, reinterpret_cast<int32_t*>(bitmap));
  }
}

size_t graph_symmetric_weights_workspace_bytes(Context&, const Graph& graph) {
  return static_cast<size_t>(graph.nodes) * kEdgeTypes * sizeof(double);
}

void graph_symmetric_weights_forward(Context&, const Graph& graph, ConstData theta_, Data values_,
                                     Workspace workspace) {
  const float* theta = theta_.as<float>("graph_symmetric_weights_forward: theta");
  float* values = values_.as<float>("graph_symmetric_weights_forward: values");
  auto* largest = static_cast<float*>(workspace.data);
  float* scale = largest + graph.nodes;
  for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
    const RowSum row = row_sum(graph, theta, begin, end);
    largest[i] = row.largest;
    scale[i] = 1.0f / std::sqrt(row.sum);
  });
  // theta of an edge is at most the largest of either row, so the exponential is at most 1.
  for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t e = begin; e < end; ++e) {
      const int32_t j = graph.columns[e];
      const float t = theta[graph.types[e]];
      const float exponent = 0.5f * (t - largest[i]) + 0.5f * (t - largest[j]);
      values[e] = vector_exp(exponent) * scale[i] * scale[j];
    }
  });
}

void graph_symmetric_weights_backward(Context&, const Graph& graph, ConstData theta_, ConstData values_,
                                      ConstData dvalues_, Data dtheta_, GradMode mode, Workspace workspace) {
  const float* theta = theta_.as<float>("graph_symmetric_weights_backward: theta");
  const float* values = values_.as<float>("graph_symmetric_weights_backward: values");
  const float* dvalues = dvalues_.as<float>("graph_symmetric_weights_backward: dvalues");
  float* dtheta = dtheta_.as<float>("graph_symmetric_weights_backward: dtheta");
  auto* partial = static_cast<double*>(workspace.data);
  // log value = theta - log(D_i) / 2 - log(D_j) / 2, and d log(D_i) / d theta_t is type t's share of D_i.
  for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
    const RowSum row = row_sum(graph, theta, begin, end);
    double direct[kEdgeTypes] = {};
    double through_degree = 0;
    for (int64_t e = begin; e < end; ++e) {
      const double here = static_cast<double>(values[e]) * dvalues[e];
      const int64_t mirrored = graph.transpose[e];
      direct[graph.types[e]] += here;
      through_degree += here + static_cast<double>(values[mirrored]) * dvalues[mirrored];
    }
    for (int t = 0; t < kEdgeTypes; ++t) {
      const double share = row.count[t] > 0 ? row.count[t] * std::exp(theta[t] - row.largest) / row.sum : 0.0;
      partial[i * kEdgeTypes + t] = direct[t] - 0.5 * share * through_degree;
    }
  });
  sum_over_nodes(partial, graph.nodes, dtheta, mode);
}

void graph_attention_scores_forward(Context&, const Graph& graph, float slope, ConstData a_, ConstData b_,
                                    ConstData theta_, Data scores_) {
  const float* a = a_.as<float>("graph_attention_scores_forward: a");
  const float* b = b_.as<float>("graph_attention_scores_forward: b");
  const float* theta = theta_.as<float>("graph_attention_scores_forward: theta");
  float* scores = scores_.as<float>("graph_attention_scores_forward: scores");
  for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t e = begin; e < end; ++e) {
      const float sum = a[i] + b[graph.columns[e]] + theta[graph.types[e]];
      scores[e] = sum > 0.0f ? sum : slope * sum;
    }
  });
}

size_t graph_attention_scores_workspace_bytes(Context&, const Graph& graph) {
  return static_cast<size_t>(graph.nodes) * kEdgeTypes * sizeof(double);
}

void graph_attention_scores_backward(Context&, const Graph& graph, float slope, ConstData a_, ConstData b_,
                                     ConstData theta_, ConstData dscores_, Data da_, Data db_, Data dtheta_,
                                     GradMode mode, Workspace workspace) {
  const float* a = a_.as<float>("graph_attention_scores_backward: a");
  const float* b = b_.as<float>("graph_attention_scores_backward: b");
  const float* theta = theta_.as<float>("graph_attention_scores_backward: theta");
  const float* dscores = dscores_.as<float>("graph_attention_scores_backward: dscores");
  float* da = da_.as<float>("graph_attention_scores_backward: da");
  float* db = db_.as<float>("graph_attention_scores_backward: db");
  float* dtheta = dtheta_.as<float>("graph_attention_scores_backward: dtheta");
  auto* partial = static_cast<double*>(workspace.data);
  for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
    double by_type[kEdgeTypes] = {};
    double column_sum = 0;
    for (int64_t e = begin; e < end; ++e) {
      const int32_t j = graph.columns[e];
      const int32_t mirrored = graph.transpose[e];
      const int type = graph.types[e];
      const bool forward_positive = a[i] + b[j] + theta[type] > 0.0f;
      const bool mirrored_positive = a[j] + b[i] + theta[type] > 0.0f;
      by_type[type] += forward_positive ? dscores[e] : slope * dscores[e];
      column_sum += mirrored_positive ? dscores[mirrored] : slope * dscores[mirrored];
    }
    double row_total = 0;
    for (int t = 0; t < kEdgeTypes; ++t) {
      partial[i * kEdgeTypes + t] = by_type[t];
      row_total += by_type[t];
    }
    da[i] = static_cast<float>(row_total);
    db[i] = static_cast<float>(column_sum);
  });
  sum_over_nodes(partial, graph.nodes, dtheta, mode);
}

void graph_segment_softmax_forward(Context&, const Graph& graph, ConstData scores_, Data values_) {
  const float* scores = scores_.as<float>("graph_segment_softmax_forward: scores");
  float* values = values_.as<float>("graph_segment_softmax_forward: values");
  for_each_row(graph, [&](int64_t, int64_t begin, int64_t end) {
    float largest = -INFINITY;
    for (int64_t e = begin; e < end; ++e) {
      largest = std::max(largest, scores[e]);
    }
    const float base = largest == -INFINITY ? 0.0f : largest;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t e = begin; e < end; ++e) {
      const float value = vector_exp(scores[e] - base);
      values[e] = value;
      sum += value;
    }
    const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int64_t e = begin; e < end; ++e) {
      values[e] *= scale;
    }
  });
}

void graph_segment_softmax_backward(Context&, const Graph& graph, ConstData values_, ConstData dvalues_,
                                    Data dscores_) {
  const float* values = values_.as<float>("graph_segment_softmax_backward: values");
  const float* dvalues = dvalues_.as<float>("graph_segment_softmax_backward: dvalues");
  float* dscores = dscores_.as<float>("graph_segment_softmax_backward: dscores");
  for_each_row(graph, [&](int64_t, int64_t begin, int64_t end) {
    float mean = 0.0f;
#pragma omp simd reduction(+ : mean)
    for (int64_t e = begin; e < end; ++e) {
      mean += values[e] * dvalues[e];
    }
#pragma omp simd
    for (int64_t e = begin; e < end; ++e) {
      dscores[e] = values[e] * (dvalues[e] - mean);
    }
  });
}

namespace {

// kVectors vectors of one row of y. `values` are read through `order` (the transpose) unless that is null.
template <class Vector, int kVectors>
void spmm_columns(const Graph& graph, int64_t begin, int64_t end, int64_t features, const float* values,
                  const int32_t* order, const float* z, float* y, GradMode mode) {
  constexpr int kWidth = sizeof(Vector) / sizeof(float);
  Vector sum[kVectors] = {};
  if (mode == GradMode::accumulate) {
    std::memcpy(sum, y, sizeof(sum));
  }
  for (int64_t e = begin; e < end; ++e) {
    const float value = values[order == nullptr ? e : order[e]];
    const float* source = z + graph.columns[e] * features;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vector lanes;
      std::memcpy(&lanes, source + v * kWidth, sizeof(lanes));
      sum[v] += value * lanes;
    }
  }
  std::memcpy(y, sum, sizeof(sum));
}

void spmm_tail(const Graph& graph, int64_t begin, int64_t end, int64_t features, int64_t width,
               const float* values, const int32_t* order, const float* z, float* y, GradMode mode) {
  float sum[8] = {};
  if (mode == GradMode::accumulate) {
    std::copy(y, y + width, sum);
  }
  for (int64_t e = begin; e < end; ++e) {
    const float value = values[order == nullptr ? e : order[e]];
    const float* source = z + graph.columns[e] * features;
#pragma omp simd
    for (int64_t f = 0; f < width; ++f) {
      sum[f] += value * source[f];
    }
  }
  std::copy(sum, sum + width, y);
}

}  // namespace

void graph_spmm(Context&, const Graph& graph, int64_t features, ConstData values_, ConstData z_,
                bool transposed, Data y_, GradMode mode) {
  const float* values = values_.as<float>("graph_spmm: values");
  const float* z = z_.as<float>("graph_spmm: z");
  float* y = y_.as<float>("graph_spmm: y");
  const int32_t* order = transposed ? graph.transpose : nullptr;
  for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
    float* row = y + i * features;
    int64_t f = 0;
    for (; f + 64 <= features; f += 64) {
      spmm_columns<Lanes, 4>(graph, begin, end, features, values, order, z + f, row + f, mode);
    }
    for (; f + 16 <= features; f += 16) {
      spmm_columns<Lanes, 1>(graph, begin, end, features, values, order, z + f, row + f, mode);
    }
    for (; f + 8 <= features; f += 8) {
      spmm_columns<HalfLanes, 1>(graph, begin, end, features, values, order, z + f, row + f, mode);
    }
    if (f < features) {
      spmm_tail(graph, begin, end, features, features - f, values, order, z + f, row + f, mode);
    }
  });
}

void graph_sddmm(Context&, const Graph& graph, int64_t features, ConstData a_, ConstData b_, Data out_) {
  const float* a = a_.as<float>("graph_sddmm: a");
  const float* b = b_.as<float>("graph_sddmm: b");
  float* out = out_.as<float>("graph_sddmm: out");
  for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
    const float* left = a + i * features;
    for (int64_t e = begin; e < end; ++e) {
      const float* right = b + graph.columns[e] * features;
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t f = 0; f < features; ++f) {
        sum += left[f] * right[f];
      }
      out[e] = sum;
    }
  });
}

}  // namespace vesal::kernels::cpu
