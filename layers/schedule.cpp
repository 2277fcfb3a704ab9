#include "layers/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.hpp"

namespace vesal::layers {

ScheduleKind parse_schedule_kind(std::string_view name) {
  for (const ScheduleKind kind : {ScheduleKind::poly, ScheduleKind::cosine}) {
    if (name_of(kind) == name) {
      return kind;
    }
  }
  throw UsageError(concat("schedule \"", name, "\": expected poly or cosine"));
}

std::string_view name_of(ScheduleKind kind) { return kind == ScheduleKind::poly ? "poly" : "cosine"; }

float learning_rate_at(const Schedule& schedule, int64_t step) {
  if (step < schedule.warmup_steps) {
    return schedule.base_lr * static_cast<float>(step + 1) / static_cast<float>(schedule.warmup_steps);
  }
  const double span = static_cast<double>(std::max<int64_t>(1, schedule.total_steps - schedule.warmup_steps));
  const double t = std::min(1.0, static_cast<double>(step - schedule.warmup_steps) / span);
  const double shape = schedule.kind == ScheduleKind::poly ? std::pow(1.0 - t, schedule.power)
                                                           : 0.5 * (1.0 + std::cos(std::numbers::pi * t));
  return static_cast<float>(schedule.base_lr * (schedule.final_factor + (1.0 - schedule.final_factor) * shape));
}

}  // namespace vesal::layers
