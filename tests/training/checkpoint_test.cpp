// Metadata and trainer state survive a file bit for bit; files that are no checkpoint are refused by name.
#include "training/checkpoint.hpp"

#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "tests/training/training_fixture.hpp"
#include "weights_tools/parameters.hpp"

namespace vesal::training {
namespace {

class CheckpointTest : public TrainingTest {
 protected:
  static WeightsInfo info() {
    WeightsInfo info;
    info.network = models::fusion_preset("fusion-micro");
    info.network.deep_supervision = false;
    info.label_scheme = imaging::LabelScheme::brats2021;
    info.spacing_mm = {1.0, 0.1, 1.0 / 3.0};
    info.patch = {32, 48, 64};
    info.modalities = {true, false, true, true};
    info.step = 1234;
    info.score = 0.1 + 0.2;
    return info;
  }

  static TrainerState state() {
    TrainerState state;
    RunConfig& c = state.config;
    c.precision = DType::f16;
    c.optimizer = layers::OptimizerKind::adam;
    c.batch = 3;
    c.learning_rate = 1.0 / 3.0;
    c.warmup_steps = 7;
    c.schedule_steps = 11;
    c.weight_decay = 0.3;
    c.clip_norm = 0;
    c.foreground = 0.7;
    c.augment = false;
    c.augment_strength = 1.0 / 7.0;
    c.transplant = 0.2;
    c.heal = 0.6;
    c.drop_modalities = false;
    c.edge_weight = 0.25;
    c.seed = 0xffff'ffff'ffff'fffeull;
    c.validate_every = 5;
    c.validation_modalities = {true, true, false, false};
    c.validation_overlap = 0.125;
    c.validation_fraction = -1;
    c.split = {{"a", "b \"quoted\""}, {"c"}};
    state.total_steps = 20;
    state.step = 10;
    state.validated_step = 5;
    state.best_step = 5;
    state.best_score = 0.3;
    state.skipped_steps = 3;
    state.scaler.restore(8192.0f, 1500);
    return state;
  }

  static void expect_same(const TrainerState& a, const TrainerState& b) { EXPECT_EQ(to_json(a), to_json(b)); }
};

TEST_F(CheckpointTest, MetadataRoundTrip) {
  const WeightsInfo original = info();
  const WeightsInfo back = weights_info_from(to_metadata(original), "f");
  EXPECT_EQ(to_metadata(back), to_metadata(original));
  EXPECT_EQ(back.network.preset, "fusion-micro");
  EXPECT_FALSE(back.network.deep_supervision);
  EXPECT_EQ(back.label_scheme, original.label_scheme);
  EXPECT_EQ(back.spacing_mm, original.spacing_mm);
  EXPECT_EQ(back.patch, original.patch);
  EXPECT_EQ(back.modalities, original.modalities);
  EXPECT_EQ(back.step, original.step);
  EXPECT_EQ(back.score, original.score);
  EXPECT_FALSE(back.version.empty());
}

TEST_F(CheckpointTest, EveryBadMetadataEntryIsNamed) {
  const weights::Metadata good = to_metadata(info());
  for (const auto& [key, value] : good) {
    if (!key.starts_with("vesal.")) {
      continue;
    }
    weights::Metadata missing = good;
    missing.erase(key);
    EXPECT_TRUE(holds(message_of<FormatError>([&] { weights_info_from(missing, "f.safetensors"); }), key));
  }
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"vesal.patch", "32 32"},
                                                        {"vesal.patch", "32 32 32 32"},
                                                        {"vesal.patch", "32 32 33"},
                                                        {"vesal.patch", "0 32 32"},
                                                        {"vesal.patch", "32,32,32"},
                                                        {"vesal.spacing_mm", "1 1 -1"},
                                                        {"vesal.spacing_mm", "1 1 nan"},
                                                        {"vesal.spacing_mm", ""},
                                                        {"vesal.step", "x"},
                                                        {"vesal.axes", "ijk"},
                                                        {"vesal.orientation", "LPS"}}) {
    weights::Metadata bad = good;
    bad[key] = value;
    const std::string line = message_of<FormatError>([&] { weights_info_from(bad, "f.safetensors"); });
    EXPECT_TRUE(holds(line, key) && holds(line, "f.safetensors")) << line;
  }
  for (const auto& [key, value] : std::vector<std::pair<std::string, std::string>>{
           {"vesal.label_scheme", "brats1999"}, {"vesal.modalities", "t1n,xyz"}}) {
    weights::Metadata bad = good;
    bad[key] = value;
    EXPECT_TRUE(
        holds(message_of<FormatError>([&] { weights_info_from(bad, "f.safetensors"); }), "f.safetensors"));
  }
}

TEST_F(CheckpointTest, StateRoundTripKeepsEveryBit) {
  const TrainerState original = state();
  const TrainerState back = trainer_state_from_json(to_json(original), "f");
  expect_same(back, original);
  EXPECT_EQ(back.config.seed, original.config.seed);
  EXPECT_EQ(back.config.learning_rate, original.config.learning_rate);
  EXPECT_EQ(back.config.split, original.config.split);
  EXPECT_EQ(back.best_score, original.best_score);
  EXPECT_EQ(back.config.validation_modalities, original.config.validation_modalities);
  EXPECT_EQ(back.config.precision, DType::f16);
  EXPECT_EQ(back.config.optimizer, layers::OptimizerKind::adam);
  EXPECT_EQ(back.skipped_steps, 3);
  EXPECT_EQ(back.scaler.scale(), 8192.0f);
  EXPECT_EQ(back.scaler.good_steps(), 1500);
}

TEST_F(CheckpointTest, StatesFromBeforePrecisionsAndOptimizersAreRead) {
  nlohmann::json json = nlohmann::json::parse(to_json(state()));
  for (const char* key : {"precision", "optimizer", "skipped_steps", "loss_scale", "loss_scale_good_steps"}) {
    ASSERT_EQ(json.erase(key), 1u) << key;
  }
  const TrainerState old = trainer_state_from_json(json.dump(), "f");
  EXPECT_EQ(old.config.precision, DType::f32);
  EXPECT_EQ(old.config.optimizer, layers::OptimizerKind::adamw);
  EXPECT_EQ(old.skipped_steps, 0);
  EXPECT_EQ(old.scaler.scale(), 65536.0f);
}

TEST_F(CheckpointTest, BadStatesAreRefused) {
  for (const char* text : {"", "{", "[]", "{}", "{\"batch\": \"two\"}"}) {
    EXPECT_TRUE(
        holds(message_of<FormatError>([&] { trainer_state_from_json(text, "f"); }), "f: trainer state"));
  }
  TrainerState zero = state();
  zero.config.validate_every = 0;
  message_of<FormatError>([&] { trainer_state_from_json(to_json(zero), "f"); });
  for (const auto& [key, value] : std::vector<std::pair<const char*, nlohmann::json>>{
           {"precision", "f64"}, {"optimizer", "lamb"}, {"skipped_steps", 11}, {"loss_scale", 3.0}}) {
    nlohmann::json json = nlohmann::json::parse(to_json(state()));
    json[key] = value;
    const std::string line = message_of<FormatError>([&] { trainer_state_from_json(json.dump(), "f"); });
    EXPECT_TRUE(holds(line, "f: trainer state")) << line;
  }
}

TEST_F(CheckpointTest, PrecisionsHaveNames) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    EXPECT_EQ(parse_precision(name_of(dtype)), dtype);
  }
  for (const char* text : {"", "f64", "fp16", "u8"}) {
    EXPECT_EQ(message_of<UsageError>([&] { parse_precision(text); }),
              concat("precision: found ", text, ", expected f32, bf16 or f16"));
  }
}

TEST_F(CheckpointTest, CheckpointRestoresWeightsMomentsAndSteps) {
  DeviceContext context{Device{}};
  const models::FusionConfig config = models::fusion_preset("fusion-micro");
  models::Fusion network(context, config, 1);
  layers::AdamW optimizer(context, network.parameters(), {});
  const auto fill = [&](const Tensor& tensor, float first) {
    std::vector<float> values(static_cast<size_t>(tensor.count()));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = first + 0.001f * static_cast<float>(i % 977);
    }
    tensor.copy_from_host(context, values.data(), tensor.bytes());
  };
  const size_t count = network.parameters().all().size();
  for (size_t i = 0; i < count; ++i) {
    fill(optimizer.first_moment(i), static_cast<float>(i));
    fill(optimizer.second_moment(i), 1000 + static_cast<float>(i));
  }
  WeightsInfo written = info();
  written.network = config;
  const auto file = folder_ / "last.safetensors";
  write_checkpoint(context, file, network, optimizer, written, state());

  models::Fusion other(context, config, 2);
  layers::AdamW other_optimizer(context, other.parameters(), {});
  const weights::SafetensorsFile opened(file);
  expect_same(read_trainer_state(opened), state());
  restore_checkpoint(context, opened, other, other_optimizer);
  EXPECT_EQ(other_optimizer.steps(), state().step - state().skipped_steps);
  for (size_t i = 0; i < count; ++i) {
    const auto& name = network.parameters().all()[i]->name;
    EXPECT_EQ(network.parameters().all()[i]->value.to_host<float>(context),
              other.parameters().all()[i]->value.to_host<float>(context))
        << name;
    EXPECT_EQ(optimizer.first_moment(i).to_host<float>(context),
              other_optimizer.first_moment(i).to_host<float>(context))
        << name;
    EXPECT_EQ(optimizer.second_moment(i).to_host<float>(context),
              other_optimizer.second_moment(i).to_host<float>(context))
        << name;
  }
  // Written again it is the same file.
  write_checkpoint(context, folder_ / "again.safetensors", other, other_optimizer, written, state());
  EXPECT_EQ(slurp(folder_ / "again.safetensors"), slurp(file));

  // Convolutions lie in the file as PyTorch writes them: [O, I, kd, kh, kw].
  bool saw_convolution = false;
  for (const auto& parameter : network.parameters().all()) {
    if (parameter->layout == layers::ParameterLayout::convolution) {
      saw_convolution = true;
      const Shape& shape = parameter->value.shape();
      EXPECT_EQ(opened.find(parameter->name)->shape,
                (Shape{shape[0], shape[4], shape[1], shape[2], shape[3]}));
    }
  }
  EXPECT_TRUE(saw_convolution);
}

TEST_F(CheckpointTest, LoadingANetworkFromARunFolderOrAFile) {
  DeviceContext context{Device{}};
  message_of<IoError>([&] { find_weights(folder_ / "absent"); });
  EXPECT_TRUE(
      holds(message_of<IoError>([&] { find_weights(folder_); }), "neither best.safetensors nor last"));

  WeightsInfo written = info();
  models::Fusion network(context, written.network, 1);
  layers::AdamW optimizer(context, network.parameters(), {});
  write_checkpoint(context, folder_ / "last.safetensors", network, optimizer, written, state());
  EXPECT_EQ(find_weights(folder_), folder_ / "last.safetensors");
  write_weights(context, folder_ / "best.safetensors", network, written);
  EXPECT_EQ(find_weights(folder_), folder_ / "best.safetensors");

  for (const auto& path : {folder_, folder_ / "last.safetensors"}) {
    const LoadedNetwork loaded = load_network(context, path);
    EXPECT_EQ(loaded.info.patch, written.patch);
    const auto& a = network.parameters().all();
    const auto& b = loaded.network->parameters().all();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i]->value.to_host<float>(context), b[i]->value.to_host<float>(context)) << a[i]->name;
    }
  }
  EXPECT_TRUE(holds(message_of<FormatError>(
                        [&] { read_trainer_state(weights::SafetensorsFile(folder_ / "best.safetensors")); }),
                    "holds no trainer state"));

  // Weights of another model: metadata of one network, tensors of another.
  models::FusionConfig tiny = models::fusion_preset("fusion-tiny");
  written.network = tiny;
  write_weights(context, folder_ / "other.safetensors", network, written);
  EXPECT_TRUE(holds(message_of<FormatError>([&] { load_network(context, folder_ / "other.safetensors"); }),
                    "weights of another model"));
  weights::write_safetensors(folder_ / "foreign.safetensors", {}, {{"format", "pt"}});
  EXPECT_TRUE(holds(message_of<FormatError>([&] { load_network(context, folder_ / "foreign.safetensors"); }),
                    "expected weights written by vesal train"));
}

}  // namespace
}  // namespace vesal::training
