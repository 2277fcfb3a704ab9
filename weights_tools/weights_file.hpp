// What all files of weights have in common, whatever their format: named tensors, each with a type, a shape,
// and a place in the file, that are read one at a time into contiguous row-major memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.hpp"
#include "runtime/tensor.hpp"
#include "weights_tools/file_source.hpp"

namespace vesal::weights {

// One tensor of a file.
struct StoredTensor {
  std::string name;
  std::string dtype;    // as safetensors name it: "F32", "BF16", "I64", "BOOL", ...
  Shape shape;          // empty: one number
  Shape strides;        // in the file, in elements; 0 where one element stands for many
  int64_t count = 1;    // numbers
  uint64_t offset = 0;  // of its first element in the file
  uint64_t bytes = 0;   // in memory, contiguous
};

// The strides of a contiguous row-major tensor.
Shape contiguous_strides(const Shape& shape);
// "F32" and so on: a type as StoredTensor::dtype names it.
std::string_view stored_name(DType dtype);
// Bytes of one element of a type that StoredTensor::dtype names; 0 for an unknown one.
uint64_t stored_bytes(std::string_view dtype);

// What a file says about its tensors.
using Metadata = std::map<std::string, std::string>;

class WeightsFile {
 public:
  virtual ~WeightsFile() = default;
  WeightsFile(const WeightsFile&) = delete;
  WeightsFile& operator=(const WeightsFile&) = delete;

  // "safetensors", "PyTorch (zip)", "PyTorch (legacy)", "TorchScript".
  virtual std::string_view format() const = 0;
  const std::filesystem::path& path() const { return file_.path(); }
  // Bytes of the whole file.
  uint64_t file_bytes() const { return file_.size(); }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  // Null when there is none of that name.
  const StoredTensor* find(std::string_view name) const;

  // What came with the tensors; each is empty where the format or the file has nothing of the kind.
  // The nested dictionary that the tensors were taken from: the keys that lead to it, joined by dots; "." is
  // the object itself.
  const std::string& dictionary() const { return dictionary_; }
  // All dictionaries that hold tensors.
  const std::vector<std::string>& dictionaries() const { return dictionaries_; }
  // What was stripped from the front of every name, whatever the format: "module." and "_orig_mod."
  // (DataParallel, torch.compile), a few times at most; n_averaged, which AveragedModel counts beside them,
  // may stand without.
  const std::string& prefix() const { return prefix_; }
  // Names within the dictionary that hold no tensor.
  const std::vector<std::string>& skipped() const { return skipped_; }
  const Metadata& metadata() const { return metadata_; }

  // Fills `target`, which has tensor.bytes bytes, with one of tensors(), row-major and without gaps. Throws
  // FormatError for a boolean that is neither 0 nor 1, for data that fails the format's own check, and where
  // the file has become shorter; ShapeError when `target` has another size.
  void read(const StoredTensor& tensor, std::span<std::byte> target) const;
  std::vector<std::byte> read_bytes(const StoredTensor& tensor) const;
  // Values of an F64, F32, F16 or BF16 tensor as floats; FormatError for other types. Infinities and NaN
  // stay.
  std::vector<float> read_floats(const StoredTensor& tensor) const;
  // The same into `target`, which has tensor.count elements.
  void read_floats(const StoredTensor& tensor, std::span<float> target) const;
  // The same, a few thousand consecutive ones at a time, from several threads and in no order, without memory
  // for all of them. Where the file turns out to be damaged, some were handed out before the FormatError.
  using FloatConsumer = std::function<void(int64_t position, std::span<const float> values)>;
  void read_float_parts(const StoredTensor& tensor, const FloatConsumer& consume) const;

 protected:
  explicit WeightsFile(std::filesystem::path path) : file_(std::move(path)) {}
  // Called once by the constructor of a format. Names that occur twice must have been refused before.
  void set_tensors(std::vector<StoredTensor> tensors);
  // Whatever is to be checked before a tensor's bytes are believed.
  virtual void check_data(const StoredTensor&) const {}
  // FileSource::read_parts of a tensor that is contiguous in the file, and whatever is to be checked.
  virtual void read_parts(const StoredTensor& tensor, std::span<std::byte> target,
                          const FileSource::Consumer& consume) const;

  FileSource file_;
  std::string dictionary_;
  std::vector<std::string> dictionaries_;
  std::vector<std::string> skipped_;
  Metadata metadata_;

 private:
  template <class Stored>
  void read_converted_parts(const StoredTensor& tensor, const FloatConsumer& consume) const;

  std::string prefix_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

// Opens a file of weights. Its content decides what it is, never its name; nothing in it is ever executed.
// `dictionary` names the nested dictionary of a PyTorch checkpoint that holds the weights
// (torch_checkpoint.hpp); other formats have none. Throws FormatError for what is none of the known formats,
// with advice where one is recognised (tar, HDF5, ...), and IoError for what cannot be read.
std::unique_ptr<WeightsFile> open_weights(const std::filesystem::path& path,
                                          std::string_view dictionary = {});

}  // namespace vesal::weights
