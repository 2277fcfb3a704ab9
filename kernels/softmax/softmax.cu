// Softmax over rows of channels. Forward reads and writes 4 bytes an element (the row is read three times,
// from L1 after the first), backward reads 8 and writes 4; about 25 operations an element: memory bandwidth
// limits both for rows that fit in L1. A power of two of lanes, at most a warp, shares a row. No GPU timing
// exists yet: bench/results/README.md.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/softmax/softmax.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

VESAL_KERNEL void softmax_forward_kernel(int64_t rows, int64_t channels, int lanes, const float* x,
                                         float* y) {
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
    y[begin + c] = e;
    total += e;
  }
  total = group_sum(total, lanes);
  const float inverse = 1.0f / total;
  for (int64_t c = lane; c < length; c += lanes) {
    y[begin + c] *= inverse;
  }
}

VESAL_KERNEL void softmax_backward_kernel(int64_t rows, int64_t channels, int lanes,
                                          const float* VESAL_RESTRICT y, const float* VESAL_RESTRICT dy,
                                          float* VESAL_RESTRICT dx) {
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
  launch(context.stream(),
         {.grid = {ceil_div(rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
         softmax_forward_kernel, rows, channels, lanes, x.as<float>("softmax_forward: x"),
         y.as<float>("softmax_forward: y"));
}

void softmax_backward(Context& context, int64_t rows, int64_t channels, ConstData y, ConstData dy, Data dx) {
  const int lanes = column_width(channels);
  launch(context.stream(),
         {.grid = {ceil_div(rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
         softmax_backward_kernel, rows, channels, lanes, y.as<float>("softmax_backward: y"),
         dy.as<float>("softmax_backward: dy"), dx.as<float>("softmax_backward: dx"));
}

}  // namespace vesal::kernels::VESAL_BACKEND
