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
#include <memory>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "kernels/context/context.hpp"
#include "kernels/context/storage.hpp"
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

// values[rows, columns] += bias, on all threads; bias may be null.
inline void add_bias(int64_t rows, int64_t columns, const float* bias, float* values) {
  if (bias != nullptr) {
    parallel_for(rows, std::max<int64_t>(1, 16384 / columns), [&](int64_t begin, int64_t end) {
      add_bias_and_activate(end - begin, columns, bias, Activation::none, values + begin * columns, nullptr);
    });
  }
}

// dx[rows, in] = dy[rows, out] weight[out, in] + bias[in], which may be null.
inline void product_backward_data(int64_t rows, int64_t in, int64_t out, const float* dy, const float* weight,
                                  const float* bias, float* dx) {
  set_onednn_threads();
  if (rows > 0) {
    sgemm('N', 'N', rows, in, out, dy, out, weight, in, 0.0f, dx, in);
    add_bias(rows, in, bias, dx);
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

// ---- Stored operands: bf16 and f16 are widened block by block for the same sgemm ----
//
// oneDNN's bf16 matmul (2.6.3, avx512_bf16 without AMX, one thread, against widening and narrowing at the
// same shapes) was the slower way: 22.3 ms against 19.0 forward, 23.4 against 16.8 for the data gradient and
// 26.9 against 17.7 for the weight gradient of 110592 rows, 48 -> 144; 64 ms against 48, 67 against 45 and 69
// against 47 of 4096 rows, 768 -> 768. Only three outputs of 12 inputs gained, 1.6 ms against 2.1 of 262144
// rows.

template <class T>
void widen_all(const T* from, int64_t count, float* to) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    to[i] = widen(from[i]);
  }
}

template <class T>
void narrow_all(const float* from, int64_t count, T* to) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    to[i] = narrow<T>(from[i]);
  }
}

// The same on all threads.
template <class T>
void widen_tensor(const T* from, int64_t count, float* to) {
  parallel_for(count, 65536,
               [&](int64_t begin, int64_t end) { widen_all(from + begin, end - begin, to + begin); });
}
template <class T>
void narrow_tensor(const float* from, int64_t count, T* to) {
  parallel_for(count, 65536,
               [&](int64_t begin, int64_t end) { narrow_all(from + begin, end - begin, to + begin); });
}

using Floats = std::unique_ptr<float[]>;
inline Floats floats(int64_t count) {
  return std::make_unique_for_overwrite<float[]>(static_cast<size_t>(count));
}

// Rows of a stored product that are worked on together, so that a block's float32 copies stay in the
// second-level cache.
inline int64_t stored_block(int64_t in, int64_t out) {
  return std::max<int64_t>(256, 96 * 1024 / (in + out));
}

// c[rows, n] = a[rows, k] op(b), where op(b) is [k, n]; finish(first row, rows, c in float32) writes the
// result. Blocks depend on the sizes only; a few blocks are one, on all threads.
template <class T, class Finish>
void stored_product(char transpose_b, int64_t rows, int64_t n, int64_t k, const T* a, const T* b,
                    Finish&& finish) {
  set_onednn_threads();
  const Floats wide_b = floats(n * k);
  widen_tensor(b, n * k, wide_b.get());
  const int64_t ldb = transpose_b == 'T' ? k : n;
  const int64_t block = stored_block(k, n);
  if (rows <= 4 * block) {
    const Floats wide_a = floats(rows * k), c = floats(rows * n);
    widen_tensor(a, rows * k, wide_a.get());
    if (rows > 0) {
      sgemm('N', transpose_b, rows, n, k, wide_a.get(), k, wide_b.get(), ldb, 0.0f, c.get(), n);
    }
    parallel_for(rows, std::max<int64_t>(1, 16384 / n),
                 [&](int64_t begin, int64_t end) { finish(begin, end - begin, c.get() + begin * n); });
    return;
  }
  const int64_t blocks = (rows + block - 1) / block;
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    const Floats wide_a = floats(block * k), c = floats(block * n);
    for (int64_t r = first * block; r < std::min(last * block, rows); r += block) {
      const int64_t count = std::min(block, rows - r);
      widen_all(a + r * k, count * k, wide_a.get());
      sgemm('N', transpose_b, count, n, k, wide_a.get(), k, wide_b.get(), ldb, 0.0f, c.get(), n);
      finish(r, count, c.get());
    }
  });
}

template <class T>
void product_forward(int64_t rows, int64_t in, int64_t out, const T* x, const T* weight, const float* bias,
                     Activation activation, T* y, T* pre_activation) {
  stored_product('T', rows, out, in, x, weight, [&](int64_t first, int64_t count, float* values) {
    if (pre_activation != nullptr) {
      add_bias_and_activate(count, out, bias, Activation::none, values, nullptr);
      narrow_all(values, count * out, pre_activation + first * out);
      add_bias_and_activate(count, out, nullptr, activation, values, nullptr);
    } else {
      add_bias_and_activate(count, out, bias, activation, values, nullptr);
    }
    narrow_all(values, count * out, y + first * out);
  });
}

template <class T>
void product_backward_data(int64_t rows, int64_t in, int64_t out, const T* dy, const T* weight,
                           const float* bias, T* dx) {
  stored_product('N', rows, in, out, dy, weight, [&](int64_t first, int64_t count, float* values) {
    add_bias_and_activate(count, in, bias, Activation::none, values, nullptr);
    narrow_all(values, count * in, dx + first * in);
  });
}

// Rows are cut into slabs, each with its own sum; the sums are added in order.
template <class T>
void product_backward_weight(int64_t rows, int64_t in, int64_t out, const T* x, const T* dy, float* dweight,
                             GradMode mode) {
  set_onednn_threads();
  const int64_t block = stored_block(in, out);
  const int64_t slabs = std::clamp<int64_t>(std::min(rows / block, (int64_t{1} << 21) / (in * out)), 1, 32);
  const Floats partials = floats(slabs * in * out);
  parallel_for(slabs, 1, [&](int64_t first_slab, int64_t last_slab) {
    const Floats wide_x = floats(block * in), wide_dy = floats(block * out);
    for (int64_t slab = first_slab; slab < last_slab; ++slab) {
      float* partial = partials.get() + slab * in * out;
      const int64_t begin = rows * slab / slabs, end = rows * (slab + 1) / slabs;
      for (int64_t r = begin; r < end; r += block) {
        const int64_t count = std::min(block, end - r);
        widen_tensor(x + r * in, count * in, wide_x.get());
        widen_tensor(dy + r * out, count * out, wide_dy.get());
        sgemm('T', 'N', out, in, count, wide_dy.get(), out, wide_x.get(), in, r == begin ? 0.0f : 1.0f,
              partial, in);
      }
    }
  });
  const bool none = rows == 0;
  parallel_for(in * out, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float sum = none ? 0.0f : partials[static_cast<size_t>(i)];
      for (int64_t slab = 1; slab < slabs; ++slab) {
        sum += partials[static_cast<size_t>(slab * in * out + i)];
      }
      dweight[i] = mode == GradMode::accumulate ? dweight[i] + sum : sum;
    }
  });
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
template <class T>
void add_up_columns(int64_t rows, int64_t columns, const T* x, float* sums, GradMode mode, float* scratch) {
  const int64_t slabs = column_sum_slabs(rows);
  const int64_t width = column_sum_width(columns);
  parallel_for(slabs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slab = begin; slab < end; ++slab) {
      float* partial = scratch + slab * width;
      Input<T> value = Input<T>{x} + rows * slab / slabs * columns;
      int64_t left = rows * (slab + 1) / slabs * columns - rows * slab / slabs * columns;
      std::fill_n(partial, width, 0.0f);
      for (; left >= width; left -= width, value = value + width) {
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
