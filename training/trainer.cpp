// The training loop, its set-up and its schedule: see trainer.hpp.
#include "training/trainer.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "base/profiler.hpp"
#include "layers/schedule.hpp"
#include "runtime/tape.hpp"
#include "runtime/tensor.hpp"
#include "training/data_set.hpp"
#include "training/interrupted.hpp"
#include "training/loader.hpp"
#include "weights_tools/safetensors.hpp"

namespace vesal::training {
namespace {

constexpr double kCheckpointSeconds = 300;  // at most this much work is lost when the machine stops
constexpr int64_t kDefaultSteps = 2000;
constexpr int64_t kDefaultPatch = 64;

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

bool stopped(const std::atomic<bool>* stop) { return stop != nullptr && stop->load(); }

float read_scalar(DeviceContext& context, const Tensor& scalar) {
  return scalar.defined() ? scalar.to_host<float>(context)[0] : 0.0f;
}

// The network, its optimiser, and one step of both.
class Learner {
 public:
  Learner(DeviceContext& context, const models::FusionConfig& network, const RunConfig& config,
          imaging::Size3 patch, bool recompute)
      : context_(context),
        config_(config),
        patch_(patch),
        recompute_(recompute),
        network_(context, network, config.seed),
        optimizer_(layers::make_optimizer(context, network_.parameters(), config.optimizer,
                                          static_cast<float>(config.weight_decay),
                                          static_cast<float>(config.clip_norm))) {}

  models::Fusion& network() { return network_; }
  layers::Optimizer& optimizer() { return *optimizer_; }

  // Losses and norm of one step; the learning rate is the caller's. With f16 gradients that are not finite
  // only lower the loss scale, as long as it can be lowered.
  StepRecord step(const Batch& batch, float learning_rate, layers::LossScaler& scaler) {
    const bool scaled = config_.precision == DType::f16;
    const float loss_scale = scaled ? scaler.scale() : 1.0f;
    VESAL_RANGE("training_step");
    const auto samples = static_cast<int64_t>(batch.masks.size());
    Tape tape;
    models::FusionLoss loss;
    network_.parameters().clear_gradients();
    context_.seed_step(config_.seed, static_cast<uint64_t>(batch.step));
    {
      const AllocationTag tag("activations");
      const Tensor volume = Tensor::from_host(
          context_, batch.images, {samples, patch_.z, patch_.y, patch_.x, imaging::kModalityCount});
      const Tensor labels =
          Tensor::from_host(context_, batch.labels, {samples, patch_.z, patch_.y, patch_.x});
      {
        const TapeScope scope(context_, &tape);
        const models::FusionOutputs outputs = network_.forward(context_, volume, batch.masks,
                                                               {.training = true,
                                                                .edges = config_.edge_weight > 0,
                                                                .recompute = recompute_,
                                                                .precision = config_.precision},
                                                               batch.spacing_mm);
        loss = models::fusion_loss(
            context_, outputs, labels,
            {.edge_weight = static_cast<float>(config_.edge_weight), .scale = loss_scale});
      }
      tape.backward(context_);
    }
    optimizer_->step(context_, learning_rate, loss_scale);

    StepRecord record;
    record.segmentation = read_scalar(context_, loss.segmentation);
    record.edge = config_.edge_weight * read_scalar(context_, loss.edge);
    double weight = 1.0;
    for (const Tensor& deep : loss.deep) {
      weight *= 0.5;
      record.deep += weight * read_scalar(context_, deep);
    }
    record.loss = record.segmentation + record.edge + record.deep;
    record.gradient_norm = optimizer_->last_gradient_norm(context_);
    record.learning_rate = learning_rate;
    record.loss_scale = loss_scale;
    if (scaled) {
      const bool finite = std::isfinite(record.gradient_norm);
      record.skipped = !finite && scaler.can_shrink();
      scaler.update(finite);
    }
    if (record.skipped) {
      optimizer_->uncount_step();
    }
    return record;
  }

 private:
  DeviceContext& context_;
  const RunConfig& config_;
  imaging::Size3 patch_;
  bool recompute_;
  models::Fusion network_;
  std::unique_ptr<layers::Optimizer> optimizer_;
};

// The modalities that validation shows of a case.
imaging::ModalityMask shown(const imaging::PreparedCase& prepared, const RunConfig& config) {
  imaging::ModalityMask mask = config.validation_modalities;
  for (size_t m = 0; m < mask.size(); ++m) {
    mask[m] = mask[m] && prepared.present[m];
  }
  return mask;
}

void require_sensible(const TrainSettings& s) {
  check<UsageError>(!s.steps || !s.minutes, "steps and minutes: only one of them can be given");
  check<UsageError>(!s.validation_fraction || s.split.empty(),
                    "validation fraction and split: only one of them can be given");
  const auto at_least_one = [](const std::optional<int64_t>& value, const char* what) {
    check<UsageError>(!value || *value >= 1, what, ": found ", value.value_or(0), ", expected at least 1");
  };
  at_least_one(s.steps, "steps");
  at_least_one(s.schedule_steps, "schedule steps");
  at_least_one(s.batch, "batch");
  at_least_one(s.validate_every, "validate every");
  check<UsageError>(s.loader_threads >= 1, "loader threads: found ", s.loader_threads,
                    ", expected at least 1");
  check<UsageError>(!s.warmup_steps || *s.warmup_steps >= 0, "warm-up steps: found ",
                    s.warmup_steps.value_or(0), ", expected at least 0");
  const auto within = [](const std::optional<double>& value, const char* what, double low, double high) {
    check<UsageError>(!value || (*value >= low && *value <= high), what, ": found ", value.value_or(0),
                      ", expected ", low, " to ", high);
  };
  check<UsageError>(!s.minutes || (*s.minutes > 0 && std::isfinite(*s.minutes)), "minutes: found ",
                    s.minutes.value_or(0), ", expected more than 0");
  check<UsageError>(!s.learning_rate || (*s.learning_rate > 0 && *s.learning_rate <= 1),
                    "learning rate: found ", s.learning_rate.value_or(0),
                    ", expected more than 0 and at most 1");
  within(s.weight_decay, "weight decay", 0, 1);
  within(s.clip_norm, "gradient clipping", 0, 1e6);
  within(s.foreground, "foreground share", 0, 1);
  within(s.augment_strength, "augmentation strength", 0, 4);
  within(s.transplant, "share of transplants", 0, 1);
  within(s.heal, "share of healed heads", 0, 1);
  within(s.edge_weight, "edge weight", 0, 100);
  check<UsageError>(!s.validation_fraction || (*s.validation_fraction >= 0 && *s.validation_fraction < 1),
                    "validation fraction: found ", s.validation_fraction.value_or(0),
                    ", expected at least 0 and less than 1");
  check<UsageError>(!s.validation_overlap || (*s.validation_overlap >= 0 && *s.validation_overlap < 1),
                    "validation overlap: found ", s.validation_overlap.value_or(0),
                    ", expected at least 0 and less than 1");
  if (s.patch) {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t extent = (*s.patch)[axis];
      check<UsageError>(extent > 0 && extent <= 4096 && extent % models::Fusion::kStride == 0,
                        "patch: found ", to_string(*s.patch), ", expected positive multiples of ",
                        models::Fusion::kStride);
    }
  }
  if (s.spacing_mm) {
    for (int axis = 0; axis < 3; ++axis) {
      const double spacing = (*s.spacing_mm)[axis];
      check<UsageError>(spacing >= 0 && spacing <= 100, "spacing: found ", to_string(*s.spacing_mm),
                        " mm, expected 0 (the input's own) to 100 on each axis");
    }
  }
  check<UsageError>(!s.validation_modalities || imaging::count(*s.validation_modalities) > 0,
                    "validation modalities: none is left");
}

// Whether RUN can become a folder of ours: the nearest thing that exists is a folder in which one can write.
void require_writable(const std::filesystem::path& out) {
  std::filesystem::path existing = std::filesystem::absolute(out);
  std::error_code error;
  while (!std::filesystem::exists(existing, error) && existing.has_relative_path()) {
    existing = existing.parent_path();
  }
  check<IoError>(std::filesystem::is_directory(existing, error), existing.string(),
                 ": is not a folder, so the run cannot be written there");
  check<IoError>(::access(existing.c_str(), W_OK | X_OK) == 0, existing.string(), ": cannot be written");
}

template <class T>
void keep_recorded(const std::optional<T>& wanted, const T& recorded, const char* what,
                   const std::string& run) {
  if (wanted && !(*wanted == recorded)) {
    using imaging::name_of;
    using imaging::to_string;
    if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
      throw UsageError(concat(what, ": found ", *wanted, ", but ", run, " was started with ", recorded,
                              ", which a resumed run keeps"));
    } else if constexpr (std::is_enum_v<T>) {
      throw UsageError(concat(what, ": found ", name_of(*wanted), ", but ", run, " was started with ",
                              name_of(recorded), ", which a resumed run keeps"));
    } else {
      throw UsageError(concat(what, ": found ", to_string(*wanted), ", but ", run, " was started with ",
                              to_string(recorded), ", which a resumed run keeps"));
    }
  }
}

// A resumed run keeps what it was started with; a flag that says otherwise is an error, not ignored.
void require_agreement(const TrainSettings& s, const WeightsInfo& info, const RunConfig& c,
                       const std::string& run) {
  keep_recorded(s.model, info.network.preset, "model", run);
  keep_recorded(s.deep_supervision, info.network.deep_supervision, "deep supervision", run);
  keep_recorded(s.schedule_steps, c.schedule_steps, "schedule steps", run);
  keep_recorded(s.patch, info.patch, "patch", run);
  keep_recorded(s.spacing_mm, info.spacing_mm, "spacing", run);
  keep_recorded(s.precision, c.precision, "precision", run);
  keep_recorded(s.optimizer, c.optimizer, "optimizer", run);
  keep_recorded(s.batch, c.batch, "batch", run);
  keep_recorded(s.learning_rate, c.learning_rate, "learning rate", run);
  keep_recorded(s.seed, c.seed, "seed", run);
  keep_recorded(s.label_scheme, info.label_scheme, "label scheme", run);
  keep_recorded(s.validation_fraction, c.validation_fraction, "validation fraction", run);
  keep_recorded(s.warmup_steps, c.warmup_steps, "warm-up steps", run);
  keep_recorded(s.weight_decay, c.weight_decay, "weight decay", run);
  keep_recorded(s.clip_norm, c.clip_norm, "gradient clipping", run);
  keep_recorded(s.foreground, c.foreground, "foreground share", run);
  keep_recorded(s.augment, c.augment, "augmentation", run);
  keep_recorded(s.augment_strength, c.augment_strength, "augmentation strength", run);
  keep_recorded(s.transplant, c.transplant, "share of transplants", run);
  keep_recorded(s.heal, c.heal, "share of healed heads", run);
  keep_recorded(s.drop_modalities, c.drop_modalities, "modality dropout", run);
  keep_recorded(s.edge_weight, c.edge_weight, "edge weight", run);
  keep_recorded(s.validate_every, c.validate_every, "validate every", run);
  keep_recorded(s.validation_modalities, c.validation_modalities, "validation modalities", run);
  keep_recorded(s.validation_overlap, c.validation_overlap, "validation overlap", run);
  if (!s.split.empty()) {
    check<UsageError>(read_split_file(s.split) == c.split, s.split.string(), ": differs from the split that ",
                      run, " was started with, which a resumed run keeps");
  }
}

imaging::Size3 default_patch(const std::vector<imaging::PreparedCase>& cases) {
  imaging::Size3 patch{0, 0, 0};
  for (const imaging::PreparedCase& prepared : cases) {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t rounded =
          ceil_div(prepared.size()[axis], models::Fusion::kStride) * models::Fusion::kStride;
      patch[axis] = std::max(patch[axis], std::min(kDefaultPatch, rounded));
    }
  }
  return patch;
}

LoaderSettings loader_settings(const RunConfig& config, imaging::Size3 patch, int threads) {
  const auto foreground = static_cast<float>(config.foreground);
  LoaderSettings settings;
  settings.augment = imaging::crop_only(patch, foreground);
  if (config.augment) {
    settings.augment = imaging::with_strength({}, static_cast<float>(config.augment_strength));
    settings.augment.patch = patch;
    settings.augment.foreground_probability = foreground;
  }
  settings.augment.transplant_probability = static_cast<float>(config.transplant);
  settings.heal = static_cast<float>(config.heal);
  settings.batch = config.batch;
  settings.seed = config.seed;
  settings.drop_modalities = config.drop_modalities;
  settings.threads = threads;
  settings.ahead = threads + 2;
  return settings;
}

// One run: its data, its network, its files.
class Run {
 public:
  Run(const TrainSettings& settings, ProgressSink& progress, const std::atomic<bool>* stop)
      : settings_(settings), progress_(progress), stop_(stop), last_(settings.out / "last.safetensors") {}

  TrainResult execute();

 private:
  void open();
  void read_data();
  void choose();
  void measure();
  bool validate();
  PredictSettings tiles() const;
  void save();
  void announce();
  void loop();
  layers::Schedule schedule() const;
  double seconds_left(double step_seconds) const;

  const TrainSettings& settings_;
  ProgressSink& progress_;
  const std::atomic<bool>* stop_;
  const std::filesystem::path last_;
  const Stopwatch clock_;

  std::unique_ptr<weights::SafetensorsFile> checkpoint_;  // that is resumed
  std::unique_ptr<DeviceContext> context_;
  WeightsInfo info_;
  TrainerState state_;
  DataSet data_;
  std::unique_ptr<Learner> learner_;
  std::unique_ptr<RunLog> log_;
  TrainResult result_;
  double validation_seconds_ = 0;  // of the last one
  double saved_at_ = 0;            // seconds on the clock
  int64_t saved_step_ = -1;        // of the checkpoint on disk; -1: none
};

void Run::open() {
  require_sensible(settings_);
  std::error_code error;
  if (!settings_.resume) {
    const std::filesystem::path best = settings_.out / "best.safetensors";
    check<UsageError>(!std::filesystem::exists(last_, error), last_.string(),
                      ": a run is there already: continue it with --resume, or choose another --out");
    check<UsageError>(
        !std::filesystem::exists(best, error), best.string(),
        ": weights are there already, without a checkpoint to resume: remove them, or choose another --out");
    require_writable(settings_.out);
    info_.network = models::fusion_preset(settings_.model.value_or("fusion-tiny"));
    info_.network.deep_supervision = settings_.deep_supervision.value_or(true);
  } else {
    check<UsageError>(std::filesystem::exists(last_, error), last_.string(),
                      ": does not exist, so there is nothing to resume: leave out --resume");
    require_writable(settings_.out);
    checkpoint_ = std::make_unique<weights::SafetensorsFile>(last_);
    info_ = weights_info_from(checkpoint_->metadata(), last_.string());
    state_ = read_trainer_state(*checkpoint_);
    require_agreement(settings_, info_, state_.config, settings_.out.string());
  }
  context_ = std::make_unique<DeviceContext>(settings_.device);
}

void Run::read_data() {
  RunConfig& config = state_.config;
  const std::vector<imaging::CaseFiles> cases = imaging::list_cases(settings_.data);
  std::vector<std::string> names;
  for (const imaging::CaseFiles& files : cases) {
    names.push_back(files.name);
  }
  std::string where = settings_.data.string();
  if (checkpoint_) {
    where = last_.string();
  } else {
    config.seed = settings_.seed.value_or(config.seed);
    info_.label_scheme = settings_.label_scheme.value_or(info_.label_scheme);
    info_.spacing_mm = settings_.spacing_mm.value_or(info_.spacing_mm);
    if (!settings_.split.empty()) {
      where = settings_.split.string();
      config.split = read_split_file(settings_.split);
      config.validation_fraction = -1;
    } else {
      config.validation_fraction = settings_.validation_fraction.value_or(config.validation_fraction);
      config.split = split_by_fraction(names, config.validation_fraction, config.seed);
    }
  }
  require_cases(config.split, names, where);
  data_ = load_data_set(cases, config.split,
                        {.scheme = info_.label_scheme,
                         .spacing_mm = info_.spacing_mm,
                         .stop = stop_,
                         .progress = [this](int64_t done, int64_t total, const std::string& name) {
                           progress_.loading(done, total, name);
                         }});
}

void Run::choose() {
  RunConfig& config = state_.config;
  if (!checkpoint_) {
    info_.patch = settings_.patch.value_or(default_patch(data_.train));
    info_.modalities = data_.modalities();
    config.precision = settings_.precision.value_or(config.precision);
    config.optimizer = settings_.optimizer.value_or(config.optimizer);
    config.batch = settings_.batch.value_or(config.batch);
    const layers::OptimizerDefaults usual = layers::optimizer_defaults(config.optimizer);
    config.learning_rate = settings_.learning_rate.value_or(usual.learning_rate);
    config.weight_decay = settings_.weight_decay.value_or(usual.weight_decay);
    config.clip_norm = settings_.clip_norm.value_or(config.clip_norm);
    config.foreground = settings_.foreground.value_or(config.foreground);
    config.augment = settings_.augment.value_or(config.augment);
    config.augment_strength = settings_.augment_strength.value_or(config.augment_strength);
    config.transplant = settings_.transplant.value_or(config.transplant);
    config.heal = settings_.heal.value_or(config.heal);
    config.drop_modalities = settings_.drop_modalities.value_or(config.drop_modalities);
    config.edge_weight = settings_.edge_weight.value_or(config.edge_weight);
    config.validation_modalities = settings_.validation_modalities.value_or(config.validation_modalities);
    config.validation_overlap = settings_.validation_overlap.value_or(config.validation_overlap);
  }
  for (const imaging::PreparedCase& prepared : data_.validation) {
    check<UsageError>(imaging::count(shown(prepared, config)) > 0, prepared.name,
                      ": has none of the modalities ", imaging::to_string(config.validation_modalities),
                      " that validation shows");
  }
  if (checkpoint_) {
    check<UsageError>(!settings_.steps || *settings_.steps >= state_.step, "steps: found ",
                      settings_.steps.value_or(0), ", but ", settings_.out.string(), " is already at step ",
                      state_.step, ", expected at least that");
    state_.total_steps = settings_.steps.value_or(state_.total_steps);
    if (settings_.minutes) {
      progress_.message(concat("a resumed run keeps its number of steps: ", state_.total_steps));
    }
    return;
  }
  config.validate_every = settings_.validate_every.value_or(0);
  if (settings_.minutes) {
    measure();
  } else {
    state_.total_steps = settings_.steps.value_or(kDefaultSteps);
  }
  config.schedule_steps = settings_.schedule_steps.value_or(state_.total_steps);
  config.warmup_steps = settings_.warmup_steps.value_or(std::min<int64_t>(100, config.schedule_steps / 20));
  if (config.validate_every == 0) {
    config.validate_every = std::max<int64_t>(1, config.schedule_steps / 10);
  }
}

// Times a few steps and one case's validation on a network of its own, which is thrown away.
void Run::measure() {
  const double budget = *settings_.minutes * 60;
  constexpr int kWarmUp = 2;  // libraries prepare themselves in the first steps
  std::vector<double> times;
  double validation = 0;
  {
    Learner learner(*context_, info_.network, state_.config, info_.patch, settings_.recompute);
    Loader loader(data_.train, loader_settings(state_.config, info_.patch, settings_.loader_threads), 0);
    layers::LossScaler scaler;
    const Stopwatch watch;
    for (int i = 0; i < kWarmUp + 3 || (i < kWarmUp + 10 && watch.seconds() < 0.05 * budget); ++i) {
      check<InterruptedError>(!stopped(stop_), "interrupted while the steps were timed");
      const Stopwatch one;
      learner.step(loader.next(), 0.0f, scaler);
      if (i >= kWarmUp) {
        times.push_back(one.seconds());
      }
    }
    if (!data_.validation.empty()) {
      const imaging::PreparedCase& first = data_.validation.front();
      const Stopwatch one;
      predict_case(*context_, learner.network(), first, network_mask(shown(first, state_.config)), tiles());
      double voxels = 0;
      for (const imaging::PreparedCase& prepared : data_.validation) {
        voxels += static_cast<double>(prepared.size().voxels());
      }
      validation = one.seconds() * voxels / static_cast<double>(first.size().voxels());
    }
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  const double step_seconds = times[times.size() / 2];
  const TimePlan plan =
      plan_time(budget - clock_.seconds(), step_seconds, validation, state_.config.validate_every);
  state_.total_steps = plan.steps;
  state_.config.validate_every = plan.validate_every;
  progress_.message(concat("one step takes ", step_seconds, " s, a validation ", validation,
                           " s: ", plan.steps, " steps fit in ", *settings_.minutes, " minutes"));
}

layers::Schedule Run::schedule() const {
  return {.kind = layers::ScheduleKind::poly,
          .base_lr = static_cast<float>(state_.config.learning_rate),
          .warmup_steps = state_.config.warmup_steps,
          .total_steps = state_.config.schedule_steps};
}

PredictSettings Run::tiles() const {
  return {.patch = info_.patch,
          .overlap = state_.config.validation_overlap,
          .precision = state_.config.precision,
          .stop = stop_,
          .progress = {}};
}

// False when it was interrupted; then it counts as not done.
bool Run::validate() {
  if (data_.validation.empty()) {
    state_.validated_step = state_.step;
    return true;
  }
  VESAL_RANGE("validation");
  const Stopwatch watch;
  ValidationRecord record;
  record.step = state_.step;
  const auto total = static_cast<int64_t>(data_.validation.size());
  for (const imaging::PreparedCase& prepared : data_.validation) {
    CaseDice one{prepared.name, {}};
    try {
      one.dice = region_dice(predict_case(*context_, learner_->network(), prepared,
                                          network_mask(shown(prepared, state_.config)), tiles()),
                             prepared.labels);
    } catch (const InterruptedError&) {
      return false;
    }
    for (size_t r = 0; r < one.dice.size(); ++r) {
      record.dice[r] += one.dice[r] / static_cast<double>(total);
    }
    record.cases.push_back(std::move(one));
    progress_.validating(static_cast<int64_t>(record.cases.size()), total);
  }
  record.mean = (record.dice[0] + record.dice[1] + record.dice[2]) / 3.0;
  record.best = record.mean > state_.best_score;
  record.seconds = watch.seconds();
  state_.validated_step = state_.step;
  if (record.best) {
    state_.best_score = record.mean;
    state_.best_step = state_.step;
    WeightsInfo info = info_;
    info.step = state_.step;
    info.score = record.mean;
    write_weights(*context_, settings_.out / "best.safetensors", learner_->network(), info);
  }
  validation_seconds_ = record.seconds;
  log_->add(record);
  progress_.validation(record);
  result_.last_validation = std::move(record);
  return true;
}

void Run::save() {
  WeightsInfo info = info_;
  info.step = state_.step;
  write_checkpoint(*context_, last_, learner_->network(), learner_->optimizer(), info, state_);
  log_->draw(settings_.out / "progress.png",
             concat(info_.network.preset, ", step ", state_.step, " of ", state_.total_steps));
  result_.checkpoint = last_;
  saved_step_ = state_.step;
  saved_at_ = clock_.seconds();
}

double Run::seconds_left(double step_seconds) const {
  const int64_t steps = state_.total_steps - state_.step;
  const int64_t validations = data_.validation.empty() ? 0 : ceil_div(steps, state_.config.validate_every);
  return static_cast<double>(steps) * step_seconds + static_cast<double>(validations) * validation_seconds_;
}

void Run::loop() {
  const layers::Schedule rates = schedule();
  std::unique_ptr<Loader> loader;
  if (state_.step < state_.total_steps) {
    loader = std::make_unique<Loader>(
        data_.train, loader_settings(state_.config, info_.patch, settings_.loader_threads), state_.step);
  }
  // A validation that was due when the run was stopped comes first.
  bool done = true;
  if (validation_due(state_.config, state_.step) && state_.validated_step != state_.step) {
    done = validate();
    if (done) {
      save();
    }
  }
  double smooth_seconds = 0;
  while (done && state_.step < state_.total_steps && !stopped(stop_)) {
    const Stopwatch watch;
    const Batch batch = loader->next();
    StepRecord record = learner_->step(batch, layers::learning_rate_at(rates, state_.step), state_.scaler);
    if (!std::isfinite(record.loss) || (!std::isfinite(record.gradient_norm) && !record.skipped)) {
      throw Error(concat("training stopped at step ", state_.step + 1, ": the loss is ", record.loss,
                         " and the gradient's norm ", record.gradient_norm,
                         saved_step_ >= 0 ? concat("; the last good checkpoint is that of step ", saved_step_,
                                                   ", ", last_.string())
                                          : "; there is no checkpoint yet",
                         "; a smaller learning rate may help"));
    }
    ++state_.step;
    state_.skipped_steps += record.skipped ? 1 : 0;
    record.step = state_.step;
    record.total_steps = state_.total_steps;
    record.seconds = watch.seconds();
    record.stall_seconds = loader->last_stall_seconds();
    smooth_seconds = smooth_seconds == 0 ? record.seconds : 0.9 * smooth_seconds + 0.1 * record.seconds;
    record.seconds_left = seconds_left(smooth_seconds);
    result_.stall_seconds += record.stall_seconds;
    log_->add(record);
    progress_.step(record);
    if (validation_due(state_.config, state_.step)) {
      done = validate();
      save();
    } else if (clock_.seconds() - saved_at_ > kCheckpointSeconds) {
      save();
    }
  }
  if (saved_step_ != state_.step) {
    save();
  }
  result_.interrupted = !done || (state_.step < state_.total_steps && stopped(stop_));
}

void Run::announce() {
  const RunConfig& c = state_.config;
  progress_.message(concat(data_.train.size(), " cases to learn from, ", data_.validation.size(),
                           " to validate on, prepared in ", (data_.bytes() + 999'999) / 1'000'000, " MB"));
  progress_.message(concat(info_.network.preset, ", ", learner_->network().parameters().count(),
                           " parameters, on ", to_string(settings_.device), ", ", thread_count(),
                           " threads; patch ", to_string(info_.patch), ", batch ", c.batch, ", ",
                           layers::name_of(c.optimizer), ", ", name_of(c.precision), ", learning rate ",
                           c.learning_rate, " over ", c.schedule_steps, " steps; steps ", state_.step, " to ",
                           state_.total_steps));
  if (state_.total_steps > c.schedule_steps) {
    progress_.message(concat("the learning rate is 0 from step ", c.schedule_steps,
                             " on, where the schedule ends (--schedule-steps of the first run)"));
  }
  log_->add_line(nlohmann::ordered_json{
      {"event", state_.step > 0 ? "resume" : "start"},
      {"step", state_.step},
      {"version", VESAL_VERSION},
      {"device", to_string(settings_.device)},
      {"threads", thread_count()},
      {"model", info_.network.preset},
      {"label_scheme", imaging::name_of(info_.label_scheme)},
      {"spacing_mm", {info_.spacing_mm.x, info_.spacing_mm.y, info_.spacing_mm.z}},
      {"patch", {info_.patch.x, info_.patch.y, info_.patch.z}},
      {"state", nlohmann::json::parse(to_json(state_))},
  }
                     .dump());
}

TrainResult Run::execute() {
  open();
  result_.first_step = state_.step;
  try {
    read_data();
    choose();
    learner_ =
        std::make_unique<Learner>(*context_, info_.network, state_.config, info_.patch, settings_.recompute);
    if (checkpoint_) {
      restore_checkpoint(*context_, *checkpoint_, learner_->network(), learner_->optimizer());
      checkpoint_.reset();
      saved_step_ = state_.step;
    }
    std::error_code error;
    std::filesystem::create_directories(settings_.out, error);
    check<IoError>(!error, settings_.out.string(), ": cannot be created: ", error.message());
    const std::filesystem::path log = settings_.out / "log.jsonl";
    log_ = std::make_unique<RunLog>(settings_.resume ? RunLog::resume(log, state_.step, state_.validated_step)
                                                     : RunLog::create(log));
    announce();
    saved_at_ = clock_.seconds();
    loop();
    log_->add_line(nlohmann::ordered_json{{"event", "end"},
                                          {"step", state_.step},
                                          {"interrupted", result_.interrupted},
                                          {"seconds", clock_.seconds()},
                                          {"stall_seconds", result_.stall_seconds}}
                       .dump());
  } catch (const InterruptedError&) {
    result_.interrupted = true;  // before the first step: there is nothing to keep
  }
  result_.step = state_.step;
  result_.total_steps = state_.total_steps;
  result_.best_step = state_.best_step;
  result_.best_score = state_.best_score;
  result_.seconds = clock_.seconds();
  return std::move(result_);
}

}  // namespace

TimePlan plan_time(double seconds, double step_seconds, double validation_seconds, int64_t validate_every) {
  const double usable = 0.97 * seconds;
  TimePlan plan;
  if (validate_every > 0) {
    plan.validate_every = validate_every;
    const double per_step = step_seconds + validation_seconds / static_cast<double>(validate_every);
    plan.steps = std::max<int64_t>(1, static_cast<int64_t>(usable / per_step));
    return plan;
  }
  int64_t validations = 10;
  if (validation_seconds > 0) {
    validations = std::clamp<int64_t>(static_cast<int64_t>(0.3 * seconds / validation_seconds), 1, 10);
  }
  plan.steps = std::max<int64_t>(
      1,
      static_cast<int64_t>((usable - static_cast<double>(validations) * validation_seconds) / step_seconds));
  plan.validate_every = ceil_div(plan.steps, validations);
  return plan;
}

bool validation_due(const RunConfig& config, int64_t step) {
  return step > 0 && (step % config.validate_every == 0 || step == config.schedule_steps);
}

std::array<double, imaging::kRegionCount> region_dice(const RegionProbabilities& probabilities,
                                                      const imaging::LabelMap& labels) {
  check<ShapeError>(probabilities.values.size() == labels.data.size() * imaging::kRegionCount,
                    "region_dice: ", probabilities.values.size(), " probabilities for ", labels.data.size(),
                    " voxels of 3 regions");
  std::array<int64_t, imaging::kRegionCount> both{}, either{};  // |P and L|, |P| + |L|
  for (size_t i = 0; i < labels.data.size(); ++i) {
    const float* p = probabilities.values.data() + i * imaging::kRegionCount;
    const uint8_t predicted = imaging::label_of_regions(p[0], p[1], p[2]);
    for (const imaging::Region region : imaging::kRegions) {
      const bool in_prediction = imaging::in_region(predicted, region);
      const bool in_label = imaging::in_region(labels.data[i], region);
      both[static_cast<size_t>(region)] += in_prediction && in_label;
      either[static_cast<size_t>(region)] += in_prediction + in_label;
    }
  }
  std::array<double, imaging::kRegionCount> dice{};
  for (size_t r = 0; r < dice.size(); ++r) {
    dice[r] = either[r] == 0 ? 1.0 : 2.0 * static_cast<double>(both[r]) / static_cast<double>(either[r]);
  }
  return dice;
}

TrainResult train(const TrainSettings& settings, ProgressSink& progress, const std::atomic<bool>* stop) {
  return Run(settings, progress, stop).execute();
}

}  // namespace vesal::training
