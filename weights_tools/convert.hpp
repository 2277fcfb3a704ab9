// From a file of weights, whoever wrote it, to Vesal's own: what of the file belongs to what of a model, what
// does not fit, and the safetensors file that comes of it. The result holds the model's entries under
// PyTorch's names and in PyTorch's layouts, and as metadata all that `vesal predict` needs to know.
//
// Nothing is left out in silence: every tensor of the file and every entry of the model is in exactly one
// list of a ConversionReport (a matched one is one of each), or in a conflict.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "models/model.hpp"
#include "weights_tools/name_map.hpp"
#include "weights_tools/parameters.hpp"
#include "weights_tools/weights_file.hpp"

namespace vesal::weights {

// A tensor of the file and the entry of the model that it becomes.
struct MatchedTensor {
  std::string file_name;
  std::string model_name;
  std::string file_dtype;
  std::string model_dtype;
  Shape file_shape;
  Shape model_shape;  // in files

  bool renamed() const { return file_name != model_name; }
  bool reshaped() const { return file_shape != model_shape; }
  bool converted() const { return file_dtype != model_dtype; }
};

// One that has no counterpart.
struct LoneTensor {
  std::string name;
  std::string dtype;
  Shape shape;
  std::string why;  // it is ignored
};

// A file with a lower score does not look like the network.
constexpr double kLeastLikeness = 0.5;

struct ConversionReport {
  std::string model;
  std::vector<MatchedTensor> matched;  // in the model's order, as missing and computed
  std::vector<LoneTensor> missing;     // of the model
  std::vector<LoneTensor> computed;    // constants of the model that the file may well lack
  std::vector<LoneTensor> unexpected;  // of the file, as ignored
  std::vector<LoneTensor> ignored;
  // What cannot be: two tensors of the file with one name in the model, other shapes or types than the
  // model's. Each names both sides.
  std::vector<std::string> conflicts;
  size_t file_tensors = 0;   // but ignored ones
  size_t model_entries = 0;  // but computed ones

  // Why the file cannot be converted, for one line; empty: it can. A file of which nothing fits never can.
  std::string problem(bool allow_missing, bool allow_unexpected) const;
  // How much of the two is the same, from 0 to 1: the matched ones as a share of the larger side.
  double score() const;
};

// Looks at names, types and shapes; reads no values.
ConversionReport match(const WeightsFile& file, const NameMap& map, std::string_view model,
                       const layers::ParameterStore& store);

struct ConversionRequest {
  std::filesystem::path from;
  std::string dictionary;         // as open_weights takes it
  std::string model;              // a name of the catalogue
  std::filesystem::path out;      // a safetensors file
  std::filesystem::path report;   // JSON; empty: none
  bool allow_missing = false;     // what the file lacks keeps the model's starting values
  uint64_t seed = 0;              // of these
  bool allow_unexpected = false;  // what the model has no place for is left out
  bool overwrite = false;
  // Called before every tensor is read; what it throws ends the work.
  std::function<void(size_t done, size_t total)> progress;
};

struct Conversion {
  ConversionReport report;
  std::string format;  // of the source, as the following
  std::string dictionary;
  std::string prefix;
  std::vector<std::string> skipped;
  uint64_t source_bytes = 0;
  std::string source_sha256;
  Metadata metadata;       // of the result
  uint64_t out_bytes = 0;  // 0: nothing was written
  std::string problem;     // why not
};

// Writes request.out and request.report, each completely or not at all. Tensors pass through memory one at a
// time. Where the file cannot be converted only the report is written, which says why, and a FormatError
// says so in one line. IoError for files that exist (without overwrite) or cannot be read or written,
// UsageError for an unknown model and for files that are the same.
//
// Metadata: the model's configuration; what the name map gives; in place of that what the file itself says
// where Vesal wrote it; the file's name, format, dictionary and SHA-256. A file that Vesal wrote is taken
// with the configuration that it holds.
Conversion convert(DeviceContext& context, const ConversionRequest& request);

// For people: how many of each kind, the first few by name.
std::string to_text(const Conversion& conversion, const ConversionRequest& request);
// For machines: everything.
std::string to_json(const Conversion& conversion, const ConversionRequest& request);

}  // namespace vesal::weights
