// Views of storages: which may be read, and what is read.
#include "weights_tools/strided_read.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "tests/weights_tools/torch_fixture.hpp"

namespace vesal::weights {
namespace {

using StridedReadTest = FileTest;
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

std::string problem(const Shape& shape, const Shape& strides, int64_t offset, uint64_t elements = 24,
                    uint64_t bytes = 4) {
  return view_problem(shape, strides, offset, elements, bytes);
}

TEST_F(StridedReadTest, ViewsThatLieInTheirStorage) {
  EXPECT_EQ(problem({}, {}, 0), "");
  EXPECT_EQ(problem({}, {}, 23), "");
  EXPECT_EQ(problem({2, 3, 4}, {12, 4, 1}, 0), "");
  EXPECT_EQ(problem({4, 3, 2}, {1, 4, 12}, 0), "");
  EXPECT_EQ(problem({2, 2}, {12, 2}, 3), "");
  EXPECT_EQ(problem({0, 5}, {kMost, kMost}, 24), "");
  EXPECT_EQ(problem({1, 24}, {kMost, 1}, 0), "");
  EXPECT_EQ(problem({1000, 24}, {0, 1}, 0), "");
  EXPECT_EQ(problem({1000}, {0}, 23), "");
  EXPECT_EQ(problem({3}, {9}, 5), "");
}

TEST_F(StridedReadTest, ViewsThatDoNot) {
  const auto expect = [](const std::string& line, std::string_view part) {
    EXPECT_NE(line.find(part), std::string::npos) << line;
  };
  expect(problem({}, {}, 24), "reaches element 24, the storage holds 24");
  expect(problem({}, {}, 0, 0), "the storage holds 0");
  expect(problem({25}, {1}, 0), "reaches element 24");
  expect(problem({2, 3, 4}, {12, 4, 1}, 1), "reaches element 24");
  expect(problem({2}, {24}, 0), "reaches element 24");
  expect(problem({3}, {10}, 4), "reaches element 24");
  expect(problem({0}, {1}, 25), "starts at element 25");
  expect(problem({2}, {1}, -1), "no negative number");
  expect(problem({2}, {-1}, 5), "no negative number");
  expect(problem({-1}, {1}, 0), "no negative number");
  expect(problem({2, 2}, {1}, 0), "1 strides for rank 2");
  expect(problem({1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}, 0), "rank 9");
  expect(problem({kMost, 2}, {0, 1}, 0), "passes 2^63 bytes");
  expect(problem({kMost, kMost, kMost}, {0, 0, 0}, 0), "passes 2^63 bytes");
  expect(problem({1ll << 32, 1ll << 32}, {0, 0}, 0), "passes 2^63 bytes");
  expect(problem({2}, {kMost}, kMost), "past element 2^63");
  expect(problem({3, 3, 3}, {kMost, kMost, kMost}, 0), "past element 2^63");
  // 2^62 + 2^62 + 2^62 + 2^62 is 0 in 64 bits.
  expect(problem({2, 2, 2, 2}, {1ll << 62, 1ll << 62, 1ll << 62, 1ll << 62}, 0), "2^63");
  expect(problem({4, 4}, {1, 1}, 0), "overlap");
  expect(problem({4, 4}, {2, 3}, 0), "overlap");
  expect(problem({3, 4}, {3, 1}, 0), "overlap");
  expect(problem({1ll << 40}, {0}, 0), "expands to");
  expect(problem({(64 << 18) + 1}, {0}, 0), "expands to");
  EXPECT_EQ(problem({64 << 18}, {0}, 0), "");
}

// Every view against the obvious loop over indices.
TEST_F(StridedReadTest, RandomViewsAgainstTheObviousLoop) {
  std::string bytes(300'000, '\0');
  RandomStream random(3, 0, 0);
  for (char& byte : bytes) {
    byte = static_cast<char>(random.next_bits());
  }
  const FileSource file(write(bytes));
  const auto below = [&](int64_t limit) { return random.below(limit); };
  for (int round = 0; round < 400; ++round) {
    const uint64_t element = uint64_t{1} << below(5);
    const auto rank = static_cast<size_t>(below(5));
    // Axes from the innermost: each steps over what the ones before cover, by a little more than needed.
    Shape shape(rank), strides(rank);
    int64_t covered = 1;
    for (size_t i = 0; i < rank; ++i) {
      shape[i] = below(8) == 0 ? 0 : 1 + below(6);
      strides[i] = below(8) == 0 ? 0 : covered + below(3);
      covered += std::max<int64_t>(shape[i] - 1, 0) * strides[i];
    }
    for (size_t i = rank; i-- > 1;) {
      const auto j = static_cast<size_t>(below(static_cast<int64_t>(i) + 1));
      std::swap(shape[i], shape[j]);
      std::swap(strides[i], strides[j]);
    }
    const int64_t offset = below(100);
    const uint64_t start = static_cast<uint64_t>(below(100));
    const uint64_t elements = (bytes.size() - start) / element;
    ASSERT_EQ(view_problem(shape, strides, offset, elements, element), "");

    const auto count = static_cast<size_t>(element_count(shape));
    std::string expected;
    for (size_t i = 0; i < count; ++i) {
      size_t rest = i;
      uint64_t at = static_cast<uint64_t>(offset);
      for (size_t axis = rank; axis-- > 0;) {
        at += rest % static_cast<size_t>(shape[axis]) * static_cast<uint64_t>(strides[axis]);
        rest /= static_cast<size_t>(shape[axis]);
      }
      expected += bytes.substr(start + at * element, element);
    }
    std::string found(count * element, '?');
    read_strided(file, start + static_cast<uint64_t>(offset) * element, element, shape, strides,
                 std::as_writable_bytes(std::span(found)));
    ASSERT_EQ(found, expected) << "round " << round << ": " << to_string(shape) << " " << to_string(strides);
  }
}

// Runs longer than the window, and a transposed matrix that the window has to follow.
TEST_F(StridedReadTest, ViewsLargerThanTheWindow) {
  std::vector<uint32_t> values(3 * 400'000);
  std::iota(values.begin(), values.end(), 0u);
  const FileSource file(write({reinterpret_cast<const char*>(values.data()), values.size() * 4}));
  std::vector<uint32_t> runs(2 * 390'000);
  read_strided(file, 0, 4, {2, 390'000}, {800'000, 1}, std::as_writable_bytes(std::span(runs)));
  std::vector<uint32_t> turned(1200 * 1000);
  read_strided(file, 0, 4, {1200, 1000}, {1, 1200}, std::as_writable_bytes(std::span(turned)));
  size_t wrong = 0;
  for (uint32_t i = 0; i < 390'000; ++i) {
    wrong += runs[i] != i || runs[390'000 + i] != 800'000 + i;
  }
  for (uint32_t row = 0; row < 1200; ++row) {
    for (uint32_t column = 0; column < 1000; ++column) {
      wrong += turned[row * 1000 + column] != column * 1200 + row;
    }
  }
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace vesal::weights
