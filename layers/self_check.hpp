// A quick answer to "does this build compute rightly on this machine?": every op family once, on a device,
// forward and backward, on a small odd-sized case, against loops in double precision. The tests do this
// thoroughly; this is what `vesal doctor` can afford on a user's machine, where processor, driver and
// libraries may be others than the tests saw.
#pragma once

#include <string>
#include <vector>

#include "runtime/device_context.hpp"

namespace vesal::layers {

struct SelfCheckResult {
  std::string family;  // "conv3d"
  double error = 0;    // largest deviation, relative to the largest value of the tensor it was found in
  double tolerance = 0;
  std::string failure;  // an exception's text; empty without one
  double seconds = 0;

  // An error that is NaN fails.
  bool passed() const { return failure.empty() && error <= tolerance; }
};

// Runs all checks; never throws for a check that fails.
std::vector<SelfCheckResult> self_check(DeviceContext& context);

}  // namespace vesal::layers
