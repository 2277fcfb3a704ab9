// The sliding window that all networks share: tiles of a prepared case, shown to a network one at a time,
// mirrored where that is asked for, and blended.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "imaging/preprocess.hpp"
#include "imaging/sliding_window.hpp"
#include "training/predictor.hpp"

namespace vesal::training {

struct TileCount {
  int64_t all = 0;
  int64_t skipped = 0;  // they held no voxel of the head, so that nothing was to be found in them
};

// shown [D, H, W, modalities] to scores [D, H, W, channels] of one tile of settings.patch.
using TileNetwork = std::function<void(const std::vector<float>& shown, std::vector<float>& scores)>;

// Shows `network` the tiles of the case with these modalities and hands the blended scores to `finished`,
// slab by slab in the order of z; skipped tiles count as 0. A volume smaller than the patch is centred in it
// and padded with 0. Throws InterruptedError as `settings` ask for.
TileCount slide_window(const imaging::PreparedCase& prepared, std::span<const imaging::Modality> modalities,
                       int64_t channels, const PredictSettings& settings, const TileNetwork& network,
                       const imaging::SlabBlender::Callback& finished);

}  // namespace vesal::training
