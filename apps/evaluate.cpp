// vesal evaluate: scores of predictions against labels.
#include <filesystem>
#include <iostream>
#include <memory>
#include <set>

#include "apps/commands.hpp"
#include "apps/console.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"
#include "training/evaluation.hpp"

namespace vesal::apps {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> predictions;
  std::string labels;
  std::string out;
  std::string label_scheme = "brats2023";
  std::string prediction_scheme;
  bool only_predicted = false;
  bool overwrite = false;
  int threads = 0;
};

// The folder's own name, also with a slash at its end.
std::string folder_name(const fs::path& path) { return fs::weakly_canonical(path).filename().string(); }

// Both files or, where one cannot be written, neither that is new.
void write_results(const fs::path& folder, const training::Evaluation& evaluation, bool overwrite) {
  std::error_code error;
  const bool made = fs::create_directories(folder, error);
  check<IoError>(!error, folder.string(), ": cannot be made: ", error.message());
  const fs::path summary = folder / "summary.json";
  const bool replaced = fs::exists(summary, error);
  try {
    training::write_text_file(summary, training::summary_json(evaluation), overwrite);
    training::write_text_file(folder / "metrics.csv", training::metrics_csv(evaluation), overwrite);
  } catch (...) {
    if (!replaced) {
      fs::remove(summary, error);
    }
    if (made) {
      fs::remove(folder, error);  // only when it is empty
    }
    throw;
  }
}

int run(const Options& options) {
  if (options.threads > 0) {
    set_thread_count(options.threads);
  }
  training::EvaluationSettings settings;
  settings.label_scheme = imaging::parse_label_scheme(options.label_scheme);
  settings.prediction_scheme = options.prediction_scheme.empty()
                                   ? settings.label_scheme
                                   : imaging::parse_label_scheme(options.prediction_scheme);
  settings.only_predicted = options.only_predicted;
  settings.stop = &stop_requested();

  // Where the results go: OUT itself, or OUT/FOLDER for each of several folders.
  const bool several = options.predictions.size() > 1;
  std::vector<fs::path> outs;
  if (!options.out.empty()) {
    std::set<fs::path> distinct;
    for (const std::string& predictions : options.predictions) {
      outs.push_back(several ? fs::path(options.out) / folder_name(predictions) : fs::path(options.out));
      std::error_code ignored;
      check<IoError>(!fs::exists(outs.back(), ignored) || fs::is_directory(outs.back(), ignored),
                     outs.back().string(), ": found a file, expected a folder for the scores");
      check<UsageError>(distinct.insert(outs.back()).second, "--predictions: found two folders named ",
                        folder_name(predictions), ", expected different names with --out");
      for (const char* const name : {"summary.json", "metrics.csv"}) {
        std::error_code error;
        check<IoError>(options.overwrite || !fs::exists(outs.back() / name, error),
                       (outs.back() / name).string(),
                       ": found an existing file, expected none (--overwrite replaces it)");
      }
    }
  }

  std::vector<training::Evaluation> evaluations;
  for (const std::string& predictions : options.predictions) {
    ProgressBar bar(several ? "scoring " + folder_name(predictions) : "scoring");
    settings.progress = [&](int64_t done, int64_t total, const std::string& name) {
      bar.update(done, total, name);
    };
    evaluations.push_back(training::evaluate(predictions, options.labels, settings));
  }
  int64_t failures = 0;
  int64_t cases = 0;
  for (size_t i = 0; i < evaluations.size(); ++i) {
    const training::Evaluation& evaluation = evaluations[i];
    failures += evaluation.failures();
    cases += static_cast<int64_t>(evaluation.cases.size());
    if (!outs.empty()) {
      write_results(outs[i], evaluation, options.overwrite);
    }
  }
  std::cout << '\n';
  if (several) {
    training::print_comparison(std::cout, evaluations);
  } else {
    training::print_table(std::cout, evaluations.front());
  }
  std::cout.flush();
  if (failures > 0) {
    std::string first;
    for (const training::Evaluation& evaluation : evaluations) {
      for (const training::CaseScore& score : evaluation.cases) {
        if (score.failed() && first.empty()) {
          first = score.failure;
        }
      }
    }
    print_error("evaluate", concat(failures, " of ", cases,
                                   " cases could not be scored and count as Dice 0; the first: ", first));
    return failures == cases ? kExitFailure : kExitSomeFailed;
  }
  return kExitOk;
}

}  // namespace

Command make_evaluate(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App* app = program.add_subcommand("evaluate");
  app->description(
      "Score predictions against labels: Dice, IoU, HD95, volumes.\n\n"
      "Scores label maps: Dice, IoU, HD95 (mm) and volumes of the regions WT (whole tumour), TC (tumour "
      "core) and ET\n"
      "(enhancing tumour). A label without a prediction is a failure: it is named and counts as Dice 0.\n"
      "Empty regions follow BraTS: empty in both, Dice 1 and HD95 0; in one only, Dice 0 and HD95 373.13 "
      "mm.");
  app->add_option("--predictions", options->predictions,
                  "Folder of CASE.nii.gz; several folders are compared")
      ->required()
      ->group("Input")
      ->type_name("DIR...");
  app->add_option("--labels", options->labels, "Folder of CASE/...-seg.nii.gz or CASE.nii.gz")
      ->required()
      ->group("Input")
      ->type_name("DIR");
  app->add_option("--label-scheme", options->label_scheme,
                  "Numbers in the labels: brats2023 (3 = ET) or brats2021 (4 = ET) [brats2023]")
      ->group("Input")
      ->type_name("NAME");
  app->add_option("--prediction-scheme", options->prediction_scheme,
                  "The same for the predictions [as the labels]")
      ->group("Input")
      ->type_name("NAME");
  app->add_flag("--only-predicted", options->only_predicted,
                "Leave out labels without a prediction, and say how many")
      ->group("Input");
  app->add_option("--out", options->out,
                  "Folder for summary.json (nnU-Net's form) and metrics.csv; several: a folder each")
      ->group("Output")
      ->type_name("DIR");
  app->add_flag("--overwrite", options->overwrite, "Replace files that exist")->group("Output");
  app->add_option("--threads", options->threads, "Processor threads [all]")
      ->check(CLI::Range(1, 4096))
      ->group("General")
      ->type_name("T");
  app->footer(
      "Examples:\n"
      "  vesal evaluate --predictions out --labels data/test --out scores\n"
      "  vesal evaluate --predictions out/all out/no-t2f --labels data/test");
  return {app, [options] { return run(*options); }};
}

}  // namespace vesal::apps
