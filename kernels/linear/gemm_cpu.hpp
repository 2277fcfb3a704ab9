// Matrix products over voxels or tokens on the CPU, for linear and for the convolutions that are nothing else
// (1x1x1, and a transposed convolution whose taps do not overlap). oneDNN's sgemm does the products:
// measured, it beats the library's matmul, inner-product and 1x1-convolution primitives on every shape of
// ours (up to 3 times in the weight gradient of narrow layers), and it needs neither packed weights nor a
// cached primitive.
#pragma once

#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "kernels/context/context.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {

// oneDNN cuts its work by the calling thread's OpenMP setting, which every host thread has for itself.
inline void set_onednn_threads() { omp_set_num_threads(thread_count()); }

// C[m, n] = alpha * op(A) op(B) + beta * C, row-major; op is the transpose where the flag is 'T'. On one
// thread when called from a parallel loop, else on all.
inline void sgemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
                  int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc,
                  float alpha = 1.0f) {
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  check<DeviceError>(status == dnnl_success, "dnnl_sgemm failed with status ", static_cast<int>(status));
}

// y = activation(y + bias), row by row; keeps y + bias in pre_activation unless that is null.
inline void add_bias_and_activate(int64_t rows, int64_t columns, const float* bias, Activation activation,
                                  float* y, float* pre_activation) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = y + r * columns;
    if (bias != nullptr) {
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) {
        row[c] += bias[c];
      }
    }
    if (pre_activation != nullptr) {
      std::memcpy(pre_activation + r * columns, row, static_cast<size_t>(columns) * sizeof(float));
    }
    if (activation == Activation::relu) {
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) {
        row[c] = row[c] < 0.0f ? 0.0f : row[c];  // NaN stays
      }
    } else if (activation == Activation::gelu) {
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) {
        row[c] = 0.5f * row[c] * (1.0f + vector_erf(row[c] * 0.707106781f));
      }
    }
  }
}

// y[rows, out] = activation(x[rows, in] weight[out, in]^T + bias).
// Many rows are cut into blocks that stay in the second-level cache, so that bias and activation cost no
// memory traffic.
inline void product_forward(int64_t rows, int64_t in, int64_t out, const float* x, const float* weight,
                            const float* bias, Activation activation, float* y, float* pre_activation) {
  set_onednn_threads();
  constexpr int64_t kBlockFloats = 96 * 1024;
  const int64_t block = std::max<int64_t>(256, kBlockFloats / (in + out));
  const bool plain = bias == nullptr && activation == Activation::none && pre_activation == nullptr;
  if (!plain && rows >= block * thread_count()) {
    parallel_for(rows, block, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r += block) {
        const int64_t count = std::min(block, end - r);
        sgemm('N', 'T', count, out, in, x + r * in, in, weight, in, 0.0f, y + r * out, out);
        add_bias_and_activate(count, out, bias, activation, y + r * out,
                              pre_activation != nullptr ? pre_activation + r * out : nullptr);
      }
    });
    return;
  }
  if (rows == 0) {
    return;
  }
  sgemm('N', 'T', rows, out, in, x, in, weight, in, 0.0f, y, out);
  if (!plain) {
    parallel_for(rows, std::max<int64_t>(1, 16384 / out), [&](int64_t begin, int64_t end) {
      add_bias_and_activate(end - begin, out, bias, activation, y + begin * out,
                            pre_activation != nullptr ? pre_activation + begin * out : nullptr);
    });
  }
}

// dx[rows, in] = dy[rows, out] weight[out, in].
inline void product_backward_data(int64_t rows, int64_t in, int64_t out, const float* dy, const float* weight,
                                  float* dx) {
  set_onednn_threads();
  if (rows > 0) {
    sgemm('N', 'N', rows, in, out, dy, out, weight, in, 0.0f, dx, in);
  }
}

// dweight[out, in] (+)= dy[rows, out]^T x[rows, in].
inline void product_backward_weight(int64_t rows, int64_t in, int64_t out, const float* x, const float* dy,
                                    float* dweight, GradMode mode) {
  set_onednn_threads();
  if (rows > 0) {
    sgemm('T', 'N', out, in, rows, dy, out, x, in, mode == GradMode::accumulate ? 1.0f : 0.0f, dweight, in);
  } else if (mode == GradMode::overwrite) {
    std::fill_n(dweight, out * in, 0.0f);
  }
}

// Sums over rows, the bias gradient. Rows are cut into a number of slabs that does not depend on threads; a
// slab adds whole groups of rows element by element, wide enough for the vector unit, and the groups and
// slabs are added in order.
inline int64_t column_sum_slabs(int64_t rows) { return std::clamp<int64_t>(rows / 2048, 1, 64); }
inline int64_t column_sum_width(int64_t columns) { return columns * std::max<int64_t>(1, 64 / columns); }
inline size_t column_sum_bytes(int64_t rows, int64_t columns) {
  return static_cast<size_t>(column_sum_slabs(rows) * column_sum_width(columns)) * sizeof(float);
}

// sums[columns] (+)= sum over rows of x[rows, columns]; scratch holds column_sum_bytes.
inline void add_up_columns(int64_t rows, int64_t columns, const float* x, float* sums, GradMode mode,
                           float* scratch) {
  const int64_t slabs = column_sum_slabs(rows);
  const int64_t width = column_sum_width(columns);
  parallel_for(slabs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slab = begin; slab < end; ++slab) {
      float* partial = scratch + slab * width;
      const float* value = x + rows * slab / slabs * columns;
      int64_t left = rows * (slab + 1) / slabs * columns - rows * slab / slabs * columns;
      std::fill_n(partial, width, 0.0f);
      for (; left >= width; left -= width, value += width) {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
          partial[c] += value[c];
        }
      }
      for (int64_t c = 0; c < left; ++c) {
        partial[c] += value[c];
      }
      for (int64_t c = columns; c < width; ++c) {
        partial[c % columns] += partial[c];
      }
    }
  });
  for (int64_t c = 0; c < columns; ++c) {
    float sum = 0.0f;
    for (int64_t slab = 0; slab < slabs; ++slab) {
      sum += scratch[slab * width + c];
    }
    sums[c] = mode == GradMode::accumulate ? sums[c] + sum : sum;
  }
}

}  // namespace vesal::kernels::cpu
