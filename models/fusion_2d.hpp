// The original brain-tumour network of Zhu et al. (Information Fusion 91, 2023) as its authors published it:
// 2D, on axial slices, 129,525,884 parameters. Slices travel as volumes of depth 1, [N, 1, H, W, C], through
// the same kernels as everything else. For weights trained with the published code; fusion.hpp is its 3D
// successor.
//
//   level   stride  semantic (Swin)  edge encoder   fused, after MFIB and down-convolution
//     1        2         128             128             256 at stride 4
//     2        4         256             256             512 at stride 8
//     3        8         512             512            1024 at stride 16
//     4       16        1024            1024            1024 at stride 16
// The decoder climbs from the fused semantic map of level 4 over the raw Swin maps of levels 3, 2, 1 and the
// three input channels; edge logits are the sum of five ESABs, brought to full resolution.
//
// The store's entries are the 617 of a published state_dict, in its order. Among them are what the network
// carries and does not use: the edge encoder's own ESABs and transformer.norm (both frozen), attn_mask and
// relative_position_index (constants).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/fusion_2d_blocks.hpp"
#include "models/model.hpp"

namespace vesal::models {

// Half of the channels of the deepest map are dropped: in training, as a dropout should; always, as the
// published code does, whose evaluation is therefore random; or never.
enum class DecoderDropout { training, always, off };

// What the published code does, by field, and what should be done instead. None changes the parameters.
struct Fusion2dConfig {
  std::string preset = "fusion-2d";
  layers::MfibLayout mfib_layout = layers::MfibLayout::original;
  HeadEnd head = HeadEnd::relu;
  DecoderDropout dropout = DecoderDropout::training;
  float gate_eps = 0.0f;   // under ESAB's root
  float drop_path = 0.1f;  // of the last Swin block; rises linearly from 0
};

// "fusion-2d": the numbers of published weights. "fusion-2d-fixed": voxels stay voxels in MFIB, whose node
// logits are scaled, logits may be negative, and ESAB's root has a finite gradient everywhere. Both drop
// channels in training only. UsageError lists the names for anything else.
Fusion2dConfig fusion_2d_preset(std::string_view name);
std::vector<std::string> fusion_2d_preset_names();

// A configuration as the string map that weights carry, and back. FormatError names a missing or bad field.
ModelMetadata to_metadata(const Fusion2dConfig& config);
Fusion2dConfig fusion_2d_config_from_metadata(const ModelMetadata& metadata);

struct Fusion2dOutputs {
  Variable segmentation;  // [N, 1, H, W, 3]: logits of WT, TC, ET
  Variable edges;         // [N, 1, H, W, 1]: logits
};

class Fusion2d : public Model {
 public:
  // The largest stride: H and W are multiples of it.
  static constexpr int64_t kStride = 16;

  // Parameters are created on the context's device and start from `seed`, or hold nothing yet.
  Fusion2d(DeviceContext& context, const Fusion2dConfig& config, std::optional<uint64_t> seed);
  ~Fusion2d() override;

  // semantic [N, 1, H, W, 3], which three modalities is the weights' matter; edges [N, 1, H, W, 2]: FLAIR and
  // T1c. In training batch norms use the batch's statistics and move the running ones. Throws ShapeError for
  // other extents.
  Fusion2dOutputs forward(DeviceContext& context, const Variable& semantic, const Variable& edges,
                          bool training) const;

  const Fusion2dConfig& config() const { return config_; }
  ModelMetadata metadata() const override { return to_metadata(config_); }

 private:
  struct Modules;
  Fusion2dConfig config_;
  std::unique_ptr<Modules> modules_;
};

}  // namespace vesal::models
