// Between tensors in memory and tensors in files. Files hold names and layouts as PyTorch writes them, so
// that weights travel both ways: a convolution's [a, kd, kh, kw, b] in memory is [a, b, kd, kh, kw] in a
// file, or [a, b, kh, kw] where it is one of a 2D network.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "layers/parameters.hpp"
#include "weights_tools/safetensors.hpp"

namespace vesal::weights {

// The shape in a file of a tensor with this shape in memory. Throws ShapeError for a convolution of rank
// below 3, and for one of a 2D network whose kernel has another depth than 1.
Shape file_shape(const Shape& memory_shape, layers::ParameterLayout layout);
// Values in the order of the file, and back; `shape` is the one in memory.
std::vector<float> to_file_order(std::span<const float> memory, const Shape& shape,
                                 layers::ParameterLayout layout);
std::vector<float> to_memory_order(std::span<const float> file, const Shape& shape,
                                   layers::ParameterLayout layout);

// A float32 tensor on a device and its name in a file; or, where `counter` is set, a number on the host,
// which a file holds as one I64; or, where `constant` is set, what a file only carries.
struct NamedTensor {
  std::string name;
  Tensor tensor;
  layers::ParameterLayout layout = layers::ParameterLayout::plain;
  int64_t* counter = nullptr;
  const layers::Constant* constant = nullptr;
};

// What the file of `named` holds: its shape and its type.
Shape file_shape(const NamedTensor& named);
DType file_dtype(const NamedTensor& named);

// The entries of a model under their own names, in order of creation.
std::vector<NamedTensor> named_parameters(const layers::ParameterStore& store);

// The bytes of the entry `named` as files of Vesal hold it, from a tensor of a file with as many elements:
// F32 from F64, F32, F16 or BF16, a counter's I64, a constant's own. Refused are the numbers that
// load_tensors refuses, with the same FormatErrors.
std::vector<std::byte> read_entry(const WeightsFile& file, const StoredTensor& stored,
                                  const NamedTensor& named);

// The same bytes from the entry's own numbers.
std::vector<std::byte> entry_bytes(DeviceContext& context, const NamedTensor& named);

// Writes tensors as F32, counters as I64, and constants, in the order given.
void write_tensors(DeviceContext& context, const std::filesystem::path& path,
                   const std::vector<NamedTensor>& tensors, const Metadata& metadata);

// Fills the tensors from a file, converting F64, F16 and BF16. Tensors of the file whose names start with one
// of `ignored_prefixes` are left alone. Every name that is missing or unexpected and every shape that differs
// is counted in one FormatError, the first few by name, before anything is changed; so is a tensor with a NaN
// or an infinity, a counter that is no I64 or negative, and a constant with other numbers than the network's.
void load_tensors(DeviceContext& context, const WeightsFile& file, const std::vector<NamedTensor>& tensors,
                  std::span<const std::string_view> ignored_prefixes = {});

}  // namespace vesal::weights
