// Storage types: with bf16 and f16 an op gives what it gives in float32 for the same (rounded) inputs,
// rounded once at the end, bit for bit. What the float32 op gives is checked by its own test.
#include "kernels/context/storage.hpp"

#include <cmath>
#include <limits>

#include "kernels/batch_norm/batch_norm.hpp"
#include "kernels/elementwise/elementwise.hpp"
#include "kernels/group_norm/group_norm.hpp"
#include "kernels/instance_norm/instance_norm.hpp"
#include "kernels/rearrange/rearrange.hpp"
#include "kernels/reduce/reduce.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

TEST(Storage, ConversionsAgreeWithThePlainOnes) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    f16 half;
    half.bits = static_cast<uint16_t>(bits);
    ASSERT_EQ(std::bit_cast<uint32_t>(kernels::widen(half)),
              std::bit_cast<uint32_t>(static_cast<float>(half)))
        << bits;
  }
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 251) {  // every exponent, ties among them (see below)
    const float value = std::bit_cast<float>(static_cast<uint32_t>(bits));
    ASSERT_EQ(narrow<f16>(value).bits, f16(value).bits) << value;
  }
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {  // halfway between neighbours, and just beside it
    f16 low, high;
    low.bits = static_cast<uint16_t>(bits);
    high.bits = static_cast<uint16_t>(bits + 1);
    const float middle = bits + 1 == 0x7c00 ? 65520.0f : (kernels::widen(low) + kernels::widen(high)) / 2;
    for (const float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
      ASSERT_EQ(narrow<f16>(value).bits, f16(value).bits) << value;
      ASSERT_EQ(narrow<f16>(-value).bits, f16(-value).bits) << value;
    }
  }
}

TEST(Storage, TypesThatDifferOrDoNotServeAreOneLine) {
  Context context(Device{});
  std::vector<float> wide(4);
  std::vector<uint16_t> half(4);
  const auto message = [&](ConstData a, ConstData b, Data y) {
    return shape_error([&] { add(context, 4, a, b, y); });
  };
  EXPECT_EQ(message(wide.data(), Data(half.data(), DType::bf16), wide.data()),
            "add: tensors are stored as f32 and bf16, expected one type");
  EXPECT_EQ(
      message(Data(half.data(), DType::i32), Data(half.data(), DType::i32), Data(half.data(), DType::i32)),
      "add: a tensor is stored as i32, expected f32, bf16 or f16");
}

TEST(Storage, Elementwise) {
  for (const int64_t n : {1, 1023, 1024, 1025, 5000}) {
    const std::vector<float> x = random_normal(n, 1, 3.0f), z = random_normal(n, 2, 3.0f);
    for (const Activation kind :
         {Activation::relu, Activation::leaky_relu, Activation::gelu, Activation::gelu_tanh, Activation::silu,
          Activation::hardswish, Activation::elu, Activation::sigmoid}) {
      expect_rounded_float32(concat("unary ", static_cast<int>(kind), " of ", n), [&](Call& c) {
        unary_forward(c.context(), kind, n, c.in(x), c.out(n), 0.1f);
        unary_backward(c.context(), kind, n, c.in(x), c.in(z), c.out(n), 0.1f);
      });
    }
    expect_rounded_float32(concat("sums and products of ", n), [&](Call& c) {
      fill(c.context(), n, 1.2345f, c.out(n));
      add(c.context(), n, c.in(x), c.in(z), c.out(n));
      const Data sum = c.in_out(x);
      add(c.context(), n, sum, c.in(z), sum);
      scale_add(c.context(), n, 0.3f, c.in(x), 0.0f, c.out(n));
      scale_add(c.context(), n, 0.3f, c.in(x), -1.7f, c.in_out(z));
      multiply(c.context(), n, c.in(x), c.in(z), c.out(n));
      const DropoutKey key{1, 2, 3};
      dropout(c.context(), n, 0.4f, key, c.in(x), c.out(n));
    });
    const int64_t samples = 3;
    const std::vector<float> a = random_normal(samples * n, 3), b = random_normal(samples * n, 4);
    const std::vector<float> gate{1.0f, 0.0f, 0.5f}, scale{0.7f};
    expect_rounded_float32(concat("gates over ", n), [&](Call& c) {
      gate_samples(c.context(), samples, n, c.in_float(gate), c.in(a), c.out(samples * n));
      scaled_add_forward(c.context(), samples, n, c.in(a), c.in(b), c.in_float(scale), c.in_float(gate),
                         c.out(samples * n));
      scaled_add_backward(c.context(), samples, n, c.in(a), c.in_float(scale), c.in_float(gate), c.in(b),
                          c.out(samples * n), c.in_out_float({0.25f}), GradMode::accumulate,
                          c.workspace(scaled_add_backward_workspace_bytes(c.context(), samples, n)));
      add_sample_vector(c.context(), samples, n / 3 + 1, 1,
                        c.in(std::vector<float>(a.begin(), a.begin() + samples * (n / 3 + 1))), c.in(gate),
                        c.out(samples * (n / 3 + 1)));
      dropout_channels(c.context(), samples, 1, n, 0.4f, {1, 2, 4}, c.in(a), c.out(samples * n));
    });
  }
}

TEST(Storage, ConvertGoesBetweenAllOfThem) {
  std::vector<float> x = random_normal(1025, 1, 100.0f);
  for (const float special :
       {0.0f, -0.0f, 1e-7f, 6e-8f, 65519.0f, 65520.0f, 3e38f, std::numeric_limits<float>::infinity()}) {
    x.push_back(special);
    x.push_back(-special);
  }
  const auto n = static_cast<int64_t>(x.size());
  expect_rounded_float32("convert", [&](Call& c) {
    convert(c.context(), n, c.in_float(x), c.out(n));
    convert(c.context(), n, c.in(x), c.out_float(n));
    convert(c.context(), n, c.in(x), c.out(n));
  });
}

TEST(Storage, Rearrange) {
  const PadCropParams pad{.n = 2,
                          .d = 3,
                          .h = 4,
                          .w = 5,
                          .out_d = 5,
                          .out_h = 3,
                          .out_w = 9,
                          .c = 3,
                          .low = {1, -1, 2},
                          .value = 0.3f};
  const std::vector<float> small = random_normal(2 * 3 * 4 * 5 * 3, 1),
                           large = random_normal(2 * 5 * 3 * 9 * 3, 2);
  expect_rounded_float32("pad and crop", [&](Call& c) {
    pad_crop_forward(c.context(), pad, c.in(small), c.out(2 * 5 * 3 * 9 * 3));
    pad_crop_backward(c.context(), pad, c.in(large), c.out(2 * 3 * 4 * 5 * 3));
  });
  for (const int64_t count : {1, 16, 17, 24, 32, 48}) {
    const CopyChannelsParams p{.rows = 70,
                               .source_channels = count + 2,
                               .source_offset = 1,
                               .target_channels = count + 3,
                               .target_offset = 2,
                               .count = count};
    const std::vector<float> source = random_normal(70 * (count + 2), 3),
                             target = random_normal(70 * (count + 3), 4);
    expect_rounded_float32(concat("copies of ", count, " channels"), [&](Call& c) {
      copy_channels(c.context(), p, c.in(source), c.in_out(target), GradMode::overwrite);
      copy_channels(c.context(), p, c.in(source), c.in_out(target), GradMode::accumulate);
    });
  }
  const std::vector<float> x = random_normal(2 * 50 * 4, 5);
  expect_rounded_float32("route channels", [&](Call& c) {
    route_channels(c.context(), 2, 50, 4, 2, c.in(x), c.indices({3, -1, 0, 2}), c.out(2 * 50 * 2));
  });
}

TEST(Storage, Reduce) {
  for (const int64_t count : {1, 255, 256, 257, 9000}) {
    const std::vector<float> x = random_normal(count, 1);
    expect_rounded_float32(concat("sums of ", count), [&](Call& c) {
      const auto workspace = [&] { return c.workspace(reduce_workspace_bytes(c.context(), count)); };
      sum(c.context(), count, c.in(x), c.out_float(1), workspace());
      sum_squares(c.context(), count, c.in(x), c.out_float(1), workspace());
      max_abs(c.context(), count, c.in(x), c.out_float(1), workspace());
    });
  }
  for (const int64_t channels : {1, 5, 32, 33, 70}) {
    const int64_t n = 2, spatial = 75;
    const std::vector<float> x = random_normal(n * spatial * channels, 2),
                             dout = random_normal(n * spatial, 3);
    const std::vector<float> before = random_normal(n * channels, 4);
    expect_rounded_float32(concat("sums over ", channels, " channels"), [&](Call& c) {
      channel_sum_forward(c.context(), n * spatial, channels, c.in(x), c.out(n * spatial));
      channel_sum_backward(c.context(), n * spatial, channels, c.in(dout), c.out(n * spatial * channels));
      const auto workspace = [&] {
        return c.workspace(sum_spatial_workspace_bytes(c.context(), n, spatial, channels));
      };
      sum_spatial(c.context(), n, spatial, channels, 0.5f, c.in(x), c.out(n * channels), GradMode::overwrite,
                  workspace());
      sum_spatial(c.context(), n, spatial, channels, 0.5f, c.in(x), c.in_out(before), GradMode::accumulate,
                  workspace());
      sum_spatial(c.context(), n, spatial, channels, 0.5f, c.in(x), c.in_out_float(before),
                  GradMode::accumulate, workspace());
    });
  }
}

// Statistics, running ones too, and the gradients of scale and shift stay float32.
TEST(Storage, ChannelNorms) {
  const int64_t n = 2, spatial = 70, channels = 6, groups = 3;
  const int64_t count = n * spatial * channels;
  std::vector<float> x = random_normal(count, 1), dy = random_normal(count, 2);
  const std::vector<float> gamma = random_normal(channels, 3), beta = random_normal(channels, 4);
  for (float& value : x) {
    value += 3.0f;
  }
  const auto passes = [&](Call& c, int64_t statistics, size_t bytes, const auto& forward,
                          const auto& backward) {
    const Data mean = c.out_float(statistics), rstd = c.out_float(statistics);
    forward(c.in(x), c.in_float(gamma), c.in_float(beta), c.out(count), mean.as<float>("mean"),
            rstd.as<float>("rstd"), c.workspace(bytes));
    backward(c.in(x), c.in_float(gamma), c.in_float(beta), mean.as<float>("mean"), rstd.as<float>("rstd"),
             c.in(dy), c.out(count), c.in_out_float(gamma), c.in_out_float(beta), GradMode::accumulate,
             c.workspace(bytes));
  };
  for (const Activation activation : {Activation::none, Activation::leaky_relu}) {
    const InstanceNormParams instance{
        .n = n, .spatial = spatial, .channels = channels, .activation = activation};
    expect_rounded_float32("instance norm", [&](Call& c) {
      passes(
          c, n * channels, instance_norm_workspace_bytes(c.context(), instance),
          [&](auto... a) { instance_norm_forward(c.context(), instance, a...); },
          [&](auto... a) { instance_norm_backward(c.context(), instance, a...); });
    });
    const GroupNormParams group{
        .n = n, .spatial = spatial, .channels = channels, .groups = groups, .activation = activation};
    expect_rounded_float32("group norm", [&](Call& c) {
      passes(
          c, n * groups, group_norm_workspace_bytes(c.context(), group),
          [&](auto... a) { group_norm_forward(c.context(), group, a...); },
          [&](auto... a) { group_norm_backward(c.context(), group, a...); });
    });
    for (const bool training : {true, false}) {
      const BatchNormParams batch{
          .n = n, .spatial = spatial, .channels = channels, .training = training, .activation = activation};
      expect_rounded_float32(training ? "batch norm in training" : "batch norm in evaluation", [&](Call& c) {
        float* running_mean = c.in_out_float(std::vector<float>(channels, 0.5f)).as<float>("running mean");
        float* running_var = c.in_out_float(std::vector<float>(channels, 2.0f)).as<float>("running variance");
        passes(
            c, channels, batch_norm_workspace_bytes(c.context(), batch),
            [&](Data in, Data g, Data b, Data y, float* mean, float* rstd, Workspace workspace) {
              batch_norm_forward(c.context(), batch, in, g, b, running_mean, running_var, y, mean, rstd,
                                 workspace);
            },
            [&](auto... a) { batch_norm_backward(c.context(), batch, a...); });
      });
    }
  }
}

}  // namespace
}  // namespace vesal::kernels::testing
