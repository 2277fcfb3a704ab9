// Fuzz targets. A reader gets bytes that nobody meant well and may do one of two things: read them, or throw
// a FormatError of one line. Every NAME_fuzz.cpp is one target: it defines the functions below for one
// reader. libfuzzer.cpp makes a libFuzzer program of it (-DVESAL_FUZZ=ON, scripts/fuzz), replay.cpp a test.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/philox.hpp"

namespace vesal::fuzz {

// Changes bytes without knowing what they mean: libFuzzer's mutator, or that of replay.cpp.
using Change = std::function<void(std::string& bytes)>;

// Small files of all kinds that the reader accepts; the generators of the tests make them.
std::vector<std::string> seeds();
// Reads all that the reader offers of a file.
void read(const std::filesystem::path& path);
// Changes `bytes`, and repairs some of what a reader would notice first: checksums, compression, sizes.
void mutate(std::string& bytes, RandomStream& random, const Change& change);

// A file in memory, under a path.
class MemoryFile {
 public:
  MemoryFile();
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  void write(std::string_view bytes);
  const std::filesystem::path& path() const { return path_; }

 private:
  int descriptor_;
  std::filesystem::path path_;
};

// The line with which read() refuses the bytes; "" when it does not. Ends the process where it does anything
// else.
std::string refusal_of(std::string_view bytes);

inline size_t below(RandomStream& random, size_t limit) {
  return static_cast<size_t>(random.below(static_cast<int64_t>(limit)));
}

}  // namespace vesal::fuzz
