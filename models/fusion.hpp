// The brain-tumour network that fuses Swin semantics with edge information by graph reasoning (Zhu et al.,
// Information Fusion 91, 2023), lifted to 3D, with a sparse graph and with any subset of its four modalities.
//
//   level   stride  semantic (Swin)  edge encoder   fused, after graph reasoning and down-convolution
//     0        1          -             E/2
//     1        2          E             E              2E at stride 4
//     2        4          2E            2E             4E at stride 8
//     3        8          4E            4E             8E at stride 16
//     4       16          8E            8E             8E at stride 16
// The decoder climbs from the fused semantic map of level 4 over the raw Swin maps of levels 3, 2, 1 and the
// edge map of level 0 to full resolution. Edge logits are the sum of five edge attention heads, brought to
// full resolution.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "layers/edge_attention.hpp"
#include "layers/graph_reasoning.hpp"
#include "layers/swin.hpp"
#include "models/model.hpp"

namespace vesal::models {

// t1n, t1c, t2w, t2f: 1 = present. At least one must be.
inline constexpr int kModalities = 4;
using ModalityMask = std::array<uint8_t, kModalities>;

struct FusionConfig {
  std::string preset = "fusion-tiny";
  int64_t embed = 24;  // E
  std::array<int, 4> depths{2, 2, 2, 2};
  std::array<int, 4> heads{2, 4, 8, 16};
  int window = 4;
  kernels::ShiftSet embed_shifts = kernels::ShiftSet::corner8;
  kernels::ShiftSet merge_shifts = kernels::ShiftSet::tetra4;
  kernels::PaddingMode padding = kernels::PaddingMode::masked;
  int neighbours = 8;
  layers::EdgeWeights edge_weights = layers::EdgeWeights::symmetric;
  float drop_path = 0.0f;  // of the last block; rises linearly from 0
  bool deep_supervision = true;
};

// "fusion-micro", "fusion-tiny", "fusion-base"; UsageError lists them for anything else.
FusionConfig fusion_preset(std::string_view name);
std::vector<std::string> fusion_preset_names();

// A configuration as the string map that weights carry, and back. FormatError names a missing or bad field.
ModelMetadata to_metadata(const FusionConfig& config);
FusionConfig fusion_config_from_metadata(const ModelMetadata& metadata);

struct ForwardOptions {
  bool training = false;  // stochastic depth, deep supervision
  bool edges = false;     // also the edge logits
  // Saves the inputs of the encoders' levels, of fusion and of the decoder only, and runs each of them again
  // in the backward pass: less memory, more time, the same bits (runtime/checkpoint.hpp).
  bool recompute = false;
  // How activations and weights are stored: f32, bf16 or f16.
  DType precision = DType::f32;
};

// Float32, whatever the precision.
struct FusionOutputs {
  Variable segmentation;       // [N, D, H, W, 3]: logits of WT, TC, ET
  Variable edges;              // [N, D, H, W, 1] logits, undefined unless asked for
  std::vector<Variable> deep;  // logits at strides 2, 4, 8; empty unless training with deep supervision
};

class Fusion : public Model {
 public:
  // The largest stride: extents of an input are multiples of it.
  static constexpr int64_t kStride = 16;

  // Parameters are created on the context's device and start from `seed`, or hold nothing yet.
  Fusion(DeviceContext& context, const FusionConfig& config, std::optional<uint64_t> seed);
  ~Fusion() override;

  // volume [N, D, H, W, 4], float32, in the order of ModalityMask; voxels of absent modalities have no
  // influence. spacing (D, H, W; relative) scales the Sobel gradients. Throws ShapeError for other extents or
  // an empty mask.
  FusionOutputs forward(DeviceContext& context, const Tensor& volume, std::span<const ModalityMask> masks,
                        const ForwardOptions& options, std::array<float, 3> spacing = {1, 1, 1}) const;

  const FusionConfig& config() const { return config_; }
  ModelMetadata metadata() const override { return to_metadata(config_); }

 private:
  struct Modules;
  FusionConfig config_;
  std::unique_ptr<Modules> modules_;
};

struct FusionLossSettings {
  float dice_weight = 1.0f;
  float bce_weight = 0.5f;
  float edge_weight = 0.1f;
  bool batch_dice = false;
  float scale = 1.0f;  // of all gradients (layers/loss_scaler.hpp); the losses themselves are not scaled
};

// Each a float32 number on the device.
struct FusionLoss {
  Tensor segmentation;       // of the full-resolution logits
  Tensor edge;               // before its weight; undefined without edge logits
  std::vector<Tensor> deep;  // before their weights 1/2, 1/4, 1/8
};

// labels [N, D, H, W] u8: 0 background, 1 NCR, 2 ED, 3 ET. Registers the backward passes on the context's
// tape.
FusionLoss fusion_loss(DeviceContext& context, const FusionOutputs& outputs, const Tensor& labels,
                       const FusionLossSettings& settings);

}  // namespace vesal::models
