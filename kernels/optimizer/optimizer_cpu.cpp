// The optimisers on the CPU: one threaded, vectorised pass over the chunks of all parameters.
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

float clip_factor(float max_norm, const float* norm) {
  return max_norm > 0 ? std::min(1.0f, max_norm / (*norm + 1e-6f)) : 1.0f;
}

// A norm that is there and is not finite forbids the step.
bool forbidden(const float* norm) { return norm != nullptr && !std::isfinite(*norm); }

// Adam with AMSGrad and without are loops of their own, so that both stay vectorised.
template <bool kAmsgrad>
void adamw_chunk(const AdamWStep& s, float clip, const OptimizerChunk& chunk, const OptimizerTensor& tensor) {
  float* __restrict p = tensor.parameter + chunk.begin;
  const float* __restrict gradient = tensor.gradient + chunk.begin;
  float* __restrict m = tensor.first_moment + chunk.begin;
  float* __restrict v = tensor.second_moment + chunk.begin;
  float* __restrict largest = kAmsgrad ? tensor.largest_second_moment + chunk.begin : nullptr;
  const float l2 = s.l2_decay ? tensor.weight_decay : 0.0f;
  const float decoupled = s.l2_decay ? 0.0f : tensor.weight_decay;
  const int32_t count = chunk.count;
#pragma omp simd
  for (int32_t i = 0; i < count; ++i) {
    const float g = clip * gradient[i] + l2 * p[i];
    m[i] = s.beta1 * m[i] + s.one_minus_beta1 * g;
    v[i] = s.beta2 * v[i] + s.one_minus_beta2 * g * g;
    float size = v[i];
    if constexpr (kAmsgrad) {
      largest[i] = largest[i] > size ? largest[i] : size;
      size = largest[i];
    }
    const float step = m[i] * s.correction1 / (std::sqrt(size * s.correction2) + s.eps);
    p[i] -= s.learning_rate * (step + decoupled * p[i]);
  }
}

// What stands in `s` in locals: stores of floats might change it, for all the compiler knows, and loops that
// read it again for each element stay scalar.
void sgd_chunk(const SgdParams& s, float clip, const OptimizerChunk& chunk, const OptimizerTensor& tensor) {
  float* __restrict p = tensor.parameter + chunk.begin;
  const float* __restrict gradient = tensor.gradient + chunk.begin;
  const float weight_decay = tensor.weight_decay;
  const float learning_rate = s.learning_rate;
  const float momentum = s.momentum;
  const int32_t count = chunk.count;
  if (momentum == 0.0f) {
#pragma omp simd
    for (int32_t i = 0; i < count; ++i) {
      p[i] -= learning_rate * (clip * gradient[i] + weight_decay * p[i]);
    }
    return;
  }
  float* __restrict m = tensor.first_moment + chunk.begin;
  // g + momentum m, or m alone.
  const float gradient_part = s.nesterov ? 1.0f : 0.0f;
  const float moment_part = s.nesterov ? momentum : 1.0f;
#pragma omp simd
  for (int32_t i = 0; i < count; ++i) {
    const float g = clip * gradient[i] + weight_decay * p[i];
    m[i] = momentum * m[i] + g;
    p[i] -= learning_rate * (gradient_part * g + moment_part * m[i]);
  }
}

// body(chunk, tensor) for every chunk.
template <class Body>
void for_chunks(const OptimizerTables& tables, Body&& body) {
  parallel_for(tables.chunk_count, kGrainChunks, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      body(tables.chunks[k], tables.tensors[tables.chunks[k].tensor]);
    }
  });
}

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
  if (forbidden(norm)) {
    return;
  }
  const float clip = clip_factor(params.max_norm, norm);
  for_chunks(tables,
             [clip, s = adamw_constants(params)](const OptimizerChunk& chunk, const OptimizerTensor& tensor) {
               if (tensor.largest_second_moment != nullptr) {
                 adamw_chunk<true>(s, clip, chunk, tensor);
               } else {
                 adamw_chunk<false>(s, clip, chunk, tensor);
               }
             });
}

void sgd_step(Context&, const SgdParams& params, const OptimizerTables& tables, const float* norm) {
  if (forbidden(norm)) {
    return;
  }
  const float clip = clip_factor(params.max_norm, norm);
  for_chunks(tables, [clip, s = params](const OptimizerChunk& chunk, const OptimizerTensor& tensor) {
    sgd_chunk(s, clip, chunk, tensor);
  });
}

void ema_step(Context&, float decay, const OptimizerTables& tables, const float* norm) {
  if (forbidden(norm)) {
    return;
  }
  const auto one_minus_decay = static_cast<float>(1.0 - static_cast<double>(decay));
  for_chunks(tables, [one_minus_decay](const OptimizerChunk& chunk, const OptimizerTensor& tensor) {
    const float* __restrict p = tensor.parameter + chunk.begin;
    float* __restrict average = tensor.average + chunk.begin;
    const int32_t count = chunk.count;
#pragma omp simd
    for (int32_t i = 0; i < count; ++i) {
      average[i] += one_minus_decay * (p[i] - average[i]);
    }
  });
}

}  // namespace vesal::kernels::cpu
