// MFIB, the multi-feature inference block of "deep semantics + edge fusion" (Zhu et al., Information Fusion 91, 2023), in
// 3D and with a sparse graph: semantic and edge features meet on a coarse grid of nodes, exchange one message, and go
// back to their voxels.
#pragma once

#include <functional>
#include <utility>

#include "layers/modules.hpp"

namespace vesal::layers {

// symmetric: D^-1/2 A D^-1/2 with a learned weight per edge type; attention: as in GAT.
enum class EdgeWeights { symmetric, attention };

struct GraphReasoningSettings {
  int64_t channels = 24;
  int nodes_per_axis = 16;  // the longest axis is pooled to at most this many nodes
  int neighbours = 8;       // nearest nodes in feature space
  EdgeWeights weights = EdgeWeights::symmetric;
};

class GraphReasoning {
 public:
  GraphReasoning(const ParameterBuilder& builder, const GraphReasoningSettings& settings);
  // semantic, edges [N, D, H, W, C], returned with the message added:
  //   X_s = Ww pool(semantic), X_e = Ww pool(edges), Z = X_s + gamma X_e, H = ReLU((A Z - Z) Wg),
  //   x += ReLU(IN(upsample(Wo (X + H)))) for both, with shared weights.
  std::pair<Variable, Variable> operator()(DeviceContext& context, const Variable& semantic,
                                           const Variable& edges) const;
  // The same with regions (supervoxels) of the branches' voxels for nodes: pool is the mean over a region,
  // and the way back gives each voxel what its region holds. Voxels of no region get norm's image of 0.
  std::pair<Variable, Variable> operator()(DeviceContext& context, const Variable& semantic,
                                           const Variable& edges, const Regions& regions) const;

 private:
  // x [2n, ..., F], semantic samples first, to x + H with the same H for both; `build` makes the graph of Z.
  Variable exchange(DeviceContext& context, const Variable& x,
                    const std::function<SparseGraph(const Tensor&)>& build) const;
  std::pair<Variable, Variable> add_to(DeviceContext& context, const Variable& both,
                                       const Variable& volume) const;

  GraphReasoningSettings settings_;
  Linear project_;
  Linear message_;
  Parameter* edge_scale_;
  Parameter* edge_type_;
  Parameter* attention_source_ = nullptr;
  Parameter* attention_target_ = nullptr;
  Linear back_;
  InstanceNorm norm_;
};

}  // namespace vesal::layers
