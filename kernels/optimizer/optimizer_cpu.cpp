// AdamW on the CPU: one threaded, vectorised pass over the chunks of all parameters.
#include <algorithm>
#include <cmath>

#include "base/parallel.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/wide_rows.hpp"
#include "kernels/optimizer/optimizer.hpp"
#include "kernels/optimizer/optimizer_step.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kGrainChunks = 8;

}  // namespace

void gradient_norm(Context&, const OptimizerTables& tables, float* norm, Workspace workspace) {
  auto* partials = static_cast<float*>(workspace.data);
  parallel_for(tables.chunk_count, kGrainChunks, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const OptimizerChunk& chunk = tables.chunks[k];
      const float* gradient = tables.tensors[chunk.tensor].gradient + chunk.begin;
      // wide_width(1) running sums, so that each stays short.
      float acc[64];
      double total = 0;
      sum_columns<1>(0, chunk.count, 1, acc, &total,
                     [gradient](int64_t i, int64_t, auto add) { add(0, gradient[i] * gradient[i]); });
      partials[k] = static_cast<float>(total);
    }
  });
  double total = 0;
  for (int64_t k = 0; k < tables.chunk_count; ++k) {
    total += partials[k];
  }
  *norm = static_cast<float>(std::sqrt(total));
}

void adamw_step(Context&, const AdamWParams& params, const OptimizerTables& tables, const float* norm) {
  if (norm != nullptr && !std::isfinite(*norm)) {
    return;
  }
  const float clip = params.max_norm > 0 ? std::min(1.0f, params.max_norm / (*norm + 1e-6f)) : 1.0f;
  const AdamWStep s = adamw_constants(params);
  parallel_for(tables.chunk_count, kGrainChunks, [&, s](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const OptimizerChunk& chunk = tables.chunks[k];
      const OptimizerTensor& tensor = tables.tensors[chunk.tensor];
      float* __restrict p = tensor.parameter + chunk.begin;
      const float* __restrict gradient = tensor.gradient + chunk.begin;
      float* __restrict m = tensor.first_moment + chunk.begin;
      float* __restrict v = tensor.second_moment + chunk.begin;
      const float weight_decay = tensor.weight_decay;
      const int32_t count = chunk.count;
#pragma omp simd
      for (int32_t i = 0; i < count; ++i) {
        const float g = clip * gradient[i];
        m[i] = s.beta1 * m[i] + s.one_minus_beta1 * g;
        v[i] = s.beta2 * v[i] + s.one_minus_beta2 * g * g;
        const float step = m[i] * s.correction1 / (std::sqrt(v[i] * s.correction2) + s.eps);
        p[i] -= s.learning_rate * (step + weight_decay * p[i]);
      }
    }
  });
}

}  // namespace vesal::kernels::cpu
