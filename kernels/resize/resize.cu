// Resizing, forward and backward.
//
// Bytes: the smaller side is read (or written) about once and the larger side once: limited by memory. One
// thread an element of the result, channels fastest: whole lines for a warp; what neighbours share comes from
// the caches. Backward is a gather over the outputs that read a voxel, up to (2 * factor)^3 of them (linear);
// each dy is read eight times, mostly from the caches. Positions are computed in whole numbers
// (resize_axis.hpp); in the gather they advance by addition. No GPU timing exists yet (see
// bench/results/README.md).
#include "base/size.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/resize/resize.hpp"
#include "kernels/resize/resize_axis.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;

// T is the storage type; Int is int or int64_t: the type of element numbers and of positions.
template <class T, int kTaps, class Int>
VESAL_KERNEL void resize_elements(ResizeAxes<Int> axes, Int count, Int channels, const T* VESAL_RESTRICT x_,
                                  T* VESAL_RESTRICT y_) {
  const Input<T> x{x_};
  const Output<T> y{y_};
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= count) {
    return;
  }
  const Int voxel = static_cast<Int>(element) / channels;
  const Int c = static_cast<Int>(element) - voxel * channels;
  const Int line = voxel / axes.w.out;
  const Int plane = line / axes.h.out;
  const Int n = plane / axes.d.out;
  const auto w = axes.w.template taps<kTaps>(axes.w.at(static_cast<int>(voxel - line * axes.w.out)));
  const auto h = axes.h.template taps<kTaps>(axes.h.at(static_cast<int>(line - plane * axes.h.out)));
  const auto d = axes.d.template taps<kTaps>(axes.d.at(static_cast<int>(plane - n * axes.d.out)));
  const auto sample = x + n * axes.d.in * axes.h.in * axes.w.in * channels + c;
  float sum = 0.0f;
  VESAL_UNROLL
  for (int a = 0; a < kTaps; ++a) {
    if (d.weight[a] == 0.0f) {
      continue;
    }
    const Int row_d = static_cast<Int>(d.index[a]) * axes.h.in;
    VESAL_UNROLL
    for (int b = 0; b < kTaps; ++b) {
      if (h.weight[b] == 0.0f) {
        continue;
      }
      const auto row = sample + (row_d + h.index[b]) * axes.w.in * channels;
      float value = 0.0f;
      VESAL_UNROLL
      for (int e = 0; e < kTaps; ++e) {
        value += w.weight[e] != 0.0f ? w.weight[e] * row[w.index[e] * channels] : 0.0f;
      }
      sum += d.weight[a] * h.weight[b] * value;
    }
  }
  y[element] = sum;
}

template <class T, int kTaps, class Int>
VESAL_KERNEL void resize_gather(ResizeAxes<Int> axes, Int count, Int channels, const T* VESAL_RESTRICT dy_,
                                T* VESAL_RESTRICT dx_) {
  const Input<T> dy{dy_};
  const Output<T> dx{dx_};
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= count) {
    return;
  }
  const Int voxel = static_cast<Int>(element) / channels;
  const Int c = static_cast<Int>(element) - voxel * channels;
  const Int line = voxel / axes.w.in;
  const Int plane = line / axes.h.in;
  const Int n = plane / axes.d.in;
  const int iw = static_cast<int>(voxel - line * axes.w.in);
  const int ih = static_cast<int>(line - plane * axes.h.in);
  const int id = static_cast<int>(plane - n * axes.d.in);
  const auto over_d = axes.d.template readers<kTaps>(id);
  const auto over_h = axes.h.template readers<kTaps>(ih);
  const auto over_w = axes.w.template readers<kTaps>(iw);
  const auto first_d = axes.d.at(over_d.begin);
  const auto first_h = axes.h.at(over_h.begin);
  const auto first_w = axes.w.at(over_w.begin);
  const auto stride_d = axes.d.stride();
  const auto stride_h = axes.h.stride();
  const auto stride_w = axes.w.stride();
  const auto sample = dy + n * axes.d.out * axes.h.out * axes.w.out * channels + c;
  float sum = 0.0f;
  auto at_d = first_d;
  for (int od = over_d.begin; od < over_d.end; ++od) {
    float plane_sum = 0.0f;
    auto at_h = first_h;
    for (int oh = over_h.begin; oh < over_h.end; ++oh) {
      const auto row = sample + (static_cast<Int>(od) * axes.h.out + oh) * axes.w.out * channels;
      float row_sum = 0.0f;
      auto at_w = first_w;
      for (int ow = over_w.begin; ow < over_w.end; ++ow) {
        row_sum += axes.w.template weight<kTaps>(at_w, iw) * row[ow * channels];
        axes.w.advance(at_w, stride_w);
      }
      plane_sum += axes.h.template weight<kTaps>(at_h, ih) * row_sum;
      axes.h.advance(at_h, stride_h);
    }
    sum += axes.d.template weight<kTaps>(at_d, id) * plane_sum;
    axes.d.advance(at_d, stride_d);
  }
  dx[element] = sum;
}

int64_t input_count(const ResizeParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const ResizeParams& p) { return p.n * p.out_d * p.out_h * p.out_w * p.c; }

// Calls use.operator()<kTaps>(axes) with numbers of 32 bits where elements and positions fit.
template <class Use>
void with_axes(const ResizeParams& p, Use&& use) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const bool from_extents = p.align_corners || (p.scale[0] == 0 && p.scale[1] == 0 && p.scale[2] == 0);
  with_resize_taps(p.interpolation, [&]<int kTaps>() {
    if (from_extents && input_count(p) < kLimit && output_count(p) < kLimit) {
      use.template operator()<kTaps>(resize_axes<int>(p));
    } else {
      use.template operator()<kTaps>(resize_axes<int64_t>(p));
    }
  });
}

}  // namespace

void resize_forward(Context& context, const ResizeParams& params, ConstData x_, Data y_) {
  const int64_t count = output_count(params);
  with_storage("resize_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("resize_forward: x");
    T* y = y_.as<T>("resize_forward: y");
    with_axes(params, [&]<int kTaps, class Int>(const ResizeAxes<Int>& axes) {
      launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock},
             resize_elements<T, kTaps, Int>, axes, static_cast<Int>(count), static_cast<Int>(params.c), x, y);
    });
  });
}

void resize_backward(Context& context, const ResizeParams& params, ConstData dy_, Data dx_) {
  const int64_t count = input_count(params);
  with_storage("resize_backward", {dy_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("resize_backward: dy");
    T* dx = dx_.as<T>("resize_backward: dx");
    with_axes(params, [&]<int kTaps, class Int>(const ResizeAxes<Int>& axes) {
      launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock},
             resize_gather<T, kTaps, Int>, axes, static_cast<Int>(count), static_cast<Int>(params.c), dy, dx);
    });
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
