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
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.hpp"
#include "runtime/tensor.hpp"
#include "weights_tools/text.hpp"
#include "weights_tools/weights_file.hpp"

namespace vesal::weights {

class SafetensorsFile : public WeightsFile {
 public:
  // Headers beyond this are refused, as by the format's own library.
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;

  // Opens the file, reads and checks its header. tensors() are in the order of their bytes, which are read
  // when asked for.
  explicit SafetensorsFile(std::filesystem::path path);

  std::string_view format() const override { return "safetensors"; }
};

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
