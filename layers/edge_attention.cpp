#include "layers/edge_attention.hpp"

namespace vesal::layers {
namespace {
constexpr int64_t kBottleneck = 32;
}

EdgeAttention::EdgeAttention(const ParameterBuilder& builder, int64_t channels)
    : gradient_norm_(builder.scope("sobel_norm"), 3),
      norm_(builder.scope("norm"), channels, kernels::Activation::relu),
      reduce_(builder.scope("reduce"), channels, kBottleneck),
      conv_(builder.scope("conv"), kBottleneck, kBottleneck),
      expand_(builder.scope("expand"), kBottleneck, channels),
      head_(builder.scope("head"), channels, 1) {}

Variable EdgeAttention::operator()(DeviceContext& context, const Variable& x, std::array<float, 3> spacing) const {
  const Variable gated = edge_gate(context, x, gradient_norm_.gamma(), gradient_norm_.beta(), spacing);
  const Variable narrow = reduce_(context, norm_(context, gated), kernels::Activation::relu);
  const Variable residual = expand_(context, relu(context, conv_(context, narrow)));
  return head_(context, add(context, x, residual));
}

}  // namespace vesal::layers
