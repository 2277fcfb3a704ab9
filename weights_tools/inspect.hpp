// What a file of weights holds, told without a network in mind: tensors, metadata, which of the known
// networks it looks like, and what is odd about it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/device_context.hpp"
#include "weights_tools/weights_file.hpp"

namespace vesal::weights {

// A network of the catalogue, compared by names and shapes.
struct Likeness {
  std::string model;
  size_t matched = 0;        // entries of the model that the file has, in the model's shape
  size_t model_entries = 0;  // that a file must have
  size_t file_tensors = 0;   // that the network's name map does not ignore
  double score = 0;          // matched as a share of the larger of the two
};

// Tensors whose names begin with the same part, or that have the same type.
struct TensorGroup {
  std::string name;
  size_t tensors = 0;
  int64_t numbers = 0;
  uint64_t bytes = 0;
};

struct Inspection {
  std::vector<TensorGroup> groups;  // by the first part of the name, in order of appearance
  std::vector<TensorGroup> types;   // by type, in order of appearance
  TensorGroup total;
  std::vector<Likeness> likenesses;   // of at least kLeastLikeness, the best first
  std::vector<std::string> warnings;  // a line each: NaN, infinities, numbers past float32, damaged data
  bool values_read = false;
};

// Values are read only if `read_values`, one tensor at a time: they are what NaN, damage (CRC-32) and
// booleans that are neither 0 nor 1 are found by. The context's device is where the catalogue's networks are
// made, without values.
Inspection inspect(DeviceContext& context, const WeightsFile& file, bool read_values);

// For people, with at most `rows` rows of the table of tensors; names and texts of the file are escaped.
std::string to_text(const Inspection& inspection, const WeightsFile& file, size_t rows);
// For machines: everything.
std::string to_json(const Inspection& inspection, const WeightsFile& file);

}  // namespace vesal::weights
