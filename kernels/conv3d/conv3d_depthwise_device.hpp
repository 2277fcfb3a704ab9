// Depthwise convolution without a multiplier, for conv3d.cu: a thread takes four channels and a run of four
// to eight voxels along w, and goes through the taps line by line. In forward (and the data gradient of
// stride 1, which is the same with the taps mirrored) it holds the run's sums and the line's taps in
// registers and reads a voxel of the source once for all taps that meet it; in the weight gradient it holds
// the sums of the line's taps and the run of dy. 3, 5 or 7 taps along w of stride and dilation 1 are
// constants, others a loop that reads a voxel for every tap.
//
// Least work: 4 (voxels_in + voxels_out) c bytes, half of them in bf16 and f16, for 54 operations on 8 bytes
// at 3x3x3, which memory limits, and 686 at 7x7x7. The first-level cache comes before both: a line of k taps
// and a run of r ask it for r + 2k - 1 vectors (2r + k - 1 in the weight gradient) for r k products of
// vectors.
#pragma once

#include "kernels/conv3d/conv3d_lines_device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kMostWidth = 7;

// Voxels of a run for so many taps along w: as many as 128 registers hold beside the taps.
VESAL_HOST_DEVICE constexpr int depthwise_run(int width) { return width == 7 ? 4 : width == 5 ? 6 : 8; }

// How a run meets the lines that it reads: all voxels inside, or not; channels in aligned fours, or not.
enum class Reach { inside, edge, unaligned };

template <Reach kReach, class P>
VESAL_DEVICE float4 load_four(const P& p, bool is_inside, int count) {
  if constexpr (kReach == Reach::inside) {
    return load4(p);
  } else if constexpr (kReach == Reach::edge) {
    return is_inside ? load4(p) : zero4();
  } else {
    return load_up_to_4(p, is_inside ? count : 0, false);
  }
}

// packed[tap][channel], channels filled up to `pitch` with zeros: fours of channels can be read at once.
template <class T>
struct PackDepthwise {
  Input<T> weight;
  float* packed;
  int taps, channels, pitch;
  bool mirrored;

  VESAL_DEVICE void operator()(int64_t i) const {
    const int tap = static_cast<int>(i / pitch);
    const int channel = static_cast<int>(i - int64_t{tap} * pitch);
    packed[i] =
        channel < channels ? weight[int64_t{channel} * taps + (mirrored ? taps - 1 - tap : tap)] : 0.0f;
  }
};

// sums += a line of the source times a line of taps. `line` is voxel 0 of the source line, tap 0 of the first
// target voxel reads voxel `first`.
template <int kWidth, Reach kReach, int kRun, class P>
VESAL_DEVICE void add_line(const P& line, const float* weights, int pitch, const Geometry& g, int first,
                           int count, float4 (&sums)[kRun]) {
  if constexpr (kWidth > 0) {
    float4 taps[kWidth];
    VESAL_UNROLL
    for (int c = 0; c < kWidth; ++c) {
      taps[c] = load4(weights + c * pitch);
    }
    const P start = line + int64_t{first} * g.pitch;
    VESAL_UNROLL
    for (int j = 0; j < kRun + kWidth - 1; ++j) {
      const float4 value = load_four<kReach>(start + j * g.pitch, inside(first + j, g.source.w), count);
      VESAL_UNROLL
      for (int c = 0; c < kWidth; ++c) {
        if (j - c >= 0 && j - c < kRun) {
          add_product(sums[j - c], value, taps[c]);
        }
      }
    }
  } else {
    for (int c = 0; c < g.kernel.w; ++c) {
      const float4 tap = load4(weights + c * pitch);
      VESAL_UNROLL
      for (int r = 0; r < kRun; ++r) {
        const int at = first + r * g.stride.w + c * g.dilation.w;
        add_product(sums[r], load_four<kReach>(line + int64_t{at} * g.pitch, inside(at, g.source.w), count),
                    tap);
      }
    }
  }
}

// grid (tiles of the target, tiles of fours of channels).
template <class T, int kWidth>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kLineThreads, 2)
    depthwise_kernel(Input<T> source, const float* VESAL_RESTRICT weights, int pitch,
                     const float* VESAL_RESTRICT bias, Output<T> target, Geometry g, BlockTile tile,
                     bool aligned) {
  constexpr int kRun = depthwise_run(kWidth);
  const RunPlace at = place_in_tile<false>(tile);
  const int channel = at.column * 4;
  if (channel >= g.pitch || at.d >= g.target.d || at.h >= g.target.h || at.w >= g.target.w) {
    return;
  }
  const int count = min(g.pitch - channel, 4);
  const int first = at.w * g.stride.w - g.padding.w;
  const int last = first + (kRun - 1) * g.stride.w + (g.kernel.w - 1) * g.dilation.w;
  const bool is_inside = first >= 0 && last < g.source.w;
  float4 sums[kRun];
  VESAL_UNROLL
  for (int r = 0; r < kRun; ++r) {
    sums[r] = zero4();
  }
  for (int a = 0; a < g.kernel.d; ++a) {
    const int d = at.d * g.stride.d - g.padding.d + a * g.dilation.d;
    if (!inside(d, g.source.d)) {
      continue;
    }
    for (int b = 0; b < g.kernel.h; ++b) {
      const int h = at.h * g.stride.h - g.padding.h + b * g.dilation.h;
      if (!inside(h, g.source.h)) {
        continue;
      }
      const Input<T> line = source + (line_of(at.n, d, h, g.source) * g.source.w * g.pitch + channel);
      const float* taps = weights + (int64_t{a * g.kernel.h + b} * g.kernel.w * pitch + channel);
      if (!aligned) {
        add_line<0, Reach::unaligned, kRun>(line, taps, pitch, g, first, count, sums);
      } else if (is_inside) {
        add_line<kWidth, Reach::inside, kRun>(line, taps, pitch, g, first, count, sums);
      } else {
        add_line<kWidth, Reach::edge, kRun>(line, taps, pitch, g, first, count, sums);
      }
    }
  }
  if (bias != nullptr) {
    const float4 shift = load_up_to_4(bias + channel, count, false);
    VESAL_UNROLL
    for (int r = 0; r < kRun; ++r) {
      sums[r] =
          make_float4(sums[r].x + shift.x, sums[r].y + shift.y, sums[r].z + shift.z, sums[r].w + shift.w);
    }
  }
  const Output<T> out =
      target + ((line_of(at.n, at.d, at.h, g.target) * g.target.w + at.w) * g.pitch + channel);
  VESAL_UNROLL
  for (int r = 0; r < kRun; ++r) {
    if (at.w + r < g.target.w) {
      const Output<T> p = out + r * g.pitch;
      if (aligned) {
        store4(p, sums[r]);
      } else {
        p[0] = sums[r].x;
        if (count > 1) p[1] = sums[r].y;
        if (count > 2) p[2] = sums[r].z;
        if (count > 3) p[3] = sums[r].w;
      }
    }
  }
}

// sums (of a line of taps) += a run of dy times the line of x that the taps meet it at. `run`: the first
// voxel of the run, `valid`: how many of it there are.
template <int kWidth, Reach kReach, int kRun, int kSums, class P>
VESAL_DEVICE void add_run(const P& line, const P& run, const Geometry& g, int first, int valid, int count,
                          float4 (&sums)[kSums]) {
  if constexpr (kWidth > 0) {
    float4 gradients[kRun];
    VESAL_UNROLL
    for (int r = 0; r < kRun; ++r) {
      gradients[r] = load_four<kReach>(run + r * g.pitch, r < valid, count);
    }
    const P start = line + int64_t{first} * g.pitch;
    VESAL_UNROLL
    for (int j = 0; j < kRun + kWidth - 1; ++j) {
      const float4 value = load_four<kReach>(start + j * g.pitch, inside(first + j, g.source.w), count);
      VESAL_UNROLL
      for (int c = 0; c < kWidth; ++c) {
        if (j - c >= 0 && j - c < kRun && (kReach == Reach::inside || j - c < valid)) {
          add_product(sums[c], value, gradients[j - c]);
        }
      }
    }
  } else {
    for (int r = 0; r < valid; ++r) {
      const float4 gradient = load_four<kReach>(run + r * g.pitch, true, count);
      VESAL_UNROLL
      for (int c = 0; c < kSums; ++c) {
        if (c < g.kernel.w) {
          const int at = first + r * g.stride.w + c * g.dilation.w;
          add_product(sums[c], load_four<kReach>(line + int64_t{at} * g.pitch, inside(at, g.source.w), count),
                      gradient);
        }
      }
    }
  }
}

// partials[slab] (as dweight) = the slab's sums. A block takes a tile of fours of channels and the taps of
// one plane; its threads are (four of channels, line of taps, segment of the slab), so that what one line of
// taps reads is in the first-level cache for the others. grid (slabs, tiles of fours of channels, kernel.d).
template <class T, int kWidth>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kLineThreads, 2)
    depthwise_weight_kernel(Input<T> x, Input<T> dy, float* VESAL_RESTRICT partials, Geometry g,
                            RunSlabs slabs, bool aligned) {
  constexpr int kRun = depthwise_run(kWidth);
  constexpr int kSums = kWidth > 0 ? kWidth : kMostWidth;
  VESAL_SHARED(float4, scratch, [kLineThreads]);
  const int thread = static_cast<int>(threadIdx.x);
  const int channel = (static_cast<int>(blockIdx.y) * slabs.columns + thread % slabs.columns) * 4;
  const int b = thread / slabs.columns % slabs.taps;
  const int segment = thread / (slabs.columns * slabs.taps);
  const int a = static_cast<int>(blockIdx.z);
  const int count = min(g.pitch - channel, 4);
  float4 sums[kSums];
  VESAL_UNROLL
  for (int c = 0; c < kSums; ++c) {
    sums[c] = zero4();
  }
  const int64_t begin = slab_begin(slabs.runs, slabs.slabs, blockIdx.x);
  const auto runs = static_cast<int>(slab_begin(slabs.runs, slabs.slabs, int64_t{blockIdx.x} + 1) - begin);
  RunDigits at = digits_of(begin + segment, slabs.count);
  for (int i = segment; i < (count > 0 ? runs : 0); i += slabs.segments) {
    const int d = at.d * g.stride.d - g.padding.d + a * g.dilation.d;
    const int h = at.h * g.stride.h - g.padding.h + b * g.dilation.h;
    if (inside(d, g.source.d) && inside(h, g.source.h)) {
      const int w = at.w * kRun;
      const int first = w * g.stride.w - g.padding.w;
      const int valid = min(g.target.w - w, kRun);
      const Input<T> line = x + (line_of(at.n, d, h, g.source) * g.source.w * g.pitch + channel);
      const Input<T> run = dy + ((line_of(at.n, at.d, at.h, g.target) * g.target.w + w) * g.pitch + channel);
      const int last = first + (kRun - 1) * g.stride.w + (g.kernel.w - 1) * g.dilation.w;
      if (!aligned) {
        add_run<0, Reach::unaligned, kRun>(line, run, g, first, valid, count, sums);
      } else if (valid == kRun && first >= 0 && last < g.source.w) {
        add_run<kWidth, Reach::inside, kRun>(line, run, g, first, valid, count, sums);
      } else {
        add_run<kWidth, Reach::edge, kRun>(line, run, g, first, valid, count, sums);
      }
    }
    advance(at, slabs.step, slabs.count);
  }
  const int taps = g.kernel.product();
  float* target = partials + blockIdx.x * (int64_t{g.pitch} * taps) + int64_t{channel} * taps +
                  (a * g.kernel.h + b) * g.kernel.w;
  VESAL_UNROLL
  for (int c = 0; c < kSums; ++c) {
    if (c < g.kernel.w) {
      scratch[thread] = sums[c];
      __syncthreads();
      if (segment == 0 && count > 0) {
        float4 total = sums[c];
        for (int s = 1; s < slabs.segments; ++s) {
          const float4 other = scratch[thread + s * slabs.columns * slabs.taps];
          total = make_float4(total.x + other.x, total.y + other.y, total.z + other.z, total.w + other.w);
        }
        target[c] = total.x;
        if (count > 1) target[taps + c] = total.y;
        if (count > 2) target[2 * taps + c] = total.z;
        if (count > 3) target[3 * taps + c] = total.w;
      }
      __syncthreads();
    }
  }
}

// ---- Host side ----

// Taps along w that are a constant of the kernel, or 0.
inline int constant_width(const Geometry& g) {
  const int width = g.stride.w == 1 && g.dilation.w == 1 ? g.kernel.w : 0;
  return width == 3 || width == 5 || width == 7 ? width : 0;
}

// Calls body.operator()<constant_width>().
template <class Body>
void with_width(const Geometry& g, Body&& body) {
  switch (constant_width(g)) {
    case 3:
      body.template operator()<3>();
      break;
    case 5:
      body.template operator()<5>();
      break;
    case 7:
      body.template operator()<7>();
      break;
    default:
      body.template operator()<0>();
  }
}

inline int64_t fours(int64_t channels) { return ceil_div(channels, 4); }

inline size_t depthwise_packed_bytes(int64_t taps, int64_t channels) {
  return static_cast<size_t>(taps * fours(channels) * 4) * sizeof(float);
}

// target = the convolution that g describes; `packed` holds depthwise_packed_bytes.
template <class T>
void launch_depthwise(Context& context, const Geometry& g, const T* source, const T* weight, bool mirrored,
                      const float* bias, T* target, float* packed) {
  const int taps = g.kernel.product();
  const int64_t columns = fours(g.pitch);
  const int pitch = static_cast<int>(columns * 4);
  launch_map(context.stream(), int64_t{taps} * pitch,
             PackDepthwise<T>{.weight = Input<T>{weight},
                              .packed = packed,
                              .taps = taps,
                              .channels = g.pitch,
                              .pitch = pitch,
                              .mirrored = mirrored});
  const BlockTile tile = block_tile(g.target, g.n, columns, depthwise_run(constant_width(g)));
  with_width(g, [&]<int kWidth>() {
    launch(context.stream(), {.grid = tile_grid(tile, g.n, columns), .block = tile.threads()},
           depthwise_kernel<T, kWidth>, Input<T>{source}, static_cast<const float*>(packed), pitch, bias,
           Output<T>{target}, g, tile, aligned_quads(source, g.pitch) && aligned_quads(target, g.pitch));
  });
}

inline RunSlabs depthwise_slabs(const Geometry& g) {
  const int64_t columns = fours(g.pitch);
  const int tile = even_tile(columns, 16);
  return run_slabs(g.target, g.n, depthwise_run(constant_width(g)), tile, g.kernel.h,
                   ceil_div(columns, tile) * g.kernel.d);
}

inline size_t depthwise_partials_bytes(const Geometry& g) {
  return static_cast<size_t>(int64_t{depthwise_slabs(g).slabs} * g.kernel.product() * g.pitch) *
         sizeof(float);
}

template <class T>
void launch_depthwise_weight(Context& context, const Geometry& g, const T* x, const T* dy, float* dweight,
                             GradMode mode, float* partials) {
  const RunSlabs slabs = depthwise_slabs(g);
  with_width(g, [&]<int kWidth>() {
    launch(context.stream(),
           {.grid = {slabs.slabs, ceil_div(fours(g.pitch), slabs.columns), g.kernel.d},
            .block = slabs.threads()},
           depthwise_weight_kernel<T, kWidth>, Input<T>{x}, Input<T>{dy}, partials, g, slabs,
           aligned_quads(x, g.pitch) && aligned_quads(dy, g.pitch));
  });
  add_up_slabs(context, slabs.slabs, int64_t{g.kernel.product()} * g.pitch, partials, dweight, mode);
}

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
