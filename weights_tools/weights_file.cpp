// Reading one tensor, and telling formats apart: see weights_file.hpp.
#include "weights_tools/weights_file.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.hpp"
#include "weights_tools/safetensors.hpp"
#include "weights_tools/strided_read.hpp"
#include "weights_tools/text.hpp"
#include "weights_tools/torch_checkpoint.hpp"

namespace vesal::weights {
namespace {

struct StoredType {
  std::string_view name;
  uint64_t bytes;
};
constexpr StoredType kStoredTypes[] = {{"C128", 16},   {"C64", 8}, {"F64", 8}, {"I64", 8}, {"U64", 8},
                                       {"F32", 4},     {"I32", 4}, {"U32", 4}, {"F16", 2}, {"BF16", 2},
                                       {"I16", 2},     {"U16", 2}, {"I8", 1},  {"U8", 1},  {"F8_E4M3", 1},
                                       {"F8_E5M2", 1}, {"BOOL", 1}};

// The beginnings of files that people take for weights.
struct Recognised {
  std::string_view start;
  std::string_view what;
};
constexpr Recognised kForeign[] = {
    {"\x1f\x8b", "gzip data: unpack it first"},
    {"\x89HDF", "HDF5 (Keras, MATLAB?)"},
    {"\x93NUMPY", "a NumPy array"},
    {"Rar!", "a RAR archive: unpack it first"},
    {"7z\xbc\xaf", "a 7z archive: unpack it first"},
    {"GGUF", "GGUF"},
    {"<", "HTML or XML: a web page instead of the download?"},
    {"version https://git-lfs", "a Git LFS pointer: run git lfs pull"},
};

// Beside the "module." of torch.optim.swa_utils.AveragedModel.
constexpr std::string_view kAverageCounter = "n_averaged";

// More wrappers than these nobody has; a hostile name may hold millions.
constexpr int kMostWrappers = 8;

// "module." and "_orig_mod." in front of all names.
std::string common_prefix(const std::vector<StoredTensor>& tensors) {
  std::string prefix;
  bool found = true;
  for (int i = 0; found && i < kMostWrappers; ++i) {
    found = false;
    for (const std::string_view wrapper : {"module.", "_orig_mod."}) {
      const std::string longer = prefix + std::string(wrapper);
      size_t wrapped = 0;
      size_t others = 0;
      for (const StoredTensor& tensor : tensors) {
        const bool starts = tensor.name.starts_with(longer) && tensor.name.size() > longer.size() &&
                            tensor.name.substr(longer.size()) != kAverageCounter;
        wrapped += starts ? 1 : 0;
        others += !starts && tensor.name != kAverageCounter ? 1 : 0;
      }
      if (wrapped > 0 && others == 0) {
        prefix = longer;
        found = true;
      }
    }
  }
  return prefix;
}

}  // namespace

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) {
    // Extents beside a 0 may overflow, unsigned: an empty tensor's strides lead nowhere.
    strides[i - 1] = static_cast<int64_t>(static_cast<uint64_t>(strides[i]) *
                                          static_cast<uint64_t>(std::max<int64_t>(shape[i], 1)));
  }
  return strides;
}

std::string_view stored_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    case DType::i32:
      return "I32";
    case DType::i64:
      return "I64";
    case DType::u8:
      return "U8";
    case DType::boolean:
      return "BOOL";
  }
  return "?";
}

uint64_t stored_bytes(std::string_view dtype) {
  for (const StoredType& type : kStoredTypes) {
    if (type.name == dtype) {
      return type.bytes;
    }
  }
  return 0;
}

const StoredTensor* WeightsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

void WeightsFile::set_tensors(std::vector<StoredTensor> tensors) {
  tensors_ = std::move(tensors);
  prefix_ = common_prefix(tensors_);
  for (StoredTensor& tensor : tensors_) {
    tensor.name.erase(0, tensor.name == kAverageCounter ? 0 : prefix_.size());
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    index_.emplace(tensors_[i].name, i);
  }
}

void WeightsFile::read_parts(const StoredTensor& tensor, std::span<std::byte> target,
                             const FileSource::Consumer& consume) const {
  check_data(tensor);
  file_.read_parts(tensor.offset, tensor.bytes, target, consume);
}

void WeightsFile::read(const StoredTensor& tensor, std::span<std::byte> target) const {
  check<ShapeError>(target.size() == tensor.bytes, file_.name(), ": tensor ", one_line(tensor.name), ": ",
                    target.size(), " bytes were offered for its ", tensor.bytes);
  if (tensor.strides == contiguous_strides(tensor.shape)) {
    read_parts(tensor, target, [](uint64_t, std::span<const std::byte>) {});
  } else {
    check_data(tensor);
    read_strided(file_, tensor.offset, stored_bytes(tensor.dtype), tensor.shape, tensor.strides, target);
  }
  if (tensor.dtype == "BOOL") {
    const auto bad = std::find_if(target.begin(), target.end(), [](std::byte b) { return b > std::byte{1}; });
    check<FormatError>(bad == target.end(), file_.name(), ": tensor ", one_line(tensor.name), ": found ",
                       bad == target.end() ? 0 : std::to_integer<int>(*bad), " at position ",
                       bad - target.begin(), ", expected booleans of 0 or 1");
  }
}

std::vector<std::byte> WeightsFile::read_bytes(const StoredTensor& tensor) const {
  std::vector<std::byte> bytes(tensor.bytes);
  read(tensor, bytes);
  return bytes;
}

template <class Stored>
void WeightsFile::read_converted_parts(const StoredTensor& tensor, const FloatConsumer& consume) const {
  const auto convert = [&consume](uint64_t position, std::span<const std::byte> part) {
    constexpr size_t kStep = 2048;
    Stored stored[kStep];
    float values[kStep];
    for (size_t done = 0; done < part.size(); done += sizeof(stored)) {
      const size_t count = std::min(part.size() - done, sizeof(stored)) / sizeof(Stored);
      std::memcpy(stored, part.data() + done, count * sizeof(Stored));
      std::transform(stored, stored + count, values, [](Stored value) { return static_cast<float>(value); });
      consume(static_cast<int64_t>((position + done) / sizeof(Stored)), std::span(values, count));
    }
  };
  if (tensor.strides == contiguous_strides(tensor.shape)) {
    read_parts(tensor, {}, convert);
  } else {
    convert(0, read_bytes(tensor));
  }
}

void WeightsFile::read_float_parts(const StoredTensor& tensor, const FloatConsumer& consume) const {
  if (tensor.dtype == "F32") {
    read_converted_parts<float>(tensor, consume);
  } else if (tensor.dtype == "F64") {
    read_converted_parts<double>(tensor, consume);
  } else if (tensor.dtype == "F16") {
    read_converted_parts<f16>(tensor, consume);
  } else if (tensor.dtype == "BF16") {
    read_converted_parts<bf16>(tensor, consume);
  } else {
    throw FormatError(concat(file_.name(), ": tensor ", one_line(tensor.name), ": found type ", tensor.dtype,
                             ", expected F32, F64, F16 or BF16"));
  }
}

std::vector<float> WeightsFile::read_floats(const StoredTensor& tensor) const {
  std::vector<float> values(static_cast<size_t>(tensor.count));
  read_floats(tensor, values);
  return values;
}

void WeightsFile::read_floats(const StoredTensor& tensor, std::span<float> target) const {
  check<ShapeError>(target.size() == static_cast<size_t>(tensor.count), file_.name(), ": tensor ",
                    one_line(tensor.name), ": ", target.size(), " floats were offered for its ",
                    tensor.count);
  if (tensor.dtype == "F32") {
    read(tensor, std::as_writable_bytes(target));
    return;
  }
  read_float_parts(tensor, [target](int64_t position, std::span<const float> values) {
    std::copy(values.begin(), values.end(), target.begin() + position);
  });
}

std::unique_ptr<WeightsFile> open_weights(const std::filesystem::path& path, std::string_view dictionary) {
  std::string start;
  {
    const FileSource file(path);
    start.resize(std::min<uint64_t>(file.size(), 512));
    file.read(0, std::as_writable_bytes(std::span(start)));
  }
  const std::string name = path.string();
  check<FormatError>(!start.empty(), name, ": is empty, expected weights");
  if (TorchCheckpoint::recognises(start)) {
    return std::make_unique<TorchCheckpoint>(path, dictionary);
  }
  if (start.size() > 8 && start[8] == '{') {
    check<FormatError>(dictionary.empty(), name, ": holds no dictionary ", one_line(dictionary),
                       ": a safetensors file has none");
    return std::make_unique<SafetensorsFile>(path);
  }
  for (const Recognised& foreign : kForeign) {
    check<FormatError>(!start.starts_with(foreign.start), name, ": is ", foreign.what,
                       "; expected safetensors or a PyTorch checkpoint");
  }
  throw FormatError(concat(name, ": starts with ", one_line(std::string_view(start).substr(0, 8)),
                           "; expected safetensors or a PyTorch checkpoint"));
}

}  // namespace vesal::weights
