// Random training patches from a prepared case. All randomness comes from the RandomStream that is passed, in
// a fixed order, so a sample depends on (seed, step, op) and the options only.
//
// Rotation, scaling and flips are one affine map from patch to volume, sampled directly from the volume
// (trilinear for images, nearest for labels): no border of a previously cropped patch ever shows.
#pragma once

#include <cstdint>
#include <vector>

#include "base/philox.hpp"
#include "imaging/preprocess.hpp"

namespace vesal::imaging {

struct AugmentOptions {
  Size3 patch{96, 96, 96};
  // Share of patches centred on a foreground voxel (a label drawn evenly among those present, then one of its
  // voxels); the others lie anywhere in the volume. Ignored without labels.
  float foreground_probability = 0.5f;

  std::array<float, 3> flip_probability{0.5f, 0.5f, 0.5f};  // X Y Z
  float spatial_probability = 0.2f;                         // of rotating and scaling
  float max_rotation_degrees = 15.0f;                       // about each axis, uniform in +-
  float min_zoom = 0.85f;                                   // > 1 shows the anatomy larger
  float max_zoom = 1.2f;

  // Per modality, each with its own draw; intensities are z-scores.
  float scale_probability = 0.15f;
  float max_scale = 0.25f;  // factor uniform in 1 +- this
  float shift_probability = 0.15f;
  float max_shift = 0.25f;  // offset uniform in +- this, in standard deviations
  float gamma_probability = 0.15f;
  float min_gamma = 0.7f;
  float max_gamma = 1.5f;
  float noise_probability = 0.1f;
  float max_noise = 0.2f;  // standard deviation uniform in [0, this]
  float blur_probability = 0.1f;
  float min_blur_voxels = 0.5f;  // sigma
  float max_blur_voxels = 1.0f;

  // Of receiving another case's tumour (needs a donor): cut out along its labels, turned and scaled on its
  // own, and set somewhere into the head, so that few cases show many sizes and places. After TumorCP (Yang
  // et al., MICCAI 2021) and CarveMix (Zhang et al., MICCAI 2021).
  float transplant_probability = 0;
  float min_transplant_zoom = 0.4f;
  float max_transplant_zoom = 1.1f;
};

// The same with every probability and every range `strength` times as large (zoom and gamma: to that power);
// the blur's width, where the foreground lies, flips and transplants stay as they are. 0: none of it; 1:
// `options` itself. Throws UsageError outside [0, 4].
AugmentOptions with_strength(AugmentOptions options, float strength);

// Options that only crop: nothing is flipped, turned or altered.
AugmentOptions crop_only(Size3 patch, float foreground_probability);

// The case as it might look without its tumour: labelled voxels, and a margin of two around them, take the
// intensities of the same place in the other half of the head (mirrored in x about the box's middle), where
// that is inside the head and not itself labelled; elsewhere the tumour and its label stay. Few cases with
// large tumours teach a network that every head has one; heads without, and with small transplanted ones,
// teach it otherwise.
PreparedCase without_tumour(const PreparedCase& source);

struct Sample {
  Size3 size;
  ModalityMask present{};
  std::vector<float> image;     // [D, H, W, 4]; zeros where a modality is absent
  std::vector<uint8_t> labels;  // [D, H, W]; internal labels, empty without a label file
};

// Where the volume is smaller than the patch it is centred and padded with 0. Intensity changes apply inside
// the head only: outside stays exactly 0, as after preprocessing. A donor (null: none) gives a tumour only
// where it has all the modalities of `source`.
Sample draw_sample(const PreparedCase& source, const AugmentOptions& options, RandomStream& random,
                   const PreparedCase* donor = nullptr);

}  // namespace vesal::imaging
