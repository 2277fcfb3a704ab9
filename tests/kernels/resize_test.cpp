// Resizing against its references, on every device, and the arithmetic of its axes by itself.
#include "kernels/resize/resize.hpp"

#include <limits>
#include <numeric>

#include "kernels/resize/resize_axis.hpp"
#include "kernels/resize/resize_cases.hpp"
#include "kernels/resize/resize_ref.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::testing {
namespace {

int64_t input_count(const ResizeParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const ResizeParams& p) { return p.n * p.out_d * p.out_h * p.out_w * p.c; }

std::string on(Device device, const ResizeCase& c, Interpolation interpolation) {
  return concat(c.name, interpolation == Interpolation::nearest ? ", nearest" : ", trilinear", ", device ",
                static_cast<int>(device.type));
}

// Every pair of extents up to 40 and some large ones: taps as the formula says, and readers() the exact
// inverse.
TEST(ResizeAxis, TapsAndReadersAgree) {
  std::vector<std::pair<int, int>> extents;
  for (int in = 1; in <= 40; ++in) {
    for (int out = 1; out <= 40; ++out) {
      extents.emplace_back(in, out);
    }
  }
  for (const auto& pair : {std::pair{32767, 7}, {7, 32767}, {1, 32767}, {32767, 1}, {300, 299}}) {
    extents.push_back(pair);
  }
  for (const auto& [in, out] : extents) {
    for (const Interpolation interpolation : {Interpolation::trilinear, Interpolation::nearest}) {
      const ResizeAxis axis{in, out, interpolation == Interpolation::nearest};
      std::vector<int> read(static_cast<size_t>(in));  // how many outputs read an input with a weight
      for (int o = 0; o < out; ++o) {
        const ResizeAxis::Taps t = axis.taps(o);
        ASSERT_TRUE(0 <= t.first && t.first <= t.second && t.second < in) << in << " " << out << " " << o;
        ASSERT_TRUE(t.fraction >= 0.0f && t.fraction < 1.0f);
        ASSERT_EQ(t.first == t.second, t.fraction == 0.0f);
        const double source = interpolation == Interpolation::nearest
                                  ? static_cast<double>(static_cast<int64_t>(o) * in / out)
                                  : std::clamp((o + 0.5) * in / out - 0.5, 0.0, in - 1.0);
        ASSERT_NEAR(t.first + static_cast<double>(t.fraction), source, 1e-7 * in)
            << in << " " << out << " " << o;
        ++read[static_cast<size_t>(t.first)];
        if (t.second != t.first) {
          ++read[static_cast<size_t>(t.second)];
        }
      }
      for (int i = 0; i < in; ++i) {
        const ResizeAxis::Range range = axis.readers(i);
        ASSERT_TRUE(0 <= range.begin && range.end <= out) << in << " " << out << " " << i;
        int weighted = 0;
        for (int o = range.begin; o < range.end; ++o) {
          weighted += axis.weight(o, i) > 0.0f ? 1 : 0;
        }
        ASSERT_EQ(weighted, read[static_cast<size_t>(i)]) << in << " " << out << " " << i;
        ASSERT_EQ(weighted, std::max(0, range.end - range.begin)) << in << " " << out << " " << i;
      }
    }
  }
}

TEST(Resize, MatchesReference) {
  for (const ResizeCase& c : kResizeCases) {
    for (const Interpolation interpolation : {Interpolation::trilinear, Interpolation::nearest}) {
      ResizeParams p = c.params;
      p.interpolation = interpolation;
      const bool exact_weights = c.dyadic || interpolation == Interpolation::nearest;
      for (const bool integers : {false, true}) {
        if (integers && !exact_weights) {
          continue;
        }
        const std::vector<float> x =
            integers ? random_integers(input_count(p), 1) : random_normal(input_count(p), 2);
        const std::vector<float> dy =
            integers ? random_integers(output_count(p), 3) : random_normal(output_count(p), 4);
        const std::vector<double> wide_x = widen(x), wide_dy = widen(dy);
        std::vector<double> exact_y(dy.size()), exact_dx(x.size());
        std::vector<float> naive_y(dy.size()), naive_dx(x.size());
        reference::resize_forward(p, wide_x.data(), exact_y.data());
        reference::resize_forward(p, x.data(), naive_y.data());
        reference::resize_backward(p, wide_dy.data(), exact_dx.data());
        reference::resize_backward(p, dy.data(), naive_dx.data());
        for (const Device device : test_devices()) {
          const std::string what = on(device, c, interpolation);
          Context context(device);
          const DeviceArray<float> in(device, x), gradient(device, dy);
          expect_same_bits(what, device, [&] {
            const DeviceArray<float> y(device, output_count(p)), dx(device, input_count(p));
            resize_forward(context, p, in.get(), y.get());
            resize_backward(context, p, gradient.get(), dx.get());
            std::vector<float> all = y.host();
            const std::vector<float> second = dx.host();
            if (integers) {
              expect_equal("y, " + what, all, exact_y);
              expect_equal("dx, " + what, second, exact_dx);
            } else {
              expect_close("y, " + what, all, exact_y, naive_y);
              expect_close("dx, " + what, second, exact_dx, naive_dx);
            }
            all.insert(all.end(), second.begin(), second.end());
            return all;
          });
        }
      }
    }
  }
}

// Hand-checked values: 1D, from [0, 4] to 4 and from 4 to 2.
TEST(Resize, KnownValues) {
  ResizeParams grow;
  grow.w = 2;
  grow.out_w = 4;
  ResizeParams shrink;
  shrink.w = 4;
  shrink.out_w = 2;
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> x(device, std::vector<float>{0, 4}), y(device, 4);
    resize_forward(context, grow, x.get(), y.get());
    EXPECT_EQ(y.host(), (std::vector<float>{0, 1, 3, 4}));
    const DeviceArray<float> long_x(device, std::vector<float>{1, 2, 5, 8}), short_y(device, 2);
    resize_forward(context, shrink, long_x.get(), short_y.get());
    EXPECT_EQ(short_y.host(), (std::vector<float>{1.5f, 6.5f}));
    shrink.interpolation = Interpolation::nearest;
    resize_forward(context, shrink, long_x.get(), short_y.get());
    EXPECT_EQ(short_y.host(), (std::vector<float>{1, 5}));
    shrink.interpolation = Interpolation::trilinear;
  }
}

// A voxel with weight zero leaves no trace: infinity and NaN stay where they are read.
TEST(Resize, UnreadVoxelsLeaveNoTrace) {
  ResizeParams p{1, 3, 3, 9, 1, 1, 3, 20};  // by three: each output is the middle voxel of its block
  std::vector<float> x = random_normal(input_count(p), 5);
  std::vector<float> expected;
  for (int64_t w = 0; w < 3; ++w) {
    const int64_t middle = ((1 * 3 + 1) * 9 + 3 * w + 1) * p.c;
    expected.insert(expected.end(), x.begin() + middle, x.begin() + middle + p.c);
  }
  for (int64_t v = 0; v < 81; ++v) {
    if (v / 27 != 1 || v / 9 % 3 != 1 || v % 3 != 1) {
      std::fill_n(
          x.begin() + v * p.c, p.c,
          v % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity());
    }
  }
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> in(device, x), y(device, output_count(p));
    resize_forward(context, p, in.get(), y.get());
    expect_equal(on(device, {"NaN", p, false}, p.interpolation), y.host(), expected);
  }
}

TEST(Resize, GradientIsNumeric) {
  for (const Interpolation interpolation : {Interpolation::trilinear, Interpolation::nearest}) {
    const ResizeParams p{2, 2, 3, 4, 5, 2, 7, 2, interpolation};
    const std::vector<double> x = widen(random_normal(input_count(p), 6)),
                              dy = widen(random_normal(output_count(p), 7));
    std::vector<double> dx(x.size());
    reference::resize_backward(p, dy.data(), dx.data());
    expect_gradient("x", x, dx, [&](const std::vector<double>& at) {
      std::vector<double> y(dy.size());
      reference::resize_forward(p, at.data(), y.data());
      return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
    });
  }
}

TEST(Resize, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(8), y(64);
  ResizeParams p{1, 2, 2, 2, 4, 4, 4, 1};
  EXPECT_NO_THROW(resize_forward(context, p, x.data(), y.data()));
  EXPECT_THROW(resize_forward(context, p, nullptr, y.data()), ShapeError);
  EXPECT_THROW(resize_backward(context, p, y.data(), Data(x.data(), DType::f16)), ShapeError);
  p.out_w = 0;
  EXPECT_THROW(resize_forward(context, p, x.data(), y.data()), ShapeError);
  p.out_w = 32768;
  EXPECT_THROW(resize_backward(context, p, y.data(), x.data()), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
