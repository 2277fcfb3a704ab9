// conv3d on CUDA: implicit GEMM in float32 on gemm_device.hpp. The matrix of gathered voxels is never stored;
// a slice of it goes straight from x (or dy) into shared memory.
//   forward          rows: output voxels,        columns: c_out,  depth: taps * c_in
//   backward data    rows: input voxels,         columns: c_in,   depth: taps * c_out, a product for every
//   residue of the
//                    voxel modulo the stride, because only every stride-th tap meets a voxel
//   backward weight  rows: taps * c_in (of dW^T), columns: c_out, depth: output voxels, split into partial
//   sums
//
// Least work: 2 voxels_out taps c_in c_out operations and 4 (voxels_in c_in + voxels_out c_out) bytes. From 8
// channels up a 3x3x3 convolution is limited by arithmetic, here by the float32 units (no tensor cores), and
// in this form by feeding them: each of the taps reads its voxels from the second-level cache again, and the
// weight gradient pays three integer divisions for every four elements that it gathers. No GPU timing exists
// yet (see bench/results/README.md).
#include <algorithm>

#include "kernels/conv3d/conv3d.hpp"
#include "kernels/conv3d/conv3d_internal.hpp"
#include "kernels/linear/gemm_device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kMostTaps = 125;

struct Triple {
  int d, h, w;

  VESAL_HOST_DEVICE int product() const { return d * h * w; }
};

// A convolution as the kernels see it: `source` is gathered from, `target` is written (x and y, exchanged for
// the data gradient).
struct Geometry {
  Triple source, target, kernel, stride, padding;
  int n;
  int channels;  // of the source
};

// Which voxels of the target one product covers along an axis, and which taps they need.
struct Axis {
  int first, step, count;     // target voxels first + step * q, q < count
  int base_first, base_step;  // tap j of target voxel q reads source voxel base_first + base_step * q +- j
  int taps;
  int weight_first, weight_step;  // tap j is the kernel's tap weight_first + weight_step * j
};

template <bool kBackward>
VESAL_DEVICE Axis make_axis(int residue, int target, int kernel, int stride, int padding) {
  if (!kBackward) {
    return {0, 1, target, -padding, stride, kernel, 0, 1};
  }
  // Source voxel o and tap a meet target voxel v where o * stride - padding + a = v: a = residue (mod
  // stride).
  const int first = ((residue - padding) % stride + stride) % stride;
  return {first,
          stride,
          first < target ? (target - 1 - first) / stride + 1 : 0,
          (first + padding - residue) / stride,
          1,
          residue < kernel ? (kernel - 1 - residue) / stride + 1 : 0,
          residue,
          stride};
}

struct Region {
  Axis d, h, w;

  VESAL_DEVICE int taps() const { return d.taps * h.taps * w.taps; }
};

template <bool kBackward>
VESAL_DEVICE Region make_region(const Geometry& g, int piece) {
  const Triple s = g.stride;
  return {make_axis<kBackward>(piece / (s.h * s.w), g.target.d, g.kernel.d, s.d, g.padding.d),
          make_axis<kBackward>(piece / s.w % s.h, g.target.h, g.kernel.h, s.h, g.padding.h),
          make_axis<kBackward>(piece % s.w, g.target.w, g.kernel.w, s.w, g.padding.w)};
}

// Operand A of forward and backward data: row = target voxel, k = (tap, source channel).
template <bool kBackward>
struct GatheredVoxels {
  const float* source;
  Geometry g;
  bool aligned;
  int64_t rows;
  int depth;
  Region region;
  const int4* taps;  // in shared memory: what a tap adds to the coordinates in the source

  template <int kRows, int kThreads>
  using Loader = LoaderByDepth<kRows, kThreads, GatheredVoxels>;

  struct Line {
    const float* p;  // the volume
    int d, h, w;     // where tap 0 reads
  };

  VESAL_DEVICE void begin_block(int piece) {
    VESAL_SHARED(int4, table, [kMostTaps]);
    region = make_region<kBackward>(g, piece);
    rows = int64_t{g.n} * region.d.count * region.h.count * region.w.count;
    depth = region.taps() * g.channels;
    constexpr int kSign = kBackward ? -1 : 1;
    for (int t = static_cast<int>(threadIdx.x); t < region.taps(); t += static_cast<int>(blockDim.x)) {
      table[t] = make_int4(kSign * (t / (region.h.taps * region.w.taps)),
                           kSign * (t / region.w.taps % region.h.taps), kSign * (t % region.w.taps), 0);
    }
    taps = table;
    __syncthreads();
  }

  VESAL_DEVICE Line line(int64_t row) const {
    if (row >= rows) {
      return {source, -(1 << 29), 0, 0};  // outside for every tap
    }
    int q = static_cast<int>(row);
    const int w = q % region.w.count;
    q /= region.w.count;
    const int h = q % region.h.count;
    q /= region.h.count;
    const int d = q % region.d.count;
    const int n = q / region.d.count;
    return {source + int64_t{n} * g.source.d * g.source.h * g.source.w * g.channels,
            region.d.base_first + region.d.base_step * d, region.h.base_first + region.h.base_step * h,
            region.w.base_first + region.w.base_step * w};
  }

  VESAL_DEVICE int64_t target_row(int64_t row) const {
    int q = static_cast<int>(row);
    const int w = region.w.first + region.w.step * (q % region.w.count);
    q /= region.w.count;
    const int h = region.h.first + region.h.step * (q % region.h.count);
    q /= region.h.count;
    const int d = region.d.first + region.d.step * (q % region.d.count);
    const int n = q / region.d.count;
    return ((int64_t{n} * g.target.d + d) * g.target.h + h) * g.target.w + w;
  }

  // The channels of the voxel that the tap reads, or null outside the volume.
  VESAL_DEVICE const float* voxel(const Line& line, int tap) const {
    const int4 offset = taps[tap];
    const int d = line.d + offset.x;
    const int h = line.h + offset.y;
    const int w = line.w + offset.z;
    const bool inside = static_cast<unsigned>(d) < static_cast<unsigned>(g.source.d) &&
                        static_cast<unsigned>(h) < static_cast<unsigned>(g.source.h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(g.source.w);
    return inside ? line.p + ((int64_t{d} * g.source.h + h) * g.source.w + w) * g.channels : nullptr;
  }

  VESAL_DEVICE float4 load(const Line& line, int k) const {
    if (k >= depth) {
      return zero4();
    }
    int tap = k / g.channels;
    int channel = k - tap * g.channels;
    if (aligned) {
      const float* p = voxel(line, tap);
      return p != nullptr ? load4(p + channel) : zero4();
    }
    float values[4];
    const float* p = voxel(line, tap);
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      values[j] = p != nullptr ? p[channel] : 0.0f;
      if (++channel == g.channels) {
        channel = 0;
        ++tap;
        p = k + j + 1 < depth ? voxel(line, tap) : nullptr;
      }
    }
    return make_float4(values[0], values[1], values[2], values[3]);
  }
};

// Operand B of backward data: column = input channel, k = (tap of the region, output channel).
struct AdjointWeight {
  const float* weight;
  Geometry g;
  bool aligned;
  int64_t rows;  // c_in
  int depth;
  const int* taps;  // in shared memory: the kernel's tap for each of the region's

  template <int kRows, int kThreads>
  using Loader = LoaderByRow<kRows, kThreads, AdjointWeight>;

  struct Line {
    const float* p;
    int count;
  };

  VESAL_DEVICE void begin_block(int piece) {
    VESAL_SHARED(int, table, [kMostTaps]);
    const Region region = make_region<true>(g, piece);
    depth = region.taps() * g.channels;
    for (int t = static_cast<int>(threadIdx.x); t < region.taps(); t += static_cast<int>(blockDim.x)) {
      const int a = region.d.weight_first + region.d.weight_step * (t / (region.h.taps * region.w.taps));
      const int b = region.h.weight_first + region.h.weight_step * (t / region.w.taps % region.h.taps);
      const int c = region.w.weight_first + region.w.weight_step * (t % region.w.taps);
      table[t] = (a * g.kernel.h + b) * g.kernel.w + c;
    }
    taps = table;
    __syncthreads();
  }

  VESAL_DEVICE Line line(int64_t row) const {
    return {weight + row, row < rows ? static_cast<int>(min(rows - row, int64_t{4})) : 0};
  }

  VESAL_DEVICE float4 load(const Line& line, int k) const {
    if (k >= depth) {
      return zero4();
    }
    const int tap = k / g.channels;
    const int output = k - tap * g.channels;
    return load_up_to_4(line.p + (int64_t{output} * g.kernel.product() + taps[tap]) * rows, line.count,
                        aligned);
  }
};

// Operand A of backward weight: row = (tap, source channel), k = target voxel.
struct GatheredTaps {
  const float* source;
  Geometry g;
  bool aligned;
  int64_t rows;  // taps * channels
  int depth;     // target voxels of the batch

  template <int kRows, int kThreads>
  using Loader = LoaderByRow<kRows, kThreads, GatheredTaps>;

  struct Line {
    int taps[4];  // of four consecutive rows: d | h << 8 | w << 16, or -1 beyond the end
    int channels[4];
  };

  VESAL_DEVICE void begin_block(int) {}
  VESAL_DEVICE int64_t target_row(int64_t row) const { return row; }

  VESAL_DEVICE Line line(int64_t row) const {
    Line line;
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int r = static_cast<int>(row) + j;
      const int tap = r / g.channels;
      line.channels[j] = r - tap * g.channels;
      line.taps[j] = r < rows ? tap / (g.kernel.h * g.kernel.w) | tap / g.kernel.w % g.kernel.h << 8 |
                                    tap % g.kernel.w << 16
                              : -1;
    }
    return line;
  }

  VESAL_DEVICE float4 load(const Line& line, int k) const {
    if (k >= depth) {
      return zero4();
    }
    int q = k;
    const int w = q % g.target.w * g.stride.w - g.padding.w;
    q /= g.target.w;
    const int h = q % g.target.h * g.stride.h - g.padding.h;
    q /= g.target.h;
    const int d = q % g.target.d * g.stride.d - g.padding.d;
    const float* volume =
        source + int64_t{q / g.target.d} * g.source.d * g.source.h * g.source.w * g.channels;
    if (aligned) {
      const float* p = voxel(volume, line.taps[0], d, h, w);
      return p != nullptr ? load4(p + line.channels[0]) : zero4();
    }
    float values[4];
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float* p = voxel(volume, line.taps[j], d, h, w);
      values[j] = p != nullptr ? p[line.channels[j]] : 0.0f;
    }
    return make_float4(values[0], values[1], values[2], values[3]);
  }

  VESAL_DEVICE const float* voxel(const float* volume, int tap, int d, int h, int w) const {
    d += tap & 0xff;
    h += tap >> 8 & 0xff;
    w += tap >> 16 & 0xff;
    const bool inside = tap >= 0 && static_cast<unsigned>(d) < static_cast<unsigned>(g.source.d) &&
                        static_cast<unsigned>(h) < static_cast<unsigned>(g.source.h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(g.source.w);
    return inside ? volume + ((int64_t{d} * g.source.h + h) * g.source.w + w) * g.channels : nullptr;
  }
};

// ---- Host side ----

Triple triple(const std::array<int, 3>& values) { return {values[0], values[1], values[2]}; }

Geometry geometry(const Conv3dParams& p, bool backward) {
  const Triple x{static_cast<int>(p.d), static_cast<int>(p.h), static_cast<int>(p.w)};
  const Triple y{static_cast<int>(p.out_d()), static_cast<int>(p.out_h()), static_cast<int>(p.out_w())};
  return {.source = backward ? y : x,
          .target = backward ? x : y,
          .kernel = triple(p.kernel),
          .stride = triple(p.stride),
          .padding = triple(p.padding),
          .n = static_cast<int>(p.n),
          .channels = static_cast<int>(backward ? p.c_out : p.c_in)};
}

int64_t input_voxels(const Conv3dParams& p) { return p.n * p.d * p.h * p.w; }
int64_t output_voxels(const Conv3dParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w(); }

// Rows and depths are counted in 32 bits, elements in 64.
void check_size(const Conv3dParams& p, const char* op) {
  constexpr int64_t kLimit = 0x7fffffff - 2 * kTileM;
  check<ShapeError>(input_voxels(p) <= kLimit && output_voxels(p) <= kLimit, op, ": ",
                    std::max(input_voxels(p), output_voxels(p)), " voxels pass the kernel's limit of ",
                    kLimit);
  check<ShapeError>(
      p.c_in <= 65535 * 32 && p.c_out <= 65535 * 32 && p.taps() * std::max(p.c_in, p.c_out) <= kLimit, op,
      ": ", p.c_in, " -> ", p.c_out, " channels pass the kernel's limit");
  for (size_t axis = 0; axis < 3; ++axis) {
    check<ShapeError>(p.stride[axis] <= 32 && p.padding[axis] <= 1 << 20, op,
                      ": stride or padding passes the kernel's limit");
  }
}

ProductSize product_size(const Conv3dParams& p, ConvPass pass) {
  switch (pass) {
    case ConvPass::forward:
      return {.rows = output_voxels(p),
              .columns = p.c_out,
              .depth = p.taps() * p.c_in,
              .count = p.output_count()};
    case ConvPass::backward_data: {
      const auto [sd, sh, sw] = p.stride;
      return {.rows = p.n * ceil_div(p.d, sd) * ceil_div(p.h, sh) * ceil_div(p.w, sw),
              .columns = p.c_in,
              .depth =
                  ceil_div(p.kernel[0], sd) * ceil_div(p.kernel[1], sh) * ceil_div(p.kernel[2], sw) * p.c_out,
              .count = p.input_count(),
              .pieces = sd * sh * sw};
    }
    case ConvPass::backward_weight:
      break;
  }
  return {
      .rows = p.taps() * p.c_in, .columns = p.c_out, .depth = output_voxels(p), .count = p.weight_count()};
}

Epilogue voxel_rows(float* out, int64_t channels, const float* bias) {
  return {.out = out,
          .row_stride = channels,
          .column_stride = 1,
          .bias = bias,
          .pre_activation = nullptr,
          .activation = Activation::none,
          .mode = GradMode::overwrite};
}

}  // namespace

size_t conv3d_workspace_bytes(Context&, const Conv3dParams& params, ConvPass pass) {
  const size_t product = product_size(params, pass).workspace_bytes();
  return pass == ConvPass::backward_weight
             ? std::max(product, column_sum_bytes(output_voxels(params), params.c_out))
             : product;
}

void conv3d_forward(Context& context, const Conv3dParams& params, ConstData x_, ConstData weight_,
                    ConstData bias, Data y, Workspace workspace) {
  check_size(params, "conv3d_forward");
  const auto* x = x_.as<float>("conv3d_forward: x");
  const auto* weight = weight_.as<float>("conv3d_forward: weight");
  const int64_t depth = params.taps() * params.c_in;
  launch_product(
      context, product_size(params, ConvPass::forward),
      GatheredVoxels<false>{.source = x,
                            .g = geometry(params, false),
                            .aligned = aligned16(x, params.c_in),
                            .rows = 0,
                            .depth = 0,
                            .region = {},
                            .taps = nullptr},
      MatrixByDepth{weight, depth, params.c_out, static_cast<int>(depth), aligned16(weight, depth)},
      voxel_rows(y.as<float>("conv3d_forward: y"), params.c_out, bias.as<float>("conv3d_forward: bias")),
      static_cast<float*>(workspace.data));
}

void conv3d_adjoint(Context& context, const Conv3dParams& params, ConstData dy_, ConstData weight_,
                    ConstData bias, Data dx, Workspace workspace) {
  check_size(params, "conv3d_backward_data");
  const auto* dy = dy_.as<float>("conv3d_backward_data: dy");
  const auto* weight = weight_.as<float>("conv3d_backward_data: weight");
  const Geometry g = geometry(params, true);
  launch_product(context, product_size(params, ConvPass::backward_data),
                 GatheredVoxels<true>{.source = dy,
                                      .g = g,
                                      .aligned = aligned16(dy, params.c_out),
                                      .rows = 0,
                                      .depth = 0,
                                      .region = {},
                                      .taps = nullptr},
                 AdjointWeight{.weight = weight,
                               .g = g,
                               .aligned = aligned16(weight, params.c_in),
                               .rows = params.c_in,
                               .depth = 0,
                               .taps = nullptr},
                 voxel_rows(dx.as<float>("conv3d_backward_data: dx"), params.c_in,
                            bias.as<float>("conv3d_backward_data: bias")),
                 static_cast<float*>(workspace.data));
}

void conv3d_backward_weight(Context& context, const Conv3dParams& params, ConstData x_, ConstData dy_,
                            Data dweight, Data dbias_, GradMode mode, Workspace workspace) {
  check_size(params, "conv3d_backward_weight");
  const auto* x = x_.as<float>("conv3d_backward_weight: x");
  const auto* dy = dy_.as<float>("conv3d_backward_weight: dy");
  const int64_t rows = params.taps() * params.c_in;
  const int depth = static_cast<int>(output_voxels(params));
  launch_product(context, product_size(params, ConvPass::backward_weight),
                 GatheredTaps{.source = x,
                              .g = geometry(params, false),
                              .aligned = aligned16(x, params.c_in),
                              .rows = rows,
                              .depth = depth},
                 MatrixByRow{dy, params.c_out, params.c_out, depth, aligned16(dy, params.c_out)},
                 Epilogue{.out = dweight.as<float>("conv3d_backward_weight: dweight"),
                          .row_stride = 1,
                          .column_stride = rows,
                          .bias = nullptr,
                          .pre_activation = nullptr,
                          .activation = Activation::none,
                          .mode = mode},
                 static_cast<float*>(workspace.data));
  if (auto* dbias = dbias_.as<float>("conv3d_backward_weight: dbias")) {
    add_up_columns(context, output_voxels(params), params.c_out, dy, dbias, mode,
                   static_cast<float*>(workspace.data));
  }
}

size_t column_sum_workspace_bytes(Context&, int64_t rows, int64_t columns) {
  return column_sum_bytes(rows, columns);
}

void column_sum(Context& context, int64_t rows, int64_t columns, ConstData x, Data sums, GradMode mode,
                Workspace workspace) {
  add_up_columns(context, rows, columns, x.as<float>("column_sum: x"), sums.as<float>("column_sum: sums"),
                 mode, static_cast<float*>(workspace.data));
}

}  // namespace vesal::kernels::VESAL_BACKEND
