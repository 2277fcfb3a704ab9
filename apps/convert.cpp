// vesal convert: weights of PyTorch to weights of Vesal, which PyTorch can read too.
#include "weights_tools/convert.hpp"

#include <iostream>
#include <memory>

#include "apps/commands.hpp"
#include "apps/console.hpp"
#include "base/error.hpp"
#include "models/catalogue.hpp"
#include "training/interrupted.hpp"

namespace vesal::apps {
namespace {

struct Options {
  std::string from;
  std::string dictionary;
  std::string model;
  std::string out;
  std::string report;
  bool strict = false;
  bool allow_missing = false;
  bool allow_unexpected = false;
  uint64_t seed = 0;
  bool overwrite = false;
};

int run(const Options& options) {
  weights::ConversionRequest request;
  request.from = options.from;
  request.dictionary = options.dictionary;
  request.model = options.model;
  request.out = options.out;
  request.report = options.report;
  request.allow_missing = options.allow_missing;
  request.seed = options.seed;
  request.allow_unexpected = options.allow_unexpected;
  request.overwrite = options.overwrite;
  request.progress = [](size_t done, size_t total) {
    check<training::InterruptedError>(!stop_requested().load(), "interrupted after ", done, " of ", total,
                                      " tensors");
  };
  DeviceContext context((Device()));
  const weights::Conversion conversion = weights::convert(context, request);
  std::cout << weights::to_text(conversion, request) << std::flush;
  return kExitOk;
}

std::string known_models() {
  std::string list;
  for (const std::string& name : models::model_names()) {
    list += (list.empty() ? "" : ", ") + name;
  }
  return list;
}

}  // namespace

Command make_convert(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App* app = program.add_subcommand("convert");
  app->description(
      "Bring weights of PyTorch into Vesal's form.\n\n"
      "Reads a safetensors file or a PyTorch checkpoint (zip, legacy, TorchScript), finds the place of every "
      "tensor in a\n"
      "known network, and writes a safetensors file that vesal predict runs and PyTorch reads under its own "
      "names.\n"
      "What is missing, unexpected, or of another shape is an error that names it; nothing is executed.");
  app->add_option("--from", options->from, "A file of weights, of any name")
      ->required()
      ->group("Input")
      ->type_name("FILE");
  app->add_option("--model", options->model, "The network: " + known_models())
      ->required()
      ->group("Input")
      ->type_name("NAME");
  app->add_option("--dictionary", options->dictionary,
                  "The dictionary of a checkpoint to take, e.g. ema.state_dict [the likeliest]")
      ->group("Input")
      ->type_name("NAME");
  CLI::Option* strict = app->add_flag("--strict", options->strict,
                                      "Every tensor must have its place, and none be left over "
                                      "[yes]")
                            ->group("Input");
  CLI::Option* missing = app->add_flag("--allow-missing", options->allow_missing,
                                       "What the file lacks keeps the network's starting values")
                             ->group("Input")
                             ->excludes(strict);
  app->add_flag("--allow-unexpected", options->allow_unexpected,
                "What the network has no place for is left out")
      ->group("Input")
      ->excludes(strict);
  app->add_option("--seed", options->seed, "Of the starting values [0]")
      ->check(check_seed)
      ->needs(missing)
      ->group("Input")
      ->type_name("S");
  app->add_option("--out,--to", options->out, "The new file, NAME.safetensors")
      ->required()
      ->group("Output")
      ->type_name("FILE");
  app->add_option("--report", options->report, "What became of every tensor, as JSON, also when it fails")
      ->group("Output")
      ->type_name("FILE");
  app->add_flag("--overwrite", options->overwrite, "Replace files that exist")->group("Output");
  app->footer(
      "Examples:\n"
      "  vesal convert --from model.pth --model fusion-tiny --out weights.safetensors\n"
      "  vesal convert --from model.pth --model fusion-tiny --out weights.safetensors --report report.json "
      "--allow-missing");
  return {app, [options] { return run(*options); }};
}

}  // namespace vesal::apps
