// vesal predict: a trained network over one case or a folder of cases.
#include <sys/resource.h>

#include <chrono>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/commands.hpp"
#include "apps/console.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"
#include "base/sha256.hpp"
#include "imaging/nifti.hpp"
#include "imaging/resample.hpp"
#include "runtime/device_api.hpp"
#include "training/checkpoint.hpp"
#include "training/evaluation.hpp"
#include "training/prediction_files.hpp"

namespace vesal::apps {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  std::string weights;
  std::string input;
  std::array<std::string, imaging::kModalityCount> files;
  std::string out;
  std::string modalities;
  std::string label_scheme;
  double overlap = 0.5;
  std::string mirror;
  std::vector<int64_t> patch;
  std::vector<double> spacing;
  bool save_probabilities = false;
  bool overwrite = false;
  int threads = 0;
  std::string device = "auto";
  std::string precision = "f32";
};

struct Job {
  imaging::CaseFiles files;
  training::PredictionPaths paths;
};

// What is asked for, checked before any work is done.
struct Plan {
  std::vector<Job> jobs;
  fs::path folder;  // made where it is not there
  fs::path statistics;
  fs::path report;
};

Plan make_plan(const Options& options) {
  bool by_file = false;
  for (const std::string& file : options.files) {
    by_file = by_file || !file.empty();
  }
  check<UsageError>(
      by_file != !options.input.empty(),
      by_file ? "--input: found together with --t1n, --t1c, --t2w or --t2f" : "--input: found nothing",
      ", expected either --input or single files");
  for (const int64_t extent : options.patch) {
    check<UsageError>(extent % models::Fusion::kStride == 0, "--patch: found ", extent,
                      ", expected multiples of ", models::Fusion::kStride);
  }
  Plan plan;
  const fs::path out = options.out;
  if (by_file) {
    Job job;
    for (size_t i = 0; i < options.files.size(); ++i) {
      job.files.images[i] = options.files[i];
      std::error_code error;
      check<IoError>(options.files[i].empty() || fs::is_regular_file(options.files[i], error),
                     options.files[i], ": found no such file, expected the ",
                     imaging::name_of(imaging::kModalities[i]), " volume");
    }
    job.paths = training::prediction_paths(out, options.save_probabilities);
    job.files.name = job.paths.picture.stem().string();
    plan.folder = out.has_parent_path() ? out.parent_path() : fs::path(".");
    plan.statistics = plan.folder / (job.files.name + "-statistics.json");
    plan.report = plan.folder / (job.files.name + "-run.json");
    plan.jobs.push_back(std::move(job));
  } else {
    check<UsageError>(!options.out.ends_with(".nii") && !options.out.ends_with(".nii.gz"),
                      "--out: found the name of a file, ", options.out,
                      ", expected a folder for the results (a file goes with --t1n, --t1c, --t2w, --t2f)");
    plan.folder = out;
    plan.statistics = out / "statistics.json";
    plan.report = out / "run.json";
    for (imaging::CaseFiles& files : imaging::list_cases(options.input)) {
      Job job;
      job.paths = training::prediction_paths(out / (files.name + ".nii.gz"), options.save_probabilities);
      job.files = std::move(files);
      plan.jobs.push_back(std::move(job));
    }
  }
  // The folder is made only where its parent is there, so that a mistyped path does not grow a tree.
  std::error_code error;
  const fs::path home = fs::absolute(plan.folder / "").parent_path().parent_path();
  check<IoError>(fs::is_directory(plan.folder, error) || !fs::exists(plan.folder, error),
                 plan.folder.string(), ": found a file, expected a folder for the results");
  check<IoError>(fs::is_directory(plan.folder, error) || fs::is_directory(home, error), plan.folder.string(),
                 ": found no folder ", home.string(), " to make it in, expected one");
  if (!options.overwrite) {
    std::vector<fs::path> outputs{plan.statistics, plan.report};
    for (const Job& job : plan.jobs) {
      outputs.push_back(job.paths.label_map);
      outputs.push_back(job.paths.picture);
      outputs.insert(outputs.end(), job.paths.probabilities.begin(), job.paths.probabilities.end());
    }
    for (const fs::path& path : outputs) {
      std::error_code error;
      check<IoError>(path.empty() || !fs::exists(path, error), path.string(),
                     ": found an existing file, expected none (--overwrite replaces it)");
    }
  }
  return plan;
}

// The largest case by its headers, for the memory plan; cases that cannot be read are reported when their
// turn comes.
std::optional<training::MemoryPlan> plan_for_largest(const std::vector<Job>& jobs,
                                                     const training::PredictionOptions& options,
                                                     int64_t network_bytes) {
  std::optional<training::MemoryPlan> largest;
  for (const Job& job : jobs) {
    int modalities = 0;
    std::optional<imaging::Geometry> geometry;
    for (size_t i = 0; i < job.files.images.size(); ++i) {
      if (job.files.images[i].empty() || !options.use[i]) {
        continue;
      }
      ++modalities;
      try {
        geometry = geometry ? geometry : imaging::read_nifti_header(job.files.images[i]).geometry;
      } catch (const Error&) {
        continue;
      }
    }
    if (!geometry) {
      continue;
    }
    imaging::Vector3 spacing = options.spacing_mm;
    for (int axis = 0; axis < 3; ++axis) {
      spacing[axis] = spacing[axis] > 0 ? spacing[axis] : geometry->spacing_mm[axis];
    }
    const training::MemoryPlan plan =
        training::plan_memory(geometry->size, imaging::geometry_for_spacing(*geometry, spacing).size,
                              modalities, options.tiles, network_bytes);
    if (!largest || plan.host_bytes() > largest->host_bytes()) {
      largest = plan;
    }
  }
  return largest;
}

// "xy" and the like.
std::array<bool, 3> parse_axes(const std::string& text) {
  std::array<bool, 3> axes{};
  for (const char letter : text) {
    check<UsageError>(letter >= 'x' && letter <= 'z', "--mirror: found ", text,
                      ", expected some of the letters x, y and z");
    axes[static_cast<size_t>(letter - 'x')] = true;
  }
  return axes;
}

Json triple(const imaging::Size3& size) { return {size.x, size.y, size.z}; }

int run(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  if (options.threads > 0) {
    set_thread_count(options.threads);
  }
  training::PredictionOptions prediction;
  prediction.tiles.precision = training::parse_precision(options.precision);
  if (!options.modalities.empty()) {
    prediction.use = imaging::parse_modality_mask(options.modalities);
  }
  const Plan plan = make_plan(options);
  DeviceContext context(choose_device(options.device));
  const training::LoadedNetwork loaded = training::load_network(context, options.weights);

  const auto seen_in_training = [&](size_t i) { return loaded.info.modalities[i]; };
  imaging::ModalityMask usable{};
  for (size_t i = 0; i < usable.size(); ++i) {
    check<UsageError>(options.modalities.empty() || !prediction.use[i] || seen_in_training(i),
                      "--modalities: found ", imaging::name_of(imaging::kModalities[i]),
                      ", expected some of ", imaging::to_string(loaded.info.modalities), ", which ",
                      loaded.file.string(), " was trained on");
    usable[i] = prediction.use[i] && seen_in_training(i);
  }
  prediction.use = usable;
  prediction.spacing_mm = options.spacing.empty() ? loaded.info.spacing_mm : to_vector(options.spacing);
  prediction.scheme = options.label_scheme.empty() ? loaded.info.label_scheme
                                                   : imaging::parse_label_scheme(options.label_scheme);
  prediction.tiles.patch = options.patch.empty() ? loaded.info.patch : to_size(options.patch);
  prediction.tiles.overlap = options.overlap;
  prediction.tiles.mirror = parse_axes(options.mirror);
  prediction.tiles.stop = &stop_requested();

  const int64_t network_bytes = training::measure_network_bytes(
      context, *loaded.network, prediction.tiles.patch, prediction.tiles.precision);
  std::cout << loaded.info.network.preset << " after " << loaded.info.step << " steps, from "
            << loaded.file.string() << ", on " << device_api::describe(context.device()) << '\n';
  const std::optional<training::MemoryPlan> memory = plan_for_largest(plan.jobs, prediction, network_bytes);
  if (memory) {
    std::cout << memory->line(prediction.tiles.patch, context.device());
    if (plan.jobs.size() > 1) {
      std::cout << " (largest of " << plan.jobs.size() << " cases)";
    }
    std::cout << std::endl;
  }

  std::error_code error;
  const bool made_folder = fs::create_directory(plan.folder, error);
  check<IoError>(!error && fs::is_directory(plan.folder), plan.folder.string(),
                 ": cannot be made: ", error ? error.message() : "a file is in its place");

  const imaging::ModalityMask asked = prediction.use;
  Json statistics = Json::object();
  Json cases = Json::array();
  int64_t failed = 0;
  bool interrupted = false;
  const int64_t total = static_cast<int64_t>(plan.jobs.size());
  int64_t position = 0;
  for (const Job& job : plan.jobs) {
    ++position;
    ProgressBar bar(total > 1 ? concat("[", position, "/", total, "] ", job.files.name) : job.files.name);
    prediction.tiles.progress = [&](int64_t done, int64_t tiles) { bar.update(done, tiles, "tiles"); };
    Json entry{{"case", job.files.name}};
    try {
      imaging::require_usable(job.files);
      if (!options.modalities.empty()) {
        for (size_t i = 0; i < asked.size(); ++i) {
          check<UsageError>(!asked[i] || !job.files.images[i].empty(), job.files.name, ": found no ",
                            imaging::name_of(imaging::kModalities[i]),
                            ", which --modalities asks for; the case has ",
                            imaging::to_string(job.files.present()));
        }
      }
      const training::PredictedCase result =
          training::predict_files(context, *loaded.network, job.files, prediction, job.paths);
      bar.finish();
      statistics[result.name] = Json::parse(result.statistics);
      entry["modalities"] = imaging::to_string(result.used);
      Json inputs = Json::object();
      for (size_t i = 0; i < result.used.size(); ++i) {
        if (result.used[i]) {
          inputs[std::string(imaging::name_of(imaging::kModalities[i]))] = job.files.images[i].string();
        }
      }
      entry["inputs"] = inputs;
      entry["label_map"] = job.paths.label_map.string();
      entry["network_voxels"] = triple(result.prepared_size);
      entry["tiles"] = result.tiles;
      entry["tiles_skipped"] = result.tiles_skipped;
      entry["seconds"] = {{"read", result.seconds.read},       {"prepare", result.seconds.prepare},
                          {"network", result.seconds.network}, {"restore", result.seconds.restore},
                          {"write", result.seconds.write},     {"total", result.seconds.total()}};
      char line[160];
      std::snprintf(line, sizeof line, "  WT %.1f mL, TC %.1f mL, ET %.1f mL", result.regions[0].volume_ml,
                    result.regions[1].volume_ml, result.regions[2].volume_ml);
      std::cout << job.files.name << line << "  from " << imaging::to_string(result.used) << " in "
                << duration_text(result.seconds.total()) << std::endl;
    } catch (const training::InterruptedError& stopped) {
      bar.finish();
      interrupted = true;
      entry["error"] = stopped.what();
      cases.push_back(entry);
      break;
    } catch (const Error& problem) {
      bar.finish();
      ++failed;
      entry["error"] = problem.what();
      print_error("predict", problem.what());
    }
    cases.push_back(entry);
  }

  if (!statistics.empty()) {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const Json report{
        {"program", "vesal " + version()},
        {"build", build_description()},
        {"weights",
         {{"file", loaded.file.string()},
          {"sha256", sha256_of_file(loaded.file)},
          {"network", loaded.info.network.preset},
          {"steps", loaded.info.step}}},
        {"device", to_string(context.device())},
        {"device_description", device_api::describe(context.device())},
        {"threads", thread_count()},
        {"patch", triple(prediction.tiles.patch)},
        {"spacing_mm", {prediction.spacing_mm.x, prediction.spacing_mm.y, prediction.spacing_mm.z}},
        {"overlap", prediction.tiles.overlap},
        {"mirror", options.mirror},
        {"precision", name_of(prediction.tiles.precision)},
        {"label_scheme", std::string(imaging::name_of(prediction.scheme))},
        {"modalities_allowed", imaging::to_string(prediction.use)},
        {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()},
        {"planned_host_bytes", memory ? Json(memory->host_bytes()) : Json(nullptr)},
        {"planned_network_bytes", network_bytes},
        {"peak_network_bytes", context.allocator().statistics().peak_bytes},
        {"peak_resident_bytes", static_cast<int64_t>(usage.ru_maxrss) * 1024},
        {"cases", cases}};
    const Json with_axes{
        {"axes",
         "bounding_box_voxels: start and size in voxels of the input file, in its own i j k order, "
         "counted from 0; centroid_mm: RAS+ millimetres; intensity: as stored in the input"},
        {"cases", statistics}};
    training::write_text_file(plan.statistics,
                              with_axes.dump(2, ' ', false, Json::error_handler_t::replace) + "\n",
                              options.overwrite);
    training::write_text_file(plan.report, report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n",
                              options.overwrite);
  } else if (made_folder) {
    fs::remove(plan.folder, error);  // nothing came of it
  }
  check<training::InterruptedError>(!interrupted, "interrupted after ", position - 1, " of ", total,
                                    total == 1 ? " case" : " cases");
  if (failed > 0) {
    if (total > 1) {
      print_note("predict", concat(failed, " of ", total, " cases failed"));
    }
    return failed == total ? kExitFailure : kExitSomeFailed;
  }
  return kExitOk;
}

}  // namespace

Command make_predict(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App* app = program.add_subcommand("predict");
  app->description(
      "Segment cases with trained weights.\n\n"
      "Segments cases: one label map a case on the input's own grid, an overlay picture, statistics.json "
      "(volumes,\n"
      "bounding boxes) and run.json. Modalities may be missing; absent ones have no influence on the "
      "result.\n"
      "A case that cannot be read is reported, and the others go on.");
  app->add_option("--weights", options->weights, "A training run (its best.safetensors, else last) or a file")
      ->required()
      ->group("Input")
      ->type_name("RUN|FILE");
  app->add_option("--input", options->input, "One case's folder, or a folder with one folder per case")
      ->group("Input")
      ->type_name("DIR");
  for (const imaging::Modality modality : imaging::kModalities) {
    const std::string name(imaging::name_of(modality));
    app->add_option("--" + name, options->files[static_cast<size_t>(modality)],
                    "The " + name + " volume of a single case")
        ->group("Input")
        ->type_name("FILE");
  }
  app->add_option("--modalities", options->modalities, "Use these only, e.g. t1n,t1c [all that a case has]")
      ->check(check_modalities)
      ->group("Input")
      ->type_name("LIST");
  app->add_option("--out", options->out,
                  "Folder for the results; for single files the label map, FILE.nii.gz")
      ->required()
      ->group("Output")
      ->type_name("OUT");
  app->add_option("--label-scheme", options->label_scheme,
                  "Write labels as brats2023 or brats2021 [as trained]")
      ->group("Output")
      ->type_name("NAME");
  app->add_flag("--save-probabilities", options->save_probabilities,
                "Also CASE-{wt,tc,et}-probability.nii.gz")
      ->group("Output");
  app->add_flag("--overwrite", options->overwrite, "Replace files that exist")->group("Output");
  app->add_option("--overlap", options->overlap, "Share that neighbouring tiles have in common [0.5]")
      ->check(CLI::Range(0.0, 0.95))
      ->group("Sliding window")
      ->type_name("F");
  app->add_option("--mirror", options->mirror,
                  "Average over mirror images along these axes, e.g. xyz: 2, 4 or 8 times the work [none]")
      ->group("Sliding window")
      ->type_name("AXES");
  app->add_option("--patch", options->patch, "Tile in voxels, multiples of 16 [as trained]")
      ->expected(3)
      ->check(CLI::Range(int64_t{16}, int64_t{512}))
      ->group("Sliding window")
      ->type_name("X Y Z");
  app->add_option("--spacing", options->spacing, "Voxel size in mm that the network sees [as trained]")
      ->expected(3)
      ->check(CLI::Range(0.1, 20.0))
      ->group("Sliding window")
      ->type_name("X Y Z");
  app->add_option("--precision", options->precision,
                  "Of activations and weights in memory: f32, bf16 or f16 [f32]")
      ->group("General")
      ->type_name("NAME");
  app->add_option("--device", options->device,
                  "auto, cpu, cuda, cuda:N or simt (emulated kernels, slow) [auto]")
      ->group("General")
      ->type_name("NAME");
  app->add_option("--threads", options->threads, "Processor threads [all]")
      ->check(CLI::Range(1, 4096))
      ->group("General")
      ->type_name("T");
  app->footer(
      "Examples:\n"
      "  vesal predict --weights run --input data/test --out predictions\n"
      "  vesal predict --weights run --input data/test --out without-flair --modalities t1n,t1c,t2w\n"
      "  vesal predict --weights run/best.safetensors --t1c t1c.nii.gz --t2f flair.nii.gz --out "
      "tumour.nii.gz");
  return {app, [options] { return run(*options); }};
}

}  // namespace vesal::apps
