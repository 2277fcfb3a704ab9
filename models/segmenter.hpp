// What networks have in common that give every voxel of a volume one of several classes, for those who run
// them.
#pragma once

#include <cstdint>
#include <functional>

#include "models/model.hpp"
#include "runtime/tape.hpp"

namespace vesal::models {

class Segmenter : public Model {
 public:
  struct Options {
    // How activations and weights are stored: f32, bf16 or f16.
    DType precision = DType::f32;
    // Called after each part of the work; what it throws ends the pass.
    std::function<void(int64_t done, int64_t total)> progress = {};
  };

  virtual int64_t in_channels() const = 0;
  virtual int64_t classes() const = 0;
  // volume [N, D, H, W, in_channels], float32; logits [N, D, H, W, classes], float32.
  virtual Variable forward(DeviceContext& context, const Tensor& volume, const Options& options) const = 0;
};

}  // namespace vesal::models
