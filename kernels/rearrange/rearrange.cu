// Pad and crop, copies of channel ranges, routing of channels: 4 bytes read and 4 written an element, no
// arithmetic, so memory bandwidth limits them. Threads of a warp take neighbouring output elements. No GPU
// timing exists yet: bench/results/README.md.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/rearrange/rearrange.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// to [n, to_d, to_h, to_w, c] = from shifted by low, `value` outside.
template <class T>
struct Placement {
  int64_t from_d, from_h, from_w;
  int64_t to_d, to_h, to_w;
  int64_t c;
  int64_t low_d, low_h, low_w;
  T value;
  const T* from;
  T* to;
};

// A block takes one row along W, which is contiguous on both sides.
template <class T>
VESAL_KERNEL void place_kernel(Placement<T> p) {
  const int64_t item = blockIdx.x;
  const int64_t y = item % p.to_h - p.low_h;
  const int64_t z = item / p.to_h % p.to_d - p.low_d;
  const int64_t sample = item / (p.to_h * p.to_d);
  const bool inside = z >= 0 && z < p.from_d && y >= 0 && y < p.from_h;
  const int64_t source_row = ((sample * p.from_d + z) * p.from_h + y) * p.from_w * p.c;
  const int64_t length = p.to_w * p.c;
  for (int64_t i = threadIdx.x; i < length; i += kLoopThreads) {
    const int64_t j = i - p.low_w * p.c;
    p.to[item * length + i] = inside && j >= 0 && j < p.from_w * p.c ? p.from[source_row + j] : p.value;
  }
}

template <class T>
void launch_place(StreamHandle stream, int64_t n, const Placement<T>& p) {
  const int64_t rows = p.to_w * p.c == 0 ? 0 : n * p.to_d * p.to_h;
  launch(stream, {.grid = {rows, 1, 1}, .block = {kLoopThreads, 1, 1}}, place_kernel<T>, p);
}

template <class T>
struct CopyChannels {
  Input<T> source;
  Output<T> target;
  int64_t source_channels, target_channels;
  bool accumulate;
  VESAL_DEVICE int64_t prepare(int64_t, int64_t column) const { return column; }
  VESAL_DEVICE void apply(int64_t column, int64_t row, int64_t) const {
    const int64_t to = row * target_channels + column;
    const float from = source[row * source_channels + column];
    target[to] = accumulate ? target[to] + from : from;
  }
};

template <class T>
struct RouteChannels {
  Input<T> x;
  const int32_t* source;
  Output<T> y;
  int64_t channels, out;
  VESAL_DEVICE int32_t prepare(int64_t sample, int64_t column) const { return source[sample * out + column]; }
  VESAL_DEVICE void apply(int32_t from, int64_t row, int64_t i) const {
    y[i] = from < 0 ? 0.0f : static_cast<float>(x[row * channels + from]);
  }
};

}  // namespace

void pad_crop_forward(Context& context, const PadCropParams& p, ConstData x, Data y) {
  with_storage("pad_crop_forward", {x, y}, [&]<class T>(T) {
    launch_place<T>(context.stream(), p.n,
                    {p.d, p.h, p.w, p.out_d, p.out_h, p.out_w, p.c, p.low[0], p.low[1], p.low[2],
                     narrow<T>(p.value), x.as<T>("pad_crop_forward: x"), y.as<T>("pad_crop_forward: y")});
  });
}

void pad_crop_backward(Context& context, const PadCropParams& p, ConstData dy, Data dx) {
  with_storage("pad_crop_backward", {dy, dx}, [&]<class T>(T) {
    launch_place<T>(context.stream(), p.n,
                    {p.out_d, p.out_h, p.out_w, p.d, p.h, p.w, p.c, -p.low[0], -p.low[1], -p.low[2],
                     narrow<T>(0.0f), dy.as<T>("pad_crop_backward: dy"), dx.as<T>("pad_crop_backward: dx")});
  });
}

void copy_channels(Context& context, const CopyChannelsParams& p, ConstData source, Data target,
                   GradMode mode) {
  if (p.count == 0) {
    return;
  }
  with_storage("copy_channels", {source, target}, [&]<class T>(T) {
    launch_column_map(context.stream(), 1, p.rows, p.count,
                      CopyChannels<T>{input<T>(source, "copy_channels: source") + p.source_offset,
                                      output<T>(target, "copy_channels: target") + p.target_offset,
                                      p.source_channels, p.target_channels, mode == GradMode::accumulate});
  });
}

void route_channels(Context& context, int64_t n, int64_t voxels, int64_t channels, int64_t out, ConstData x,
                    const int32_t* source, Data y) {
  with_storage("route_channels", {x, y}, [&]<class T>(T) {
    launch_column_map(context.stream(), n, voxels, out,
                      RouteChannels<T>{input<T>(x, "route_channels: x"), source,
                                       output<T>(y, "route_channels: y"), channels, out});
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
