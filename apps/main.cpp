// The `vesal` program: picks the subcommand, and turns every error into one line on stderr and an exit code.
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <new>
#include <regex>
#include <sstream>
#include <vector>

#include "apps/commands.hpp"
#include "apps/console.hpp"
#include "base/error.hpp"
#include "training/interrupted.hpp"

namespace {

using namespace vesal;
using namespace vesal::apps;

// "0.000000 to 0.950000", as CLI11 writes numbers, to "0 to 0.95".
std::string without_zeros(const std::string& text) {
  return std::regex_replace(text, std::regex("(\\d)\\.0+\\b|(\\.\\d*[1-9])0+\\b"), "$1$2");
}

// What CLI11 found wrong, in the form "--option: found ..., expected ..." where it can be told.
std::string parse_message(const CLI::ParseError& error, const CLI::App& app) {
  const std::string text = error.what();
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> extras = app.remaining(false);
    const std::string word = extras.empty() ? text : extras.front().substr(0, extras.front().find('='));
    std::vector<std::string> known;
    const bool option = word.starts_with("-");
    if (option) {
      for (const CLI::Option* candidate : app.get_options()) {
        for (const std::string& name : candidate->get_lnames()) {
          known.push_back("--" + name);
        }
      }
    } else {
      for (const CLI::App* candidate : app.get_subcommands([](const CLI::App*) { return true; })) {
        known.push_back(candidate->get_name());
      }
    }
    const std::string hint = nearest(word, known);
    const std::string kind = option          ? "an unknown option"
                             : known.empty() ? "an argument too many"
                                             : "an unknown command";
    return concat(word, ": found ", kind, hint.empty() ? "" : ", expected perhaps ", hint);
  }
  static constexpr std::string_view kConvert = "Could not convert: ";
  if (text.starts_with(kConvert)) {
    const std::string rest = text.substr(kConvert.size());
    const size_t equals = rest.find(" = ");
    if (equals != std::string::npos) {
      return concat(rest.substr(0, equals), ": found ", rest.substr(equals + 3), ", expected a number");
    }
  }
  static constexpr std::string_view kRange = ": Value ";
  const size_t value = text.find(kRange);
  const size_t range = text.find(" not in range ");
  if (value != std::string::npos && range != std::string::npos) {
    const size_t begin = value + kRange.size();
    return concat(text.substr(0, value), ": found ", text.substr(begin, range - begin), ", expected ",
                  without_zeros(text.substr(range + std::string_view(" not in range ").size())));
  }
  // Too few or too many values, or none: "--size: At least 3 required but received 2", "--cases: 1 required
  // N:INT missing".
  std::smatch match;
  if (std::regex_match(
          text, match,
          std::regex("(--\\S+): At (?:least|most) (\\d+) required but received (\\d+)", std::regex::icase))) {
    return concat(match.str(1), ": found ", match.str(3), " values, expected ", match.str(2));
  }
  if (std::regex_match(text, match, std::regex("(--\\S+): \\d+ required .* missing"))) {
    return concat(match.str(1), ": found nothing, expected a value");
  }
  static constexpr std::string_view kExcludes = " excludes ";
  if (const size_t excludes = text.find(kExcludes); excludes != std::string::npos) {
    return concat(text.substr(0, excludes), ": found together with ",
                  text.substr(excludes + kExcludes.size()), ", expected one of them");
  }
  static constexpr std::string_view kRequired = " is required";
  if (text.ends_with(kRequired)) {
    return concat(text.substr(0, text.size() - kRequired.size()), ": found nothing, expected a value");
  }
  return text;
}

// CLI11's help without the noise: options show their argument's name only, and a command its description's
// first line.
class Help : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) {
      return {};
    }
    return " " + option->get_type_name().substr(0, option->get_type_name().find(':')) +
           (option->get_required() ? " (required)" : "");
  }
  std::string make_subcommand(const CLI::App* command) const override {
    const std::string description = command->get_description();
    std::ostringstream out;
    CLI::detail::format_help(out, command->get_name(), description.substr(0, description.find('\n')),
                             get_column_width());
    return out.str();
  }
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    std::string text = CLI::Formatter::make_help(app, name, mode);
    for (size_t at; (at = text.find("\n\n\n")) != std::string::npos;) {
      text.erase(at, 1);
    }
    return text;
  }
};

// GNU's OpenMP lets waiting threads spin for milliseconds. Where processors are shared with other work, as on
// most servers and in containers, that slows a training step several times; sleeping costs nothing measurable
// elsewhere. The library reads its environment once, when it is loaded, so the program starts itself again
// with the setting, unless the user has made a choice.
void start_with_sleeping_threads(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") == nullptr && std::getenv("GOMP_SPINCOUNT") == nullptr &&
      setenv("OMP_WAIT_POLICY", "passive", 0) == 0) {
    // By its own path, so that ps and top show "vesal" and not "exe". Returns only where that is not
    // possible, and then nothing is lost.
    std::error_code error;
    execv(std::filesystem::read_symlink("/proc/self/exe", error).c_str(), argv);
  }
}

int run(int argc, char** argv) {
  CLI::App program(
      "Vesal trains and runs 3D multimodal medical segmentation networks, also when some modalities are "
      "missing.");
  program.name("vesal");
  const auto help = std::make_shared<Help>();
  help->column_width(28);
  program.formatter(help);
  program.set_help_flag("-h,--help", "Print this help and exit");
  program.set_version_flag("--version,-V", "vesal " + version(), "Print the version and exit");
  program.footer(
      "A first tour, without data of your own:\n"
      "  vesal phantom  --out data/train --cases 12 --seed 1\n"
      "  vesal phantom  --out data/test  --cases 4  --seed 2\n"
      "  vesal train    --data data/train --out run --model fusion-micro --minutes 8\n"
      "  vesal predict  --weights run --input data/test --out predictions\n"
      "  vesal evaluate --predictions predictions --labels data/test\n\n"
      "vesal COMMAND --help tells all about a command.\n"
      "Exit codes: 0 done, 1 failure, 2 wrong usage, 3 some cases failed, 130 interrupted.");
  const std::vector<Command> commands{make_train(program),   make_predict(program), make_evaluate(program),
                                      make_phantom(program), make_inspect(program), make_convert(program),
                                      make_doctor(program)};
  for (const Command& command : commands) {
    command.app->set_help_flag("-h,--help", "Print this help and exit")->group("General");
  }
  const auto chosen = [&]() -> const Command* {
    for (const Command& command : commands) {
      if (command.app->parsed()) {
        return &command;
      }
    }
    return nullptr;
  };
  try {
    program.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::cout << (chosen() != nullptr ? chosen()->app->help("vesal") : program.help());
    return kExitOk;
  } catch (const CLI::CallForVersion& version_text) {
    std::cout << version_text.what() << std::endl;
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    const Command* command = chosen();
    const CLI::App& app = command != nullptr ? *command->app : program;
    const std::string name = command != nullptr ? command->app->get_name() : "";
    print_error(name,
                concat(parse_message(error, app), " (see: vesal ", name, name.empty() ? "" : " ", "--help)"));
    return kExitUsage;
  }
  const Command* command = chosen();
  if (command == nullptr) {
    std::cout << program.help();
    return kExitUsage;
  }
  const std::string name = command->app->get_name();
  try {
    watch_signals();
    return command->run();
  } catch (const UsageError& error) {
    print_error(name, error.what());
    return kExitUsage;
  } catch (const training::InterruptedError& error) {
    print_error(name, error.what());
    return kExitInterrupted;
  } catch (const std::bad_alloc&) {
    print_error(name,
                "memory: the system has no more to give; a smaller --patch or fewer --threads needs less");
    return kExitFailure;
  } catch (const std::exception& error) {
    print_error(name, error.what());
    return kExitFailure;
  }
}

}  // namespace

int main(int argc, char** argv) {
  start_with_sleeping_threads(argv);
  return run(argc, argv);
}
