// Reductions on every device against their reference: exact on integers, close on normal numbers, bit-equal
// repeats.
#include "kernels/reduce/reduce.hpp"

#include <cmath>
#include <limits>

#include "kernels/reduce/reduce_cases.hpp"
#include "kernels/reduce/reduce_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"

namespace vesal::kernels::testing {
namespace {

using Reduction = void (*)(Context&, int64_t, ConstData, Data, Workspace);

float reduce(Reduction reduction, Device device, const std::vector<float>& x) {
  Context context(device);
  const auto count = static_cast<int64_t>(x.size());
  const DeviceArray<float> in(device, x);
  const DeviceArray<float> out(device, 1);
  const DeviceWorkspace workspace(device, reduce_workspace_bytes(context, count));
  reduction(context, count, in.get(), out.get(), workspace);
  return out.host()[0];
}

void check_reductions(Device device, const ReduceCase& c) {
  const std::vector<float> x = random_integers(c.n * c.spatial * c.channels, 7);
  const std::vector<double> wide = widen(x);
  const auto count = static_cast<int64_t>(x.size());
  const std::string what = to_string(device) + " " + c.name;
  EXPECT_EQ(reduce(sum, device, x), reference::sum<double>(count, wide.data())) << what;
  EXPECT_EQ(reduce(sum_squares, device, x), reference::sum_squares<double>(count, wide.data())) << what;
  EXPECT_EQ(reduce(max_abs, device, x), reference::max_abs<double>(count, wide.data())) << what;
  expect_same_bits(what, device, [&] {
    const std::vector<float> normal = random_normal(count, 8);
    return std::vector<float>{reduce(sum, device, normal), reduce(sum_squares, device, normal)};
  });
}

TEST(Reduce, ExactOnIntegers) {
  for (const Device device : test_devices()) {
    for (const ReduceCase& c : kReduceCases) {
      check_reductions(device, c);
    }
  }
}

TEST(Reduce, RoundingStaysSmall) {
  // Partial sums are short, so that the error is a few roundings of the sum of magnitudes, far below a
  // running sum's.
  for (const Device device : test_devices()) {
    const std::vector<float> x = random_normal(100003, 9);
    double total = 0;
    double magnitudes = 0;
    double squares = 0;
    for (const float value : x) {
      total += value;
      magnitudes += std::abs(value);
      squares += static_cast<double>(value) * value;
    }
    EXPECT_LE(std::abs(reduce(sum, device, x) - total), 4 * 0x1p-24 * magnitudes) << to_string(device);
    EXPECT_LE(std::abs(reduce(sum_squares, device, x) - squares), 4 * 0x1p-24 * squares) << to_string(device);
  }
}

TEST(Reduce, SpecialValues) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Device device : test_devices()) {
    EXPECT_EQ(reduce(sum, device, {}), 0.0f);
    EXPECT_EQ(reduce(sum_squares, device, {}), 0.0f);
    EXPECT_EQ(reduce(max_abs, device, {}), 0.0f);
    std::vector<float> x(700, 1.0f);
    x[650] = -infinity;
    EXPECT_EQ(reduce(max_abs, device, x), infinity);
    x[300] = nan;
    EXPECT_TRUE(std::isnan(reduce(max_abs, device, x)));
    x[300] = -nan;
    EXPECT_TRUE(std::isnan(reduce(max_abs, device, x)));
    EXPECT_TRUE(std::isnan(reduce(sum, device, x)));
  }
}

void check_channel_sums(Device device, const ReduceCase& c) {
  const int64_t rows = c.n * c.spatial;
  const std::string what = to_string(device) + " " + c.name;
  const std::vector<float> x = random_integers(rows * c.channels, 3);
  const std::vector<float> dout = random_integers(rows, 4);
  std::vector<double> exact(static_cast<size_t>(rows));
  std::vector<double> dx_exact(x.size());
  reference::channel_sum_forward<double>(rows, c.channels, widen(x).data(), exact.data());
  reference::channel_sum_backward<double>(rows, c.channels, widen(dout).data(), dx_exact.data());
  Context context(device);
  const DeviceArray<float> in(device, x), d(device, dout), out(device, rows), dx(device, rows * c.channels);
  channel_sum_forward(context, rows, c.channels, in.get(), out.get());
  channel_sum_backward(context, rows, c.channels, d.get(), dx.get());
  expect_equal(what + " forward", out.host(), exact);
  expect_equal(what + " backward", dx.host(), dx_exact);
  expect_same_bits(what, device, [&] {
    const DeviceArray<float> normal(device, random_normal(rows * c.channels, 5));
    const DeviceArray<float> sums(device, rows);
    channel_sum_forward(context, rows, c.channels, normal.get(), sums.get());
    return sums.host();
  });
}

TEST(ChannelSum, ForwardAndBackward) {
  for (const Device device : test_devices()) {
    for (const ReduceCase& c : kReduceCases) {
      check_channel_sums(device, c);
    }
  }
}

void check_sum_spatial(Device device, const ReduceCase& c) {
  const std::string what = to_string(device) + " " + c.name;
  Context context(device);
  const auto run = [&](const std::vector<float>& x, float factor, const std::vector<float>* start) {
    const DeviceArray<float> in(device, x);
    const DeviceArray<float> out(
        device, start ? *start : std::vector<float>(static_cast<size_t>(c.n * c.channels), NAN));
    const DeviceWorkspace workspace(device, sum_spatial_workspace_bytes(context, c.n, c.spatial, c.channels));
    sum_spatial(context, c.n, c.spatial, c.channels, factor, in.get(), out.get(),
                start ? GradMode::accumulate : GradMode::overwrite, workspace);
    return out.host();
  };
  const std::vector<float> x = random_integers(c.n * c.spatial * c.channels, 3);
  std::vector<double> exact(static_cast<size_t>(c.n * c.channels));
  reference::sum_spatial<double>(c.n, c.spatial, c.channels, 0.5, widen(x).data(), exact.data());
  expect_equal(what + " integers", run(x, 0.5f, nullptr), exact);
  const std::vector<float> start = random_integers(c.n * c.channels, 4);
  for (size_t i = 0; i < exact.size(); ++i) {
    exact[i] += start[i];
  }
  expect_equal(what + " accumulated", run(x, 0.5f, &start), exact);
  const float factor = 1.0f / static_cast<float>(std::max<int64_t>(c.spatial, 1));
  const std::vector<float> normal = random_normal(c.n * c.spatial * c.channels, 5);
  std::vector<float> naive(exact.size()), other(exact.size());
  reference::sum_spatial<double>(c.n, c.spatial, c.channels, factor, widen(normal).data(), exact.data());
  reference::sum_spatial<float>(c.n, c.spatial, c.channels, factor, normal.data(), naive.data());
  // A few sums: a single float32 evaluation may be exact by luck.
  RandomStream random(6, 0, 0);
  for (int trial = 0; trial < 4; ++trial) {
    reference::sum_spatial<float>(c.n, c.spatial, c.channels, factor, moved_by_one_ulp(normal, random).data(),
                                  other.data());
    keep_worse(naive, other, exact);
  }
  expect_close(what + " mean", run(normal, factor, nullptr), exact, naive);
  expect_same_bits(what, device, [&] { return run(normal, factor, nullptr); });
}

TEST(SumSpatial, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const ReduceCase& c : kReduceCases) {
      check_sum_spatial(device, c);
    }
  }
}

TEST(Reduce, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const ReduceCase c = random_reduce_case(random);
    for (const Device device : test_devices()) {
      check_reductions(device, c);
      check_channel_sums(device, c);
      check_sum_spatial(device, c);
    }
  });
}

// Sums of nothing are 0, and leave what they are added to as it was.
TEST(Reduce, NoRows) {
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceWorkspace workspace(device, sum_spatial_workspace_bytes(context, 2, 0, 3));
    const DeviceArray<float> x(device, 0), out(device, 6), kept(device, std::vector<float>(6, 2.0f));
    sum_spatial(context, 2, 0, 3, 1.0f, x.get(), out.get(), GradMode::overwrite, workspace);
    EXPECT_EQ(out.host(), std::vector<float>(6, 0.0f)) << to_string(device);
    sum_spatial(context, 2, 0, 3, 1.0f, x.get(), kept.get(), GradMode::accumulate, workspace);
    EXPECT_EQ(kept.host(), std::vector<float>(6, 2.0f)) << to_string(device);
    EXPECT_NO_THROW(channel_sum_forward(context, 0, 3, nullptr, nullptr));
  }
}

TEST(Reduce, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(4);
  EXPECT_THROW(sum(context, 4, x.data(), x.data(), {}), ShapeError);
  EXPECT_THROW(sum(context, -1, x.data(), x.data(), {x.data(), 16}), ShapeError);
  EXPECT_THROW(channel_sum_forward(context, 2, 0, x.data(), x.data()), ShapeError);
  EXPECT_THROW(sum_spatial(context, 1, 2, 2, 1.0f, nullptr, x.data(), GradMode::overwrite, {x.data(), 16}),
               ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
