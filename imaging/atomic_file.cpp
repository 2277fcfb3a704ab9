// Temporary name, checked writes, fsync, rename: see atomic_file.hpp.
#include "imaging/atomic_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace vesal::imaging {
namespace {
std::atomic<unsigned> counter{0};  // two threads may write the same name
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  temporary_ = path_.parent_path() /
               concat(".", path_.filename().string(), ".", ::getpid(), ".", counter.fetch_add(1), ".partial");
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  check<IoError>(descriptor_ >= 0, path_.string(), ": cannot be created: ", std::strerror(errno));
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
  }
}

void AtomicFile::write(const void* bytes, size_t count) {
  const char* next = static_cast<const char*>(bytes);
  while (count > 0) {
    const ssize_t written = ::write(descriptor_, next, count);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    check<IoError>(written > 0, path_.string(),
                   ": writing failed: ", std::strerror(written < 0 ? errno : ENOSPC));
    next += written;
    count -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  check<IoError>(::fsync(descriptor_) == 0, path_.string(), ": fsync failed: ", std::strerror(errno));
  const int closed = ::close(std::exchange(descriptor_, -1));
  if (closed != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    throw IoError(concat(path_.string(), ": ", closed != 0 ? "closing" : "renaming",
                         " failed: ", std::strerror(error)));
  }
  // The new name itself reaches the disk with its folder; where folders cannot be synced there is nothing to
  // add.
  const std::filesystem::path folder =
      path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
  if (const int handle = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); handle >= 0) {
    ::fsync(handle);
    ::close(handle);
  }
}

}  // namespace vesal::imaging
