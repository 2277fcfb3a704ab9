// The element-wise losses on every device against their reference.
#include "kernels/pointwise_loss/pointwise_loss.hpp"

#include <cmath>

#include "kernels/pointwise_loss/pointwise_loss_cases.hpp"
#include "kernels/pointwise_loss/pointwise_loss_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

constexpr float kWeight = 0.6f;

std::vector<float> draw_weights(int64_t count, uint64_t seed) {
  RandomStream random(seed, 0, 9);
  std::vector<float> weights(static_cast<size_t>(count));
  for (float& weight : weights) {
    weight = random.below(6) == 0 ? 0.0f : 0.25f + static_cast<float>(random.below(1000)) * 2e-3f;
  }
  return weights;
}

struct Inputs {
  std::vector<float> x, target, elements, channels, positive;
  std::vector<uint8_t> bytes;

  Inputs(const PointwiseLossCase& c, uint64_t seed) {
    const int64_t count = c.params.rows * c.params.channels;
    RandomStream random(seed, 0, 5);
    x = random_normal(count, seed, c.scale);
    target = random_normal(count, seed + 1, c.scale);
    for (size_t i = 0; i < x.size(); ++i) {
      if (c.params.kind == PointwiseLoss::bce) {
        target[i] = c.byte_targets ? static_cast<float>(random.below(2))
                                   : static_cast<float>(random.below(5)) * 0.25f;
        if (i % 5 == 0 && c.scale > 10) {
          x[i] = i % 2 == 0 ? c.scale : -c.scale;
        }
      } else if (i % 7 == 3) {
        x[i] = target[i];  // where |d| has no slope
      }
    }
    if (c.byte_targets) {
      bytes.assign(target.begin(), target.end());
    }
    elements = c.element_weights ? draw_weights(count, seed + 2) : std::vector<float>();
    channels = c.channel_weights ? draw_weights(c.params.channels, seed + 3) : std::vector<float>();
    positive = c.positive_weights ? draw_weights(c.params.channels, seed + 4) : std::vector<float>();
  }
  PointwiseWeights weights() const {
    return {elements.empty() ? nullptr : elements.data(), channels.empty() ? nullptr : channels.data(),
            positive.empty() ? nullptr : positive.data()};
  }
};

// Loss first, then the gradient.
template <class T>
std::vector<T> reference_of(const PointwiseLossParams& p, const Inputs& in, const std::vector<float>& x_) {
  const std::vector<T> x(x_.begin(), x_.end()), target(in.target.begin(), in.target.end());
  std::vector<T> all(x.size() + 1);
  all[0] = reference::pointwise_loss_forward<T>(p, x.data(), target.data(), in.weights());
  reference::pointwise_loss_backward<T>(p, x.data(), target.data(), in.weights(), T(kWeight), all.data() + 1);
  return all;
}

template <class T>
std::vector<T> head(const std::vector<T>& all) {
  return {all.begin(), all.begin() + 1};
}
template <class T>
std::vector<T> tail(const std::vector<T>& all) {
  return {all.begin() + 1, all.end()};
}

void check_case(Device device, const PointwiseLossCase& c, uint64_t seed, bool schedules) {
  const PointwiseLossParams& p = c.params;
  const std::string what = to_string(device) + " " + c.name;
  const Inputs in(c, seed);
  const std::vector<double> exact = reference_of<double>(p, in, in.x);
  std::vector<float> naive = reference_of<float>(p, in, in.x);
  RandomStream random(seed, 0, 6);
  for (int repeat = 0; repeat < 4 && p.kind == PointwiseLoss::bce; ++repeat) {
    keep_worse(naive, reference_of<float>(p, in, moved_by_one_ulp(in.x, random)), exact);
  }
  Context context(device);
  const DeviceArray<float> x(device, in.x), target(device, in.target), elements(device, in.elements),
      channels(device, in.channels), positive(device, in.positive);
  const DeviceArray<uint8_t> bytes(device, in.bytes);
  const PointwiseWeights weights{in.elements.empty() ? nullptr : elements.get(),
                                 in.channels.empty() ? nullptr : channels.get(),
                                 in.positive.empty() ? nullptr : positive.get()};
  const ConstData t = c.byte_targets ? ConstData(bytes.get()) : ConstData(target.get());
  const auto run = [&] {
    const DeviceArray<float> loss(device, 1), dx(device, static_cast<int64_t>(in.x.size()));
    const DeviceWorkspace workspace(device, pointwise_loss_workspace_bytes(context, p));
    pointwise_loss_forward(context, p, x.get(), t, weights, loss.get(), workspace);
    pointwise_loss_backward(context, p, x.get(), t, weights, kWeight, dx.get());
    std::vector<float> all = loss.host();
    const std::vector<float> d = dx.host();
    all.insert(all.end(), d.begin(), d.end());
    return all;
  };
  const std::vector<float> found = run();
  expect_close(what + " loss", head(found), head(exact), head(naive));
  expect_close(what + " dx", tail(found), tail(exact), tail(naive));
  if (schedules) {
    expect_same_bits(what, device, run);
  }
}

TEST(PointwiseLoss, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const PointwiseLossCase& c : kPointwiseLossCases) {
      check_case(device, c, 1, true);
    }
  }
}

TEST(PointwiseLoss, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const PointwiseLossCase c = draw_pointwise_loss_case(random);
    const auto seed = static_cast<uint64_t>(random.below(1 << 30));
    for (const Device device : test_devices()) {
      check_case(device, c, seed, false);
    }
  });
}

// More rows than one thread of the CPU takes.
TEST(PointwiseLoss, ManyRows) {
  const PointwiseLossCase c{
      "many_rows", {.kind = PointwiseLoss::bce, .rows = 30000, .channels = 3}, 2.0f, true, true, true};
  check_case({DeviceType::cpu, 0}, c, 1, true);
}

TEST(PointwiseLoss, ReferenceGradient) {
  for (const PointwiseLossCase& c : kPointwiseLossCases) {
    if (c.params.rows * c.params.channels > 150 || c.scale > 10) {
      continue;
    }
    Inputs in(c, 1);
    for (size_t i = 3; i < in.x.size() && c.params.kind != PointwiseLoss::bce; i += 7) {
      in.x[i] += 0.05f;  // off the kink
    }
    const std::vector<double> x = widen(in.x), target = widen(in.target);
    std::vector<double> dx(x.size());
    reference::pointwise_loss_backward<double>(c.params, x.data(), target.data(), in.weights(), 1.0,
                                               dx.data());
    expect_gradient(c.name, x, dx, [&](const std::vector<double>& values) {
      return reference::pointwise_loss_forward<double>(c.params, values.data(), target.data(), in.weights());
    });
  }
}

// Logits that are surely right cost nothing, surely wrong ones their distance, and no NaN comes of +-1e4.
TEST(PointwiseLoss, FarLogits) {
  for (const Device device : test_devices()) {
    for (const float gamma : {0.0f, 2.0f, 0.5f}) {
      for (const float far : {100.0f, 10000.0f}) {
        Context context(device);
        const PointwiseLossParams p{.kind = PointwiseLoss::bce, .rows = 4, .gamma = gamma};
        const DeviceArray<uint8_t> targets(device, std::vector<uint8_t>{1, 1, 0, 0});
        const auto run = [&](const std::vector<float>& values) {
          const DeviceArray<float> x(device, values), loss(device, 1), dx(device, 4);
          const DeviceWorkspace workspace(device, pointwise_loss_workspace_bytes(context, p));
          pointwise_loss_forward(context, p, x.get(), targets.get(), {}, loss.get(), workspace);
          pointwise_loss_backward(context, p, x.get(), targets.get(), {}, 1.0f, dx.get());
          std::vector<float> all = dx.host();
          all.push_back(loss.host()[0]);
          return all;
        };
        const std::vector<float> right = run({far, far, -far, -far});
        const std::vector<float> wrong = run({-far, -far, far, far});
        EXPECT_NEAR(wrong[4], far, 1e-5 * far) << to_string(device);
        for (size_t i = 0; i < 4; ++i) {
          EXPECT_NEAR(right[i], 0.0f, 1e-30f) << to_string(device);
          EXPECT_NEAR(wrong[i], i < 2 ? -0.25f : 0.25f, 1e-6f) << to_string(device);
        }
        EXPECT_NEAR(right[4], 0.0f, 1e-30f) << to_string(device);
      }
    }
  }
}

TEST(PointwiseLoss, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> values(64);
  std::vector<uint8_t> bytes(64);
  float* f = values.data();
  const auto forward = [&](const PointwiseLossParams& p, ConstData target,
                           const PointwiseWeights& weights = {}) {
    pointwise_loss_forward(context, p, f, target, weights, f, {f, 256});
  };
  EXPECT_NO_THROW(forward({}, f));
  EXPECT_THROW(forward({.rows = -1}, f), ShapeError);
  EXPECT_THROW(forward({.channels = 0}, f), ShapeError);
  EXPECT_THROW(forward({.kind = PointwiseLoss::smooth_l1, .beta = 0.0f}, f), ShapeError);
  EXPECT_THROW(forward({.kind = PointwiseLoss::bce, .gamma = -1.0f}, f), ShapeError);
  EXPECT_THROW(forward({.kind = PointwiseLoss::bce, .alpha = 1.5f}, f), ShapeError);
  EXPECT_THROW(forward({}, f, {.positive = f}), ShapeError);
  EXPECT_THROW(forward({}, nullptr), ShapeError);
  for (const DeviceType type : {DeviceType::cpu, DeviceType::simt}) {
    Context on_device({type, 0});
    EXPECT_THROW(pointwise_loss_forward(on_device, {}, f, bytes.data(), {}, f, {f, 256}), ShapeError);
    EXPECT_THROW(pointwise_loss_backward(on_device, {}, f, bytes.data(), {}, 1.0f, f), ShapeError);
  }
  EXPECT_THROW(pointwise_loss_forward(context, {}, f, f, {}, f, {}), ShapeError);
  EXPECT_THROW(pointwise_loss_forward(context, {}, f, f, {}, nullptr, {f, 256}), ShapeError);
  EXPECT_THROW(pointwise_loss_backward(context, {}, f, f, {}, 1.0f, nullptr), ShapeError);
}

TEST(PointwiseLoss, Storage) {
  for (const PointwiseLossCase& c : kPointwiseLossCases) {
    const PointwiseLossParams& p = c.params;
    const Inputs in(c, 1);
    expect_rounded_float32(c.name, [&](Call& call) {
      const DeviceArray<uint8_t> bytes(call.context().device(), in.bytes);
      const auto weights_of = [&](const std::vector<float>& values) {
        return values.empty() ? nullptr : call.in_float(values).as<float>("weights");
      };
      const PointwiseWeights weights{weights_of(in.elements), weights_of(in.channels),
                                     weights_of(in.positive)};
      const ConstData target = c.byte_targets ? ConstData(bytes.get()) : ConstData(call.in(in.target));
      pointwise_loss_forward(call.context(), p, call.in(in.x), target, weights, call.out_float(1),
                             call.workspace(pointwise_loss_workspace_bytes(call.context(), p)));
      pointwise_loss_backward(call.context(), p, call.in(in.x), target, weights, kWeight,
                              call.out(p.rows * p.channels));
    });
  }
}

TEST(PointwiseLoss, StorageTypesThatDifferAreOneLine) {
  std::vector<float> wide(64);
  float* f = wide.data();
  const Data half(f, DType::bf16);
  const ConstData bytes(f, DType::u8);
  const PointwiseLossParams bce{.kind = PointwiseLoss::bce};
  for (const DeviceType type : {DeviceType::cpu, DeviceType::simt}) {
    Context context({type, 0});
    EXPECT_EQ(shape_error([&] {
                pointwise_loss_forward(context, {}, half, f, {}, f, {f, 256});
              }),
              "pointwise_loss_forward: tensors are stored as bf16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] { pointwise_loss_backward(context, bce, half, bytes, {}, 1.0f, f); }),
              "pointwise_loss_backward: tensors are stored as bf16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] {
                pointwise_loss_forward(context, {}, f, bytes, {}, f, {f, 256});
              }),
              "pointwise_loss_forward: target is stored as u8, which belongs to bce");
  }
}

}  // namespace
}  // namespace vesal::kernels::testing
