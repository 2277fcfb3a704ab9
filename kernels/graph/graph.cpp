// Graph kernels: argument checks and the choice of the device.
#include "kernels/graph/graph.hpp"

#include <algorithm>

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(graph_build_workspace_bytes)
VESAL_DECLARE_BACKENDS(graph_build)
VESAL_DECLARE_BACKENDS(graph_symmetric_weights_forward)
VESAL_DECLARE_BACKENDS(graph_symmetric_weights_workspace_bytes)
VESAL_DECLARE_BACKENDS(graph_symmetric_weights_backward)
VESAL_DECLARE_BACKENDS(graph_attention_scores_forward)
VESAL_DECLARE_BACKENDS(graph_attention_scores_workspace_bytes)
VESAL_DECLARE_BACKENDS(graph_attention_scores_backward)
VESAL_DECLARE_BACKENDS(graph_segment_softmax_forward)
VESAL_DECLARE_BACKENDS(graph_segment_softmax_backward)
VESAL_DECLARE_BACKENDS(graph_spmm)
VESAL_DECLARE_BACKENDS(graph_sddmm)
VESAL_DECLARE_BACKENDS(graph_mask_nodes)

namespace {

constexpr int64_t kMostNodesPerSet = 65536;

void check_params(const GraphParams& p) {
  check<ShapeError>(p.n >= 0 && p.d >= 1 && p.h >= 1 && p.w >= 1, "graph_build: ", p.n, " samples of ", p.d,
                    " x ", p.h, " x ", p.w, " nodes: a sample has at least one node");
  check<ShapeError>(p.branches >= 1 && p.modalities >= 1 && p.regions >= 0, "graph_build: ", p.branches,
                    " branches, ", p.modalities, " modalities, ", p.regions,
                    " regions, expected at least 1, 1 and 0");
  const int64_t points = checked_mul(checked_mul(p.d, p.h), p.w);
  const int64_t per_set = p.regions > 0 ? p.regions : points;
  check<ShapeError>(per_set <= kMostNodesPerSet && points <= INT32_MAX, "graph_build: ", per_set,
                    " nodes in a set of ", points, " points, at most 65536 nodes are supported");
  check<ShapeError>(p.neighbours >= 0 && p.neighbours <= kMostNodesPerSet, "graph_build: ", p.neighbours,
                    " neighbours, 0 to 65536 are supported");
  check<ShapeError>(p.features >= 1, "graph_build: ", p.features, " features, at least one is needed");
  const int64_t sets = checked_mul(checked_mul(p.n, p.branches), p.modalities);
  const int64_t per_node = int64_t{7} + 2 * static_cast<int64_t>(p.neighbours) + p.branches + p.modalities;
  checked_mul(checked_mul(sets, std::max(per_set, p.spatial_capacity())), checked_mul(per_node, 2));
  check<ShapeError>(p.edge_capacity() <= INT32_MAX, "graph_build: room for ", p.edge_capacity(),
                    " edges is needed, edge numbers end at 2^31 - 1");
}

void check_graph(const Graph& graph, const char* what) {
  check<ShapeError>(graph.nodes >= 0 && (graph.nodes == 0 || (graph.row_offsets && graph.columns &&
                                                              graph.types && graph.transpose)),
                    what, ": the graph has ", graph.nodes, " nodes and needs all of its four arrays");
  check<ShapeError>(graph.type_count >= 1 && graph.type_count <= kEdgeTypes, what, ": ", graph.type_count,
                    " edge types, expected 1 to ", kEdgeTypes);
  check<ShapeError>(
      graph.available == nullptr || (graph.nodes_per_set >= 1 && graph.nodes % graph.nodes_per_set == 0),
      what, ": a mask over sets of ", graph.nodes_per_set, " nodes for a graph of ", graph.nodes);
}

void check_pointers(const Graph& graph, std::initializer_list<ConstData> arrays, const char* what) {
  check_graph(graph, what);
  for (const ConstData& array : arrays) {
    check<ShapeError>(graph.nodes == 0 || array, what, ": an array is null");
  }
}

}  // namespace

size_t graph_build_workspace_bytes(Context& context, const GraphParams& params) {
  check_params(params);
  VESAL_DISPATCH(context, graph_build_workspace_bytes(context, params));
}

void graph_build(Context& context, const GraphParams& params, ConstData features, const int32_t* labels,
                 const Graph& graph, Workspace workspace) {
  check_params(params);
  check<ShapeError>(graph.nodes == params.nodes(), "graph_build: the graph is made for ", graph.nodes,
                    " nodes, the grid has ", params.nodes());
  check_graph(graph, "graph_build");
  check<ShapeError>(graph.type_count == params.type_count(), "graph_build: the graph is made for ",
                    graph.type_count, " edge types, expected ", params.type_count());
  check<ShapeError>(graph.available == nullptr || graph.nodes_per_set == params.nodes_per_set(),
                    "graph_build: the mask is for sets of ", graph.nodes_per_set, " nodes, expected ",
                    params.nodes_per_set());
  check<ShapeError>((labels != nullptr) == (params.regions > 0) || graph.nodes == 0,
                    "graph_build: labels are needed with regions, and only then");
  check<ShapeError>(features || params.neighbours == 0 || graph.nodes == 0,
                    "graph_build: nearest neighbours need features, the pointer is null");
  workspace.require(graph_build_workspace_bytes(context, params), "graph_build");
  VESAL_DISPATCH(context, graph_build(context, params, features, labels, graph, workspace));
}

void graph_symmetric_weights_forward(Context& context, const Graph& graph, ConstData theta, Data values,
                                     Workspace workspace) {
  check_pointers(graph, {theta, values}, "graph_symmetric_weights_forward");
  workspace.require(graph_symmetric_weights_workspace_bytes(context, graph),
                    "graph_symmetric_weights_forward");
  VESAL_DISPATCH(context, graph_symmetric_weights_forward(context, graph, theta, values, workspace));
}

size_t graph_symmetric_weights_workspace_bytes(Context& context, const Graph& graph) {
  VESAL_DISPATCH(context, graph_symmetric_weights_workspace_bytes(context, graph));
}

void graph_symmetric_weights_backward(Context& context, const Graph& graph, ConstData theta, ConstData values,
                                      ConstData dvalues, Data dtheta, GradMode mode, Workspace workspace) {
  check_pointers(graph, {theta, values, dvalues, dtheta}, "graph_symmetric_weights_backward");
  workspace.require(graph_symmetric_weights_workspace_bytes(context, graph),
                    "graph_symmetric_weights_backward");
  VESAL_DISPATCH(context, graph_symmetric_weights_backward(context, graph, theta, values, dvalues, dtheta,
                                                           mode, workspace));
}

void graph_attention_scores_forward(Context& context, const Graph& graph, float slope, ConstData a,
                                    ConstData b, ConstData theta, Data scores) {
  check_pointers(graph, {a, b, theta, scores}, "graph_attention_scores_forward");
  VESAL_DISPATCH(context, graph_attention_scores_forward(context, graph, slope, a, b, theta, scores));
}

size_t graph_attention_scores_workspace_bytes(Context& context, const Graph& graph) {
  VESAL_DISPATCH(context, graph_attention_scores_workspace_bytes(context, graph));
}

void graph_attention_scores_backward(Context& context, const Graph& graph, float slope, ConstData a,
                                     ConstData b, ConstData theta, ConstData dscores, Data da, Data db,
                                     Data dtheta, GradMode mode, Workspace workspace) {
  check_pointers(graph, {a, b, theta, dscores, da, db, dtheta}, "graph_attention_scores_backward");
  workspace.require(graph_attention_scores_workspace_bytes(context, graph),
                    "graph_attention_scores_backward");
  VESAL_DISPATCH(context, graph_attention_scores_backward(context, graph, slope, a, b, theta, dscores, da, db,
                                                          dtheta, mode, workspace));
}

void graph_segment_softmax_forward(Context& context, const Graph& graph, ConstData scores, Data values) {
  check_pointers(graph, {scores, values}, "graph_segment_softmax_forward");
  VESAL_DISPATCH(context, graph_segment_softmax_forward(context, graph, scores, values));
}

void graph_segment_softmax_backward(Context& context, const Graph& graph, ConstData values, ConstData dvalues,
                                    Data dscores) {
  check_pointers(graph, {values, dvalues, dscores}, "graph_segment_softmax_backward");
  VESAL_DISPATCH(context, graph_segment_softmax_backward(context, graph, values, dvalues, dscores));
}

void graph_spmm(Context& context, const Graph& graph, int64_t features, ConstData values, ConstData z,
                bool transposed, Data y, GradMode mode) {
  check_pointers(graph, {values, z, y}, "graph_spmm");
  check<ShapeError>(features >= 1, "graph_spmm: ", features, " features, at least one is needed");
  checked_mul(graph.nodes, features);
  VESAL_DISPATCH(context, graph_spmm(context, graph, features, values, z, transposed, y, mode));
}

void graph_sddmm(Context& context, const Graph& graph, int64_t features, ConstData a, ConstData b, Data out) {
  check_pointers(graph, {a, b, out}, "graph_sddmm");
  check<ShapeError>(features >= 1, "graph_sddmm: ", features, " features, at least one is needed");
  checked_mul(graph.nodes, features);
  VESAL_DISPATCH(context, graph_sddmm(context, graph, features, a, b, out));
}

void graph_mask_nodes(Context& context, const Graph& graph, int64_t features, ConstData z, Data y) {
  check_pointers(graph, {z, y}, "graph_mask_nodes");
  check<ShapeError>(features >= 1, "graph_mask_nodes: ", features, " features, at least one is needed");
  checked_mul(graph.nodes, features);
  VESAL_DISPATCH(context, graph_mask_nodes(context, graph, features, z, y));
}

}  // namespace vesal::kernels
