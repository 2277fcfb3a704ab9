// Synthetic four-modality brain tumours: made, not measured, for demonstrations, tests and first training
// runs. They look and are stored like skull-stripped BraTS cases, and every voxel's truth is known.
//
// A head of grey and white matter, ventricles and CSF (built from warped ellipsoids and smooth noise, or
// taken from a real skull-stripped T1 by intensity), a tumour with oedema, enhancing rim and necrotic core,
// contrasts per modality, a smooth bias field and Rician noise. All randomness is Philox keyed by (seed,
// case): the same seed gives the same cases whatever the number of threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "imaging/case.hpp"
#include "imaging/volume.hpp"

namespace vesal::imaging {

struct PhantomOptions {
  uint64_t seed = 0;
  Size3 size{96, 96, 96};              // the spacing is 192 mm / size on each axis
  std::filesystem::path anatomy;       // a skull-stripped T1 volume; empty: the built-in head
  double no_enhancement_share = 0.15;  // of cases without ET
};

// Tissue of each voxel of a head on the phantom's grid.
enum class Tissue : uint8_t { outside = 0, csf = 1, grey = 2, white = 3 };

// The tissue of a skull-stripped T1 by k-means on its nonzero intensities (three classes: dark to bright is
// CSF, grey, white), resampled to `size` over a 192 mm cube about the head's centre.
LabelMap tissue_from_anatomy(const std::filesystem::path& path, Size3 size);

// One case: all four modalities and labels; its header is stored LPS, as BraTS is. Intensities are whole
// numbers and exactly 0 outside the head.
Case make_phantom(const PhantomOptions& options, int64_t index);
// The same with the anatomy read once by the caller; `tissue` is empty for the built-in head.
Case make_phantom(const PhantomOptions& options, int64_t index, const LabelMap& tissue);

// "VesalPhantom-00007".
std::string phantom_name(int64_t index);

// Writes FOLDER/NAME/NAME-{t1n,t1c,t2w,t2f,seg}.nii.gz, labels in the brats2023 scheme, and returns
// FOLDER/NAME.
std::filesystem::path write_phantom(const std::filesystem::path& folder, const Case& phantom);

}  // namespace vesal::imaging
