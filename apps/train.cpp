// vesal train: a network from a folder of labelled cases.
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>

#include "apps/commands.hpp"
#include "apps/console.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"
#include "runtime/device_api.hpp"
#include "training/trainer.hpp"

namespace vesal::apps {
namespace {

struct Options {
  std::string data;
  std::string out;
  std::string device = "auto";
  bool resume = false;
  int threads = 0;
  int loader_threads = 1;
  bool recompute = false;
  std::string model;
  std::string precision;
  std::string optimizer;
  std::string label_scheme;
  std::string split;
  std::string val_modalities;
  int64_t steps = 0;
  double minutes = 0;
  int64_t schedule_steps = 0;
  std::vector<int64_t> patch;
  std::vector<double> spacing;
  int64_t batch = 0;
  double lr = 0;
  uint64_t seed = 0;
  double val_fraction = 0;
  int64_t warmup_steps = 0;
  double weight_decay = 0;
  double clip_norm = 0;
  double foreground = 0;
  double augment_strength = 0;
  double transplant = 0;
  double heal = 0;
  double edge_weight = 0;
  int64_t val_every = 0;
  double val_overlap = 0;
  bool no_augment = false;
  bool no_modality_dropout = false;
  bool no_deep_supervision = false;
};

// The bar with loss, Dice and time left; a line for each validation.
class Screen : public training::ProgressSink {
 public:
  void message(const std::string& text) override { show_line(text); }
  void loading(int64_t done, int64_t total, const std::string& name) override {
    if (!reading_) {
      reading_ = std::make_unique<ProgressBar>("reading");
    }
    reading_->update(done, total, name);
    if (done >= total) {
      reading_.reset();
    }
  }
  void step(const training::StepRecord& record) override {
    if (!bar_) {
      bar_ = std::make_unique<ProgressBar>("training");
    }
    // A mean over the last steps moves less than the loss of one.
    smooth_ =
        record.step == first_step_ || first_step_ == 0 ? record.loss : 0.95 * smooth_ + 0.05 * record.loss;
    first_step_ = first_step_ == 0 ? record.step : first_step_;
    char text[96];
    if (has_dice_) {
      std::snprintf(text, sizeof text, "loss %.3f  Dice %.3f", smooth_, dice_);
    } else {
      std::snprintf(text, sizeof text, "loss %.3f", smooth_);
    }
    bar_->update(record.step, record.total_steps, text, record.seconds_left);
  }
  void validation(const training::ValidationRecord& record) override {
    dice_ = record.mean;
    has_dice_ = true;
    char text[160];
    std::snprintf(text, sizeof text, "step %lld  validation Dice: WT %.3f  TC %.3f  ET %.3f  mean %.3f%s",
                  static_cast<long long>(record.step), record.dice[0], record.dice[1], record.dice[2],
                  record.mean, record.best ? "  (best)" : "");
    show_line(text);
  }
  void end() {
    reading_.reset();
    bar_.reset();
  }

 private:
  void show_line(const std::string& text) {
    if (bar_) {
      bar_->line(text);
    } else if (reading_) {
      reading_->line(text);
    } else {
      std::cout << text << std::endl;
    }
  }

  std::unique_ptr<ProgressBar> reading_;
  std::unique_ptr<ProgressBar> bar_;
  double smooth_ = 0;
  int64_t first_step_ = 0;
  double dice_ = 0;
  bool has_dice_ = false;
};

int run(const Options& options, const CLI::App& app) {
  if (options.threads > 0) {
    set_thread_count(options.threads);
  }
  const auto given = [&](const char* name) { return app.count(name) > 0; };
  training::TrainSettings settings;
  const auto take = [&](const char* name, auto& target, const auto& value) {
    if (given(name)) {
      target = value;
    }
  };
  settings.data = options.data;
  settings.out = options.out;
  settings.resume = options.resume;
  settings.loader_threads = options.loader_threads;
  settings.recompute = options.recompute;
  settings.split = options.split;
  take("--model", settings.model, options.model);
  take("--steps", settings.steps, options.steps);
  take("--minutes", settings.minutes, options.minutes);
  take("--schedule-steps", settings.schedule_steps, options.schedule_steps);
  take("--batch", settings.batch, options.batch);
  take("--lr", settings.learning_rate, options.lr);
  take("--seed", settings.seed, options.seed);
  take("--val-fraction", settings.validation_fraction, options.val_fraction);
  take("--warmup-steps", settings.warmup_steps, options.warmup_steps);
  take("--weight-decay", settings.weight_decay, options.weight_decay);
  take("--clip-norm", settings.clip_norm, options.clip_norm);
  take("--foreground", settings.foreground, options.foreground);
  take("--augment-strength", settings.augment_strength, options.augment_strength);
  take("--transplant", settings.transplant, options.transplant);
  take("--heal", settings.heal, options.heal);
  take("--edge-weight", settings.edge_weight, options.edge_weight);
  take("--val-every", settings.validate_every, options.val_every);
  take("--val-overlap", settings.validation_overlap, options.val_overlap);
  take("--no-augment", settings.augment, false);
  take("--no-modality-dropout", settings.drop_modalities, false);
  take("--no-deep-supervision", settings.deep_supervision, false);
  if (given("--precision")) {
    settings.precision = training::parse_precision(options.precision);
  }
  if (given("--optimizer")) {
    settings.optimizer = layers::parse_optimizer(options.optimizer);
  }
  if (given("--patch")) {
    settings.patch = to_size(options.patch);
  }
  if (given("--spacing")) {
    settings.spacing_mm = to_vector(options.spacing);
  }
  if (given("--label-scheme")) {
    settings.label_scheme = imaging::parse_label_scheme(options.label_scheme);
  }
  if (given("--val-modalities")) {
    settings.validation_modalities = imaging::parse_modality_mask(options.val_modalities);
  }
  settings.device = choose_device(options.device);
  std::cout << "on " << device_api::describe(settings.device) << std::endl;

  Screen screen;
  const training::TrainResult result = training::train(settings, screen, &stop_requested());
  screen.end();
  if (result.interrupted) {
    const std::string kept = result.checkpoint.empty()
                                 ? std::string("nothing was written")
                                 : concat(result.checkpoint.string(),
                                          " is complete; --resume with the same --data and --out continues");
    print_error("train", result.total_steps > 0 ? concat("interrupted after step ", result.step, " of ",
                                                         result.total_steps, "; ", kept)
                                                : concat("interrupted before the first step; ", kept));
    return kExitInterrupted;
  }
  char stall[32];
  std::snprintf(stall, sizeof stall, "%.1f %%",
                100.0 * result.stall_seconds / std::max(result.seconds, 1e-9));
  std::cout << "done: " << result.step << " steps in " << duration_text(result.seconds)
            << ", waiting for data " << stall;
  if (result.best_step > 0) {
    char best[64];
    std::snprintf(best, sizeof best, ", best mean Dice %.3f at step %lld", result.best_score,
                  static_cast<long long>(result.best_step));
    std::cout << best;
  }
  std::cout << "\nnext: vesal predict --weights " << options.out << " --input CASES --out PREDICTIONS"
            << std::endl;
  return kExitOk;
}

}  // namespace

Command make_train(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App* app = program.add_subcommand("train");
  app->description(
      "Train a network on a folder of cases.\n\n"
      "Trains a network on a folder with one folder per case (t1n, t1c, t2w, t2f volumes and seg; names of "
      "all years of\n"
      "BraTS). RUN gets last.safetensors (weights and all that --resume needs), best.safetensors (best mean "
      "Dice in\n"
      "validation), log.jsonl and progress.png. Ctrl-C writes a checkpoint; --resume continues bit for bit.");

  const char* group = "Files";
  app->add_option("--data", options->data, "Folder with one folder per case")
      ->required()
      ->group(group)
      ->type_name("DIR");
  app->add_option("--out", options->out, "Folder of this run")->required()->group(group)->type_name("RUN");
  app->add_flag("--resume", options->resume, "Continue the run in RUN with what it recorded")->group(group);
  app->add_option("--label-scheme", options->label_scheme,
                  "Numbers in the labels: brats2023 (3 = ET) or brats2021 (4 = ET) [brats2023]")
      ->group(group)
      ->type_name("NAME");

  group = "Network";
  app->add_option("--model", options->model, "fusion-micro, fusion-tiny or fusion-base [fusion-tiny]")
      ->group(group)
      ->type_name("NAME");
  app->add_option("--patch", options->patch, "Crop in voxels, multiples of 16 [64 64 64 or less]")
      ->expected(3)
      ->check(CLI::Range(int64_t{16}, int64_t{512}))
      ->group(group)
      ->type_name("X Y Z");
  app->add_option("--precision", options->precision,
                  "Of activations and weights in memory: f32, bf16 or f16 (with loss scaling) [f32]")
      ->group(group)
      ->type_name("NAME");
  app->add_option("--spacing", options->spacing, "Resample to this voxel size in mm [each input's own]")
      ->expected(3)
      ->check(CLI::Range(0.1, 20.0))
      ->group(group)
      ->type_name("X Y Z");

  group = "How long";
  CLI::Option* steps =
      app->add_option("--steps", options->steps, "End at this step [2000]; not with --minutes")
          ->check(CLI::Range(int64_t{1}, int64_t{100000000}))
          ->group(group)
          ->type_name("N");
  app->add_option("--minutes", options->minutes,
                  "As many steps as fit: measured once, then fixed and recorded")
      ->check(CLI::Range(0.05, 1e6))
      ->excludes(steps)
      ->group(group)
      ->type_name("M");
  app->add_option("--schedule-steps", options->schedule_steps,
                  "Steps over which the learning rate falls [the first run's steps; kept on --resume]")
      ->check(CLI::Range(int64_t{1}, int64_t{100000000}))
      ->group(group)
      ->type_name("N");

  group = "Learning";
  app->add_option("--batch", options->batch, "Crops in a step [2]")
      ->check(CLI::Range(int64_t{1}, int64_t{1024}))
      ->group(group)
      ->type_name("B");
  app->add_option("--optimizer", options->optimizer, "adamw, adam or sgd (Nesterov, momentum 0.99) [adamw]")
      ->group(group)
      ->type_name("NAME");
  app->add_option("--lr", options->lr, "Peak learning rate, at most 1 [0.003; of sgd 0.01]")
      ->group(group)
      ->type_name("F");
  app->add_option("--warmup-steps", options->warmup_steps,
                  "Steps of linear warm-up [5 % of the schedule, at most 100]")
      ->check(CLI::Range(int64_t{0}, int64_t{100000000}))
      ->group(group)
      ->type_name("N");
  app->add_option("--weight-decay", options->weight_decay,
                  "Weight decay, decoupled with adamw [adamw 0.01, adam 0, sgd 0.00003]")
      ->check(CLI::Range(0.0, 1.0))
      ->group(group)
      ->type_name("F");
  app->add_option("--clip-norm", options->clip_norm, "Largest norm of the gradient; 0: any [12]")
      ->check(CLI::Range(0.0, 1e9))
      ->group(group)
      ->type_name("F");
  app->add_option("--foreground", options->foreground, "Share of crops about a tumour voxel [0.5]")
      ->check(CLI::Range(0.0, 1.0))
      ->group(group)
      ->type_name("F");
  app->add_option("--edge-weight", options->edge_weight, "Weight of the edge loss; 0: none [0.1]")
      ->check(CLI::Range(0.0, 100.0))
      ->group(group)
      ->type_name("F");
  app->add_option("--augment-strength", options->augment_strength,
                  "Of turning, zooming and intensity changes: 2 is twice as often and twice as far [1]")
      ->check(CLI::Range(0.0, 4.0))
      ->group(group)
      ->type_name("F");
  app->add_option("--transplant", options->transplant,
                  "Share of crops that also get a tumour of another case, for training on few cases [0]")
      ->check(CLI::Range(0.0, 1.0))
      ->group(group)
      ->type_name("F");
  app->add_option("--heal", options->heal,
                  "Share of crops from heads whose tumour is painted over from the other half, likewise [0]")
      ->check(CLI::Range(0.0, 1.0))
      ->group(group)
      ->type_name("F");
  app->add_flag("--no-augment", options->no_augment, "No flips and intensity changes")->group(group);
  app->add_flag("--no-modality-dropout", options->no_modality_dropout,
                "Always show all modalities that a case has")
      ->group(group);
  app->add_flag("--no-deep-supervision", options->no_deep_supervision, "Loss at full resolution only")
      ->group(group);
  app->add_option("--seed", options->seed, "Of weights, split and augmentation [0]")
      ->check(check_seed)
      ->group(group)
      ->type_name("S");

  group = "Validation";
  CLI::Option* fraction = app->add_option("--val-fraction", options->val_fraction,
                                          "Share of the cases to validate on [0.2]; not with --split")
                              ->check(CLI::Range(0.0, 0.95))
                              ->group(group)
                              ->type_name("F");
  app->add_option("--split", options->split,
                  "{\"train\": [...], \"val\": [...]} or nnU-Net's splits_final.json")
      ->excludes(fraction)
      ->group(group)
      ->type_name("FILE");
  app->add_option("--val-every", options->val_every,
                  "Steps between validations and checkpoints [a tenth of the schedule]")
      ->check(CLI::Range(int64_t{1}, int64_t{100000000}))
      ->group(group)
      ->type_name("N");
  app->add_option("--val-modalities", options->val_modalities, "Validate with these only, e.g. t1n,t1c [all]")
      ->check(check_modalities)
      ->group(group)
      ->type_name("LIST");
  app->add_option("--val-overlap", options->val_overlap, "Overlap of the tiles in validation [0.25]")
      ->check(CLI::Range(0.0, 0.95))
      ->group(group)
      ->type_name("F");

  group = "General";
  app->add_option("--device", options->device,
                  "auto, cpu, cuda, cuda:N or simt (emulated kernels, slow) [auto]")
      ->group(group)
      ->type_name("NAME");
  app->add_option("--threads", options->threads, "Processor threads [all]")
      ->check(CLI::Range(1, 4096))
      ->group(group)
      ->type_name("T");
  app->add_option("--loader-threads", options->loader_threads,
                  "Threads that cut and augment crops; no influence on results [1]")
      ->check(CLI::Range(1, 256))
      ->group(group)
      ->type_name("T");
  app->add_flag("--recompute", options->recompute,
                "Compute activations again in the backward pass: less memory, more time, the same results")
      ->group(group);
  app->footer(
      "Examples:\n"
      "  vesal train --data brats2023 --out run --minutes 40 --patch 96 96 96\n"
      "  vesal train --data brats2021 --out run --label-scheme brats2021 --steps 5000\n"
      "  vesal train --data brats2023 --out run --resume");
  return {app, [options, app] { return run(*options, *app); }};
}

}  // namespace vesal::apps
