// open, fstat, pread: see file_source.hpp.
#include "weights_tools/file_source.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.hpp"
#include "base/parallel.hpp"

namespace vesal::weights {

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
