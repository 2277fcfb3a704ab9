// Graph kernels on the host.
//
// Nearest neighbours: brute force over tiles of 64 candidates whose features are stored feature-major, so
// that the 16 lanes of a vector are 16 candidates and each distance adds its terms in the order of the
// features: the order, and with it every bit, that the other devices use too. Four queries share each load of
// a tile.
//
// Sums over a row are sixteen interleaved ones, so that they are vectors and yet of one order: the order of a
// compiler's reduction depends on the storage type and on how the row is aligned.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <vector>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/storage.hpp"
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

// The values themselves where they are float32, else as copied.
template <class T>
const float* as_floats(Input<T> values, int64_t count, std::vector<float>& copy) {
  if constexpr (std::is_same_v<T, float>) {
    return values;
  } else {
    copy.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      copy[static_cast<size_t>(i)] = values[i];
    }
    return copy.data();
  }
}

// term(0) + term(1) + ... + term(count - 1).
template <class Term>
float interleaved_sum(int64_t count, Term&& term) {
  constexpr int64_t kSums = 16;
  float sums[kSums] = {};
  int64_t first = 0;
  for (; first + kSums <= count; first += kSums) {
#pragma omp simd
    for (int64_t l = 0; l < kSums; ++l) {
      sums[l] += term(first + l);
    }
  }
  float rest[kSums] = {};
  for (int64_t l = 0; l < count - first; ++l) {
    rest[l] = term(first + l);
  }
#pragma omp simd
  for (int64_t l = 0; l < kSums; ++l) {
    sums[l] += rest[l];
  }
#pragma GCC unroll 4
  for (int64_t width = kSums / 2; width > 0; width /= 2) {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      sums[l] += sums[l + width];
    }
  }
  return sums[0];
}

int64_t words_per_row(int64_t nodes) { return ceil_div(nodes, 32); }
int64_t found_neighbours(const GraphParams& p) {
  return std::min<int64_t>(p.neighbours, p.nodes_per_set() - 1);
}

// The parts of graph_build's workspace, each aligned to 64 bytes.
struct BuildLayout {
  size_t bitmap = 0, spatial = 0, occupied = 0, tiles = 0, heaps = 0, total = 0;  // offsets in bytes
  int64_t workers = 1;

  explicit BuildLayout(const GraphParams& p) : workers(thread_count()) {
    const auto rounded = [](int64_t bytes) { return static_cast<size_t>(ceil_div(bytes, 64) * 64); };
    const int64_t nodes = p.nodes_per_set();
    const int64_t k = found_neighbours(p);
    const int64_t bits = nodes * words_per_row(nodes) * 4;
    total += rounded(std::max(bits, p.nodes_per_sample() * 4));  // also the transpose's scratch
    spatial = total;
    total += p.regions > 0 ? rounded(bits) : 0;
    occupied = total;
    total += p.regions > 0 ? rounded(words_per_row(nodes) * 4) : 0;
    tiles = total;
    total += k > 0 ? rounded(checked_mul(ceil_div(nodes, kTile) * kTile * 4, p.features)) : 0;
    heaps = total;
    total += rounded(workers * kPanel * k * 8);
  }
};

bool bit_of(const uint32_t* bits, int64_t i) { return (bits[i / 32] >> (i % 32) & 1u) != 0; }

// Whether node j is absent: its outgoing edges (i, j) are cut.
bool absent(const Graph& graph, int64_t j) {
  return graph.available != nullptr && graph.available[j / graph.nodes_per_set] == 0;
}

// The type of an edge within a set.
EdgeType own_edge_type(const GraphParams& p, const uint32_t* spatial, int64_t i, int64_t j) {
  if (i == j) {
    return kSelfEdge;
  }
  if (p.regions > 0) {
    return bit_of(spatial + i * words_per_row(p.regions), j) ? kSpatialEdge : kSemanticEdge;
  }
  const int64_t dw = std::abs(i % p.w - j % p.w);
  const int64_t dh = std::abs(i / p.w % p.h - j / p.w % p.h);
  const int64_t dd = std::abs(i / (p.w * p.h) - j / (p.w * p.h));
  return dw + dh + dd == 1 ? kSpatialEdge : kSemanticEdge;
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

// Regions: spatial [nodes, words] with the pairs that touch, occupied [words] with those that have a voxel.
void fill_regions(const GraphParams& p, const int32_t* labels, uint32_t* spatial, uint32_t* occupied) {
  const int64_t words = words_per_row(p.regions);
  std::fill_n(spatial, p.regions * words, 0u);
  std::fill_n(occupied, words, 0u);
  const auto is_region = [&](int32_t label) { return label >= 0 && label < p.regions; };
  // Most voxels say what others have said before: look before writing.
  const auto set = [](uint32_t& word, int64_t bit) {
    const std::atomic_ref<uint32_t> shared(word);
    const uint32_t mask = 1u << (bit % 32);
    if ((shared.load(std::memory_order_relaxed) & mask) == 0) {
      shared.fetch_or(mask, std::memory_order_relaxed);
    }
  };
  parallel_for(p.d * p.h, std::max<int64_t>(4096 / p.w, 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t x = 0; x < p.w; ++x) {
        const int64_t v = row * p.w + x;
        const int32_t label = labels[v];
        if (!is_region(label)) {
          continue;
        }
        set(occupied[label / 32], label);
        const auto touch = [&](int64_t other) {
          const int32_t neighbour = labels[other];
          if (neighbour != label && is_region(neighbour)) {
            set(spatial[label * words + neighbour / 32], neighbour);
            set(spatial[neighbour * words + label / 32], label);
          }
        };
        if (x + 1 < p.w) touch(v + 1);
        if (row % p.h + 1 < p.h) touch(v + p.w);
        if (row / p.h + 1 < p.d) touch(v + p.h * p.w);
      }
    }
  });
}

// features [nodes, count] to tiles [ceil(nodes / 64), count, 64]; the candidates beyond the last node, and
// those that are not occupied (null: all are), are NaN, which is never near.
template <class Values>
void fill_tile(Values features, const uint32_t* occupied, int64_t nodes, int64_t count, int64_t tile,
               float* target) {
  const int64_t first = tile * kTile;
  for (int64_t l = 0; l < kTile; ++l) {
    if (first + l < nodes && (occupied == nullptr || bit_of(occupied, first + l))) {
      const auto source = features + (first + l) * count;
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

// Adds the edges to the k nearest nodes of nodes [first, last), at most kPanel of them, whose features are
// `queries`.
void link_panel(const float* queries, const uint32_t* occupied, const float* tiles, int64_t nodes,
                int64_t count, int64_t k, int64_t first, int64_t last, uint64_t* heap_storage,
                uint32_t* bitmap) {
  Heap heaps[kPanel];
  for (int64_t r = 0; r < last - first; ++r) {
    heaps[r] = Heap{heap_storage + r * k};
  }
  const int64_t words = words_per_row(nodes);
  for (int64_t tile = 0; tile < ceil_div(nodes, kTile); ++tile) {
    for (int64_t row = first; row < last; row += kRows) {
      const float* query[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        query[r] = queries + (std::min(row + r, last - 1) - first) * count;
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
    if (occupied != nullptr && !bit_of(occupied, row)) {
      continue;
    }
    const Heap& heap = heaps[row - first];
    for (int64_t e = 0; e < heap.size; ++e) {
      const auto j = static_cast<int64_t>(heap.keys[e] & 0xffffffffu);
      set_bit(bitmap, words, row, j);
      set_bit(bitmap, words, j, row);
    }
  }
}

template <class T>
void link_nearest(Input<T> features, const uint32_t* occupied, int64_t nodes, int64_t count, int64_t k,
                  int64_t workers, float* tiles, uint64_t* heaps, uint32_t* bitmap) {
  parallel_for(ceil_div(nodes, kTile), 4, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      fill_tile(features, occupied, nodes, count, tile, tiles + tile * count * kTile);
    }
  });
  const int64_t panels = ceil_div(nodes, kPanel);
  parallel_for(std::min(workers, panels), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> copy;
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t panel = worker; panel < panels; panel += std::min(workers, panels)) {
        const int64_t first = panel * kPanel;
        const int64_t last = std::min(first + kPanel, nodes);
        const float* queries = as_floats<T>(features + first * count, (last - first) * count, copy);
        link_panel(queries, occupied, tiles, nodes, count, k, first, last, heaps + worker * kPanel * k,
                   bitmap);
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

template <class Values>
void fill_cut_edges(const Graph& graph, int64_t begin, int64_t end, float value, Values values) {
  for (int64_t e = begin; graph.available != nullptr && e < end; ++e) {
    if (absent(graph, graph.columns[e])) {
      values[e] = value;
    }
  }
}

// Sums partial [nodes, kEdgeTypes] over the nodes, first in blocks of 256 and then over the blocks.
void sum_over_nodes(const double* partial, const Graph& graph, float* sums, GradMode mode) {
  const int64_t nodes = graph.nodes;
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
  for (int t = 0; t < graph.type_count; ++t) {
    sums[t] = static_cast<float>(total[t]) + (mode == GradMode::accumulate ? sums[t] : 0.0f);
  }
}

// What a row of exp(theta[type]) sums to over the edges that are not cut: largest = max theta, sum = sum of
// exp(theta - largest) >= 1; -inf and 0 where all are cut.
struct RowSum {
  float largest;
  float sum;
  int32_t count[kEdgeTypes];
};

RowSum row_sum(const Graph& graph, const float* theta, int64_t begin, int64_t end) {
  RowSum row{-INFINITY, 0.0f, {}};
  for (int64_t e = begin; e < end; ++e) {
    row.count[graph.types[e]] += absent(graph, graph.columns[e]) ? 0 : 1;
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

void graph_build(Context&, const GraphParams& p, ConstData features, const int32_t* labels,
                 const Graph& graph, Workspace workspace) {
  if (graph.nodes == 0) {
    return;
  }
  const BuildLayout layout(p);
  auto* memory = static_cast<unsigned char*>(workspace.data);
  auto* bitmap = reinterpret_cast<uint32_t*>(memory);
  auto* spatial = p.regions > 0 ? reinterpret_cast<uint32_t*>(memory + layout.spatial) : nullptr;
  auto* occupied = p.regions > 0 ? reinterpret_cast<uint32_t*>(memory + layout.occupied) : nullptr;
  auto* tiles = reinterpret_cast<float*>(memory + layout.tiles);
  auto* heaps = reinterpret_cast<uint64_t*>(memory + layout.heaps);
  const int64_t nodes = p.nodes_per_set();
  const int64_t words = words_per_row(nodes);
  const int64_t k = found_neighbours(p);
  const int64_t sets = p.sets();
  const auto cross_edges = [&](int64_t i) {
    return occupied == nullptr || bit_of(occupied, i) ? p.branches - 1 + p.modalities - 1 : 0;
  };
  graph.row_offsets[0] = 0;
  for (int64_t block = 0; block < p.n * sets; ++block) {
    const int64_t sample = block / sets, set = block % sets;
    if (p.regions > 0 && set == 0) {
      fill_regions(p, labels + sample * p.d * p.h * p.w, spatial, occupied);
    }
    parallel_for(nodes, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        uint32_t* row = bitmap + i * words;
        if (p.regions > 0) {
          std::copy_n(spatial + i * words, words, row);
          row[i / 32] |= 1u << (i % 32);
        } else {
          std::fill_n(row, words, 0u);
          fill_spatial_row(p, i, row);
        }
      }
    });
    if (k > 0 && !absent(graph, block * nodes)) {
      with_storage("graph_build", {features}, [&]<class T>(T) {
        link_nearest<T>(input<T>(features, "graph_build: features") + block * nodes * p.features, occupied,
                        nodes, p.features, k, layout.workers, tiles, heaps, bitmap);
      });
    }
    int32_t* offsets = graph.row_offsets + block * nodes;
    parallel_for(nodes, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        auto count = static_cast<int32_t>(cross_edges(i));
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
        const auto add_edge = [&](int64_t of_set, int64_t j, EdgeType type) {
          graph.columns[e] = static_cast<int32_t>((sample * sets + of_set) * nodes + j);
          graph.types[e] = type;
          ++e;
        };
        const auto add_cross_edges = [&](int64_t first, int64_t last) {
          for (int64_t other = first; cross_edges(i) > 0 && other < last; ++other) {
            if (other % p.modalities == set % p.modalities) {
              add_edge(other, i, kCrossBranchEdge);
            } else if (other / p.modalities == set / p.modalities) {
              add_edge(other, i, kCrossModalityEdge);
            }
          }
        };
        add_cross_edges(0, set);
        for (int64_t word = 0; word < words; ++word) {
          for (uint32_t bits = bitmap[i * words + word]; bits != 0; bits &= bits - 1) {
            const int64_t j = word * 32 + std::countr_zero(bits);
            add_edge(set, j, own_edge_type(p, spatial, i, j));
          }
        }
        add_cross_edges(set + 1, sets);
      }
    });
    if (set == sets - 1) {
      write_transpose(graph, sample * sets * nodes, sets * nodes, reinterpret_cast<int32_t*>(bitmap));
    }
  }
}

size_t graph_symmetric_weights_workspace_bytes(Context&, const Graph& graph) {
  return static_cast<size_t>(graph.nodes) * kEdgeTypes * sizeof(double);
}

void graph_symmetric_weights_forward(Context&, const Graph& graph, ConstData theta_, Data values_,
                                     Workspace workspace) {
  with_storage("graph_symmetric_weights_forward", {values_}, [&]<class T>(T) {
    const float* theta = theta_.as<float>("graph_symmetric_weights_forward: theta");
    const auto values = output<T>(values_, "graph_symmetric_weights_forward: values");
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
      fill_cut_edges(graph, begin, end, 0.0f, values);
    });
  });
}

void graph_symmetric_weights_backward(Context&, const Graph& graph, ConstData theta_, ConstData values_,
                                      ConstData dvalues_, Data dtheta_, GradMode mode, Workspace workspace) {
  with_storage("graph_symmetric_weights_backward", {values_, dvalues_}, [&]<class T>(T) {
    const float* theta = theta_.as<float>("graph_symmetric_weights_backward: theta");
    const auto values = input<T>(values_, "graph_symmetric_weights_backward: values");
    const auto dvalues = input<T>(dvalues_, "graph_symmetric_weights_backward: dvalues");
    float* dtheta = dtheta_.as<float>("graph_symmetric_weights_backward: dtheta");
    auto* partial = static_cast<double*>(workspace.data);
    // log value = theta - log(D_i) / 2 - log(D_j) / 2, and d log(D_i) / d theta_t is type t's share of D_i.
    for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
      const RowSum row = row_sum(graph, theta, begin, end);
      double direct[kEdgeTypes] = {};
      double through_degree = 0;
      const bool sends = !absent(graph, i);
      for (int64_t e = begin; e < end; ++e) {
        const int64_t mirrored = graph.transpose[e];
        const bool receives = !absent(graph, graph.columns[e]);
        const double here = receives ? static_cast<double>(values[e]) * dvalues[e] : 0.0;
        const double there = sends ? static_cast<double>(values[mirrored]) * dvalues[mirrored] : 0.0;
        direct[graph.types[e]] += here;
        through_degree += here + there;
      }
      for (int t = 0; t < kEdgeTypes; ++t) {
        const double share =
            row.count[t] > 0 ? row.count[t] * std::exp(theta[t] - row.largest) / row.sum : 0.0;
        partial[i * kEdgeTypes + t] = direct[t] - 0.5 * share * through_degree;
      }
    });
    sum_over_nodes(partial, graph, dtheta, mode);
  });
}

void graph_attention_scores_forward(Context&, const Graph& graph, float slope, ConstData a_, ConstData b_,
                                    ConstData theta_, Data scores_) {
  with_storage("graph_attention_scores_forward", {a_, b_, scores_}, [&]<class T>(T) {
    const auto a = input<T>(a_, "graph_attention_scores_forward: a");
    const auto b = input<T>(b_, "graph_attention_scores_forward: b");
    const float* theta = theta_.as<float>("graph_attention_scores_forward: theta");
    const auto scores = output<T>(scores_, "graph_attention_scores_forward: scores");
    for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
      const float own = absent(graph, i) ? 0.0f : a[i];
#pragma omp simd
      for (int64_t e = begin; e < end; ++e) {
        const float sum = own + b[graph.columns[e]] + theta[graph.types[e]];
        scores[e] = sum > 0.0f ? sum : slope * sum;
      }
      fill_cut_edges(graph, begin, end, -INFINITY, scores);
    });
  });
}

size_t graph_attention_scores_workspace_bytes(Context&, const Graph& graph) {
  return static_cast<size_t>(graph.nodes) * kEdgeTypes * sizeof(double);
}

void graph_attention_scores_backward(Context&, const Graph& graph, float slope, ConstData a_, ConstData b_,
                                     ConstData theta_, ConstData dscores_, Data da_, Data db_, Data dtheta_,
                                     GradMode mode, Workspace workspace) {
  with_storage("graph_attention_scores_backward", {a_, b_, dscores_, da_, db_}, [&]<class T>(T) {
    const auto a = input<T>(a_, "graph_attention_scores_backward: a");
    const auto b = input<T>(b_, "graph_attention_scores_backward: b");
    const float* theta = theta_.as<float>("graph_attention_scores_backward: theta");
    const auto dscores = input<T>(dscores_, "graph_attention_scores_backward: dscores");
    const auto da = output<T>(da_, "graph_attention_scores_backward: da");
    const auto db = output<T>(db_, "graph_attention_scores_backward: db");
    float* dtheta = dtheta_.as<float>("graph_attention_scores_backward: dtheta");
    auto* partial = static_cast<double*>(workspace.data);
    for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
      double by_type[kEdgeTypes] = {};
      double column_sum = 0;
      const bool sends = !absent(graph, i);
      const float own = sends ? a[i] : 0.0f;
      for (int64_t e = begin; e < end; ++e) {
        const int32_t j = graph.columns[e];
        const int32_t mirrored = graph.transpose[e];
        const int type = graph.types[e];
        const bool receives = !absent(graph, j);
        if (receives) {
          by_type[type] += own + b[j] + theta[type] > 0.0f ? dscores[e] : slope * dscores[e];
        }
        if (sends) {
          const float other = receives ? a[j] : 0.0f;
          column_sum += other + b[i] + theta[type] > 0.0f ? dscores[mirrored] : slope * dscores[mirrored];
        }
      }
      double row_total = 0;
      for (int t = 0; t < kEdgeTypes; ++t) {
        partial[i * kEdgeTypes + t] = by_type[t];
        row_total += by_type[t];
      }
      da[i] = sends ? static_cast<float>(row_total) : 0.0f;
      db[i] = static_cast<float>(column_sum);
    });
    sum_over_nodes(partial, graph, dtheta, mode);
  });
}

void graph_segment_softmax_forward(Context&, const Graph& graph, ConstData scores_, Data values_) {
  with_storage("graph_segment_softmax_forward", {scores_, values_}, [&]<class T>(T) {
    const auto scores = input<T>(scores_, "graph_segment_softmax_forward: scores");
    const auto values = output<T>(values_, "graph_segment_softmax_forward: values");
    for_each_row(graph, [=](int64_t, int64_t begin, int64_t end) {
      float largest = -INFINITY;
      for (int64_t e = begin; e < end; ++e) {
        const float score = scores[e];
        largest = std::max(largest, score);
      }
      const float base = largest == -INFINITY ? 0.0f : largest;
      const float sum =
          interleaved_sum(end - begin, [=](int64_t e) { return vector_exp(scores[begin + e] - base); });
      const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma omp simd
      for (int64_t e = begin; e < end; ++e) {
        values[e] = vector_exp(scores[e] - base) * scale;
      }
    });
  });
}

void graph_segment_softmax_backward(Context&, const Graph& graph, ConstData values_, ConstData dvalues_,
                                    Data dscores_) {
  with_storage("graph_segment_softmax_backward", {values_, dvalues_, dscores_}, [&]<class T>(T) {
    const auto values = input<T>(values_, "graph_segment_softmax_backward: values");
    const auto dvalues = input<T>(dvalues_, "graph_segment_softmax_backward: dvalues");
    const auto dscores = output<T>(dscores_, "graph_segment_softmax_backward: dscores");
    for_each_row(graph, [=](int64_t, int64_t begin, int64_t end) {
      const float mean =
          interleaved_sum(end - begin, [=](int64_t e) { return values[begin + e] * dvalues[begin + e]; });
#pragma omp simd
      for (int64_t e = begin; e < end; ++e) {
        dscores[e] = values[e] * (dvalues[e] - mean);
      }
    });
  });
}

namespace {

template <class T, class Vector>
Vector load_vector(Input<T> from) {
  Vector vector;
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(&vector, from, sizeof(vector));
  } else {
    float lanes[sizeof(Vector) / sizeof(float)];
    for (int64_t l = 0; l < std::ssize(lanes); ++l) {
      lanes[l] = from[l];
    }
    std::memcpy(&vector, lanes, sizeof(vector));
  }
  return vector;
}
template <class T, class Vector>
void store_vector(Output<T> to, const Vector& vector) {
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(to, &vector, sizeof(vector));
  } else {
    float lanes[sizeof(Vector) / sizeof(float)];
    std::memcpy(lanes, &vector, sizeof(vector));
    for (int64_t l = 0; l < std::ssize(lanes); ++l) {
      to[l] = lanes[l];
    }
  }
}

// kVectors vectors of one row of y. `values` are read through `order` (the transpose) unless that is null. A
// cut edge's source is not read; in the transposed product the row is the source.
template <class T, class Vector, int kVectors>
void spmm_columns(const Graph& graph, int64_t begin, int64_t end, int64_t features, Input<T> values,
                  const int32_t* order, Input<T> z, Output<T> y, GradMode mode) {
  constexpr int kWidth = sizeof(Vector) / sizeof(float);
  Vector sum[kVectors] = {};
  if (mode == GradMode::accumulate) {
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = load_vector<T, Vector>(y + v * kWidth);
    }
  }
  for (int64_t e = begin; e < end; ++e) {
    if (order == nullptr && absent(graph, graph.columns[e])) {
      continue;
    }
    const float value = values[order == nullptr ? e : order[e]];
    const auto source = z + graph.columns[e] * features;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[v] += value * load_vector<T, Vector>(source + v * kWidth);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store_vector<T>(y + v * kWidth, sum[v]);
  }
}

template <class T>
void spmm_tail(const Graph& graph, int64_t begin, int64_t end, int64_t features, int64_t width,
               Input<T> values, const int32_t* order, Input<T> z, Output<T> y, GradMode mode) {
  float sum[8] = {};
  for (int64_t f = 0; mode == GradMode::accumulate && f < width; ++f) {
    sum[f] = y[f];
  }
  for (int64_t e = begin; e < end; ++e) {
    if (order == nullptr && absent(graph, graph.columns[e])) {
      continue;
    }
    const float value = values[order == nullptr ? e : order[e]];
    const auto source = z + graph.columns[e] * features;
#pragma omp simd
    for (int64_t f = 0; f < width; ++f) {
      sum[f] += value * source[f];
    }
  }
  for (int64_t f = 0; f < width; ++f) {
    y[f] = sum[f];
  }
}

}  // namespace

void graph_spmm(Context&, const Graph& graph, int64_t features, ConstData values_, ConstData z_,
                bool transposed, Data y_, GradMode mode) {
  with_storage("graph_spmm", {values_, z_, y_}, [&]<class T>(T) {
    const auto values = input<T>(values_, "graph_spmm: values");
    const auto z = input<T>(z_, "graph_spmm: z");
    const auto y = output<T>(y_, "graph_spmm: y");
    const int32_t* order = transposed ? graph.transpose : nullptr;
    for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
      end = transposed && absent(graph, i) ? begin : end;
      const auto row = y + i * features;
      int64_t f = 0;
      for (; f + 64 <= features; f += 64) {
        spmm_columns<T, Lanes, 4>(graph, begin, end, features, values, order, z + f, row + f, mode);
      }
      for (; f + 16 <= features; f += 16) {
        spmm_columns<T, Lanes, 1>(graph, begin, end, features, values, order, z + f, row + f, mode);
      }
      for (; f + 8 <= features; f += 8) {
        spmm_columns<T, HalfLanes, 1>(graph, begin, end, features, values, order, z + f, row + f, mode);
      }
      if (f < features) {
        spmm_tail<T>(graph, begin, end, features, features - f, values, order, z + f, row + f, mode);
      }
    });
  });
}

void graph_sddmm(Context&, const Graph& graph, int64_t features, ConstData a_, ConstData b_, Data out_) {
  with_storage("graph_sddmm", {a_, b_, out_}, [&]<class T>(T) {
    const auto a = input<T>(a_, "graph_sddmm: a");
    const auto b = input<T>(b_, "graph_sddmm: b");
    const auto out = output<T>(out_, "graph_sddmm: out");
    for_each_row(graph, [&](int64_t i, int64_t begin, int64_t end) {
      const auto left = a + i * features;
      for (int64_t e = begin; e < end; ++e) {
        if (absent(graph, graph.columns[e])) {
          out[e] = 0.0f;
          continue;
        }
        const auto right = b + graph.columns[e] * features;
        out[e] = interleaved_sum(features, [=](int64_t f) { return left[f] * right[f]; });
      }
    });
  });
}

void graph_mask_nodes(Context&, const Graph& graph, int64_t features, ConstData z_, Data y_) {
  with_storage("graph_mask_nodes", {z_, y_}, [&]<class T>(T) {
    const auto z = input<T>(z_, "graph_mask_nodes: z");
    const auto y = output<T>(y_, "graph_mask_nodes: y");
    parallel_for(graph.nodes, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto source = z + i * features;
        const auto target = y + i * features;
        if (absent(graph, i)) {
          for (int64_t f = 0; f < features; ++f) {
            target[f] = 0.0f;
          }
        } else {
          for (int64_t f = 0; f < features; ++f) {
            target[f] = source[f];
          }
        }
      }
    });
  });
}

}  // namespace vesal::kernels::cpu
