// safetensors files: a JSON header with names, types, shapes and byte ranges, then the tensors' bytes,
// little-endian and row-major (format: github.com/huggingface/safetensors). Nothing in a file is ever
// executed.
//
// The reader trusts nothing: it accepts a file only when the header is well-formed JSON without repeated
// names, every byte range has the size that type and shape ask for, and the ranges cover the rest of the file
// without hole or overlap. Errors are one line, name the file, and say what was found: IoError (cannot be
// read or written) or FormatError (not what the format allows).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.hpp"
#include "runtime/tensor.hpp"

namespace vesal::weights {

using Metadata = std::map<std::string, std::string>;

// One tensor of a file.
struct StoredTensor {
  std::string name;
  std::string dtype;    // as written in the file: "F32", "BF16", "I64", ...
  Shape shape;          // empty: one number
  int64_t count = 1;    // numbers
  uint64_t offset = 0;  // of its first byte in the file
  uint64_t bytes = 0;
};

class SafetensorsFile {
 public:
  // Headers beyond this are refused, as by the format's own library.
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;

  // Opens the file, reads and checks its header. The tensors' bytes are read when asked for.
  explicit SafetensorsFile(std::filesystem::path path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // In the order of their bytes.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  // Null when there is none of that name.
  const StoredTensor* find(std::string_view name) const;
  const Metadata& metadata() const { return metadata_; }

  std::vector<std::byte> read_bytes(const StoredTensor& tensor) const;
  // Values of an F64, F32, F16 or BF16 tensor as floats; FormatError for other types.
  std::vector<float> read_floats(const StoredTensor& tensor) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  Metadata metadata_;
};

// A string from a file, quoted and fit for one line of an error message: control characters are masked, long
// ones cut.
std::string one_line(std::string_view text);

// A tensor to be written; `bytes` is called once, when its turn comes, so that not all tensors need to be on
// the host at a time. It returns count * size_of(dtype) bytes.
struct TensorSource {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::function<std::vector<std::byte>()> bytes;
};

// Writes a file in the order given, types with larger elements first so that every tensor is aligned to its
// element, behind a header padded to 8 bytes. The same input gives the same bytes. The file is complete or
// absent (AtomicFile), and an existing one is replaced. Throws UsageError for a repeated or reserved name,
// ShapeError when a source returns another number of bytes than its shape asks for.
void write_safetensors(const std::filesystem::path& path, std::vector<TensorSource> tensors,
                       const Metadata& metadata);

}  // namespace vesal::weights
