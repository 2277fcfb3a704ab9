#include "models/fusion_2d_blocks.hpp"

#include <string>

namespace vesal::models {
namespace {

using kernels::Activation;
using layers::ParameterBuilder;
using layers::ParameterLayout;

Activation activation_of(HeadEnd end) { return end == HeadEnd::relu ? Activation::relu : Activation::none; }

layers::Conv3d conv_2d(const ParameterBuilder& builder, int64_t in, int64_t out, int kernel) {
  return {builder, in, out, layers::planar_geometry(kernel), ParameterLayout::convolution2d};
}

Variable halve(DeviceContext& context, const Variable& x) {
  return layers::max_pool3d(context, x, {1, 2, 2}, {1, 2, 2});
}

// The same 3x3 kernel for every channel, in the memory order [1, 1, 3, 3, C].
std::vector<float> for_channels(const std::array<float, 9>& kernel, int64_t channels) {
  std::vector<float> values;
  for (const float tap : kernel) {
    values.insert(values.end(), static_cast<size_t>(channels), tap);
  }
  return values;
}

}  // namespace

ConvBatchNorm2d::ConvBatchNorm2d(const ParameterBuilder& builder, std::string_view conv_name,
                                 std::string_view norm_name, int64_t in, int64_t out, int kernel,
                                 Activation activation)
    : conv_(conv_2d(builder.scope(conv_name), in, out, kernel)),
      norm_(builder.scope(norm_name), out, activation) {}

Variable ConvBatchNorm2d::operator()(DeviceContext& context, const Variable& x, bool training) const {
  return norm_(context, conv_(context, x), training);
}

EdgeSpatialAttention::EdgeSpatialAttention(const ParameterBuilder& builder, int64_t channels, HeadEnd end,
                                           float gate_eps)
    : gate_eps_(gate_eps),
      conv1_(conv_2d(builder.scope("conv1"), channels, channels, 3)),
      conv2_(conv_2d(builder.scope("conv2"), channels, 1, 1)),
      norm_(builder.scope("bn"), channels, Activation::relu),
      head_norm_(builder.scope("ban"), 1, activation_of(end)) {
  constexpr std::array<float, 9> kSobelX{1, 0, -1, 2, 0, -2, 1, 0, -1};
  constexpr std::array<float, 9> kSobelY{1, 2, 1, 0, 0, 0, -1, -2, -1};
  for (size_t axis = 0; axis < 2; ++axis) {
    const ParameterBuilder pair = builder.scope(axis == 0 ? "sobel_x1" : "sobel_y1");
    sobel_[axis] = pair.scope("0").frozen().given("weight", {1, 1, 3, 3, channels},
                                                  for_channels(axis == 0 ? kSobelX : kSobelY, channels),
                                                  false, ParameterLayout::convolution2d);
    gradient_norms_.emplace_back(pair.scope("1"), 1);
  }
}

Variable EdgeSpatialAttention::operator()(DeviceContext& context, const Variable& x, bool training) const {
  const auto derivative = [&](size_t axis) {
    return gradient_norms_[axis](
        context, layers::conv3d(context, x, sobel_[axis], nullptr, layers::planar_geometry(3)), training);
  };
  const Variable in_plane = layers::concat_channels(context, derivative(0), derivative(1));
  Shape flat = x.shape();
  flat.back() = 1;
  // The gate's gradient has three components; an image has none along its depth.
  const Variable along_depth = Tensor::zeros(context, flat, x.value().dtype());
  const Variable gated = layers::gate_by_gradient(
      context, layers::concat_channels(context, in_plane, along_depth), x, gate_eps_);
  const Variable y = layers::add(context, x, conv1_(context, norm_(context, gated, training)));
  return head_norm_(context, conv2_(context, y), training);
}

EdgeEncoder2d::EdgeEncoder2d(const ParameterBuilder& builder) {
  int64_t in = 2, out = 64;
  for (int level = 1; level <= 4; ++level) {
    const ParameterBuilder down = builder.scope("down" + std::to_string(level));
    convs_.emplace_back(down, "conv1", "bn1", in, out);
    convs_.emplace_back(down, "conv2", "bn2", out, out);
    in = out;
    out *= 2;
  }
  last_.emplace_back(builder, "conv1", "bn1", in, out);
  const std::array<std::pair<const char*, int64_t>, 5> discarded{
      {{"up", 1}, {"up1", 128}, {"up2", 256}, {"up3", 512}, {"up4", 1024}}};
  for (const auto& [name, channels] : discarded) {
    EdgeSpatialAttention(builder.scope(name).frozen(), channels, HeadEnd::relu, 0.0f);
  }
}

std::array<Variable, 4> EdgeEncoder2d::operator()(DeviceContext& context, const Variable& x,
                                                  bool training) const {
  std::array<Variable, 4> maps;
  Variable y = x;
  for (size_t level = 0; level < 4; ++level) {
    if (level > 0) {
      y = halve(context, y);
    }
    y = convs_[2 * level](context, y, training);
    y = convs_[2 * level + 1](context, y, training);
    if (level > 0) {
      maps[level - 1] = y;
    }
  }
  maps[3] = last_.front()(context, halve(context, y), training);
  return maps;
}

FusionLevel2d::FusionLevel2d(const ParameterBuilder& builder, int64_t channels, int64_t out,
                             layers::MfibLayout layout)
    : reason_(builder.scope("reason"), {.channels = channels, .layout = layout, .axes = 2}),
      norm_(builder.scope("reason").scope("bn"), channels, Activation::relu),
      down_(builder.scope("down"), "conv1", "bn1", channels, out),
      pools_(channels != 1024) {}

std::pair<Variable, Variable> FusionLevel2d::operator()(DeviceContext& context, const Variable& semantic,
                                                        const Variable& edges, bool training) const {
  const auto [from_semantic, from_edges] = reason_(context, semantic, edges);
  const Variable x = layers::add(context, semantic, norm_(context, from_semantic, training));
  const Variable y = layers::add(context, edges, norm_(context, from_edges, training));
  const auto down = [&](const Variable& map) {
    const Variable full = down_(context, map, training);
    return pools_ ? halve(context, full) : full;
  };
  const Variable x_down = down(x);
  return {x_down, down(y)};
}

Up2d::Up2d(const ParameterBuilder& builder, int64_t in, int64_t out, HeadEnd end)
    : up_(builder.scope("transconv"), in, out, layers::kPlanarDoubling, ParameterLayout::convolution2d),
      conv_(builder, "conv", "bn", 2 * out, out, 3, activation_of(end)) {}

Variable Up2d::operator()(DeviceContext& context, const Variable& x, const Variable& skip,
                          bool training) const {
  return conv_(context, layers::concat_channels(context, up_(context, x), skip), training);
}

layers::ShiftedPatch shifted_patch_2d(const ParameterBuilder& builder, int64_t in, int64_t out) {
  return {builder.scope("merging"),
          1,
          in,
          out,
          kernels::ShiftSet::diagonal4,
          false,
          {1, 2, 2},
          {0, 1, 1},
          {.norm = "1", .projection = "2", .group_axis = false}};
}

}  // namespace vesal::models
