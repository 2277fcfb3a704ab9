// MeshNet: its names and sizes, determinism, memory, gradients, and the CUDA code path against the CPU's.
#include "models/meshnet.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "models/catalogue.hpp"

namespace vesal::models {
namespace {

constexpr Device kCpu{DeviceType::cpu, 0};
constexpr Device kSimt{DeviceType::simt, 0};

MeshNetConfig small(const std::string& preset) {
  MeshNetConfig config = meshnet_preset(preset);
  config.dilations = {1, 2, 3};
  return config;
}

std::vector<float> random_values(int64_t count, uint64_t seed) {
  RandomStream random(seed, 0, 0);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = random.uniform(0, 1);
  }
  return values;
}

TEST(MeshNet, NamesAndSizesAreThoseOfTheTrainedFiles) {
  DeviceContext context(kCpu);
  const auto names = [&](const char* preset) {
    std::vector<std::string> list;
    const std::unique_ptr<Model> model = make_model(context, preset, 0);
    for (const auto& parameter : model->parameters().all()) {
      list.push_back(parameter->name);
    }
    return list;
  };
  for (const char* preset : {"meshnet-gw", "meshnet-18"}) {
    std::vector<std::string> expected;
    for (int i = 0; i <= 18; i += 2) {
      expected.push_back(concat("model.", i, ".weight"));
      expected.push_back(concat("model.", i, ".bias"));
    }
    EXPECT_EQ(names(preset), expected) << preset;
  }
  std::vector<std::string> expected;
  for (int i = 0; i < 25; ++i) {
    expected.push_back(concat("model.", i, ".0.weight"));
  }
  expected.insert(expected.end(), {"model.25.weight", "model.25.bias"});
  EXPECT_EQ(names("mindgrab"), expected);
  EXPECT_EQ(make_model(context, "meshnet-gw", 0)->parameters().count(), 5598);
  EXPECT_EQ(make_model(context, "meshnet-18", 0)->parameters().count(), 96408);
  EXPECT_EQ(make_model(context, "mindgrab", 0)->parameters().count(), 146237);
}

TEST(MeshNet, ConfigurationSurvivesMetadata) {
  DeviceContext context(kCpu);
  for (const std::string& name : meshnet_preset_names()) {
    const MeshNetConfig config = meshnet_preset(name);
    const ModelMetadata metadata = to_metadata(config);
    EXPECT_EQ(to_metadata(meshnet_config_from_metadata(metadata)), metadata);
    EXPECT_EQ(make_model(context, metadata, std::nullopt)->metadata(), metadata);
  }
  EXPECT_THROW(meshnet_preset("unet"), UsageError);
  const ModelMetadata good = to_metadata(meshnet_preset("mindgrab"));
  for (const auto& [key, value] : good) {
    ModelMetadata bad = good;
    bad.erase(key);
    EXPECT_THROW(meshnet_config_from_metadata(bad), FormatError) << key;
    bad[key] = "-1";
    if (key != "preset") {
      EXPECT_THROW(meshnet_config_from_metadata(bad), FormatError) << key;
    }
  }
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"dilations", ""},
                                                        {"dilations", "1,,2"},
                                                        {"dilations", "1,2,"},
                                                        {"dilations", "1 2"},
                                                        {"dilations", "0"},
                                                        {"dilations", std::string(4000, '1') + ",1"},
                                                        {"classes", "257"},
                                                        {"channels", "99999999999999999999"},
                                                        {"bias", "2"},
                                                        {"activation", "tanh"},
                                                        {"norm", "batch"}}) {
    ModelMetadata bad = good;
    bad[key] = value;
    EXPECT_THROW(meshnet_config_from_metadata(bad), FormatError) << key << " = " << value;
  }
}

TEST(MeshNet, RefusesWrongConfigurationsAndInputs) {
  DeviceContext context(kCpu);
  const auto refused = [&](const auto& change) {
    MeshNetConfig config = small("meshnet-gw");
    change(config);
    EXPECT_THROW(MeshNet(context, config, 0), UsageError);
  };
  refused([](MeshNetConfig& c) { c.dilations = {}; });
  refused([](MeshNetConfig& c) { c.dilations = {1, 0}; });
  refused([](MeshNetConfig& c) { c.channels = 0; });
  refused([](MeshNetConfig& c) { c.classes = 0; });
  refused([](MeshNetConfig& c) { c.activation = kernels::Activation::silu; });
  const MeshNet model(context, small("meshnet-gw"), 0);
  EXPECT_THROW(model.forward(context, Tensor::zeros(context, {1, 4, 4, 4, 2})), ShapeError);
  EXPECT_THROW(model.forward(context, Tensor::zeros(context, {4, 4, 4, 1})), ShapeError);
}

TEST(MeshNet, CallsBackAfterEveryConvolution) {
  DeviceContext context(kCpu);
  const MeshNet model(context, small("mindgrab"), 0);
  std::vector<int64_t> calls;
  MeshNet::Options options;
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 4);
    calls.push_back(done);
  };
  const Variable logits = model.forward(context, Tensor::zeros(context, {1, 3, 4, 5, 1}), options);
  EXPECT_EQ(logits.value().shape(), (Shape{1, 3, 4, 5, 2}));
  EXPECT_EQ(calls, (std::vector<int64_t>{1, 2, 3, 4}));
  options.progress = [](int64_t, int64_t) { throw UsageError("enough"); };
  EXPECT_THROW(model.forward(context, Tensor::zeros(context, {1, 3, 4, 5, 1}), options), UsageError);
}

struct StepResult {
  std::vector<float> logits;
  std::vector<std::vector<float>> gradients;
};

// Forward, and the gradients of sum(logits * weights) with fixed random weights.
StepResult run_step(Device device, const MeshNetConfig& config, const Shape& shape,
                    DType precision = DType::f32) {
  DeviceContext context(device);
  MeshNet model(context, config, 3);
  const Tensor volume = Tensor::from_host(context, random_values(element_count(shape), 8), shape);
  Tape tape;
  StepResult result;
  {
    const TapeScope scope(context, &tape);
    const Variable logits = model.forward(context, volume, {.precision = precision, .progress = {}});
    result.logits = logits.value().to_host<float>(context);
    logits.add_gradient(context, Tensor::from_host(context, random_values(logits.value().count(), 9),
                                                   logits.value().shape()));
  }
  tape.backward(context);
  for (const auto& parameter : model.parameters().all()) {
    EXPECT_TRUE(parameter->gradient_written) << parameter->name;
    result.gradients.push_back(parameter->gradient.to_host<float>(context));
  }
  return result;
}

// The largest difference, relative to the largest value.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0, size = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    size = std::max(size, std::abs(static_cast<double>(a[i])));
  }
  return largest / size;
}

TEST(MeshNet, SimtAgreesWithCpu) {
  for (const std::string& name : meshnet_preset_names()) {
    MeshNetConfig config = small(name);
    config.channels = std::min<int64_t>(config.channels, 7);
    const Shape shape{2, 5, 6, 7, 1};
    const StepResult cpu = run_step(kCpu, config, shape);
    const StepResult simt = run_step(kSimt, config, shape);
    // Four layers of sums of at most 190 float32 terms, in another order.
    EXPECT_LT(difference(cpu.logits, simt.logits), 1e-5) << name;
    for (size_t i = 0; i < cpu.gradients.size(); ++i) {
      EXPECT_LT(difference(cpu.gradients[i], simt.gradients[i]), 1e-4) << name << " parameter " << i;
    }
    EXPECT_EQ(run_step(kCpu, config, shape).logits, cpu.logits) << name;
    EXPECT_EQ(run_step(kSimt, config, shape).logits, simt.logits) << name;
  }
}

TEST(MeshNet, LowerPrecisionIsNear) {
  const MeshNetConfig config = small("mindgrab");
  const StepResult full = run_step(kCpu, config, {1, 8, 8, 8, 1});
  for (const auto& [precision, tolerance] : {std::pair(DType::bf16, 0.05), std::pair(DType::f16, 0.01)}) {
    const StepResult low = run_step(kCpu, config, {1, 8, 8, 8, 1}, precision);
    EXPECT_LT(difference(full.logits, low.logits), tolerance);
    EXPECT_GT(difference(full.logits, low.logits), 0.0);
  }
}

// 256^3 voxels with 15 channels are a gigabyte, so this matters.
TEST(MeshNet, HoldsNoMoreThanTwoActivations) {
  for (const std::string& name : meshnet_preset_names()) {
    DeviceContext context(kCpu);
    const MeshNetConfig config = meshnet_preset(name);
    const MeshNet model(context, config, 1);
    const int64_t side = 24, voxels = side * side * side;
    const Tensor volume = Tensor::zeros(context, {1, side, side, side, 1});
    model.forward(context, volume);
    context.allocator().reset_peak();
    const auto before = static_cast<int64_t>(context.allocator().statistics().current_bytes);
    model.forward(context, volume);
    const auto peak = static_cast<int64_t>(context.allocator().statistics().peak_bytes) - before;
    const int64_t activations = 2 * voxels * config.channels * static_cast<int64_t>(sizeof(float));
    EXPECT_GE(peak, activations) << name;
    EXPECT_LT(peak, activations + (1 << 20)) << name << ": two activations and a little scratch";
  }
}

}  // namespace
}  // namespace vesal::models
