// Division by a number that the host knows before the launch, for host and device: a multiplication and a
// shift where hardware has no integer division and spends some twenty instructions on one.
#pragma once

#include <bit>
#include <cstdint>

#include "base/host_device.hpp"

namespace vesal::kernels {

// n / divisor for 0 <= n < 2^31 and 1 <= divisor < 2^31. With 2^s the first power of two that is not below
// the divisor and m = 2^(31 + s) / divisor rounded up, m < 2^32, and n * m / 2^(31 + s) is above n / divisor
// by n / 2^(31 + s) * (divisor - 1) / divisor at most, which is less than 1 / divisor: the whole part is that
// of n / divisor.
struct Divider32 {
  uint32_t factor = 0x80000000u;
  int shift = 0;

  Divider32() = default;
  explicit Divider32(int divisor) : factor(0), shift(std::bit_width(static_cast<uint32_t>(divisor) - 1)) {
    const auto d = static_cast<uint64_t>(divisor);
    factor = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + d - 1) / d);
  }

  VESAL_HOST_DEVICE int divide(int n) const {
    const uint64_t doubled = 2 * static_cast<uint32_t>(n);
    return static_cast<int>(static_cast<uint32_t>((doubled * factor) >> 32) >> shift);
  }
};

// The same for numbers that need 64 bits, by a division.
struct Divider64 {
  int64_t divisor = 1;

  Divider64() = default;
  explicit Divider64(int64_t by) : divisor(by) {}

  VESAL_HOST_DEVICE int64_t divide(int64_t n) const { return n / divisor; }
};

template <class Index>
struct DividerFor;
template <>
struct DividerFor<int> {
  using type = Divider32;
};
template <>
struct DividerFor<int64_t> {
  using type = Divider64;
};
// For whole numbers of type int or int64_t.
template <class Index>
using Divider = typename DividerFor<Index>::type;

}  // namespace vesal::kernels
