// Sums and maxima. Each input is read once (4 bytes and one or two operations an element): memory bandwidth
// limits them. A reduction over rows takes two launches: partial sums of up to 512 slabs, then the slabs'
// sums in a fixed order, so that no floating-point atomics are needed.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/reduce/reduce.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

struct Nothing {};

template <class T, bool kSquare>
struct SumTerms {
  Input<T> x;
  float* out;
  VESAL_DEVICE Nothing prepare(int64_t, int64_t) const { return {}; }
  VESAL_DEVICE void add(Nothing, int64_t, int64_t i, float (&sums)[1]) const {
    sums[0] += kSquare ? x[i] * x[i] : x[i];
  }
  VESAL_DEVICE void finish(int64_t, int64_t, const float (&sums)[1]) const { out[0] = sums[0]; }
};

template <class T, class Sum>
struct SumSpatial {
  Input<T> x;
  Output<Sum> out;
  float factor;
  bool accumulate;
  int64_t channels;
  VESAL_DEVICE Nothing prepare(int64_t, int64_t) const { return {}; }
  VESAL_DEVICE void add(Nothing, int64_t, int64_t i, float (&sums)[1]) const { sums[0] += x[i]; }
  VESAL_DEVICE void finish(int64_t sample, int64_t column, const float (&sums)[1]) const {
    const int64_t target = sample * channels + column;
    out[target] = (accumulate ? static_cast<float>(out[target]) : 0.0f) + factor * sums[0];
  }
};

template <class T>
struct ChannelSumBackward {
  Input<T> dout;
  Output<T> dx;
  VESAL_DEVICE Nothing prepare(int64_t, int64_t) const { return {}; }
  VESAL_DEVICE void apply(Nothing, int64_t row, int64_t i) const { dx[i] = dout[row]; }
};

// The bits of |x|, or what an earlier launch left of them.
template <class T>
struct Magnitudes {
  Input<T> x;
  VESAL_DEVICE uint32_t operator[](int64_t i) const { return __float_as_uint(x[i]) & 0x7fffffffu; }
};
struct KnownMagnitudes {
  const uint32_t* words;
  VESAL_DEVICE uint32_t operator[](int64_t i) const { return words[i]; }
};

// target[block] = the largest bit pattern of |x| in the block's share. Magnitudes compare like their bits,
// and a NaN's are above infinity's.
template <class Source>
VESAL_KERNEL void max_abs_kernel(int64_t count, Source source, uint32_t* VESAL_RESTRICT target) {
  VESAL_SHARED(uint32_t, scratch, [kLoopThreads]);
  const int t = static_cast<int>(threadIdx.x);
  uint32_t largest = 0;
  const int64_t end = slab_begin(count, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1);
  for (int64_t i = slab_begin(count, gridDim.x, blockIdx.x) + t; i < end; i += kLoopThreads) {
    largest = max(largest, source[i]);
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
template <class T>
VESAL_KERNEL void channel_sum_kernel(int64_t rows, int64_t channels, int lanes, Input<T> x, Output<T> out) {
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
  with_storage("sum", {x}, [&]<class T>(T) {
    launch_column_sums<1>(context.stream(), 1, count, 1, static_cast<float*>(workspace.data),
                          SumTerms<T, false>{input<T>(x, "sum: x"), out.as<float>("sum: out")});
  });
}

void sum_squares(Context& context, int64_t count, ConstData x, Data out, Workspace workspace) {
  with_storage("sum_squares", {x}, [&]<class T>(T) {
    launch_column_sums<1>(
        context.stream(), 1, count, 1, static_cast<float*>(workspace.data),
        SumTerms<T, true>{input<T>(x, "sum_squares: x"), out.as<float>("sum_squares: out")});
  });
}

void max_abs(Context& context, int64_t count, ConstData x, Data out, Workspace workspace) {
  const int64_t slabs = slab_count(count);
  auto* partials = static_cast<uint32_t*>(workspace.data);
  with_storage("max_abs", {x}, [&]<class T>(T) {
    launch(context.stream(), {.grid = {slabs, 1, 1}, .block = {kLoopThreads, 1, 1}},
           max_abs_kernel<Magnitudes<T>>, count, Magnitudes<T>{input<T>(x, "max_abs: x")}, partials);
  });
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {kLoopThreads, 1, 1}},
         max_abs_kernel<KnownMagnitudes>, slabs, KnownMagnitudes{partials},
         reinterpret_cast<uint32_t*>(out.as<float>("max_abs: out")));
}

void channel_sum_forward(Context& context, int64_t rows, int64_t channels, ConstData x, Data out) {
  const int lanes = column_width(channels);
  with_storage("channel_sum_forward", {x, out}, [&]<class T>(T) {
    launch(context.stream(),
           {.grid = {ceil_div(rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
           channel_sum_kernel<T>, rows, channels, lanes, input<T>(x, "channel_sum_forward: x"),
           output<T>(out, "channel_sum_forward: out"));
  });
}

void channel_sum_backward(Context& context, int64_t rows, int64_t channels, ConstData dout, Data dx) {
  with_storage("channel_sum_backward", {dout, dx}, [&]<class T>(T) {
    launch_column_map(context.stream(), 1, rows, channels,
                      ChannelSumBackward<T>{input<T>(dout, "channel_sum_backward: dout"),
                                            output<T>(dx, "channel_sum_backward: dx")});
  });
}

void sum_spatial(Context& context, int64_t n, int64_t spatial, int64_t channels, float factor, ConstData x,
                 Data out, GradMode mode, Workspace workspace) {
  with_storage("sum_spatial", {x}, [&]<class T>(T) {
    with_storage("sum_spatial", {out}, [&]<class Sum>(Sum) {
      launch_column_sums<1>(
          context.stream(), n, spatial, channels, static_cast<float*>(workspace.data),
          SumSpatial<T, Sum>{input<T>(x, "sum_spatial: x"), output<Sum>(out, "sum_spatial: out"), factor,
                             mode == GradMode::accumulate, channels});
    });
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
