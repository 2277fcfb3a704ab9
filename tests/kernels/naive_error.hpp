// For expect_close: how far a naive float32 evaluation may be off. A few large terms carry most of the error,
// and in a single evaluation they may happen to be nearly exact; so a test evaluates its reference several
// times, with the inputs moved within their last place, and lets each element keep its worst result.
#pragma once

#include <cmath>
#include <vector>

#include "base/philox.hpp"

namespace vesal::kernels::testing {

// Each number moved to a neighbouring float32, up, down, or not at all: the resolution of float32 inputs.
inline std::vector<float> moved_by_one_ulp(std::vector<float> values, RandomStream& random) {
  for (float& value : values) {
    const int64_t direction = random.below(3) - 1;
    value = direction == 0 ? value : std::nextafter(value, direction < 0 ? -INFINITY : INFINITY);
  }
  return values;
}

// Of two evaluations, element by element the one further from `exact`.
inline void keep_worse(std::vector<float>& kept, const std::vector<float>& other,
                       const std::vector<double>& exact) {
  for (size_t i = 0; i < exact.size(); ++i) {
    if (std::abs(static_cast<double>(other[i]) - exact[i]) >
        std::abs(static_cast<double>(kept[i]) - exact[i])) {
      kept[i] = other[i];
    }
  }
}

}  // namespace vesal::kernels::testing
