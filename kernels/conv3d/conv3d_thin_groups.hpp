// Grouped convolution with few channels in a group, depthwise above all, for conv3d.cu: a matrix product of a
// group would leave most of its tile empty, so a thread computes an element by itself. Neighbouring threads
// take neighbouring channels, which keeps the volumes' accesses coalesced (with a multiplier, neighbours
// share what they read); the weights are few and stay in the first-level cache.
//
// Least work: 4 (voxels_in c_in + voxels_out c_out) bytes, half of them in bf16 and f16; a 3x3x3 depthwise
// convolution does 54 operations on 8 bytes and is limited by the taps' reads from the caches. The weight
// gradient reads dy once a tap.
#pragma once

#include "kernels/context/device_loops.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/conv3d/conv3d_geometry.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

struct Voxel {
  int n, d, h, w;
};

VESAL_DEVICE inline Voxel voxel_of(int64_t number, const Triple& extent) {
  int q = static_cast<int>(number);
  const int w = q % extent.w;
  q /= extent.w;
  const int h = q % extent.h;
  q /= extent.h;
  return {q / extent.d, q % extent.d, h, w};
}

VESAL_DEVICE inline bool inside(int at, int extent) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(extent);
}

// Rows: output voxels; columns: output channels. g is the geometry of the forward pass.
template <class T>
struct ThinForward {
  Input<T> x;
  Input<T> weight;
  const float* bias;  // or null
  Output<T> y;
  Geometry g;
  int group_out;

  struct State {
    Input<T> x;
    Input<T> weight;
    float bias;
  };
  VESAL_DEVICE State prepare(int64_t, int64_t column) const {
    return {x + column / group_out * g.channels, weight + column * g.kernel.product() * g.channels,
            bias != nullptr ? bias[column] : 0.0f};
  }
  VESAL_DEVICE void apply(const State& state, int64_t row, int64_t at) const {
    const Voxel v = voxel_of(row, g.target);
    const int64_t volume = int64_t{v.n} * g.source.d;
    float sum = 0.0f;
    for (int a = 0; a < g.kernel.d; ++a) {
      const int d = v.d * g.stride.d - g.padding.d + a * g.dilation.d;
      if (!inside(d, g.source.d)) {
        continue;
      }
      for (int b = 0; b < g.kernel.h; ++b) {
        const int h = v.h * g.stride.h - g.padding.h + b * g.dilation.h;
        if (!inside(h, g.source.h)) {
          continue;
        }
        const int64_t line = ((volume + d) * g.source.h + h) * g.source.w;
        const Input<T> weights = state.weight + (a * g.kernel.h + b) * g.kernel.w * g.channels;
        for (int c = 0; c < g.kernel.w; ++c) {
          const int w = v.w * g.stride.w - g.padding.w + c * g.dilation.w;
          if (!inside(w, g.source.w)) {
            continue;
          }
          const Input<T> values = state.x + (line + w) * g.pitch;
          for (int i = 0; i < g.channels; ++i) {
            sum = fmaf(values[i], weights[c * g.channels + i], sum);
          }
        }
      }
    }
    y[at] = sum + state.bias;
  }
};

// Source position that tap `tap` of target voxel `at` meets in the data gradient, or -1.
VESAL_DEVICE inline int met_by(int at, int tap, int extent, int stride, int padding, int dilation) {
  const int reached = at + padding - tap * dilation;
  const int position = reached / stride;
  return reached >= 0 && position * stride == reached && position < extent ? position : -1;
}

// Rows: input voxels; columns: input channels. g is the geometry of the backward pass (source dy, target dx).
template <class T>
struct ThinBackwardData {
  Input<T> dy;
  Input<T> weight;
  const float* bias;  // or null
  Output<T> dx;
  Geometry g;
  int group_in;

  struct State {
    Input<T> dy;
    Input<T> weight;
    float bias;
  };
  VESAL_DEVICE State prepare(int64_t, int64_t column) const {
    const int64_t group = column / group_in;
    return {dy + group * g.channels,
            weight + (group * g.channels * g.kernel.product() * group_in + (column - group * group_in)),
            bias != nullptr ? bias[column] : 0.0f};
  }
  VESAL_DEVICE void apply(const State& state, int64_t row, int64_t at) const {
    const Voxel v = voxel_of(row, g.target);
    const int64_t volume = int64_t{v.n} * g.source.d;
    const int64_t step = int64_t{g.kernel.product()} * group_in;  // of the weights, from output to output
    float sum = 0.0f;
    for (int a = 0; a < g.kernel.d; ++a) {
      const int d = met_by(v.d, a, g.source.d, g.stride.d, g.padding.d, g.dilation.d);
      if (d < 0) {
        continue;
      }
      for (int b = 0; b < g.kernel.h; ++b) {
        const int h = met_by(v.h, b, g.source.h, g.stride.h, g.padding.h, g.dilation.h);
        if (h < 0) {
          continue;
        }
        const int64_t line = ((volume + d) * g.source.h + h) * g.source.w;
        for (int c = 0; c < g.kernel.w; ++c) {
          const int w = met_by(v.w, c, g.source.w, g.stride.w, g.padding.w, g.dilation.w);
          if (w < 0) {
            continue;
          }
          const Input<T> values = state.dy + (line + w) * g.pitch;
          const Input<T> weights = state.weight + ((a * g.kernel.h + b) * g.kernel.w + c) * group_in;
          for (int k = 0; k < g.channels; ++k) {
            sum = fmaf(values[k], weights[k * step], sum);
          }
        }
      }
    }
    dx[at] = sum + state.bias;
  }
};

// Sums over output voxels; "samples": taps; columns: (output channel, input channel of its group). g is the
// geometry of the forward pass.
template <class T>
struct ThinBackwardWeight {
  Input<T> x;
  Input<T> dy;
  float* dweight;
  Geometry g;
  int c_out;
  int group_out;
  int64_t voxels;  // of the output
  GradMode mode;

  struct State {
    Input<T> x;
    Input<T> dy;
    int64_t first_row;
    int d, h, w;  // what the tap adds to the coordinates
  };
  VESAL_DEVICE State prepare(int64_t tap, int64_t column) const {
    const int64_t k = column / g.channels;
    const int t = static_cast<int>(tap);
    return {x + (k / group_out * g.channels + (column - k * g.channels)),
            dy + k,
            tap * voxels,
            t / (g.kernel.h * g.kernel.w) * g.dilation.d - g.padding.d,
            t / g.kernel.w % g.kernel.h * g.dilation.h - g.padding.h,
            t % g.kernel.w * g.dilation.w - g.padding.w};
  }
  VESAL_DEVICE void add(const State& state, int64_t row, int64_t, float* sums) const {
    const int64_t target = row - state.first_row;
    const Voxel v = voxel_of(target, g.target);
    const int d = v.d * g.stride.d + state.d;
    const int h = v.h * g.stride.h + state.h;
    const int w = v.w * g.stride.w + state.w;
    if (inside(d, g.source.d) && inside(h, g.source.h) && inside(w, g.source.w)) {
      const int64_t source = ((int64_t{v.n} * g.source.d + d) * g.source.h + h) * g.source.w + w;
      sums[0] = fmaf(state.dy[target * c_out], state.x[source * g.pitch], sums[0]);
    }
  }
  VESAL_DEVICE void finish(int64_t tap, int64_t column, const float* sums) const {
    const int64_t k = column / g.channels;
    float* target = dweight + (k * g.kernel.product() + tap) * g.channels + (column - k * g.channels);
    *target = mode == GradMode::accumulate ? *target + sums[0] : sums[0];
  }
};

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
