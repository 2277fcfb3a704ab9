// Softmax on the CPU. Long rows are vectorised over channels; short ones are turned, 64 at a time, so that
// the vectors run over rows.
#include <algorithm>
#include <limits>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kNarrow = 16;  // channels below which rows are turned
constexpr int64_t kRowBlock = 64;

// Forward for `count` <= kRowBlock rows of few channels.
void narrow_forward(int64_t count, int64_t channels, const float* x, float* y) {
  float turned[kNarrow][kRowBlock];
  float largest[kRowBlock];
  float total[kRowBlock];
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t r = 0; r < count; ++r) {
      turned[c][r] = x[r * channels + c];
    }
  }
  std::copy_n(turned[0], count, largest);
  std::fill_n(total, count, 0.0f);
  for (int64_t c = 1; c < channels; ++c) {
#pragma omp simd
    for (int64_t r = 0; r < count; ++r) {
      largest[r] = turned[c][r] > largest[r] ? turned[c][r] : largest[r];
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
#pragma omp simd
    for (int64_t r = 0; r < count; ++r) {
      turned[c][r] = vector_exp(turned[c][r] - largest[r]);
      total[r] += turned[c][r];
    }
  }
#pragma omp simd
  for (int64_t r = 0; r < count; ++r) {
    total[r] = 1.0f / total[r];
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t r = 0; r < count; ++r) {
      y[r * channels + c] = turned[c][r] * total[r];
    }
  }
}

void wide_forward(int64_t channels, const float* x, float* y) {
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t c = 0; c < channels; ++c) {
    largest = x[c] > largest ? x[c] : largest;
  }
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t c = 0; c < channels; ++c) {
    const float e = vector_exp(x[c] - largest);
    y[c] = e;
    total += e;
  }
  const float inverse = 1.0f / total;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    y[c] *= inverse;
  }
}

}  // namespace

void softmax_forward(Context&, int64_t rows, int64_t channels, ConstData x_, Data y_) {
  const float* x = x_.as<float>("softmax_forward: x");
  float* y = y_.as<float>("softmax_forward: y");
  parallel_for(rows, ceil_div(4096, channels), [&](int64_t begin, int64_t end) {
    if (channels < kNarrow) {
      for (int64_t row = begin; row < end; row += kRowBlock) {
        narrow_forward(std::min(kRowBlock, end - row), channels, x + row * channels, y + row * channels);
      }
    } else {
      for (int64_t row = begin; row < end; ++row) {
        wide_forward(channels, x + row * channels, y + row * channels);
      }
    }
  });
}

void softmax_backward(Context&, int64_t rows, int64_t channels, ConstData y_, ConstData dy_, Data dx_) {
  const float* y = y_.as<float>("softmax_backward: y");
  const float* dy = dy_.as<float>("softmax_backward: dy");
  float* dx = dx_.as<float>("softmax_backward: dx");
  parallel_for(rows, ceil_div(8192, channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* p = y + row * channels;
      const float* d = dy + row * channels;
      float* out = dx + row * channels;
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t c = 0; c < channels; ++c) {
        total += d[c] * p[c];
      }
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = p[c] * (d[c] - total);
      }
    }
  });
}

}  // namespace vesal::kernels::cpu
