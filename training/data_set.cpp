// Splits and prepared cases: see data_set.hpp.
#include "training/data_set.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "training/interrupted.hpp"
#include "training/random_ops.hpp"

namespace vesal::training {
namespace {

std::vector<std::string> read_names(const nlohmann::json& fold, const char* key, const std::string& file) {
  const nlohmann::json& list = fold.at(key);
  check<FormatError>(list.is_array(), file, ": \"", key, "\" is not a list of case names");
  std::vector<std::string> names;
  for (const nlohmann::json& name : list) {
    check<FormatError>(name.is_string(), file, ": \"", key, "\" holds ", name.type_name(),
                       ", expected case names");
    names.push_back(name.get<std::string>());
  }
  return names;
}

}  // namespace

Split split_by_fraction(std::vector<std::string> names, double fraction, uint64_t seed) {
  check<UsageError>(fraction >= 0.0 && fraction < 1.0, "validation fraction: found ", fraction,
                    ", expected at least 0 and less than 1");
  std::sort(names.begin(), names.end());
  const auto total = static_cast<int64_t>(names.size());
  int64_t validation = std::llround(fraction * static_cast<double>(total));
  validation = fraction > 0.0 && total >= 2 ? std::clamp<int64_t>(validation, 1, total - 1) : 0;
  std::vector<std::string> shuffled = names;
  RandomStream random(seed, 0, kSplitOp);
  for (int64_t i = total - 1; i > 0; --i) {
    std::swap(shuffled[static_cast<size_t>(i)], shuffled[static_cast<size_t>(random.below(i + 1))]);
  }
  Split split;
  split.validation.assign(shuffled.begin(), shuffled.begin() + validation);
  split.train.assign(shuffled.begin() + validation, shuffled.end());
  std::sort(split.validation.begin(), split.validation.end());
  std::sort(split.train.begin(), split.train.end());
  return split;
}

Split read_split_file(const std::filesystem::path& path) {
  const std::string file = path.string();
  std::ifstream in(path);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  check<IoError>(in.is_open() && !in.bad(), file, ": cannot be read, expected a split file in JSON");
  const nlohmann::json document = nlohmann::json::parse(text, nullptr, false);
  check<FormatError>(!document.is_discarded(), file, ": is not valid JSON");
  check<FormatError>(!document.is_array() || !document.empty(), file, ": the list of folds is empty");
  const nlohmann::json& fold = document.is_array() ? document.front() : document;
  check<FormatError>(fold.is_object() && fold.contains("train"), file,
                     ": expected {\"train\": [names], \"val\": [names]} or a list of such objects");
  Split split;
  split.train = read_names(fold, "train", file);
  for (const char* key : {"val", "validation"}) {
    if (fold.contains(key)) {
      split.validation = read_names(fold, key, file);
      break;
    }
  }
  std::set<std::string> seen;
  for (const auto* names : {&split.train, &split.validation}) {
    for (const std::string& name : *names) {
      check<FormatError>(seen.insert(name).second, file, ": the case ", name, " is listed twice");
    }
  }
  return split;
}

void require_cases(const Split& split, const std::vector<std::string>& names, const std::string& where) {
  check<FormatError>(!split.train.empty(), where, ": no case is left to learn from");
  const std::set<std::string> present(names.begin(), names.end());
  for (const auto* list : {&split.train, &split.validation}) {
    const auto absent =
        std::find_if(list->begin(), list->end(), [&](const auto& name) { return !present.contains(name); });
    check<FormatError>(absent == list->end(), where, ": the case ", absent == list->end() ? "" : *absent,
                       " is not among the ", names.size(), " cases of the data");
  }
}

int64_t DataSet::bytes() const {
  int64_t total = 0;
  for (const auto* cases : {&train, &validation}) {
    for (const imaging::PreparedCase& prepared : *cases) {
      total += static_cast<int64_t>(prepared.mask.data.size() + prepared.labels.data.size());
      for (const imaging::Image& image : prepared.images) {
        total += static_cast<int64_t>(image.data.size() * sizeof(float));
      }
    }
  }
  return total;
}

imaging::ModalityMask DataSet::modalities() const {
  imaging::ModalityMask mask{};
  for (const imaging::PreparedCase& prepared : train) {
    for (size_t m = 0; m < mask.size(); ++m) {
      mask[m] = mask[m] || prepared.present[m];
    }
  }
  return mask;
}

DataSet load_data_set(const std::vector<imaging::CaseFiles>& cases, const Split& split,
                      const DataSetOptions& options) {
  const imaging::LoadOptions load{.scheme = options.scheme};
  const imaging::PreprocessOptions preprocess{.spacing_mm = options.spacing_mm};
  const auto total = static_cast<int64_t>(split.train.size() + split.validation.size());
  int64_t done = 0;
  DataSet data;
  for (const auto& [names, prepared] :
       {std::pair(&split.train, &data.train), std::pair(&split.validation, &data.validation)}) {
    for (const std::string& name : *names) {
      check<InterruptedError>(options.stop == nullptr || !options.stop->load(),
                              "interrupted while reading cases");
      const auto files =
          std::find_if(cases.begin(), cases.end(), [&](const auto& c) { return c.name == name; });
      check<FormatError>(files != cases.end(), "the case ", name, " is not among the data");
      imaging::require_usable(*files);
      check<FormatError>(!files->labels.empty(), name, ": has no label file, expected ", name,
                         "-seg.nii.gz beside its images");
      prepared->push_back(imaging::prepare_case(imaging::load_case(*files, load), preprocess));
      if (options.progress) {
        options.progress(++done, total, name);
      }
    }
  }
  return data;
}

}  // namespace vesal::training
