// The small building blocks that hold parameters. Names inside follow PyTorch ("weight", "bias").
#pragma once

#include "layers/ops.hpp"

namespace vesal::layers {

// The geometry of a 2D convolution on volumes of depth 1, with the padding that keeps the extent.
ConvGeometry planar_geometry(int kernel);
// Doubles H and W of volumes of depth 1: kernel 4, stride 2, padding 1.
inline constexpr ConvGeometry kPlanarDoubling{{1, 4, 4}, {1, 2, 2}, {0, 1, 1}};

class Conv3d {
 public:
  Conv3d(const ParameterBuilder& builder, int64_t in, int64_t out, const ConvGeometry& geometry,
         ParameterLayout layout = ParameterLayout::convolution, bool with_bias = true);
  // A cube kernel with the padding that keeps the extent at stride 1.
  Conv3d(const ParameterBuilder& builder, int64_t in, int64_t out, int kernel = 3, int stride = 1);
  Variable operator()(DeviceContext& context, const Variable& x) const;

 private:
  ConvGeometry geometry_;
  Parameter* weight_;
  Parameter* bias_;
};

// Doubles the extent unless another geometry is given: kernel 4, stride 2, padding 1.
class UpConv3d {
 public:
  UpConv3d(const ParameterBuilder& builder, int64_t in, int64_t out,
           const ConvGeometry& geometry = {{4, 4, 4}, {2, 2, 2}, {1, 1, 1}},
           ParameterLayout layout = ParameterLayout::convolution);
  Variable operator()(DeviceContext& context, const Variable& x) const;

 private:
  ConvGeometry geometry_;
  Parameter* weight_;
  Parameter* bias_;
};

class Linear {
 public:
  Linear(const ParameterBuilder& builder, int64_t in, int64_t out, bool with_bias = true);
  Variable operator()(DeviceContext& context, const Variable& x,
                      kernels::Activation activation = kernels::Activation::none) const;
  Parameter* bias() const { return bias_; }

 private:
  Parameter* weight_;
  Parameter* bias_ = nullptr;
};

class LayerNorm {
 public:
  LayerNorm(const ParameterBuilder& builder, int64_t channels);
  Variable operator()(DeviceContext& context, const Variable& x) const;

 private:
  Parameter* gamma_;
  Parameter* beta_;
};

// Attention of one sequence over another (Vaswani et al. 2017) between linear maps: q_proj, k_proj and v_proj
// to `inner` channels, out_proj back to `channels`. Throws ShapeError unless heads divides inner.
class MultiHeadAttention {
 public:
  MultiHeadAttention(const ParameterBuilder& builder, int64_t channels, int heads, int64_t inner);
  MultiHeadAttention(const ParameterBuilder& builder, int64_t channels, int heads)
      : MultiHeadAttention(builder, channels, heads, channels) {}
  // query [N, ..., channels], key and value [N, ..., channels]; `settings` says all but the number of heads.
  Variable operator()(DeviceContext& context, const Variable& query, const Variable& key,
                      const Variable& value, AttentionSettings settings = {}) const;

 private:
  int heads_;
  Linear q_;
  Linear k_;
  Linear v_;
  Linear out_;
};

// With an affine map, then the activation.
class InstanceNorm {
 public:
  InstanceNorm(const ParameterBuilder& builder, int64_t channels,
               kernels::Activation activation = kernels::Activation::none);
  Variable operator()(DeviceContext& context, const Variable& x) const;
  Parameter* gamma() const { return gamma_; }
  Parameter* beta() const { return beta_; }

 private:
  kernels::Activation activation_;
  Parameter* gamma_;
  Parameter* beta_;
};

// With an affine map, then the activation. Running statistics start at mean 0 and variance 1 and are buffers
// under PyTorch's names: running_mean, running_var, num_batches_tracked.
class BatchNorm {
 public:
  BatchNorm(const ParameterBuilder& builder, int64_t channels,
            kernels::Activation activation = kernels::Activation::none, float momentum = 0.1f);
  Variable operator()(DeviceContext& context, const Variable& x, bool training) const;

 private:
  kernels::Activation activation_;
  float momentum_;
  Parameter* gamma_;
  Parameter* beta_;
  BatchNormBuffers buffers_;
};

// With an affine map, then the activation. Throws ShapeError unless groups divides channels.
class GroupNorm {
 public:
  GroupNorm(const ParameterBuilder& builder, int64_t groups, int64_t channels,
            kernels::Activation activation = kernels::Activation::none);
  Variable operator()(DeviceContext& context, const Variable& x) const;

 private:
  int64_t groups_;
  kernels::Activation activation_;
  Parameter* gamma_;
  Parameter* beta_;
};

// What shifted patch tokenization calls its parameters.
struct ShiftedPatchNames {
  const char* norm = "norm";
  const char* projection = "projection";
  bool group_axis = true;  // false: the plain form's shapes are those of a LayerNorm and a Linear
};

// Shifted patch tokenization; `groups` > 1 gives the masked per-modality form. Triples are D, H, W.
class ShiftedPatch {
 public:
  ShiftedPatch(const ParameterBuilder& builder, int64_t groups, int64_t channels, int64_t out,
               kernels::ShiftSet shifts, bool masked, std::array<int, 3> patch = {2, 2, 2},
               std::array<int, 3> shift = {1, 1, 1}, const ShiftedPatchNames& names = {});
  // mask [N, groups] u8 on the device, undefined for the plain form.
  Variable operator()(DeviceContext& context, const Variable& x, const Tensor& mask = {}) const;

 private:
  int64_t groups_;
  kernels::ShiftSet shifts_;
  std::array<int, 3> patch_, shift_;
  ShiftedPatchParameters parameters_;
};

// Convolution, instance norm, ReLU.
class ConvNormRelu {
 public:
  ConvNormRelu(const ParameterBuilder& builder, std::string_view conv_name, std::string_view norm_name,
               int64_t in, int64_t out, int kernel = 3, int stride = 1);
  Variable operator()(DeviceContext& context, const Variable& x) const;

 private:
  Conv3d conv_;
  InstanceNorm norm_;
};

}  // namespace vesal::layers
