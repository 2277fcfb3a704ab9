// Storage types, checked sizes, devices, random numbers, the thread pool.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "base/data.hpp"
#include "base/determinism.hpp"
#include "base/device.hpp"
#include "base/dtype.hpp"
#include "base/parallel.hpp"
#include "base/philox.hpp"
#include "base/size.hpp"

namespace vesal {
namespace {

TEST(DType, NamesAndSizesRoundTrip) {
  for (const DType dtype :
       {DType::f32, DType::bf16, DType::f16, DType::i32, DType::i64, DType::u8, DType::boolean}) {
    EXPECT_EQ(parse_dtype(name_of(dtype)), dtype);
  }
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::i64), 8u);
  EXPECT_THROW(parse_dtype("f64"), UsageError);
}

// The nearest representable value, found by looking at both neighbours in double.
template <class Half>
void expect_nearest(float value) {
  const Half half(value);
  const double error = std::abs(static_cast<double>(static_cast<float>(half)) - value);
  for (const int step : {-1, 1}) {
    Half neighbour;
    neighbour.bits = static_cast<uint16_t>(half.bits + step);
    const float other = static_cast<float>(neighbour);
    if (std::isfinite(other)) {
      const double other_error = std::abs(static_cast<double>(other) - value);
      EXPECT_TRUE(error < other_error || (error == other_error && half.bits % 2 == 0)) << value;
    }
  }
}

TEST(DType, Bf16AndF16RoundToNearestEven) {
  RandomStream random(7, 0, 0);
  for (int i = 0; i < 20000; ++i) {
    const float value = std::ldexp(random.normal(), static_cast<int>(random.below(24)) - 18);
    expect_nearest<bf16>(value);
    expect_nearest<f16>(value);
  }
  EXPECT_EQ(f16(1.0f + 0x1p-11f).bits, f16(1.0f).bits);  // a tie goes to the even mantissa
  EXPECT_EQ(f16(1.0f + 3 * 0x1p-11f).bits, f16(1.0f + 0x1p-9f).bits);
  EXPECT_EQ(f16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(f16(0x1p-25f).bits, 0);
  EXPECT_EQ(f16(0x1.8p-25f).bits, 1);
  EXPECT_TRUE(std::isnan(static_cast<float>(f16(std::nanf("")))));
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::nanf("")))));
  EXPECT_EQ(static_cast<float>(f16(-INFINITY)), -INFINITY);
}

TEST(DType, EveryF16SurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    f16 half;
    half.bits = static_cast<uint16_t>(bits);
    const float value = static_cast<float>(half);
    if (!std::isnan(value)) {
      EXPECT_EQ(f16(value).bits, bits);
    }
  }
}

TEST(Data, KnowsItsType) {
  float x = 0;
  const ConstData data = &x;
  EXPECT_EQ(data.as<float>("test: x"), &x);
  EXPECT_THROW(data.as<bf16>("test: x"), ShapeError);
  EXPECT_EQ(ConstData(nullptr).as<bf16>("test: x"), nullptr);
}

TEST(Size, ProductsAreChecked) {
  EXPECT_EQ(checked_mul(int64_t{1} << 31, int64_t{1} << 31), int64_t{1} << 62);
  EXPECT_THROW(checked_mul(int64_t{1} << 32, int64_t{1} << 31), ShapeError);
  EXPECT_THROW(checked_mul(-1, 2), ShapeError);
  EXPECT_EQ(element_count(std::vector<int64_t>{}), 1);
  EXPECT_EQ(element_count(std::vector<int64_t>{3, 0, 5}), 0);
  EXPECT_EQ(ceil_div(9, 4), 3);
  EXPECT_EQ(ceil_div(8, 4), 2);
}

TEST(Device, NamesRoundTrip) {
  for (const char* name : {"cpu", "simt", "cuda", "cuda:3"}) {
    EXPECT_EQ(to_string(parse_device(name)), name);
  }
  EXPECT_EQ(parse_device("cuda:0"), (Device{DeviceType::cuda, 0}));
  for (const char* name : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x"}) {
    EXPECT_THROW(parse_device(name), UsageError) << name;
  }
}

// Known answers of Philox4x32-10 from the Random123 distribution's kat_vectors.
TEST(Philox, KnownAnswers) {
  const Philox4 zeros = philox(0, 0, 0);
  EXPECT_EQ(zeros.x, 0x6627e8d5u);
  EXPECT_EQ(zeros.y, 0xe169c58du);
  EXPECT_EQ(zeros.z, 0xbc57ac4cu);
  EXPECT_EQ(zeros.w, 0x9b00dbd8u);
  const Philox4 ones = philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0});
  EXPECT_EQ(ones.x, 0x408f276du);
  EXPECT_EQ(ones.y, 0x41c83b0eu);
  EXPECT_EQ(ones.z, 0xa20bc7c6u);
  EXPECT_EQ(ones.w, 0x6d5451fdu);
}

TEST(RandomStream, MomentsRangesAndIndependence) {
  RandomStream random(1, 2, 3);
  double sum = 0, squares = 0;
  constexpr int count = 200000;
  for (int i = 0; i < count; ++i) {
    const double value = random.normal();
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / count, 0.0, 4 / std::sqrt(count));  // four standard errors
  EXPECT_NEAR(squares / count, 1.0, 4 * std::sqrt(2.0 / count));
  std::vector<int> seen(7, 0);
  for (int i = 0; i < 70000; ++i) {
    ++seen[static_cast<size_t>(random.below(7))];
    const float u = random.uniform();
    EXPECT_GT(u, 0.0f);
    EXPECT_LE(u, 1.0f);
    const float v = random.uniform(2.0f, 3.0f);
    EXPECT_GE(v, 2.0f);
    EXPECT_LT(v, 3.0f);
  }
  for (const int n : seen) {
    EXPECT_NEAR(n, 10000, 4 * std::sqrt(10000.0));
  }
  std::set<uint32_t> first;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (uint64_t step = 0; step < 4; ++step) {
      for (uint64_t op = 0; op < 4; ++op) {
        first.insert(RandomStream(seed, step, op).next_bits());
      }
    }
  }
  EXPECT_EQ(first.size(), 64u);
  EXPECT_EQ(RandomStream(5, 6, 7).next_bits(), RandomStream(5, 6, 7).next_bits());
}

TEST(Parallel, CoversEveryItemOnceInTheSameRanges) {
  const int before = thread_count();
  for (const int threads : {1, 2, 3, 7}) {
    set_thread_count(threads);
    for (const int64_t n : {0, 1, 2, 6, 7, 8, 1000}) {
      std::vector<int> hits(static_cast<size_t>(n), 0);
      parallel_for(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          ++hits[static_cast<size_t>(i)];
        }
      });
      EXPECT_EQ(std::accumulate(hits.begin(), hits.end(), int64_t{0}), n);
      for (const int hit : hits) {
        EXPECT_EQ(hit, 1);
      }
    }
  }
  set_thread_count(4);
  int pieces = 0;
  parallel_for(10, 100, [&](int64_t, int64_t) { ++pieces; });  // too small to share: one call, on this thread
  EXPECT_EQ(pieces, 1);
  EXPECT_THROW(set_thread_count(0), UsageError);
  set_thread_count(before);
  EXPECT_GE(available_threads(), 1);
}

TEST(Parallel, AnExceptionArrivesAtTheCaller) {
  const int before = thread_count();
  for (const int threads : {1, 3}) {
    set_thread_count(threads);
    for (const int64_t bad : {0, 5, 8}) {
      std::vector<int> hits(9, 0);
      EXPECT_THROW(parallel_for(9, 1,
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t i = begin; i < end; ++i) {
                                    check<UsageError>(i != bad, "item ", i);
                                    ++hits[static_cast<size_t>(i)];
                                  }
                                }),
                   UsageError);
      EXPECT_EQ(hits[static_cast<size_t>(bad)], 0);
      EXPECT_EQ(hits[static_cast<size_t>(bad == 0 ? 8 : 0)], threads == 1 && bad == 0 ? 0 : 1)
          << "the other ranges are done";
    }
  }
  set_thread_count(before);
}

TEST(Determinism, IsOnUntilSwitchedOff) {
  EXPECT_TRUE(deterministic());
  set_deterministic(false);
  EXPECT_FALSE(deterministic());
  set_deterministic(true);
}

}  // namespace
}  // namespace vesal
