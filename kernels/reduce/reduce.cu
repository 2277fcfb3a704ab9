// Sums and maxima. Each input is read once (4 bytes and one or two operations an element): memory bandwidth
// limits them. A reduction over rows takes two launches: partial sums of up to 512 slabs, then the slabs'
// sums in a fixed order, so that no floating-point atomics are needed. No GPU timing exists yet:
// bench/results/README.md.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/reduce/reduce.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

struct Nothing {};

template <bool kSquare>
struct SumTerms {
  const float* x;
  float* out;
  VESAL_DEVICE Nothing prepare(int64_t, int64_t) const { return {}; }
  VESAL_DEVICE void add(Nothing, int64_t, int64_t i, float (&sums)[1]) const {
    sums[0] += kSquare ? x[i] * x[i] : x[i];
  }
  VESAL_DEVICE void finish(int64_t, int64_t, const float (&sums)[1]) const { out[0] = sums[0]; }
};

struct SumSpatial {
  const float* x;
  float* out;
  float factor;
  bool accumulate;
  int64_t channels;
  VESAL_DEVICE Nothing prepare(int64_t, int64_t) const { return {}; }
  VESAL_DEVICE void add(Nothing, int64_t, int64_t i, float (&sums)[1]) const { sums[0] += x[i]; }
  VESAL_DEVICE void finish(int64_t sample, int64_t column, const float (&sums)[1]) const {
    float& target = out[sample * channels + column];
    target = (accumulate ? target : 0.0f) + factor * sums[0];
  }
};

struct ChannelSumBackward {
  const float* dout;
  float* dx;
  VESAL_DEVICE Nothing prepare(int64_t, int64_t) const { return {}; }
  VESAL_DEVICE void apply(Nothing, int64_t row, int64_t i) const { dx[i] = dout[row]; }
};

// target[block] = the largest bit pattern of |x| in the block's share. Magnitudes compare like their bits,
// and a NaN's are above infinity's. `words` may be what an earlier launch left: magnitudes again.
VESAL_KERNEL void max_abs_kernel(int64_t count, const uint32_t* VESAL_RESTRICT words,
                                 uint32_t* VESAL_RESTRICT target) {
  VESAL_SHARED(uint32_t, scratch, [kLoopThreads]);
  const int t = static_cast<int>(threadIdx.x);
  uint32_t largest = 0;
  const int64_t end = slab_begin(count, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1);
  for (int64_t i = slab_begin(count, gridDim.x, blockIdx.x) + t; i < end; i += kLoopThreads) {
    largest = max(largest, words[i] & 0x7fffffffu);
  }
  scratch[t] = largest;
  __syncthreads();
  for (int half = kLoopThreads / 2; half > 0; half /= 2) {
    if (t < half) {
      scratch[t] = max(scratch[t], scratch[t + half]);
    }
    __syncthreads();
  }
  if (t == 0) {
    target[blockIdx.x] = scratch[0];
  }
}

// `lanes` neighbouring lanes sum one row.
VESAL_KERNEL void channel_sum_kernel(int64_t rows, int64_t channels, int lanes, const float* VESAL_RESTRICT x,
                                     float* VESAL_RESTRICT out) {
  const int rows_per_block = kLoopThreads / lanes;
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * rows_per_block + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  float total = 0.0f;
  if (row < rows) {
    for (int64_t c = lane; c < channels; c += lanes) {
      total += x[row * channels + c];
    }
  }
  total = group_sum(total, lanes);
  if (row < rows && lane == 0) {
    out[row] = total;
  }
}

}  // namespace

void sum(Context& context, int64_t count, ConstData x, Data out, Workspace workspace) {
  launch_column_sums<1>(context.stream(), 1, count, 1, static_cast<float*>(workspace.data),
                        SumTerms<false>{x.as<float>("sum: x"), out.as<float>("sum: out")});
}

void sum_squares(Context& context, int64_t count, ConstData x, Data out, Workspace workspace) {
  launch_column_sums<1>(context.stream(), 1, count, 1, static_cast<float*>(workspace.data),
                        SumTerms<true>{x.as<float>("sum_squares: x"), out.as<float>("sum_squares: out")});
}

void max_abs(Context& context, int64_t count, ConstData x, Data out, Workspace workspace) {
  const int64_t slabs = slab_count(count);
  auto* partials = static_cast<uint32_t*>(workspace.data);
  launch(context.stream(), {.grid = {slabs, 1, 1}, .block = {kLoopThreads, 1, 1}}, max_abs_kernel, count,
         reinterpret_cast<const uint32_t*>(x.as<float>("max_abs: x")), partials);
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {kLoopThreads, 1, 1}}, max_abs_kernel, slabs,
         static_cast<const uint32_t*>(partials), reinterpret_cast<uint32_t*>(out.as<float>("max_abs: out")));
}

void channel_sum_forward(Context& context, int64_t rows, int64_t channels, ConstData x, Data out) {
  const int lanes = column_width(channels);
  launch(context.stream(),
         {.grid = {ceil_div(rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
         channel_sum_kernel, rows, channels, lanes, x.as<float>("channel_sum_forward: x"),
         out.as<float>("channel_sum_forward: out"));
}

void channel_sum_backward(Context& context, int64_t rows, int64_t channels, ConstData dout, Data dx) {
  launch_column_map(context.stream(), 1, rows, channels,
                    ChannelSumBackward{dout.as<float>("channel_sum_backward: dout"),
                                       dx.as<float>("channel_sum_backward: dx")});
}

void sum_spatial(Context& context, int64_t n, int64_t spatial, int64_t channels, float factor, ConstData x,
                 Data out, GradMode mode, Workspace workspace) {
  launch_column_sums<1>(context.stream(), n, spatial, channels, static_cast<float*>(workspace.data),
                        SumSpatial{x.as<float>("sum_spatial: x"), out.as<float>("sum_spatial: out"), factor,
                                   mode == GradMode::accumulate, channels});
}

}  // namespace vesal::kernels::VESAL_BACKEND
