// Rearrangements on every device: nothing is computed, so every result is exact.
#include "kernels/rearrange/rearrange.hpp"

#include <cmath>

#include "kernels/rearrange/rearrange_cases.hpp"
#include "kernels/rearrange/rearrange_ref.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::testing {
namespace {

void check_pad_crop(Device device, const PadCropCase& c) {
  const std::string what = to_string(device) + " " + c.name;
  const PadCropParams& p = c.params;
  const int64_t in_count = p.n * p.d * p.h * p.w * p.c;
  const int64_t out_count = p.n * p.out_d * p.out_h * p.out_w * p.c;
  const std::vector<float> x = random_normal(in_count, 1);
  const std::vector<float> dy = random_normal(out_count, 2);
  std::vector<float> y_expected(static_cast<size_t>(out_count));
  std::vector<float> dx_expected(static_cast<size_t>(in_count));
  reference::pad_crop_forward(p, x.data(), y_expected.data());
  reference::pad_crop_backward(p, dy.data(), dx_expected.data());
  Context context(device);
  const DeviceArray<float> in(device, x), d(device, dy);
  const auto forward = [&] {
    const DeviceArray<float> y(device, out_count);
    pad_crop_forward(context, p, in.get(), y.get());
    return y.host();
  };
  const auto backward = [&] {
    const DeviceArray<float> dx(device, in_count);
    pad_crop_backward(context, p, d.get(), dx.get());
    return dx.host();
  };
  expect_equal(what + " y", forward(), y_expected);
  expect_equal(what + " dx", backward(), dx_expected);
  expect_same_bits(what, device, forward);
  expect_same_bits(what, device, backward);
}

TEST(PadCrop, ForwardAndBackward) {
  for (const Device device : test_devices()) {
    for (const PadCropCase& c : kPadCropCases) {
      check_pad_crop(device, c);
    }
  }
}

TEST(PadCrop, ReferenceGradient) {
  const PadCropParams& p = kPadCropCases[4].params;
  const std::vector<double> x = widen(random_normal(p.n * p.d * p.h * p.w * p.c, 1));
  const std::vector<double> dy = widen(random_normal(p.n * p.out_d * p.out_h * p.out_w * p.c, 2));
  std::vector<double> dx(x.size());
  reference::pad_crop_backward(p, dy.data(), dx.data());
  expect_gradient("dx", x, dx, [&](const std::vector<double>& values) {
    std::vector<double> y(dy.size());
    reference::pad_crop_forward(p, values.data(), y.data());
    double loss = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      loss += y[i] * dy[i];
    }
    return loss;
  });
}

void check_copy_channels(Device device, const CopyChannelsCase& c) {
  for (const GradMode mode : {GradMode::overwrite, GradMode::accumulate}) {
    const std::string what =
        concat(to_string(device), " ", c.name, mode == GradMode::accumulate ? " accumulate" : "");
    const CopyChannelsParams& p = c.params;
    const std::vector<float> source = random_integers(p.rows * p.source_channels, 1);
    const std::vector<float> start = random_integers(p.rows * p.target_channels, 2);
    std::vector<float> expected = start;
    reference::copy_channels(p, source.data(), expected.data(), mode);
    Context context(device);
    const DeviceArray<float> from(device, source);
    const auto run = [&] {
      const DeviceArray<float> to(device, start);
      copy_channels(context, p, from.get(), to.get(), mode);
      return to.host();
    };
    expect_equal(what, run(), expected);
    expect_same_bits(what, device, run);
  }
}

TEST(CopyChannels, CopiesAndAccumulates) {
  for (const Device device : test_devices()) {
    for (const CopyChannelsCase& c : kCopyChannelsCases) {
      check_copy_channels(device, c);
    }
  }
}

TEST(CopyChannels, OverwriteDoesNotReadTheTarget) {
  for (const Device device : test_devices()) {
    const CopyChannelsParams p{.rows = 40, .source_channels = 24, .target_channels = 24, .count = 24};
    const std::vector<float> source = random_normal(960, 1);
    Context context(device);
    const DeviceArray<float> from(device, source), to(device, 960);
    copy_channels(context, p, from.get(), to.get(), GradMode::overwrite);
    expect_equal(to_string(device), to.host(), source);
  }
}

void check_route_channels(Device device, const RouteChannelsCase& c) {
  const std::string what = to_string(device) + " " + c.name;
  std::vector<float> x = random_normal(c.n * c.voxels * c.channels, 1);
  std::vector<float> expected(static_cast<size_t>(c.n * c.voxels * c.out));
  for (int64_t s = 0; s < c.n; ++s) {
    for (int64_t channel = 0; channel < c.channels; ++channel) {
      const auto* row = c.source.data() + s * c.out;
      if (std::find(row, row + c.out, channel) == row + c.out) {
        for (int64_t v = 0; v < c.voxels; ++v) {
          x[static_cast<size_t>((s * c.voxels + v) * c.channels + channel)] = NAN;
        }
      }
    }
  }
  reference::route_channels(c.n, c.voxels, c.channels, c.out, x.data(), c.source.data(), expected.data());
  for (const float value : expected) {
    ASSERT_FALSE(std::isnan(value)) << what;
  }
  Context context(device);
  const DeviceArray<float> in(device, x);
  const DeviceArray<int32_t> source(device, c.source);
  const auto run = [&] {
    const DeviceArray<float> y(device, c.n * c.voxels * c.out);
    route_channels(context, c.n, c.voxels, c.channels, c.out, in.get(), source, y.get());
    return y.host();
  };
  expect_equal(what, run(), expected);
  expect_same_bits(what, device, run);
}

TEST(RouteChannels, RoutesAndNeverReadsUnnamedChannels) {
  for (const Device device : test_devices()) {
    for (const RouteChannelsCase& c : kRouteChannelsCases) {
      check_route_channels(device, c);
    }
  }
}

TEST(Rearrange, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const PadCropCase pad_crop = random_pad_crop_case(random);
    const CopyChannelsCase copy = random_copy_channels_case(random);
    const RouteChannelsCase route = random_route_channels_case(random);
    for (const Device device : test_devices()) {
      check_pad_crop(device, pad_crop);
      check_copy_channels(device, copy);
      check_route_channels(device, route);
    }
  });
}

TEST(Rearrange, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(16);
  float* p = x.data();
  EXPECT_THROW(
      copy_channels(context,
                    {.rows = 1, .source_channels = 2, .source_offset = 1, .target_channels = 4, .count = 2},
                    p, p, GradMode::overwrite),
      ShapeError);
  EXPECT_THROW(
      copy_channels(context,
                    {.rows = 1, .source_channels = 4, .target_channels = 4, .target_offset = 3, .count = 2},
                    p, p, GradMode::overwrite),
      ShapeError);
  EXPECT_THROW(pad_crop_forward(context, {.n = -1}, p, p), ShapeError);
  EXPECT_THROW(pad_crop_forward(context, {}, p, nullptr), ShapeError);
  EXPECT_THROW(route_channels(context, 1, 2, 2, 2, p, nullptr, p), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
