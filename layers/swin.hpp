// Swin transformer blocks (Liu et al. 2021, section 3.2) in 3D.
#pragma once

#include <vector>

#include "layers/modules.hpp"

namespace vesal::layers {

struct SwinSettings {
  int64_t channels = 24;
  int heads = 2;
  int window = 4;  // tokens per axis
  int mlp_ratio = 4;
  kernels::PaddingMode padding = kernels::PaddingMode::masked;
};

// x += attention(norm1(x)); x += mlp(norm2(x)), both under stochastic depth.
class SwinBlock {
 public:
  // `shifted` blocks move the windows by half their size, except on axes no longer than one window.
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
  SwinStage(const ParameterBuilder& builder, const SwinSettings& settings, const std::vector<float>& drop_path);
  Variable operator()(DeviceContext& context, const Variable& x, bool training) const;

 private:
  std::vector<SwinBlock> blocks_;
};

}  // namespace vesal::layers
