// A trained network over a whole case: tiles, Gaussian blending slab by slab, probabilities on the prepared
// grid, and the memory that this takes. What a user gets of it is made in training/prediction_files.hpp.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "imaging/preprocess.hpp"
#include "imaging/sliding_window.hpp"
#include "models/fusion.hpp"
#include "runtime/device_context.hpp"
#include "training/interrupted.hpp"

namespace vesal::training {

struct PredictSettings {
  imaging::Size3 patch{96, 96, 96};  // X Y Z; each a multiple of 16
  double overlap = 0.5;              // share that neighbouring tiles have in common at least, [0, 1)
  // X Y Z: also show the network each tile mirrored along these axes, in all combinations, and average the
  // probabilities: 2, 4 or 8 times the work (test-time augmentation by mirroring as in nnU-Net).
  std::array<bool, 3> mirror{};
  DType precision = DType::f32;             // of the network's activations and weights
  const std::atomic<bool>* stop = nullptr;  // looked at before each tile; true: InterruptedError
  // Called after each tile, skipped ones included.
  std::function<void(int64_t done, int64_t total)> progress;
};

struct RegionProbabilities {
  imaging::Size3 size;        // of the prepared grid
  std::vector<float> values;  // [D, H, W, 3]: WT, TC, ET, each in [0, 1]; 0 outside the head
  int64_t tiles = 0;
  int64_t tiles_skipped = 0;  // they held no voxel of the head, so that nothing was to be found in them
};

// Runs the network over the case, one tile at a time and without gradients. `mask` says which modalities the
// network may see; throws UsageError when it names one that the case does not have, or none; ShapeError when
// an extent of the patch is no positive multiple of 16. A volume smaller than the patch is centred in it and
// padded with 0.
RegionProbabilities predict_case(DeviceContext& context, const models::Fusion& network,
                                 const imaging::PreparedCase& prepared, const models::ModalityMask& mask,
                                 const PredictSettings& settings);
// With every modality that the case has.
RegionProbabilities predict_case(DeviceContext& context, const models::Fusion& network,
                                 const imaging::PreparedCase& prepared, const PredictSettings& settings);

// imaging's mask of flags in the network's form.
models::ModalityMask network_mask(const imaging::ModalityMask& mask);

// What predicting one case will hold in memory at its peak.
struct MemoryPlan {
  int64_t tiles = 0;
  int64_t volumes_bytes = 0;        // input volumes on their own grid and the prepared ones
  int64_t probabilities_bytes = 0;  // of the prepared grid
  int64_t blending_bytes = 0;       // open slabs
  int64_t network_bytes = 0;        // weights, activations and workspace for one tile, on the device
  int64_t labels_bytes = 0;         // the label map and the slices open while it is restored

  int64_t host_bytes() const { return volumes_bytes + probabilities_bytes + blending_bytes + labels_bytes; }
  // "memory plan: at most 27 tiles of 96 x 96 x 96; volumes 140 MB + probabilities ... = 0.9 GB"
  std::string line(const imaging::Size3& patch, Device device) const {
    return line_for(to_string(patch), device);
  }
  // The same with a tile in words.
  std::string line_for(const std::string& tile, Device device) const;
};

// Device bytes that the network needs for one tile: measured on a tile of at most 32 voxels a side and scaled
// with the number of voxels. Costs one small forward pass.
int64_t measure_network_bytes(DeviceContext& context, const models::Fusion& network, imaging::Size3 patch,
                              DType precision = DType::f32);

// Throws as predict_case does. `original` is the case's grid, `prepared` the grid at the network's spacing.
MemoryPlan plan_memory(imaging::Size3 original, imaging::Size3 prepared, int modalities,
                       const PredictSettings& settings, int64_t network_bytes);

}  // namespace vesal::training
