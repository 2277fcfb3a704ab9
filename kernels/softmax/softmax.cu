// Softmax over rows of channels. In float32 forward reads and writes 4 bytes an element (the row is read
// three times, from L1 after the first), backward reads 8 and writes 4; about 25 operations an element:
// memory bandwidth limits both for rows that fit in L1. A power of two of lanes, at most a warp, shares a
// row. No GPU timing exists yet: bench/results/README.md.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/softmax/softmax.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

template <class T>
VESAL_KERNEL void softmax_forward_kernel(int64_t rows, int64_t channels, int lanes, Input<T> x, Output<T> y) {
  // What is stored narrower would be rounded twice if the row were scaled where it lies.
  constexpr bool kScaledInPlace = std::is_same_v<T, float>;
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t begin = row * channels;
  const int64_t length = row < rows ? channels : 0;
  float largest = -INFINITY;
  for (int64_t c = lane; c < length; c += lanes) {
    largest = fmaxf(largest, x[begin + c]);
  }
  largest = group_max(largest, lanes);
  float total = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    const float e = expf(x[begin + c] - largest);
    if constexpr (kScaledInPlace) {
      y[begin + c] = e;
    }
    total += e;
  }
  total = group_sum(total, lanes);
  const float inverse = 1.0f / total;
  for (int64_t c = lane; c < length; c += lanes) {
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

void softmax_forward(Context& context, int64_t rows, int64_t channels, ConstData x, Data y) {
  const int lanes = column_width(channels);
  with_storage("softmax_forward", {x, y}, [&]<class T>(T) {
    launch(context.stream(),
           {.grid = {ceil_div(rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
           softmax_forward_kernel<T>, rows, channels, lanes, input<T>(x, "softmax_forward: x"),
           output<T>(y, "softmax_forward: y"));
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
