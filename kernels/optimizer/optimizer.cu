// AdamW and the global gradient norm. AdamW reads 16 and writes 12 bytes a parameter, the norm reads 4; about
// 15 operations: memory bandwidth limits both. A block takes a chunk of one tensor; all tensors go in one
// launch, found through tables in device memory. No GPU timing exists yet: bench/results/README.md.
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

VESAL_KERNEL void adamw_kernel(AdamWStep s, float max_norm, const float* VESAL_RESTRICT norm,
                               const OptimizerTensor* VESAL_RESTRICT tensors,
                               const OptimizerChunk* VESAL_RESTRICT chunks) {
  float clip = 1.0f;
  if (norm != nullptr) {
    const float found = norm[0];
    if (!(fabsf(found) < INFINITY)) {
      return;
    }
    if (max_norm > 0.0f) {
      clip = fminf(1.0f, max_norm / (found + 1e-6f));
    }
  }
  const OptimizerChunk chunk = chunks[blockIdx.x];
  const OptimizerTensor tensor = tensors[chunk.tensor];
  float* VESAL_RESTRICT parameter = tensor.parameter + chunk.begin;
  const float* VESAL_RESTRICT gradient = tensor.gradient + chunk.begin;
  float* VESAL_RESTRICT first_moment = tensor.first_moment + chunk.begin;
  float* VESAL_RESTRICT second_moment = tensor.second_moment + chunk.begin;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kLoopThreads) {
    const float g = clip * gradient[i];
    const float m = s.beta1 * first_moment[i] + s.one_minus_beta1 * g;
    const float v = s.beta2 * second_moment[i] + s.one_minus_beta2 * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    const float p = parameter[i];
    const float step = m * s.correction1 / (sqrtf(v * s.correction2) + s.eps);
    parameter[i] = p - s.learning_rate * (step + tensor.weight_decay * p);
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

}  // namespace vesal::kernels::VESAL_BACKEND
