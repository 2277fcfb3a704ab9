// Pooling against its references, on every device.
#include "kernels/pooling/pooling.hpp"

#include <limits>
#include <numeric>

#include "kernels/pooling/pooling_cases.hpp"
#include "kernels/pooling/pooling_ref.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::testing {
namespace {

int64_t input_count(const PoolParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const PoolParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w() * p.c; }

std::string on(Device device, const std::string& name) {
  return concat(name, ", device ", static_cast<int>(device.type));
}

// PyTorch's rule, as in its documentation: floor or ceil of (extent - kernel) / stride + 1, where a window
// that would begin outside the volume is dropped.
TEST(PoolParams, CountsWindowsAsPyTorchDoes) {
  for (int kernel = 1; kernel <= 5; ++kernel) {
    for (int stride = 1; stride <= 6; ++stride) {
      for (int64_t extent = 1; extent <= 20; ++extent) {
        PoolParams p;
        p.kernel = {kernel, kernel, kernel};
        p.stride = {stride, stride, stride};
        int64_t full = 0, begun = 0;
        for (int64_t first = 0; first < extent; first += stride) {
          full += first + kernel <= extent ? 1 : 0;
          // A window belongs if the one before it left voxels over.
          begun += first == 0 || first - stride + kernel < extent ? 1 : 0;
        }
        EXPECT_EQ(p.out(extent, 0), full) << extent << " " << kernel << " " << stride;
        p.ceil_mode = true;
        EXPECT_EQ(p.out(extent, 0), begun) << extent << " " << kernel << " " << stride;
      }
    }
  }
}

struct MaxResult {
  std::vector<float> y;
  std::vector<uint8_t> index;
};

MaxResult max_forward_on(Device device, const PoolParams& p, const std::vector<float>& x) {
  Context context(device);
  const DeviceArray<float> in(device, x), y(device, output_count(p));
  const DeviceArray<uint8_t> index(device, output_count(p));
  max_pool3d_forward(context, p, in.get(), y.get(), index.get());
  const DeviceArray<float> without(device, output_count(p));
  max_pool3d_forward(context, p, in.get(), without.get(), nullptr);
  expect_equal("maximum without index", without.host(), y.host());
  return {y.host(), index.host()};
}

TEST(MaxPool, ForwardIsExact) {
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    ASSERT_GT(output_count(p), 0) << c.name;
    // Integers from a small range: most windows have several equal maxima.
    for (const std::vector<float>& x :
         {random_normal(input_count(p), 1), random_integers(input_count(p), 2, -1, 1)}) {
      std::vector<float> y(static_cast<size_t>(output_count(p)));
      std::vector<uint8_t> index(y.size());
      reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
      for (const Device device : test_devices()) {
        SCOPED_TRACE(on(device, c.name));
        const MaxResult actual = max_forward_on(device, p, x);
        expect_equal("maximum", actual.y, y);
        EXPECT_EQ(actual.index, index);
      }
    }
  }
}

TEST(MaxPool, TheFirstNanWins) {
  for (const PoolCase& c : {kPoolCases[1], kPoolCases[8], kPoolCases[13]}) {
    const PoolParams& p = c.params;
    std::vector<float> x = random_normal(input_count(p), 3);
    for (size_t i = 0; i < x.size(); i += 5) {
      x[i] = std::numeric_limits<float>::quiet_NaN();
    }
    for (size_t i = 1; i < x.size(); i += 5) {
      x[i] = -std::numeric_limits<float>::infinity();
    }
    std::vector<float> y(static_cast<size_t>(output_count(p)));
    std::vector<uint8_t> index(y.size());
    reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
    for (const Device device : test_devices()) {
      SCOPED_TRACE(on(device, c.name));
      const MaxResult actual = max_forward_on(device, p, x);
      EXPECT_EQ(actual.index, index);
      for (size_t i = 0; i < y.size(); ++i) {
        EXPECT_TRUE(actual.y[i] == y[i] || (std::isnan(actual.y[i]) && std::isnan(y[i]))) << i;
      }
    }
  }
}

TEST(MaxPool, AllMinusInfinityHasAWinner) {
  const PoolParams p{1, 2, 2, 2, 20, {2, 2, 2}, {2, 2, 2}, false};
  const float low = -std::numeric_limits<float>::infinity();
  for (const Device device : test_devices()) {
    const MaxResult actual = max_forward_on(device, p, std::vector<float>(160, low));
    EXPECT_EQ(actual.y, std::vector<float>(20, low));
    EXPECT_EQ(actual.index, std::vector<uint8_t>(20, 0));
  }
}

TEST(MaxPool, BackwardMatchesReference) {
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    const std::vector<float> x = random_normal(input_count(p), 4);
    std::vector<float> y(static_cast<size_t>(output_count(p)));
    std::vector<uint8_t> index(y.size());
    reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
    for (const bool integers : {true, false}) {
      const std::vector<float> dy =
          integers ? random_integers(output_count(p), 5) : random_normal(output_count(p), 6);
      std::vector<double> exact(x.size());
      std::vector<float> naive(x.size());
      const std::vector<double> wide = widen(dy);
      reference::max_pool3d_backward(p, wide.data(), index.data(), exact.data());
      reference::max_pool3d_backward(p, dy.data(), index.data(), naive.data());
      for (const Device device : test_devices()) {
        Context context(device);
        const DeviceArray<float> gradient(device, dy);
        const DeviceArray<uint8_t> winners(device, index);
        expect_same_bits(on(device, c.name), device, [&] {
          const DeviceArray<float> dx(device, input_count(p));
          max_pool3d_backward(context, p, gradient.get(), winners.get(), dx.get());
          const std::vector<float> actual = dx.host();
          if (integers) {
            expect_equal("dx, " + on(device, c.name), actual, exact);
          } else {
            expect_close("dx, " + on(device, c.name), actual, exact, naive);
          }
          return actual;
        });
      }
    }
  }
}

TEST(AvgPool, MatchesReference) {
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    const std::vector<float> x = random_normal(input_count(p), 7), dy = random_normal(output_count(p), 8);
    const std::vector<double> wide_x = widen(x), wide_dy = widen(dy);
    std::vector<double> exact_y(dy.size()), exact_dx(x.size());
    std::vector<float> naive_y(dy.size()), naive_dx(x.size());
    reference::avg_pool3d_forward(p, wide_x.data(), exact_y.data());
    reference::avg_pool3d_forward(p, x.data(), naive_y.data());
    reference::avg_pool3d_backward(p, wide_dy.data(), exact_dx.data());
    reference::avg_pool3d_backward(p, dy.data(), naive_dx.data());
    for (const Device device : test_devices()) {
      const std::string what = on(device, c.name);
      Context context(device);
      const DeviceArray<float> in(device, x), gradient(device, dy);
      expect_same_bits(what, device, [&] {
        const DeviceArray<float> y(device, output_count(p)), dx(device, input_count(p));
        avg_pool3d_forward(context, p, in.get(), y.get());
        avg_pool3d_backward(context, p, gradient.get(), dx.get());
        std::vector<float> all = y.host();
        expect_close("y, " + what, all, exact_y, naive_y);
        const std::vector<float> second = dx.host();
        expect_close("dx, " + what, second, exact_dx, naive_dx);
        all.insert(all.end(), second.begin(), second.end());
        return all;
      });
    }
  }
}

// Windows of 2, 4 or 8 voxels divide integers without rounding.
TEST(AvgPool, IsExactForIntegersInWindowsOfEight) {
  const PoolParams p{2, 4, 6, 8, 19, {2, 2, 2}, {2, 2, 2}, false};
  const std::vector<float> x = random_integers(input_count(p), 9), dy = random_integers(output_count(p), 10);
  const std::vector<double> wide_x = widen(x), wide_dy = widen(dy);
  std::vector<double> y(dy.size()), dx(x.size());
  reference::avg_pool3d_forward(p, wide_x.data(), y.data());
  reference::avg_pool3d_backward(p, wide_dy.data(), dx.data());
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> in(device, x), gradient(device, dy), out(device, output_count(p)),
        din(device, input_count(p));
    avg_pool3d_forward(context, p, in.get(), out.get());
    avg_pool3d_backward(context, p, gradient.get(), din.get());
    expect_equal(on(device, "y"), out.host(), y);
    expect_equal(on(device, "dx"), din.host(), dx);
  }
}

TEST(Pooling, GradientsAreNumeric) {
  const PoolParams p{1, 3, 4, 5, 2, {2, 3, 2}, {1, 2, 2}, true};
  const std::vector<double> x = widen(random_normal(input_count(p), 11)),
                            dy = widen(random_normal(output_count(p), 12));
  std::vector<double> y(dy.size()), dmax(x.size()), davg(x.size());
  std::vector<uint8_t> index(dy.size());
  reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
  reference::max_pool3d_backward(p, dy.data(), index.data(), dmax.data());
  reference::avg_pool3d_backward(p, dy.data(), davg.data());
  expect_gradient("max", x, dmax, [&](const std::vector<double>& at) {
    std::vector<double> out(dy.size());
    std::vector<uint8_t> winners(dy.size());
    reference::max_pool3d_forward(p, at.data(), out.data(), winners.data());
    return std::inner_product(out.begin(), out.end(), dy.begin(), 0.0);
  });
  expect_gradient("avg", x, davg, [&](const std::vector<double>& at) {
    std::vector<double> out(dy.size());
    reference::avg_pool3d_forward(p, at.data(), out.data());
    return std::inner_product(out.begin(), out.end(), dy.begin(), 0.0);
  });
}

// A volume smaller than the window has no outputs, and nothing flows back to it.
TEST(Pooling, NoWindowFits) {
  const PoolParams p{2, 1, 4, 4, 3, {2, 2, 2}, {2, 2, 2}, false};
  ASSERT_EQ(output_count(p), 0);
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> x(device, random_normal(input_count(p), 13)), y(device, 1),
        dx(device, input_count(p));
    const DeviceArray<uint8_t> index(device, 1);
    max_pool3d_forward(context, p, x.get(), y.get(), index.get());
    avg_pool3d_forward(context, p, x.get(), y.get());
    EXPECT_TRUE(std::isnan(y.host()[0])) << "an output was written";
    EXPECT_NO_THROW(avg_pool3d_forward(context, p, x.get(), nullptr));
    max_pool3d_backward(context, p, y.get(), index.get(), dx.get());
    EXPECT_EQ(dx.host(), std::vector<float>(96, 0.0f));
    const DeviceArray<float> again(device, input_count(p));
    avg_pool3d_backward(context, p, y.get(), again.get());
    EXPECT_EQ(again.host(), std::vector<float>(96, 0.0f));
  }
}

TEST(Pooling, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(64), y(8);
  std::vector<uint8_t> index(8);
  PoolParams p{1, 4, 4, 4, 1, {2, 2, 2}, {2, 2, 2}, false};
  EXPECT_NO_THROW(max_pool3d_forward(context, p, x.data(), y.data(), index.data()));
  EXPECT_THROW(max_pool3d_forward(context, p, nullptr, y.data(), index.data()), ShapeError);
  EXPECT_THROW(max_pool3d_backward(context, p, y.data(), nullptr, x.data()), ShapeError);
  EXPECT_THROW(avg_pool3d_forward(context, p, ConstData(x.data(), DType::bf16), y.data()), ShapeError);
  p.stride[1] = 0;
  EXPECT_THROW(avg_pool3d_forward(context, p, x.data(), y.data()), ShapeError);
  p.stride[1] = 2;
  p.kernel = {4, 8, 8};
  EXPECT_THROW(max_pool3d_forward(context, p, x.data(), y.data(), index.data()), ShapeError);  // 256 voxels
  p.n = -1;
  EXPECT_THROW(avg_pool3d_backward(context, p, y.data(), x.data()), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
