// Sparse graph reasoning over a grid of nodes: building the graph, its edge weights, and the sparse products.
// Model: "deep semantics + edge fusion" (Zhu et al., Information Fusion 91, 2023) with its dense latent graph
// replaced by a sparse one; attention weights after GAT (Velickovic et al. 2018, eqs. 1-3).
//
// Edges of node i: i itself; its up to 6 neighbours in the node grid; and, made symmetric, the k nearest
// nodes in feature space (squared Euclidean distance in float32, ties by smaller index, never i itself). The
// structure is symmetric, so the transpose needs only a permutation of the edges. The distance is the sum of
// (b - a)^2 over the features in their order, every operation rounded and none fused: all devices find the
// same edges. A distance that is not finite (NaN or overflow) makes no edge.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// When an edge has several reasons the smaller number wins.
enum EdgeType : uint8_t { kSelfEdge = 0, kSpatialEdge = 1, kSemanticEdge = 2 };
inline constexpr int kEdgeTypes = 3;

struct GraphParams {
  int64_t n = 1;                // samples; their graphs are independent (block diagonal)
  int64_t d = 1, h = 1, w = 1;  // node grid of one sample
  int neighbours = 8;           // k, >= 0; at most nodes_per_sample() - 1 are found
  int64_t features = 1;         // length of the vectors that the k nearest are searched in

  int64_t nodes_per_sample() const { return d * h * w; }  // 1 to 65536
  int64_t nodes() const { return n * nodes_per_sample(); }
  // Room for every possible edge: self, 6 spatial, k of its own and k mirrored ones on average.
  int64_t edge_capacity() const { return nodes() * (7 + 2 * int64_t{neighbours}); }
};

// A graph in compressed sparse rows, in the context's device memory. The number of edges is
// row_offsets[nodes]; it is never needed on the host. Columns are node numbers over the whole batch,
// ascending within a row.
struct Graph {
  int64_t nodes = 0;
  int32_t* row_offsets = nullptr;  // [nodes + 1]
  int32_t* columns = nullptr;      // [capacity]
  uint8_t* types = nullptr;        // [capacity], EdgeType
  int32_t* transpose = nullptr;    // [capacity]: the edge (j, i) of edge (i, j)
};

size_t graph_build_workspace_bytes(Context& context, const GraphParams& params);
// features [n, d, h, w, features]; may be null if params.neighbours is 0. Fills the arrays of `graph`, each
// of the size stated above with capacity = params.edge_capacity(); entries from row_offsets[nodes] on are
// left as they are. The workspace holds one sample's adjacency bitmap, nodes_per_sample()^2 / 8 bytes, and on
// the host a second copy of the sample's features. Throws ShapeError if a sample has more than 65536 nodes or
// the capacity passes 2^31 - 1.
void graph_build(Context& context, const GraphParams& params, ConstData features, const Graph& graph,
                 Workspace workspace);

// Symmetric normalisation D^-1/2 A D^-1/2 with A_ij = exp(theta[type of edge]) and D_i = sum_j A_ij, in a
// form that does not overflow. theta [kEdgeTypes]; values [capacity], one per edge. One workspace size for
// both directions.
void graph_symmetric_weights_forward(Context& context, const Graph& graph, ConstData theta, Data values,
                                     Workspace workspace);
size_t graph_symmetric_weights_workspace_bytes(Context& context, const Graph& graph);
void graph_symmetric_weights_backward(Context& context, const Graph& graph, ConstData theta, ConstData values,
                                      ConstData dvalues, Data dtheta, GradMode mode, Workspace workspace);

// Unnormalised attention scores, one per edge (i, j):
//   scores = LeakyReLU_slope(a[i] + b[j] + theta[type]);   a, b [nodes] are per-node projections of the
//   features.
void graph_attention_scores_forward(Context& context, const Graph& graph, float slope, ConstData a,
                                    ConstData b, ConstData theta, Data scores);
size_t graph_attention_scores_workspace_bytes(Context& context, const Graph& graph);
// da, db are overwritten; dtheta follows `mode`.
void graph_attention_scores_backward(Context& context, const Graph& graph, float slope, ConstData a,
                                     ConstData b, ConstData theta, ConstData dscores, Data da, Data db,
                                     Data dtheta, GradMode mode, Workspace workspace);

// Softmax over the edges of each row; a score of -inf takes an edge out, a row of nothing else gets zeros.
void graph_segment_softmax_forward(Context& context, const Graph& graph, ConstData scores, Data values);
void graph_segment_softmax_backward(Context& context, const Graph& graph, ConstData values, ConstData dvalues,
                                    Data dscores);

// Sparse times dense: y_i = sum over edges (i, j) of values[edge] * z_j; with `transposed`, the transposed
// matrix: y_i = sum over edges (i, j) of values[transpose[edge]] * z_j. z, y [nodes, features]; y follows
// `mode`. The backward pass is spmm with the other value of `transposed` for dz, and sddmm for dvalues.
void graph_spmm(Context& context, const Graph& graph, int64_t features, ConstData values, ConstData z,
                bool transposed, Data y, GradMode mode);

// Sampled dense-dense product: out[edge (i, j)] = a_i . b_j; a, b [nodes, features].
void graph_sddmm(Context& context, const Graph& graph, int64_t features, ConstData a, ConstData b, Data out);

}  // namespace vesal::kernels
