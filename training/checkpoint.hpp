// What a training run leaves on disk: weights that say what they are for, and the trainer's state from which
// a run continues bit for bit. Both are safetensors files, written completely or not at all, without any time
// stamp.
//
// RUN/last.safetensors: weights, the optimiser's state ("optimizer.first_moment.NAME", with AdamW and Adam
// also "optimizer.second_moment.NAME") and the trainer's state as JSON under "vesal.trainer" in __metadata__.
// RUN/best.safetensors: weights and metadata only. All numbers are the float32 masters.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "imaging/case.hpp"
#include "imaging/volume.hpp"
#include "layers/loss_scaler.hpp"
#include "layers/optimizer.hpp"
#include "models/fusion.hpp"
#include "training/data_set.hpp"
#include "weights_tools/safetensors.hpp"

namespace vesal::training {

// What weights carry beside their numbers: the network's configuration, and how its input was prepared.
struct WeightsInfo {
  models::FusionConfig network;
  imaging::LabelScheme label_scheme = imaging::LabelScheme::brats2023;
  imaging::Vector3 spacing_mm;         // trained at; 0: at each input's own
  imaging::Size3 patch;                // trained on, X Y Z
  imaging::ModalityMask modalities{};  // seen in training
  int64_t step = 0;                    // training steps behind them
  double score = -1;                   // mean validation Dice at that step; -1: not measured
  std::string version;                 // of the program that wrote them; filled in when writing
};

// As the string map of a file, and back. FormatError names `file` and the entry that is missing or bad.
weights::Metadata to_metadata(const WeightsInfo& info);
WeightsInfo weights_info_from(const weights::Metadata& metadata, const std::string& file);

// The settings of a run that its result depends on, with every default filled in. A resumed run keeps them.
struct RunConfig {
  DType precision = DType::f32;  // of activations and weights; bf16 or f16: beside float32 masters
  layers::OptimizerKind optimizer = layers::OptimizerKind::adamw;
  int64_t batch = 2;
  double learning_rate = 3e-3;
  int64_t warmup_steps = 0;
  int64_t schedule_steps = 0;  // over which the learning rate falls
  double weight_decay = 1e-2;
  double clip_norm = 12.0;
  double foreground = 0.5;
  bool augment = true;
  double augment_strength = 1.0;
  double transplant = 0.0;
  double heal = 0.0;
  bool drop_modalities = true;
  double edge_weight = 0.1;
  uint64_t seed = 0;
  int64_t validate_every = 1;
  imaging::ModalityMask validation_modalities = imaging::kAllModalities;
  double validation_overlap = 0.25;
  double validation_fraction = 0.2;  // what the split was drawn with; negative: it came from a file
  Split split;
};

struct TrainerState {
  RunConfig config;
  int64_t total_steps = 0;     // the run ends here
  int64_t step = 0;            // steps done
  int64_t validated_step = 0;  // of the last validation, 0 before the first
  int64_t best_step = 0;
  double best_score = -1;     // mean validation Dice; -1 before the first
  int64_t skipped_steps = 0;  // whose gradients were not finite at the loss scale of their time
  layers::LossScaler scaler;  // of f16; the others are not scaled
};

// "f32", "bf16", "f16" as what --precision means; UsageError lists them for anything else.
DType parse_precision(std::string_view text);

// `file` for error messages. FormatError for text that is no state.
std::string to_json(const TrainerState& state);
TrainerState trainer_state_from_json(const std::string& text, const std::string& file);

void write_weights(DeviceContext& context, const std::filesystem::path& path, const models::Fusion& network,
                   const WeightsInfo& info);
void write_checkpoint(DeviceContext& context, const std::filesystem::path& path,
                      const models::Fusion& network, const layers::Optimizer& optimizer,
                      const WeightsInfo& info, const TrainerState& state);

// The state in a checkpoint; FormatError when the file holds weights only.
TrainerState read_trainer_state(const weights::SafetensorsFile& file);
// Weights, moments and the optimiser's step count of a checkpoint into a network of the same configuration.
void restore_checkpoint(DeviceContext& context, const weights::SafetensorsFile& file, models::Fusion& network,
                        layers::Optimizer& optimizer);

// The weights that RUN|FILE means: a file itself; of a folder best.safetensors, else last.safetensors.
// IoError says what was looked for.
std::filesystem::path find_weights(const std::filesystem::path& run_or_file);

struct LoadedNetwork {
  std::filesystem::path file;
  WeightsInfo info;
  std::unique_ptr<models::Fusion> network;
};

// Builds the network that a file describes and fills it, from weights or from a checkpoint.
LoadedNetwork load_network(DeviceContext& context, const std::filesystem::path& run_or_file);

}  // namespace vesal::training
