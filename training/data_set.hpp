// The cases that a network learns from and those it is scored on: found in a folder, split, read, prepared
// once and kept in memory (about 16 bytes a voxel of the head's box, at the wanted spacing).
//
// A case that cannot be used stops everything with one line that names it: data never disappear silently.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "imaging/case.hpp"
#include "imaging/preprocess.hpp"

namespace vesal::training {

// Names of cases. No name is in both.
struct Split {
  std::vector<std::string> train;
  std::vector<std::string> validation;

  friend bool operator==(const Split&, const Split&) = default;
};

// Shuffles by seed and takes the share `fraction` (in [0, 1), rounded) for validation: at least one case when
// the fraction is positive and there are two, and never all. Depends on the set of names and the seed only.
Split split_by_fraction(std::vector<std::string> names, double fraction, uint64_t seed);

// {"train": [names], "val": [names]}, or a list of such objects as nnU-Net's splits_final.json, of which the
// first is taken; "validation" is read as "val". Throws IoError or FormatError naming the file; a name that
// is listed twice is a FormatError.
Split read_split_file(const std::filesystem::path& path);

// Throws FormatError, beginning with `where`, when a case of the split is not among `names` or none is left
// to learn from.
void require_cases(const Split& split, const std::vector<std::string>& names, const std::string& where);

struct DataSetOptions {
  imaging::LabelScheme scheme = imaging::LabelScheme::brats2023;
  imaging::Vector3 spacing_mm{};            // 0 keeps each input's own
  const std::atomic<bool>* stop = nullptr;  // looked at before each case; true: InterruptedError
  // Called after each case.
  std::function<void(int64_t done, int64_t total, const std::string& name)> progress{};
};

struct DataSet {
  std::vector<imaging::PreparedCase> train;
  std::vector<imaging::PreparedCase> validation;

  int64_t bytes() const;
  // Modalities that some case to learn from has.
  imaging::ModalityMask modalities() const;
};

// Reads and prepares the cases of a split; `cases` is what imaging::list_cases found. Throws what reading
// throws; FormatError for a case without labels.
DataSet load_data_set(const std::vector<imaging::CaseFiles>& cases, const Split& split,
                      const DataSetOptions& options);

}  // namespace vesal::training
