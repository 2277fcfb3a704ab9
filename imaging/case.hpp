// A case: up to four co-registered modalities and a label file, found by name in a folder and read with every
// check.
//
// Modalities are known by name, never by position; the channel order is t1n, t1c, t2w, t2f. Labels inside are
// 1 = NCR (necrotic core), 2 = ED (oedema), 3 = ET (enhancing tumour).
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "imaging/nifti.hpp"
#include "imaging/volume.hpp"

namespace vesal::imaging {

enum class Modality : int { t1n = 0, t1c = 1, t2w = 2, t2f = 3 };
constexpr int kModalityCount = 4;
constexpr std::array<Modality, kModalityCount> kModalities{Modality::t1n, Modality::t1c, Modality::t2w,
                                                           Modality::t2f};

// "t1n", "t1c", "t2w", "t2f".
std::string_view name_of(Modality modality);
// Any spelling, in either case: t1n = t1 = t1w = t1native; t1c = t1ce = t1gd = t1ct = ct1; t2w = t2;
// t2f = flair = fla = t2flair. Throws UsageError listing them.
Modality parse_modality(std::string_view name);
std::optional<Modality> find_modality(std::string_view name);

// One flag for each modality, in channel order.
using ModalityMask = std::array<bool, kModalityCount>;
constexpr ModalityMask kAllModalities{true, true, true, true};
// "t1n,t2f" <-> mask; an empty list and a repeated modality are UsageErrors.
ModalityMask parse_modality_mask(std::string_view comma_separated);
std::string to_string(const ModalityMask& mask);
int count(const ModalityMask& mask);

struct CaseFiles {
  std::string name;                                          // the folder's name
  std::array<std::filesystem::path, kModalityCount> images;  // empty: not there
  std::filesystem::path labels;                              // empty: not there
  std::string problem;                                       // why the case cannot be used; empty: it can

  ModalityMask present() const;
};

// The files of one case by the part of their names after the last '-' or '_' (or the whole of it): names of
// all years of BraTS (BraTS-GLI-00000-000-t1n.nii.gz, BraTS2021_00000_t1ce.nii.gz,
// BraTS20_Training_001_flair.nii) and plain t1.nii.gz; `seg` is the label file. Files with other endings are
// left alone. Throws IoError for a missing folder, FormatError when two files claim one modality or when none
// is there.
CaseFiles find_case(const std::filesystem::path& folder);

// The cases of a data set: `folder` itself when images lie in it, else its subfolders that hold NIfTI files,
// sorted by name. A subfolder that find_case would refuse is listed with its problem, so that it stops
// nobody and is not overlooked. Throws IoError for a missing folder and FormatError, saying what was
// expected, when there is no case.
std::vector<CaseFiles> list_cases(const std::filesystem::path& folder);

// How a data set numbers its labels. brats2021 (2017 to 2021): 1 NCR, 2 ED, 4 ET. brats2023: 1 NCR, 2 ED, 3
// ET. The 2024 post-treatment scheme, whose 4 is the resection cavity, is deliberately not among them.
enum class LabelScheme { brats2021, brats2023 };
std::string_view name_of(LabelScheme scheme);
LabelScheme parse_label_scheme(std::string_view name);  // throws UsageError

constexpr uint8_t kLabelNcr = 1;
constexpr uint8_t kLabelEd = 2;
constexpr uint8_t kLabelEt = 3;

// A label file's values to internal labels. A value outside the scheme is a FormatError that names the file,
// the value, how often it occurs, what is allowed, and the other scheme where that one would fit.
LabelMap labels_from_scheme(const Image& values, LabelScheme scheme, const std::filesystem::path& path);
// Internal labels to a scheme's numbers.
LabelMap labels_to_scheme(const LabelMap& labels, LabelScheme scheme);

// The nested regions that BraTS scores: WT = {1, 2, 3}, TC = {1, 3}, ET = {3}; channel order WT, TC, ET.
enum class Region : int { wt = 0, tc = 1, et = 2 };
constexpr int kRegionCount = 3;
constexpr std::array<Region, kRegionCount> kRegions{Region::wt, Region::tc, Region::et};
std::string_view name_of(Region region);  // "WT", "TC", "ET"
constexpr bool in_region(uint8_t label, Region region) {
  switch (region) {
    case Region::wt:
      return label >= 1 && label <= 3;
    case Region::tc:
      return label == kLabelNcr || label == kLabelEt;
    case Region::et:
      return label == kLabelEt;
  }
  return false;
}
// 1 where the label belongs to the region, else 0.
LabelMap region_mask(const LabelMap& labels, Region region);

// The label of one voxel from its three region probabilities: WT paints 2, then TC paints 1, then ET paints
// 3, each where its probability is >= threshold.
constexpr uint8_t label_of_regions(float wt, float tc, float et, float threshold = 0.5f) {
  uint8_t label = wt >= threshold ? kLabelEd : uint8_t{0};
  label = tc >= threshold ? kLabelNcr : label;
  return et >= threshold ? kLabelEt : label;
}
// The same for n voxels; the four spans have one length.
void regions_to_labels(std::span<const float> wt, std::span<const float> tc, std::span<const float> et,
                       std::span<uint8_t> labels, float threshold = 0.5f);

struct Case {
  std::string name;
  Geometry geometry;  // canonical axes, one for all
  ModalityMask present{};
  std::array<Image, kModalityCount> images;  // empty where absent
  LabelMap labels;                           // internal labels; empty without a label file
  NiftiHeader header;                        // of the first present modality: what outputs are written like
};

struct LoadOptions {
  ModalityMask use = kAllModalities;  // modalities to read where they are there
  bool read_labels = true;            // where there is a label file
  LabelScheme scheme = LabelScheme::brats2023;
};

// Throws the case's problem as a FormatError.
void require_usable(const CaseFiles& files);

// Reads a case that is usable. All files lie on one grid (FormatError naming both files and what differs),
// images are finite and not all zero. Throws UsageError when none of the wanted modalities is there.
Case load_case(const CaseFiles& files, const LoadOptions& options = {});

}  // namespace vesal::imaging
