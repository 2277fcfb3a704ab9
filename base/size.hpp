// Sizes whose products are checked: a tensor may pass 2^31 elements, never 2^63 bytes.
#pragma once

#include <cstdint>
#include <span>

#include "base/error.hpp"

namespace vesal {

// a * b for non-negative sizes; throws ShapeError on overflow or a negative factor.
inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t product = 0;
  check<ShapeError>(a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product), "size ", a, " x ", b,
                    " is negative or passes 2^63");
  return product;
}

// The number of elements of a shape; the empty shape is a scalar with one.
inline int64_t element_count(std::span<const int64_t> shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    count = checked_mul(count, extent);
  }
  return count;
}

// Smallest multiple-of-`step` count of pieces that covers n.
constexpr int64_t ceil_div(int64_t n, int64_t step) { return (n + step - 1) / step; }

}  // namespace vesal
