// AdamW, Adam, SGD, the moving average of the weights and the global gradient norm. AdamW reads 16 and writes
// 12 bytes a parameter (4 more of each with AMSGrad), SGD reads 12 and writes 8, the average reads 8 and
// writes 4, the norm reads 4; at most 20 operations: memory bandwidth limits all. A block takes a chunk of
// one tensor; all tensors go in one launch, found through tables in device memory.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/optimizer/optimizer.hpp"
#include "kernels/optimizer/optimizer_step.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

VESAL_KERNEL void chunk_squares_kernel(const OptimizerTensor* VESAL_RESTRICT tensors,
                                       const OptimizerChunk* VESAL_RESTRICT chunks,
                                       float* VESAL_RESTRICT partials) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const OptimizerChunk chunk = chunks[blockIdx.x];
  const float* gradient = tensors[chunk.tensor].gradient + chunk.begin;
  float total = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kLoopThreads) {
    total += gradient[i] * gradient[i];
  }
  total = column_sum(total, 1, scratch);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = total;
  }
}

VESAL_KERNEL void finish_norm_kernel(int64_t chunk_count, const float* VESAL_RESTRICT partials,
                                     float* VESAL_RESTRICT norm) {
  VESAL_SHARED(double, scratch, [kLoopThreads]);
  double total = 0.0;
  for (int64_t k = threadIdx.x; k < chunk_count; k += kLoopThreads) {
    total += static_cast<double>(partials[k]);
  }
  total = column_sum(total, 1, scratch);
  if (threadIdx.x == 0) {
    norm[0] = static_cast<float>(sqrt(total));
  }
}

// The factor of the gradients; negative when the norm is not finite and the step must not happen.
VESAL_DEVICE float clip_factor(float max_norm, const float* norm) {
  if (norm == nullptr) {
    return 1.0f;
  }
  const float found = norm[0];
  if (!(fabsf(found) < INFINITY)) {
    return -1.0f;
  }
  return max_norm > 0.0f ? fminf(1.0f, max_norm / (found + 1e-6f)) : 1.0f;
}

VESAL_KERNEL void adamw_kernel(AdamWStep s, float max_norm, const float* VESAL_RESTRICT norm,
                               const OptimizerTensor* VESAL_RESTRICT tensors,
                               const OptimizerChunk* VESAL_RESTRICT chunks) {
  const float clip = clip_factor(max_norm, norm);
  if (clip < 0.0f) {
    return;
  }
  const OptimizerChunk chunk = chunks[blockIdx.x];
  const OptimizerTensor tensor = tensors[chunk.tensor];
  float* VESAL_RESTRICT parameter = tensor.parameter + chunk.begin;
  const float* VESAL_RESTRICT gradient = tensor.gradient + chunk.begin;
  float* VESAL_RESTRICT first_moment = tensor.first_moment + chunk.begin;
  float* VESAL_RESTRICT second_moment = tensor.second_moment + chunk.begin;
  float* VESAL_RESTRICT largest =
      tensor.largest_second_moment != nullptr ? tensor.largest_second_moment + chunk.begin : nullptr;
  const float l2 = s.l2_decay ? tensor.weight_decay : 0.0f;
  const float decoupled = s.l2_decay ? 0.0f : tensor.weight_decay;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kLoopThreads) {
    const float p = parameter[i];
    const float g = clip * gradient[i] + l2 * p;
    const float m = s.beta1 * first_moment[i] + s.one_minus_beta1 * g;
    float v = s.beta2 * second_moment[i] + s.one_minus_beta2 * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    if (largest != nullptr) {
      v = fmaxf(largest[i], v);
      largest[i] = v;
    }
    const float step = m * s.correction1 / (sqrtf(v * s.correction2) + s.eps);
    parameter[i] = p - s.learning_rate * (step + decoupled * p);
  }
}

VESAL_KERNEL void sgd_kernel(SgdParams s, const float* VESAL_RESTRICT norm,
                             const OptimizerTensor* VESAL_RESTRICT tensors,
                             const OptimizerChunk* VESAL_RESTRICT chunks) {
  const float clip = clip_factor(s.max_norm, norm);
  if (clip < 0.0f) {
    return;
  }
  const OptimizerChunk chunk = chunks[blockIdx.x];
  const OptimizerTensor tensor = tensors[chunk.tensor];
  float* VESAL_RESTRICT parameter = tensor.parameter + chunk.begin;
  const float* VESAL_RESTRICT gradient = tensor.gradient + chunk.begin;
  float* VESAL_RESTRICT first_moment = s.momentum > 0.0f ? tensor.first_moment + chunk.begin : nullptr;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kLoopThreads) {
    const float p = parameter[i];
    const float g = clip * gradient[i] + tensor.weight_decay * p;
    float step = g;
    if (first_moment != nullptr) {
      const float m = s.momentum * first_moment[i] + g;
      first_moment[i] = m;
      step = s.nesterov ? g + s.momentum * m : m;
    }
    parameter[i] = p - s.learning_rate * step;
  }
}

VESAL_KERNEL void ema_kernel(float one_minus_decay, const float* VESAL_RESTRICT norm,
                             const OptimizerTensor* VESAL_RESTRICT tensors,
                             const OptimizerChunk* VESAL_RESTRICT chunks) {
  if (clip_factor(0.0f, norm) < 0.0f) {
    return;
  }
  const OptimizerChunk chunk = chunks[blockIdx.x];
  const OptimizerTensor tensor = tensors[chunk.tensor];
  const float* VESAL_RESTRICT parameter = tensor.parameter + chunk.begin;
  float* VESAL_RESTRICT average = tensor.average + chunk.begin;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kLoopThreads) {
    average[i] += one_minus_decay * (parameter[i] - average[i]);
  }
}

}  // namespace

void gradient_norm(Context& context, const OptimizerTables& tables, float* norm, Workspace workspace) {
  auto* partials = static_cast<float*>(workspace.data);
  launch(context.stream(), {.grid = {tables.chunk_count, 1, 1}, .block = {kLoopThreads, 1, 1}},
         chunk_squares_kernel, tables.tensors, tables.chunks, partials);
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {kLoopThreads, 1, 1}}, finish_norm_kernel,
         tables.chunk_count, static_cast<const float*>(partials), norm);
}

void adamw_step(Context& context, const AdamWParams& params, const OptimizerTables& tables,
                const float* norm) {
  launch(context.stream(), {.grid = {tables.chunk_count, 1, 1}, .block = {kLoopThreads, 1, 1}}, adamw_kernel,
         adamw_constants(params), params.max_norm, norm, tables.tensors, tables.chunks);
}

void sgd_step(Context& context, const SgdParams& params, const OptimizerTables& tables, const float* norm) {
  launch(context.stream(), {.grid = {tables.chunk_count, 1, 1}, .block = {kLoopThreads, 1, 1}}, sgd_kernel,
         params, norm, tables.tensors, tables.chunks);
}

void ema_step(Context& context, float decay, const OptimizerTables& tables, const float* norm) {
  launch(context.stream(), {.grid = {tables.chunk_count, 1, 1}, .block = {kLoopThreads, 1, 1}}, ema_kernel,
         static_cast<float>(1.0 - static_cast<double>(decay)), norm, tables.tensors, tables.chunks);
}

}  // namespace vesal::kernels::VESAL_BACKEND
