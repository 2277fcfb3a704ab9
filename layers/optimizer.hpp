// Optimisers over a ParameterStore, with the gradient clipped to a global norm first, and the moving average
// of the weights.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "kernels/optimizer/optimizer.hpp"
#include "layers/parameters.hpp"

namespace vesal::layers {

// What the optimisers have in common: where the state lives, the gradient norm, and the count of steps.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // One update from the gradients of this step, which are divided by `loss_scale` first
  // (layers/loss_scaler.hpp); parameters without one get a zero gradient. Gradients with a norm that is not
  // finite change nothing.
  void step(DeviceContext& context, float learning_rate, float loss_scale = 1.0f);
  // The last step changed nothing and does not count: the next one has its number.
  void uncount_step() { --steps_; }

  // Of the last step's gradients before clipping; waits for the device. 0 before the first step.
  float last_gradient_norm(DeviceContext& context) const;
  // The same on the device, float32 [1], for Ema::step.
  const Tensor& gradient_norm() const { return norm_; }

  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }

  // The state beside the parameters, for checkpoints: one set of tensors under each name ("first_moment",
  // ...), in which tensor i belongs to parameter i of store.all() and has its memory layout.
  struct State {
    std::string_view name;
    std::vector<Tensor> tensors;
  };
  const std::vector<State>& states() const { return states_; }

 protected:
  // Where a state's pointer goes in the kernels' table.
  struct StateField {
    std::string_view name;
    float* kernels::OptimizerTensor::*field;
  };
  // Keeps a reference to `store`, whose parameters must not change number or place afterwards. States start
  // as zeros.
  Optimizer(DeviceContext& context, ParameterStore& store, float weight_decay,
            std::vector<StateField> fields);

 private:
  // Launches the update of step `steps()`, counted from 1.
  virtual void update(DeviceContext& context, float learning_rate, const kernels::OptimizerTables& tables,
                      const float* norm) = 0;

  ParameterStore& store_;
  int64_t steps_ = 0;
  std::vector<State> states_;
  Tensor tensor_table_, chunk_table_, norm_;
  kernels::OptimizerTables tables_;
};

struct AdamWSettings {
  float beta1 = 0.9f, beta2 = 0.999f;
  float eps = 1e-8f;
  float weight_decay = 1e-2f;  // of parameters that decay
  float max_norm = 12.0f;      // global gradient norm; <= 0: no clipping
  bool amsgrad = false;
  // l2: Adam. torch.optim.Adam's other defaults are a weight_decay of 0 and no clipping.
  kernels::WeightDecay decay = kernels::WeightDecay::decoupled;
};

// AdamW, and Adam with WeightDecay::l2.
class AdamW : public Optimizer {
 public:
  AdamW(DeviceContext& context, ParameterStore& store, AdamWSettings settings);

  // Moments of parameter i of store.all(), in the parameter's own memory layout.
  const Tensor& first_moment(size_t i) const { return states()[0].tensors[i]; }
  const Tensor& second_moment(size_t i) const { return states()[1].tensors[i]; }
  const AdamWSettings& settings() const { return settings_; }

 private:
  void update(DeviceContext& context, float learning_rate, const kernels::OptimizerTables& tables,
              const float* norm) override;

  AdamWSettings settings_;
};

// The defaults are nnU-Net's.
struct SgdSettings {
  float momentum = 0.99f;
  bool nesterov = true;
  float weight_decay = 3e-5f;  // of parameters that decay
  float max_norm = 12.0f;      // global gradient norm; <= 0: no clipping
};

class Sgd : public Optimizer {
 public:
  // Its only state is "first_moment"; with momentum 0 there is none.
  Sgd(DeviceContext& context, ParameterStore& store, SgdSettings settings);

  const SgdSettings& settings() const { return settings_; }

 private:
  void update(DeviceContext& context, float learning_rate, const kernels::OptimizerTables& tables,
              const float* norm) override;

  SgdSettings settings_;
};

enum class OptimizerKind { adamw, adam, sgd };
// "adamw", "adam", "sgd", and back; UsageError lists them for anything else.
std::string_view name_of(OptimizerKind kind);
OptimizerKind parse_optimizer(std::string_view name);

// What a run that says nothing else takes. adam's decay is torch.optim.Adam's, sgd's values are nnU-Net's.
struct OptimizerDefaults {
  double learning_rate;
  double weight_decay;
};
OptimizerDefaults optimizer_defaults(OptimizerKind kind);

std::unique_ptr<Optimizer> make_optimizer(DeviceContext& context, ParameterStore& store, OptimizerKind kind,
                                          float weight_decay, float max_norm);

struct EmaSettings {
  float decay = 0.999f;
  // Early averages forget faster, so that the random start leaves them: the decay of step t, counted from 1,
  // is at most (1 + t) / (10 + t).
  bool warm_up = true;
};

float ema_decay_at(const EmaSettings& settings, int64_t step);

// A moving average of all weights, which starts as a copy of them.
class Ema {
 public:
  // Keeps a reference to `store`, whose parameters must not change number or place afterwards.
  Ema(DeviceContext& context, ParameterStore& store, EmaSettings settings);

  // After an optimiser's step. Where `gradient_norm`, if given, is not finite, the averages stay as they are,
  // like the parameters.
  void step(DeviceContext& context, const Tensor* gradient_norm = nullptr);

  // Exchanges averages and parameters: to validate or write the averaged network, and once more to train on.
  void swap(DeviceContext& context);

  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  // Of parameter i of store.all(), in the parameter's own memory layout.
  const Tensor& average(size_t i) const { return averages_[i]; }
  const EmaSettings& settings() const { return settings_; }

 private:
  ParameterStore& store_;
  EmaSettings settings_;
  int64_t steps_ = 0;
  std::vector<Tensor> averages_;
  Tensor tensor_table_, chunk_table_;
  kernels::OptimizerTables tables_;
};

}  // namespace vesal::layers
