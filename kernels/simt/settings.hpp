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
  uint64_t block_sample = 0;
  Limits limits;
};

// The defaults, changed by VESAL_SIMT_SCHEDULE and VESAL_SIMT_WORKERS where they are set. Throws UsageError
// for values that make no sense.
Settings settings_from_environment();

// A copy of the settings now in force.
Settings current_settings();

void add_warning(const std::string& message);

}  // namespace vesal::kernels::simt
