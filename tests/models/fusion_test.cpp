// The fusion network: size, missing modalities, determinism, and the CUDA code path against the CPU's.
#include "models/fusion.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "layers/optimizer.hpp"

namespace vesal::models {
namespace {

constexpr Device kCpu{DeviceType::cpu, 0};
constexpr Device kSimt{DeviceType::simt, 0};

std::vector<float> random_volume(const Shape& shape, uint64_t seed) {
  RandomStream random(seed, 0, 0);
  std::vector<float> values(static_cast<size_t>(element_count(shape)));
  for (float& value : values) {
    value = random.normal();
  }
  return values;
}

// A ball of the three labels in each sample.
std::vector<uint8_t> ball_labels(const Shape& shape) {
  std::vector<uint8_t> labels(static_cast<size_t>(element_count(shape)));
  const int64_t d = shape[1], h = shape[2], w = shape[3];
  for (int64_t i = 0; i < static_cast<int64_t>(labels.size()); ++i) {
    const int64_t x = i % w - w / 2, y = i / w % h - h / 2, z = i / (w * h) % d - d / 2;
    const int64_t r = x * x + y * y + z * z;
    labels[static_cast<size_t>(i)] = r < 6 ? 1 : r < 14 ? 3 : r < 30 ? 2 : 0;
  }
  return labels;
}

TEST(Fusion, ParameterCountsArePinned) {
  // The specification's figures (3.1, 7.3 and 30.4 million) within one per cent, then to the unit.
  const std::vector<std::tuple<const char*, double, int64_t>> expected{
      {"fusion-micro", 3.1e6, 3081913}, {"fusion-tiny", 7.3e6, 7265508}, {"fusion-base", 30.4e6, 30348270}};
  for (const auto& [name, specified, exact] : expected) {
    DeviceContext context(kCpu);
    const Fusion model(context, fusion_preset(name), 0);
    EXPECT_NEAR(static_cast<double>(model.parameters().count()), specified, 0.01 * specified) << name;
    EXPECT_EQ(model.parameters().count(), exact) << name;
  }
}

TEST(Fusion, ConfigurationSurvivesMetadata) {
  for (const std::string& name : fusion_preset_names()) {
    FusionConfig config = fusion_preset(name);
    config.merge_shifts = kernels::ShiftSet::face6;
    config.padding = kernels::PaddingMode::attend;
    config.edge_weights = layers::EdgeWeights::attention;
    config.deep_supervision = false;
    EXPECT_EQ(to_metadata(fusion_config_from_metadata(to_metadata(config))), to_metadata(config));
  }
  EXPECT_THROW(fusion_preset("unet"), UsageError);
  std::map<std::string, std::string> metadata = to_metadata(fusion_preset("fusion-tiny"));
  metadata["depths"] = "2,2,2";
  EXPECT_THROW(fusion_config_from_metadata(metadata), FormatError);
  metadata.erase("depths");
  EXPECT_THROW(fusion_config_from_metadata(metadata), FormatError);
  metadata = to_metadata(fusion_preset("fusion-tiny"));
  metadata["model"] = "unet";
  EXPECT_THROW(fusion_config_from_metadata(metadata), FormatError);
}

TEST(Fusion, RefusesWrongInputs) {
  DeviceContext context(kCpu);
  const Fusion model(context, fusion_preset("fusion-micro"), 0);
  const std::vector<ModalityMask> all{{1, 1, 1, 1}};
  const std::vector<ModalityMask> none{{0, 0, 0, 0}};
  const auto run = [&](Shape shape, std::span<const ModalityMask> masks) {
    model.forward(context, Tensor::zeros(context, std::move(shape)), masks, {});
  };
  EXPECT_THROW(run({1, 16, 16, 24, 4}, all), ShapeError);
  EXPECT_THROW(run({1, 16, 16, 16, 3}, all), ShapeError);
  EXPECT_THROW(run({2, 16, 16, 16, 4}, all), ShapeError);
  EXPECT_THROW(run({1, 16, 16, 16, 4}, none), ShapeError);
}

struct StepResult {
  std::vector<float> segmentation;
  std::vector<float> edges;
  std::vector<float> losses;
  std::vector<std::vector<float>> gradients;
  size_t saved_bytes = 0;
};

// One training step without the optimiser.
StepResult run_step(Device device, const std::vector<float>& volume, const Shape& extent,
                    const std::vector<ModalityMask>& masks, bool recompute = false, float drop_path = 0,
                    DType precision = DType::f32) {
  // That of training's first step.
  const float scale = precision == DType::f16 ? 65536.0f : 1.0f;
  DeviceContext context(device);
  FusionConfig config = fusion_preset("fusion-micro");
  config.drop_path = drop_path;
  Fusion model(context, config, 4);
  Shape shape = extent;
  shape.push_back(kModalities);
  const Tensor input = Tensor::from_host(context, volume, shape);
  const Tensor labels = Tensor::from_host(context, ball_labels(extent), extent);
  context.seed_step(1, 1);
  Tape tape;
  StepResult result;
  FusionOutputs outputs;
  FusionLoss loss;
  {
    const TapeScope scope(context, &tape);
    outputs =
        model.forward(context, input, masks,
                      {.training = true, .edges = true, .recompute = recompute, .precision = precision});
    loss = fusion_loss(context, outputs, labels, {.scale = scale});
  }
  result.saved_bytes = tape.saved_bytes();
  tape.backward(context);
  result.segmentation = outputs.segmentation.value().to_host<float>(context);
  result.edges = outputs.edges.value().to_host<float>(context);
  result.losses = {loss.segmentation.to_host<float>(context)[0], loss.edge.to_host<float>(context)[0]};
  for (const Tensor& deep : loss.deep) {
    result.losses.push_back(deep.to_host<float>(context)[0]);
  }
  for (const auto& parameter : model.parameters().all()) {
    EXPECT_TRUE(parameter->gradient_written) << parameter->name;
    result.gradients.push_back(parameter->gradient.to_host<float>(context));
    for (float& gradient : result.gradients.back()) {
      gradient /= scale;
    }
  }
  return result;
}

void expect_same(const StepResult& a, const StepResult& b) {
  EXPECT_EQ(a.segmentation, b.segmentation);
  EXPECT_EQ(a.edges, b.edges);
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.gradients, b.gradients);
}

TEST(Fusion, AbsentModalitiesLeaveNoTrace) {
  const Shape extent{2, 16, 16, 16};
  const std::vector<float> clean = random_volume({2, 16, 16, 16, 4}, 1);
  const std::vector<std::vector<ModalityMask>> cases{
      {{1, 1, 1, 0}, {0, 1, 0, 1}}, {{1, 0, 0, 0}, {0, 0, 1, 0}}, {{0, 0, 0, 1}, {1, 1, 1, 1}}};
  for (const auto& masks : cases) {
    std::vector<float> dirty = clean;
    for (size_t i = 0; i < dirty.size(); ++i) {
      if (!masks[i / (dirty.size() / 2)][i % 4]) {
        dirty[i] = i % 3 == 0 ? std::numeric_limits<float>::quiet_NaN() : i % 3 == 1 ? INFINITY : 1e30f;
      }
    }
    expect_same(run_step(kCpu, clean, extent, masks), run_step(kCpu, dirty, extent, masks));
  }
}

TEST(Fusion, RecomputingChangesMemoryAndNoBit) {
  const Shape extent{2, 16, 32, 16};
  const std::vector<float> volume = random_volume({2, 16, 32, 16, 4}, 5);
  const std::vector<ModalityMask> masks{{1, 1, 1, 1}, {0, 1, 0, 1}};
  const StepResult saved = run_step(kCpu, volume, extent, masks, false, 0.5f);
  const StepResult recomputed = run_step(kCpu, volume, extent, masks, true, 0.5f);
  expect_same(saved, recomputed);
  EXPECT_LT(recomputed.saved_bytes, saved.saved_bytes / 2);
  EXPECT_NE(saved.gradients,
            run_step(kCpu, volume, extent, masks, false, 0.0f).gradients);  // depth was dropped
}

TEST(Fusion, RepeatsBitForBit) {
  const Shape extent{1, 16, 32, 16};
  const std::vector<float> volume = random_volume({1, 16, 32, 16, 4}, 2);
  const std::vector<ModalityMask> masks{{1, 1, 1, 1}};
  const StepResult first = run_step(kCpu, volume, extent, masks);
  for (int i = 0; i < 3; ++i) {
    expect_same(first, run_step(kCpu, volume, extent, masks));
  }
}

// The same step through the CUDA kernels, executed by the emulator. Both are float32 sums in different
// orders; through some sixty layers with normalisations, differences of 1e-7 grow to at most about 1e-4 of a
// tensor's largest value.
TEST(Fusion, ATrainingStepThroughTheCudaKernelsGivesTheCpusLossAndGradients) {
  const Shape extent{1, 16, 16, 16};
  std::vector<float> volume = random_volume({1, 16, 16, 16, 4}, 3);
  const std::vector<ModalityMask> masks{{1, 1, 0, 1}};
  const StepResult cpu = run_step(kCpu, volume, extent, masks);
  for (size_t i = 2; i < volume.size(); i += 4) {
    volume[i] = std::numeric_limits<float>::quiet_NaN();
  }
  const StepResult simt = run_step(kSimt, volume, extent, masks);
  const auto compare = [](const std::vector<float>& a, const std::vector<float>& b, double floor,
                          const std::string& what) {
    ASSERT_EQ(a.size(), b.size());
    double scale = floor;
    double worst = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      scale = std::max(scale, std::abs(static_cast<double>(a[i])));
      const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
      worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    }
    EXPECT_LE(worst, 1e-3 * scale) << what;
  };
  compare(cpu.losses, simt.losses, 0, "losses");
  compare(cpu.segmentation, simt.segmentation, 0, "segmentation");
  compare(cpu.edges, simt.edges, 0, "edges");
  // Gradients that are zero in exact arithmetic (a bias before an instance norm, a sum over thousands of
  // voxels that cancels) are rounding noise on both sides: ten float32 epsilons of the largest gradient.
  // (tests/oracle compares small gradients more closely, against double.)
  double largest = 0;
  for (const auto& gradient : cpu.gradients) {
    for (const float g : gradient) {
      largest = std::max(largest, std::abs(static_cast<double>(g)));
    }
  }
  for (size_t i = 0; i < cpu.gradients.size(); ++i) {
    compare(cpu.gradients[i], simt.gradients[i], 1e-3 * largest, "gradient " + std::to_string(i));
  }
}

// |a - b| / |b| over all numbers; infinite where one of a is not finite.
double relative_distance(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].size(), b[i].size());
    for (size_t k = 0; k < a[i].size(); ++k) {
      const double d = static_cast<double>(a[i][k]) - b[i][k];
      difference += d * d;
      size += static_cast<double>(b[i][k]) * b[i][k];
    }
  }
  return std::isfinite(difference) ? std::sqrt(difference / size) : INFINITY;
}

// Activations and weights are rounded by at most u (2^-8 in bf16, 2^-11 in f16) of their size, at some
// hundred places along a path through the network. Roundings are independent, so that they add up to about
// the root of their number, 10 u, which normalisations multiply a few times: 40 u of the length of all
// logits, and of each loss. Gradients also jump where rounding moves a value across a kink (ReLU, the larger
// of two voxels, the nearer of two nodes): that happens to a share of the values in the order of u, and what
// they hand on changes entirely, so that the difference of all gradients is in the order of the root of u of
// their length: 4 times that. A lost gradient, a wrong type or a missing scale makes far more of either.
TEST(Fusion, AStepInHalfPrecisionIsCloseToTheFloat32Step) {
  const Shape extent{1, 16, 16, 16};
  const std::vector<float> volume = random_volume({1, 16, 16, 16, 4}, 3);
  const std::vector<ModalityMask> masks{{1, 1, 0, 1}};
  const StepResult exact = run_step(kCpu, volume, extent, masks);
  for (const Device device : {kCpu, kSimt}) {
    for (const DType precision : {DType::bf16, DType::f16}) {
      SCOPED_TRACE(concat(to_string(device), " ", name_of(precision)));
      const double u = precision == DType::bf16 ? 0x1p-8 : 0x1p-11;
      const double bound = 40 * u;
      const StepResult step = run_step(device, volume, extent, masks, false, 0, precision);
      EXPECT_LE(relative_distance({step.segmentation}, {exact.segmentation}), bound);
      EXPECT_LE(relative_distance({step.edges}, {exact.edges}), bound);
      EXPECT_LE(relative_distance(step.gradients, exact.gradients), 4 * std::sqrt(u));
      ASSERT_EQ(step.losses.size(), exact.losses.size());
      for (size_t i = 0; i < step.losses.size(); ++i) {
        EXPECT_NEAR(step.losses[i], exact.losses[i], bound * exact.losses[i]) << i;
      }
      EXPECT_LT(step.saved_bytes, 6 * exact.saved_bytes / 10);  // the graphs' indices keep their size
    }
  }
}

TEST(Fusion, HalfPrecisionRepeatsBitForBitRecomputesAndLeavesOutAbsentModalities) {
  const Shape extent{2, 16, 16, 16};
  std::vector<float> volume = random_volume({2, 16, 16, 16, 4}, 2);
  const std::vector<ModalityMask> masks{{1, 1, 1, 1}, {0, 1, 0, 1}};
  for (const DType precision : {DType::bf16, DType::f16}) {
    const StepResult first = run_step(kCpu, volume, extent, masks, false, 0.5f, precision);
    std::vector<float> dirty = volume;
    for (size_t i = dirty.size() / 2; i < dirty.size(); ++i) {
      if (!masks[1][i % 4]) {
        dirty[i] = i % 3 == 0 ? std::numeric_limits<float>::quiet_NaN() : i % 3 == 1 ? INFINITY : 1e30f;
      }
    }
    expect_same(first, run_step(kCpu, dirty, extent, masks, false, 0.5f, precision));
    expect_same(first, run_step(kCpu, volume, extent, masks, true, 0.5f, precision));
  }
}

TEST(Fusion, SteadyTrainingStepsAllocateNothingFromTheSystem) {
  DeviceContext context(kCpu);
  if (!context.allocator().caching()) {
    GTEST_SKIP() << "caching is off by design in sanitizer builds: every block is its own";
  }
  const Shape extent{1, 16, 16, 16};
  const Tensor input = Tensor::from_host(context, random_volume({1, 16, 16, 16, 4}, 3), {1, 16, 16, 16, 4});
  const Tensor labels = Tensor::from_host(context, ball_labels(extent), extent);
  const std::vector<ModalityMask> masks{{1, 1, 1, 1}};
  for (const DType precision : {DType::f32, DType::bf16}) {
    Fusion model(context, fusion_preset("fusion-micro"), 4);
    layers::AdamW optimizer(context, model.parameters(), {});
    std::vector<float> losses;
    size_t warm = 0;
    for (uint64_t step = 0; step < 8; ++step) {
      if (step == 2) {
        warm = context.allocator().statistics().system_allocations;
      }
      context.seed_step(1, step);
      model.parameters().clear_gradients();
      Tape tape;
      FusionLoss loss;
      {
        const TapeScope scope(context, &tape);
        const ForwardOptions options{.training = true, .edges = true, .precision = precision};
        loss = fusion_loss(context, model.forward(context, input, masks, options), labels, {});
      }
      tape.backward(context);
      optimizer.step(context, 1e-3f);
      losses.push_back(loss.segmentation.to_host<float>(context)[0]);
    }
    EXPECT_EQ(context.allocator().statistics().system_allocations, warm);
    EXPECT_LT(losses.back(), losses.front());  // it learns the one case that it sees
  }
}

}  // namespace
}  // namespace vesal::models
