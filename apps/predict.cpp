// vesal predict: a trained network over one case or a folder of cases.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
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
#include "training/segmentation.hpp"

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

// What a network is run with: the same for all cases, and different for the kinds of networks.
struct Task {
  std::string headline;
  imaging::ModalityMask use{};     // of those that a case has
  imaging::Vector3 spacing_mm;     // that the network sees; 0: the input's own
  std::string patch_text;          // of the memory plan's line
  const char* progress = "tiles";  // what the progress bar counts
  Json weights, settings;          // run.json's
  // The memory plan of a case of this size with so many modalities, on its own grid and the network's.
  std::function<training::MemoryPlan(imaging::Size3 original, imaging::Size3 prepared, int modalities)> plan;
  std::function<training::PredictedCase(const Job& job)> predict;
  training::PredictSettings* tiles = nullptr;  // that `predict` reads
};

// The largest case by its headers, for the memory plan; cases that cannot be read are reported when their
// turn comes.
std::optional<training::MemoryPlan> plan_for_largest(const std::vector<Job>& jobs, const Task& task) {
  std::optional<training::MemoryPlan> largest;
  for (const Job& job : jobs) {
    int modalities = 0;
    std::optional<imaging::Geometry> geometry;
    for (size_t i = 0; i < job.files.images.size(); ++i) {
      if (job.files.images[i].empty() || !task.use[i]) {
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
    imaging::Vector3 spacing = task.spacing_mm;
    for (int axis = 0; axis < 3; ++axis) {
      spacing[axis] = spacing[axis] > 0 ? spacing[axis] : geometry->spacing_mm[axis];
    }
    const training::MemoryPlan plan =
        task.plan(geometry->size, imaging::geometry_for_spacing(*geometry, spacing).size, modalities);
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

// A network of regions: tumours from up to four modalities.
class RegionRun {
 public:
  RegionRun(DeviceContext& context, const Options& options, training::PredictionOptions prediction)
      : loaded_(training::load_network(context, options.weights)), prediction_(std::move(prediction)) {
    const training::WeightsInfo& info = loaded_.info;
    const auto seen_in_training = [&](size_t i) { return info.modalities[i]; };
    imaging::ModalityMask usable{};
    for (size_t i = 0; i < usable.size(); ++i) {
      check<UsageError>(options.modalities.empty() || !prediction_.use[i] || seen_in_training(i),
                        "--modalities: found ", imaging::name_of(imaging::kModalities[i]),
                        ", expected some of ", imaging::to_string(info.modalities), ", which ",
                        loaded_.file.string(), " was trained on");
      usable[i] = prediction_.use[i] && seen_in_training(i);
    }
    prediction_.use = usable;
    prediction_.spacing_mm = options.spacing.empty() ? info.spacing_mm : to_vector(options.spacing);
    prediction_.scheme =
        options.label_scheme.empty() ? info.label_scheme : imaging::parse_label_scheme(options.label_scheme);
    training::PredictSettings& tiles = prediction_.tiles;
    tiles.patch = options.patch.empty() ? info.patch : to_size(options.patch);

    task.headline = concat(info.network.preset, " after ", info.step, " steps");
    task.use = prediction_.use;
    task.spacing_mm = prediction_.spacing_mm;
    task.patch_text = to_string(tiles.patch);
    task.plan = [this, network_bytes = training::measure_network_bytes(context, *loaded_.network, tiles.patch,
                                                                       tiles.precision)](
                    imaging::Size3 original, imaging::Size3 prepared, int modalities) {
      return training::plan_memory(original, prepared, modalities, prediction_.tiles, network_bytes);
    };
    task.predict = [this, &context](const Job& job) {
      return training::predict_files(context, *loaded_.network, job.files, prediction_, job.paths);
    };
    task.tiles = &prediction_.tiles;
    task.weights = {{"file", loaded_.file.string()},
                    {"sha256", sha256_of_file(loaded_.file)},
                    {"network", info.network.preset},
                    {"steps", info.step}};
    task.settings = {{"patch", triple(tiles.patch)},
                     {"label_scheme", std::string(imaging::name_of(prediction_.scheme))}};
  }
  RegionRun(const RegionRun&) = delete;
  RegionRun& operator=(const RegionRun&) = delete;

  Task task;

 private:
  training::LoadedNetwork loaded_;
  training::PredictionOptions prediction_;
};

// A network of classes: all that it needs to know stands in its file.
class ClassRun {
 public:
  ClassRun(DeviceContext& context, const Options& options, training::PredictSettings settings)
      : loaded_(training::load_segmenter(context, options.weights)), settings_(std::move(settings)) {
    const training::SegmenterInfo& info = loaded_.info;
    const imaging::ModalityMask mask = info.mask();
    const std::string trained_on = imaging::to_string(mask);
    for (size_t i = 0; i < mask.size(); ++i) {
      check<UsageError>(options.files[i].empty() || mask[i], "--", imaging::name_of(imaging::kModalities[i]),
                        ": found ", options.files[i], ", expected files of ", trained_on, " only, which ",
                        info.preset, " was trained on");
    }
    check<UsageError>(options.modalities.empty() || imaging::parse_modality_mask(options.modalities) == mask,
                      "--modalities: found ", options.modalities, ", expected ", trained_on, ": ",
                      info.preset, " needs every modality that it was trained on");
    check<UsageError>(options.spacing.empty(), "--spacing: found a voxel size, expected none: ", info.preset,
                      " sees volumes as its file says");
    check<UsageError>(options.label_scheme.empty(), "--label-scheme: found ", options.label_scheme,
                      ", expected none: the labels of ", info.preset, " are no tumour's");
    check<UsageError>(!options.save_probabilities,
                      "--save-probabilities: expected not to be given: ", info.preset, " has no regions");
    settings_.patch = options.patch.empty() ? info.patch : to_size(options.patch);
    const bool whole = settings_.patch == imaging::Size3{};
    check<UsageError>(!whole || options.mirror.empty(), "--mirror: found ", options.mirror,
                      ", expected none: ", info.preset,
                      " sees the whole volume at once (with --patch it sees tiles)");

    task.headline = info.preset;
    task.use = mask;
    task.spacing_mm = info.spacing_mm;
    task.patch_text = whole ? "the whole volume" : to_string(settings_.patch);
    task.progress = whole ? "layers" : "tiles";
    task.plan = [this, &context, whole](imaging::Size3 original, imaging::Size3 prepared, int) {
      const int64_t network_bytes = training::measure_segmenter_bytes(
          context, *loaded_.network, whole ? prepared : settings_.patch, settings_.precision);
      return training::plan_segmenter_memory(original, prepared, *loaded_.network, settings_, network_bytes);
    };
    task.predict = [this, &context](const Job& job) {
      return training::predict_files(context, loaded_, job.files, settings_, job.paths);
    };
    task.tiles = &settings_;
    task.weights = {{"file", loaded_.file.string()},
                    {"sha256", sha256_of_file(loaded_.file)},
                    {"network", info.preset},
                    {"converted_from", info.source_file},
                    {"converted_from_sha256", info.source_sha256}};
    task.settings = {{"patch", whole ? Json("whole") : triple(settings_.patch)},
                     {"orientation", info.layout.orientation},
                     {"axes", info.layout.axes},
                     {"intensity", imaging::to_string(info.intensity)},
                     {"labels", info.labels}};
  }
  ClassRun(const ClassRun&) = delete;
  ClassRun& operator=(const ClassRun&) = delete;

  Task task;

 private:
  training::LoadedSegmenter loaded_;
  training::PredictSettings settings_;
};

// "WT 1.2 mL, TC 0.8 mL, ET 0.3 mL"; of many classes the first few.
std::string volumes_text(const training::PredictedCase& result) {
  constexpr size_t kMost = 5;
  std::string text;
  for (size_t i = 0; i < std::min(result.volumes_ml.size(), kMost); ++i) {
    char number[48];
    std::snprintf(number, sizeof number, " %.1f mL", result.volumes_ml[i].second);
    text += concat(text.empty() ? "" : ", ", result.volumes_ml[i].first, number);
  }
  return result.volumes_ml.size() > kMost ? concat(text, " and ", result.volumes_ml.size() - kMost, " more")
                                          : text;
}

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
  prediction.tiles.overlap = options.overlap;
  prediction.tiles.mirror = parse_axes(options.mirror);
  prediction.tiles.stop = &stop_requested();
  const training::NetworkTask kind = training::task_of_weights(options.weights);
  for (const int64_t extent : options.patch) {
    check<UsageError>(kind != training::NetworkTask::regions || extent % models::Fusion::kStride == 0,
                      "--patch: found ", extent, ", expected multiples of ", models::Fusion::kStride);
  }
  DeviceContext context(choose_device(options.device));
  std::optional<RegionRun> regions;
  std::optional<ClassRun> classes;
  if (kind == training::NetworkTask::regions) {
    regions.emplace(context, options, prediction);
  } else {
    classes.emplace(context, options, prediction.tiles);
  }
  const Task& task = regions ? regions->task : classes->task;
  training::PredictSettings& tiles = *task.tiles;

  std::cout << task.headline << ", from " << task.weights["file"].get<std::string>() << ", on "
            << device_api::describe(context.device()) << '\n';
  const std::optional<training::MemoryPlan> memory = plan_for_largest(plan.jobs, task);
  if (memory) {
    std::cout << memory->line_for(task.patch_text, context.device());
    if (plan.jobs.size() > 1) {
      std::cout << " (largest of " << plan.jobs.size() << " cases)";
    }
    std::cout << std::endl;
  }

  std::error_code error;
  const bool made_folder = fs::create_directory(plan.folder, error);
  check<IoError>(!error && fs::is_directory(plan.folder), plan.folder.string(),
                 ": cannot be made: ", error ? error.message() : "a file is in its place");

  const imaging::ModalityMask asked = task.use;
  Json statistics = Json::object();
  Json cases = Json::array();
  int64_t failed = 0;
  bool interrupted = false;
  const int64_t total = static_cast<int64_t>(plan.jobs.size());
  int64_t position = 0;
  for (const Job& job : plan.jobs) {
    ++position;
    ProgressBar bar(total > 1 ? concat("[", position, "/", total, "] ", job.files.name) : job.files.name);
    tiles.progress = [&](int64_t done, int64_t total_parts) { bar.update(done, total_parts, task.progress); };
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
      const training::PredictedCase result = task.predict(job);
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
      std::cout << job.files.name << "  " << volumes_text(result) << "  from "
                << imaging::to_string(result.used) << " in " << duration_text(result.seconds.total())
                << std::endl;
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
    Json report{{"program", "vesal " + version()},
                {"build", build_description()},
                {"weights", task.weights},
                {"device", to_string(context.device())},
                {"device_description", device_api::describe(context.device())},
                {"threads", thread_count()}};
    report.update(task.settings);
    report.update(
        Json{{"spacing_mm", {task.spacing_mm.x, task.spacing_mm.y, task.spacing_mm.z}},
             {"overlap", tiles.overlap},
             {"mirror", options.mirror},
             {"precision", name_of(tiles.precision)},
             {"modalities_allowed", imaging::to_string(task.use)},
             {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()},
             {"planned_host_bytes", memory ? Json(memory->host_bytes()) : Json(nullptr)},
             {"planned_network_bytes", memory ? Json(memory->network_bytes) : Json(nullptr)},
             {"peak_network_bytes", context.allocator().statistics().peak_bytes},
             {"peak_resident_bytes", static_cast<int64_t>(usage.ru_maxrss) * 1024},
             {"cases", cases}});
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
      "Runs the network that the weights are of, prepared as they say: one label map a case on the input's "
      "own grid,\n"
      "an overlay picture, statistics.json (volumes, bounding boxes) and run.json. For the fusion networks "
      "modalities\n"
      "may be missing; absent ones have no influence on the result.\n"
      "A case that cannot be read is reported, and the others go on.");
  app->add_option("--weights", options->weights,
                  "A training run (its best.safetensors, else last) or a file that vesal convert wrote")
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
  app->add_option("--patch", options->patch,
                  "Tile in voxels; multiples of 16 for the fusion networks [as trained]")
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
