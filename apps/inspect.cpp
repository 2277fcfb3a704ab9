// vesal inspect: what a file of weights holds.
#include "weights_tools/inspect.hpp"

#include <charconv>
#include <iostream>
#include <limits>
#include <memory>

#include "apps/commands.hpp"
#include "apps/console.hpp"
#include "base/error.hpp"

namespace vesal::apps {
namespace {

struct Options {
  std::string file;
  std::string dictionary;
  std::string tensors = "20";
  bool no_values = false;
  bool json = false;
};

// "all" or a number.
bool parse_rows(const std::string& text, size_t* rows) {
  *rows = std::numeric_limits<size_t>::max();
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, *rows);
  return text == "all" || (error == std::errc() && rest == end);
}

std::string check_rows(const std::string& text) {
  size_t rows = 0;
  return parse_rows(text, &rows) ? "" : concat("--tensors: found ", text, ", expected a number or all");
}

int run(const Options& options) {
  size_t rows = 0;
  parse_rows(options.tensors, &rows);
  const std::unique_ptr<weights::WeightsFile> file = weights::open_weights(options.file, options.dictionary);
  DeviceContext context((Device()));
  const weights::Inspection inspection = weights::inspect(context, *file, !options.no_values);
  std::cout << (options.json ? weights::to_json(inspection, *file)
                             : weights::to_text(inspection, *file, rows))
            << std::flush;
  return kExitOk;
}

}  // namespace

Command make_inspect(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App* app = program.add_subcommand("inspect");
  app->description(
      "Say what a file of weights holds.\n\n"
      "Lists the tensors of a safetensors file or a PyTorch checkpoint (zip, legacy, TorchScript), its "
      "metadata,\n"
      "which known network it looks like, and what is wrong with its values. The content decides what a file "
      "is,\n"
      "not its name; nothing in it is executed.");
  app->add_option("file", options->file, "A file of weights, of any name")
      ->required()
      ->group("Input")
      ->type_name("FILE");
  app->add_option("--dictionary", options->dictionary,
                  "The dictionary of a checkpoint to look at, e.g. ema.state_dict [the likeliest]")
      ->group("Input")
      ->type_name("NAME");
  app->add_flag("--no-values", options->no_values,
                "Do not read the tensors' values: no look for NaN and damage")
      ->group("Input");
  app->add_option("--tensors", options->tensors, "Rows of the table: a number, or all [20]")
      ->check(check_rows)
      ->group("Output")
      ->type_name("N");
  app->add_flag("--json", options->json, "Everything, as JSON")->group("Output");
  app->footer(
      "Examples:\n"
      "  vesal inspect model.pth\n"
      "  vesal inspect run/last.safetensors --tensors all\n"
      "  vesal inspect checkpoint.ckpt --dictionary ema --json");
  return {app, [options] { return run(*options); }};
}

}  // namespace vesal::apps
