// open, fstat, pread: see file_source.hpp.
#include "weights_tools/file_source.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/parallel.hpp"

namespace vesal::weights {
namespace {

// Memory that nobody has touched costs a page fault for every 4 KiB, more than the copy that fills it. One
// call asks for all pages that lie within `memory`; a kernel before 5.14 refuses, and the pages come one by
// one.
void touch(std::span<std::byte> memory) {
#ifdef MADV_POPULATE_WRITE
  constexpr uintptr_t kPage = 4096;
  const auto begin = (reinterpret_cast<uintptr_t>(memory.data()) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(memory.data()) + memory.size()) / kPage * kPage;
  if (begin < end) {
    (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
  }
#else
  (void)memory;
#endif
}

}  // namespace

FileSource::FileSource(std::filesystem::path path) : path_(std::move(path)), name_(path_.string()) {
  // O_NONBLOCK: a named pipe without a writer would wait here for ever; for a file it changes nothing.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  check<IoError>(descriptor_ >= 0, name_, ": cannot be read: ", std::strerror(errno));
  struct stat status {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  const int error = errno;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw IoError(known ? concat(name_, ": is not a regular file")
                        : concat(name_, ": cannot be read: ", std::strerror(error)));
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

FileSource::~FileSource() { ::close(descriptor_); }

void FileSource::read(uint64_t offset, std::span<std::byte> target) const {
  if (target.size() > size_ || offset > size_ - target.size()) {
    throw FormatError(concat(name_, ": bytes ", offset, " to ", offset + target.size(), ": the file holds ",
                             size_, "; truncated?"));
  }
  // Memory that is written for the first time costs more than the copy: two threads are twice as fast.
  constexpr uint64_t kPieceBytes = 1u << 20;
  const uint64_t pieces = (target.size() + kPieceBytes - 1) / kPieceBytes;
  parallel_for(static_cast<int64_t>(pieces), 2, [&](int64_t begin, int64_t end) {
    const uint64_t first = static_cast<uint64_t>(begin) * kPieceBytes;
    const uint64_t last = std::min<uint64_t>(static_cast<uint64_t>(end) * kPieceBytes, target.size());
    read_serially(offset + first, target.subspan(first, last - first));
  });
}

void FileSource::read_parts(uint64_t offset, uint64_t count, std::span<std::byte> target,
                            const Consumer& consume) const {
  check<ShapeError>(target.empty() || target.size() == count, name_, ": ", target.size(),
                    " bytes were offered for ", count);
  const uint64_t parts = (count + kPartBytes - 1) / kPartBytes;
  parallel_for(static_cast<int64_t>(parts), 1, [&](int64_t first, int64_t last) {
    std::vector<std::byte> buffer(target.empty() ? std::min(kPartBytes, count) : 0);
    for (int64_t i = first; i < last; ++i) {
      const uint64_t position = static_cast<uint64_t>(i) * kPartBytes;
      const uint64_t bytes = std::min(kPartBytes, count - position);
      std::span<std::byte> part = std::span(buffer).first(target.empty() ? bytes : 0);
      if (!target.empty()) {
        part = target.subspan(position, bytes);
        touch(part);
      }
      read(offset + position, part);
      consume(position, part);
    }
  });
}

void FileSource::read_serially(uint64_t offset, std::span<std::byte> target) const {
  while (!target.empty()) {
    const ssize_t got = ::pread(descriptor_, target.data(), target.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    check<IoError>(got >= 0, name_, ": reading failed: ", std::strerror(errno));
    if (got == 0) {
      throw FormatError(concat(name_, ": ends at byte ", offset, ", held ", size_,
                               " when it was opened: something shortened it meanwhile"));
    }
    target = target.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
}

}  // namespace vesal::weights
