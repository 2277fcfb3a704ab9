// Graph kernels: the built structure against a plain search, edge by edge; weights, products and their
// gradients against references; properties that any such graph has.
#include "kernels/graph/graph.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <tuple>

#include "base/parallel.hpp"
#include "kernels/graph/graph_cases.hpp"
#include "kernels/graph/graph_ref.hpp"
#include "kernels/region_pool/region_pool_cases.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

using reference::HostGraph;

constexpr float kSlope = 0.2f;

// A graph in device memory: poisoned, or holding a host graph in arrays of exactly its size.
struct DeviceGraph {
  DeviceArray<int32_t> row_offsets;
  DeviceArray<int32_t> columns;
  DeviceArray<uint8_t> types;
  DeviceArray<int32_t> transpose;
  int64_t nodes;
  int type_count;
  int64_t nodes_per_set;
  std::unique_ptr<DeviceArray<uint8_t>> available;

  DeviceGraph(Device device, const GraphParams& p, const std::vector<uint8_t>& mask = {})
      : row_offsets(device, p.nodes() + 1),
        columns(device, p.edge_capacity()),
        types(device, p.edge_capacity()),
        transpose(device, p.edge_capacity()),
        nodes(p.nodes()),
        type_count(p.type_count()),
        nodes_per_set(p.nodes_per_set()) {
    set_mask(device, mask);
  }
  DeviceGraph(Device device, const HostGraph& host)
      : row_offsets(device, host.row_offsets),
        columns(device, host.columns),
        types(device, host.types),
        transpose(device, host.transpose),
        nodes(host.nodes()),
        type_count(host.type_count),
        nodes_per_set(host.nodes_per_set) {
    set_mask(device, host.available);
  }

  void set_mask(Device device, const std::vector<uint8_t>& mask) {
    if (!mask.empty()) {
      available = std::make_unique<DeviceArray<uint8_t>>(device, mask);
    }
  }
  Graph get() const {
    return {nodes,
            row_offsets,
            columns,
            types,
            transpose,
            type_count,
            available ? available->get() : nullptr,
            nodes_per_set};
  }
};

template <class T>
HostGraph build_on(Device device, const GraphParams& p, const std::vector<T>& features,
                   const std::vector<int32_t>& labels = {}, const std::vector<uint8_t>& mask = {}) {
  Context context(device);
  const DeviceArray<int32_t> on_device(device, labels);
  const DeviceArray<T> x(device, features);
  const DeviceGraph graph(device, p, mask);
  const DeviceWorkspace workspace(device, graph_build_workspace_bytes(context, p));
  graph_build(context, p, x.get(), labels.empty() ? nullptr : on_device.get(), graph.get(), workspace);
  HostGraph host{graph.row_offsets.host(), graph.columns.host(),   graph.types.host(),
                 graph.transpose.host(),   graph.get().type_count, mask,
                 p.nodes_per_set()};
  const auto edges = static_cast<size_t>(host.edges());
  EXPECT_LE(edges, host.columns.size());
  const int32_t poison = DeviceArray<int32_t>(device, 1).host()[0];
  for (size_t e = edges; e < host.columns.size(); ++e) {
    EXPECT_EQ(host.columns[e], poison) << "entry " << e << " beyond the last edge was written";
  }
  host.columns.resize(edges);
  host.types.resize(edges);
  host.transpose.resize(edges);
  return host;
}

void expect_same_graph(const HostGraph& actual, const HostGraph& expected) {
  EXPECT_EQ(actual.row_offsets, expected.row_offsets);
  EXPECT_EQ(actual.columns, expected.columns);
  EXPECT_EQ(actual.types, expected.types);
  EXPECT_EQ(actual.transpose, expected.transpose);
}

std::vector<float> features_of(const GraphParams& p, uint64_t seed = 11) {
  return random_normal(p.nodes() * p.features, seed);
}

std::vector<int32_t> labels_of(const GraphParams& p, uint64_t seed = 12) {
  return p.regions > 0 ? random_labels({p.n, p.d * p.h * p.w, p.regions}, seed) : std::vector<int32_t>();
}

std::vector<uint8_t> mask_of(const GraphCase& c, uint64_t seed = 13) {
  return c.masked ? random_mask(c.params, seed) : std::vector<uint8_t>();
}

std::string on(Device device, const std::string& name) {
  return name + " on " +
         std::string(device.type == DeviceType::cpu    ? "cpu"
                     : device.type == DeviceType::simt ? "simt"
                                                       : "cuda");
}

template <class Out, class In>
std::vector<Out> converted(const std::vector<In>& values) {
  return std::vector<Out>(values.begin(), values.end());
}

TEST(GraphBuild, MatchesPlainSearch) {
  for (const GraphCase& c : kGraphCases) {
    const std::vector<float> features = features_of(c.params);
    const std::vector<int32_t> labels = labels_of(c.params);
    const std::vector<uint8_t> mask = mask_of(c);
    const HostGraph expected = reference::graph_build(c.params, features.data(), labels.data(), mask);
    for (const Device device : test_devices()) {
      SCOPED_TRACE(on(device, c.name));
      expect_same_graph(build_on(device, c.params, features, labels, mask), expected);
    }
  }
}

// Small integers make many equal distances: the smaller index has to win on every device.
TEST(GraphBuild, TiesGoToTheSmallerIndex) {
  const GraphParams p{2, 3, 5, 9, 7, 2};
  const std::vector<float> features = random_integers(p.nodes() * p.features, 3, 0, 3);
  const HostGraph expected = reference::graph_build(p, features.data());
  const GraphParams line{1, 1, 1, 70, 34, 1};
  const std::vector<float> equal(70, 2.5f);
  const HostGraph expected_line = reference::graph_build(line, equal.data());
  ASSERT_EQ(expected_line.row_offsets[70] - expected_line.row_offsets[69],
            36);  // 0..33, its neighbour 68, itself
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "ties"));
    expect_same_graph(build_on(device, p, features), expected);
    expect_same_graph(build_on(device, line, equal), expected_line);
  }
}

// Features whose distances differ only in the last bit: a fused multiply-add or another order of the sum
// shows.
TEST(GraphBuild, RoundsAlikeOnEveryDevice) {
  const GraphParams p{1, 1, 1, 130, 5, 40};
  std::vector<float> features = random_normal(p.features, 5);
  std::vector<float> all;
  const std::vector<float> noise = random_normal(p.nodes() * p.features, 6, 1e-3f);
  for (size_t i = 0; i < noise.size(); ++i) {
    const float sign = noise[i] > 0 ? 1.0f : -1.0f;
    all.push_back(features[i % features.size()] + sign * 0.7f + noise[i] * 1e-4f);
  }
  const HostGraph expected = reference::graph_build(p, all.data());
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "nearly equal distances"));
    expect_same_graph(build_on(device, p, all), expected);
  }
}

TEST(GraphBuild, NonFiniteDistancesMakeNoEdge) {
  const GraphParams p{1, 2, 6, 6, 4, 3};
  std::vector<float> features = features_of(p);
  features[3 * 5] = std::numeric_limits<float>::quiet_NaN();
  features[3 * 20 + 1] = -std::numeric_limits<float>::quiet_NaN();
  features[3 * 40 + 2] = std::numeric_limits<float>::infinity();
  features[3 * 60] = 3e38f;  // its squared distance overflows
  const HostGraph expected = reference::graph_build(p, features.data());
  ASSERT_EQ(expected.row_offsets[6] - expected.row_offsets[5], 4);  // a corner: itself and three neighbours
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "NaN and infinity"));
    expect_same_graph(build_on(device, p, features), expected);
  }
}

TEST(GraphBuild, IsSymmetricSortedAndItsOwnTranspose) {
  for (const GraphCase& c : kGraphCases) {
    const std::vector<float> features = features_of(c.params, 17);
    for (const Device device : test_devices()) {
      SCOPED_TRACE(on(device, c.name));
      const HostGraph graph = build_on(device, c.params, features, labels_of(c.params), mask_of(c));
      ASSERT_EQ(graph.transpose.size(), static_cast<size_t>(graph.edges()));
      std::vector<int64_t> row_of(graph.columns.size());
      reference::for_each_edge(graph, [&](int64_t i, int64_t, int64_t e) { row_of[e] = i; });
      reference::for_each_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
        const int64_t back = graph.transpose[e];
        ASSERT_GE(back, 0);
        ASSERT_LT(back, graph.edges());
        EXPECT_EQ(row_of[back], j);
        EXPECT_EQ(graph.columns[back], i);
        EXPECT_EQ(graph.transpose[back], e);
        EXPECT_EQ(graph.types[back], graph.types[e]);
        EXPECT_EQ(graph.types[e] == kSelfEdge, i == j);
        EXPECT_EQ(i / c.params.nodes_per_sample(), j / c.params.nodes_per_sample());
        if (e > graph.row_offsets[i]) {
          EXPECT_LT(graph.columns[e - 1], j);
        }
      });
    }
  }
}

// On a line of nodes, the nearest neighbours do not depend on the numbering (distances are all different).
TEST(GraphBuild, NearestNeighboursFollowAPermutationOfTheNodes) {
  const GraphParams p{1, 1, 1, 90, 6, 5};
  const std::vector<float> features = features_of(p);
  std::vector<int64_t> order(90);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = 0; i < order.size(); ++i) {
    std::swap(order[i], order[(i * 37 + 11) % order.size()]);
  }
  std::vector<float> permuted(features.size());
  for (size_t i = 0; i < order.size(); ++i) {
    std::copy_n(features.begin() + order[i] * p.features, p.features,
                permuted.begin() + static_cast<int64_t>(i) * 5);
  }
  const auto semantic_pairs = [](const HostGraph& graph, const std::vector<int64_t>& name) {
    std::set<std::pair<int64_t, int64_t>> pairs;
    reference::for_each_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
      if (graph.types[e] == kSemanticEdge) {
        pairs.insert({name[i], name[j]});
      }
    });
    return pairs;
  };
  std::vector<int64_t> identity(90);
  std::iota(identity.begin(), identity.end(), 0);
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "permutation"));
    auto plain = semantic_pairs(build_on(device, p, features), identity);
    auto renamed = semantic_pairs(build_on(device, p, permuted), order);
    EXPECT_GT(plain.size(), 400u);
    // A near pair that is also a grid neighbour in one numbering has the spatial type there.
    const auto adjacent = [](int64_t i, int64_t j) { return std::abs(i - j) == 1; };
    std::vector<int64_t> position(90);
    for (size_t i = 0; i < order.size(); ++i) {
      position[order[i]] = static_cast<int64_t>(i);
    }
    const auto drop = [&](std::set<std::pair<int64_t, int64_t>>& pairs) {
      std::erase_if(pairs, [&](const auto& pair) {
        return adjacent(pair.first, pair.second) || adjacent(position[pair.first], position[pair.second]);
      });
    };
    drop(plain);
    drop(renamed);
    EXPECT_EQ(plain, renamed);
  }
}

TEST(GraphBuild, SameBitsUnderEverySchedule) {
  const GraphParams p{2, 4, 5, 6, 9, 34};
  const std::vector<float> features = features_of(p);
  for (const Device device : test_devices()) {
    expect_same_bits(on(device, "graph_build"), device, [&] {
      const HostGraph graph = build_on(device, p, features);
      std::vector<float> all = converted<float>(graph.row_offsets);
      all.insert(all.end(), graph.columns.begin(), graph.columns.end());
      all.insert(all.end(), graph.types.begin(), graph.types.end());
      all.insert(all.end(), graph.transpose.begin(), graph.transpose.end());
      return all;
    });
  }
}

// The graph is the same for any number of threads.
TEST(GraphBuild, IndependentOfTheThreadCount) {
  const GraphParams p{1, 6, 6, 6, 9, 12};
  const std::vector<float> features = features_of(p);
  const HostGraph expected = reference::graph_build(p, features.data());
  const int threads = thread_count();
  for (const int count : {1, 3, 5}) {
    set_thread_count(count);
    SCOPED_TRACE(count);
    expect_same_graph(build_on({DeviceType::cpu, 0}, p, features), expected);
  }
  set_thread_count(threads);
}

TEST(GraphBuild, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  EXPECT_THROW(graph_build_workspace_bytes(context, {1, 41, 40, 40, 8, 1}), ShapeError);  // 65600 nodes
  EXPECT_NO_THROW(graph_build_workspace_bytes(context, {1, 64, 32, 32, 8, 1}));           // 65536
  EXPECT_THROW(graph_build_workspace_bytes(context, {1, 0, 4, 4, 8, 1}), ShapeError);
  EXPECT_THROW(graph_build_workspace_bytes(context, {1, 4, 4, 4, -1, 1}), ShapeError);
  EXPECT_THROW(graph_build_workspace_bytes(context, {1, 4, 4, 4, 8, 0}), ShapeError);
  EXPECT_THROW(graph_build_workspace_bytes(context, {1, 64, 32, 32, 32000, 1}),
               ShapeError);  // more than 2^31 edges
  const GraphParams p{1, 2, 2, 2, 3, 4};
  const DeviceGraph graph({DeviceType::cpu, 0}, p);
  const std::vector<float> features = features_of(p);
  const DeviceWorkspace small({DeviceType::cpu, 0}, 1);
  const DeviceWorkspace enough({DeviceType::cpu, 0}, graph_build_workspace_bytes(context, p));
  EXPECT_THROW(graph_build(context, p, features.data(), nullptr, graph.get(), small), ShapeError);
  EXPECT_THROW(graph_build(context, p, nullptr, nullptr, graph.get(), enough), ShapeError);
  EXPECT_THROW(graph_build_workspace_bytes(context, {1, 4, 4, 4, 8, 1, 0}), ShapeError);
  EXPECT_THROW(graph_build_workspace_bytes(context, {1, 4, 4, 4, 8, 1, 1, 0}), ShapeError);
  EXPECT_THROW(graph_build_workspace_bytes(context, {1, 80, 80, 80, 8, 1, 1, 1, 65537}), ShapeError);
  EXPECT_NO_THROW(graph_build_workspace_bytes(context, {1, 80, 80, 80, 8, 1, 1, 1, 4096}));
  const auto build = [&](const GraphParams& params, const int32_t* labels, const Graph& of) {
    graph_build(context, params, features.data(), labels, of, enough);
  };
  Graph wrong = graph.get();
  wrong.nodes = 7;
  EXPECT_THROW(build(p, nullptr, wrong), ShapeError);
  wrong = graph.get();
  wrong.type_count = kEdgeTypes;
  EXPECT_THROW(build(p, nullptr, wrong), ShapeError);
  wrong = graph.get();
  wrong.available = graph.types.get();
  wrong.nodes_per_set = 4;
  EXPECT_THROW(build(p, nullptr, wrong), ShapeError);              // a set has 8 nodes
  EXPECT_THROW(build(p, graph.columns, graph.get()), ShapeError);  // labels without regions
  EXPECT_THROW(build({1, 2, 2, 2, 3, 4, 1, 1, 8}, nullptr, graph.get()), ShapeError);
  wrong.nodes_per_set = 3;
  EXPECT_THROW(graph_mask_nodes(context, wrong, 1, features.data(), graph.columns.get()), ShapeError);
  EXPECT_THROW(graph_mask_nodes(context, graph.get(), 0, features.data(), graph.columns.get()), ShapeError);
  EXPECT_THROW(graph_spmm(context, graph.get(), 0, features.data(), features.data(), false,
                          graph.columns.get(), GradMode::overwrite),
               ShapeError);
  EXPECT_THROW(graph_spmm(context, graph.get(), 1, features.data(), features.data(), false,
                          Data(graph.types.get(), DType::f16), GradMode::overwrite),
               ShapeError);
}

// ---- Values ----

HostGraph graph_of(const GraphCase& c) {
  const std::vector<int32_t> labels = labels_of(c.params);
  return reference::graph_build(c.params, features_of(c.params).data(), labels.data(), mask_of(c));
}

std::vector<float> theta_of(const HostGraph& graph) {
  const std::vector<float> all = {0.7f, -0.4f, 0.3f, 0.9f, -0.6f};
  return {all.begin(), all.begin() + graph.type_count};
}

TEST(GraphSymmetricWeights, MatchReference) {
  for (const GraphCase& c : kGraphCases) {
    const HostGraph host = graph_of(c);
    const std::vector<float> narrow_theta = theta_of(host);
    const std::vector<double> theta = widen(narrow_theta);
    std::vector<double> exact(host.columns.size());
    std::vector<float> naive(host.columns.size());
    reference::graph_symmetric_weights_forward(host, theta.data(), exact.data());
    reference::graph_symmetric_weights_forward(host, narrow_theta.data(), naive.data());
    const std::vector<float> gradient = random_normal(host.edges(), 21);
    const std::vector<double> wide_gradient = widen(gradient);
    std::vector<double> exact_dtheta(theta.size());
    reference::graph_symmetric_weights_backward(host, theta.data(), wide_gradient.data(),
                                                exact_dtheta.data());
    for (const Device device : test_devices()) {
      const std::string what = on(device, c.name);
      Context context(device);
      const DeviceGraph graph(device, host);
      const DeviceArray<float> t(device, narrow_theta), dvalues(device, gradient),
          values(device, host.edges());
      const DeviceWorkspace workspace(device, graph_symmetric_weights_workspace_bytes(context, graph.get()));
      graph_symmetric_weights_forward(context, graph.get(), t.get(), values.get(), workspace);
      expect_close("symmetric weights, " + what, values.host(), exact, naive);

      // The sums cancel (dtheta sums to zero over the types): an absolute error is due to the rounding of the
      // values, 4 units in the last place of the largest |value * dvalue| times the square root of their
      // number.
      double scale = 0;
      for (size_t e = 0; e < exact.size(); ++e) {
        scale = std::max(scale, std::abs(exact[e] * wide_gradient[e]));
      }
      const double limit = 4 * 0x1p-23 * scale * std::sqrt(static_cast<double>(exact.size()));
      const DeviceArray<float> dtheta(device, host.type_count);
      const auto backward = [&](GradMode mode) {
        const DeviceWorkspace scratch(device, graph_symmetric_weights_workspace_bytes(context, graph.get()));
        graph_symmetric_weights_backward(context, graph.get(), t.get(), values.get(), dvalues.get(),
                                         dtheta.get(), mode, scratch);
        return dtheta.host();
      };
      const std::vector<float> once = backward(GradMode::overwrite);
      const std::vector<float> twice = backward(GradMode::accumulate);
      for (int type = 0; type < host.type_count; ++type) {
        EXPECT_LE(std::abs(once[type] - exact_dtheta[type]), limit) << what << ", theta " << type;
        EXPECT_EQ(twice[type], once[type] + once[type]) << what << ", theta " << type;
      }
      expect_same_bits("symmetric weights backward, " + what, device,
                       [&] { return backward(GradMode::overwrite); });
    }
  }
}

// exp(theta) would overflow or vanish; the weights only depend on differences.
TEST(GraphSymmetricWeights, DoNotOverflow) {
  const HostGraph host = graph_of(kGraphCases[8]);
  for (const float shift : {200.0f, -200.0f}) {
    const std::vector<float> theta = {0.5f + shift, -0.25f + shift, shift};
    const std::vector<double> plain = {0.5, -0.25, 0.0};
    std::vector<double> exact(host.columns.size());
    reference::graph_symmetric_weights_forward(host, plain.data(), exact.data());
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceGraph graph(device, host);
      const DeviceArray<float> t(device, theta), values(device, host.edges());
      const DeviceWorkspace workspace(device, graph_symmetric_weights_workspace_bytes(context, graph.get()));
      graph_symmetric_weights_forward(context, graph.get(), t.get(), values.get(), workspace);
      expect_close(on(device, "large theta"), values.host(), exact,
                   std::vector<float>(exact.begin(), exact.end()));
    }
  }
}

TEST(GraphSymmetricWeights, GradientIsNumeric) {
  for (const GraphCase& c :
       {GraphCase{"tiny", {2, 2, 2, 3, 2, 3}}, GraphCase{"sets", {2, 2, 2, 1, 2, 3, 2, 3}},
        GraphCase{"masked", {2, 2, 2, 1, 2, 3, 2, 3}, true}}) {
    const HostGraph host = graph_of(c);
    const std::vector<double> gradient = widen(random_normal(host.edges(), 31));
    const std::vector<double> theta = widen(theta_of(host));
    std::vector<double> analytic(theta.size());
    reference::graph_symmetric_weights_backward(host, theta.data(), gradient.data(), analytic.data());
    expect_gradient("theta, " + c.name, theta, analytic, [&](const std::vector<double>& at) {
      std::vector<double> values(host.columns.size());
      reference::graph_symmetric_weights_forward(host, at.data(), values.data());
      return std::inner_product(values.begin(), values.end(), gradient.begin(), 0.0);
    });
  }
}

struct Attention {
  HostGraph host;
  std::vector<float> a, b, dscores, theta;

  explicit Attention(const GraphCase& c)
      : host(graph_of(c)),
        a(random_normal(host.nodes(), 41)),
        b(random_normal(host.nodes(), 42)),
        dscores(random_normal(host.edges(), 43)),
        theta(theta_of(host)) {}
};

// Scores with cut edges, which must be -inf, as 0.
template <class T>
std::vector<T> without_cut_edges(const HostGraph& graph, std::vector<T> scores) {
  reference::for_each_edge(graph, [&](int64_t, int64_t j, int64_t e) {
    if (graph.absent(j)) {
      EXPECT_EQ(scores[e], -std::numeric_limits<T>::infinity()) << "edge " << e;
      scores[e] = 0;
    }
  });
  return scores;
}

TEST(GraphAttention, ScoresMatchReference) {
  for (const GraphCase& c : kGraphCases) {
    const Attention in(c);
    const auto nodes = static_cast<size_t>(in.host.nodes());
    const std::vector<double> wa = widen(in.a), wb = widen(in.b), wt = widen(in.theta),
                              wd = widen(in.dscores);
    const double slope = kSlope;
    std::vector<double> exact(in.host.columns.size()), exact_da(nodes), exact_db(nodes),
        exact_dtheta(wt.size());
    std::vector<float> naive(in.host.columns.size()), naive_da(nodes), naive_db(nodes),
        naive_dtheta(wt.size());
    reference::graph_attention_scores_forward(in.host, slope, wa.data(), wb.data(), wt.data(), exact.data());
    reference::graph_attention_scores_forward(in.host, kSlope, in.a.data(), in.b.data(), in.theta.data(),
                                              naive.data());
    reference::graph_attention_scores_backward(in.host, slope, wa.data(), wb.data(), wt.data(), wd.data(),
                                               exact_da.data(), exact_db.data(), exact_dtheta.data());
    reference::graph_attention_scores_backward(in.host, kSlope, in.a.data(), in.b.data(), in.theta.data(),
                                               in.dscores.data(), naive_da.data(), naive_db.data(),
                                               naive_dtheta.data());
    for (const Device device : test_devices()) {
      const std::string what = on(device, c.name);
      Context context(device);
      const DeviceGraph graph(device, in.host);
      const DeviceArray<float> a(device, in.a), b(device, in.b), theta(device, in.theta),
          dscores(device, in.dscores);
      const DeviceArray<float> scores(device, in.host.edges());
      graph_attention_scores_forward(context, graph.get(), kSlope, a.get(), b.get(), theta.get(),
                                     scores.get());
      expect_close("attention scores, " + what, without_cut_edges(in.host, scores.host()),
                   without_cut_edges(in.host, exact), without_cut_edges(in.host, naive));
      expect_same_bits("attention backward, " + what, device, [&] {
        const DeviceArray<float> da(device, in.host.nodes()), db(device, in.host.nodes()),
            dtheta(device, in.host.type_count);
        const auto backward = [&](GradMode mode) {
          const DeviceWorkspace workspace(device,
                                          graph_attention_scores_workspace_bytes(context, graph.get()));
          graph_attention_scores_backward(context, graph.get(), kSlope, a.get(), b.get(), theta.get(),
                                          dscores.get(), da.get(), db.get(), dtheta.get(), mode, workspace);
        };
        backward(GradMode::overwrite);
        expect_close("da, " + what, da.host(), exact_da, naive_da);
        expect_close("db, " + what, db.host(), exact_db, naive_db);
        const std::vector<float> once = dtheta.host();
        expect_close("dtheta, " + what, once, exact_dtheta, naive_dtheta);
        backward(GradMode::accumulate);
        const std::vector<float> twice = dtheta.host();
        for (int type = 0; type < in.host.type_count; ++type) {
          EXPECT_EQ(twice[type], once[type] + once[type]) << what << ", theta " << type;
        }
        std::vector<float> all = da.host();
        const std::vector<float> second = db.host();
        all.insert(all.end(), second.begin(), second.end());
        all.insert(all.end(), once.begin(), once.end());
        return all;
      });
    }
  }
}

TEST(GraphAttention, GradientIsNumeric) {
  for (const GraphCase& c :
       {GraphCase{"tiny", {1, 2, 2, 3, 2, 3}}, GraphCase{"masked", {2, 2, 2, 1, 2, 3, 2, 2}, true}}) {
    const Attention in(c);
    const auto nodes = static_cast<size_t>(in.host.nodes());
    // A cut edge has no say, whatever gradient it is given.
    std::vector<double> gradient = widen(in.dscores);
    std::vector<double> packed = widen(in.a);
    packed.insert(packed.end(), in.b.begin(), in.b.end());
    packed.insert(packed.end(), in.theta.begin(), in.theta.end());
    std::vector<double> analytic(packed.size());
    reference::graph_attention_scores_backward(in.host, 0.2, packed.data(), packed.data() + nodes,
                                               packed.data() + 2 * nodes, gradient.data(), analytic.data(),
                                               analytic.data() + nodes, analytic.data() + 2 * nodes);
    expect_gradient("a, b, theta, " + c.name, packed, analytic, [&](const std::vector<double>& at) {
      std::vector<double> scores(in.host.columns.size());
      reference::graph_attention_scores_forward(in.host, 0.2, at.data(), at.data() + nodes,
                                                at.data() + 2 * nodes, scores.data());
      double loss = 0;
      reference::for_each_active_edge(in.host,
                                      [&](int64_t, int64_t, int64_t e) { loss += scores[e] * gradient[e]; });
      return loss;
    });
  }
}

TEST(GraphSegmentSoftmax, MatchesReference) {
  for (const GraphCase& c : kGraphCases) {
    const HostGraph host = graph_of(c);
    const std::vector<float> scores = random_normal(host.edges(), 51, 3.0f),
                             gradient = random_normal(host.edges(), 52);
    const std::vector<double> wide_scores = widen(scores), wide_gradient = widen(gradient);
    std::vector<double> exact(scores.size()), exact_gradient(scores.size());
    std::vector<float> naive(scores.size()), naive_gradient(scores.size());
    reference::graph_segment_softmax_forward(host, wide_scores.data(), exact.data());
    reference::graph_segment_softmax_forward(host, scores.data(), naive.data());
    const std::vector<float> rounded(exact.begin(), exact.end());
    const std::vector<double> wide_values = widen(rounded);
    reference::graph_segment_softmax_backward(host, wide_values.data(), wide_gradient.data(),
                                              exact_gradient.data());
    reference::graph_segment_softmax_backward(host, rounded.data(), gradient.data(), naive_gradient.data());
    // A row of two edges, one of which has nearly all the weight, leaves little of its gradient: a single
    // float32 evaluation may be nearly exact by luck.
    RandomStream random(53, 0, 0);
    for (int trial = 0; trial < 6; ++trial) {
      std::vector<float> other(scores.size());
      reference::graph_segment_softmax_backward(host, moved_by_one_ulp(rounded, random).data(),
                                                moved_by_one_ulp(gradient, random).data(), other.data());
      keep_worse(naive_gradient, other, exact_gradient);
    }
    for (const Device device : test_devices()) {
      const std::string what = on(device, c.name);
      Context context(device);
      const DeviceGraph graph(device, host);
      const DeviceArray<float> s(device, scores), v(device, rounded), dvalues(device, gradient);
      expect_same_bits("softmax, " + what, device, [&] {
        const DeviceArray<float> values(device, host.edges()), dscores(device, host.edges());
        graph_segment_softmax_forward(context, graph.get(), s.get(), values.get());
        graph_segment_softmax_backward(context, graph.get(), v.get(), dvalues.get(), dscores.get());
        std::vector<float> all = values.host();
        expect_close("softmax, " + what, all, exact, naive);
        const std::vector<float> second = dscores.host();
        expect_close("softmax backward, " + what, second, exact_gradient, naive_gradient);
        all.insert(all.end(), second.begin(), second.end());
        return all;
      });
    }
  }
}

TEST(GraphSegmentSoftmax, GradientIsNumeric) {
  const HostGraph host = graph_of({"tiny", {1, 2, 2, 2, 2, 3}});
  const std::vector<double> scores = widen(random_normal(host.edges(), 61)),
                            gradient = widen(random_normal(host.edges(), 62));
  std::vector<double> values(scores.size()), analytic(scores.size());
  reference::graph_segment_softmax_forward(host, scores.data(), values.data());
  reference::graph_segment_softmax_backward(host, values.data(), gradient.data(), analytic.data());
  expect_gradient("scores", scores, analytic, [&](const std::vector<double>& at) {
    std::vector<double> result(at.size());
    reference::graph_segment_softmax_forward(host, at.data(), result.data());
    return std::inner_product(result.begin(), result.end(), gradient.begin(), 0.0);
  });
}

// Edges at -inf are taken out exactly; a row without any other becomes zero.
TEST(GraphSegmentSoftmax, MinusInfinityTakesAnEdgeOut) {
  const HostGraph host = graph_of(kGraphCases[8]);
  std::vector<float> scores = random_normal(host.edges(), 71);
  const float infinity = std::numeric_limits<float>::infinity();
  reference::for_each_edge(host, [&](int64_t i, int64_t j, int64_t e) {
    if (i == 5 || j % 3 == 1) {
      scores[e] = -infinity;
    }
  });
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "masked"));
    Context context(device);
    const DeviceGraph graph(device, host);
    const DeviceArray<float> s(device, scores), values(device, host.edges());
    graph_segment_softmax_forward(context, graph.get(), s.get(), values.get());
    const std::vector<float> result = values.host();
    std::vector<double> sums(static_cast<size_t>(host.nodes()));
    reference::for_each_edge(host, [&](int64_t i, int64_t j, int64_t e) {
      sums[i] += result[e];
      if (i == 5 || j % 3 == 1) {
        EXPECT_EQ(result[e], 0.0f);
      } else {
        EXPECT_GT(result[e], 0.0f);
      }
    });
    for (int64_t i = 0; i < host.nodes(); ++i) {
      EXPECT_NEAR(sums[i], i == 5 ? 0.0 : 1.0, 1e-6) << "row " << i;  // some 20 roundings of 6e-8
    }
  }
}

TEST(GraphProducts, MatchReference) {
  for (const GraphCase& c :
       {kGraphCases[0], kGraphCases[3], kGraphCases[7], kGraphCases[10], kGraphCases.back()}) {
    const HostGraph host = graph_of(c);
    for (const int64_t features : {1, 7, 8, 9, 12, 15, 16, 17, 24, 63, 64, 65, 81}) {
      const std::string name = c.name + concat(", ", features, " features");
      const int64_t size = host.nodes() * features;
      const auto run = [&](const std::vector<float>& values, const std::vector<float>& z,
                           const std::vector<float>& a, const std::vector<float>& old, bool integers) {
        const std::vector<double> wide_values = widen(values), wide_z = widen(z), wide_a = widen(a);
        std::vector<double> exact_sddmm(values.size());
        std::vector<float> naive_sddmm(values.size());
        reference::graph_sddmm(host, features, wide_a.data(), wide_z.data(), exact_sddmm.data());
        reference::graph_sddmm(host, features, a.data(), z.data(), naive_sddmm.data());
        for (const Device device : test_devices()) {
          const std::string what = on(device, name);
          Context context(device);
          const DeviceGraph graph(device, host);
          const DeviceArray<float> v(device, values), dz(device, z), da(device, a), out(device, host.edges());
          graph_sddmm(context, graph.get(), features, da.get(), dz.get(), out.get());
          if (integers) {
            expect_equal("sddmm, " + what, out.host(), exact_sddmm);
          } else if (host.nodes() > 1) {  // the naive error of a single sum is a matter of luck
            expect_close("sddmm, " + what, out.host(), exact_sddmm, naive_sddmm);
          }
          for (const bool transposed : {false, true}) {
            std::vector<double> exact(static_cast<size_t>(size));
            std::vector<float> naive(static_cast<size_t>(size));
            reference::graph_spmm(host, features, wide_values.data(), wide_z.data(), transposed,
                                  exact.data());
            reference::graph_spmm(host, features, values.data(), z.data(), transposed, naive.data());
            const DeviceArray<float> y(device, size), sum(device, old);
            graph_spmm(context, graph.get(), features, v.get(), dz.get(), transposed, y.get(),
                       GradMode::overwrite);
            graph_spmm(context, graph.get(), features, v.get(), dz.get(), transposed, sum.get(),
                       GradMode::accumulate);
            if (integers) {
              expect_equal("spmm, " + what, y.host(), exact);
              for (size_t i = 0; i < exact.size(); ++i) {
                exact[i] += old[i];
              }
              expect_equal("spmm accumulating, " + what, sum.host(), exact);
            } else if (host.nodes() > 1) {
              expect_close("spmm, " + what, y.host(), exact, naive);
            }
          }
        }
      };
      run(random_integers(host.edges(), 81), random_integers(size, 82), random_integers(size, 83),
          random_integers(size, 84), true);
      run(random_normal(host.edges(), 85), random_normal(size, 86), random_normal(size, 87),
          random_normal(size, 88), false);
    }
  }
}

// With k = M - 1 every pair is an edge, and the sparse product is a dense one.
TEST(GraphProducts, CompleteGraphIsADenseProduct) {
  const GraphParams p{1, 3, 3, 4, 35, 3};
  const int64_t nodes = p.nodes(), features = 10;
  const std::vector<float> matrix = random_integers(nodes * nodes, 91),
                           z = random_integers(nodes * features, 92);
  for (const bool transposed : {false, true}) {
    std::vector<double> dense(static_cast<size_t>(nodes * features));
    for (int64_t i = 0; i < nodes; ++i) {
      for (int64_t j = 0; j < nodes; ++j) {
        for (int64_t f = 0; f < features; ++f) {
          dense[i * features + f] += matrix[transposed ? j * nodes + i : i * nodes + j] * z[j * features + f];
        }
      }
    }
    for (const Device device : test_devices()) {
      Context context(device);
      const HostGraph host = build_on(device, p, features_of(p));
      ASSERT_EQ(host.edges(), nodes * nodes);
      const DeviceGraph graph(device, host);
      const DeviceArray<float> values(device, matrix), dense_z(device, z), y(device, nodes * features);
      graph_spmm(context, graph.get(), features, values.get(), dense_z.get(), transposed, y.get(),
                 GradMode::overwrite);
      expect_equal(on(device, "dense product"), y.host(), dense);
    }
  }
}

// dz is spmm with the other orientation and dvalues is sddmm, as the contract says.
TEST(GraphProducts, BackwardIsNumeric) {
  const HostGraph host = graph_of({"tiny", {1, 2, 2, 2, 2, 3, 1, 3}, true});
  const int64_t features = 3, size = host.nodes() * features;
  const std::vector<double> values = widen(random_normal(host.edges(), 101)),
                            z = widen(random_normal(size, 102)), dy = widen(random_normal(size, 103));
  const auto loss = [&](const std::vector<double>& v, const std::vector<double>& x) {
    std::vector<double> y(static_cast<size_t>(size));
    reference::graph_spmm(host, features, v.data(), x.data(), false, y.data());
    return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
  };
  std::vector<double> dz(static_cast<size_t>(size)), dvalues(values.size());
  reference::graph_spmm(host, features, values.data(), dy.data(), true, dz.data());
  reference::graph_sddmm(host, features, dy.data(), z.data(), dvalues.data());
  expect_gradient("z", z, dz, [&](const std::vector<double>& at) { return loss(values, at); });
  expect_gradient("values", values, dvalues, [&](const std::vector<double>& at) { return loss(at, z); });
}

TEST(GraphProducts, SameBitsUnderEverySchedule) {
  const HostGraph host = graph_of(kGraphCases[10]);
  const int64_t features = 37;
  const std::vector<float> values = random_normal(host.edges(), 111),
                           z = random_normal(host.nodes() * features, 112);
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceGraph graph(device, host);
    const DeviceArray<float> v(device, values), x(device, z);
    expect_same_bits(on(device, "products"), device, [&] {
      const DeviceArray<float> y(device, host.nodes() * features), out(device, host.edges());
      graph_spmm(context, graph.get(), features, v.get(), x.get(), true, y.get(), GradMode::overwrite);
      graph_sddmm(context, graph.get(), features, x.get(), y.get(), out.get());
      std::vector<float> all = y.host();
      const std::vector<float> second = out.host();
      all.insert(all.end(), second.begin(), second.end());
      return all;
    });
  }
}

// ---- Regions, node sets and their availability ----

TEST(GraphRegions, TouchAcrossFacesOnly) {
  // 2 x 2 x 3 voxels: 0 0 1 / 2 -1 1 and 0 5 4 / 2 9 4; regions 3 and 5 of 6 have no voxel or one.
  const std::vector<int32_t> labels = {0, 0, 1, 2, -1, 1, 0, 5, 4, 2, 9, 4};
  const GraphParams p{1, 2, 2, 3, 0, 1, 1, 1, 6};
  const std::map<int32_t, std::vector<int32_t>> rows = {{0, {0, 1, 2, 5}}, {1, {0, 1, 4}}, {2, {0, 2}},
                                                        {3, {3}},          {4, {1, 4, 5}}, {5, {0, 4, 5}}};
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "regions"));
    const HostGraph graph = build_on(device, p, std::vector<float>(6, 1.0f), labels);
    for (const auto& [i, columns] : rows) {
      EXPECT_EQ(std::vector<int32_t>(graph.columns.begin() + graph.row_offsets[i],
                                     graph.columns.begin() + graph.row_offsets[i + 1]),
                columns)
          << "row " << i;
    }
  }
}

TEST(GraphSets, JoinTheSameNodeOfOtherSets) {
  const GraphParams p{2, 1, 2, 2, 0, 1, 2, 3};  // no semantic edges
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "sets"));
    const HostGraph graph = build_on(device, p, std::vector<float>(static_cast<size_t>(p.nodes()), 1.0f));
    std::map<int, int64_t> counts;
    reference::for_each_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
      ++counts[graph.types[e]];
      const int64_t a = i / 4 % 6, b = j / 4 % 6;
      const bool crosses = graph.types[e] >= kCrossBranchEdge;
      EXPECT_EQ(a != b, crosses);
      EXPECT_TRUE(!crosses || i % 4 == j % 4);
      EXPECT_TRUE(graph.types[e] != kCrossBranchEdge || (a % 3 == b % 3 && a / 3 != b / 3));
      EXPECT_TRUE(graph.types[e] != kCrossModalityEdge || (a % 3 != b % 3 && a / 3 == b / 3));
    });
    EXPECT_EQ(counts, (std::map<int, int64_t>{{0, 48}, {1, 96}, {3, 48}, {4, 96}}));
  }
}

// Renaming the regions renames rows and columns, and what the graph computes.
TEST(GraphRegions, FollowAPermutationOfTheRegions) {
  const GraphParams p{1, 5, 6, 7, 4, 5, 1, 1, 30};
  const std::vector<float> features = features_of(p);
  const std::vector<int32_t> labels = labels_of(p);
  std::vector<int64_t> renamed(30);
  std::iota(renamed.begin(), renamed.end(), 0);
  for (size_t i = 0; i < renamed.size(); ++i) {
    std::swap(renamed[i], renamed[(i * 17 + 5) % renamed.size()]);
  }
  const auto permuted_rows = [&](const std::vector<float>& rows) {
    std::vector<float> moved(rows.size());
    for (size_t i = 0; i < renamed.size(); ++i) {
      std::copy_n(rows.begin() + static_cast<int64_t>(i) * 5, 5, moved.begin() + renamed[i] * 5);
    }
    return moved;
  };
  std::vector<int32_t> other_labels = labels;
  for (int32_t& label : other_labels) {
    label = label >= 0 && label < 30 ? static_cast<int32_t>(renamed[static_cast<size_t>(label)]) : label;
  }
  const auto edges = [&](const HostGraph& graph, bool rename) {
    std::set<std::tuple<int64_t, int64_t, int>> all;
    reference::for_each_edge(graph, [&](int64_t i, int64_t j, int64_t e) {
      all.insert({rename ? renamed[i] : i, rename ? renamed[j] : j, graph.types[e]});
    });
    return all;
  };
  const std::vector<float> z = random_normal(p.nodes() * 5, 14);
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "permutation"));
    const HostGraph plain = build_on(device, p, features, labels);
    const HostGraph other = build_on(device, p, permuted_rows(features), other_labels);
    EXPECT_EQ(edges(plain, true), edges(other, false));
    const auto propagated = [&](const HostGraph& host, const std::vector<float>& x) {
      Context context(device);
      const DeviceGraph graph(device, host);
      const DeviceArray<float> theta(device, theta_of(host)), values(device, host.edges()), dense(device, x),
          y(device, static_cast<int64_t>(x.size()));
      const DeviceWorkspace workspace(device, graph_symmetric_weights_workspace_bytes(context, graph.get()));
      graph_symmetric_weights_forward(context, graph.get(), theta.get(), values.get(), workspace);
      graph_spmm(context, graph.get(), 5, values.get(), dense.get(), false, y.get(), GradMode::overwrite);
      return y.host();
    };
    const std::vector<double> wide_theta = widen(theta_of(plain)), wide_z = widen(z);
    std::vector<double> weights(plain.columns.size()), exact(z.size());
    std::vector<float> naive_weights(plain.columns.size()), naive(z.size());
    reference::graph_symmetric_weights_forward(plain, wide_theta.data(), weights.data());
    reference::graph_spmm(plain, 5, weights.data(), wide_z.data(), false, exact.data());
    reference::graph_symmetric_weights_forward(plain, theta_of(plain).data(), naive_weights.data());
    reference::graph_spmm(plain, 5, naive_weights.data(), z.data(), false, naive.data());
    const std::vector<float> narrow(exact.begin(), exact.end());
    expect_close("plain", propagated(plain, z), exact, naive);
    expect_close("renamed", propagated(other, permuted_rows(z)), widen(permuted_rows(narrow)),
                 permuted_rows(naive));
  }
}

// One graph, built with all sets; whatever absent nodes hold, every result has the same bits, and nothing of
// it is NaN.
TEST(GraphAvailability, AbsentNodesAreNeverRead) {
  for (const GraphParams& p :
       {GraphParams{3, 2, 3, 3, 4, 3, 1, 4}, GraphParams{2, 4, 5, 6, 3, 3, 2, 2, 20}}) {
    HostGraph host = reference::graph_build(p, features_of(p).data(), labels_of(p).data());
    host.available = random_mask(p, 20);
    const int64_t features = 9, size = host.nodes() * features;
    for (const Device device : test_devices()) {
      SCOPED_TRACE(on(device, "absent"));
      Context context(device);
      const DeviceGraph graph(device, host);
      const auto evaluate = [&](uint64_t seed, bool poisoned) {
        // What belongs to an absent node comes from `seed`, the rest is always the same.
        const auto node_values = [&](int64_t width, uint64_t key) {
          std::vector<float> values = random_normal(host.nodes() * width, key);
          const std::vector<float> others = random_normal(host.nodes() * width, key + seed, 50.0f);
          for (int64_t i = 0; i < host.nodes() * width; ++i) {
            if (host.absent(i / width)) {
              values[i] = poisoned ? std::numeric_limits<float>::quiet_NaN() : others[i];
            }
          }
          return values;
        };
        const DeviceArray<float> a(device, node_values(1, 101)), b(device, node_values(1, 102)),
            z(device, node_values(features, 103)), theta(device, theta_of(host));
        const DeviceArray<float> dy(device, random_normal(size, 104));
        const DeviceArray<float> symmetric(device, host.edges()), scores(device, host.edges()),
            attention(device, host.edges()), dvalues(device, host.edges()), dscores(device, host.edges()),
            y(device, size), dz(device, size), kept(device, size), da(device, host.nodes()),
            db(device, host.nodes()), dtheta(device, host.type_count), dsymmetric(device, host.type_count);
        const Graph g = graph.get();
        const auto scratch = [&](size_t bytes) { return std::make_unique<DeviceWorkspace>(device, bytes); };
        const auto first = scratch(graph_symmetric_weights_workspace_bytes(context, g));
        graph_symmetric_weights_forward(context, g, theta.get(), symmetric.get(), *first);
        graph_attention_scores_forward(context, g, kSlope, a.get(), b.get(), theta.get(), scores.get());
        graph_segment_softmax_forward(context, g, scores.get(), attention.get());
        graph_spmm(context, g, features, attention.get(), z.get(), false, y.get(), GradMode::overwrite);
        graph_spmm(context, g, features, symmetric.get(), z.get(), false, y.get(), GradMode::accumulate);
        graph_sddmm(context, g, features, dy.get(), z.get(), dvalues.get());
        graph_spmm(context, g, features, attention.get(), dy.get(), true, dz.get(), GradMode::overwrite);
        graph_segment_softmax_backward(context, g, attention.get(), dvalues.get(), dscores.get());
        const auto second = scratch(graph_symmetric_weights_workspace_bytes(context, g));
        graph_symmetric_weights_backward(context, g, theta.get(), symmetric.get(), dvalues.get(),
                                         dsymmetric.get(), GradMode::overwrite, *second);
        const auto third = scratch(graph_attention_scores_workspace_bytes(context, g));
        graph_attention_scores_backward(context, g, kSlope, a.get(), b.get(), theta.get(), dscores.get(),
                                        da.get(), db.get(), dtheta.get(), GradMode::overwrite, *third);
        graph_mask_nodes(context, g, features, z.get(), kept.get());
        std::vector<float> all;
        for (const DeviceArray<float>* part :
             {&symmetric, &attention, &y, &dvalues, &dz, &dscores, &dsymmetric, &da, &db, &dtheta, &kept}) {
          const std::vector<float> values = part->host();
          all.insert(all.end(), values.begin(), values.end());
        }
        // Rows of attention sum to 1, or to 0 where every edge is cut; nothing goes back to an absent node.
        const std::vector<float> weights = attention.host(), back = dz.host();
        std::vector<double> sums(static_cast<size_t>(host.nodes()));
        std::vector<bool> fed(static_cast<size_t>(host.nodes()));
        reference::for_each_active_edge(host, [&](int64_t i, int64_t, int64_t e) {
          sums[i] += weights[e];
          fed[i] = true;
        });
        for (int64_t i = 0; i < host.nodes(); ++i) {
          EXPECT_NEAR(sums[i], fed[i] ? 1.0 : 0.0, 1e-6) << "row " << i;  // some 20 roundings of 6e-8
          EXPECT_TRUE(!host.absent(i) || back[i * features] == 0.0f) << "row " << i;
        }
        return all;
      };
      const std::vector<float> expected = evaluate(1000, false);
      EXPECT_TRUE(std::all_of(expected.begin(), expected.end(), [](float x) { return std::isfinite(x); }));
      expect_equal("other contents", evaluate(2000, false), expected);
      expect_equal("NaN", evaluate(0, true), expected);
    }
  }
}

// A graph that is built with a mask does not look at the features of absent sets either.
TEST(GraphAvailability, AbsentFeaturesMakeNoEdges) {
  const GraphParams p{2, 2, 3, 3, 4, 3, 1, 4};
  const std::vector<uint8_t> mask = random_mask(p, 21);
  std::vector<float> features = features_of(p);
  const HostGraph expected = reference::graph_build(p, features.data(), nullptr, mask);
  ASSERT_NE(expected.edges(), reference::graph_build(p, features.data()).edges());
  const auto per_set = static_cast<size_t>(p.nodes_per_set() * p.features);
  for (size_t i = 0; i < features.size(); ++i) {
    features[i] = mask[i / per_set] == 0 ? static_cast<float>(i % 7) : features[i];
  }
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, "masked"));
    expect_same_graph(build_on(device, p, features, {}, mask), expected);
  }
}

TEST(GraphNodes, MaskMatchesReference) {
  for (const GraphCase& c : {kGraphCases[10], kGraphCases.back()}) {
    const HostGraph host = graph_of(c);
    const int64_t features = 7;
    const std::vector<float> z = random_normal(host.nodes() * features, 121);
    std::vector<float> expected(z.size());
    reference::graph_mask_nodes(host, features, z.data(), expected.data());
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceGraph graph(device, host);
      const DeviceArray<float> x(device, z), y(device, host.nodes() * features);
      graph_mask_nodes(context, graph.get(), features, x.get(), y.get());
      expect_equal(on(device, c.name), y.host(), expected);
    }
  }
}

TEST(Graph, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    GraphCase c{"random",
                {1 + random.below(2), 1 + random.below(4), 1 + random.below(4), 1 + random.below(5),
                 static_cast<int>(random.below(7)), 1 + random.below(9), 1 + random.below(2),
                 1 + random.below(3), random.below(2) == 0 ? 0 : 1 + random.below(35)},
                random.below(2) == 0};
    const GraphParams& p = c.params;
    SCOPED_TRACE(concat("n ", p.n, ", ", p.d, " x ", p.h, " x ", p.w, ", k ", p.neighbours, ", features ",
                        p.features, ", branches ", p.branches, ", modalities ", p.modalities, ", regions ",
                        p.regions, c.masked ? ", masked" : ""));
    const auto seed = static_cast<uint64_t>(random.below(1 << 20));
    const std::vector<float> features = features_of(p, seed);
    const std::vector<int32_t> labels = labels_of(p, seed);
    const std::vector<uint8_t> mask = mask_of(c, seed);
    const HostGraph host = reference::graph_build(p, features.data(), labels.data(), mask);
    const std::vector<float> theta = theta_of(host), scores = random_normal(host.edges(), seed + 1, 3.0f);
    const std::vector<float> values = random_integers(host.edges(), seed + 2),
                             z = random_integers(host.nodes() * p.features, seed + 3),
                             a = random_integers(host.nodes() * p.features, seed + 4);
    const std::vector<double> wide_theta = widen(theta), wide_scores = widen(scores),
                              wide_values = widen(values), wide_z = widen(z), wide_a = widen(a);
    const auto edges = static_cast<size_t>(host.edges());
    std::vector<double> weights(edges), softmax(edges), dense(edges), y(z.size()), back(z.size());
    reference::graph_symmetric_weights_forward(host, wide_theta.data(), weights.data());
    reference::graph_segment_softmax_forward(host, wide_scores.data(), softmax.data());
    reference::graph_sddmm(host, p.features, wide_a.data(), wide_z.data(), dense.data());
    reference::graph_spmm(host, p.features, wide_values.data(), wide_z.data(), false, y.data());
    reference::graph_spmm(host, p.features, wide_values.data(), wide_z.data(), true, back.data());
    std::vector<float> naive_weights(edges), naive_softmax(edges);
    reference::graph_symmetric_weights_forward(host, theta.data(), naive_weights.data());
    reference::graph_segment_softmax_forward(host, scores.data(), naive_softmax.data());
    for (int trial = 0; trial < 4; ++trial) {
      std::vector<float> other(edges);
      reference::graph_symmetric_weights_forward(host, moved_by_one_ulp(theta, random).data(), other.data());
      keep_worse(naive_weights, other, weights);
      reference::graph_segment_softmax_forward(host, moved_by_one_ulp(scores, random).data(), other.data());
      keep_worse(naive_softmax, other, softmax);
    }
    for (const Device device : test_devices()) {
      const std::string what = to_string(device);
      expect_same_graph(build_on(device, p, features, labels, mask), host);
      Context context(device);
      const DeviceGraph graph(device, host);
      const DeviceArray<float> t(device, theta), s(device, scores), v(device, values), x(device, z),
          left(device, a), edge(device, host.edges()), node(device, static_cast<int64_t>(z.size()));
      const DeviceWorkspace workspace(device, graph_symmetric_weights_workspace_bytes(context, graph.get()));
      graph_symmetric_weights_forward(context, graph.get(), t.get(), edge.get(), workspace);
      expect_close("weights on " + what, edge.host(), weights, naive_weights);
      graph_segment_softmax_forward(context, graph.get(), s.get(), edge.get());
      expect_close("softmax on " + what, edge.host(), softmax, naive_softmax);
      graph_sddmm(context, graph.get(), p.features, left.get(), x.get(), edge.get());
      expect_equal("sddmm on " + what, edge.host(), dense);
      graph_spmm(context, graph.get(), p.features, v.get(), x.get(), false, node.get(), GradMode::overwrite);
      expect_equal("spmm on " + what, node.host(), y);
      graph_spmm(context, graph.get(), p.features, v.get(), x.get(), true, node.get(), GradMode::overwrite);
      expect_equal("transposed spmm on " + what, node.host(), back);
    }
  });
}

// Rounded features have equal distances where others had not.
template <class T>
void check_stored_build(const GraphCase& c) {
  const std::vector<float> features = features_of(c.params);
  std::vector<T> stored;
  std::vector<float> wide;
  for (const float value : features) {
    stored.push_back(narrow<T>(value));
    wide.push_back(kernels::widen(stored.back()));
  }
  const std::vector<int32_t> labels = labels_of(c.params);
  const std::vector<uint8_t> mask = mask_of(c);
  const HostGraph expected = reference::graph_build(c.params, wide.data(), labels.data(), mask);
  for (const Device device : test_devices()) {
    SCOPED_TRACE(on(device, c.name));
    expect_same_graph(build_on(device, c.params, stored, labels, mask), expected);
  }
}

TEST(Graph, StorageOfTheFeaturesThatItIsBuiltFrom) {
  for (size_t i = 0; i < kGraphCases.size(); ++i) {
    if (i % 2 == 0) {
      check_stored_build<bf16>(kGraphCases[i]);
    } else {
      check_stored_build<f16>(kGraphCases[i]);
    }
  }
}

TEST(Graph, Storage) {
  for (const GraphCase& c : kGraphCases) {
    const HostGraph host = graph_of(c);
    const int64_t edges = host.edges(), nodes = host.nodes();
    const std::vector<float> theta = theta_of(host), values = random_normal(edges, 131, 0.3f),
                             dvalues = random_normal(edges, 132), a = random_normal(nodes, 133),
                             b = random_normal(nodes, 134);
    std::vector<float> scores = random_normal(edges, 135, 3.0f);
    for (size_t e = 0; e < scores.size(); e += 11) {
      scores[e] = -std::numeric_limits<float>::infinity();
    }
    expect_rounded_float32(c.name, [&](Call& call) {
      Context& context = call.context();
      const DeviceGraph on_device(context.device(), host);
      const Graph graph = on_device.get();
      const auto workspace = [&] {
        return call.workspace(std::max(graph_symmetric_weights_workspace_bytes(context, graph),
                                       graph_attention_scores_workspace_bytes(context, graph)));
      };
      graph_symmetric_weights_forward(context, graph, call.in_float(theta), call.out(edges), workspace());
      graph_symmetric_weights_backward(context, graph, call.in_float(theta), call.in(values),
                                       call.in(dvalues), call.in_out_float(theta), GradMode::accumulate,
                                       workspace());
      graph_attention_scores_forward(context, graph, kSlope, call.in(a), call.in(b), call.in_float(theta),
                                     call.out(edges));
      graph_attention_scores_backward(context, graph, kSlope, call.in(a), call.in(b), call.in_float(theta),
                                      call.in(dvalues), call.out(nodes), call.out(nodes),
                                      call.in_out_float(theta), GradMode::accumulate, workspace());
      graph_segment_softmax_forward(context, graph, call.in(scores), call.out(edges));
      graph_segment_softmax_backward(context, graph, call.in(values), call.in(dvalues), call.out(edges));
    });
  }
}

TEST(GraphProducts, Storage) {
  for (const GraphCase& c : {kGraphCases[0], kGraphCases[10], kGraphCases.back()}) {
    const HostGraph host = graph_of(c);
    for (const int64_t features : {1, 7, 8, 9, 17, 63, 64, 65, 90}) {
      const int64_t size = host.nodes() * features;
      const std::vector<float> values = random_normal(host.edges(), 141), z = random_normal(size, 142),
                               y = random_normal(size, 143);
      expect_rounded_float32(concat(c.name, ", ", features, " features"), [&](Call& call) {
        Context& context = call.context();
        const DeviceGraph on_device(context.device(), host);
        const Graph graph = on_device.get();
        for (const bool transposed : {false, true}) {
          graph_spmm(context, graph, features, call.in(values), call.in(z), transposed, call.out(size),
                     GradMode::overwrite);
          graph_spmm(context, graph, features, call.in(values), call.in(z), transposed, call.in_out(y),
                     GradMode::accumulate);
        }
        graph_sddmm(context, graph, features, call.in(y), call.in(z), call.out(host.edges()));
        graph_mask_nodes(context, graph, features, call.in(z), call.out(size));
      });
    }
  }
}

TEST(Graph, StorageTypesThatDifferAreOneLine) {
  const HostGraph host = graph_of(kGraphCases[0]);
  std::vector<float> values(64);
  float* f = values.data();
  const Data half(f, DType::bf16);
  for (const DeviceType type : {DeviceType::cpu, DeviceType::simt}) {
    Context context({type, 0});
    const DeviceGraph on_device({type, 0}, host);
    const Graph graph = on_device.get();
    EXPECT_EQ(shape_error([&] { graph_spmm(context, graph, 1, f, half, false, half, GradMode::overwrite); }),
              "graph_spmm: tensors are stored as f32 and bf16, expected one type");
    EXPECT_EQ(shape_error([&] { graph_sddmm(context, graph, 1, half, half, f); }),
              "graph_sddmm: tensors are stored as bf16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] { graph_segment_softmax_forward(context, graph, half, f); }),
              "graph_segment_softmax_forward: tensors are stored as bf16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] { graph_mask_nodes(context, graph, 1, Data(f, DType::i32), half); }),
              "graph_mask_nodes: tensors are stored as i32 and bf16, expected one type");
    EXPECT_EQ(
        shape_error([&] {
          graph_symmetric_weights_backward(context, graph, f, f, half, f, GradMode::overwrite, {f, 256});
        }),
        "graph_symmetric_weights_backward: tensors are stored as f32 and bf16, expected one type");
  }
}

}  // namespace
}  // namespace vesal::kernels::testing
