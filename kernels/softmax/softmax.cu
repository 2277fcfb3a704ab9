// Softmax over rows of channels. In float32 forward reads and writes 4 bytes an element, backward reads 8 and
// writes 4; about 25 operations an element: memory bandwidth limits both. A power of two of lanes, at most a
// warp, shares a row. In forward a lane holds four values of a row of up to 128 channels and sixteen of up to
// 512, so that a row is read once and its exponentials are taken once: one thread has a row of four classes,
// in one access. Beyond, forward reads the row three times, from L1 after the first, as backward does twice.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/row_share.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/softmax/softmax.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kMostValues = 16;  // of a row, in a thread

// Rows of up to lanes * kValues channels.
template <int kValues, class T>
VESAL_KERNEL void softmax_forward_kernel(int64_t rows, int channels, int lanes, bool aligned, Input<T> x,
                                         Output<T> y) {
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const RowShare share(channels, static_cast<int>(threadIdx.x) & (lanes - 1), lanes);
  const int length = row < rows ? channels : 0;
  const int64_t begin = row * channels;
  float values[kValues];
  const float largest = load_row(x + begin, share, length, aligned, values);
  float total = 0.0f;
  VESAL_UNROLL
  for (int j = 0; j < kValues; ++j) {
    if (share.of(j) < length) {
      values[j] = expf(values[j] - largest);
      total += values[j];
    }
  }
  const float inverse = 1.0f / group_sum(total, lanes);
  VESAL_UNROLL
  for (int q = 0; q < kValues; q += 4) {
    const float four[4] = {values[q] * inverse, values[q + 1] * inverse, values[q + 2] * inverse,
                           values[q + 3] * inverse};
    store_four(y + begin, share, q, length, aligned, four);
  }
}

template <class T>
VESAL_KERNEL void softmax_long_forward_kernel(int64_t rows, int64_t channels, Input<T> x, Output<T> y) {
  // What is stored narrower would be rounded twice if the row were scaled where it lies.
  constexpr bool kScaledInPlace = std::is_same_v<T, float>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kLoopThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t begin = row * channels;
  const int64_t length = row < rows ? channels : 0;
  float largest = -INFINITY;
  for (int64_t c = lane; c < length; c += 32) {
    largest = fmaxf(largest, x[begin + c]);
  }
  largest = group_max(largest, 32);
  float total = 0.0f;
  for (int64_t c = lane; c < length; c += 32) {
    const float e = expf(x[begin + c] - largest);
    if constexpr (kScaledInPlace) {
      y[begin + c] = e;
    }
    total += e;
  }
  total = group_sum(total, 32);
  const float inverse = 1.0f / total;
  for (int64_t c = lane; c < length; c += 32) {
    if constexpr (kScaledInPlace) {
      y[begin + c] *= inverse;
    } else {
      y[begin + c] = expf(x[begin + c] - largest) * inverse;
    }
  }
}

template <class T>
VESAL_KERNEL void softmax_backward_kernel(int64_t rows, int64_t channels, int lanes,
                                          const T* VESAL_RESTRICT y_, const T* VESAL_RESTRICT dy_,
                                          T* VESAL_RESTRICT dx_) {
  const Input<T> y{y_};
  const Input<T> dy{dy_};
  const Output<T> dx{dx_};
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t begin = row * channels;
  const int64_t length = row < rows ? channels : 0;
  float total = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    total += dy[begin + c] * y[begin + c];
  }
  total = group_sum(total, lanes);
  for (int64_t c = lane; c < length; c += lanes) {
    dx[begin + c] = y[begin + c] * (dy[begin + c] - total);
  }
}

}  // namespace

void softmax_forward(Context& context, int64_t rows, int64_t channels, ConstData x_, Data y_) {
  with_storage("softmax_forward", {x_, y_}, [&]<class T>(T) {
    const auto* x = x_.as<T>("softmax_forward: x");
    auto* y = y_.as<T>("softmax_forward: y");
    const int lanes = column_width(ceil_div(channels, 4));
    const Dim3 grid{ceil_div(rows, kLoopThreads / lanes), 1, 1};
    if (channels > kMostValues * lanes) {
      launch(context.stream(), {.grid = grid, .block = {kLoopThreads, 1, 1}}, softmax_long_forward_kernel<T>,
             rows, channels, Input<T>{x}, Output<T>{y});
    } else {
      launch(context.stream(), {.grid = grid, .block = {kLoopThreads, 1, 1}},
             channels > 4 * lanes ? softmax_forward_kernel<kMostValues, T> : softmax_forward_kernel<4, T>,
             rows, static_cast<int>(channels), lanes,
             aligned_quads(x, channels) && aligned_quads(y, channels), Input<T>{x}, Output<T>{y});
    }
  });
}

void softmax_backward(Context& context, int64_t rows, int64_t channels, ConstData y, ConstData dy, Data dx) {
  const int lanes = column_width(channels);
  with_storage("softmax_backward", {y, dy, dx}, [&]<class T>(T) {
    launch(context.stream(),
           {.grid = {ceil_div(rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
           softmax_backward_kernel<T>, rows, channels, lanes, y.as<T>("softmax_backward: y"),
           dy.as<T>("softmax_backward: dy"), dx.as<T>("softmax_backward: dx"));
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
