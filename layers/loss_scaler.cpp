#include "layers/loss_scaler.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"

namespace vesal::layers {

void LossScaler::update(bool finite) {
  if (!finite) {
    scale_ = std::max(scale_ / 2, 1.0f);
    good_steps_ = 0;
  } else if (++good_steps_ == settings_.growth_interval) {
    scale_ = std::min(scale_ * 2, settings_.largest);
    good_steps_ = 0;
  }
}

void LossScaler::restore(float scale, int64_t good_steps) {
  int exponent = 0;
  check<FormatError>(scale >= 1.0f && scale <= settings_.largest && std::frexp(scale, &exponent) == 0.5f,
                     "loss scale: found ", scale, ", expected a power of two from 1 to ", settings_.largest);
  check<FormatError>(good_steps >= 0 && good_steps < settings_.growth_interval, "loss scale: found ",
                     good_steps, " good steps, expected 0 to ", settings_.growth_interval - 1);
  scale_ = scale;
  good_steps_ = good_steps;
}

}  // namespace vesal::layers
