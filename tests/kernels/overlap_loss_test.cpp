// The overlap losses on every device against their reference.
#include "kernels/overlap_loss/overlap_loss.hpp"

#include <cmath>

#include "kernels/overlap_loss/overlap_loss_cases.hpp"
#include "kernels/overlap_loss/overlap_loss_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

constexpr float kWeight = 0.6f;

struct Inputs {
  std::vector<float> logits;
  std::vector<uint8_t> targets;

  Inputs(const OverlapLossCase& c, uint64_t seed) {
    const OverlapLossParams& p = c.params;
    RandomStream random(seed, 0, 5);
    logits = random_normal(p.n * p.voxels * p.channels, seed, c.scale);
    for (size_t i = 0; i < logits.size() && c.scale > 10; i += 5) {
      logits[i] = i % 2 == 0 ? c.scale : -c.scale;
    }
    const int64_t count = p.n * p.voxels * (p.softmax ? 1 : p.channels);
    for (int64_t i = 0; i < count; ++i) {
      const bool ignored = static_cast<float>(random.below(1000)) < 1000 * c.ignored;
      int64_t target = random.below(p.softmax ? p.channels : 2);
      if (p.softmax && target == c.empty_channel) {
        target = 0;
      } else if (!p.softmax && i % p.channels == c.empty_channel) {
        target = 0;
      }
      targets.push_back(static_cast<uint8_t>(ignored ? p.ignore_label : target));
      if (targets.back() == p.ignore_label && i % 3 == 0) {
        const int64_t width = p.softmax ? p.channels : 1;
        std::fill_n(logits.begin() + i * width, width, NAN);
      }
    }
  }
};

template <class T>
struct Result {
  std::vector<T> loss, slopes, dlogits;
};

template <class T>
Result<T> reference_of(const OverlapLossParams& p, const Inputs& in, const std::vector<float>& x) {
  const std::vector<T> logits(x.begin(), x.end());
  Result<T> r;
  r.slopes.resize(static_cast<size_t>(p.groups() * p.channels * 2));
  r.loss = {reference::overlap_loss_forward<T>(p, logits.data(), in.targets.data(), r.slopes.data())};
  r.dlogits.resize(logits.size());
  reference::overlap_loss_backward<T>(p, logits.data(), in.targets.data(), r.slopes.data(), T(kWeight),
                                      r.dlogits.data());
  return r;
}

void check_case(Device device, const OverlapLossCase& c, uint64_t seed, bool schedules) {
  const OverlapLossParams& p = c.params;
  const std::string what = to_string(device) + " " + c.name;
  const Inputs in(c, seed);
  const Result<double> exact = reference_of<double>(p, in, in.logits);
  Result<float> naive = reference_of<float>(p, in, in.logits);
  RandomStream random(seed, 0, 6);
  for (int repeat = 0; repeat < 4; ++repeat) {
    const Result<float> other = reference_of<float>(p, in, moved_by_one_ulp(in.logits, random));
    keep_worse(naive.loss, other.loss, exact.loss);
    keep_worse(naive.slopes, other.slopes, exact.slopes);
    keep_worse(naive.dlogits, other.dlogits, exact.dlogits);
  }
  Context context(device);
  const DeviceArray<float> logits(device, in.logits);
  const DeviceArray<uint8_t> targets(device, in.targets);
  const auto run = [&] {
    const DeviceArray<float> loss(device, 1), slopes(device, static_cast<int64_t>(exact.slopes.size()));
    const DeviceArray<float> dlogits(device, static_cast<int64_t>(in.logits.size()));
    const DeviceWorkspace workspace(device, overlap_loss_workspace_bytes(context, p));
    overlap_loss_forward(context, p, logits.get(), targets, loss.get(), slopes, workspace);
    overlap_loss_backward(context, p, logits.get(), targets, slopes, kWeight, dlogits.get());
    return Result<float>{loss.host(), slopes.host(), dlogits.host()};
  };
  const Result<float> found = run();
  expect_close(what + " loss", found.loss, exact.loss, naive.loss);
  expect_close(what + " slopes", found.slopes, exact.slopes, naive.slopes);
  expect_close(what + " dlogits", found.dlogits, exact.dlogits, naive.dlogits);
  if (schedules) {
    expect_same_bits(what, device, [&] {
      Result<float> r = run();
      r.dlogits.insert(r.dlogits.end(), r.slopes.begin(), r.slopes.end());
      r.dlogits.push_back(r.loss[0]);
      return r.dlogits;
    });
  }
}

TEST(OverlapLoss, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const OverlapLossCase& c : kOverlapLossCases) {
      check_case(device, c, 1, true);
    }
  }
}

TEST(OverlapLoss, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const OverlapLossCase c = draw_overlap_loss_case(random);
    const auto seed = static_cast<uint64_t>(random.below(1 << 30));
    for (const Device device : test_devices()) {
      check_case(device, c, seed, false);
    }
  });
}

// More voxels than one thread of the CPU takes.
TEST(OverlapLoss, ManyVoxels) {
  for (const bool softmax : {true, false}) {
    check_case({DeviceType::cpu, 0},
               {"many_voxels", {.softmax = softmax, .n = 2, .voxels = 20000, .channels = 3}}, 1, true);
  }
}

TEST(OverlapLoss, ReferenceGradient) {
  for (const OverlapLossCase& c : kOverlapLossCases) {
    if (c.params.n * c.params.voxels * c.params.channels > 400 || c.scale > 10) {
      continue;
    }
    Inputs in(c, 1);
    for (float& value : in.logits) {
      value = std::isnan(value) ? 0.0f : value;
    }
    const std::vector<double> x = widen(in.logits);
    std::vector<double> slopes(static_cast<size_t>(c.params.groups() * c.params.channels * 2)), d(x.size());
    const auto loss = [&](const std::vector<double>& values) {
      return reference::overlap_loss_forward<double>(c.params, values.data(), in.targets.data(),
                                                     slopes.data());
    };
    loss(x);
    reference::overlap_loss_backward<double>(c.params, x.data(), in.targets.data(), slopes.data(), 1.0,
                                             d.data());
    expect_gradient(c.name, x, d, loss);
  }
}

// Sure and right: no loss. An empty class that nobody predicts: none either.
TEST(OverlapLoss, PerfectPrediction) {
  for (const Device device : test_devices()) {
    for (const Overlap kind : {Overlap::dice, Overlap::iou}) {
      Context context(device);
      const OverlapLossParams p{.kind = kind, .voxels = 2, .channels = 3};
      const DeviceArray<float> logits(device, std::vector<float>{200, 0, 0, 0, 200, 0}), loss(device, 1),
          slopes(device, 6), d(device, 6);
      const DeviceArray<uint8_t> labels(device, std::vector<uint8_t>{0, 1});
      const DeviceWorkspace workspace(device, overlap_loss_workspace_bytes(context, p));
      overlap_loss_forward(context, p, logits.get(), labels, loss.get(), slopes, workspace);
      overlap_loss_backward(context, p, logits.get(), labels, slopes, 1.0f, d.get());
      EXPECT_EQ(loss.host()[0], 0.0f) << to_string(device);
      for (const float value : d.host()) {
        EXPECT_NEAR(value, 0.0f, 1e-30f) << to_string(device);
      }
    }
  }
}

TEST(OverlapLoss, TargetThatIsNoneShows) {
  for (const Device device : test_devices()) {
    for (const bool softmax : {true, false}) {
      Context context(device);
      const OverlapLossParams p{.softmax = softmax, .voxels = 2, .channels = 2};
      const DeviceArray<float> logits(device, std::vector<float>{1, 2, 3, 4}), loss(device, 1),
          slopes(device, 4), d(device, 4);
      const DeviceArray<uint8_t> targets(device, std::vector<uint8_t>{0, 2, 1, 0});
      const DeviceWorkspace workspace(device, overlap_loss_workspace_bytes(context, p));
      overlap_loss_forward(context, p, logits.get(), targets, loss.get(), slopes, workspace);
      overlap_loss_backward(context, p, logits.get(), targets, slopes, 1.0f, d.get());
      EXPECT_TRUE(std::isnan(loss.host()[0])) << to_string(device);
      EXPECT_TRUE(std::isnan(d.host()[1])) << to_string(device);
    }
  }
}

TEST(OverlapLoss, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> values(64);
  std::vector<uint8_t> targets(64);
  float* f = values.data();
  const auto forward = [&](const OverlapLossParams& p) {
    overlap_loss_forward(context, p, f, targets.data(), f, f, {f, 256});
  };
  EXPECT_NO_THROW(forward({}));
  EXPECT_THROW(forward({.n = -1}), ShapeError);
  EXPECT_THROW(forward({.voxels = -1}), ShapeError);
  EXPECT_THROW(forward({.channels = 257}), ShapeError);
  EXPECT_THROW(forward({.first_channel = 2}), ShapeError);
  EXPECT_THROW(forward({.first_channel = -1}), ShapeError);
  EXPECT_THROW(forward({.ignore_label = 256}), ShapeError);
  EXPECT_THROW(forward({.smooth = 0.0f}), ShapeError);
  EXPECT_THROW(overlap_loss_forward(context, {}, f, nullptr, f, f, {f, 256}), ShapeError);
  EXPECT_THROW(overlap_loss_forward(context, {}, f, targets.data(), f, nullptr, {f, 256}), ShapeError);
  EXPECT_THROW(overlap_loss_forward(context, {}, f, targets.data(), f, f, {}), ShapeError);
  EXPECT_THROW(overlap_loss_backward(context, {}, f, targets.data(), f, 1.0f, nullptr), ShapeError);
}

TEST(OverlapLoss, Storage) {
  for (const OverlapLossCase& c : kOverlapLossCases) {
    const OverlapLossParams& p = c.params;
    const Inputs in(c, 1);
    expect_rounded_float32(c.name, [&](Call& call) {
      const DeviceArray<uint8_t> targets(call.context().device(), in.targets);
      float* slopes = call.out_float(p.groups() * p.channels * 2).as<float>("slopes");
      overlap_loss_forward(call.context(), p, call.in(in.logits), targets, call.out_float(1), slopes,
                           call.workspace(overlap_loss_workspace_bytes(call.context(), p)));
      overlap_loss_backward(call.context(), p, call.in(in.logits), targets, slopes, kWeight,
                            call.out(p.n * p.voxels * p.channels));
    });
  }
}

TEST(OverlapLoss, StorageTypesThatDifferAreOneLine) {
  std::vector<float> wide(64);
  std::vector<uint8_t> targets(1);
  float* f = wide.data();
  for (const DeviceType type : {DeviceType::cpu, DeviceType::simt}) {
    Context context({type, 0});
    EXPECT_EQ(shape_error([&] {
                overlap_loss_backward(context, {}, f, targets.data(), f, 1.0f, Data(f, DType::f16));
              }),
              "overlap_loss_backward: tensors are stored as f32 and f16, expected one type");
  }
}

}  // namespace
}  // namespace vesal::kernels::testing
