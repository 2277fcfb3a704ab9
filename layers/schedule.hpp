// Learning-rate schedules as pure functions of the step, so that a resumed run continues on the same curve.
#pragma once

#include <cstdint>
#include <string_view>

namespace vesal::layers {

enum class ScheduleKind { poly, cosine };

// "poly", "cosine"; UsageError otherwise.
ScheduleKind parse_schedule_kind(std::string_view name);
std::string_view name_of(ScheduleKind kind);

struct Schedule {
  ScheduleKind kind = ScheduleKind::poly;
  float base_lr = 1e-3f;
  int64_t warmup_steps = 0;   // linear from base_lr / warmup_steps
  int64_t total_steps = 1;    // warm-up included; later steps keep the final rate
  float power = 0.9f;         // of poly: (1 - t)^power
  float final_factor = 0.0f;  // of base_lr, reached at total_steps
};

// The learning rate of `step`, counted from 0.
float learning_rate_at(const Schedule& schedule, int64_t step);

}  // namespace vesal::layers
