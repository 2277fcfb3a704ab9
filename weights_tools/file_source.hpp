// A file that is read by position and never trusted.
//
// It is read with pread and not mapped into memory. A mapped file that another process shortens raises SIGBUS
// at the next access, in whatever code touches the page; a check of the size before the access cannot exclude
// that, since the file may shrink between the two, and a signal handler is what Vesal does not have
// (docs/dependencies.md). pread reports the end of the file as a number. What is read is copied once, into
// the memory of whoever asked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

namespace vesal::weights {

class FileSource {
 public:
  // Throws IoError for what is absent, unreadable, or no regular file.
  explicit FileSource(std::filesystem::path path);
  ~FileSource();
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // The path as messages begin with it.
  const std::string& name() const { return name_; }
  // Bytes, when it was opened.
  uint64_t size() const { return size_; }

  // Fills `target` with the bytes that start at `offset`. Throws FormatError for bytes past the end, also
  // where the file has become shorter since it was opened, and IoError where the system cannot read. May be
  // called from several threads at a time; large reads use several threads themselves.
  void read(uint64_t offset, std::span<std::byte> target) const;

  // Consecutive bytes from `position` on, counted from the first that was asked for.
  using Consumer = std::function<void(uint64_t position, std::span<const std::byte> part)>;
  // Parts all have this size, but for the last: they are looked at while a processor's own cache holds them.
  static constexpr uint64_t kPartBytes = 128u << 10;

  // Hands every part of the `count` bytes that start at `offset` to `consume`, from several threads at a time
  // and in no order. The parts are in `target`, which has `count` bytes, or, where it is empty, in a buffer
  // that is written over afterwards. Throws as read() does, maybe after some parts.
  void read_parts(uint64_t offset, uint64_t count, std::span<std::byte> target,
                  const Consumer& consume) const;

 private:
  void read_serially(uint64_t offset, std::span<std::byte> target) const;

  std::filesystem::path path_;
  std::string name_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

// A little-endian number of N bytes.
template <size_t N>
uint64_t little_endian(const std::byte* bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < N; ++i) {
    value |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  }
  return value;
}

}  // namespace vesal::weights
