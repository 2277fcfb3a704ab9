#include "layers/swin.hpp"

namespace vesal::layers {
namespace {

int64_t bias_rows(const std::array<int, 3>& window) {
  int64_t rows = 1;
  for (const int extent : window) {
    rows *= 2 * extent - 1;
  }
  return rows;
}

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

// [tokens, tokens]: the row of the bias table for tokens i and j of a window of depth 1.
std::vector<std::byte> planar_relative_position_index(int64_t rows, int64_t columns) {
  std::vector<int64_t> index;
  for (int64_t i = 0; i < rows * columns; ++i) {
    for (int64_t j = 0; j < rows * columns; ++j) {
      index.push_back((i / columns - j / columns + rows - 1) * (2 * columns - 1) + i % columns - j % columns +
                      columns - 1);
    }
  }
  return bytes_of(index);
}

// [windows, tokens, tokens]: -100 between tokens of different regions of a rolled square grid, else 0; the
// last window along an axis holds two regions, which meet `shift` tokens before its end.
std::vector<std::byte> planar_attention_mask(int64_t side, int64_t window, int64_t shift) {
  const auto region = [&](int64_t i) { return i < side - window ? 0 : i < side - shift ? 1 : 2; };
  const int64_t windows = side / window, tokens = window * window;
  std::vector<float> mask;
  for (int64_t w = 0; w < windows * windows; ++w) {
    const auto label = [&](int64_t token) {
      return 3 * region(w / windows * window + token / window) +
             region(w % windows * window + token % window);
    };
    for (int64_t i = 0; i < tokens; ++i) {
      for (int64_t j = 0; j < tokens; ++j) {
        mask.push_back(label(i) == label(j) ? 0.0f : -100.0f);
      }
    }
  }
  return bytes_of(mask);
}

// norm1, after the constant that a file lists before it.
LayerNorm first_norm(const ParameterBuilder& builder, const SwinSettings& settings, bool shifted) {
  const int64_t window = settings.window[1], side = settings.mask_side;
  if (shifted && side > 0) {
    check<ShapeError>(settings.window == std::array<int, 3>{1, settings.window[1], settings.window[1]} &&
                          side % window == 0,
                      "SwinBlock: a mask for ", side, " x ", side, " tokens in windows of ", window);
    const int64_t windows = (side / window) * (side / window), tokens = window * window;
    // Not compared: it was made for the constructor's image size, and nothing reads it.
    builder.fixed(
        "attn_mask", DType::f32, {windows, tokens, tokens},
        [=] { return planar_attention_mask(side, window, window / 2); }, false);
  }
  return {builder.scope("norm1"), settings.channels};
}

// The bias table, before the constant that a file lists after it.
Parameter* bias_table(const ParameterBuilder& builder, const SwinSettings& settings) {
  Parameter* table = builder.truncated_normal("relative_position_bias_table",
                                              {bias_rows(settings.window), settings.heads}, 0.02f);
  if (settings.mask_side > 0) {
    const int64_t rows = settings.window[1], columns = settings.window[2];
    builder.fixed("relative_position_index", DType::i64, {rows * columns, rows * columns},
                  [=] { return planar_relative_position_index(rows, columns); });
  }
  return table;
}

}  // namespace

SwinBlock::SwinBlock(const ParameterBuilder& builder, const SwinSettings& settings, bool shifted,
                     float drop_path)
    : settings_(settings),
      shifted_(shifted),
      drop_path_(drop_path),
      norm1_(first_norm(builder, settings, shifted)),
      bias_table_(bias_table(builder.scope("attn"), settings)),
      qkv_(builder.scope("attn").scope("qkv"), settings.channels, 3 * settings.channels),
      proj_(builder.scope("attn").scope("proj"), settings.channels, settings.channels),
      norm2_(builder.scope("norm2"), settings.channels),
      fc1_(builder.scope("mlp").scope("fc1"), settings.channels, settings.mlp_ratio * settings.channels),
      fc2_(builder.scope("mlp").scope("fc2"), settings.mlp_ratio * settings.channels, settings.channels) {}

Variable SwinBlock::operator()(DeviceContext& context, const Variable& x, bool training) const {
  WindowAttentionSettings attention{
      .heads = settings_.heads, .window = settings_.window, .padding = settings_.padding};
  if (shifted_) {
    for (size_t axis = 0; axis < 3; ++axis) {
      const int window = settings_.window[axis];
      const bool shifts = settings_.shift_always || x.size(static_cast<int>(axis) + 1) > window;
      attention.shift[axis] = shifts ? window / 2 : 0;
    }
  }
  const float drop = training ? drop_path_ : 0.0f;
  const Variable qkv = qkv_(context, norm1_(context, x));
  const Variable attended =
      proj_(context, window_attention(context, qkv, qkv_.bias(), bias_table_, attention));
  const Variable y = add(context, x, drop_path(context, attended, drop));
  const Variable hidden = fc1_(context, norm2_(context, y), kernels::Activation::gelu);
  return add(context, y, drop_path(context, fc2_(context, hidden), drop));
}

SwinStage::SwinStage(const ParameterBuilder& builder, const SwinSettings& settings,
                     const std::vector<float>& drop_path) {
  for (size_t i = 0; i < drop_path.size(); ++i) {
    blocks_.emplace_back(builder.scope("blocks").scope(std::to_string(i)), settings, i % 2 == 1,
                         drop_path[i]);
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
