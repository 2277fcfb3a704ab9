// Swin transformer blocks (Liu et al. 2021, section 3.2) in 3D; images are volumes of depth 1 with a window
// of depth 1.
#pragma once

#include <array>
#include <vector>

#include "layers/modules.hpp"

namespace vesal::layers {

struct SwinSettings {
  int64_t channels = 24;
  int heads = 2;
  std::array<int, 3> window{4, 4, 4};  // tokens along D, H, W
  int mlp_ratio = 4;
  kernels::PaddingMode padding = kernels::PaddingMode::masked;
  // Shifted blocks shift along every axis with more than one token in the window; otherwise only along those
  // that are longer than a window.
  bool shift_always = false;
  // The constants that files of the original 2D network carry: attn.relative_position_index of every block,
  // and attn_mask of shifted ones, for a grid of this many tokens along H and W (the constructor's image, not
  // the input's). 0: none.
  int64_t mask_side = 0;
};

// x += attention(norm1(x)); x += mlp(norm2(x)), both under stochastic depth.
class SwinBlock {
 public:
  // `shifted` blocks move the windows by half their size.
  SwinBlock(const ParameterBuilder& builder, const SwinSettings& settings, bool shifted, float drop_path);
  // x [N, D, H, W, C].
  Variable operator()(DeviceContext& context, const Variable& x, bool training) const;

 private:
  SwinSettings settings_;
  bool shifted_;
  float drop_path_;
  LayerNorm norm1_;
  Parameter* bias_table_;
  Linear qkv_, proj_;
  LayerNorm norm2_;
  Linear fc1_, fc2_;
};

// `depth` blocks, every second one shifted; drop_path holds one rate per block.
class SwinStage {
 public:
  SwinStage(const ParameterBuilder& builder, const SwinSettings& settings,
            const std::vector<float>& drop_path);
  Variable operator()(DeviceContext& context, const Variable& x, bool training) const;

 private:
  std::vector<SwinBlock> blocks_;
};

}  // namespace vesal::layers
