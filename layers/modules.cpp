#include "layers/modules.hpp"

#include <cmath>

namespace vesal::layers {
namespace {

// PyTorch's default for convolutions and linear layers: uniform within 1 / sqrt(fan_in).
float default_bound(int64_t fan_in) { return 1.0f / std::sqrt(static_cast<float>(fan_in)); }

ConvGeometry same_geometry(int kernel, int stride) {
  const int padding = kernel / 2;
  return {{kernel, kernel, kernel}, {stride, stride, stride}, {padding, padding, padding}};
}

}  // namespace

ConvGeometry planar_geometry(int kernel) {
  return {{1, kernel, kernel}, {1, 1, 1}, {0, kernel / 2, kernel / 2}};
}

Conv3d::Conv3d(const ParameterBuilder& builder, int64_t in, int64_t out, const ConvGeometry& geometry,
               ParameterLayout layout, bool with_bias)
    : geometry_(geometry), bias_(nullptr) {
  const auto [kd, kh, kw] = geometry.kernel;
  check<ShapeError>(geometry.groups >= 1 && in % geometry.groups == 0 && out % geometry.groups == 0,
                    "Conv3d: groups ", geometry.groups, ", expected a divisor of ", in, " and ", out,
                    " channels");
  const int64_t group_in = in / geometry.groups;
  const float bound = default_bound(group_in * kd * kh * kw);
  weight_ = builder.uniform("weight", {out, kd, kh, kw, group_in}, bound, true, layout);
  if (with_bias) {
    bias_ = builder.uniform("bias", {out}, bound, false);
  }
}

Conv3d::Conv3d(const ParameterBuilder& builder, int64_t in, int64_t out, int kernel, int stride)
    : Conv3d(builder, in, out, same_geometry(kernel, stride)) {}

Variable Conv3d::operator()(DeviceContext& context, const Variable& x) const {
  return conv3d(context, x, weight_, bias_, geometry_);
}

UpConv3d::UpConv3d(const ParameterBuilder& builder, int64_t in, int64_t out, const ConvGeometry& geometry,
                   ParameterLayout layout)
    : geometry_(geometry) {
  const auto [kd, kh, kw] = geometry.kernel;
  // PyTorch counts the second weight axis times the kernel as fan_in, which is the output channels here.
  const float bound = default_bound(out * kd * kh * kw);
  weight_ = builder.uniform("weight", {in, kd, kh, kw, out}, bound, true, layout);
  bias_ = builder.uniform("bias", {out}, bound, false);
}

Variable UpConv3d::operator()(DeviceContext& context, const Variable& x) const {
  return conv_transpose3d(context, x, weight_, bias_, geometry_);
}

Linear::Linear(const ParameterBuilder& builder, int64_t in, int64_t out, bool with_bias) {
  const float bound = default_bound(in);
  weight_ = builder.uniform("weight", {out, in}, bound, true);
  if (with_bias) {
    bias_ = builder.uniform("bias", {out}, bound, false);
  }
}

Variable Linear::operator()(DeviceContext& context, const Variable& x, kernels::Activation activation) const {
  return linear(context, x, weight_, bias_, activation);
}

LayerNorm::LayerNorm(const ParameterBuilder& builder, int64_t channels)
    : gamma_(builder.constant("weight", {channels}, 1.0f)),
      beta_(builder.constant("bias", {channels}, 0.0f)) {}

Variable LayerNorm::operator()(DeviceContext& context, const Variable& x) const {
  return layer_norm(context, x, gamma_, beta_);
}

MultiHeadAttention::MultiHeadAttention(const ParameterBuilder& builder, int64_t channels, int heads,
                                       int64_t inner)
    : heads_(heads),
      q_(builder.scope("q_proj"), channels, inner),
      k_(builder.scope("k_proj"), channels, inner),
      v_(builder.scope("v_proj"), channels, inner),
      out_(builder.scope("out_proj"), inner, channels) {
  check<ShapeError>(heads >= 1 && inner % heads == 0, "MultiHeadAttention: heads ", heads,
                    ", expected a divisor of ", inner, " channels");
}

Variable MultiHeadAttention::operator()(DeviceContext& context, const Variable& query, const Variable& key,
                                        const Variable& value, AttentionSettings settings) const {
  settings.heads = heads_;
  return out_(context,
              attention(context, q_(context, query), k_(context, key), v_(context, value), settings));
}

InstanceNorm::InstanceNorm(const ParameterBuilder& builder, int64_t channels, kernels::Activation activation)
    : activation_(activation),
      gamma_(builder.constant("weight", {channels}, 1.0f)),
      beta_(builder.constant("bias", {channels}, 0.0f)) {}

Variable InstanceNorm::operator()(DeviceContext& context, const Variable& x) const {
  return instance_norm(context, x, gamma_, beta_, activation_);
}

BatchNorm::BatchNorm(const ParameterBuilder& builder, int64_t channels, kernels::Activation activation,
                     float momentum)
    : activation_(activation),
      momentum_(momentum),
      gamma_(builder.constant("weight", {channels}, 1.0f)),
      beta_(builder.constant("bias", {channels}, 0.0f)),
      buffers_{builder.buffer("running_mean", {channels}, 0.0f),
               builder.buffer("running_var", {channels}, 1.0f), builder.counter("num_batches_tracked")} {}

Variable BatchNorm::operator()(DeviceContext& context, const Variable& x, bool training) const {
  return batch_norm(context, x, gamma_, beta_, buffers_, training, activation_, 1e-5f, momentum_);
}

GroupNorm::GroupNorm(const ParameterBuilder& builder, int64_t groups, int64_t channels,
                     kernels::Activation activation)
    : groups_(groups),
      activation_(activation),
      gamma_(builder.constant("weight", {channels}, 1.0f)),
      beta_(builder.constant("bias", {channels}, 0.0f)) {
  check<ShapeError>(groups >= 1 && channels % groups == 0, "GroupNorm: groups ", groups,
                    ", expected a divisor of ", channels, " channels");
}

Variable GroupNorm::operator()(DeviceContext& context, const Variable& x) const {
  return group_norm(context, x, gamma_, beta_, groups_, activation_);
}

ShiftedPatch::ShiftedPatch(const ParameterBuilder& builder, int64_t groups, int64_t channels, int64_t out,
                           kernels::ShiftSet shifts, bool masked, std::array<int, 3> patch,
                           std::array<int, 3> shift, const ShiftedPatchNames& names)
    : groups_(groups), shifts_(shifts), patch_(patch), shift_(shift) {
  kernels::ShiftedPatchParams shape;
  shape.channels = channels;
  shape.shifts = shifts;
  shape.patch = patch;
  const int64_t features = shape.features();
  const float bound = default_bound(features);
  check<ShapeError>(names.group_axis || (groups == 1 && !masked), "ShiftedPatch: ", groups,
                    " groups need an axis of their own");
  const auto grouped = [&](Shape one) {
    if (names.group_axis) {
      one.insert(one.begin(), groups);
    }
    return one;
  };
  const ParameterBuilder norm = builder.scope(names.norm), projection = builder.scope(names.projection);
  parameters_.gamma = norm.constant("weight", grouped({features}), 1.0f);
  parameters_.beta = norm.constant("bias", grouped({features}), 0.0f);
  parameters_.weight = projection.uniform("weight", grouped({out, features}), bound, true);
  parameters_.bias = projection.uniform("bias", grouped({out}), bound, false);
  if (masked) {
    parameters_.missing = builder.constant("missing", {groups, out}, 0.0f);
  }
}

Variable ShiftedPatch::operator()(DeviceContext& context, const Variable& x, const Tensor& mask) const {
  return shifted_patch(context, x, mask, parameters_, groups_, shifts_, patch_, shift_);
}

ConvNormRelu::ConvNormRelu(const ParameterBuilder& builder, std::string_view conv_name,
                           std::string_view norm_name, int64_t in, int64_t out, int kernel, int stride)
    : conv_(builder.scope(conv_name), in, out, kernel, stride),
      norm_(builder.scope(norm_name), out, kernels::Activation::relu) {}

Variable ConvNormRelu::operator()(DeviceContext& context, const Variable& x) const {
  return norm_(context, conv_(context, x));
}

}  // namespace vesal::layers
