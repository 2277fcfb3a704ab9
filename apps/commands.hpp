// The subcommands of `vesal`: each registers its options and says what to run once they are parsed.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace vesal::apps {

struct Command {
  CLI::App* app = nullptr;
  std::function<int()> run;  // returns the exit code; throws vesal::Error
};

Command make_train(CLI::App& program);
Command make_predict(CLI::App& program);
Command make_evaluate(CLI::App& program);
Command make_phantom(CLI::App& program);
Command make_inspect(CLI::App& program);
Command make_convert(CLI::App& program);
Command make_doctor(CLI::App& program);

}  // namespace vesal::apps
