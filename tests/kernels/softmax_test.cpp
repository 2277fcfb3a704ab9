// Softmax on every device against its reference, its gradient, and rows that overflow without the shift.
#include "kernels/softmax/softmax.hpp"

#include <cmath>
#include <limits>

#include "kernels/softmax/softmax_cases.hpp"
#include "kernels/softmax/softmax_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

// Forward, forward in place and backward of one case on a device, against the reference.
void check_softmax(Device device, const SoftmaxCase& c, const std::vector<float>& x,
                   const std::vector<float>& dy, const std::vector<double>& y_exact,
                   const std::vector<float>& y_naive) {
  const std::string what = to_string(device) + " " + c.name;
  const int64_t count = c.rows * c.channels;
  Context context(device);
  const DeviceArray<float> in(device, x), d(device, dy);
  const auto forward = [&] {
    const DeviceArray<float> y(device, count);
    softmax_forward(context, c.rows, c.channels, in.get(), y.get());
    return y.host();
  };
  const std::vector<float> y = forward();
  expect_close(what + " y", y, y_exact, y_naive);
  const DeviceArray<float> in_place(device, x);
  softmax_forward(context, c.rows, c.channels, in_place.get(), in_place.get());
  expect_equal(what + " in place", in_place.host(), y);
  std::vector<double> dx_exact(x.size());
  reference::softmax_backward<double>(c.rows, c.channels, widen(y).data(), widen(dy).data(), dx_exact.data());
  const DeviceArray<float> y_device(device, y);
  const auto backward = [&] {
    const DeviceArray<float> dx(device, count);
    softmax_backward(context, c.rows, c.channels, y_device.get(), d.get(), dx.get());
    return dx.host();
  };
  // A sum over the row of terms near 1 cancels: its rounding is that of one unit, also where dx is
  // tiny.
  const std::vector<float> dx = backward();
  double largest_dy = 0;
  for (const float value : dy) {
    largest_dy = std::max(largest_dy, std::abs(static_cast<double>(value)));
  }
  for (size_t i = 0; i < dx.size(); ++i) {
    EXPECT_LE(std::abs(dx[i] - dx_exact[i]), 8 * 0x1p-24 * largest_dy) << what << " dx " << i;
  }
  expect_same_bits(what, device, [&] {
    std::vector<float> all = forward();
    const std::vector<float> gradient = backward();
    all.insert(all.end(), gradient.begin(), gradient.end());
    return all;
  });
}

TEST(Softmax, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const SoftmaxCase& c : kSoftmaxCases) {
      for (const float scale : {1.0f, 60.0f}) {
        const std::vector<float> x = random_normal(c.rows * c.channels, 1, scale);
        std::vector<double> y_exact(x.size());
        std::vector<float> y_naive(x.size());
        reference::softmax_forward<double>(c.rows, c.channels, widen(x).data(), y_exact.data());
        reference::softmax_forward<float>(c.rows, c.channels, x.data(), y_naive.data());
        check_softmax(device, c, x, random_normal(c.rows * c.channels, 2), y_exact, y_naive);
      }
    }
  }
}

TEST(Softmax, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const SoftmaxCase c = random_softmax_case(random);
    const int64_t count = c.rows * c.channels;
    const auto seed = static_cast<uint64_t>(random.below(1 << 20));
    const std::vector<float> x = random_normal(count, seed, random.uniform(0.1f, 30.0f));
    std::vector<double> y_exact(x.size());
    std::vector<float> y_naive(x.size()), other(x.size());
    reference::softmax_forward<double>(c.rows, c.channels, widen(x).data(), y_exact.data());
    reference::softmax_forward<float>(c.rows, c.channels, x.data(), y_naive.data());
    for (int trial = 0; trial < 4; ++trial) {
      reference::softmax_forward<float>(c.rows, c.channels, moved_by_one_ulp(x, random).data(), other.data());
      keep_worse(y_naive, other, y_exact);
    }
    for (const Device device : test_devices()) {
      check_softmax(device, c, x, random_normal(count, seed + 1), y_exact, y_naive);
    }
  });
}

TEST(Softmax, ReferenceGradient) {
  const std::vector<double> x = widen(random_normal(12, 1));
  const std::vector<double> dy = widen(random_normal(12, 2));
  std::vector<double> y(12), dx(12);
  reference::softmax_forward<double>(3, 4, x.data(), y.data());
  reference::softmax_backward<double>(3, 4, y.data(), dy.data(), dx.data());
  expect_gradient("dx", x, dx, [&](const std::vector<double>& values) {
    std::vector<double> out(12);
    reference::softmax_forward<double>(3, 4, values.data(), out.data());
    double loss = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      loss += out[i] * dy[i];
    }
    return loss;
  });
}

TEST(Softmax, SpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Device device : test_devices()) {
    for (const int64_t channels : {3, 40}) {
      const auto row = static_cast<size_t>(channels);
      std::vector<float> x(3 * row, -infinity);  // row 0: -inf only; row 1: one finite; row 2: a NaN
      x[row] = 2.0f;
      std::fill(x.begin() + 2 * channels, x.end(), 1.0f);
      x[2 * row + 1] = NAN;
      Context context(device);
      const DeviceArray<float> in(device, x), y(device, 3 * channels);
      softmax_forward(context, 3, channels, in.get(), y.get());
      const std::vector<float> out = y.host();
      for (size_t c = 0; c < row; ++c) {
        EXPECT_TRUE(std::isnan(out[c])) << to_string(device);
        EXPECT_EQ(out[row + c], c == 0 ? 1.0f : 0.0f) << to_string(device);
        EXPECT_TRUE(std::isnan(out[2 * row + c])) << to_string(device);
      }
    }
  }
}

// Kernels that read four values at once must see where they cannot.
TEST(Softmax, RowsAlignedToFourBytesOnlyGiveTheSameBits) {
  for (const Device device : test_devices()) {
    for (const int64_t channels : {4, 64, 132}) {
      Context context(device);
      std::vector<float> x = random_normal(5 * channels, 3);
      const DeviceArray<float> in(device, x), y(device, 5 * channels);
      softmax_forward(context, 5, channels, in.get(), y.get());
      x.insert(x.begin(), 0.0f);
      const DeviceArray<float> moved(device, x);
      softmax_forward(context, 5, channels, moved.get() + 1, moved.get() + 1);
      std::vector<float> out = moved.host();
      out.erase(out.begin());
      expect_equal(to_string(device), out, y.host());
    }
  }
}

TEST(Softmax, Storage) {
  for (const SoftmaxCase& c : kSoftmaxCases) {
    const int64_t count = c.rows * c.channels;
    const std::vector<float> x = random_normal(count, 1, 3.0f), dy = random_normal(count, 2);
    std::vector<float> y(x.size());
    reference::softmax_forward<float>(c.rows, c.channels, x.data(), y.data());
    expect_rounded_float32(c.name, [&](Call& call) {
      softmax_forward(call.context(), c.rows, c.channels, call.in(x), call.out(count));
      const Data in_place = call.in_out(x);
      softmax_forward(call.context(), c.rows, c.channels, in_place, in_place);
      softmax_backward(call.context(), c.rows, c.channels, call.in(y), call.in(dy), call.out(count));
    });
  }
}

TEST(Softmax, MixedStorageIsOneLine) {
  for (const Device device : test_devices()) {
    Call call(device, DType::f16, DType::f16);
    const std::vector<float> values(4, 0.25f);
    EXPECT_EQ(shape_error([&] { softmax_forward(call.context(), 1, 4, call.in(values), call.out_float(4)); }),
              "softmax_forward: tensors are stored as f16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] {
                softmax_backward(call.context(), 1, 4, call.in(values), call.in_float(values), call.out(4));
              }),
              "softmax_backward: tensors are stored as f16 and f32, expected one type");
  }
}

TEST(Softmax, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(4);
  EXPECT_THROW(softmax_forward(context, 1, 0, x.data(), x.data()), ShapeError);
  EXPECT_THROW(softmax_backward(context, 1, 4, x.data(), nullptr, x.data()), ShapeError);
  EXPECT_NO_THROW(softmax_forward(context, 0, 4, nullptr, nullptr));
}

}  // namespace
}  // namespace vesal::kernels::testing
