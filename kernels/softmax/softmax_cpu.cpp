// Softmax on the CPU. Long rows are vectorised over channels; short ones are turned, 64 at a time, so that
// the vectors run over rows.
#include <algorithm>
#include <limits>
#include <vector>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/float_rows_cpu.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kNarrow = 16;  // channels below which rows are turned
constexpr int64_t kRowBlock = 64;

// Forward for `count` <= kRowBlock rows of few channels.
template <class T>
void narrow_forward(int64_t count, int64_t channels, Input<T> x, Output<T> y) {
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

void backward_row(int64_t channels, const float* y, const float* dy, float* dx) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t c = 0; c < channels; ++c) {
    total += dy[c] * y[c];
  }
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    dx[c] = y[c] * (dy[c] - total);
  }
}

}  // namespace

void softmax_forward(Context&, int64_t rows, int64_t channels, ConstData x_, Data y_) {
  with_storage("softmax_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("softmax_forward: x");
    T* y = y_.as<T>("softmax_forward: y");
    parallel_for(rows, ceil_div(4096, channels), [&](int64_t begin, int64_t end) {
      if (channels < kNarrow) {
        for (int64_t row = begin; row < end; row += kRowBlock) {
          narrow_forward<T>(std::min(kRowBlock, end - row), channels, Input<T>{x + row * channels},
                            Output<T>{y + row * channels});
        }
        return;
      }
      std::vector<float> scratch = float_scratch<T>(channels);
      for (int64_t row = begin; row < end; ++row) {
        const float* in = as_floats(x + row * channels, channels, scratch.data());
        write_floats(y + row * channels, channels, scratch.data(),
                     [&](float* out) { wide_forward(channels, in, out); });
      }
    });
  });
}

void softmax_backward(Context&, int64_t rows, int64_t channels, ConstData y_, ConstData dy_, Data dx_) {
  with_storage("softmax_backward", {y_, dy_, dx_}, [&]<class T>(T) {
    const T* y = y_.as<T>("softmax_backward: y");
    const T* dy = dy_.as<T>("softmax_backward: dy");
    T* dx = dx_.as<T>("softmax_backward: dx");
    const int64_t step = std::max<int64_t>(kRowBlock * kNarrow / channels, 1);  // rows widened at a time
    parallel_for(rows, ceil_div(8192, channels), [&](int64_t begin, int64_t end) {
      std::vector<float> p = float_scratch<T>(step * channels), d = float_scratch<T>(step * channels),
                         out = float_scratch<T>(step * channels);
      for (int64_t first = begin; first < end; first += step) {
        const int64_t count = std::min(step, end - first);
        const int64_t at = first * channels;
        const float* values = as_floats(y + at, count * channels, p.data());
        const float* gradient = as_floats(dy + at, count * channels, d.data());
        write_floats(dx + at, count * channels, out.data(), [&](float* results) {
          for (int64_t i = 0; i < count * channels; i += channels) {
            backward_row(channels, values + i, gradient + i, results + i);
          }
        });
      }
    });
  });
}

}  // namespace vesal::kernels::cpu
