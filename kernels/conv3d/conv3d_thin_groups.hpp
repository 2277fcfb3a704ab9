// Convolution with few channels in a group, and large volumes of few channels at all, for conv3d.cu, where a
// matrix product would leave most of its tile empty: a thread takes up to eight outputs of a group for six or
// eight voxels along w, so that a weight serves as many products and a value of the source as many as it has
// outputs. The data gradient of stride 1 is the same with the taps mirrored; of other strides a thread takes
// four channels of a voxel and only the taps that meet it. In the weight gradient a thread holds eight
// outputs times two or eight inputs of a tap. Neighbouring threads take neighbouring groups, then voxels.
//
// Least work: 4 (voxels_in c_in + voxels_out c_out) bytes, half of them in bf16 and f16, and 2 voxels_out
// taps c_out c_in / groups operations. The first-level cache limits it: an access of one to four channels
// spreads over as many of its lines as the warp's voxels fill, for eight products a channel.
#pragma once

#include "kernels/conv3d/conv3d_lines_device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kMostOutputs = 8;  // of a thread
constexpr int kWeightRun = 8;    // voxels along w that a thread of the weight gradient takes at a time

// Voxels along w of a thread with so many fours of outputs: as many as 128 registers hold.
VESAL_HOST_DEVICE constexpr int thin_run(int fours) { return fours == 1 ? 8 : 6; }

VESAL_DEVICE inline float2 load2(const float* p) { return *reinterpret_cast<const float2*>(p); }
template <class T>
VESAL_DEVICE float2 load2(const Reader<T>& p) {
  struct alignas(4) Pair {
    T x, y;
  };
  const Pair pair = *reinterpret_cast<const Pair*>(p.pointer);
  return make_float2(widen(pair.x), widen(pair.y));
}
// kCount (1, 2 or 4) consecutive values in one access.
template <int kCount, class P>
VESAL_DEVICE void load_values(const P& p, float* values) {
  if constexpr (kCount == 4) {
    const float4 four = load4(p);
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
  } else if constexpr (kCount == 2) {
    const float2 two = load2(p);
    values[0] = two.x;
    values[1] = two.y;
  } else {
    values[0] = p[0];
  }
}

VESAL_DEVICE inline void add_scaled(float4& sum, float a, const float4& b) {
  sum.x = fmaf(a, b.x, sum.x);
  sum.y = fmaf(a, b.y, sum.y);
  sum.z = fmaf(a, b.z, sum.z);
  sum.w = fmaf(a, b.w, sum.w);
}

// Groups of a target side by side: a column is a tile of `outputs` (four or eight) outputs of a group.
struct ThinColumns {
  int group_out;  // channels of the target
  int outputs;
  int tiles;  // of a group
  int count;

  VESAL_DEVICE int group(int column) const { return column / tiles; }
  VESAL_DEVICE int first_output(int column) const { return column % tiles * outputs; }
};

inline ThinColumns thin_columns(int64_t groups, int64_t group_out, int most_outputs) {
  const int outputs = group_out <= 4 ? 4 : most_outputs;
  const auto tiles = static_cast<int>(ceil_div(group_out, outputs));
  return {static_cast<int>(group_out), outputs, tiles, static_cast<int>(groups * tiles)};
}

// packed[tap][input of the group][four of the column's outputs][column][4]: a warp reads the fours of its
// columns side by side. Outputs are filled up to the column's with zeros.
template <class T>
struct PackThin {
  Input<T> weight;
  float* packed;
  ThinColumns columns;
  int taps;
  int channels;   // inputs of a group, as the kernel sees it
  bool adjoint;   // weight is [group, input, tap, output], else [group, output, tap, input]
  bool mirrored;  // the taps in reverse order

  VESAL_DEVICE void operator()(int64_t i) const {
    int64_t q = i / 4;
    const int column = static_cast<int>(q % columns.count);
    q /= columns.count;
    const int fours = columns.outputs / 4;
    const int output =
        columns.first_output(column) + static_cast<int>(q % fours) * 4 + static_cast<int>(i % 4);
    q /= fours;
    const int input = static_cast<int>(q % channels);
    const int tap = static_cast<int>(q / channels);
    const int from = mirrored ? taps - 1 - tap : tap;
    float value = 0.0f;
    if (output < columns.group_out) {
      const int64_t group = columns.group(column);
      value = adjoint ? weight[((group * channels + input) * taps + from) * columns.group_out + output]
                      : weight[((group * columns.group_out + output) * taps + from) * channels + input];
    }
    packed[i] = value;
  }
};

// sums += a line of the source times a line of taps. `line` is voxel 0 of the source line, tap 0 of the first
// target voxel reads voxel `first`, that of the next one of the run `step` voxels on. kInputs channels are
// read at once.
template <int kFours, int kInputs, int kRun, class P>
VESAL_DEVICE void add_thin_line(const P& line, const float* weights, int columns, const Geometry& g,
                                int first, int step, float4 (&sums)[kRun][kFours]) {
  const int64_t pitch = int64_t{step} * g.pitch;
  for (int c = 0; c < g.kernel.w; ++c) {
    const int begin = first + c * g.dilation.w;
    unsigned met = 0;
    VESAL_UNROLL
    for (int r = 0; r < kRun; ++r) {
      met |= inside(begin + r * step, g.source.w) ? 1u << r : 0u;
    }
    P start = line + int64_t{begin} * g.pitch;
    for (int i = 0; i < g.channels; i += kInputs) {
      float values[kRun][kInputs];
      VESAL_UNROLL
      for (int r = 0; r < kRun; ++r) {
        VESAL_UNROLL
        for (int k = 0; k < kInputs; ++k) {
          values[r][k] = 0.0f;
        }
        if ((met >> r & 1u) != 0) {
          load_values<kInputs>(start + r * pitch, values[r]);
        }
      }
      VESAL_UNROLL
      for (int k = 0; k < kInputs; ++k) {
        VESAL_UNROLL
        for (int q = 0; q < kFours; ++q) {
          const float4 tap = load4(weights);
          weights += int64_t{columns} * 4;
          VESAL_UNROLL
          for (int r = 0; r < kRun; ++r) {
            add_scaled(sums[r][q], values[r][k], tap);
          }
        }
      }
      start = start + kInputs;
    }
  }
}

// grid (tiles of the target, tiles of columns). `target_pitch`: all channels of a voxel of the target;
// `inputs`: channels of the source that can be read at once.
template <class T, int kFours>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kLineThreads, 2)
    thin_kernel(Input<T> source, const float* VESAL_RESTRICT weights, const float* VESAL_RESTRICT bias,
                Output<T> target, int target_pitch, Geometry g, ThinColumns columns, BlockTile tile,
                int inputs) {
  constexpr int kRun = thin_run(kFours);
  const RunPlace at = place_in_tile<true>(tile);
  if (at.column >= columns.count || at.d >= g.target.d || at.h >= g.target.h || at.w >= g.target.w) {
    return;
  }
  const int group = columns.group(at.column);
  const int first = at.w * g.stride.w - g.padding.w;
  const int step = tile.runs * g.stride.w;
  float4 sums[kRun][kFours];
  VESAL_UNROLL
  for (int r = 0; r < kRun; ++r) {
    VESAL_UNROLL
    for (int q = 0; q < kFours; ++q) {
      sums[r][q] = zero4();
    }
  }
  const int64_t weights_of_a_line = int64_t{g.channels * kFours * g.kernel.w} * columns.count * 4;
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
      const Input<T> line =
          source + (line_of(at.n, d, h, g.source) * g.source.w * g.pitch + int64_t{group} * g.channels);
      const float* taps = weights + ((a * g.kernel.h + b) * weights_of_a_line + int64_t{at.column} * 4);
      // Eight outputs leave no registers for four inputs of eight voxels.
      if (kFours == 1 && inputs == 4) {
        add_thin_line<kFours, kFours == 1 ? 4 : 2, kRun>(line, taps, columns.count, g, first, step, sums);
      } else if (inputs >= 2) {
        add_thin_line<kFours, 2, kRun>(line, taps, columns.count, g, first, step, sums);
      } else {
        add_thin_line<kFours, 1, kRun>(line, taps, columns.count, g, first, step, sums);
      }
    }
  }
  const int output = columns.first_output(at.column);
  const int channel = group * columns.group_out + output;
  const int count = columns.group_out - output;
  const Output<T> out =
      target + ((line_of(at.n, at.d, at.h, g.target) * g.target.w + at.w) * target_pitch + channel);
  VESAL_UNROLL
  for (int q = 0; q < kFours; ++q) {
    const float4 shift =
        bias != nullptr ? load_up_to_4(bias + channel + q * 4, count - q * 4, false) : zero4();
    VESAL_UNROLL
    for (int r = 0; r < kRun; ++r) {
      if (at.w + r * tile.runs < g.target.w) {
        const Output<T> p = out + (int64_t{r * tile.runs} * target_pitch + q * 4);
        if (count > q * 4) p[0] = sums[r][q].x + shift.x;
        if (count > q * 4 + 1) p[1] = sums[r][q].y + shift.y;
        if (count > q * 4 + 2) p[2] = sums[r][q].z + shift.z;
        if (count > q * 4 + 3) p[3] = sums[r][q].w + shift.w;
      }
    }
  }
}

// The taps along an axis that meet target voxel `at` in the data gradient: `tap`, `tap` + period ..., of
// which the first reads source position `position`.
struct MetTaps {
  int tap, position;
};

VESAL_DEVICE inline MetTaps met_taps(int at, int kernel, int stride, int padding, int dilation) {
  int tap = 0;
  int reached = at + padding;
  while (tap < kernel && reached % stride != 0) {
    ++tap;
    reached -= dilation;
  }
  return {tap, reached / stride};
}

// The data gradient of any stride, for launch_column_map. Rows: input voxels; columns: those of ThinColumns,
// of four outputs. g is the geometry of the backward pass (source dy, target dx).
template <class T>
struct ThinBackwardData {
  Input<T> dy;
  const float* weights;  // packed
  const float* bias;     // or null
  Output<T> dx;
  Geometry g;
  ThinColumns columns;
  int target_pitch;
  int inputs;  // channels of dy that can be read at once

  struct State {
    Input<T> dy;
    const float* weights;
    int channel, count;
    float4 bias;
  };
  VESAL_DEVICE State prepare(int64_t, int64_t column) const {
    const int group = columns.group(static_cast<int>(column));
    const int output = columns.first_output(static_cast<int>(column));
    const int channel = group * columns.group_out + output;
    const int count = columns.group_out - output;
    return {dy + int64_t{group} * g.channels, weights + column * 4, channel, count,
            bias != nullptr ? load_up_to_4(bias + channel, count, false) : zero4()};
  }
  VESAL_DEVICE void apply(const State& state, int64_t row, int64_t) const {
    int q = static_cast<int>(row);
    const MetTaps w = met_taps(q % g.target.w, g.kernel.w, g.stride.w, g.padding.w, g.dilation.w);
    q /= g.target.w;
    const MetTaps h = met_taps(q % g.target.h, g.kernel.h, g.stride.h, g.padding.h, g.dilation.h);
    q /= g.target.h;
    const MetTaps d = met_taps(q % g.target.d, g.kernel.d, g.stride.d, g.padding.d, g.dilation.d);
    const int n = q / g.target.d;
    // What a step of a period takes off the position.
    const Triple back{g.dilation.d * g.period.d / g.stride.d, g.dilation.h * g.period.h / g.stride.h,
                      g.dilation.w * g.period.w / g.stride.w};
    float4 sum = zero4();
    int at_d = d.position;
    for (int a = d.tap; a < g.kernel.d; a += g.period.d, at_d -= back.d) {
      int at_h = h.position;
      for (int b = h.tap; b < g.kernel.h; b += g.period.h, at_h -= back.h) {
        int at_w = w.position;
        for (int c = w.tap; c < g.kernel.w; c += g.period.w, at_w -= back.w) {
          if (inside(at_d, g.source.d) && inside(at_h, g.source.h) && inside(at_w, g.source.w)) {
            const Input<T> values =
                state.dy + (line_of(n, at_d, at_h, g.source) * g.source.w + at_w) * g.pitch;
            const int64_t tap = (a * g.kernel.h + b) * g.kernel.w + c;
            const float* taps = state.weights + tap * g.channels * columns.count * 4;
            if (inputs == 4) {
              add_voxel<4>(values, taps, sum);
            } else if (inputs == 2) {
              add_voxel<2>(values, taps, sum);
            } else {
              add_voxel<1>(values, taps, sum);
            }
          }
        }
      }
    }
    const Output<T> out = dx + (row * target_pitch + state.channel);
    out[0] = sum.x + state.bias.x;
    if (state.count > 1) out[1] = sum.y + state.bias.y;
    if (state.count > 2) out[2] = sum.z + state.bias.z;
    if (state.count > 3) out[3] = sum.w + state.bias.w;
  }
  template <int kInputs>
  VESAL_DEVICE void add_voxel(const Input<T>& values, const float* taps, float4& sum) const {
    for (int i = 0; i < g.channels; i += kInputs) {
      float value[kInputs];
      load_values<kInputs>(values + i, value);
      VESAL_UNROLL
      for (int k = 0; k < kInputs; ++k) {
        add_scaled(sum, value[k], load4(taps));
        taps += int64_t{columns.count} * 4;
      }
    }
  }
};

// sums += the products of a run of dy with what tap `tap` (along w) meets of a line of x. `line` and `run`
// are voxel 0 of their lines; kPairs: channels are read in pairs.
template <int kInputs, bool kPairs, class P>
VESAL_DEVICE void add_thin_run(const P& line, const P& run, const Geometry& g, int c_out, int begin, int end,
                               int tap, int inputs, int outputs, float (&sums)[kMostOutputs][kInputs]) {
  constexpr int kStep = kPairs ? 2 : 1;
  for (int w = begin; w < end; ++w) {
    const int at = w * g.stride.w - g.padding.w + tap * g.dilation.w;
    if (!inside(at, g.source.w)) {
      continue;
    }
    float values[kInputs], gradients[kMostOutputs];
    VESAL_UNROLL
    for (int i = 0; i < kInputs; i += kStep) {
      values[i] = values[i + kStep - 1] = 0.0f;
      if (i < inputs) {
        load_values<kStep>(line + (int64_t{at} * g.pitch + i), values + i);
      }
    }
    VESAL_UNROLL
    for (int o = 0; o < kMostOutputs; o += kStep) {
      gradients[o] = gradients[o + kStep - 1] = 0.0f;
      if (o < outputs) {
        load_values<kStep>(run + (int64_t{w} * c_out + o), gradients + o);
      }
    }
    VESAL_UNROLL
    for (int o = 0; o < kMostOutputs; ++o) {
      VESAL_UNROLL
      for (int i = 0; i < kInputs; ++i) {
        sums[o][i] = fmaf(gradients[o], values[i], sums[o][i]);
      }
    }
  }
}

// partials[slab] (as dweight) = the slab's sums. Columns are tiles of kMostOutputs outputs x kInputs inputs
// of a group; a block's threads are (column, tap, segment of the slab), so that what one tap reads is in the
// first-level cache for the others. grid (slabs, tiles of columns, tiles of taps).
template <class T, int kInputs>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kLineThreads, 2)
    thin_weight_kernel(Input<T> x, Input<T> dy, float* VESAL_RESTRICT partials, Geometry g, int c_out,
                       int group_out, int columns, RunSlabs slabs, bool pairs) {
  VESAL_SHARED(float, scratch, [kLineThreads]);
  const int thread = static_cast<int>(threadIdx.x);
  const int column = static_cast<int>(blockIdx.y) * slabs.columns + thread % slabs.columns;
  const int tap = static_cast<int>(blockIdx.z) * slabs.taps + thread / slabs.columns % slabs.taps;
  const int segment = thread / (slabs.columns * slabs.taps);
  const int taps = g.kernel.product();
  const bool active = column < columns && tap < taps;
  const int tiles_in = (g.channels + kInputs - 1) / kInputs;
  const int tiles_out = (group_out + kMostOutputs - 1) / kMostOutputs;
  const int input = column % tiles_in * kInputs;
  const int output = column / tiles_in % tiles_out * kMostOutputs;
  const int group = column / (tiles_in * tiles_out);
  const int inputs = g.channels - input;  // or more than fit
  const int outputs = group_out - output;
  const int a = tap / (g.kernel.h * g.kernel.w);
  const int b = tap / g.kernel.w % g.kernel.h;
  const int c = tap % g.kernel.w;
  const int64_t x_channel = int64_t{group} * g.channels + input;
  const int64_t dy_channel = int64_t{group} * group_out + output;
  float sums[kMostOutputs][kInputs];
  VESAL_UNROLL
  for (int o = 0; o < kMostOutputs; ++o) {
    VESAL_UNROLL
    for (int i = 0; i < kInputs; ++i) {
      sums[o][i] = 0.0f;
    }
  }
  const int64_t begin = slab_begin(slabs.runs, slabs.slabs, blockIdx.x);
  const auto runs = static_cast<int>(slab_begin(slabs.runs, slabs.slabs, int64_t{blockIdx.x} + 1) - begin);
  RunDigits at = digits_of(begin + segment, slabs.count);
  for (int run = segment; run < (active ? runs : 0); run += slabs.segments) {
    const int d = at.d * g.stride.d - g.padding.d + a * g.dilation.d;
    const int h = at.h * g.stride.h - g.padding.h + b * g.dilation.h;
    if (inside(d, g.source.d) && inside(h, g.source.h)) {
      const int w = at.w * kWeightRun;
      const int end = min(w + kWeightRun, g.target.w);
      const Input<T> values = x + (line_of(at.n, d, h, g.source) * g.source.w * g.pitch + x_channel);
      const Input<T> gradients = dy + (line_of(at.n, at.d, at.h, g.target) * g.target.w * c_out + dy_channel);
      if (pairs) {
        add_thin_run<kInputs, true>(values, gradients, g, c_out, w, end, c, inputs, outputs, sums);
      } else {
        add_thin_run<kInputs, false>(values, gradients, g, c_out, w, end, c, inputs, outputs, sums);
      }
    }
    advance(at, slabs.step, slabs.count);
  }
  float* target = partials + blockIdx.x * (int64_t{c_out} * taps * g.channels) +
                  (dy_channel * taps + tap) * g.channels + input;
  VESAL_UNROLL
  for (int o = 0; o < kMostOutputs; ++o) {
    VESAL_UNROLL
    for (int i = 0; i < kInputs; ++i) {
      float total = sums[o][i];
      if (slabs.segments > 1) {
        scratch[thread] = total;
        __syncthreads();
        for (int s = 1; s < (segment == 0 ? slabs.segments : 0); ++s) {
          total += scratch[thread + s * slabs.columns * slabs.taps];
        }
        __syncthreads();
      }
      if (active && segment == 0 && o < outputs && i < inputs) {
        target[int64_t{o} * taps * g.channels + i] = total;
      }
    }
  }
}

// ---- Host side ----

template <class T>
bool aligned_pairs(const T* pointer, int64_t channels, int64_t pitch) {
  return reinterpret_cast<uintptr_t>(pointer) % (2 * sizeof(T)) == 0 && channels % 2 == 0 && pitch % 2 == 0;
}

inline int64_t thin_packed_count(const Geometry& g, const ThinColumns& columns) {
  return int64_t{g.kernel.product()} * g.channels * columns.count * columns.outputs;
}

inline size_t thin_packed_bytes(const Geometry& g, const ThinColumns& columns) {
  return static_cast<size_t>(thin_packed_count(g, columns)) * sizeof(float);
}

// Channels of a group that can be read at once.
template <class T>
int thin_vector(const T* source, const Geometry& g) {
  return g.channels % 4 == 0 && aligned_quads(source, g.pitch) ? 4
         : aligned_pairs(source, g.channels, g.pitch)          ? 2
                                                               : 1;
}

template <class T>
void pack_thin(Context& context, const Geometry& g, const ThinColumns& columns, const T* weight, bool adjoint,
               bool mirrored, float* packed) {
  launch_map(context.stream(), thin_packed_count(g, columns),
             PackThin<T>{.weight = Input<T>{weight},
                         .packed = packed,
                         .columns = columns,
                         .taps = g.kernel.product(),
                         .channels = g.channels,
                         .adjoint = adjoint,
                         .mirrored = mirrored});
}

// target = the convolution that g describes, or of the adjoint's weight with its taps mirrored, of groups
// with `group_out` channels of the target; `packed` holds thin_packed_bytes.
template <class T>
void launch_thin(Context& context, const Geometry& g, int64_t group_out, const T* source, const T* weight,
                 bool adjoint, const float* bias, T* target, float* packed) {
  const int64_t groups = g.pitch / g.channels;
  const ThinColumns columns = thin_columns(groups, group_out, kMostOutputs);
  pack_thin<T>(context, g, columns, weight, adjoint, adjoint, packed);
  const BlockTile tile = block_tile(g.target, g.n, columns.count, thin_run(columns.outputs / 4));
  const auto start = [&](auto kernel) {
    launch(context.stream(), {.grid = tile_grid(tile, g.n, columns.count), .block = tile.threads()}, kernel,
           Input<T>{source}, static_cast<const float*>(packed), bias, Output<T>{target},
           static_cast<int>(groups * group_out), g, columns, tile, thin_vector(source, g));
  };
  if (columns.outputs == kMostOutputs) {
    start(thin_kernel<T, 2>);
  } else {
    start(thin_kernel<T, 1>);
  }
}

// dx of any stride.
template <class T>
void launch_thin_strided(Context& context, const Geometry& g, int64_t group_in, const T* dy, const T* weight,
                         const float* bias, T* dx, float* packed) {
  const int64_t groups = g.pitch / g.channels;
  const ThinColumns columns = thin_columns(groups, group_in, 4);
  pack_thin<T>(context, g, columns, weight, true, false, packed);
  launch_column_map(context.stream(), 1, int64_t{g.n} * g.target.d * g.target.h * g.target.w, columns.count,
                    ThinBackwardData<T>{.dy = Input<T>{dy},
                                        .weights = packed,
                                        .bias = bias,
                                        .dx = Output<T>{dx},
                                        .g = g,
                                        .columns = columns,
                                        .target_pitch = static_cast<int>(groups * group_in),
                                        .inputs = thin_vector(dy, g)});
}

inline int thin_inputs(const Geometry& g) { return g.channels <= 2 ? 2 : 8; }

inline int64_t thin_weight_columns(const Geometry& g, int64_t group_out) {
  return g.pitch / g.channels * ceil_div(g.channels, thin_inputs(g)) * ceil_div(group_out, kMostOutputs);
}

inline RunSlabs thin_slabs(const Geometry& g, int64_t group_out) {
  const int64_t columns = thin_weight_columns(g, group_out);
  const int tile = even_tile(columns, 16);
  const int taps = even_tile(g.kernel.product(), kLineThreads / tile);
  return run_slabs(g.target, g.n, kWeightRun, tile, taps,
                   ceil_div(columns, tile) * ceil_div(g.kernel.product(), taps));
}

inline size_t thin_partials_bytes(const Geometry& g, int64_t group_out) {
  return static_cast<size_t>(thin_slabs(g, group_out).slabs * int64_t{g.kernel.product()} * g.pitch *
                             group_out) *
         sizeof(float);
}

template <class T>
void launch_thin_weight(Context& context, const Geometry& g, int64_t group_out, const T* x, const T* dy,
                        float* dweight, GradMode mode, float* partials) {
  const int64_t columns = thin_weight_columns(g, group_out);
  const int64_t c_out = g.pitch / g.channels * group_out;
  const RunSlabs slabs = thin_slabs(g, group_out);
  const auto start = [&](auto kernel) {
    launch(context.stream(),
           {.grid = {slabs.slabs, ceil_div(columns, slabs.columns), ceil_div(g.kernel.product(), slabs.taps)},
            .block = slabs.threads()},
           kernel, Input<T>{x}, Input<T>{dy}, partials, g, static_cast<int>(c_out),
           static_cast<int>(group_out), static_cast<int>(columns), slabs,
           aligned_pairs(x, g.channels, g.pitch) && aligned_pairs(dy, group_out, c_out));
  };
  if (thin_inputs(g) == 2) {
    start(thin_weight_kernel<T, 2>);
  } else {
    start(thin_weight_kernel<T, 8>);
  }
  add_up_slabs(context, slabs.slabs, c_out * g.kernel.product() * g.channels, partials, dweight, mode);
}

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
