// The line of the ShapeError that a call throws, for tests of what it says.
#pragma once

#include <string>

#include "base/error.hpp"

namespace vesal::kernels::testing {

template <class Run>
std::string shape_error(Run&& run) {
  try {
    run();
  } catch (const ShapeError& error) {
    return error.what();
  }
  return "no ShapeError";
}

}  // namespace vesal::kernels::testing
