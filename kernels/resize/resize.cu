// Resizing, forward and backward.
//
// Bytes: the smaller side is read (or written) about once and the larger side once: limited by memory, once
// finding the voxels costs few instructions. So one thread has four channels of a voxel of the result where
// they come in fours, and what it divides by is known before the launch (divider.hpp). Channels are fastest:
// whole lines for a warp; what neighbours share comes from the caches. Backward is a gather over the outputs
// that read a voxel, up to (2 * factor)^3 of them (linear), each dy read eight times, mostly from the caches:
// up to four outputs along w at a time, whose weights are found once for all of their rows. Positions are
// computed in whole numbers (resize_axis.hpp); in the gather they advance by addition.
#include "base/size.hpp"
#include "kernels/context/packs.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/voxel_packs.hpp"
#include "kernels/resize/resize.hpp"
#include "kernels/resize/resize_axis.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;
constexpr int kReaders = 4;  // along w, at a time

// T is the storage type; Int is int or int64_t: the type of element numbers and of positions.
template <class T, int kTaps, class Int, int kWidth>
VESAL_KERNEL void resize_elements(ResizeAxes<Int> axes, VoxelPacks<Int, kWidth> outputs, Int channels,
                                  const T* VESAL_RESTRICT x, T* VESAL_RESTRICT y) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pack >= outputs.count) {
    return;
  }
  const VoxelPack<Int> p = outputs.at(static_cast<Int>(pack));
  const auto w = axes.w.template taps<kTaps>(axes.w.at(p.w));
  const auto h = axes.h.template taps<kTaps>(axes.h.at(p.h));
  const auto d = axes.d.template taps<kTaps>(axes.d.at(p.d));
  const T* sample = x + p.n * axes.d.in * axes.h.in * axes.w.in * channels + p.c;
  Floats<kWidth> sums = {};
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
      const T* row = sample + (row_d + h.index[b]) * axes.w.in * channels;
      Floats<kWidth> line = {};
      VESAL_UNROLL
      for (int e = 0; e < kTaps; ++e) {
        if (w.weight[e] != 0.0f) {
          const Floats<kWidth> values = load_floats<kWidth>(row + w.index[e] * channels);
          VESAL_UNROLL
          for (int k = 0; k < kWidth; ++k) {
            line[k] += w.weight[e] * values[k];
          }
        }
      }
      const float weight = d.weight[a] * h.weight[b];
      VESAL_UNROLL
      for (int k = 0; k < kWidth; ++k) {
        sums[k] += weight * line[k];
      }
    }
  }
  store_floats<kWidth>(y + pack * kWidth, sums);
}

template <class T, int kTaps, class Int, int kWidth>
VESAL_KERNEL void resize_gather(ResizeAxes<Int> axes, VoxelPacks<Int, kWidth> inputs, Int channels,
                                const T* VESAL_RESTRICT dy, T* VESAL_RESTRICT dx) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pack >= inputs.count) {
    return;
  }
  const VoxelPack<Int> p = inputs.at(static_cast<Int>(pack));
  const auto over_d = axes.d.template readers<kTaps>(p.d);
  const auto over_h = axes.h.template readers<kTaps>(p.h);
  const auto over_w = axes.w.template readers<kTaps>(p.w);
  const auto first_d = axes.d.at(over_d.begin);
  const auto first_h = axes.h.at(over_h.begin);
  const auto stride_d = axes.d.stride();
  const auto stride_h = axes.h.stride();
  const auto stride_w = axes.w.stride();
  const T* sample = dy + p.n * axes.d.out * axes.h.out * axes.w.out * channels + p.c;
  Floats<kWidth> sums = {};
  auto at_w = axes.w.at(over_w.begin);
  for (int ow = over_w.begin; ow < over_w.end; ow += kReaders) {
    float weights[kReaders];
    VESAL_UNROLL
    for (int e = 0; e < kReaders; ++e) {
      weights[e] = axes.w.template weight<kTaps>(at_w, p.w);
      axes.w.advance(at_w, stride_w);
    }
    auto at_d = first_d;
    for (int od = over_d.begin; od < over_d.end; ++od) {
      Floats<kWidth> plane = {};
      auto at_h = first_h;
      for (int oh = over_h.begin; oh < over_h.end; ++oh) {
        const T* row = sample + ((static_cast<Int>(od) * axes.h.out + oh) * axes.w.out + ow) * channels;
        Floats<kWidth> values[kReaders] = {};
        VESAL_UNROLL
        for (int e = 0; e < kReaders; ++e) {
          if (ow + e < over_w.end) {
            values[e] = load_floats<kWidth>(row + e * channels);
          }
        }
        const float weight = axes.h.template weight<kTaps>(at_h, p.h);
        VESAL_UNROLL
        for (int k = 0; k < kWidth; ++k) {
          float line = 0.0f;
          VESAL_UNROLL
          for (int e = 0; e < kReaders; ++e) {
            line += weights[e] * values[e][k];
          }
          plane[k] += weight * line;
        }
        axes.h.advance(at_h, stride_h);
      }
      const float weight = axes.d.template weight<kTaps>(at_d, p.d);
      VESAL_UNROLL
      for (int k = 0; k < kWidth; ++k) {
        sums[k] += weight * plane[k];
      }
      axes.d.advance(at_d, stride_d);
    }
  }
  store_floats<kWidth>(dx + pack * kWidth, sums);
}

int64_t input_count(const ResizeParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const ResizeParams& p) { return p.n * p.out_d * p.out_h * p.out_w * p.c; }

// Calls use.operator()<kTaps, Int, kWidth>(axes, channels): numbers of 32 bits where elements and positions
// fit, and then four channels a thread where `packed` says that the arrays allow it.
template <class Use>
void with_axes(const ResizeParams& p, bool packed, Use&& use) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const bool from_extents = p.align_corners || (p.scale[0] == 0 && p.scale[1] == 0 && p.scale[2] == 0);
  with_resize_taps(p.interpolation, [&]<int kTaps>() {
    if (!from_extents || input_count(p) >= kLimit || output_count(p) >= kLimit) {
      use.template operator()<kTaps, int64_t, 1>(resize_axes<int64_t>(p), p.c);
    } else if (packed && p.c % kPack == 0) {
      use.template operator()<kTaps, int, kPack>(resize_axes<int>(p), static_cast<int>(p.c));
    } else {
      use.template operator()<kTaps, int, 1>(resize_axes<int>(p), static_cast<int>(p.c));
    }
  });
}

}  // namespace

void resize_forward(Context& context, const ResizeParams& params, ConstData x_, Data y_) {
  with_storage("resize_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("resize_forward: x");
    T* y = y_.as<T>("resize_forward: y");
    with_axes(params, can_pack(x, y), [&]<int kTaps, class Int, int kWidth>(const auto& axes, Int channels) {
      const VoxelPacks<Int, kWidth> outputs(params.n, params.out_d, params.out_h, params.out_w, params.c);
      launch(context.stream(), {.grid = ceil_div(outputs.count, kBlock), .block = kBlock},
             resize_elements<T, kTaps, Int, kWidth>, axes, outputs, channels, x, y);
    });
  });
}

void resize_backward(Context& context, const ResizeParams& params, ConstData dy_, Data dx_) {
  with_storage("resize_backward", {dy_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("resize_backward: dy");
    T* dx = dx_.as<T>("resize_backward: dx");
    with_axes(params, can_pack(dy, dx),
              [&]<int kTaps, class Int, int kWidth>(const auto& axes, Int channels) {
                const VoxelPacks<Int, kWidth> inputs(params.n, params.d, params.h, params.w, params.c);
                launch(context.stream(), {.grid = ceil_div(inputs.count, kBlock), .block = kBlock},
                       resize_gather<T, kTaps, Int, kWidth>, axes, inputs, channels, dy, dx);
              });
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
