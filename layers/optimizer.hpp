// AdamW over a ParameterStore, with the gradient clipped to a global norm first.
#pragma once

#include <vector>

#include "kernels/optimizer/optimizer.hpp"
#include "layers/parameters.hpp"

namespace vesal::layers {

struct AdamWSettings {
  float beta1 = 0.9f, beta2 = 0.999f;
  float eps = 1e-8f;
  float weight_decay = 1e-2f;  // of parameters that decay
  float max_norm = 12.0f;      // global gradient norm; <= 0: no clipping
};

class AdamW {
 public:
  // Keeps a reference to `store`, whose parameters must not change number or place afterwards.
  AdamW(DeviceContext& context, ParameterStore& store, AdamWSettings settings);

  // One update from the gradients of this step; parameters without one get a zero gradient. Gradients with a norm that
  // is not finite change nothing.
  void step(DeviceContext& context, float learning_rate);

  // Of the last step's gradients before clipping; waits for the device. 0 before the first step.
  float last_gradient_norm(DeviceContext& context) const;

  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  // Moments of parameter i of store.all(), in the parameter's own memory layout.
  const Tensor& first_moment(size_t i) const { return first_[i]; }
  const Tensor& second_moment(size_t i) const { return second_[i]; }
  const AdamWSettings& settings() const { return settings_; }

 private:
  ParameterStore& store_;
  AdamWSettings settings_;
  int64_t steps_ = 0;
  std::vector<Tensor> first_, second_;
  Tensor tensor_table_, chunk_table_, norm_;
  kernels::OptimizerTables tables_;
};

}  // namespace vesal::layers
