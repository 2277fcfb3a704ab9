// A file that appears under its final name only when it is complete: it is written under a temporary name in
// the same folder, fsynced and renamed by commit(); without commit() nothing is left behind. Every write is
// checked, so a full disk is an IoError and never a short file.
#pragma once

#include <cstddef>
#include <filesystem>

namespace vesal::imaging {

class AtomicFile {
 public:
  // Throws IoError where the folder does not exist or cannot be written.
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* bytes, size_t count);
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

}  // namespace vesal::imaging
