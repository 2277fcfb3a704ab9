// Sparse graph reasoning: building the graph, its edge weights, and the sparse products.
// Model: "deep semantics + edge fusion" (Zhu et al., Information Fusion 91, 2023) with its dense latent graph
// replaced by a sparse one; attention weights after GAT (Velickovic et al. 2018, eqs. 1-3); several node sets
// and their availability after graphs with virtual nodes for missing modalities.
//
// Nodes. The spatial nodes of a sample are the points of a grid, or the regions (supervoxels) of a labelled
// voxel grid. A graph has one node set over them or several, one for each pair of a branch and a modality;
// set = branch * modalities + modality, and node i of a set is spatial node i seen by that branch and
// modality. Nodes are numbered sample by sample, set by set.
//
// Edges of node i of a set:
//   self            i itself
//   spatial         its up to 6 neighbours in the node grid, or the regions that touch region i: a voxel of
//                   one and a voxel of the other are neighbours in the voxel grid (6-neighbourhood)
//   semantic        made symmetric, the k nearest nodes of its set in feature space (squared Euclidean
//                   distance in float32, ties by smaller index, never i itself)
//   cross-branch    node i of the sets of the same modality and another branch
//   cross-modality  node i of the sets of the same branch and another modality
// A region without voxels has no edge but the one to itself. The structure is symmetric, so the transpose
// needs only a permutation of the edges. The distance is the sum of (b - a)^2 over the features in their
// order, every operation rounded and none fused: all devices find the same edges. A distance that is not
// finite (NaN or overflow) makes no edge.
//
// Availability. A graph may carry a mask over the node sets of each sample. It cuts the outgoing edges of an
// absent set: edge (i, j), which brings node j's features to node i, is not there when j's set is absent,
// whoever i is, i = j included; edges into an absent set's nodes stay. Cut edges keep their place in the
// arrays, so one graph serves every mask: their values and gradients are 0, they are no part of any
// normalisation, and what belongs to an absent node is never part of a result, whatever it is (NaN, say).
//
// What belongs to nodes (features, the projections a and b, results of products) and what belongs to edges
// (weights, scores), and their gradients, are stored as float32, bf16 or f16 (kernels/context/storage.hpp),
// all tensors of a call alike; theta and dtheta are float32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// When an edge has several reasons the smaller number wins.
enum EdgeType : uint8_t {
  kSelfEdge = 0,
  kSpatialEdge = 1,
  kSemanticEdge = 2,
  kCrossBranchEdge = 3,
  kCrossModalityEdge = 4
};
inline constexpr int kEdgeTypes = 5;
inline constexpr int kOneSetEdgeTypes = 3;  // in a graph of one node set: the first three

struct GraphParams {
  int64_t n = 1;                // samples; their graphs are independent (block diagonal)
  int64_t d = 1, h = 1, w = 1;  // node grid of one sample; with regions, its voxel grid
  int neighbours = 8;           // k, >= 0; at most nodes_per_set() - 1 are found
  int64_t features = 1;         // length of the vectors that the k nearest are searched in
  int64_t branches = 1, modalities = 1;
  int64_t regions = 0;  // of a sample; 0: the nodes are the grid's points

  int64_t sets() const { return branches * modalities; }
  int64_t nodes_per_set() const { return regions > 0 ? regions : d * h * w; }  // 1 to 65536
  int64_t nodes_per_sample() const { return sets() * nodes_per_set(); }
  int64_t nodes() const { return n * nodes_per_sample(); }
  int type_count() const { return sets() > 1 ? kEdgeTypes : kOneSetEdgeTypes; }
  // Spatial edges of a set, at most: 6 a point, or two for each pair of regions or of neighbouring voxels.
  int64_t spatial_capacity() const {
    const int64_t faces = (d - 1) * h * w + d * (h - 1) * w + d * h * (w - 1);
    return regions > 0 ? std::min(regions * (regions - 1), 2 * faces) : 6 * nodes_per_set();
  }
  // Room for every possible edge: self, spatial, k of its own and k mirrored ones on average, cross edges.
  int64_t edge_capacity() const {
    return nodes() * (1 + 2 * int64_t{neighbours} + branches - 1 + modalities - 1) +
           n * sets() * spatial_capacity();
  }
};

// A graph in compressed sparse rows, in the context's device memory. The number of edges is
// row_offsets[nodes]; it is never needed on the host. Columns are node numbers over the whole batch,
// ascending within a row.
struct Graph {
  int64_t nodes = 0;
  int32_t* row_offsets = nullptr;      // [nodes + 1]
  int32_t* columns = nullptr;          // [capacity]
  uint8_t* types = nullptr;            // [capacity], EdgeType
  int32_t* transpose = nullptr;        // [capacity]: the edge (j, i) of edge (i, j)
  int type_count = kOneSetEdgeTypes;   // types are below it; the length of theta
  const uint8_t* available = nullptr;  // [nodes / nodes_per_set], 0: absent; null: all sets are there
  int64_t nodes_per_set = 0;           // read with `available` only
};

size_t graph_build_workspace_bytes(Context& context, const GraphParams& params);
// features [n, sets, nodes_per_set, features]; may be null if params.neighbours is 0. labels [n, d, h, w], a
// voxel's region; outside 0 .. regions - 1: none; null when the nodes are grid points. Fills the arrays of
// `graph`, each of the size stated above with capacity = params.edge_capacity(); entries from
// row_offsets[nodes] on are left as they are. Absent sets get no semantic edges: their features are not read.
// The workspace holds one set's adjacency bitmap, nodes_per_set()^2 / 8 bytes, a second one with regions, and
// on the host a second copy of the set's features. Throws ShapeError if a set has more than 65536 nodes or
// the capacity passes 2^31 - 1.
void graph_build(Context& context, const GraphParams& params, ConstData features, const int32_t* labels,
                 const Graph& graph, Workspace workspace);

// Symmetric normalisation D^-1/2 A D^-1/2 with A_ij = exp(theta[type of edge]) and D_i = sum_j A_ij over the
// edges that are not cut, in a form that does not overflow. theta [type_count]; values [capacity], one per
// edge. One workspace size for both directions.
void graph_symmetric_weights_forward(Context& context, const Graph& graph, ConstData theta, Data values,
                                     Workspace workspace);
size_t graph_symmetric_weights_workspace_bytes(Context& context, const Graph& graph);
void graph_symmetric_weights_backward(Context& context, const Graph& graph, ConstData theta, ConstData values,
                                      ConstData dvalues, Data dtheta, GradMode mode, Workspace workspace);

// Unnormalised attention scores, one per edge (i, j):
//   scores = LeakyReLU_slope(a[i] + b[j] + theta[type]);   a, b [nodes] are per-node projections of the
//   features. An absent node's a counts as 0, that of a node without content. Cut edges score -inf.
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

// Sampled dense-dense product: out[edge (i, j)] = a_i . b_j, 0 for cut edges; a, b [nodes, features].
void graph_sddmm(Context& context, const Graph& graph, int64_t features, ConstData a, ConstData b, Data out);

// y = z with the rows of absent nodes 0, which are not read; z, y [nodes, features]. Its own backward pass.
void graph_mask_nodes(Context& context, const Graph& graph, int64_t features, ConstData z, Data y);

}  // namespace vesal::kernels
