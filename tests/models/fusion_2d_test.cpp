// The original 2D network: size, what is trained, configuration, dropout, and how often statistics move. Its
// numbers are compared with PyTorch's in tests/oracle/fusion_2d.py.
#include "models/fusion_2d.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "models/catalogue.hpp"

namespace vesal::models {
namespace {

constexpr Device kCpu{DeviceType::cpu, 0};

Tensor random_image(DeviceContext& context, int64_t n, int64_t side, int64_t channels, uint64_t seed) {
  RandomStream random(seed, 0, 0);
  std::vector<float> values(static_cast<size_t>(n * side * side * channels));
  for (float& value : values) {
    value = random.normal();
  }
  return Tensor::from_host(context, values, {n, 1, side, side, channels});
}

TEST(Fusion2d, HoldsWhatAPublishedCheckpointHolds) {
  DeviceContext context(kCpu);
  for (const std::string& name : fusion_2d_preset_names()) {
    const std::unique_ptr<Model> model = make_model(context, name, std::nullopt);
    const layers::ParameterStore& store = model->parameters();
    EXPECT_EQ(store.count(), 129525884) << name;
    EXPECT_EQ(store.all().size(), 428u) << name;
    EXPECT_EQ(store.entries().size(), 617u) << name;
    // Frozen: 69,138 numbers of Sobel kernels, and 12,543,536 that no output depends on.
    int64_t trainable = 0;
    for (const auto& parameter : store.all()) {
      trainable += parameter->trainable ? parameter->value.count() : 0;
    }
    EXPECT_EQ(trainable, 129456746 - 12543536) << name;
  }
}

TEST(Fusion2d, ConfigurationSurvivesMetadata) {
  for (const std::string& name : fusion_2d_preset_names()) {
    Fusion2dConfig config = fusion_2d_preset(name);
    config.dropout = DecoderDropout::always;
    config.drop_path = 0.25f;
    EXPECT_EQ(to_metadata(fusion_2d_config_from_metadata(to_metadata(config))), to_metadata(config));
  }
  EXPECT_THROW(fusion_2d_preset("fusion"), UsageError);
  for (const auto& [key, value] :
       {std::pair("mfib_layout", "repo"), std::pair("head", ""), std::pair("drop_path", "1.5"),
        std::pair("gate_eps", "nan"), std::pair("model", "fusion")}) {
    ModelMetadata metadata = to_metadata(fusion_2d_preset("fusion-2d"));
    metadata[key] = value;
    EXPECT_THROW(fusion_2d_config_from_metadata(metadata), FormatError) << key;
    metadata.erase(key);
    EXPECT_THROW(fusion_2d_config_from_metadata(metadata), FormatError) << key;
  }
}

TEST(Fusion2d, SobelKernelsStartAsSobels) {
  DeviceContext context(kCpu);
  layers::ParameterStore store;
  const EdgeSpatialAttention esab(layers::ParameterBuilder(context, store, 0), 2, HeadEnd::relu, 0.0f);
  const layers::Parameter* x = store.find("sobel_x1.0.weight");
  const layers::Parameter* y = store.find("sobel_y1.0.weight");
  ASSERT_TRUE(x != nullptr && y != nullptr);
  EXPECT_EQ(x->value.to_host<float>(context),
            (std::vector<float>{1, 1, 0, 0, -1, -1, 2, 2, 0, 0, -2, -2, 1, 1, 0, 0, -1, -1}));
  EXPECT_EQ(y->value.to_host<float>(context),
            (std::vector<float>{1, 1, 2, 2, 1, 1, 0, 0, 0, 0, 0, 0, -1, -1, -2, -2, -1, -1}));
  EXPECT_FALSE(x->trainable);
}

TEST(Fusion2d, RefusesWrongInputsDropsWhenToldAndCountsItsBatches) {
  DeviceContext context(kCpu);
  Fusion2dConfig config = fusion_2d_preset("fusion-2d");
  config.drop_path = 0.0f;
  Fusion2d published(context, config, 3);
  const Tensor semantic = random_image(context, 2, 32, 3, 1), edges = random_image(context, 2, 32, 2, 2);
  EXPECT_THROW(published.forward(context, edges, edges, false), ShapeError);
  EXPECT_THROW(published.forward(context, random_image(context, 2, 24, 3, 1), edges, false), ShapeError);
  EXPECT_THROW(published.forward(context, random_image(context, 1, 32, 3, 1), edges, false), ShapeError);

  const auto segment = [&](const Fusion2d& model, bool training, uint64_t step) {
    context.seed_step(1, step);
    return model.forward(context, semantic, edges, training).segmentation.value().to_host<float>(context);
  };
  // The published ReLU leaves no negative logit.
  const std::vector<float> evaluated = segment(published, false, 1);
  EXPECT_GE(*std::min_element(evaluated.begin(), evaluated.end()), 0.0f);
  EXPECT_GT(*std::max_element(evaluated.begin(), evaluated.end()), 0.0f);
  EXPECT_EQ(segment(published, false, 2), evaluated);
  EXPECT_NE(segment(published, true, 1), segment(published, true, 2));

  const auto counted = [&](const char* name) {
    for (const auto& counter : published.parameters().counters()) {
      if (counter->name == name) {
        return counter->value;
      }
    }
    return int64_t{-1};
  };
  EXPECT_EQ(counted("cnn.down1.bn1.num_batches_tracked"), 2);
  EXPECT_EQ(counted("fusion1.reason.bn.num_batches_tracked"), 4);  // both branches, in each of two steps
  EXPECT_EQ(counted("fusion4.down.bn1.num_batches_tracked"), 4);
  EXPECT_EQ(counted("upe1.ban.num_batches_tracked"), 4);  // for two levels
  EXPECT_EQ(counted("upe2.ban.num_batches_tracked"), 2);
  EXPECT_EQ(counted("cnn.up4.ban.num_batches_tracked"), 0);  // discarded by the published code
}

TEST(Fusion2d, PublishedDropoutIsAlwaysThereAndTheFixedHeadIsLinear) {
  DeviceContext context(kCpu);
  Fusion2dConfig config = fusion_2d_preset("fusion-2d-fixed");
  config.dropout = DecoderDropout::always;
  const Fusion2d model(context, config, 3);
  const Tensor semantic = random_image(context, 1, 32, 3, 1), edges = random_image(context, 1, 32, 2, 2);
  const auto run = [&](uint64_t step) {
    context.seed_step(1, step);
    const Fusion2dOutputs outputs = model.forward(context, semantic, edges, false);
    return std::pair(outputs.segmentation.value().to_host<float>(context),
                     outputs.edges.value().to_host<float>(context));
  };
  const auto [first, first_edges] = run(1);
  const auto [second, second_edges] = run(2);
  EXPECT_NE(first, second);
  EXPECT_EQ(first_edges, second_edges);
  EXPECT_LT(*std::min_element(first.begin(), first.end()), 0.0f);
  EXPECT_LT(*std::min_element(first_edges.begin(), first_edges.end()), 0.0f);
}

}  // namespace
}  // namespace vesal::models
