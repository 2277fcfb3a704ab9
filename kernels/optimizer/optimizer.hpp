// Optimisers on all parameters in one launch each: AdamW (Loshchilov, Hutter 2019, algorithm 2), Adam
// (Kingma, Ba 2015), both with or without AMSGrad (Reddi et al. 2018), and SGD with momentum; the global
// gradient norm for clipping; and the moving average of the weights. The update rules are those of
// torch.optim.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// One parameter tensor. All pointers are float32 in the context's device memory; those that a function does
// not mention may be null.
struct OptimizerTensor {
  float* parameter = nullptr;
  const float* gradient = nullptr;
  float* first_moment = nullptr;
  float* second_moment = nullptr;
  int64_t count = 0;
  float weight_decay = 0.0f;
  float* largest_second_moment = nullptr;  // AMSGrad where it is not null
  float* average = nullptr;                // of the parameter over the steps, for ema_step
};

// A piece of a tensor, the work of one block.
struct OptimizerChunk {
  int32_t tensor = 0;
  int32_t count = 0;
  int64_t begin = 0;
};

inline constexpr int64_t kOptimizerChunk = 4096;
// Cuts tensors into chunks of at most kOptimizerChunk elements, in order.
std::vector<OptimizerChunk> optimizer_chunks(std::span<const OptimizerTensor> tensors);

// Tables that the caller has put into device memory once and reuses every step.
struct OptimizerTables {
  const OptimizerTensor* tensors = nullptr;
  int64_t tensor_count = 0;
  const OptimizerChunk* chunks = nullptr;
  int64_t chunk_count = 0;
};

size_t gradient_norm_workspace_bytes(Context& context, const OptimizerTables& tables);
// norm [1] = sqrt of the sum of squares of all gradients (float32 partial sums per chunk, added in double in
// a fixed order).
void gradient_norm(Context& context, const OptimizerTables& tables, float* norm, Workspace workspace);

enum class WeightDecay {
  decoupled,  // AdamW: shrinks the parameter directly
  l2,         // Adam: joins the gradient, after clipping
};

struct AdamWParams {
  float learning_rate = 1e-3f;
  float beta1 = 0.9f, beta2 = 0.999f;
  float eps = 1e-8f;
  int64_t step = 1;       // counts from 1, for the bias corrections
  float max_norm = 0.0f;  // gradients are scaled by min(1, max_norm / (norm + 1e-6)); 0 or less: no clipping
  WeightDecay decay = WeightDecay::decoupled;
};

//   g  = clip * gradient (+ weight_decay * p with WeightDecay::l2)
//   m  = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   v' = v, or with AMSGrad largest = max(largest, v)
//   p -= lr * (m / (1 - beta1^t) / (sqrt(v' / (1 - beta2^t)) + eps) (+ weight_decay * p if decoupled))
// m, v and largest are the tensor's first_moment, second_moment and largest_second_moment and start as zeros.
// norm [1] in device memory, from gradient_norm; may be null when max_norm <= 0. A norm that is not finite
// leaves parameters and moments untouched. Throws ShapeError if step < 1 or clipping lacks the norm.
void adamw_step(Context& context, const AdamWParams& params, const OptimizerTables& tables,
                const float* norm);

struct SgdParams {
  float learning_rate = 1e-2f;
  float momentum = 0.0f;  // in [0, 1)
  bool nesterov = false;  // needs momentum
  float max_norm = 0.0f;  // as in AdamWParams
};

//   g  = clip * gradient + weight_decay * p
//   m  = momentum m + g
//   p -= lr * (g + momentum m if nesterov, else m)
// m is the tensor's first_moment, starts as zeros, and is not read or written with momentum 0 (p -= lr g).
// `norm` as for adamw_step. Throws ShapeError if momentum is outside [0, 1), nesterov lacks momentum, or
// clipping lacks the norm.
void sgd_step(Context& context, const SgdParams& params, const OptimizerTables& tables, const float* norm);

// average += (1 - decay) * (parameter - average), decay in [0, 1]. A norm that is not finite leaves the
// averages untouched; null: always moves. Throws ShapeError if decay is outside [0, 1].
void ema_step(Context& context, float decay, const OptimizerTables& tables, const float* norm);

}  // namespace vesal::kernels
