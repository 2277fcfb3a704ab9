// Trilinear and nearest resizing, forward and backward.
//
// Bytes: the smaller side is read (or written) about once and the larger side once: limited by memory. One
// thread an element of the result, channels fastest: whole lines for a warp; what neighbours share comes from
// the caches. Backward is a gather over the outputs that read a voxel, up to (2 * factor)^3 of them; each dy
// is read eight times, mostly from the caches. Positions are computed in whole numbers (resize_axis.hpp); in
// the gather they advance by addition. No GPU timing exists yet (see bench/results/README.md).
#include "base/size.hpp"
#include "kernels/resize/resize.hpp"
#include "kernels/resize/resize_axis.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;

struct Axes {
  ResizeAxis d, h, w;
};

// Index is int or int64_t: the type of element numbers.
template <class Index>
VESAL_KERNEL void resize_elements(Axes axes, Index count, Index channels, const float* VESAL_RESTRICT x,
                                  float* VESAL_RESTRICT y) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= count) {
    return;
  }
  const Index voxel = static_cast<Index>(element) / channels;
  const Index c = static_cast<Index>(element) - voxel * channels;
  const Index line = voxel / axes.w.out;
  const Index plane = line / axes.h.out;
  const Index n = plane / axes.d.out;
  const ResizeAxis::Taps w = axes.w.taps(static_cast<int>(voxel - line * axes.w.out));
  const ResizeAxis::Taps h = axes.h.taps(static_cast<int>(line - plane * axes.h.out));
  const ResizeAxis::Taps d = axes.d.taps(static_cast<int>(plane - n * axes.d.out));
  const float* sample = x + n * axes.d.in * axes.h.in * axes.w.in * channels + c;
  float sum = 0.0f;
  for (int a = 0; a < (d.fraction > 0.0f ? 2 : 1); ++a) {
    const Index row_d = static_cast<Index>(a == 0 ? d.first : d.second) * axes.h.in;
    const float weight_d = a == 0 ? 1.0f - d.fraction : d.fraction;
    for (int b = 0; b < (h.fraction > 0.0f ? 2 : 1); ++b) {
      const float* row = sample + (row_d + (b == 0 ? h.first : h.second)) * axes.w.in * channels;
      const float weight = weight_d * (b == 0 ? 1.0f - h.fraction : h.fraction);
      float value = row[w.first * channels];
      if (w.fraction > 0.0f) {
        value = (1.0f - w.fraction) * value + w.fraction * row[w.second * channels];
      }
      sum += weight * value;
    }
  }
  y[element] = sum;
}

// The weights of input i in its readers, one after another, without a division of whole numbers for each.
struct Weights {
  int position;  // numerator of the source position (over 2 out), relative to input i
  int step;
  int width;  // 2 out
  int lowest, highest;

  VESAL_DEVICE Weights(const ResizeAxis& axis, int o, int i)
      : position((2 * o + 1) * axis.in - axis.out - i * 2 * axis.out),
        step(2 * axis.in),
        width(2 * axis.out),
        lowest(-i * 2 * axis.out),
        highest((axis.in - 1 - i) * 2 * axis.out) {
    if (axis.nearest) {
      position = step = lowest = highest = 0;
    }
  }

  VESAL_DEVICE float next() {
    const int clamped = position < lowest ? lowest : (position > highest ? highest : position);
    position += step;
    return clamped < 0 ? static_cast<float>(clamped + width) / static_cast<float>(width)
                       : 1.0f - static_cast<float>(clamped) / static_cast<float>(width);
  }
};

template <class Index>
VESAL_KERNEL void resize_gather(Axes axes, Index count, Index channels, const float* VESAL_RESTRICT dy,
                                float* VESAL_RESTRICT dx) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= count) {
    return;
  }
  const Index voxel = static_cast<Index>(element) / channels;
  const Index c = static_cast<Index>(element) - voxel * channels;
  const Index line = voxel / axes.w.in;
  const Index plane = line / axes.h.in;
  const Index n = plane / axes.d.in;
  const int iw = static_cast<int>(voxel - line * axes.w.in);
  const int ih = static_cast<int>(line - plane * axes.h.in);
  const int id = static_cast<int>(plane - n * axes.d.in);
  const ResizeAxis::Range over_d = axes.d.readers(id);
  const ResizeAxis::Range over_h = axes.h.readers(ih);
  const ResizeAxis::Range over_w = axes.w.readers(iw);
  const float* sample = dy + n * axes.d.out * axes.h.out * axes.w.out * channels + c;
  float sum = 0.0f;
  Weights weights_d(axes.d, over_d.begin, id);
  for (int od = over_d.begin; od < over_d.end; ++od) {
    const float weight_d = weights_d.next();
    float plane_sum = 0.0f;
    Weights weights_h(axes.h, over_h.begin, ih);
    for (int oh = over_h.begin; oh < over_h.end; ++oh) {
      const float weight_h = weights_h.next();
      const float* row = sample + (static_cast<Index>(od) * axes.h.out + oh) * axes.w.out * channels;
      float row_sum = 0.0f;
      Weights weights_w(axes.w, over_w.begin, iw);
      for (int ow = over_w.begin; ow < over_w.end; ++ow) {
        row_sum += weights_w.next() * row[ow * channels];
      }
      plane_sum += weight_h * row_sum;
    }
    sum += weight_d * plane_sum;
  }
  dx[element] = sum;
}

ResizeAxis axis_of(const ResizeParams& p, int64_t in, int64_t out) {
  return {static_cast<int>(in), static_cast<int>(out), p.interpolation == Interpolation::nearest};
}

Axes axes_of(const ResizeParams& p) {
  return {axis_of(p, p.d, p.out_d), axis_of(p, p.h, p.out_h), axis_of(p, p.w, p.out_w)};
}

int64_t input_count(const ResizeParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const ResizeParams& p) { return p.n * p.out_d * p.out_h * p.out_w * p.c; }
bool fits_int(const ResizeParams& p) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  return input_count(p) < kLimit && output_count(p) < kLimit;
}

}  // namespace

void resize_forward(Context& context, const ResizeParams& params, ConstData x_, Data y_) {
  const float* x = x_.as<float>("resize_forward: x");
  float* y = y_.as<float>("resize_forward: y");
  const int64_t count = output_count(params);
  const auto start = [&]<class Index>(Index channels) {
    launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock}, resize_elements<Index>,
           axes_of(params), static_cast<Index>(count), channels, x, y);
  };
  if (fits_int(params)) {
    start(static_cast<int>(params.c));
  } else {
    start(params.c);
  }
}

void resize_backward(Context& context, const ResizeParams& params, ConstData dy_, Data dx_) {
  const float* dy = dy_.as<float>("resize_backward: dy");
  float* dx = dx_.as<float>("resize_backward: dx");
  const int64_t count = input_count(params);
  const auto start = [&]<class Index>(Index channels) {
    launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock}, resize_gather<Index>,
           axes_of(params), static_cast<Index>(count), channels, dy, dx);
  };
  if (fits_int(params)) {
    start(static_cast<int>(params.c));
  } else {
    start(params.c);
  }
}

}  // namespace vesal::kernels::VESAL_BACKEND
