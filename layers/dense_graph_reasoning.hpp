// MFIB as published: "deep semantics + edge fusion" (Zhu et al., Information Fusion 91, 2023) with its dense
// latent graph of N = C / 4 nodes with F = C / 2 features, after GloRe (Chen et al. 2019). For parity with
// the 2D network; the sparse form is graph_reasoning.hpp.
#pragma once

#include <utility>

#include "layers/modules.hpp"

namespace vesal::layers {

// A Z + b 1^T - Z for each sample: z [S, N, F], adjacency [N, N] (axes of 1 may follow), bias [N].
Variable dense_propagate(DeviceContext& context, const Variable& z, Parameter* adjacency, Parameter* bias);

// original: logits are not scaled, and the back-projection's L x F numbers are taken for F x L, as the
// published code does, which scrambles voxels and channels. fixed: logits are scaled by 1 / sqrt(L), and
// voxels stay voxels.
enum class MfibLayout { original, fixed };

struct DenseGraphReasoningSettings {
  int64_t channels = 128;  // C, a multiple of 4
  MfibLayout layout = MfibLayout::fixed;
  int axes = 3;  // of the 1x1 convolutions' kernels in files: 2 for weights of the 2D network
};

class DenseGraphReasoning {
 public:
  // Parameters as in the published state_dict: BGCN.gcn.conv1.weight [N, N, 1], .bias [N];
  // BGCN.gcn.conv2.weight [F, F, 1]; conv_v.weight [N, C, 1, 1, 1] (with `axes` 1s), .bias; conv_w.weight [F,
  // C, 1, 1, 1], .bias; conv.weight [C, F, 1, 1, 1], .bias. Throws ShapeError unless channels is a positive
  // multiple of 4.
  DenseGraphReasoning(const ParameterBuilder& builder, const DenseGraphReasoningSettings& settings);
  // x = semantic and y = edges [N, D, H, W, C], L = D H W voxels, every weight shared by both:
  //   V = conv_v(x), W = conv_w(x), G = softmax over features of (scale V^T W), likewise for y;
  //   Z = G_x + G_y, H = ReLU((A Z + b 1^T - Z) Wg^T), and conv(V (G + H)) for each of both is returned,
  // [N, D, H, W, C]; normalisation, ReLU and the residual sum are the caller's.
  std::pair<Variable, Variable> operator()(DeviceContext& context, const Variable& semantic,
                                           const Variable& edges) const;

 private:
  DenseGraphReasoningSettings settings_;
  Parameter* adjacency_;
  Parameter* adjacency_bias_;
  Parameter* message_weight_;
  Parameter* v_weight_;
  Parameter* v_bias_;
  Parameter* w_weight_;
  Parameter* w_bias_;
  Parameter* back_weight_;
  Parameter* back_bias_;
};

}  // namespace vesal::layers
