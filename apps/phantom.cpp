// vesal phantom: synthetic four-modality brain-tumour cases.
#include "imaging/phantom.hpp"

#include <filesystem>
#include <iostream>
#include <memory>

#include "apps/commands.hpp"
#include "apps/console.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"
#include "training/interrupted.hpp"

namespace vesal::apps {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string out;
  int64_t cases = 1;
  uint64_t seed = 0;
  int64_t first = 0;
  std::vector<int64_t> size{96, 96, 96};
  std::string anatomy = "analytic";
  bool overwrite = false;
  int threads = 0;
};

int run(const Options& options) {
  if (options.threads > 0) {
    set_thread_count(options.threads);
  }
  imaging::PhantomOptions phantom;
  phantom.seed = options.seed;
  phantom.size = to_size(options.size);
  imaging::LabelMap tissue;
  if (options.anatomy != "analytic") {
    std::error_code ignored;
    check<IoError>(fs::exists(options.anatomy, ignored), "--anatomy: found ", options.anatomy,
                   ", which is no file, expected analytic or a skull-stripped T1 volume");
    phantom.anatomy = options.anatomy;
    tissue = imaging::tissue_from_anatomy(phantom.anatomy, phantom.size);
  }
  const fs::path out = options.out;
  std::error_code error;
  for (int64_t i = options.first; i < options.first + options.cases; ++i) {
    const fs::path folder = out / imaging::phantom_name(i);
    check<IoError>(options.overwrite || !fs::exists(folder, error), folder.string(),
                   ": found an existing case, expected none (--overwrite replaces it)");
  }
  fs::create_directories(out, error);
  check<IoError>(!error, out.string(), ": cannot be made: ", error.message());

  ProgressBar bar("phantoms");
  for (int64_t i = 0; i < options.cases; ++i) {
    check<training::InterruptedError>(!stop_requested().load(), "interrupted after ", i, " of ",
                                      options.cases, " cases");
    const fs::path folder = out / imaging::phantom_name(options.first + i);
    const bool existed = fs::exists(folder, error);
    try {
      imaging::write_phantom(out, imaging::make_phantom(phantom, options.first + i, tissue));
    } catch (...) {
      if (!existed) {
        fs::remove_all(folder, error);  // half a case is worse than none
      }
      throw;
    }
    bar.update(i + 1, options.cases);
  }
  bar.finish();
  std::cout << options.cases << (options.cases == 1 ? " case" : " cases") << " in " << out.string()
            << " (label scheme brats2023, " << to_string(phantom.size) << " voxels of "
            << 192.0 / static_cast<double>(phantom.size.x) << " x "
            << 192.0 / static_cast<double>(phantom.size.y) << " x "
            << 192.0 / static_cast<double>(phantom.size.z) << " mm)" << std::endl;
  return kExitOk;
}

}  // namespace

Command make_phantom(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App* app = program.add_subcommand("phantom");
  app->description(
      "Make synthetic cases to try everything on.\n\n"
      "Makes synthetic brain-tumour cases named and stored like BraTS: t1n, t1c, t2w, t2f and seg, with grey "
      "and white\n"
      "matter, ventricles, a bias field, Rician noise, and a tumour of oedema, enhancing rim and necrotic "
      "core.\n"
      "The same seed gives the same bytes.");
  app->add_option("--out", options->out, "Folder for the cases, one folder each")
      ->required()
      ->group("Output")
      ->type_name("DIR");
  app->add_flag("--overwrite", options->overwrite, "Replace cases that exist")->group("Output");
  app->add_option("--cases", options->cases, "How many [1]")
      ->check(CLI::Range(int64_t{1}, int64_t{99999}))
      ->group("Content")
      ->type_name("N");
  app->add_option("--seed", options->seed, "Another seed, other cases [0]")
      ->check(check_seed)
      ->group("Content")
      ->type_name("S");
  app->add_option("--first", options->first, "Number of the first case [0]: the same seed continues there")
      ->check(CLI::Range(int64_t{0}, int64_t{99999}))
      ->group("Content")
      ->type_name("N");
  app->add_option("--size", options->size, "Voxels; the field of view is 192 mm [96 96 96]")
      ->expected(3)
      ->check(CLI::Range(int64_t{16}, int64_t{512}))
      ->group("Content")
      ->type_name("X Y Z");
  app->add_option("--anatomy", options->anatomy,
                  "analytic, the built-in head, or a skull-stripped T1 volume [analytic]")
      ->group("Content")
      ->type_name("analytic|FILE");
  app->add_option("--threads", options->threads, "Processor threads [all]")
      ->check(CLI::Range(1, 4096))
      ->group("General")
      ->type_name("T");
  app->footer(
      "Examples:\n"
      "  vesal phantom --out data --cases 20 --seed 1\n"
      "  vesal phantom --out data --cases 4 --size 128 128 128 --anatomy "
      "/usr/share/mricron/templates/ch2bet.nii.gz");
  return {app, [options] { return run(*options); }};
}

}  // namespace vesal::apps
