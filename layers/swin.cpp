#include "layers/swin.hpp"

namespace vesal::layers {
namespace {

int64_t bias_rows(int window) {
  const int64_t side = 2 * window - 1;
  return side * side * side;
}

}  // namespace

SwinBlock::SwinBlock(const ParameterBuilder& builder, const SwinSettings& settings, bool shifted, float drop_path)
    : settings_(settings),
      shifted_(shifted),
      drop_path_(drop_path),
      norm1_(builder.scope("norm1"), settings.channels),
      bias_table_(builder.scope("attn").truncated_normal("relative_position_bias_table",
                                                         {bias_rows(settings.window), settings.heads}, 0.02f)),
      qkv_(builder.scope("attn").scope("qkv"), settings.channels, 3 * settings.channels),
      proj_(builder.scope("attn").scope("proj"), settings.channels, settings.channels),
      norm2_(builder.scope("norm2"), settings.channels),
      fc1_(builder.scope("mlp").scope("fc1"), settings.channels, settings.mlp_ratio * settings.channels),
      fc2_(builder.scope("mlp").scope("fc2"), settings.mlp_ratio * settings.channels, settings.channels) {}

Variable SwinBlock::operator()(DeviceContext& context, const Variable& x, bool training) const {
  WindowAttentionSettings attention{.heads = settings_.heads,
                                    .window = {settings_.window, settings_.window, settings_.window},
                                    .padding = settings_.padding};
  if (shifted_) {
    for (int axis = 0; axis < 3; ++axis) {
      attention.shift[static_cast<size_t>(axis)] = x.size(axis + 1) > settings_.window ? settings_.window / 2 : 0;
    }
  }
  const float drop = training ? drop_path_ : 0.0f;
  const Variable qkv = qkv_(context, norm1_(context, x));
  const Variable attended = proj_(context, window_attention(context, qkv, qkv_.bias(), bias_table_, attention));
  const Variable y = add(context, x, drop_path(context, attended, drop));
  const Variable hidden = fc1_(context, norm2_(context, y), kernels::Activation::gelu);
  return add(context, y, drop_path(context, fc2_(context, hidden), drop));
}

SwinStage::SwinStage(const ParameterBuilder& builder, const SwinSettings& settings,
                     const std::vector<float>& drop_path) {
  for (size_t i = 0; i < drop_path.size(); ++i) {
    blocks_.emplace_back(builder.scope("blocks").scope(std::to_string(i)), settings, i % 2 == 1, drop_path[i]);
  }
}

Variable SwinStage::operator()(DeviceContext& context, const Variable& x, bool training) const {
  Variable y = x;
  for (const SwinBlock& block : blocks_) {
    y = block(context, y, training);
  }
  return y;
}

}  // namespace vesal::layers
