// Dynamic loss scaling, after Micikevicius et al. 2018, "Mixed Precision Training" (arXiv:1710.03740),
// section 3.2. Gradients of activations that are stored as f16 fall below its smallest number; a loss
// multiplied by a large scale lifts them, and parameters' gradients, which are float32, are divided by it
// before anything else is done with them. A scale that is too large shows in gradients that are not finite:
// the step is skipped and the scale halved. After many good steps in a row it is doubled. The numbers are
// those of PyTorch's GradScaler. Scales are powers of two, so that scaling by itself rounds nothing.
#pragma once

#include <cstdint>

namespace vesal::layers {

struct LossScalerSettings {
  float initial = 65536.0f;
  float largest = 16777216.0f;     // 2^24
  int64_t growth_interval = 2000;  // good steps in a row before the scale is doubled
};

class LossScaler {
 public:
  LossScaler() : LossScaler(LossScalerSettings{}) {}
  explicit LossScaler(const LossScalerSettings& settings) : settings_(settings), scale_(settings.initial) {}

  // What losses are multiplied by.
  float scale() const { return scale_; }
  int64_t good_steps() const { return good_steps_; }
  // The smallest scale is 1: gradients that are not finite then are the network's own.
  bool can_shrink() const { return scale_ > 1.0f; }

  // After a step: whether its gradients were finite, and so whether it changed the parameters.
  void update(bool finite);
  // Continues where scale() and good_steps() were. Throws FormatError unless the scale is a power of two from
  // 1 to the largest and good steps are within the interval.
  void restore(float scale, int64_t good_steps);

 private:
  LossScalerSettings settings_;
  float scale_;
  int64_t good_steps_ = 0;
};

}  // namespace vesal::layers
