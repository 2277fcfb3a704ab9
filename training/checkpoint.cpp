// Metadata, trainer state, and the files that hold them: see checkpoint.hpp.
#include "training/checkpoint.hpp"

#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "training/metadata_reader.hpp"
#include "weights_tools/parameters.hpp"

namespace vesal::training {
namespace {

constexpr const char* kTrainerKey = "vesal.trainer";
constexpr std::string_view kOptimizerPrefix = "optimizer.";

template <class T>
std::string number_text(T value) {
  return nlohmann::json(value).dump();  // the shortest text that reads back as the same bits
}

template <class T>
std::string triple_text(T x, T y, T z) {
  return concat(number_text(x), " ", number_text(y), " ", number_text(z));
}

std::vector<weights::NamedTensor> all_tensors(const models::Fusion& network,
                                              const layers::Optimizer& optimizer) {
  std::vector<weights::NamedTensor> tensors = weights::named_parameters(network.parameters());
  const auto& parameters = network.parameters().all();
  for (const layers::Optimizer::State& kept : optimizer.states()) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      tensors.push_back({concat(kOptimizerPrefix, kept.name, ".", parameters[i]->name), kept.tensors[i],
                         parameters[i]->layout});
    }
  }
  return tensors;
}

}  // namespace

weights::Metadata to_metadata(const WeightsInfo& info) {
  weights::Metadata metadata = models::to_metadata(info.network);
  metadata["format"] = "vesal";
  metadata["vesal.version"] = VESAL_VERSION;
  metadata["vesal.label_scheme"] = std::string(imaging::name_of(info.label_scheme));
  metadata["vesal.spacing_mm"] = triple_text(info.spacing_mm.x, info.spacing_mm.y, info.spacing_mm.z);
  metadata["vesal.patch"] = triple_text(info.patch.x, info.patch.y, info.patch.z);
  metadata["vesal.modalities"] = imaging::to_string(info.modalities);
  metadata["vesal.orientation"] = "RAS";
  metadata["vesal.axes"] = "kji";
  metadata["vesal.step"] = number_text(info.step);
  metadata["vesal.score"] = number_text(info.score);
  return metadata;
}

WeightsInfo weights_info_from(const weights::Metadata& metadata, const std::string& file) {
  const MetadataReader reader(metadata, file, "weights written by vesal train");
  check<FormatError>(metadata.contains("vesal.version"), file,
                     ": metadata: vesal.version is missing, expected weights written by vesal train");
  WeightsInfo info;
  info.version = reader.text("vesal.version");
  try {
    info.network = models::fusion_config_from_metadata(metadata);
    info.label_scheme = imaging::parse_label_scheme(reader.text("vesal.label_scheme"));
    info.modalities = imaging::parse_modality_mask(reader.text("vesal.modalities"));
  } catch (const Error& error) {
    const std::string what = error.what();
    throw FormatError(what.starts_with(file) ? what : concat(file, ": metadata: ", what));
  }
  const std::vector<double> spacing = reader.numbers<double>("vesal.spacing_mm", 3);
  info.spacing_mm = {spacing[0], spacing[1], spacing[2]};
  reader.require(spacing[0] >= 0 && spacing[1] >= 0 && spacing[2] >= 0, "vesal.spacing_mm");
  const std::vector<int64_t> patch = reader.numbers<int64_t>("vesal.patch", 3);
  info.patch = {patch[0], patch[1], patch[2]};
  for (const int64_t extent : patch) {
    reader.require(extent > 0 && extent <= 4096 && extent % models::Fusion::kStride == 0, "vesal.patch");
  }
  reader.require(reader.text("vesal.orientation") == "RAS", "vesal.orientation");
  reader.require(reader.text("vesal.axes") == "kji", "vesal.axes");
  info.step = reader.numbers<int64_t>("vesal.step", 1)[0];
  info.score = reader.numbers<double>("vesal.score", 1)[0];
  return info;
}

DType parse_precision(std::string_view text) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    if (text == name_of(dtype)) {
      return dtype;
    }
  }
  throw UsageError(concat("precision: found ", text, ", expected f32, bf16 or f16"));
}

std::string to_json(const TrainerState& state) {
  const RunConfig& c = state.config;
  return nlohmann::json{
      {"precision", name_of(c.precision)},
      {"optimizer", layers::name_of(c.optimizer)},
      {"batch", c.batch},
      {"learning_rate", c.learning_rate},
      {"warmup_steps", c.warmup_steps},
      {"schedule_steps", c.schedule_steps},
      {"weight_decay", c.weight_decay},
      {"clip_norm", c.clip_norm},
      {"foreground", c.foreground},
      {"augment", c.augment},
      {"augment_strength", c.augment_strength},
      {"transplant", c.transplant},
      {"heal", c.heal},
      {"drop_modalities", c.drop_modalities},
      {"edge_weight", c.edge_weight},
      {"seed", c.seed},
      {"validate_every", c.validate_every},
      {"validation_modalities", imaging::to_string(c.validation_modalities)},
      {"validation_overlap", c.validation_overlap},
      {"validation_fraction", c.validation_fraction},
      {"train", c.split.train},
      {"validation", c.split.validation},
      {"total_steps", state.total_steps},
      {"step", state.step},
      {"validated_step", state.validated_step},
      {"best_step", state.best_step},
      {"best_score", state.best_score},
      {"skipped_steps", state.skipped_steps},
      {"loss_scale", state.scaler.scale()},
      {"loss_scale_good_steps", state.scaler.good_steps()},
  }
      .dump();
}

TrainerState trainer_state_from_json(const std::string& text, const std::string& file) {
  TrainerState state;
  RunConfig& c = state.config;
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    // Runs from before there was a choice.
    c.precision = parse_precision(json.value("precision", "f32"));
    c.optimizer = layers::parse_optimizer(json.value("optimizer", "adamw"));
    json.at("batch").get_to(c.batch);
    json.at("learning_rate").get_to(c.learning_rate);
    json.at("warmup_steps").get_to(c.warmup_steps);
    json.at("schedule_steps").get_to(c.schedule_steps);
    json.at("weight_decay").get_to(c.weight_decay);
    json.at("clip_norm").get_to(c.clip_norm);
    json.at("foreground").get_to(c.foreground);
    json.at("augment").get_to(c.augment);
    json.at("augment_strength").get_to(c.augment_strength);
    json.at("transplant").get_to(c.transplant);
    json.at("heal").get_to(c.heal);
    json.at("drop_modalities").get_to(c.drop_modalities);
    json.at("edge_weight").get_to(c.edge_weight);
    json.at("seed").get_to(c.seed);
    json.at("validate_every").get_to(c.validate_every);
    c.validation_modalities =
        imaging::parse_modality_mask(json.at("validation_modalities").get<std::string>());
    json.at("validation_overlap").get_to(c.validation_overlap);
    json.at("validation_fraction").get_to(c.validation_fraction);
    json.at("train").get_to(c.split.train);
    json.at("validation").get_to(c.split.validation);
    json.at("total_steps").get_to(state.total_steps);
    json.at("step").get_to(state.step);
    json.at("validated_step").get_to(state.validated_step);
    json.at("best_step").get_to(state.best_step);
    json.at("best_score").get_to(state.best_score);
    state.skipped_steps = json.value("skipped_steps", state.skipped_steps);
    state.scaler.restore(json.value("loss_scale", state.scaler.scale()),
                         json.value("loss_scale_good_steps", state.scaler.good_steps()));
  } catch (const nlohmann::json::exception& error) {
    throw FormatError(concat(file, ": trainer state: ", error.what()));
  } catch (const Error& error) {
    throw FormatError(concat(file, ": trainer state: ", error.what()));
  }
  check<FormatError>(c.batch >= 1 && c.schedule_steps >= 1 && c.warmup_steps >= 0 && c.validate_every >= 1 &&
                         state.step >= 0 && state.total_steps >= 0 && state.skipped_steps >= 0 &&
                         state.skipped_steps <= state.step,
                     file, ": trainer state: batch ", c.batch, ", schedule_steps ", c.schedule_steps,
                     ", warmup_steps ", c.warmup_steps, ", validate_every ", c.validate_every, ", step ",
                     state.step, " of ", state.total_steps, ", skipped_steps ", state.skipped_steps,
                     " make no sense");
  return state;
}

void write_weights(DeviceContext& context, const std::filesystem::path& path, const models::Fusion& network,
                   const WeightsInfo& info) {
  weights::write_tensors(context, path, weights::named_parameters(network.parameters()), to_metadata(info));
}

void write_checkpoint(DeviceContext& context, const std::filesystem::path& path,
                      const models::Fusion& network, const layers::Optimizer& optimizer,
                      const WeightsInfo& info, const TrainerState& state) {
  weights::Metadata metadata = to_metadata(info);
  metadata[kTrainerKey] = to_json(state);
  weights::write_tensors(context, path, all_tensors(network, optimizer), metadata);
}

TrainerState read_trainer_state(const weights::SafetensorsFile& file) {
  const auto found = file.metadata().find(kTrainerKey);
  check<FormatError>(
      found != file.metadata().end(), file.path().string(),
      ": holds no trainer state (weights only?), expected a checkpoint that vesal train wrote");
  return trainer_state_from_json(found->second, file.path().string());
}

void restore_checkpoint(DeviceContext& context, const weights::SafetensorsFile& file, models::Fusion& network,
                        layers::Optimizer& optimizer) {
  weights::load_tensors(context, file, all_tensors(network, optimizer));
  network.parameters().values_changed();
  const TrainerState state = read_trainer_state(file);
  optimizer.set_steps(state.step - state.skipped_steps);
}

std::filesystem::path find_weights(const std::filesystem::path& run_or_file) {
  std::error_code error;
  if (!std::filesystem::is_directory(run_or_file, error)) {
    check<IoError>(std::filesystem::exists(run_or_file, error), run_or_file.string(),
                   ": does not exist, expected a weights file or a run's folder");
    return run_or_file;
  }
  for (const char* name : {"best.safetensors", "last.safetensors"}) {
    if (std::filesystem::exists(run_or_file / name, error)) {
      return run_or_file / name;
    }
  }
  throw IoError(concat(run_or_file.string(), ": holds neither best.safetensors nor last.safetensors"));
}

LoadedNetwork load_network(DeviceContext& context, const std::filesystem::path& run_or_file) {
  LoadedNetwork loaded;
  loaded.file = find_weights(run_or_file);
  const weights::SafetensorsFile file(loaded.file);
  loaded.info = weights_info_from(file.metadata(), loaded.file.string());
  loaded.network = std::make_unique<models::Fusion>(context, loaded.info.network, std::nullopt);
  const std::string_view ignored[] = {kOptimizerPrefix};
  weights::load_tensors(context, file, weights::named_parameters(loaded.network->parameters()), ignored);
  return loaded;
}

}  // namespace vesal::training
