// The losses and their targets on every device against their reference.
#include "kernels/losses/losses.hpp"

#include <cmath>

#include "base/philox.hpp"
#include "kernels/losses/losses_cases.hpp"
#include "kernels/losses/losses_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

std::vector<float> as_floats(const std::vector<uint8_t>& values) { return {values.begin(), values.end()}; }

std::vector<uint8_t> draw(int64_t count, const std::vector<uint8_t>& from, uint64_t seed) {
  RandomStream random(seed, 0, 9);
  std::vector<uint8_t> values(static_cast<size_t>(count));
  for (uint8_t& value : values) {
    value = from[static_cast<size_t>(random.below(static_cast<int64_t>(from.size())))];
  }
  return values;
}

// Logits of which a few are exactly +-scale.
std::vector<float> draw_logits(int64_t count, float scale, uint64_t seed) {
  std::vector<float> logits = random_normal(count, seed, scale);
  for (size_t i = 0; i < logits.size(); i += 5) {
    logits[i] = i % 2 == 0 ? scale : -scale;
  }
  return logits;
}

TEST(RegionTargets, EveryLabel) {
  for (const Device device : test_devices()) {
    for (const int64_t voxels :
         {int64_t{0}, int64_t{1}, int64_t{256}, int64_t{341}, int64_t{342}, int64_t{70000}}) {
      if (voxels > 1000 && device.type == DeviceType::simt) {
        continue;  // the size at which the CPU takes a second thread
      }
      std::vector<uint8_t> labels(static_cast<size_t>(voxels));
      for (size_t i = 0; i < labels.size(); ++i) {
        labels[i] = static_cast<uint8_t>(i % 7 == 0 ? i : i % 4);
      }
      std::vector<uint8_t> expected(labels.size() * 3);
      reference::region_targets(voxels, labels.data(), expected.data());
      Context context(device);
      const DeviceArray<uint8_t> in(device, labels), out(device, voxels * 3);
      region_targets(context, voxels, in, out);
      EXPECT_EQ(out.host(), expected) << to_string(device) << " " << voxels;
    }
  }
}

void check_edge_targets(Device device, const EdgeTargetsCase& c) {
  const int64_t voxels = c.n * c.d * c.h * c.w;
  RandomStream random(11, 0, 3);
  std::vector<uint8_t> values(1000);
  for (uint8_t& value : values) {
    value = static_cast<uint8_t>(random.below(c.top_label + 1));
  }
  std::vector<uint8_t> labels(static_cast<size_t>(voxels));
  for (int64_t i = 0; i < voxels; ++i) {
    const int64_t block =
        ((i / (c.h * c.w) / c.blocks) * 7 + (i / c.w % c.h) / c.blocks) * 11 + i % c.w / c.blocks;
    labels[static_cast<size_t>(i)] = values[static_cast<size_t>(block % 1000)];
  }
  std::vector<uint8_t> expected(labels.size());
  reference::edge_targets(c.n, c.d, c.h, c.w, labels.data(), expected.data());
  Context context(device);
  const DeviceArray<uint8_t> in(device, labels);
  const auto run = [&] {
    const DeviceArray<uint8_t> out(device, voxels);
    edge_targets(context, c.n, c.d, c.h, c.w, in, out);
    return as_floats(out.host());
  };
  expect_equal(to_string(device) + " " + c.name, run(), as_floats(expected));
  expect_same_bits(c.name, device, run);
}

TEST(EdgeTargets, MatchTheReference) {
  for (const Device device : test_devices()) {
    for (const EdgeTargetsCase& c : kEdgeTargetsCases) {
      check_edge_targets(device, c);
    }
  }
}

struct RegionInputs {
  std::vector<float> logits;
  std::vector<uint8_t> targets;
  explicit RegionInputs(const RegionLossCase& c)
      : logits(draw_logits(c.params.n * c.params.voxels * c.params.regions, c.scale, 1)),
        targets(draw(static_cast<int64_t>(logits.size()), {0, 0, 1}, 2)) {
    for (size_t i = 0; i < targets.size() && c.empty_region >= 0; ++i) {
      if (static_cast<int>(i % static_cast<size_t>(c.params.regions)) == c.empty_region) {
        targets[i] = 0;
      }
    }
  }
};

constexpr float kWeight = 0.6f;

template <class T>
struct RegionResult {
  std::vector<T> loss, dice, dlogits;
};

template <class T>
RegionResult<T> reference_region(const RegionLossParams& p, const RegionInputs& in) {
  const std::vector<T> logits(in.logits.begin(), in.logits.end());
  RegionResult<T> r;
  r.dice.resize(static_cast<size_t>((p.batch_dice ? 1 : p.n) * p.regions * 2));
  r.loss = {reference::region_loss_forward<T>(p, logits.data(), in.targets.data(), r.dice.data())};
  r.dlogits.resize(logits.size());
  reference::region_loss_backward<T>(p, logits.data(), in.targets.data(), r.dice.data(), kWeight,
                                     r.dlogits.data());
  return r;
}

// `trials`: how often the naive evaluation is repeated with moved logits: of a few sums, as in random shapes,
// a single one may be exact by luck.
void check_region_loss(Device device, const RegionLossCase& c, int trials) {
  const std::string what = to_string(device) + " " + c.name;
  const RegionLossParams& p = c.params;
  const RegionInputs in(c);
  const RegionResult<double> exact = reference_region<double>(p, in);
  RegionResult<float> naive = reference_region<float>(p, in);
  RandomStream random(3, 0, 0);
  for (int trial = 0; trial < trials; ++trial) {
    RegionInputs moved = in;
    moved.logits = moved_by_one_ulp(in.logits, random);
    const RegionResult<float> other = reference_region<float>(p, moved);
    keep_worse(naive.loss, other.loss, exact.loss);
    keep_worse(naive.dice, other.dice, exact.dice);
    keep_worse(naive.dlogits, other.dlogits, exact.dlogits);
  }
  Context context(device);
  const DeviceArray<float> logits(device, in.logits);
  const DeviceArray<uint8_t> targets(device, in.targets);
  const auto run = [&] {
    const DeviceArray<float> loss(device, 1), dice(device, static_cast<int64_t>(exact.dice.size()));
    const DeviceArray<float> dlogits(device, logits.size());
    const DeviceWorkspace workspace(device, region_loss_workspace_bytes(context, p));
    region_loss_forward(context, p, logits.get(), targets, loss.get(), dice, workspace);
    region_loss_backward(context, p, logits.get(), targets, dice, kWeight, dlogits.get());
    return RegionResult<float>{loss.host(), dice.host(), dlogits.host()};
  };
  const RegionResult<float> found = run();
  expect_close(what + " loss", found.loss, exact.loss, naive.loss);
  expect_close(what + " dice", found.dice, exact.dice, naive.dice);
  expect_close(what + " dlogits", found.dlogits, exact.dlogits, naive.dlogits);
  expect_same_bits(what, device, [&] {
    const RegionResult<float> r = run();
    std::vector<float> all = r.dlogits;
    all.push_back(r.loss[0]);
    return all;
  });
}

TEST(RegionLoss, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const RegionLossCase& c : kRegionLossCases) {
      check_region_loss(device, c, 0);
    }
  }
}

TEST(RegionLoss, ReferenceGradient) {
  for (const bool batch_dice : {false, true}) {
    const RegionLossCase c{"tiny", {.n = 2, .voxels = 5, .smooth = 0.1f, .batch_dice = batch_dice}, 1.0f, 1};
    const RegionInputs in(c);
    const RegionResult<double> r = reference_region<double>(c.params, in);
    expect_gradient("dlogits", widen(in.logits), r.dlogits, [&](const std::vector<double>& logits) {
      std::vector<double> dice(12);
      return static_cast<double>(kWeight) *
             reference::region_loss_forward<double>(c.params, logits.data(), in.targets.data(), dice.data());
    });
  }
}

// Logits that are surely right cost nothing; surely wrong ones cost their distance, and no NaN comes of
// +-1e4.
TEST(RegionLoss, FarLogits) {
  for (const Device device : test_devices()) {
    for (const float far : {100.0f, 10000.0f}) {
      Context context(device);
      const RegionLossParams p{.n = 1, .voxels = 4, .regions = 1, .dice_weight = 1.0f, .bce_weight = 1.0f};
      const DeviceArray<uint8_t> targets(device, std::vector<uint8_t>{1, 1, 0, 0});
      const auto run = [&](const std::vector<float>& values) {
        const DeviceArray<float> logits(device, values), loss(device, 1), dice(device, 2), dlogits(device, 4);
        const DeviceWorkspace workspace(device, region_loss_workspace_bytes(context, p));
        region_loss_forward(context, p, logits.get(), targets, loss.get(), dice, workspace);
        region_loss_backward(context, p, logits.get(), targets, dice, 1.0f, dlogits.get());
        std::vector<float> all = dlogits.host();
        all.push_back(loss.host()[0]);
        return all;
      };
      const std::vector<float> right = run({far, far, -far, -far});
      EXPECT_NEAR(right[4], 0.0f, 1e-30f) << to_string(device);
      const std::vector<float> wrong = run({-far, -far, far, far});
      EXPECT_NEAR(wrong[4], far + 1.0f, 1e-5 * far) << to_string(device);
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_NEAR(right[i], 0.0f, 1e-30f) << to_string(device);
        EXPECT_NEAR(wrong[i], i < 2 ? -0.25f : 0.25f, 1e-7f) << to_string(device);
      }
    }
  }
}

void check_edge_loss(Device device, const EdgeLossCase& c, int trials) {
  const std::string what = to_string(device) + " " + c.name;
  const EdgeLossParams& p = c.params;
  std::vector<float> logits = draw_logits(p.voxels, c.scale, 1);
  const std::vector<uint8_t> targets = draw(p.voxels, c.targets, 2);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (targets[i] == 2 && i % 3 == 0) {
      logits[i] = NAN;  // ignored
    }
  }
  std::vector<double> counts(2);
  reference::edge_counts(p, targets.data(), counts.data());
  const std::vector<double> wide = widen(logits);
  const std::vector<double> loss_exact{
      reference::edge_loss_forward<double>(p, wide.data(), targets.data(), counts.data())};
  std::vector<float> loss_naive{
      reference::edge_loss_forward<float>(p, logits.data(), targets.data(), counts.data())};
  std::vector<double> d_exact(logits.size());
  std::vector<float> d_naive(logits.size());
  reference::edge_loss_backward<double>(p, wide.data(), targets.data(), counts.data(), kWeight,
                                        d_exact.data());
  reference::edge_loss_backward<float>(p, logits.data(), targets.data(), counts.data(), kWeight,
                                       d_naive.data());
  RandomStream random(4, 0, 0);
  for (int trial = 0; trial < trials; ++trial) {
    const std::vector<float> moved = moved_by_one_ulp(logits, random);
    std::vector<float> other(moved.size());
    reference::edge_loss_backward<float>(p, moved.data(), targets.data(), counts.data(), kWeight,
                                         other.data());
    keep_worse(d_naive, other, d_exact);
    keep_worse(loss_naive,
               {reference::edge_loss_forward<float>(p, moved.data(), targets.data(), counts.data())},
               loss_exact);
  }
  Context context(device);
  const DeviceArray<float> in(device, logits);
  const DeviceArray<uint8_t> t(device, targets);
  const auto run = [&] {
    const DeviceArray<float> loss(device, 1), found_counts(device, 2), dlogits(device, p.voxels);
    const DeviceWorkspace workspace(device, edge_loss_workspace_bytes(context, p));
    edge_loss_forward(context, p, in.get(), t, loss.get(), found_counts, workspace);
    edge_loss_backward(context, p, in.get(), t, found_counts, kWeight, dlogits.get());
    std::vector<float> all = dlogits.host();
    all.push_back(found_counts.host()[0]);
    all.push_back(found_counts.host()[1]);
    all.push_back(loss.host()[0]);
    return all;
  };
  std::vector<float> found = run();
  expect_close(what + " loss", {found.back()}, loss_exact, loss_naive);
  found.pop_back();
  EXPECT_EQ(found.back(), counts[1]) << what;
  found.pop_back();
  EXPECT_EQ(found.back(), counts[0]) << what;
  found.pop_back();
  expect_close(what + " dlogits", found, d_exact, d_naive);
  expect_same_bits(what, device, run);
}

TEST(EdgeLoss, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const EdgeLossCase& c : kEdgeLossCases) {
      check_edge_loss(device, c, 0);
    }
  }
}

TEST(EdgeLoss, ReferenceGradient) {
  const EdgeLossParams p{.voxels = 12};
  const std::vector<double> logits = widen(random_normal(12, 1));
  const std::vector<uint8_t> targets{0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 0, 0};
  std::vector<double> counts(2), d(12);
  reference::edge_counts(p, targets.data(), counts.data());
  reference::edge_loss_backward<double>(p, logits.data(), targets.data(), counts.data(), 1.0, d.data());
  expect_gradient("dlogits", logits, d, [&](const std::vector<double>& values) {
    return reference::edge_loss_forward<double>(p, values.data(), targets.data(), counts.data());
  });
}

TEST(Losses, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const RegionLossCase region = random_region_loss_case(random);
    const EdgeLossCase edge = random_edge_loss_case(random);
    const EdgeTargetsCase targets = random_edge_targets_case(random);
    for (const Device device : test_devices()) {
      check_region_loss(device, region, 4);
      check_edge_loss(device, edge, 4);
      check_edge_targets(device, targets);
    }
  });
}

TEST(Losses, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(64);
  std::vector<uint8_t> t(64);
  float* p = x.data();
  EXPECT_THROW(region_loss_forward(context, {.n = -1}, p, t.data(), p, p, {p, 256}), ShapeError);
  EXPECT_THROW(region_loss_forward(context, {.regions = 0}, p, t.data(), p, p, {p, 256}), ShapeError);
  EXPECT_THROW(region_loss_forward(context, {.smooth = 0.0f}, p, t.data(), p, p, {p, 256}), ShapeError);
  EXPECT_THROW(region_loss_forward(context, {}, p, t.data(), p, p, {}), ShapeError);
  EXPECT_THROW(edge_loss_forward(context, {.voxels = 4}, p, nullptr, p, p, {p, 256}), ShapeError);
  EXPECT_THROW(edge_targets(context, 1, 2, -2, 2, t.data(), t.data()), ShapeError);
}

TEST(RegionLoss, Storage) {
  for (const RegionLossCase& c : kRegionLossCases) {
    const RegionLossParams& p = c.params;
    const RegionInputs in(c);
    expect_rounded_float32(c.name, [&](Call& call) {
      const DeviceArray<uint8_t> targets(call.context().device(), in.targets);
      float* dice = call.out_float((p.batch_dice ? 1 : p.n) * p.regions * 2).as<float>("dice");
      region_loss_forward(call.context(), p, call.in(in.logits), targets, call.out_float(1), dice,
                          call.workspace(region_loss_workspace_bytes(call.context(), p)));
      region_loss_backward(call.context(), p, call.in(in.logits), targets, dice, kWeight,
                           call.out(p.n * p.voxels * p.regions));
    });
  }
}

TEST(EdgeLoss, Storage) {
  for (const EdgeLossCase& c : kEdgeLossCases) {
    const EdgeLossParams& p = c.params;
    const std::vector<float> logits = draw_logits(p.voxels, c.scale, 1);
    expect_rounded_float32(c.name, [&](Call& call) {
      const DeviceArray<uint8_t> targets(call.context().device(), draw(p.voxels, c.targets, 2));
      float* counts = call.out_float(2).as<float>("counts");
      edge_loss_forward(call.context(), p, call.in(logits), targets, call.out_float(1), counts,
                        call.workspace(edge_loss_workspace_bytes(call.context(), p)));
      edge_loss_backward(call.context(), p, call.in(logits), targets, counts, kWeight, call.out(p.voxels));
    });
  }
}

TEST(Losses, StorageTypesThatDifferAreOneLine) {
  std::vector<float> wide(64);
  std::vector<uint8_t> targets(8);
  float* f = wide.data();
  const Data half(f, DType::bf16);
  for (const DeviceType type : {DeviceType::cpu, DeviceType::simt}) {
    Context context({type, 0});
    EXPECT_EQ(shape_error([&] { region_loss_backward(context, {}, half, targets.data(), f, 1.0f, f); }),
              "region_loss_backward: tensors are stored as bf16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] { edge_loss_backward(context, {}, f, targets.data(), f, 1.0f, half); }),
              "edge_loss_backward: tensors are stored as f32 and bf16, expected one type");
  }
}

}  // namespace
}  // namespace vesal::kernels::testing
