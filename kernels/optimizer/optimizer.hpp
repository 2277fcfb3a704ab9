// AdamW (Loshchilov, Hutter 2019, algorithm 2) on all parameters in one launch, and the global gradient norm
// for clipping.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// One parameter tensor. All pointers are float32 in the context's device memory.
struct OptimizerTensor {
  float* parameter = nullptr;
  const float* gradient = nullptr;
  float* first_moment = nullptr;
  float* second_moment = nullptr;
  int64_t count = 0;
  float weight_decay = 0.0f;
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

struct AdamWParams {
  float learning_rate = 1e-3f;
  float beta1 = 0.9f, beta2 = 0.999f;
  float eps = 1e-8f;
  int64_t step = 1;       // counts from 1, for the bias corrections
  float max_norm = 0.0f;  // gradients are scaled by min(1, max_norm / (norm + 1e-6)); 0 or less: no clipping
};

//   g  = clip * gradient;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   p -= lr * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p)
// norm [1] in device memory, from gradient_norm; null when max_norm <= 0. A norm that is not finite leaves
// parameters and moments untouched.
void adamw_step(Context& context, const AdamWParams& params, const OptimizerTables& tables,
                const float* norm);

}  // namespace vesal::kernels
