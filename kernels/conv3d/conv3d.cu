// conv3d on CUDA: implicit GEMM in float32 on gemm_device.hpp, one product for each group. The matrix of
// gathered voxels is never stored; a slice of it goes straight from x (or dy), widened from what they are
// stored as, into shared memory. Few channels take other ways (conv3d_depthwise_device.hpp,
// conv3d_thin_groups.hpp).
//
//   forward          rows: output voxels, columns: outputs, depth: taps * inputs of the group
//   backward data    rows: input voxels, columns: inputs, depth: taps * outputs; a product for each residue
//                    of the voxel modulo the stride, because only some taps meet a voxel
//   backward weight  rows: taps * inputs (of dW^T), columns: outputs, depth: output voxels, which is split
//                    into partial sums
//
// Least work: 2 voxels_out taps c_in c_out operations and 4 (voxels_in c_in + voxels_out c_out) bytes, half
// of them in bf16 and f16. From 8 channels up a 3x3x3 convolution is limited by arithmetic, here by the
// float32 units (no tensor cores), and in this form by feeding them: each of the taps reads its voxels from
// the second-level cache again, and the weight gradient pays three integer divisions for every four elements
// that it gathers.
#include <algorithm>
#include <numeric>

#include "kernels/conv3d/conv3d.hpp"
#include "kernels/conv3d/conv3d_depthwise_device.hpp"
#include "kernels/conv3d/conv3d_geometry.hpp"
#include "kernels/conv3d/conv3d_internal.hpp"
#include "kernels/conv3d/conv3d_thin_groups.hpp"
#include "kernels/linear/gemm_device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kMostTaps = 343;

// Which voxels of the target one product covers along an axis, and which taps they need.
struct Axis {
  int first, step, count;         // target voxels first + step * q, q < count
  int base_first, base_step;      // tap j of target voxel q reads source voxel base_first + base_step * q +
  int taps, tap_step;             // tap_step * j
  int weight_first, weight_step;  // tap j is the kernel's tap weight_first + weight_step * j
};

template <bool kBackward>
VESAL_DEVICE Axis make_axis(int residue, int target, int kernel, int stride, int padding, int dilation,
                            int period) {
  if (!kBackward) {
    return {0, 1, target, -padding, stride, kernel, dilation, 0, 1};
  }
  // Source voxel o and tap a meet target voxel v where o * stride - padding + a * dilation = v: for voxels
  // with v + padding = residue (mod stride) every period-th tap from the first that fits, or none.
  int tap = 0;
  while (tap < kernel && tap * dilation % stride != residue) {
    ++tap;
  }
  const int first = ((residue - padding) % stride + stride) % stride;
  return {first,
          stride,
          first < target ? (target - 1 - first) / stride + 1 : 0,
          (first + padding - tap * dilation) / stride,
          1,
          tap < kernel ? (kernel - 1 - tap) / period + 1 : 0,
          -(dilation * period / stride),
          tap,
          period};
}

struct Region {
  Axis d, h, w;

  VESAL_DEVICE int taps() const { return d.taps * h.taps * w.taps; }
};

template <bool kBackward>
VESAL_DEVICE Region make_region(const Geometry& g, int piece) {
  const Triple s = g.stride;
  return {
      make_axis<kBackward>(piece / (s.h * s.w), g.target.d, g.kernel.d, s.d, g.padding.d, g.dilation.d,
                           g.period.d),
      make_axis<kBackward>(piece / s.w % s.h, g.target.h, g.kernel.h, s.h, g.padding.h, g.dilation.h,
                           g.period.h),
      make_axis<kBackward>(piece % s.w, g.target.w, g.kernel.w, s.w, g.padding.w, g.dilation.w, g.period.w)};
}

// Operand A of forward and backward data: row = target voxel, k = (tap, source channel).
template <class T, bool kBackward>
struct GatheredVoxels {
  Input<T> source;
  Geometry g;
  bool aligned;
  int64_t rows;
  int depth;
  Region region;
  const int4* taps;  // in shared memory: what a tap adds to the coordinates in the source

  template <int kRows, int kThreads>
  using Loader = LoaderByDepth<kRows, kThreads, GatheredVoxels>;

  struct Line {
    Input<T> p;   // the volume
    int d, h, w;  // where tap 0 reads
  };

  VESAL_DEVICE void begin_block(int piece) {
    VESAL_SHARED(int4, table, [kMostTaps]);
    region = make_region<kBackward>(g, piece % g.residues);
    source = source + int64_t{piece / g.residues} * g.channels;
    rows = int64_t{g.n} * region.d.count * region.h.count * region.w.count;
    depth = region.taps() * g.channels;
    for (int t = static_cast<int>(threadIdx.x); t < region.taps(); t += static_cast<int>(blockDim.x)) {
      table[t] = make_int4(region.d.tap_step * (t / (region.h.taps * region.w.taps)),
                           region.h.tap_step * (t / region.w.taps % region.h.taps),
                           region.w.tap_step * (t % region.w.taps), 0);
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
    return {source + int64_t{n} * g.source.d * g.source.h * g.source.w * g.pitch,
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
  VESAL_DEVICE Input<T> voxel(const Line& line, int tap) const {
    const int4 offset = taps[tap];
    const int d = line.d + offset.x;
    const int h = line.h + offset.y;
    const int w = line.w + offset.z;
    const bool inside = static_cast<unsigned>(d) < static_cast<unsigned>(g.source.d) &&
                        static_cast<unsigned>(h) < static_cast<unsigned>(g.source.h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(g.source.w);
    return inside ? line.p + ((int64_t{d} * g.source.h + h) * g.source.w + w) * g.pitch : Input<T>{};
  }

  VESAL_DEVICE float4 load(const Line& line, int k) const {
    if (k >= depth) {
      return zero4();
    }
    int tap = k / g.channels;
    int channel = k - tap * g.channels;
    if (aligned) {
      const Input<T> p = voxel(line, tap);
      return p ? load4(p + channel) : zero4();
    }
    float values[4];
    Input<T> p = voxel(line, tap);
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      values[j] = p ? p[channel] : 0.0f;
      if (++channel == g.channels) {
        channel = 0;
        ++tap;
        p = k + j + 1 < depth ? voxel(line, tap) : Input<T>{};
      }
    }
    return make_float4(values[0], values[1], values[2], values[3]);
  }
};

// Operand B of backward data: column = input channel of the group, k = (tap of the region, output channel of
// the group).
template <class T>
struct AdjointWeight {
  Input<T> weight;
  Geometry g;
  bool aligned;
  int64_t rows;  // input channels of a group
  int depth;
  const int* taps;  // in shared memory: the kernel's tap for each of the region's

  template <int kRows, int kThreads>
  using Loader = LoaderByRow<kRows, kThreads, AdjointWeight>;

  struct Line {
    Input<T> p;
    int count;
  };

  VESAL_DEVICE void begin_block(int piece) {
    VESAL_SHARED(int, table, [kMostTaps]);
    const Region region = make_region<true>(g, piece % g.residues);
    weight = weight + int64_t{piece / g.residues} * g.channels * g.kernel.product() * rows;
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
template <class T>
struct GatheredTaps {
  Input<T> source;
  Geometry g;
  bool aligned;
  int64_t rows;  // taps * channels
  int depth;     // target voxels of the batch

  template <int kRows, int kThreads>
  using Loader = LoaderByRow<kRows, kThreads, GatheredTaps>;

  struct Line {
    int taps[4];  // of four consecutive rows: steps d | h << 10 | w << 20, or -1 beyond the end
    int channels[4];
  };

  VESAL_DEVICE void begin_block(int piece) { source = source + int64_t{piece} * g.channels; }
  VESAL_DEVICE int64_t target_row(int64_t row) const { return row; }

  VESAL_DEVICE Line line(int64_t row) const {
    Line line;
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int r = static_cast<int>(row) + j;
      const int tap = r / g.channels;
      line.channels[j] = r - tap * g.channels;
      line.taps[j] = r < rows ? g.dilation.d * (tap / (g.kernel.h * g.kernel.w)) |
                                    g.dilation.h * (tap / g.kernel.w % g.kernel.h) << 10 |
                                    g.dilation.w * (tap % g.kernel.w) << 20
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
    const Input<T> volume = source + int64_t{q / g.target.d} * g.source.d * g.source.h * g.source.w * g.pitch;
    if (aligned) {
      const Input<T> p = voxel(volume, line.taps[0], d, h, w);
      return p ? load4(p + line.channels[0]) : zero4();
    }
    float values[4];
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      const Input<T> p = voxel(volume, line.taps[j], d, h, w);
      values[j] = p ? p[line.channels[j]] : 0.0f;
    }
    return make_float4(values[0], values[1], values[2], values[3]);
  }

  VESAL_DEVICE Input<T> voxel(const Input<T>& volume, int tap, int d, int h, int w) const {
    d += tap & 0x3ff;
    h += tap >> 10 & 0x3ff;
    w += tap >> 20 & 0x3ff;
    const bool inside = tap >= 0 && static_cast<unsigned>(d) < static_cast<unsigned>(g.source.d) &&
                        static_cast<unsigned>(h) < static_cast<unsigned>(g.source.h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(g.source.w);
    return inside ? volume + ((int64_t{d} * g.source.h + h) * g.source.w + w) * g.pitch : Input<T>{};
  }
};

// ---- Host side ----

Triple triple(const std::array<int, 3>& values) { return {values[0], values[1], values[2]}; }

std::array<int, 3> period(const Conv3dParams& p) {
  std::array<int, 3> periods{};
  for (size_t axis = 0; axis < 3; ++axis) {
    periods[axis] = p.stride[axis] / std::gcd(p.stride[axis], p.dilation[axis]);
  }
  return periods;
}

int residues(const Conv3dParams& p) { return p.stride[0] * p.stride[1] * p.stride[2]; }

Geometry geometry(const Conv3dParams& p, bool backward) {
  const Triple x{static_cast<int>(p.d), static_cast<int>(p.h), static_cast<int>(p.w)};
  const Triple y{static_cast<int>(p.out_d()), static_cast<int>(p.out_h()), static_cast<int>(p.out_w())};
  return {.source = backward ? y : x,
          .target = backward ? x : y,
          .kernel = triple(p.kernel),
          .stride = triple(p.stride),
          .padding = triple(p.padding),
          .dilation = triple(p.dilation),
          .period = triple(period(p)),
          .n = static_cast<int>(p.n),
          .channels = static_cast<int>(backward ? p.group_out() : p.group_in()),
          .pitch = static_cast<int>(backward ? p.c_out : p.c_in),
          .residues = backward ? residues(p) : 1};
}

// The data gradient of stride 1 as a forward pass whose taps are mirrored.
bool is_mirrored_forward(const Conv3dParams& p) { return p.stride == std::array{1, 1, 1}; }

Geometry mirrored_geometry(const Conv3dParams& p) {
  Geometry g = geometry(p, true);
  g.padding = {g.dilation.d * (g.kernel.d - 1) - g.padding.d, g.dilation.h * (g.kernel.h - 1) - g.padding.h,
               g.dilation.w * (g.kernel.w - 1) - g.padding.w};
  return g;
}

int64_t input_voxels(const Conv3dParams& p) { return p.n * p.d * p.h * p.w; }
int64_t output_voxels(const Conv3dParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w(); }

// Below this a matrix product fills less than a quarter of its tile's columns.
bool has_thin_groups(const Conv3dParams& p) {
  return p.groups > 1 && std::min(p.group_in(), p.group_out()) < 8;
}

bool is_depthwise(const Conv3dParams& p) { return p.groups > 1 && p.groups == p.c_in && p.groups == p.c_out; }

// Whether a pass goes without tiles: the product would leave most of its tile empty, or is so shallow that
// loading it takes longer than computing it. Volumes of one group that are small for their depth stay with
// the product, which splits it.
bool is_thin(const Conv3dParams& p, ConvPass pass) {
  if (p.groups > 1 || pass == ConvPass::backward_weight) {
    return has_thin_groups(p);
  }
  constexpr int64_t kFewestVoxels = 8192;
  if (pass == ConvPass::backward_data && !is_mirrored_forward(p)) {
    return p.c_in <= 4 && p.c_out <= 64 && input_voxels(p) >= kFewestVoxels;
  }
  const bool forward = pass == ConvPass::forward;
  const int64_t targets = forward ? output_voxels(p) : input_voxels(p);
  const int64_t depth = p.taps() * (forward ? p.c_in : p.c_out);
  return std::min(p.c_in, p.c_out) <= 5 && std::max(p.c_in, p.c_out) <= 24 &&
         targets >= std::max(kFewestVoxels, 64 * depth);
}

// Of is_thin.
size_t thin_workspace_bytes(const Conv3dParams& p, ConvPass pass) {
  if (pass == ConvPass::backward_weight) {
    const Geometry g = geometry(p, false);
    return is_depthwise(p) ? depthwise_partials_bytes(g) : thin_partials_bytes(g, p.group_out());
  }
  const bool backward = pass == ConvPass::backward_data;
  const bool strided = backward && !is_mirrored_forward(p);
  if (is_depthwise(p) && !strided) {
    return depthwise_packed_bytes(p.taps(), p.c_in);
  }
  return thin_packed_bytes(
      geometry(p, backward),
      thin_columns(p.groups, backward ? p.group_in() : p.group_out(), strided ? 4 : kMostOutputs));
}

ProductSize product_size(const Conv3dParams& p, ConvPass pass) {
  switch (pass) {
    case ConvPass::forward:
      return {.rows = output_voxels(p),
              .columns = p.group_out(),
              .depth = p.taps() * p.group_in(),
              .count = p.output_count(),
              .pieces = static_cast<int>(p.groups)};
    case ConvPass::backward_data: {
      const auto [sd, sh, sw] = p.stride;
      const auto [pd, ph, pw] = period(p);
      return {.rows = p.n * ceil_div(p.d, sd) * ceil_div(p.h, sh) * ceil_div(p.w, sw),
              .columns = p.group_in(),
              .depth = ceil_div(p.kernel[0], pd) * ceil_div(p.kernel[1], ph) * ceil_div(p.kernel[2], pw) *
                       p.group_out(),
              .count = p.input_count(),
              .pieces = static_cast<int>(p.groups) * residues(p)};
    }
    case ConvPass::backward_weight:
      break;
  }
  return {.rows = p.taps() * p.group_in(),
          .columns = p.group_out(),
          .depth = output_voxels(p),
          .count = p.weight_count(),
          .pieces = static_cast<int>(p.groups)};
}

// Rows and depths are counted in 32 bits, elements in 64.
void check_size(const Conv3dParams& p, ConvPass pass, const char* op) {
  constexpr int64_t kLimit = 0x7fffffff - 2 * kTileM;
  check<ShapeError>(input_voxels(p) <= kLimit && output_voxels(p) <= kLimit, op, ": ",
                    std::max(input_voxels(p), output_voxels(p)), " voxels pass the kernel's limit of ",
                    kLimit);
  check<ShapeError>(
      p.c_in <= 65535 * 32 && p.c_out <= 65535 * 32 && p.taps() * std::max(p.c_in, p.c_out) <= kLimit, op,
      ": ", p.c_in, " -> ", p.c_out, " channels pass the kernel's limit");
  for (size_t axis = 0; axis < 3; ++axis) {
    check<ShapeError>(p.stride[axis] <= 32 && p.padding[axis] <= 1 << 20 && p.dilation[axis] <= 128, op,
                      ": stride, padding or dilation passes the kernel's limit");
  }
  if (is_thin(p, pass)) {
    check<ShapeError>(p.c_out * p.group_in() <= 65535 * 16, op, ": ", p.c_out, " channels that read ",
                      p.group_in(), " each pass the kernel's limit");
  } else {
    const ProductSize size = product_size(p, pass);
    check<ShapeError>(int64_t{size.pieces} * size.splits() <= 65535, op, ": ", p.groups,
                      " groups pass the kernel's limit at this stride");
  }
}

// C of a group: a slice of `channels` of the `pitch` that a voxel has.
template <class T>
Epilogue<T> voxel_rows(T* out, int64_t pitch, const float* bias, int64_t channels, int pieces_of_a_group) {
  return {.out = out,
          .row_stride = pitch,
          .column_stride = 1,
          .bias = bias,
          .pre_activation = {},
          .activation = Activation::none,
          .mode = GradMode::overwrite,
          .piece_stride = {.outer = channels, .inner = 0, .inner_count = pieces_of_a_group}};
}

// Whether four consecutive channels of a group can be read at once.
template <class T>
bool aligned_group(const T* pointer, int64_t pitch, int64_t channels) {
  return aligned_quads(pointer, pitch) && channels % 4 == 0;
}

}  // namespace

size_t conv3d_workspace_bytes(Context&, const Conv3dParams& params, ConvPass pass) {
  const size_t bytes = is_thin(params, pass) ? thin_workspace_bytes(params, pass)
                                             : product_size(params, pass).workspace_bytes();
  return pass == ConvPass::backward_weight
             ? std::max(bytes, column_sum_bytes(output_voxels(params), params.c_out))
             : bytes;
}

void conv3d_forward(Context& context, const Conv3dParams& params, ConstData x_, ConstData weight_,
                    ConstData bias_, Data y_, Workspace workspace) {
  check_size(params, ConvPass::forward, "conv3d_forward");
  const auto* bias = bias_.as<float>("conv3d_forward: bias");
  const Geometry g = geometry(params, false);
  with_storage("conv3d_forward", {x_, weight_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("conv3d_forward: x");
    const T* weight = weight_.as<T>("conv3d_forward: weight");
    T* y = y_.as<T>("conv3d_forward: y");
    if (is_depthwise(params)) {
      launch_depthwise<T>(context, g, x, weight, false, bias, y, static_cast<float*>(workspace.data));
      return;
    }
    if (is_thin(params, ConvPass::forward)) {
      launch_thin<T>(context, g, params.group_out(), x, weight, false, bias, y,
                     static_cast<float*>(workspace.data));
      return;
    }
    const int64_t depth = params.taps() * params.group_in();
    launch_product(context, product_size(params, ConvPass::forward),
                   GatheredVoxels<T, false>{.source = Input<T>{x},
                                            .g = g,
                                            .aligned = aligned_group(x, params.c_in, params.group_in()),
                                            .rows = 0,
                                            .depth = 0,
                                            .region = {},
                                            .taps = nullptr},
                   MatrixByDepth<T>{.p = Input<T>{weight},
                                    .stride = depth,
                                    .rows = params.group_out(),
                                    .depth = static_cast<int>(depth),
                                    .aligned = aligned_quads(weight, depth),
                                    .piece_stride = {.outer = params.group_out() * depth}},
                   voxel_rows(y, params.c_out, bias, params.group_out(), 1),
                   static_cast<float*>(workspace.data));
  });
}

void conv3d_adjoint(Context& context, const Conv3dParams& params, ConstData dy_, ConstData weight_,
                    ConstData bias_, Data dx_, Workspace workspace) {
  check_size(params, ConvPass::backward_data, "conv3d_backward_data");
  const auto* bias = bias_.as<float>("conv3d_backward_data: bias");
  const Geometry g = geometry(params, true);
  with_storage("conv3d_backward_data", {dy_, weight_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("conv3d_backward_data: dy");
    const T* weight = weight_.as<T>("conv3d_backward_data: weight");
    T* dx = dx_.as<T>("conv3d_backward_data: dx");
    if (is_depthwise(params) && is_mirrored_forward(params)) {
      launch_depthwise<T>(context, mirrored_geometry(params), dy, weight, true, bias, dx,
                          static_cast<float*>(workspace.data));
      return;
    }
    const bool thin = is_thin(params, ConvPass::backward_data);
    if (thin && is_mirrored_forward(params)) {
      launch_thin<T>(context, mirrored_geometry(params), params.group_in(), dy, weight, true, bias, dx,
                     static_cast<float*>(workspace.data));
      return;
    }
    if (thin) {
      launch_thin_strided<T>(context, g, params.group_in(), dy, weight, bias, dx,
                             static_cast<float*>(workspace.data));
      return;
    }
    launch_product(context, product_size(params, ConvPass::backward_data),
                   GatheredVoxels<T, true>{.source = Input<T>{dy},
                                           .g = g,
                                           .aligned = aligned_group(dy, params.c_out, params.group_out()),
                                           .rows = 0,
                                           .depth = 0,
                                           .region = {},
                                           .taps = nullptr},
                   AdjointWeight<T>{.weight = Input<T>{weight},
                                    .g = g,
                                    .aligned = aligned_quads(weight, params.group_in()),
                                    .rows = params.group_in(),
                                    .depth = 0,
                                    .taps = nullptr},
                   voxel_rows(dx, params.c_in, bias, params.group_in(), g.residues),
                   static_cast<float*>(workspace.data));
  });
}

void conv3d_backward_weight(Context& context, const Conv3dParams& params, ConstData x_, ConstData dy_,
                            Data dweight_, Data dbias_, GradMode mode, Workspace workspace) {
  check_size(params, ConvPass::backward_weight, "conv3d_backward_weight");
  auto* dweight = dweight_.as<float>("conv3d_backward_weight: dweight");
  auto* dbias = dbias_.as<float>("conv3d_backward_weight: dbias");
  auto* scratch = static_cast<float*>(workspace.data);
  const int64_t voxels = output_voxels(params);
  const Geometry g = geometry(params, false);
  with_storage("conv3d_backward_weight", {x_, dy_}, [&]<class T>(T) {
    const T* x = x_.as<T>("conv3d_backward_weight: x");
    const T* dy = dy_.as<T>("conv3d_backward_weight: dy");
    if (is_depthwise(params)) {
      launch_depthwise_weight<T>(context, g, x, dy, dweight, mode, scratch);
    } else if (has_thin_groups(params)) {
      launch_thin_weight<T>(context, g, params.group_out(), x, dy, dweight, mode, scratch);
    } else {
      const int64_t rows = params.taps() * params.group_in();
      launch_product(context, product_size(params, ConvPass::backward_weight),
                     GatheredTaps<T>{.source = Input<T>{x},
                                     .g = g,
                                     .aligned = aligned_group(x, params.c_in, params.group_in()),
                                     .rows = rows,
                                     .depth = static_cast<int>(voxels)},
                     MatrixByRow<T>{.p = Input<T>{dy},
                                    .stride = params.c_out,
                                    .rows = params.group_out(),
                                    .depth = static_cast<int>(voxels),
                                    .aligned = aligned_group(dy, params.c_out, params.group_out()),
                                    .piece_stride = {.outer = params.group_out()}},
                     Epilogue<T>{.out = dweight,
                                 .row_stride = 1,
                                 .column_stride = rows,
                                 .bias = nullptr,
                                 .pre_activation = {},
                                 .activation = Activation::none,
                                 .mode = mode,
                                 .piece_stride = {.outer = params.group_out() * rows}},
                     scratch);
    }
    if (dbias != nullptr) {
      add_up_columns<T>(context, voxels, params.c_out, Input<T>{dy}, dbias, mode, scratch);
    }
  });
}

size_t column_sum_workspace_bytes(Context&, int64_t rows, int64_t columns) {
  return column_sum_bytes(rows, columns);
}

void column_sum(Context& context, int64_t rows, int64_t columns, ConstData x, Data sums, GradMode mode,
                Workspace workspace) {
  with_storage("column_sum", {x}, [&]<class T>(T) {
    add_up_columns<T>(context, rows, columns, input<T>(x, "column_sum: x"),
                      sums.as<float>("column_sum: sums"), mode, static_cast<float*>(workspace.data));
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
