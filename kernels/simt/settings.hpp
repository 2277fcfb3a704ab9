// What schedule.hpp sets, and the list of warnings, as the engine reads and writes them.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/simt/schedule.hpp"

namespace vesal::kernels::simt {

struct Settings {
  Schedule schedule = Schedule::forward;
  uint64_t seed = 0;
  int workers = 1;
  Limits limits;
};

// A copy of the settings now in force.
Settings current_settings();

void add_warning(const std::string& message);

}  // namespace vesal::kernels::simt
