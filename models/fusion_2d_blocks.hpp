// The blocks of the original 2D fusion network (models/fusion_2d.hpp) as volumes of depth 1, [N, 1, H, W, C],
// with the parameters, running statistics and names of its state_dict. `training` is what batch norms are
// told.
#pragma once

#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "layers/dense_graph_reasoning.hpp"
#include "layers/modules.hpp"

namespace vesal::models {

// How the heads end: the published code ends in batch norm and ReLU, so that logits are never negative and a
// probability never below 1/2; linear leaves out the ReLU. The parameters are the same.
enum class HeadEnd { relu, linear };

// 2D convolution, batch norm, and ReLU unless told otherwise.
class ConvBatchNorm2d {
 public:
  ConvBatchNorm2d(const layers::ParameterBuilder& builder, std::string_view conv_name,
                  std::string_view norm_name, int64_t in, int64_t out, int kernel = 3,
                  kernels::Activation activation = kernels::Activation::relu);
  Variable operator()(DeviceContext& context, const Variable& x, bool training) const;

 private:
  layers::Conv3d conv_;
  layers::BatchNorm norm_;
};

// ESAB, as published:
//   g = sqrt(BN_1(Sx * x)^2 + BN_1(Sy * x)^2 + eps), one number per pixel over all channels,
//   y = x + Conv3x3(ReLU(BN_C(sigmoid(g) x))),  result [N, 1, H, W, 1] = BN_1(Conv1x1(y)), then ReLU.
// Sx and Sy are frozen weights [1, C, 3, 3] that start as Sobel's and are used as a file gives them.
class EdgeSpatialAttention {
 public:
  EdgeSpatialAttention(const layers::ParameterBuilder& builder, int64_t channels, HeadEnd end,
                       float gate_eps);
  Variable operator()(DeviceContext& context, const Variable& x, bool training) const;

 private:
  float gate_eps_;
  layers::Conv3d conv1_;
  layers::Conv3d conv2_;
  layers::BatchNorm norm_;
  layers::BatchNorm head_norm_;
  std::array<layers::Parameter*, 2> sobel_{};
  std::vector<layers::BatchNorm> gradient_norms_;  // of Sx * x and Sy * x
};

// The convolutional edge branch: pairs of convolutions between max pools.
class EdgeEncoder2d {
 public:
  // Also creates, frozen, the five ESABs that checkpoints carry and whose results the network discards.
  explicit EdgeEncoder2d(const layers::ParameterBuilder& builder);
  // x [N, 1, H, W, 2], H and W multiples of 16, to E1 [., H/2, W/2, 128], E2 [., H/4, W/4, 256], E3 [., H/8,
  // W/8, 512], E4 [., H/16, W/16, 1024].
  std::array<Variable, 4> operator()(DeviceContext& context, const Variable& x, bool training) const;

 private:
  std::vector<ConvBatchNorm2d> convs_;  // two per resolution
  std::vector<ConvBatchNorm2d> last_;
};

// MFIB and the down-convolution behind it, every weight shared by the two branches. Batch norms see the
// semantic branch first, then the edges: two steps of their running statistics.
class FusionLevel2d {
 public:
  // Halves the resolution unless channels is 1024.
  FusionLevel2d(const layers::ParameterBuilder& builder, int64_t channels, int64_t out,
                layers::MfibLayout layout);
  std::pair<Variable, Variable> operator()(DeviceContext& context, const Variable& semantic,
                                           const Variable& edges, bool training) const;

 private:
  layers::DenseGraphReasoning reason_;
  layers::BatchNorm norm_;
  ConvBatchNorm2d down_;
  bool pools_;
};

// ReLU(BN(Conv3x3([ConvT4x4(x), skip]))), the transposed convolution doubling H and W.
class Up2d {
 public:
  Up2d(const layers::ParameterBuilder& builder, int64_t in, int64_t out, HeadEnd end = HeadEnd::relu);
  // x [N, 1, h, w, in], skip [N, 1, 2h, 2w, out].
  Variable operator()(DeviceContext& context, const Variable& x, const Variable& skip, bool training) const;

 private:
  layers::UpConv3d up_;
  ConvBatchNorm2d conv_;
};

// Shifted patch tokenization with the paper's four diagonals: to half of H and W.
layers::ShiftedPatch shifted_patch_2d(const layers::ParameterBuilder& builder, int64_t in, int64_t out);

}  // namespace vesal::models
