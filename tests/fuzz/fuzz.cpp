// Files in memory, and what counts as an answer: see fuzz.hpp.
#include "tests/fuzz/fuzz.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/error.hpp"

namespace vesal::fuzz {
namespace {

constexpr size_t kMostLine = 1000;

[[noreturn]] void fail(const char* what, const std::string& line) {
  std::fprintf(stderr, "%s: %s\n", what, line.c_str());
  std::abort();
}

}  // namespace

MemoryFile::MemoryFile() : descriptor_(::memfd_create("input", MFD_CLOEXEC)) {
  if (descriptor_ < 0) {
    fail("memfd_create", "failed");
  }
  path_ = "/proc/self/fd/" + std::to_string(descriptor_);
}

MemoryFile::~MemoryFile() { ::close(descriptor_); }

void MemoryFile::write(std::string_view bytes) {
  const auto size = static_cast<off_t>(bytes.size());
  if (::ftruncate(descriptor_, size) != 0 || ::pwrite(descriptor_, bytes.data(), bytes.size(), 0) != size) {
    fail("a file in memory", "cannot be written");
  }
}

std::string refusal_of(std::string_view bytes) {
  static MemoryFile file;
  file.write(bytes);
  try {
    read(file.path());
    return "";
  } catch (const FormatError& error) {
    std::string line = error.what();
    const bool printable = std::all_of(
        line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f; });
    if (!printable || line.size() > kMostLine || !line.starts_with(file.path().string())) {
      fail("not one short line that names the file", line);
    }
    return line;
  } catch (const std::exception& error) {
    fail("not a FormatError", error.what());
  }
}

}  // namespace vesal::fuzz
