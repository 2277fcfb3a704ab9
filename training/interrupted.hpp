// What long work throws when the user asked it to stop before it was complete.
#pragma once

#include "base/error.hpp"

namespace vesal::training {

class InterruptedError : public Error {
 public:
  using Error::Error;
};

}  // namespace vesal::training
