// Plain references of the graph kernels, to be checked against the contract by eye. Arithmetic is in T
// (double for the exact value, float for what a naive evaluation reaches); the choice of the edges is float32
// by contract.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "kernels/graph/graph.hpp"

namespace vesal::kernels::reference {

struct HostGraph {
  std::vector<int32_t> row_offsets;
  std::vector<int32_t> columns;
  std::vector<uint8_t> types;
  std::vector<int32_t> transpose;
  int type_count = kOneSetEdgeTypes;
  std::vector<uint8_t> available;  // empty: all sets are there
  int64_t nodes_per_set = 0;

  int64_t nodes() const { return static_cast<int64_t>(row_offsets.size()) - 1; }
  int64_t edges() const { return row_offsets.back(); }
  // Whether node j is absent: its outgoing edges (i, j) are cut.
  bool absent(int64_t j) const {
    return !available.empty() && available[static_cast<size_t>(j / nodes_per_set)] == 0;
  }
};

// The k nearest nodes of each node of one sample, nearest first.
inline std::vector<std::vector<int64_t>> nearest_nodes(int64_t nodes, int64_t count, int64_t k,
                                                       const float* features) {
  std::vector<std::vector<int64_t>> nearest(static_cast<size_t>(nodes));
  for (int64_t i = 0; i < nodes; ++i) {
    std::vector<std::pair<float, int64_t>> candidates;
    for (int64_t j = 0; j < nodes; ++j) {
      float distance = 0;
      for (int64_t f = 0; f < count; ++f) {
        const float difference = features[j * count + f] - features[i * count + f];
        const float square = difference * difference;
        distance = distance + square;
      }
      if (j != i && std::isfinite(distance)) {
        candidates.emplace_back(distance, j);
      }
    }
    std::sort(candidates.begin(), candidates.end());
    for (size_t e = 0; e < candidates.size() && static_cast<int64_t>(e) < k; ++e) {
      nearest[static_cast<size_t>(i)].push_back(candidates[e].second);
    }
  }
  return nearest;
}

// The pairs of neighbouring spatial nodes of a sample, both ways.
inline std::set<std::pair<int64_t, int64_t>> spatial_pairs(const GraphParams& p, const int32_t* labels) {
  std::set<std::pair<int64_t, int64_t>> pairs;
  const int64_t points = p.d * p.h * p.w;
  for (int64_t i = 0; i < points; ++i) {
    for (int64_t j = 0; j < points; ++j) {
      const int64_t steps = std::abs(i % p.w - j % p.w) + std::abs(i / p.w % p.h - j / p.w % p.h) +
                            std::abs(i / p.w / p.h - j / p.w / p.h);
      if (steps != 1) {
        continue;
      }
      if (p.regions == 0) {
        pairs.insert({i, j});
      } else if (labels[i] != labels[j] && std::min(labels[i], labels[j]) >= 0 &&
                 std::max(labels[i], labels[j]) < p.regions) {
        pairs.insert({labels[i], labels[j]});
      }
    }
  }
  return pairs;
}

// `available` [n, sets] or empty.
inline HostGraph graph_build(const GraphParams& p, const float* features, const int32_t* labels = nullptr,
                             const std::vector<uint8_t>& available = {}) {
  HostGraph graph;
  graph.row_offsets.push_back(0);
  graph.type_count = p.type_count();
  graph.available = available;
  graph.nodes_per_set = p.nodes_per_set();
  const int64_t nodes = p.nodes_per_set(), points = p.d * p.h * p.w;
  for (int64_t block = 0; block < p.n * p.sets(); ++block) {
    const int64_t sample = block / p.sets(), set = block % p.sets();
    const int32_t* sample_labels = p.regions > 0 ? labels + sample * points : nullptr;
    const auto spatial = spatial_pairs(p, sample_labels);
    const auto occupied = [&](int64_t i) {
      return p.regions == 0 || std::count(sample_labels, sample_labels + points, i) > 0;
    };
    std::set<std::pair<int64_t, int64_t>> semantic;
    if (p.neighbours > 0 && !graph.absent(block * nodes)) {
      // An empty region is infinitely far from everything.
      std::vector<float> own(features + block * nodes * p.features,
                             features + (block + 1) * nodes * p.features);
      for (int64_t i = 0; i < nodes; ++i) {
        if (!occupied(i)) {
          std::fill_n(own.begin() + i * p.features, p.features, INFINITY);
        }
      }
      const auto nearest = nearest_nodes(nodes, p.features, p.neighbours, own.data());
      for (int64_t i = 0; i < nodes; ++i) {
        for (const int64_t j : nearest[static_cast<size_t>(i)]) {
          semantic.insert({i, j});
          semantic.insert({j, i});
        }
      }
    }
    const auto add_edge = [&](int64_t of_set, int64_t j, EdgeType type) {
      graph.columns.push_back(static_cast<int32_t>((sample * p.sets() + of_set) * nodes + j));
      graph.types.push_back(type);
    };
    for (int64_t i = 0; i < nodes; ++i) {
      for (int64_t other = 0; other < p.sets(); ++other) {
        if (other != set) {
          const bool same_branch = other / p.modalities == set / p.modalities;
          const bool same_modality = other % p.modalities == set % p.modalities;
          if ((same_branch || same_modality) && occupied(i)) {
            add_edge(other, i, same_modality ? kCrossBranchEdge : kCrossModalityEdge);
          }
          continue;
        }
        for (int64_t j = 0; j < nodes; ++j) {
          if (i == j) {
            add_edge(set, j, kSelfEdge);
          } else if (spatial.count({i, j}) > 0) {
            add_edge(set, j, kSpatialEdge);
          } else if (semantic.count({i, j}) > 0) {
            add_edge(set, j, kSemanticEdge);
          }
        }
      }
      graph.row_offsets.push_back(static_cast<int32_t>(graph.columns.size()));
    }
  }
  for (int64_t i = 0; i < graph.nodes(); ++i) {
    for (int32_t e = graph.row_offsets[i]; e < graph.row_offsets[i + 1]; ++e) {
      const int32_t j = graph.columns[e];
      for (int32_t back = graph.row_offsets[j]; back < graph.row_offsets[j + 1]; ++back) {
        if (graph.columns[back] == i) {
          graph.transpose.push_back(back);
        }
      }
    }
  }
  return graph;
}

// Calls body(i, j, e) for every edge e = (i, j).
template <class Body>
void for_each_edge(const HostGraph& graph, Body&& body) {
  for (int64_t i = 0; i < graph.nodes(); ++i) {
    for (int64_t e = graph.row_offsets[i]; e < graph.row_offsets[i + 1]; ++e) {
      body(i, int64_t{graph.columns[e]}, e);
    }
  }
}

// The same for the edges that are not cut.
template <class Body>
void for_each_active_edge(const HostGraph& graph, Body&& body) {
  for_each_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
    if (!graph.absent(j)) {
      body(i, j, e);
    }
  });
}

template <class T>
std::vector<T> degrees(const HostGraph& graph, const T* theta) {
  std::vector<T> degree(static_cast<size_t>(graph.nodes()), T(0));
  for_each_active_edge(graph,
                       [&](int64_t i, int64_t, int64_t e) { degree[i] += std::exp(theta[graph.types[e]]); });
  return degree;
}

template <class T>
void graph_symmetric_weights_forward(const HostGraph& graph, const T* theta, T* values) {
  const std::vector<T> degree = degrees(graph, theta);
  std::fill(values, values + graph.edges(), T(0));
  for_each_active_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
    values[e] = std::exp(theta[graph.types[e]]) / std::sqrt(degree[i] * degree[j]);
  });
}

template <class T>
void graph_symmetric_weights_backward(const HostGraph& graph, const T* theta, const T* dvalues, T* dtheta) {
  // value = A_e / sqrt(D_i D_j): through A_e directly, and through every A of the rows i and j.
  const std::vector<T> degree = degrees(graph, theta);
  std::vector<T> ddegree(degree.size(), T(0));
  std::vector<T> da(static_cast<size_t>(graph.edges()), T(0));
  for_each_active_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
    const T root = std::sqrt(degree[i] * degree[j]);
    const T weight = std::exp(theta[graph.types[e]]);
    da[e] += dvalues[e] / root;
    ddegree[i] -= dvalues[e] * weight / (2 * root * degree[i]);
    ddegree[j] -= dvalues[e] * weight / (2 * root * degree[j]);
  });
  std::fill(dtheta, dtheta + graph.type_count, T(0));
  for_each_active_edge(graph, [&](int64_t i, int64_t, int64_t e) {
    dtheta[graph.types[e]] += (da[e] + ddegree[i]) * std::exp(theta[graph.types[e]]);
  });
}

template <class T>
void graph_attention_scores_forward(const HostGraph& graph, T slope, const T* a, const T* b, const T* theta,
                                    T* scores) {
  std::fill(scores, scores + graph.edges(), -std::numeric_limits<T>::infinity());
  for_each_active_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
    const T sum = (graph.absent(i) ? T(0) : a[i]) + b[j] + theta[graph.types[e]];
    scores[e] = sum > 0 ? sum : slope * sum;
  });
}

template <class T>
void graph_attention_scores_backward(const HostGraph& graph, T slope, const T* a, const T* b, const T* theta,
                                     const T* dscores, T* da, T* db, T* dtheta) {
  std::fill(da, da + graph.nodes(), T(0));
  std::fill(db, db + graph.nodes(), T(0));
  std::fill(dtheta, dtheta + graph.type_count, T(0));
  for_each_active_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
    const T sum = (graph.absent(i) ? T(0) : a[i]) + b[j] + theta[graph.types[e]];
    const T gradient = sum > 0 ? dscores[e] : slope * dscores[e];
    da[i] += graph.absent(i) ? T(0) : gradient;
    db[j] += gradient;
    dtheta[graph.types[e]] += gradient;
  });
}

template <class T>
void graph_segment_softmax_forward(const HostGraph& graph, const T* scores, T* values) {
  for (int64_t i = 0; i < graph.nodes(); ++i) {
    const int32_t begin = graph.row_offsets[i], end = graph.row_offsets[i + 1];
    const T largest = *std::max_element(scores + begin, scores + end);
    if (largest == -std::numeric_limits<T>::infinity()) {
      std::fill(values + begin, values + end, T(0));
      continue;
    }
    T sum = 0;
    for (int32_t e = begin; e < end; ++e) {
      sum += std::exp(scores[e] - largest);
    }
    for (int32_t e = begin; e < end; ++e) {
      values[e] = std::exp(scores[e] - largest) / sum;
    }
  }
}

// From the Jacobian d value_e / d score_f = value_e (delta_ef - value_f).
template <class T>
void graph_segment_softmax_backward(const HostGraph& graph, const T* values, const T* dvalues, T* dscores) {
  for (int64_t i = 0; i < graph.nodes(); ++i) {
    for (int32_t f = graph.row_offsets[i]; f < graph.row_offsets[i + 1]; ++f) {
      dscores[f] = 0;
      for (int32_t e = graph.row_offsets[i]; e < graph.row_offsets[i + 1]; ++e) {
        dscores[f] += dvalues[e] * values[e] * (T(e == f) - values[f]);
      }
    }
  }
}

template <class T>
void graph_spmm(const HostGraph& graph, int64_t features, const T* values, const T* z, bool transposed,
                T* y) {
  std::fill(y, y + graph.nodes() * features, T(0));
  for_each_active_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
    for (int64_t f = 0; f < features; ++f) {
      if (transposed) {
        y[j * features + f] += values[e] * z[i * features + f];
      } else {
        y[i * features + f] += values[e] * z[j * features + f];
      }
    }
  });
}

template <class T>
void graph_sddmm(const HostGraph& graph, int64_t features, const T* a, const T* b, T* out) {
  std::fill(out, out + graph.edges(), T(0));
  for_each_active_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
    for (int64_t f = 0; f < features; ++f) {
      out[e] += a[i * features + f] * b[j * features + f];
    }
  });
}

template <class T>
void graph_mask_nodes(const HostGraph& graph, int64_t features, const T* z, T* y) {
  for (int64_t i = 0; i < graph.nodes() * features; ++i) {
    y[i] = graph.absent(i / features) ? T(0) : z[i];
  }
}

}  // namespace vesal::kernels::reference
