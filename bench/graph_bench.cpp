#include "bench/bench.hpp"
#include "kernels/graph/graph_cases.hpp"
#include "runtime/device_api.hpp"

namespace vesal::bench {
namespace {

// A graph over random features, ready to be built.
struct Setup {
  Setup(Arena& arena, const kernels::GraphParams& params)
      : features(arena.normal(params.nodes() * params.features)),
        graph{.nodes = params.nodes(),
              .row_offsets = arena.array<int32_t>(params.nodes() + 1),
              .columns = arena.array<int32_t>(params.edge_capacity()),
              .types = arena.array<uint8_t>(params.edge_capacity()),
              .transpose = arena.array<int32_t>(params.edge_capacity())},
        workspace(arena.workspace(kernels::graph_build_workspace_bytes(arena.context(), params))) {}
  float* features;
  kernels::Graph graph;
  kernels::Workspace workspace;
};

kernels::Graph built(Arena& arena, const kernels::GraphParams& params) {
  const Setup setup(arena, params);
  kernels::graph_build(arena.context(), params, setup.features, nullptr, setup.graph, setup.workspace);
  arena.device_context().synchronize();
  return setup.graph;
}

}  // namespace

void register_benchmarks() {
  using namespace kernels;
  for (const GraphCase& c : kGraphBenchmarkCases) {
    const GraphParams p = c.params;
    const int64_t capacity = p.edge_capacity(), nodes = p.nodes();
    const Parameters parameters{{"n", p.n},
                                {"d", p.d},
                                {"h", p.h},
                                {"w", p.w},
                                {"neighbours", p.neighbours},
                                {"features", p.features}};
    // An upper bound: how many edges there are is known on the device only.
    const Work product = graph_product_work(p, capacity);
    const Work per_edge{.bytes = 4.0 * 3 * static_cast<double>(capacity)};
    add("graph_build", c.name, parameters, graph_build_work(p), [=](Arena& arena) -> Call {
      const Setup setup(arena, p);
      return [=, &context = arena.context()] {
        graph_build(context, p, setup.features, nullptr, setup.graph, setup.workspace);
      };
    });
    add("graph_symmetric_weights_forward", c.name, parameters, per_edge, [=](Arena& arena) -> Call {
      const Graph graph = built(arena, p);
      float *theta = arena.normal(kEdgeTypes), *values = arena.zeros(capacity);
      const Workspace workspace =
          arena.workspace(graph_symmetric_weights_workspace_bytes(arena.context(), graph));
      return [=, &context = arena.context()] {
        graph_symmetric_weights_forward(context, graph, theta, values, workspace);
      };
    });
    add("graph_attention_scores_forward", c.name, parameters, per_edge, [=](Arena& arena) -> Call {
      const Graph graph = built(arena, p);
      float *a = arena.normal(nodes), *b = arena.normal(nodes), *theta = arena.normal(kEdgeTypes),
            *scores = arena.zeros(capacity);
      return [=, &context = arena.context()] {
        graph_attention_scores_forward(context, graph, 0.2f, a, b, theta, scores);
      };
    });
    add("graph_segment_softmax_forward", c.name, parameters, per_edge, [=](Arena& arena) -> Call {
      const Graph graph = built(arena, p);
      float *scores = arena.normal(capacity), *values = arena.zeros(capacity);
      return
          [=, &context = arena.context()] { graph_segment_softmax_forward(context, graph, scores, values); };
    });
    add("graph_segment_softmax_backward", c.name, parameters, per_edge, [=](Arena& arena) -> Call {
      const Graph graph = built(arena, p);
      float *scores = arena.normal(capacity), *values = arena.zeros(capacity),
            *dscores = arena.zeros(capacity);
      graph_segment_softmax_forward(arena.context(), graph, scores, values);
      return [=, &context = arena.context()] {
        graph_segment_softmax_backward(context, graph, values, scores, dscores);
      };
    });
    // The products; graph_spmm with the transposed matrix and graph_sddmm are its backward pass.
    add("graph_spmm", c.name, parameters, product, [=](Arena& arena) -> Call {
      const Graph graph = built(arena, p);
      float *values = arena.normal(capacity), *z = arena.normal(nodes * p.features),
            *y = arena.zeros(nodes * p.features);
      return [=, &context = arena.context()] {
        graph_spmm(context, graph, p.features, values, z, false, y, GradMode::overwrite);
      };
    });
    add("graph_spmm_transposed", c.name, parameters, product, [=](Arena& arena) -> Call {
      const Graph graph = built(arena, p);
      float *values = arena.normal(capacity), *z = arena.normal(nodes * p.features),
            *y = arena.zeros(nodes * p.features);
      return [=, &context = arena.context()] {
        graph_spmm(context, graph, p.features, values, z, true, y, GradMode::overwrite);
      };
    });
    add("graph_sddmm", c.name, parameters, product, [=](Arena& arena) -> Call {
      const Graph graph = built(arena, p);
      float *a = arena.normal(nodes * p.features), *b = arena.normal(nodes * p.features),
            *out = arena.zeros(capacity);
      return [=, &context = arena.context()] { graph_sddmm(context, graph, p.features, a, b, out); };
    });
  }
}

}  // namespace vesal::bench
