// Training of the fusion network from a folder of cases: everything that `vesal train` does but the command
// line.
//
// A run is deterministic: on one build, processor type, device and thread count the same settings give the
// same bytes in last.safetensors and best.safetensors, and a run that was stopped and resumed gives those of
// one that never was.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "base/device.hpp"
#include "imaging/case.hpp"
#include "imaging/volume.hpp"
#include "training/checkpoint.hpp"
#include "training/predictor.hpp"
#include "training/run_log.hpp"

namespace vesal::training {

// What a user may choose. An empty optional takes the default of a new run, and what was recorded when a run
// is resumed; a value that differs from the recorded one is then a UsageError (steps excepted).
struct TrainSettings {
  std::filesystem::path data;
  std::filesystem::path out;  // RUN
  Device device;
  bool resume = false;
  int loader_threads = 1;
  // Less memory for activations, more time, the same bits (models::ForwardOptions); may differ on resuming.
  bool recompute = false;

  std::optional<std::string> model;  // "fusion-tiny"
  // f32; bf16 or f16 store activations and the weights that kernels read in half the memory, beside float32
  // masters. f16 scales the loss (layers/loss_scaler.hpp).
  std::optional<DType> precision;
  std::optional<layers::OptimizerKind> optimizer;  // adamw
  // The run ends at this step, counted from the very first one; default 2000. May be changed on resuming.
  std::optional<int64_t> steps;
  // Or: as many steps as fit in this time, reading data and validation included. Measured once on a copy of
  // the network, then fixed and recorded: the run is the same, bit for bit, as one with --steps of that
  // number.
  std::optional<double> minutes;
  // Steps over which the learning rate falls; default: steps.
  std::optional<int64_t> schedule_steps;
  // X Y Z, multiples of 16. Default: 64 a side, less where no case is that large.
  std::optional<imaging::Size3> patch;
  std::optional<imaging::Vector3> spacing_mm;        // default 0 0 0: each input's own
  std::optional<int64_t> batch;                      // 2
  std::optional<double> learning_rate;               // layers::optimizer_defaults; with AdamW 3e-3
  std::optional<uint64_t> seed;                      // 0
  std::optional<imaging::LabelScheme> label_scheme;  // brats2023
  std::optional<double> validation_fraction;         // 0.2
  std::filesystem::path split;                       // a file; not together with validation_fraction

  std::optional<int64_t> warmup_steps;     // schedule_steps / 20, at most 100
  std::optional<double> weight_decay;      // layers::optimizer_defaults; with AdamW 0.01
  std::optional<double> clip_norm;         // 12; 0: no clipping
  std::optional<double> foreground;        // share of patches about a tumour voxel: 0.5
  std::optional<bool> augment;             // true
  std::optional<double> augment_strength;  // 1; see imaging::with_strength
  std::optional<double> transplant;        // share of patches that get a tumour of another case: 0
  std::optional<double> heal;              // share of patches from heads whose tumour is painted over: 0
  std::optional<bool> drop_modalities;     // true
  std::optional<double> edge_weight;       // 0.1; 0: no edge loss
  std::optional<bool> deep_supervision;    // true
  std::optional<int64_t> validate_every;   // a tenth of schedule_steps; checkpoints are written then as well
  std::optional<imaging::ModalityMask> validation_modalities;  // all that a case has
  std::optional<double> validation_overlap;                    // 0.25
};

// What a running training tells whoever draws the progress bar. Called on the training thread.
class ProgressSink {
 public:
  virtual ~ProgressSink() = default;
  // A line for people: what was read, what was chosen.
  virtual void message(const std::string&) {}
  virtual void loading(int64_t /*done*/, int64_t /*total*/, const std::string& /*name*/) {}
  virtual void step(const StepRecord&) {}
  // Cases scored so far of the validation under way.
  virtual void validating(int64_t /*done*/, int64_t /*total*/) {}
  virtual void validation(const ValidationRecord&) {}
};

struct TrainResult {
  bool interrupted = false;
  int64_t first_step = 0;   // steps that were done before this call
  int64_t step = 0;         // steps that are done now
  int64_t total_steps = 0;  // the run ends here
  int64_t best_step = 0;    // 0: no validation yet
  double best_score = -1;   // mean validation Dice
  std::optional<ValidationRecord> last_validation;
  double seconds = 0;
  double stall_seconds = 0;
  // Written by this call; empty when it was stopped before anything was worth keeping.
  std::filesystem::path checkpoint;
};

// Steps and validation interval that fit in `seconds`: at most ten validations, which take at most 30 % of
// the time (one in any case), and 3 % in hand. `validate_every` 0: to be chosen.
struct TimePlan {
  int64_t steps = 1;
  int64_t validate_every = 1;
};
TimePlan plan_time(double seconds, double step_seconds, double validation_seconds, int64_t validate_every);

// A validation is due after this step: a function of the step and the recorded settings only, so that
// stopping and resuming cannot add or lose one.
bool validation_due(const RunConfig& config, int64_t step);

// Dice of WT, TC and ET (1 when both are empty, 0 when one is) of region probabilities against the labels of
// the prepared grid; a voxel's label is painted WT, TC, ET as for predictions.
std::array<double, imaging::kRegionCount> region_dice(const RegionProbabilities& probabilities,
                                                      const imaging::LabelMap& labels);

// Trains until the last step or until `stop` (may be null) becomes true; then the step under way is finished
// and last.safetensors is written. Throws UsageError for settings that make no sense, for an existing run
// without `resume` and for a missing one with it; what reading data throws; IoError when the run cannot be
// written; Error when the loss or the gradient is no longer finite (the last good checkpoint stays). Nothing
// is written before the data are read.
TrainResult train(const TrainSettings& settings, ProgressSink& progress,
                  const std::atomic<bool>* stop = nullptr);

}  // namespace vesal::training
