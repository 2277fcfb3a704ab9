// numpy's .npz files: ZIP archives of .npy arrays, stored or deflated (format: numpy/lib/format.py, NEP 1).
//
// Nothing in a file is executed: an array of Python objects, which numpy would unpickle, is refused, as is
// every header that is not exactly the dictionary that numpy writes. Errors are one line and name file, array
// and field: IoError (cannot be read) or FormatError (all else). Memory is bounded: an array's shape has to
// agree with the entry's size before room is made for it, and that size has to be at most `max_bytes` and
// possible for the entry's compressed bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weights_tools/file_source.hpp"
#include "weights_tools/zip.hpp"

namespace vesal::imaging {

enum class NpyType : uint8_t { boolean, u8, u16, u32, u64, i8, i16, i32, i64, f16, f32, f64 };
// Bytes of one element.
size_t size_of(NpyType type);
// "bool", "u8", ..., "f64".
std::string_view name_of(NpyType type);

// The most bytes that an array may have unless its reader says otherwise.
constexpr uint64_t kMaxNpyBytes = uint64_t{4} << 30;
constexpr uint64_t kMaxNpyHeaderBytes = uint64_t{1} << 16;
constexpr size_t kMaxNpyRank = 32;

struct NpyArray {
  std::string source;  // file and array, for messages
  NpyType type = NpyType::u8;
  std::vector<int64_t> shape;   // empty: one number
  std::vector<std::byte> data;  // row-major (the last axis fastest), in host byte order

  int64_t count() const { return static_cast<int64_t>(data.size() / size_of(type)); }
  // Rounded to the nearest float.
  std::vector<float> to_floats() const;
  // Throws FormatError for a value that is no integer from 0 to 255.
  std::vector<uint8_t> to_labels() const;
};

// One .npy file that lies in memory; `source` names it in messages.
NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& source,
                   uint64_t max_bytes = kMaxNpyBytes);

class NpzFile {
 public:
  // Reads the archive's directory; arrays are read when asked for. Every entry has to be named NAME.npy.
  explicit NpzFile(std::filesystem::path path);

  // In the order of the file, without ".npy".
  const std::vector<std::string>& names() const { return names_; }
  bool contains(std::string_view name) const;
  // Throws FormatError, listing the names, where there is none of this name. The array's CRC-32 is checked.
  NpyArray read(std::string_view name, uint64_t max_bytes = kMaxNpyBytes) const;

 private:
  weights::FileSource file_;
  weights::ZipArchive archive_;
  std::vector<std::string> names_;
};

}  // namespace vesal::imaging
