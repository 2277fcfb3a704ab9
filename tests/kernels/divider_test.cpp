// Division by multiplication and shift, against division.
#include "kernels/context/divider.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "base/philox.hpp"

namespace vesal::kernels {
namespace {

constexpr int kMost = std::numeric_limits<int>::max();

// Where a quotient changes, it changes at multiples of the divisor.
void expect_quotients(int divisor, RandomStream& random) {
  const Divider32 by(divisor);
  const int64_t last = kMost / divisor;
  std::vector<int64_t> quotients = {0, 1, 2, last / 2, last - 1, last};
  for (int k = 0; k < 20; ++k) {
    quotients.push_back(random.below(last + 1));
  }
  for (const int64_t quotient : quotients) {
    for (const int64_t step : {-1, 0, 1}) {
      const int64_t n = std::clamp<int64_t>(quotient * divisor + step, 0, kMost);
      ASSERT_EQ(by.divide(static_cast<int>(n)), n / divisor) << n << " / " << divisor;
    }
  }
  ASSERT_EQ(by.divide(kMost), kMost / divisor) << divisor;
}

TEST(Divider, IsExactForSmallNumbers) {
  for (int divisor = 1; divisor <= 300; ++divisor) {
    const Divider32 by(divisor);
    for (int n = 0; n <= 3000; ++n) {
      ASSERT_EQ(by.divide(n), n / divisor) << n << " / " << divisor;
    }
  }
}

TEST(Divider, IsExactWhereQuotientsChange) {
  RandomStream random(1, 2, 3);
  for (int divisor = 1; divisor <= 5000; ++divisor) {
    expect_quotients(divisor, random);
  }
  for (int power = 1; power < 31; ++power) {
    for (const int step : {-1, 0, 1}) {
      expect_quotients((1 << power) + step, random);
    }
  }
  for (int k = 0; k < 20000; ++k) {
    expect_quotients(1 + static_cast<int>(random.below(kMost)), random);
  }
  expect_quotients(kMost, random);
  expect_quotients(kMost - 1, random);
}

TEST(Divider, IsOneByDefault) {
  EXPECT_EQ(Divider32().divide(kMost), kMost);
  EXPECT_EQ(Divider64().divide(int64_t{1} << 40), int64_t{1} << 40);
  EXPECT_EQ(Divider<int64_t>(3).divide((int64_t{1} << 40) + 1), ((int64_t{1} << 40) + 1) / 3);
}

}  // namespace
}  // namespace vesal::kernels
