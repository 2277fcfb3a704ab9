// Typed errors. The library throws one of these; apps/ turns it into one line on stderr and an exit code.
// A message says which operation or file, what was found, and what would be right.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace vesal {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Sizes, ranks or storage types that do not fit together.
class ShapeError : public Error {
 public:
  using Error::Error;
};

// A device that is absent, not built in, out of memory, or that reported a failure.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// A file that is readable but does not hold what it should.
class FormatError : public Error {
 public:
  using Error::Error;
};

// A file or directory that cannot be read or written.
class IoError : public Error {
 public:
  using Error::Error;
};

// A request that makes no sense: an unknown option value, a missing argument.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Concatenates anything that can be streamed: concat("conv3d: stride ", s, " must be positive").
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// check<ShapeError>(n > 0, "conv3d: batch size ", n, " must be positive");
template <class E, class... Args>
void check(bool condition, const Args&... args) {
  if (!condition) [[unlikely]] {
    throw E(concat(args...));
  }
}

}  // namespace vesal
