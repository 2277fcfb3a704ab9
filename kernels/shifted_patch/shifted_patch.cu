// Shifted patch tokenization on a GPU, float32 arithmetic, in the portable dialect.
//
// What it computes: shifted_patch.hpp. For T tokens, G present groups, F features of C = channels, E outputs:
//   forward   at least x once, the weight once and y once; 2 T G F E flops
//   backward  2 T G F E flops for the parameters, 2 T G F E more for dx
// What limits it: E / 2 multiply-adds per feature read through the cache (E = 24 to 192: the float32 units),
// as long as finding a feature costs less than multiplying it: where a tap (voxel of the patch and copy)
// reads is in a table, and where channels come in fours they are read in fours.
// How: the shifted copies are never stored. Mean and 1 / deviation of each token come first, then products in
// the tiles of gemm_device.hpp gather and normalise features as they fill them, while other blocks multiply:
// to fetch a slice ahead, a thread would need more registers than it has. A block handles one sample, so that
// what is absent is skipped. A product with few tiles is split over the features, that for the
// parameters, D^T X (see shifted_patch_cpu.cpp for the identities), over the tokens; parts are added in
// order. dx: the gradients of the features, dy W, go to the workspace, for a slice of the tokens that fits in
// the L2 cache; the LayerNorm's two sums of each token are taken from there, and then every voxel collects
// what its copies have in the slice, in the order of the copies. Only where a sample takes several slices are
// their shares added up in memory, in float32.
#include <algorithm>
#include <type_traits>

#include "kernels/context/block_reduce.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/quads.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/linear/gemm_device.hpp"
#include "kernels/shifted_patch/shifted_patch.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(shifted_patch_workspace_bytes)
VESAL_DECLARE_BACKENDS(shifted_patch_forward)
VESAL_DECLARE_BACKENDS(shifted_patch_backward)

namespace VESAL_BACKEND {
namespace {

constexpr int kBlock = 128;
constexpr int64_t kFewFeatures = 128;  // up to here a warp is too many for a token
constexpr int64_t kBlocksWanted = 512;
constexpr int64_t kLeastDepth = 128;  // of one part of a product
constexpr int64_t kMaxChunks = 256;
constexpr int64_t kTokensPerSum = 256;
constexpr int64_t kMaxSums = 128;
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;
// Gradients of features that are held at once. The emulator's are few, so that its small tests take several
// slices.
#ifdef __CUDACC__
constexpr int64_t kSliceFloats = int64_t{8} << 20;
#else
constexpr int64_t kSliceFloats = 4096;
#endif
constexpr int64_t kSegment = int64_t{1} << 30;  // tokens that an int counts

// Plain data, passed to kernels by value.
struct Grid {
  int64_t samples;
  int64_t tokens;  // of one sample
  int64_t plane;   // tokens of one depth
  int groups, channels, outs, features, copies;
  int d, h, w;
  int out_w;
  int patch_d, patch_h, patch_w;
  bool padded;  // an extent is no multiple of the patch
  float eps;
};

Grid make_grid(const ShiftedPatchParams& p) {
  return {p.n,
          p.tokens() / p.n,
          p.out_h() * p.out_w(),
          static_cast<int>(p.groups),
          static_cast<int>(p.channels),
          static_cast<int>(p.out),
          static_cast<int>(p.features()),
          p.copies(),
          static_cast<int>(p.d),
          static_cast<int>(p.h),
          static_cast<int>(p.w),
          static_cast<int>(p.out_w()),
          p.patch[0],
          p.patch[1],
          p.patch[2],
          p.d % p.patch[0] != 0 || p.h % p.patch[1] != 0 || p.w % p.patch[2] != 0,
          p.eps};
}

// The directions of the copies: two bits a copy and axis, holding direction + 1, so that a kernel needs no
// indexed array.
struct Directions {
  int shift_d, shift_h, shift_w;
  unsigned z, y, x;
};

Directions make_directions(const ShiftedPatchParams& p) {
  Directions directions{p.shift[0], p.shift[1], p.shift[2], 0, 0, 0};
  for (int copy = 0; copy < p.copies(); ++copy) {
    const std::array<int, 3> direction = shift_direction(p.shifts, copy);
    directions.z |= static_cast<unsigned>(direction[0] + 1) << (2 * copy);
    directions.y |= static_cast<unsigned>(direction[1] + 1) << (2 * copy);
    directions.x |= static_cast<unsigned>(direction[2] + 1) << (2 * copy);
  }
  return directions;
}

// direction + 1 of a copy.
VESAL_DEVICE int direction_code(unsigned packed, int copy) {
  return static_cast<int>(packed >> (2 * copy) & 3u);
}

struct Division {
  int64_t quotient, remainder;
};

// In 32 bits where they hold it: 64 take several times as long.
VESAL_DEVICE Division divide(int64_t value, int64_t divisor) {
  if (value <= 0x7fffffff && divisor <= 0x7fffffff) {
    const auto v = static_cast<unsigned>(value);
    const auto d = static_cast<unsigned>(divisor);
    const unsigned quotient = v / d;
    return {quotient, v - quotient * d};
  }
  const int64_t quotient = value / divisor;
  return {quotient, value - quotient * divisor};
}

// A token's first voxel.
struct Place {
  int z, y, x;
};

VESAL_DEVICE Place place_of(const Grid& g, int64_t token) {
  const Division plane = divide(token, g.plane);
  const Division row = divide(plane.remainder, g.out_w);
  return {static_cast<int>(plane.quotient) * g.patch_d, static_cast<int>(row.quotient) * g.patch_h,
          static_cast<int>(row.remainder) * g.patch_w};
}

// One voxel of the patch in one copy: where it is read, from the token's first voxel, and where it lies in
// the patch, in three bytes.
struct alignas(16) Tap {
  int z, y, x;
  unsigned offset;
};

int64_t tap_count(const ShiftedPatchParams& p) {
  return int64_t{p.copies()} * p.patch[0] * p.patch[1] * p.patch[2];
}

VESAL_KERNEL void taps_kernel(Grid g, Directions directions, int count, Tap* VESAL_RESTRICT taps) {
  const int i = static_cast<int>(blockIdx.x) * kBlock + static_cast<int>(threadIdx.x);
  if (i >= count) {
    return;
  }
  const int copy = i % g.copies;
  const int offset = i / g.copies;
  const int z = offset / (g.patch_h * g.patch_w);
  const int y = offset / g.patch_w % g.patch_h;
  const int x = offset % g.patch_w;
  taps[i] = {z + directions.shift_d * (direction_code(directions.z, copy) - 1),
             y + directions.shift_h * (direction_code(directions.y, copy) - 1),
             x + directions.shift_w * (direction_code(directions.x, copy) - 1),
             static_cast<unsigned>(z | y << 8 | x << 16)};
}

// The number of the voxel that a tap of a token reads, -1 where the feature is zero by padding.
VESAL_DEVICE int64_t voxel_of(const Grid& g, const Place& place, const Tap& tap) {
  const int z = place.z + tap.z;
  const int y = place.y + tap.y;
  const int x = place.x + tap.x;
  bool inside = static_cast<unsigned>(z) < static_cast<unsigned>(g.d) &&
                static_cast<unsigned>(y) < static_cast<unsigned>(g.h) &&
                static_cast<unsigned>(x) < static_cast<unsigned>(g.w);
  if (g.padded) {
    inside = inside && place.z + static_cast<int>(tap.offset & 255u) < g.d &&
             place.y + static_cast<int>(tap.offset >> 8 & 255u) < g.h &&
             place.x + static_cast<int>(tap.offset >> 16) < g.w;
  }
  return inside ? (int64_t{z} * g.h + y) * g.w + x : -1;
}

// Where features are gathered from. `quads`: the channels come in fours that can be read at once.
template <class T>
struct Gather {
  Grid g;
  const Tap* taps;
  Input<T> x;
  bool quads;

  VESAL_DEVICE Input<T> values(int64_t sample, int group) const {
    return x + (sample * g.d * g.h * g.w * g.groups + group) * g.channels;
  }
  // Four features of a token from `feature` on, a multiple of four; zeros beyond the last. `source` is from
  // values().
  VESAL_DEVICE float4 load(const Input<T>& source, const Place& place, int feature) const {
    const int64_t stride = int64_t{g.groups} * g.channels;
    int tap = feature / g.channels;
    int channel = feature - tap * g.channels;
    if (quads) {
      const int64_t voxel = voxel_of(g, place, taps[tap]);
      return voxel < 0 ? zero4() : load4(source + (voxel * stride + channel));
    }
    float value[4];
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      value[j] = 0.0f;
      if (feature + j < g.features) {
        const int64_t voxel = voxel_of(g, place, taps[tap]);
        if (voxel >= 0) {
          value[j] = source[voxel * stride + channel];
        }
        if (++channel == g.channels) {
          channel = 0;
          ++tap;
        }
      }
    }
    return make_float4(value[0], value[1], value[2], value[3]);
  }
};

VESAL_DEVICE float4 normalised(const float4& value, float mean, float rstd) {
  return make_float4((value.x - mean) * rstd, (value.y - mean) * rstd, (value.z - mean) * rstd,
                     (value.w - mean) * rstd);
}

VESAL_DEVICE bool is_present(const Grid& g, const uint8_t* mask, int64_t sample, int group) {
  return mask == nullptr || mask[sample * g.groups + group] != 0;
}

VESAL_DEVICE float scale_of(const Grid& g, const uint8_t* mask, int64_t sample) {
  if (mask == nullptr) {
    return 1.0f;
  }
  int present = 0;
  for (int group = 0; group < g.groups; ++group) {
    present += is_present(g, mask, sample, group) ? 1 : 0;
  }
  return present == 0 ? 0.0f : static_cast<float>(g.groups) / static_cast<float>(present);
}

// `lanes` neighbouring lanes per (token of all samples, group): mean and rstd [groups, samples x tokens].
template <class T>
VESAL_KERNEL void statistics_kernel(Gather<T> gather, int lanes, const uint8_t* VESAL_RESTRICT mask,
                                    float* VESAL_RESTRICT mean, float* VESAL_RESTRICT rstd) {
  const int64_t item =
      static_cast<int64_t>(blockIdx.x) * (kBlock / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t all_tokens = gather.g.samples * gather.g.tokens;
  const Division at = divide(item, gather.g.groups);
  const int group = static_cast<int>(at.remainder);
  const Division token = divide(at.quotient, gather.g.tokens);
  const bool active = at.quotient < all_tokens && is_present(gather.g, mask, token.quotient, group);
  const int length = active ? gather.g.features : 0;
  const Place place = place_of(gather.g, token.remainder);
  const Input<T> source = gather.values(token.quotient, group);
  const float count = static_cast<float>(gather.g.features);
  float sum = 0.0f;
  for (int f = lane * 4; f < length; f += lanes * 4) {
    const float4 value = gather.load(source, place, f);
    sum += (value.x + value.y) + (value.z + value.w);
  }
  const float average = group_sum(sum, lanes) / count;
  float squares = 0.0f;
  for (int f = lane * 4; f < length; f += lanes * 4) {
    const float4 loaded = gather.load(source, place, f);
    const float value[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float difference = f + j < length ? value[j] - average : 0.0f;
      squares = fmaf(difference, difference, squares);
    }
  }
  const float variance = group_sum(squares, lanes) / count;
  if (active && lane == 0) {
    mean[group * all_tokens + at.quotient] = average;
    rstd[group * all_tokens + at.quotient] = 1.0f / sqrtf(variance + gather.g.eps);
  }
}

// Operand A of forward: row = token of one sample, k = feature of one group, normalised and with gamma and
// beta.
template <class T>
struct NormalisedTokens {
  Gather<T> gather;
  Input<T> source;
  const float* mean;
  const float* rstd;
  const float* gamma;
  const float* beta;
  bool aligned;  // gamma and beta
  int64_t rows;

  template <int kRows, int kThreads>
  using Loader = LoaderByDepth<kRows, kThreads, NormalisedTokens>;
  struct Line {
    Place place;
    int64_t token;  // -1: none
  };

  VESAL_DEVICE Line line(int64_t row) const {
    return {place_of(gather.g, row < rows ? row : 0), row < rows ? row : -1};
  }
  VESAL_DEVICE float4 load(const Line& line, int k) const {
    const int count = gather.g.features - k;
    if (line.token < 0 || count <= 0) {
      return zero4();
    }
    const float4 value = normalised(gather.load(source, line.place, k), mean[line.token], rstd[line.token]);
    const float4 scale = load_up_to_4(gamma + k, count, aligned);
    const float4 shift = load_up_to_4(beta + k, count, aligned);
    return make_float4(fmaf(value.x, scale.x, shift.x), fmaf(value.y, scale.y, shift.y),
                       fmaf(value.z, scale.z, shift.z), fmaf(value.w, scale.w, shift.w));
  }
};

// What becomes of a sum over the present groups: y = scale (sum + biases) + missing-tokens.
struct Blend {
  const uint8_t* mask;
  const float* bias;
  const float* missing;

  // Bias of the present groups, missing-tokens of the absent ones.
  VESAL_DEVICE float2 terms(const Grid& g, int64_t sample, int o) const {
    float present = 0.0f;
    float absent = 0.0f;
    for (int group = 0; group < g.groups; ++group) {
      if (is_present(g, mask, sample, group)) {
        present += bias[int64_t{group} * g.outs + o];
      } else {
        absent += missing[int64_t{group} * g.outs + o];
      }
    }
    return make_float2(present, absent);
  }
};

// Block (token tile, output tile, sample x part of the features): y, or with several parts their sums,
// partials [splits][samples, tokens][outs].
template <int kTileN, class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kGemmThreads<kTileN>, 512 / kGemmThreads<kTileN>)
    forward_kernel(Gather<T> gather, int splits, Blend blend, const float* VESAL_RESTRICT gamma,
                   const float* VESAL_RESTRICT beta, bool affine_aligned, Input<T> weight,
                   bool weight_aligned, const float* VESAL_RESTRICT mean, const float* VESAL_RESTRICT rstd,
                   float* VESAL_RESTRICT partials, Output<T> y, bool y_aligned) {
  const int64_t sample = static_cast<int>(blockIdx.z) / splits;
  const int split = static_cast<int>(blockIdx.z) % splits;
  const int64_t first_token = int64_t{blockIdx.x} * kTileM;
  const int64_t first_out = int64_t{blockIdx.y} * kTileN;
  const int features = gather.g.features;
  const int outs = gather.g.outs;
  const int64_t tokens = gather.g.tokens;
  const int part = split_depth(features, splits);
  using Product = TileProduct<kTileN>;
  VESAL_SHARED(float4, tile_a, [kTileK * Product::kQuadsA]);
  VESAL_SHARED(float4, tile_b, [kTileK * Product::kQuadsB]);
  // Of each thread's values: the sum of each group by itself, so that sums stay short.
  VESAL_SHARED(float, totals, [kThreadM * kThreadN * kGemmThreads<kTileN>]);
  const int thread = static_cast<int>(threadIdx.x);
  const int end = min(split * part + part, features);
  Product product;
  product.clear();
  bool first = true;
  for (int group = 0; group < gather.g.groups; ++group) {
    if (!is_present(gather.g, blend.mask, sample, group)) {
      continue;
    }
    const int64_t statistics = (group * gather.g.samples + sample) * tokens;
    const int64_t affine = int64_t{group} * features;
    const NormalisedTokens<T> a{gather,
                                gather.values(sample, group),
                                mean + statistics,
                                rstd + statistics,
                                gamma + affine,
                                beta + affine,
                                affine_aligned,
                                tokens};
    const MatrixByDepth<T> b{weight + affine * outs, features, outs, features, weight_aligned};
    LoaderByDepth<kTileM, kGemmThreads<kTileN>, NormalisedTokens<T>> loader_a;
    LoaderByDepth<kTileN, kGemmThreads<kTileN>, MatrixByDepth<T>> loader_b;
    loader_a.start(a, first_token, thread);
    loader_b.start(b, first_out, thread);
    for (int k = split * part; k < end; k += kTileK) {
      loader_a.fetch(a, k, thread);
      loader_a.put(tile_a, thread);
      loader_b.fetch(b, k, thread);
      loader_b.put(tile_b, thread);
      __syncthreads();
      product.multiply(tile_a, tile_b, thread);
      __syncthreads();
    }
    if (gather.g.groups > 1) {
      VESAL_UNROLL
      for (int e = 0; e < kThreadM * kThreadN; ++e) {
        float& total = totals[e * kGemmThreads<kTileN> + thread];
        float& value = product.values[e / kThreadN][e % kThreadN];
        total = first ? value : total + value;
        value = 0.0f;
      }
      first = false;
    }
  }
  if (!first) {
    VESAL_UNROLL
    for (int e = 0; e < kThreadM * kThreadN; ++e) {
      product.values[e / kThreadN][e % kThreadN] = totals[e * kGemmThreads<kTileN> + thread];
    }
  }
  const int o = static_cast<int>(first_out) + product.column(thread, 0);
  const int count = outs - o;
  if (splits == 1) {
    const float scale = scale_of(gather.g, blend.mask, sample);
    VESAL_UNROLL
    for (int c = 0; c < kThreadN; ++c) {
      const float2 terms = c < count ? blend.terms(gather.g, sample, o + c) : make_float2(0.0f, 0.0f);
      VESAL_UNROLL
      for (int r = 0; r < kThreadM; ++r) {
        product.values[r][c] = fmaf(scale, product.values[r][c] + terms.x, terms.y);
      }
    }
  }
  VESAL_UNROLL
  for (int r = 0; r < kThreadM; ++r) {
    const int64_t token = first_token + product.row(thread, r);
    if (token < tokens) {
      const float4 value =
          make_float4(product.values[r][0], product.values[r][1], product.values[r][2], product.values[r][3]);
      const int64_t at = (sample * tokens + token) * outs + o;
      if (splits == 1) {
        store_up_to_4(y + at, value, count, y_aligned);
      } else {
        store_up_to_4(partials + (split * gather.g.samples * tokens * outs + at), value, count,
                      outs % 4 == 0);
      }
    }
  }
}

// Thread per element of y: the parts added in order.
template <class T>
VESAL_KERNEL void blend_kernel(Grid g, int splits, Blend blend, const float* VESAL_RESTRICT partials,
                               Output<T> y) {
  const int64_t i = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x;
  const int64_t count = g.samples * g.tokens * g.outs;
  if (i >= count) {
    return;
  }
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) {
    sum += partials[split * count + i];
  }
  const Division row = divide(i, g.outs);
  const int64_t sample = divide(row.quotient, g.tokens).quotient;
  const float2 terms = blend.terms(g, sample, static_cast<int>(row.remainder));
  y[i] = fmaf(scale_of(g, blend.mask, sample), sum + terms.x, terms.y);
}

// Block (output tile, chunk, sample) of 32 x 8 threads: partial sums of dy over tokens,
// [chunks][samples][outs].
template <class T>
VESAL_KERNEL void sum_dy_kernel(Grid g, Input<T> dy, float* VESAL_RESTRICT sums) {
  VESAL_SHARED(float, partial, [8][32]);
  const int64_t o = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  const int64_t sample = blockIdx.z;
  const int64_t begin = g.tokens * blockIdx.y / gridDim.y;
  const int64_t end = g.tokens * (blockIdx.y + 1) / gridDim.y;
  float sum = 0.0f;
  for (int64_t token = begin + threadIdx.y; o < g.outs && token < end; token += 8) {
    sum += dy[(sample * g.tokens + token) * g.outs + o];
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && o < g.outs) {
    float total = 0.0f;
    for (int i = 0; i < 8; ++i) {
      total += partial[i][threadIdx.x];
    }
    sums[(static_cast<int64_t>(blockIdx.y) * g.samples + sample) * g.outs + o] = total;
  }
}

// Thread per (group, output): b = column sums of the scaled dy where the group is present; dbias and
// dmissing.
VESAL_KERNEL void group_sums_kernel(Grid g, int chunks, const uint8_t* VESAL_RESTRICT mask,
                                    const float* VESAL_RESTRICT sums, float* VESAL_RESTRICT b,
                                    float* VESAL_RESTRICT dbias, float* VESAL_RESTRICT dmissing,
                                    int accumulate) {
  const int i = static_cast<int>(blockIdx.x) * kBlock + static_cast<int>(threadIdx.x);
  if (i >= g.groups * g.outs) {
    return;
  }
  float present = 0.0f;
  float absent = 0.0f;
  for (int64_t sample = 0; sample < g.samples; ++sample) {
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      sum += sums[(chunk * g.samples + sample) * g.outs + i % g.outs];
    }
    if (is_present(g, mask, sample, i / g.outs)) {
      present = fmaf(scale_of(g, mask, sample), sum, present);
    } else {
      absent += sum;
    }
  }
  b[i] = present;
  dbias[i] = accumulate != 0 ? dbias[i] + present : present;
  if (dmissing != nullptr) {
    dmissing[i] = accumulate != 0 ? dmissing[i] + absent : absent;
  }
}

// A token of a slice of the depth.
struct RunToken {
  Place place;
  float mean, rstd;
};

// Operand A of the weight's gradient: row = feature of one group, k = token of a run within one sample;
// normalised. What belongs to a row and to a token lies in shared memory, where it takes no registers.
template <class T>
struct FeaturesOfTokens {
  Gather<T> gather;
  Input<T> source;
  const Tap* taps;        // of the block's rows
  const RunToken* slice;  // tokens of the slice that is loaded
  int64_t rows;
  int depth;

  template <int kRows, int kThreads>
  using Loader = LoaderByRow<kRows, kThreads, FeaturesOfTokens>;
  struct Line {
    int row;      // within the block
    int channel;  // of the first
    int count;
  };

  VESAL_DEVICE Line line(int64_t row) const {
    return {static_cast<int>(row % kTileM), static_cast<int>(row) % gather.g.channels,
            row < rows ? static_cast<int>(min(rows - row, int64_t{4})) : 0};
  }
  VESAL_DEVICE float4 load(const Line& line, int k) const {
    if (line.count <= 0 || k >= depth) {
      return zero4();
    }
    const int64_t stride = int64_t{gather.g.groups} * gather.g.channels;
    const RunToken token = slice[k % kTileK];
    float4 loaded = zero4();
    if (gather.quads) {
      const int64_t voxel = voxel_of(gather.g, token.place, taps[line.row]);
      if (voxel >= 0) {
        loaded = load4(source + (voxel * stride + line.channel));
      }
    } else {
      float value[4];
      int channel = line.channel;
      VESAL_UNROLL
      for (int j = 0; j < 4; ++j) {
        value[j] = 0.0f;
        if (j < line.count) {
          const int64_t voxel = voxel_of(gather.g, token.place, taps[line.row + j]);
          if (voxel >= 0) {
            value[j] = source[voxel * stride + channel];
          }
          channel = channel + 1 == gather.g.channels ? 0 : channel + 1;
        }
      }
      loaded = make_float4(value[0], value[1], value[2], value[3]);
    }
    return normalised(loaded, token.mean, token.rstd);
  }
};

// Operand B of the weight's gradient: row = output, k = token of the run; dy times the sample's scale.
template <class T>
struct ScaledRows {
  MatrixByRow<T> matrix;
  float factor;

  template <int kRows, int kThreads>
  using Loader = LoaderByRow<kRows, kThreads, ScaledRows>;
  using Line = typename MatrixByRow<T>::Line;

  VESAL_DEVICE Line line(int64_t row) const { return matrix.line(row); }
  VESAL_DEVICE float4 load(const Line& line, int k) const {
    const float4 value = matrix.load(line, k);
    return make_float4(factor * value.x, factor * value.y, factor * value.z, factor * value.w);
  }
};

// Block (feature tile, output tile, group x chunk): partial products D^T X over a chunk of the tokens of all
// samples, [chunks][groups][outs][features].
template <int kTileN, class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kGemmThreads<kTileN>, 512 / kGemmThreads<kTileN>)
    weight_partial_kernel(Gather<T> gather, int chunks, const uint8_t* VESAL_RESTRICT mask,
                          const float* VESAL_RESTRICT mean, const float* VESAL_RESTRICT rstd, Input<T> dy,
                          bool dy_aligned, float* VESAL_RESTRICT partial) {
  const int group = static_cast<int>(blockIdx.z) / chunks;
  const int chunk = static_cast<int>(blockIdx.z) % chunks;
  const int64_t first_feature = int64_t{blockIdx.x} * kTileM;
  const int64_t first_out = int64_t{blockIdx.y} * kTileN;
  const int features = gather.g.features;
  const int outs = gather.g.outs;
  const int64_t tokens = gather.g.tokens;
  const int64_t all_tokens = gather.g.samples * tokens;
  const int64_t end = all_tokens * (chunk + 1) / chunks;
  using Product = TileProduct<kTileN>;
  VESAL_SHARED(float4, tile_a, [kTileK * Product::kQuadsA]);
  VESAL_SHARED(float4, tile_b, [kTileK * Product::kQuadsB]);
  VESAL_SHARED(Tap, taps, [kTileM]);
  VESAL_SHARED(RunToken, slice, [kTileK]);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kTileM && first_feature + thread < features) {
    taps[thread] = gather.taps[(static_cast<int>(first_feature) + thread) / gather.g.channels];
  }
  Product product;
  product.clear();
  for (int64_t begin = all_tokens * chunk / chunks; begin < end;) {
    const Division at = divide(begin, tokens);
    const int64_t sample = at.quotient;
    const int64_t stop = min(min(end, (sample + 1) * tokens), begin + kSegment);
    if (is_present(gather.g, mask, sample, group)) {
      const int64_t statistics = (group * gather.g.samples + sample) * tokens;
      const auto depth = static_cast<int>(stop - begin);
      // Thread t describes the t-th token from k on.
      const auto describe = [&](int k) {
        if (thread < kTileK && k + thread < depth) {
          const int64_t token = at.remainder + k + thread;
          slice[thread].place = place_of(gather.g, token);
          slice[thread].mean = mean[statistics + token];
          slice[thread].rstd = rstd[statistics + token];
        }
      };
      const FeaturesOfTokens<T> a{gather, gather.values(sample, group), taps, slice, features, depth};
      const ScaledRows<T> b{{dy + begin * outs, outs, outs, depth, dy_aligned},
                            scale_of(gather.g, mask, sample)};
      LoaderByRow<kTileM, kGemmThreads<kTileN>, FeaturesOfTokens<T>> loader_a;
      LoaderByRow<kTileN, kGemmThreads<kTileN>, ScaledRows<T>> loader_b;
      loader_a.start(a, first_feature, thread);
      loader_b.start(b, first_out, thread);
      describe(0);
      __syncthreads();
      for (int k = 0; k < depth; k += kTileK) {
        loader_a.fetch(a, k, thread);
        loader_a.put(tile_a, thread);
        loader_b.fetch(b, k, thread);
        loader_b.put(tile_b, thread);
        __syncthreads();
        describe(k + kTileK);
        product.multiply(tile_a, tile_b, thread);
        __syncthreads();
      }
    }
    begin = stop;
  }
  VESAL_UNROLL
  for (int c = 0; c < kThreadN; ++c) {
    const int64_t o = first_out + product.column(thread, c);
    if (o < outs) {
      VESAL_UNROLL
      for (int r = 0; r < kThreadM; r += 4) {
        const int64_t f = first_feature + product.row(thread, r);
        const float4 value = make_float4(product.values[r][c], product.values[r + 1][c],
                                         product.values[r + 2][c], product.values[r + 3][c]);
        store_up_to_4(partial + (((int64_t{chunk} * gather.g.groups + group) * outs + o) * features + f),
                      value, static_cast<int>(max(features - f, int64_t{0})), features % 4 == 0);
      }
    }
  }
}

// Thread per element of the weight: the chunks' products added in order, kept in place of the first; dweight.
VESAL_KERNEL void weight_gradient_kernel(Grid g, int chunks, const float* VESAL_RESTRICT gamma,
                                         const float* VESAL_RESTRICT beta, const float* VESAL_RESTRICT b,
                                         float* VESAL_RESTRICT partial, float* VESAL_RESTRICT dweight,
                                         int accumulate) {
  const int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  const int64_t count = int64_t{g.groups} * g.outs * g.features;
  if (i >= count) {
    return;
  }
  float product = 0.0f;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    product += partial[chunk * count + i];
  }
  partial[i] = product;
  const Division row = divide(i, g.features);  // group x output, feature
  const int64_t affine = divide(row.quotient, g.outs).quotient * g.features + row.remainder;
  const float value = gamma[affine] * product + beta[affine] * b[row.quotient];
  dweight[i] = accumulate != 0 ? dweight[i] + value : value;
}

// Block of 32 (group, feature)s x 8: dgamma and dbeta from the products and b.
template <class T>
VESAL_KERNEL void affine_gradient_kernel(Grid g, Input<T> weight, const float* VESAL_RESTRICT product,
                                         const float* VESAL_RESTRICT b, float* VESAL_RESTRICT dgamma,
                                         float* VESAL_RESTRICT dbeta, int accumulate) {
  VESAL_SHARED(float, sums_gamma, [8][32]);
  VESAL_SHARED(float, sums_beta, [8][32]);
  const int64_t i = int64_t{blockIdx.x} * 32 + threadIdx.x;
  const bool active = i < int64_t{g.groups} * g.features;
  const Division at = divide(i, g.features);
  float sum_gamma = 0.0f;
  float sum_beta = 0.0f;
  for (int o = static_cast<int>(threadIdx.y); active && o < g.outs; o += 8) {
    const int64_t row = at.quotient * g.outs + o;
    const float w = weight[row * g.features + at.remainder];
    sum_gamma = fmaf(w, product[row * g.features + at.remainder], sum_gamma);
    sum_beta = fmaf(w, b[row], sum_beta);
  }
  sums_gamma[threadIdx.y][threadIdx.x] = sum_gamma;
  sums_beta[threadIdx.y][threadIdx.x] = sum_beta;
  __syncthreads();
  if (active && threadIdx.y == 0) {
    for (int k = 1; k < 8; ++k) {
      sum_gamma += sums_gamma[k][threadIdx.x];
      sum_beta += sums_beta[k][threadIdx.x];
    }
    dgamma[i] = accumulate != 0 ? dgamma[i] + sum_gamma : sum_gamma;
    dbeta[i] = accumulate != 0 ? dbeta[i] + sum_beta : sum_beta;
  }
}

// The tokens whose features' gradients are in the workspace: the same ones of each of `samples` samples, all
// of them where there is more than one sample. Pieces are (sample, group); gradients [pieces][count][F].
struct Slice {
  int64_t first_sample, samples;
  int64_t first_token, count;
};

// dy as operand A, a piece for each (sample, group), those of absent groups without rows.
template <class T>
struct PresentTokens : MatrixByDepth<T> {
  const uint8_t* mask;  // from the first piece on, or null

  VESAL_DEVICE void begin_block(int piece) {
    MatrixByDepth<T>::begin_block(piece);
    if (mask != nullptr && mask[piece] == 0) {
      this->rows = 0;
    }
  }
};

// The gradient of a normalised feature. Rounded, so that it is the same number wherever it is used: few
// features of nearly one value leave little of it.
VESAL_DEVICE float feature_gradient(float scale, float gamma, float product) {
  return __fmul_rn(__fmul_rn(scale, gamma), product);
}

// `lanes` neighbouring lanes per (piece, token of the slice): of the token's row of gradients, mean and mean
// of the product with the normalised features: moments [2][pieces][count].
template <class T>
VESAL_KERNEL void moments_kernel(Gather<T> gather, Slice slice, int lanes, const uint8_t* VESAL_RESTRICT mask,
                                 const float* VESAL_RESTRICT gamma, bool affine_aligned,
                                 const float* VESAL_RESTRICT mean, const float* VESAL_RESTRICT rstd,
                                 const float* VESAL_RESTRICT gradients, float* VESAL_RESTRICT moments) {
  const int64_t item =
      static_cast<int64_t>(blockIdx.x) * (kBlock / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t items = slice.samples * gather.g.groups * slice.count;
  const int features = gather.g.features;
  const Division at = divide(item, slice.count);
  const Division piece = divide(at.quotient, gather.g.groups);
  const int64_t sample = slice.first_sample + piece.quotient;
  const int group = static_cast<int>(piece.remainder);
  const bool active = item < items && is_present(gather.g, mask, sample, group);
  float sum = 0.0f;
  float product = 0.0f;
  if (active) {
    const int64_t token = slice.first_token + at.remainder;
    const int64_t statistic = (group * gather.g.samples + sample) * gather.g.tokens + token;
    const float average = mean[statistic];
    const float inverse = rstd[statistic];
    const float scale = scale_of(gather.g, mask, sample);
    const Place place = place_of(gather.g, token);
    const Input<T> source = gather.values(sample, group);
    const float* row = gradients + item * features;
    const float* factors = gamma + int64_t{group} * features;
    for (int f = lane * 4; f < features; f += lanes * 4) {
      const float4 normal4 = normalised(gather.load(source, place, f), average, inverse);
      const float4 product4 = load_up_to_4(row + f, features - f, features % 4 == 0);
      const float4 gamma4 = load_up_to_4(factors + f, features - f, affine_aligned);
      const float normal[4] = {normal4.x, normal4.y, normal4.z, normal4.w};
      const float products[4] = {product4.x, product4.y, product4.z, product4.w};
      const float gammas[4] = {gamma4.x, gamma4.y, gamma4.z, gamma4.w};
      VESAL_UNROLL
      for (int j = 0; j < 4; ++j) {  // gamma is 0 beyond the last
        const float gradient = feature_gradient(scale, gammas[j], products[j]);
        sum += gradient;
        product = fmaf(gradient, normal[j], product);
      }
    }
  }
  sum = group_sum(sum, lanes);
  product = group_sum(product, lanes);
  if (active && lane == 0) {
    const float count = static_cast<float>(features);
    moments[item] = sum / count;
    moments[items + item] = product / count;
  }
}

// Along one axis, for each direction of a shift: the token whose copy of the voxel has been shifted so, -1
// for none, and the voxel's place in the patch.
struct Steps {
  int token[3];
  int offset[3];
};

VESAL_DEVICE Steps make_steps(int voxel, int shift, int extent, int patch) {
  Steps steps{};
  VESAL_UNROLL
  for (int code = 0; code < 3; ++code) {
    const int from = voxel - shift * (code - 1);
    const bool inside = from >= 0 && from < extent;
    const int token = (inside ? from : 0) / patch;
    steps.token[code] = inside ? token : -1;
    steps.offset[code] = from - token * patch;
  }
  return steps;
}

// By comparisons: an index would put the array into memory.
VESAL_DEVICE int pick(const int (&values)[3], int code) {
  return code == 0 ? values[0] : code == 1 ? values[1] : values[2];
}

// Thread per (sample of the slice, voxel of `planes` planes from first_plane, kWidth channels): the sum over
// the copies that tokens of the slice hold, stored in dx or, where `sums` is not null, added to it.
template <int kWidth, class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kBlock, 4)
    input_gradient_kernel(Grid g, Directions directions, Slice slice, int first_plane, int planes, Input<T> x,
                          const uint8_t* VESAL_RESTRICT mask, const float* VESAL_RESTRICT gamma,
                          const float* VESAL_RESTRICT mean, const float* VESAL_RESTRICT rstd,
                          const float* VESAL_RESTRICT gradients, const float* VESAL_RESTRICT moments,
                          float* sums, Output<T> dx) {
  const int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  const int units = g.groups * g.channels / kWidth;
  const int64_t of_sample = int64_t{planes} * g.h * g.w * units;
  if (i >= slice.samples * of_sample) {
    return;
  }
  const Division by_sample = divide(i, of_sample);
  const Division by_unit = divide(by_sample.remainder, units);
  const Division by_column = divide(by_unit.quotient, g.w);
  const Division by_row = divide(by_column.quotient, g.h);
  const int64_t sample = slice.first_sample + by_sample.quotient;
  const Division at = divide(by_unit.remainder * kWidth, g.channels);
  const int group = static_cast<int>(at.quotient);
  const int channel = static_cast<int>(at.remainder);
  const int vz = first_plane + static_cast<int>(by_row.quotient);
  const int vy = static_cast<int>(by_row.remainder);
  const int vx = static_cast<int>(by_column.remainder);
  const int64_t element =
      (((sample * g.d + vz) * g.h + vy) * g.w + vx) * g.groups * g.channels + by_unit.remainder * kWidth;
  float value[kWidth];
  float total[kWidth];
  VESAL_UNROLL
  for (int j = 0; j < kWidth; ++j) {
    total[j] = 0.0f;
  }
  if (is_present(g, mask, sample, group)) {
    if constexpr (kWidth == 4) {
      const float4 loaded = load4(x + element);
      value[0] = loaded.x;
      value[1] = loaded.y;
      value[2] = loaded.z;
      value[3] = loaded.w;
    } else {
      value[0] = x[element];
    }
    const float scale = scale_of(g, mask, sample);
    const int64_t piece = by_sample.quotient * g.groups + group;
    const int64_t statistics = (group * g.samples + sample) * g.tokens;
    const int64_t pieces = slice.samples * g.groups;
    const Steps steps_z = make_steps(vz, directions.shift_d, g.d, g.patch_d);
    const Steps steps_y = make_steps(vy, directions.shift_h, g.h, g.patch_h);
    const Steps steps_x = make_steps(vx, directions.shift_w, g.w, g.patch_w);
    for (int copy = 0; copy < g.copies; ++copy) {
      const int code_z = direction_code(directions.z, copy);
      const int code_y = direction_code(directions.y, copy);
      const int code_x = direction_code(directions.x, copy);
      const int tz = pick(steps_z.token, code_z);
      const int ty = pick(steps_y.token, code_y);
      const int tx = pick(steps_x.token, code_x);
      const int64_t token = tz * g.plane + int64_t{ty} * g.out_w + tx;
      const int64_t local = token - slice.first_token;
      if (tz < 0 || ty < 0 || tx < 0 || local < 0 || local >= slice.count) {
        continue;
      }
      const int offset =
          (pick(steps_z.offset, code_z) * g.patch_h + pick(steps_y.offset, code_y)) * g.patch_w +
          pick(steps_x.offset, code_x);
      const int feature = (offset * g.copies + copy) * g.channels + channel;
      const int64_t row = piece * slice.count + local;
      const float average = mean[statistics + token];
      const float inverse = rstd[statistics + token];
      const float mean_gradient = moments[row];
      const float mean_product = moments[pieces * slice.count + row];
      const float* products = gradients + (row * g.features + feature);
      const float* factors = gamma + (int64_t{group} * g.features + feature);
      float gradient[kWidth];
      if constexpr (kWidth == 4) {
        const float4 p = load4(products);
        const float4 f = load4(factors);
        gradient[0] = feature_gradient(scale, f.x, p.x);
        gradient[1] = feature_gradient(scale, f.y, p.y);
        gradient[2] = feature_gradient(scale, f.z, p.z);
        gradient[3] = feature_gradient(scale, f.w, p.w);
      } else {
        gradient[0] = feature_gradient(scale, factors[0], products[0]);
      }
      VESAL_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        const float normal = (value[j] - average) * inverse;
        // The product is rounded, as what it cancels against was.
        const float along = __fmul_rn(normal, mean_product);
        total[j] += inverse * (gradient[j] - mean_gradient - along);
      }
    }
  }
  if constexpr (kWidth == 4) {
    if (sums != nullptr) {
      const float4 old = load4(sums + element);
      store4(sums + element,
             make_float4(old.x + total[0], old.y + total[1], old.z + total[2], old.w + total[3]));
    } else {
      store4(dx + element, make_float4(total[0], total[1], total[2], total[3]));
    }
  } else {
    if (sums != nullptr) {
      sums[element] += total[0];
    } else {
      dx[element] = total[0];
    }
  }
}

VESAL_KERNEL void zero_kernel(float* VESAL_RESTRICT target, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    target[i] = 0.0f;
  }
}

template <class T>
VESAL_KERNEL void store_kernel(int64_t count, const float* VESAL_RESTRICT source, Output<T> target) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    target[i] = source[i];
  }
}

int64_t voxel_values(const ShiftedPatchParams& p) { return p.n * p.d * p.h * p.w * p.groups * p.channels; }

// Columns of a tile: the narrow one where the wide one would add a half-empty column of tiles.
int tile_columns(int64_t columns) { return columns < 256 && ceil_div(columns, 32) % 2 == 1 ? 32 : 64; }

template <class Body>
void with_tile(int64_t columns, const Body& body) {
  if (tile_columns(columns) == 32) {
    body(std::integral_constant<int, 32>{});
  } else {
    body(std::integral_constant<int, 64>{});
  }
}

// Parts of a product with this many tiles and this depth.
int64_t part_count(int64_t tiles, int64_t depth) {
  return std::clamp<int64_t>(std::min(kBlocksWanted / std::max<int64_t>(tiles, 1), depth / kLeastDepth), 1,
                             kMaxChunks);
}

// Where the parts of the workspace lie, in floats; all at multiples of four.
struct Plan {
  int parts;                          // of the product
  int64_t taps, mean, rstd, partial;  // forward; taps and partial also backward
  int sum_chunks;
  int64_t sums, b;
  int64_t slice_samples, slice_tokens;
  int64_t gradients, moments;  // in the place of the partial products
  bool sliced;                 // a sample takes several slices
  int64_t dx;                  // where it is and dx is not stored as float32
  int64_t total;

  int64_t place(int64_t floats) {
    const int64_t at = total;
    total += ceil_div(floats, 4) * 4;
    return at;
  }
};

Plan make_plan(const ShiftedPatchParams& p, ShiftedPatchPass pass) {
  Plan plan{};
  const int64_t tokens = p.tokens() / p.n;
  plan.taps = plan.place(tap_count(p) * int64_t{sizeof(Tap) / sizeof(float)});
  if (pass == ShiftedPatchPass::forward) {
    plan.mean = plan.place(p.groups * p.tokens());
    plan.rstd = plan.place(p.groups * p.tokens());
    const int64_t tiles = ceil_div(tokens, kTileM) * ceil_div(p.out, tile_columns(p.out)) * p.n;
    const int64_t fitting = kMaxPartialBytes / (p.tokens() * p.out * int64_t{sizeof(float)});
    plan.parts = static_cast<int>(std::clamp<int64_t>(fitting, 1, part_count(tiles, p.features())));
    plan.partial = plan.place(plan.parts > 1 ? plan.parts * p.tokens() * p.out : 0);
    return plan;
  }
  plan.sum_chunks = static_cast<int>(std::clamp<int64_t>(tokens / kTokensPerSum, 1, kMaxSums));
  plan.sums = plan.place(plan.sum_chunks * p.n * p.out);
  plan.b = plan.place(p.groups * p.out);

  const int64_t parameters = p.groups * p.out * p.features();
  const int64_t tiles = ceil_div(p.features(), kTileM) * ceil_div(p.out, tile_columns(p.out)) * p.groups;
  const int64_t fitting = kMaxPartialBytes / (parameters * int64_t{sizeof(float)});
  plan.parts = static_cast<int>(std::clamp<int64_t>(fitting, 1, part_count(tiles, p.tokens())));
  Plan parameter_part = plan;
  parameter_part.partial = parameter_part.place(plan.parts * parameters);

  const int64_t of_token = p.groups * p.features();
  const int64_t fitting_tokens = kSliceFloats / of_token;
  if (fitting_tokens >= tokens) {
    plan.slice_samples = std::clamp<int64_t>(std::min(fitting_tokens / tokens, 65535 / p.groups), 1, p.n);
    plan.slice_tokens = tokens;
  } else {
    plan.slice_samples = 1;
    plan.slice_tokens = std::min(tokens, std::max<int64_t>(fitting_tokens / kTileM, 1) * kTileM);
  }
  plan.sliced = plan.slice_tokens < tokens;
  const int64_t slice = plan.slice_samples * plan.slice_tokens;
  plan.partial = parameter_part.partial;
  plan.gradients = plan.place(slice * of_token);
  plan.moments = plan.place(2 * slice * p.groups);
  plan.total = std::max(plan.total, parameter_part.total);
  plan.dx = plan.place(plan.sliced && p.storage != DType::f32 ? voxel_values(p) : 0);
  return plan;
}

template <class T>
Gather<T> make_gather(StreamHandle stream, const ShiftedPatchParams& p, const T* x, float* scratch,
                      const Plan& plan) {
  const Grid g = make_grid(p);
  const int64_t count = tap_count(p);
  Tap* taps = reinterpret_cast<Tap*>(scratch + plan.taps);
  launch(stream, {.grid = ceil_div(count, kBlock), .block = kBlock}, taps_kernel, g, make_directions(p),
         static_cast<int>(count), taps);
  return {g, taps, Input<T>{x}, aligned_quads(x, p.channels)};
}

// dx from the features' gradients, slice by slice.
template <class T>
void launch_input_gradient(StreamHandle stream, const ShiftedPatchParams& p, const Plan& plan,
                           const Gather<T>& gather, const uint8_t* mask, const float* gamma, const T* weight,
                           const float* mean, const float* rstd, const T* dy, T* dx, float* scratch) {
  const Grid g = gather.g;
  const Directions directions = make_directions(p);
  const bool affine_aligned = aligned_quads(gamma, p.features());
  float* gradients = scratch + plan.gradients;
  float* moments = scratch + plan.moments;
  float* sums = nullptr;
  if (plan.sliced) {
    if constexpr (std::is_same_v<T, float>) {
      sums = dx;
    } else {
      sums = scratch + plan.dx;
    }
  }
  const int64_t elements = voxel_values(p);
  const int64_t copy_blocks = std::min<int64_t>(ceil_div(elements, kBlock), 65536);
  if (sums != nullptr) {
    launch(stream, {.grid = copy_blocks, .block = kBlock}, zero_kernel, sums, elements);
  }
  for (int64_t sample = 0; sample < p.n; sample += plan.slice_samples) {
    for (int64_t token = 0; token < g.tokens; token += plan.slice_tokens) {
      const Slice slice{sample, std::min(plan.slice_samples, p.n - sample), token,
                        std::min(plan.slice_tokens, g.tokens - token)};
      const T* rows = dy + (sample * g.tokens + token) * p.out;
      const PresentTokens<T> a{{.p = Input<T>{rows},
                                .stride = p.out,
                                .rows = slice.count,
                                .depth = g.outs,
                                .aligned = aligned_quads(rows, p.out),
                                .piece_stride = {.outer = g.tokens * p.out, .inner_count = g.groups}},
                               mask != nullptr ? mask + sample * p.groups : nullptr};
      const MatrixByRow<T> b{.p = Input<T>{weight},
                             .stride = p.features(),
                             .rows = p.features(),
                             .depth = g.outs,
                             .aligned = aligned_quads(weight, p.features()),
                             .piece_stride = {.inner = p.out * p.features(), .inner_count = g.groups}};
      const Epilogue<float> epilogue{.out = gradients,
                                     .row_stride = p.features(),
                                     .column_stride = 1,
                                     .bias = nullptr,
                                     .pre_activation = nullptr,
                                     .activation = Activation::none,
                                     .mode = GradMode::overwrite,
                                     .piece_stride = {.outer = p.groups * slice.count * p.features(),
                                                      .inner = slice.count * p.features(),
                                                      .inner_count = g.groups}};
      const int64_t pieces = slice.samples * p.groups;
      with_tile(p.features(), [&](auto tile) {
        constexpr int kTileN = decltype(tile)::value;
        launch(stream,
               {.grid = {ceil_div(slice.count, kTileM), ceil_div(p.features(), kTileN), pieces},
                .block = kGemmThreads<kTileN>},
               product_kernel<kTileN, PresentTokens<T>, MatrixByRow<T>, Epilogue<float>>, a, b, 1, int64_t{0},
               epilogue);
      });
      const int lanes = p.features() <= kFewFeatures ? 8 : 32;
      launch(stream, {.grid = ceil_div(pieces * slice.count, kBlock / lanes), .block = kBlock},
             moments_kernel<T>, gather, slice, lanes, mask, gamma, affine_aligned, mean, rstd, gradients,
             moments);
      int64_t first_plane = 0;
      int64_t last_plane = p.d;
      if (plan.sliced) {
        first_plane = std::max<int64_t>(token / g.plane * p.patch[0] - p.shift[0], 0);
        last_plane =
            std::min<int64_t>(((token + slice.count - 1) / g.plane + 1) * p.patch[0] + p.shift[0], p.d);
      }
      const bool quads = gather.quads && affine_aligned && aligned_quads(dx, p.channels);
      const int64_t threads =
          slice.samples * (last_plane - first_plane) * p.h * p.w * p.groups * p.channels / (quads ? 4 : 1);
      launch(stream, {.grid = ceil_div(threads, kBlock), .block = kBlock},
             quads ? input_gradient_kernel<4, T> : input_gradient_kernel<1, T>, g, directions, slice,
             static_cast<int>(first_plane), static_cast<int>(last_plane - first_plane), gather.x, mask, gamma,
             mean, rstd, gradients, moments, sums, Output<T>{dx});
    }
  }
  if constexpr (!std::is_same_v<T, float>) {
    if (sums != nullptr) {
      launch(stream, {.grid = copy_blocks, .block = kBlock}, store_kernel<T>, elements, sums, Output<T>{dx});
    }
  }
}

}  // namespace

size_t shifted_patch_workspace_bytes(Context&, const ShiftedPatchParams& params, ShiftedPatchPass pass) {
  return static_cast<size_t>(make_plan(params, pass).total) * sizeof(float);
}

void shifted_patch_forward(Context& context, const ShiftedPatchParams& p, ConstData x_, const uint8_t* mask,
                           ConstData gamma_, ConstData beta_, ConstData weight_, ConstData bias_,
                           ConstData missing_, Data y_, float* mean, float* rstd, Workspace workspace) {
  const float* gamma = gamma_.as<float>("shifted_patch_forward: gamma");
  const float* beta = beta_.as<float>("shifted_patch_forward: beta");
  const Blend blend{mask, bias_.as<float>("shifted_patch_forward: bias"),
                    missing_.as<float>("shifted_patch_forward: missing")};
  const Plan plan = make_plan(p, ShiftedPatchPass::forward);
  float* scratch = static_cast<float*>(workspace.data);
  float* used_mean = mean != nullptr ? mean : scratch + plan.mean;
  float* used_rstd = rstd != nullptr ? rstd : scratch + plan.rstd;
  float* partials = scratch + plan.partial;
  const bool affine_aligned = aligned_quads(gamma, p.features()) && aligned_quads(beta, p.features());
  const StreamHandle stream = context.stream();
  with_storage("shifted_patch_forward", {x_, weight_, y_}, [&]<class T>(T) {
    const T* weight = weight_.as<T>("shifted_patch_forward: weight");
    T* y = y_.as<T>("shifted_patch_forward: y");
    const Gather<T> gather = make_gather(stream, p, x_.as<T>("shifted_patch_forward: x"), scratch, plan);
    const int lanes = p.features() <= kFewFeatures ? 1 : 32;
    launch(stream, {.grid = ceil_div(p.groups * p.tokens(), kBlock / lanes), .block = kBlock},
           statistics_kernel<T>, gather, lanes, mask, used_mean, used_rstd);
    with_tile(p.out, [&](auto tile) {
      constexpr int kTileN = decltype(tile)::value;
      launch(stream,
             {.grid = {ceil_div(gather.g.tokens, kTileM), ceil_div(p.out, kTileN), p.n * plan.parts},
              .block = kGemmThreads<kTileN>},
             forward_kernel<kTileN, T>, gather, plan.parts, blend, gamma, beta, affine_aligned,
             Input<T>{weight}, aligned_quads(weight, p.features()), used_mean, used_rstd, partials,
             Output<T>{y}, aligned_quads(y, p.out));
    });
    if (plan.parts > 1) {
      launch(stream, {.grid = ceil_div(p.tokens() * p.out, kFinishThreads), .block = kFinishThreads},
             blend_kernel<T>, gather.g, plan.parts, blend, partials, Output<T>{y});
    }
  });
}

void shifted_patch_backward(Context& context, const ShiftedPatchParams& p, ConstData x_, const uint8_t* mask,
                            ConstData gamma_, ConstData beta_, ConstData weight_, const float* mean,
                            const float* rstd, ConstData dy_, Data dx_, Data dgamma_, Data dbeta_,
                            Data dweight_, Data dbias_, Data dmissing_, GradMode mode, Workspace workspace) {
  const float* gamma = gamma_.as<float>("shifted_patch_backward: gamma");
  const float* beta = beta_.as<float>("shifted_patch_backward: beta");
  float* dgamma = dgamma_.as<float>("shifted_patch_backward: dgamma");
  float* dbeta = dbeta_.as<float>("shifted_patch_backward: dbeta");
  float* dweight = dweight_.as<float>("shifted_patch_backward: dweight");
  float* dbias = dbias_.as<float>("shifted_patch_backward: dbias");
  float* dmissing = dmissing_.as<float>("shifted_patch_backward: dmissing");
  const Plan plan = make_plan(p, ShiftedPatchPass::backward);
  float* scratch = static_cast<float*>(workspace.data);
  float* partial = scratch + plan.partial;
  float* sums = scratch + plan.sums;
  float* b = scratch + plan.b;
  const int accumulate = mode == GradMode::accumulate ? 1 : 0;
  const StreamHandle stream = context.stream();
  with_storage("shifted_patch_backward", {x_, weight_, dy_, dx_}, [&]<class T>(T) {
    const T* weight = weight_.as<T>("shifted_patch_backward: weight");
    const T* dy = dy_.as<T>("shifted_patch_backward: dy");
    const Gather<T> gather = make_gather(stream, p, x_.as<T>("shifted_patch_backward: x"), scratch, plan);
    const Grid g = gather.g;
    launch(stream, {.grid = {ceil_div(p.out, 32), plan.sum_chunks, p.n}, .block = {32, 8}}, sum_dy_kernel<T>,
           g, Input<T>{dy}, sums);
    launch(stream, {.grid = ceil_div(p.groups * p.out, kBlock), .block = kBlock}, group_sums_kernel, g,
           plan.sum_chunks, mask, sums, b, dbias, dmissing, accumulate);
    with_tile(p.out, [&](auto tile) {
      constexpr int kTileN = decltype(tile)::value;
      launch(stream,
             {.grid = {ceil_div(p.features(), kTileM), ceil_div(p.out, kTileN), p.groups * plan.parts},
              .block = kGemmThreads<kTileN>},
             weight_partial_kernel<kTileN, T>, gather, plan.parts, mask, mean, rstd, Input<T>{dy},
             aligned_quads(dy, p.out), partial);
    });
    launch(stream, {.grid = ceil_div(p.groups * p.out * p.features(), kBlock), .block = kBlock},
           weight_gradient_kernel, g, plan.parts, gamma, beta, b, partial, dweight, accumulate);
    launch(stream, {.grid = ceil_div(p.groups * p.features(), 32), .block = {32, 8}},
           affine_gradient_kernel<T>, g, Input<T>{weight}, partial, b, dgamma, dbeta, accumulate);
    if (dx_) {
      launch_input_gradient(stream, p, plan, gather, mask, gamma, weight, mean, rstd, dy,
                            dx_.as<T>("shifted_patch_backward: dx"), scratch);
    }
  });
}

}  // namespace VESAL_BACKEND
}  // namespace vesal::kernels
