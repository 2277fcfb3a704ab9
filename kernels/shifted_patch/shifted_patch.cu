// Shifted patch tokenization on a GPU, float32 arithmetic, in the portable dialect.
//
// What it computes: shifted_patch.hpp. For T tokens, G present groups, F features of C = channels, E outputs:
//   forward   at least x once, the weight once and y once; 2 T G F E flops
//   backward  2 T G F E flops for the parameters, 2 T G F E more for dx; here 4 T G F E for dx, because the
//   LayerNorm's
//             two row sums need the whole row before the first element of dx can be written
// What limits it: E / 2 multiply-adds per feature read through the cache (E = 24 to 192: the float32 units).
// How: features are never stored. Mean and 1 / deviation of each token come first (a warp a token and group);
// the products then gather and normalise features while they fill their tiles in shared memory, 64 tokens x
// 32 columns a block, 4 x 4 numbers a thread. What is absent is skipped: a block handles one sample, so the
// choice is uniform. Parameters' gradients: partial products D^T X per chunk of tokens in the workspace,
// added in order (see shifted_patch_cpu.cpp for the identities). dx: within one copy no two features read the
// same voxel, so one launch a copy adds to dx without conflicts, in the order of the copies; where dx is
// stored in 16 bits, to a float32 copy in the workspace. No GPU timing exists yet (see
// bench/results/README.md).
#include <algorithm>
#include <type_traits>

#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/shifted_patch/shifted_patch.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(shifted_patch_workspace_bytes)
VESAL_DECLARE_BACKENDS(shifted_patch_forward)
VESAL_DECLARE_BACKENDS(shifted_patch_backward)

namespace VESAL_BACKEND {
namespace {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kThreads = 128;
constexpr int kTileRows = 64;
constexpr int kTileColumns = 32;
constexpr int kTileDepth = 16;
constexpr int kColumnThreads = 8;  // threads along a tile's columns; 16 along its rows
constexpr int64_t kMaxChunks = 32;
constexpr int64_t kTokensPerChunk = 512;
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;

// Plain data, passed to kernels by value.
struct Grid {
  int64_t samples, groups, channels, outs;
  int d, h, w;
  int out_d, out_h, out_w;
  int patch_d, patch_h, patch_w;
  int copies;
  int features;
  int64_t tokens;  // of one sample
  float eps;
};

Grid make_grid(const ShiftedPatchParams& p) {
  return {p.n,
          p.groups,
          p.channels,
          p.out,
          static_cast<int>(p.d),
          static_cast<int>(p.h),
          static_cast<int>(p.w),
          static_cast<int>(p.out_d()),
          static_cast<int>(p.out_h()),
          static_cast<int>(p.out_w()),
          p.patch[0],
          p.patch[1],
          p.patch[2],
          p.copies(),
          static_cast<int>(p.features()),
          p.tokens() / p.n,
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

VESAL_DEVICE int shift_along(int shift, unsigned packed, int copy) {
  return shift * (static_cast<int>(packed >> (2 * copy) & 3u) - 1);
}

// A token's first voxel, and where the sample starts in x.
struct Place {
  int z, y, x;
  int64_t sample;
};

VESAL_DEVICE Place place_of(const Grid& g, int64_t sample, int64_t token) {
  const int plane = static_cast<int>(token % (static_cast<int64_t>(g.out_h) * g.out_w));
  return {static_cast<int>(token / (static_cast<int64_t>(g.out_h) * g.out_w)) * g.patch_d,
          plane / g.out_w * g.patch_h, plane % g.out_w * g.patch_w, sample};
}

// The element of x that a token's feature reads, -1 where it is zero by padding.
VESAL_DEVICE int64_t element_of(const Grid& g, const Directions& directions, const Place& place,
                                int64_t group, int feature) {
  const int channels = static_cast<int>(g.channels);
  const int tap = feature / channels;
  const int copy = tap % g.copies;
  const int offset = tap / g.copies;
  const int uz = place.z + offset / (g.patch_h * g.patch_w);
  const int uy = place.y + offset / g.patch_w % g.patch_h;
  const int ux = place.x + offset % g.patch_w;
  const int vz = uz + shift_along(directions.shift_d, directions.z, copy);
  const int vy = uy + shift_along(directions.shift_h, directions.y, copy);
  const int vx = ux + shift_along(directions.shift_w, directions.x, copy);
  if (uz >= g.d || uy >= g.h || ux >= g.w || vz < 0 || vz >= g.d || vy < 0 || vy >= g.h || vx < 0 ||
      vx >= g.w) {
    return -1;
  }
  return ((((place.sample * g.d + vz) * g.h + vy) * g.w + vx) * g.groups + group) * channels +
         feature % channels;
}

template <class Values>
VESAL_DEVICE float feature_of(const Grid& g, const Directions& directions, const Values& x,
                              const Place& place, int64_t group, int feature) {
  const int64_t element = element_of(g, directions, place, group, feature);
  return element < 0 ? 0.0f : x[element];
}

VESAL_DEVICE bool is_present(const Grid& g, const uint8_t* mask, int64_t sample, int64_t group) {
  return mask == nullptr || mask[sample * g.groups + group] != 0;
}

VESAL_DEVICE float scale_of(const Grid& g, const uint8_t* mask, int64_t sample) {
  int present = 0;
  for (int64_t group = 0; group < g.groups; ++group) {
    present += is_present(g, mask, sample, group) ? 1 : 0;
  }
  return present == 0 ? 0.0f : static_cast<float>(g.groups) / static_cast<float>(present);
}

VESAL_DEVICE float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, distance);
  }
  return value;
}

// Warp per (group, token of all samples): mean and rstd [groups, samples x tokens].
template <class T>
VESAL_KERNEL void statistics_kernel(Grid g, Directions directions, Input<T> x,
                                    const uint8_t* VESAL_RESTRICT mask, float* VESAL_RESTRICT mean,
                                    float* VESAL_RESTRICT rstd) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t all_tokens = g.samples * g.tokens;
  const int64_t group = item / all_tokens;
  const int64_t token = item % all_tokens;
  // The whole warp leaves together.
  if (group >= g.groups || !is_present(g, mask, token / g.tokens, group)) {
    return;
  }
  const Place place = place_of(g, token / g.tokens, token % g.tokens);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float count = static_cast<float>(g.features);
  float sum = 0.0f;
  for (int f = lane; f < g.features; f += 32) {
    sum += feature_of(g, directions, x, place, group, f);
  }
  const float average = warp_sum(sum) / count;
  float squares = 0.0f;
  for (int f = lane; f < g.features; f += 32) {
    const float difference = feature_of(g, directions, x, place, group, f) - average;
    squares = fmaf(difference, difference, squares);
  }
  const float variance = warp_sum(squares) / count;
  if (lane == 0) {
    mean[item] = average;
    rstd[item] = 1.0f / sqrtf(variance + g.eps);
  }
}

// acc[i][j] += sum over the tile's depth of a[k][row + i] * b[k][column + j].
VESAL_DEVICE void multiply_tiles(const float (*a)[kTileRows + 1], const float (*b)[kTileColumns + 1], int row,
                                 int column, float (&acc)[4][4]) {
  VESAL_UNROLL
  for (int k = 0; k < kTileDepth; ++k) {
    float left[4];
    float right[4];
    VESAL_UNROLL
    for (int i = 0; i < 4; ++i) {
      left[i] = a[k][row + i];
      right[i] = b[k][column + i];
    }
    VESAL_UNROLL
    for (int i = 0; i < 4; ++i) {
      VESAL_UNROLL
      for (int j = 0; j < 4; ++j) {
        acc[i][j] = fmaf(left[i], right[j], acc[i][j]);
      }
    }
  }
}

VESAL_DEVICE void clear(float (&acc)[4][4]) {
  VESAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      acc[i][j] = 0.0f;
    }
  }
}

// Block (token tile, output tile, sample): y.
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kThreads, 1)
    forward_kernel(Grid g, Directions directions, Input<T> x, const uint8_t* VESAL_RESTRICT mask,
                   const float* VESAL_RESTRICT gamma, const float* VESAL_RESTRICT beta, Input<T> weight,
                   const float* VESAL_RESTRICT bias, const float* VESAL_RESTRICT missing,
                   const float* VESAL_RESTRICT mean, const float* VESAL_RESTRICT rstd, Output<T> y) {
  VESAL_SHARED(float, a, [kTileDepth][kTileRows + 1]);
  VESAL_SHARED(float, b, [kTileDepth][kTileColumns + 1]);
  VESAL_SHARED(Place, places, [kTileRows]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t sample = blockIdx.z;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int64_t first_out = static_cast<int64_t>(blockIdx.y) * kTileColumns;
  const int row = thread / kColumnThreads * 4;
  const int column = thread % kColumnThreads * 4;
  const float scale = scale_of(g, mask, sample);
  if (thread < kTileRows) {
    places[thread] = place_of(g, sample, min(first_token + thread, g.tokens - 1));
  }
  float sum[4][4];
  clear(sum);
  for (int64_t group = 0; group < g.groups; ++group) {
    if (!is_present(g, mask, sample, group)) {
      continue;
    }
    float acc[4][4];  // each group by itself, so that sums stay short
    clear(acc);
    for (int first = 0; first < g.features; first += kTileDepth) {
      __syncthreads();
      for (int e = thread; e < kTileDepth * kTileRows; e += kThreads) {
        const int f = first + e % kTileDepth;
        const int t = e / kTileDepth;
        const int64_t token = first_token + t;
        float value = 0.0f;
        if (f < g.features && token < g.tokens) {
          const int64_t at = (group * g.samples + sample) * g.tokens + token;
          value = (feature_of(g, directions, x, places[t], group, f) - mean[at]) * rstd[at];
          value = value * gamma[group * g.features + f] + beta[group * g.features + f];
        }
        a[e % kTileDepth][t] = value;
      }
      for (int e = thread; e < kTileDepth * kTileColumns; e += kThreads) {
        const int f = first + e % kTileDepth;
        const int64_t o = first_out + e / kTileDepth;
        b[e % kTileDepth][e / kTileDepth] =
            f < g.features && o < g.outs ? weight[(group * g.outs + o) * g.features + f] : 0.0f;
      }
      __syncthreads();
      multiply_tiles(a, b, row, column, acc);
    }
    VESAL_UNROLL
    for (int i = 0; i < 4; ++i) {
      VESAL_UNROLL
      for (int j = 0; j < 4; ++j) {
        sum[i][j] += acc[i][j];
      }
    }
  }
  VESAL_UNROLL
  for (int j = 0; j < 4; ++j) {
    const int64_t o = first_out + column + j;
    if (o >= g.outs) {
      continue;
    }
    float present = 0.0f;
    float absent = 0.0f;
    for (int64_t group = 0; group < g.groups; ++group) {
      if (is_present(g, mask, sample, group)) {
        present += bias[group * g.outs + o];
      } else {
        absent += missing[group * g.outs + o];
      }
    }
    VESAL_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t token = first_token + row + i;
      if (token < g.tokens) {
        y[(sample * g.tokens + token) * g.outs + o] = fmaf(scale, sum[i][j] + present, absent);
      }
    }
  }
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
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= g.groups * g.outs) {
    return;
  }
  float present = 0.0f;
  float absent = 0.0f;
  for (int64_t sample = 0; sample < g.samples; ++sample) {
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      sum += sums[(static_cast<int64_t>(chunk) * g.samples + sample) * g.outs + i % g.outs];
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

// Block (feature tile, output tile, group x chunk): partial products D^T X over a chunk of the tokens of all
// samples, [chunks][groups][outs][features]. Tile rows are features, columns outputs, depth tokens.
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kThreads, 1)
    weight_partial_kernel(Grid g, Directions directions, int chunks, Input<T> x,
                          const uint8_t* VESAL_RESTRICT mask, const float* VESAL_RESTRICT mean,
                          const float* VESAL_RESTRICT rstd, Input<T> dy, float* VESAL_RESTRICT partial) {
  VESAL_SHARED(float, a, [kTileDepth][kTileRows + 1]);
  VESAL_SHARED(float, b, [kTileDepth][kTileColumns + 1]);
  VESAL_SHARED(Place, places, [kTileDepth]);
  VESAL_SHARED(float, factors, [kTileDepth]);  // the token's scale; 0 where there is nothing to add
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.z / chunks;
  const int64_t chunk = blockIdx.z % chunks;
  const int64_t all_tokens = g.samples * g.tokens;
  const int64_t begin = all_tokens * chunk / chunks;
  const int64_t end = all_tokens * (chunk + 1) / chunks;
  const int first_feature = static_cast<int>(blockIdx.x) * kTileRows;
  const int64_t first_out = static_cast<int64_t>(blockIdx.y) * kTileColumns;
  const int row = thread / kColumnThreads * 4;
  const int column = thread % kColumnThreads * 4;
  float acc[4][4];
  clear(acc);
  for (int64_t first = begin; first < end; first += kTileDepth) {
    __syncthreads();
    if (thread < kTileDepth) {
      const int64_t token = min(first + thread, end - 1);
      const int64_t sample = token / g.tokens;
      const bool counts = first + thread < end && is_present(g, mask, sample, group);
      places[thread] = place_of(g, sample, token % g.tokens);
      factors[thread] = counts ? scale_of(g, mask, sample) : 0.0f;
    }
    __syncthreads();
    for (int e = thread; e < kTileDepth * kTileRows; e += kThreads) {
      const int t = e / kTileRows;
      const int f = first_feature + e % kTileRows;
      float value = 0.0f;
      if (factors[t] != 0.0f && f < g.features) {
        const int64_t at = group * all_tokens + first + t;
        value = (feature_of(g, directions, x, places[t], group, f) - mean[at]) * rstd[at];
      }
      a[t][e % kTileRows] = value;
    }
    for (int e = thread; e < kTileDepth * kTileColumns; e += kThreads) {
      const int t = e / kTileColumns;
      const int64_t o = first_out + e % kTileColumns;
      b[t][e % kTileColumns] =
          factors[t] != 0.0f && o < g.outs ? factors[t] * dy[(first + t) * g.outs + o] : 0.0f;
    }
    __syncthreads();
    multiply_tiles(a, b, row, column, acc);
  }
  VESAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int f = first_feature + row + i;
      const int64_t o = first_out + column + j;
      if (f < g.features && o < g.outs) {
        partial[((chunk * g.groups + group) * g.outs + o) * g.features + f] = acc[i][j];
      }
    }
  }
}

// Thread per (group, feature): dweight, dgamma and dbeta from the partial products and b.
template <class T>
VESAL_KERNEL void parameters_kernel(Grid g, int chunks, const float* VESAL_RESTRICT gamma,
                                    const float* VESAL_RESTRICT beta, Input<T> weight,
                                    const float* VESAL_RESTRICT partial, const float* VESAL_RESTRICT b,
                                    float* VESAL_RESTRICT dgamma, float* VESAL_RESTRICT dbeta,
                                    float* VESAL_RESTRICT dweight, int accumulate) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= g.groups * g.features) {
    return;
  }
  const int64_t group = i / g.features;
  const int64_t f = i % g.features;
  float sum_gamma = 0.0f;
  float sum_beta = 0.0f;
  for (int64_t o = 0; o < g.outs; ++o) {
    float product = 0.0f;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      product += partial[((chunk * g.groups + group) * g.outs + o) * g.features + f];
    }
    const int64_t at = (group * g.outs + o) * g.features + f;
    const float sum = b[group * g.outs + o];
    sum_gamma = fmaf(weight[at], product, sum_gamma);
    sum_beta = fmaf(weight[at], sum, sum_beta);
    const float value = gamma[i] * product + beta[i] * sum;
    dweight[at] = accumulate != 0 ? dweight[at] + value : value;
  }
  dgamma[i] = accumulate != 0 ? dgamma[i] + sum_gamma : sum_gamma;
  dbeta[i] = accumulate != 0 ? dbeta[i] + sum_beta : sum_beta;
}

VESAL_KERNEL void zero_kernel(float* VESAL_RESTRICT target, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    target[i] = 0.0f;
  }
}

// Column e of the gradient of the features: all of them (copy < 0), or those of one copy.
VESAL_DEVICE int feature_of_column(const Grid& g, int copy, int e) {
  if (copy < 0) {
    return e;
  }
  const int channels = static_cast<int>(g.channels);
  return (e / channels * g.copies + copy) * channels + e % channels;
}

// acc = gradient of the normalised features before gamma, unscaled: sum over outputs of dy weight, for 64
// tokens from first_token and 32 columns from first_column.
template <class Values>
VESAL_DEVICE void multiply_dy(const Grid& g, int copy, int columns, int64_t sample, int64_t group,
                              int64_t first_token, int first_column, const Values& weight, const Values& dy,
                              float (*a)[kTileRows + 1], float (*b)[kTileColumns + 1], float (&acc)[4][4]) {
  const int thread = static_cast<int>(threadIdx.x);
  clear(acc);
  for (int64_t first = 0; first < g.outs; first += kTileDepth) {
    __syncthreads();
    for (int e = thread; e < kTileDepth * kTileRows; e += kThreads) {
      const int64_t o = first + e % kTileDepth;
      const int64_t token = first_token + e / kTileDepth;
      a[e % kTileDepth][e / kTileDepth] =
          o < g.outs && token < g.tokens ? dy[(sample * g.tokens + token) * g.outs + o] : 0.0f;
    }
    for (int e = thread; e < kTileDepth * kTileColumns; e += kThreads) {
      const int64_t o = first + e / kTileColumns;
      const int column = first_column + e % kTileColumns;
      b[e / kTileColumns][e % kTileColumns] =
          o < g.outs && column < columns
              ? weight[(group * g.outs + o) * g.features + feature_of_column(g, copy, column)]
              : 0.0f;
    }
    __syncthreads();
    multiply_tiles(a, b, thread / kColumnThreads * 4, thread % kColumnThreads * 4, acc);
  }
}

// Block (token tile, 1, sample x group): of each token's row of gradients, mean and mean of the product with
// the normalised features: moments [2][groups, samples x tokens].
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kThreads, 1)
    moments_kernel(Grid g, Directions directions, Input<T> x, const uint8_t* VESAL_RESTRICT mask,
                   const float* VESAL_RESTRICT gamma, Input<T> weight, const float* VESAL_RESTRICT mean,
                   const float* VESAL_RESTRICT rstd, Input<T> dy, float* VESAL_RESTRICT moments) {
  VESAL_SHARED(float, a, [kTileDepth][kTileRows + 1]);
  VESAL_SHARED(float, b, [kTileDepth][kTileColumns + 1]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t sample = blockIdx.z / g.groups;
  const int64_t group = blockIdx.z % g.groups;
  if (!is_present(g, mask, sample, group)) {
    return;
  }
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int row = thread / kColumnThreads * 4;
  const int column = thread % kColumnThreads * 4;
  const float scale = scale_of(g, mask, sample);
  float sum[4] = {};
  float product[4] = {};
  for (int first = 0; first < g.features; first += kTileColumns) {
    float acc[4][4];
    multiply_dy(g, -1, g.features, sample, group, first_token, first, weight, dy, a, b, acc);
    VESAL_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t token = first_token + row + i;
      if (token >= g.tokens) {
        continue;
      }
      const Place place = place_of(g, sample, token);
      const int64_t at = (group * g.samples + sample) * g.tokens + token;
      VESAL_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int f = first + column + j;
        if (f < g.features) {
          const float gradient = scale * gamma[group * g.features + f] * acc[i][j];
          const float normal = (feature_of(g, directions, x, place, group, f) - mean[at]) * rstd[at];
          sum[i] += gradient;
          product[i] = fmaf(gradient, normal, product[i]);
        }
      }
    }
  }
  VESAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    for (int distance = 1; distance < kColumnThreads; distance *= 2) {
      sum[i] += __shfl_xor_sync(kFullWarp, sum[i], distance);
      product[i] += __shfl_xor_sync(kFullWarp, product[i], distance);
    }
    const int64_t token = first_token + row + i;
    if (column == 0 && token < g.tokens) {
      const int64_t at = (group * g.samples + sample) * g.tokens + token;
      const float count = static_cast<float>(g.features);
      moments[at] = sum[i] / count;
      moments[g.groups * g.samples * g.tokens + at] = product[i] / count;
    }
  }
}

// Block (token tile, column tile, sample x group): adds the gradients of one copy's features to dx.
template <class T>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kThreads, 1)
    dx_kernel(Grid g, Directions directions, int copy, Input<T> x, const uint8_t* VESAL_RESTRICT mask,
              const float* VESAL_RESTRICT gamma, Input<T> weight, const float* VESAL_RESTRICT mean,
              const float* VESAL_RESTRICT rstd, Input<T> dy, const float* VESAL_RESTRICT moments,
              float* VESAL_RESTRICT dx) {
  VESAL_SHARED(float, a, [kTileDepth][kTileRows + 1]);
  VESAL_SHARED(float, b, [kTileDepth][kTileColumns + 1]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t sample = blockIdx.z / g.groups;
  const int64_t group = blockIdx.z % g.groups;
  if (!is_present(g, mask, sample, group)) {
    return;
  }
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int first_column = static_cast<int>(blockIdx.y) * kTileColumns;
  const int columns = g.features / g.copies;
  const int row = thread / kColumnThreads * 4;
  const int column = thread % kColumnThreads * 4;
  const float scale = scale_of(g, mask, sample);
  float acc[4][4];
  multiply_dy(g, copy, columns, sample, group, first_token, first_column, weight, dy, a, b, acc);
  VESAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int64_t token = first_token + row + i;
    if (token >= g.tokens) {
      continue;
    }
    const Place place = place_of(g, sample, token);
    const int64_t at = (group * g.samples + sample) * g.tokens + token;
    VESAL_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int e = first_column + column + j;
      if (e >= columns) {
        continue;
      }
      const int f = feature_of_column(g, copy, e);
      const int64_t element = element_of(g, directions, place, group, f);
      if (element >= 0) {
        const float gradient = scale * gamma[group * g.features + f] * acc[i][j];
        const float normal = (x[element] - mean[at]) * rstd[at];
        // The product is rounded, as what it cancels against was: few features of nearly one value leave
        // little.
        const float along = __fmul_rn(normal, moments[g.groups * g.samples * g.tokens + at]);
        dx[element] += rstd[at] * (gradient - moments[at] - along);
      }
    }
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

// Where the parts of the workspace lie, in floats.
struct Plan {
  int chunks;
  int64_t mean, rstd;  // forward
  int64_t partial, sums, b, moments;
  int64_t dx;  // where dx is not stored as float32
  int64_t total;
};

Plan make_plan(const ShiftedPatchParams& p, ShiftedPatchPass pass) {
  Plan plan{};
  const int64_t statistics = p.groups * p.tokens();
  if (pass == ShiftedPatchPass::forward) {
    plan.mean = 0;
    plan.rstd = statistics;
    plan.total = 2 * statistics;
    return plan;
  }
  const int64_t parameters = p.groups * p.out * p.features();
  const int64_t fitting = kMaxPartialBytes / (parameters * static_cast<int64_t>(sizeof(float)));
  const int64_t chunks = std::max<int64_t>(1, std::min({p.tokens() / kTokensPerChunk, kMaxChunks, fitting}));
  plan.chunks = static_cast<int>(chunks);
  plan.partial = 0;
  plan.sums = plan.partial + chunks * parameters;
  plan.b = plan.sums + chunks * p.n * p.out;
  plan.moments = plan.b + p.groups * p.out;
  plan.dx = plan.moments + 2 * statistics;
  plan.total = plan.dx + (p.storage == DType::f32 ? 0 : voxel_values(p));
  return plan;
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
  const float* bias = bias_.as<float>("shifted_patch_forward: bias");
  const float* missing = missing_.as<float>("shifted_patch_forward: missing");
  const Grid g = make_grid(p);
  const Directions directions = make_directions(p);
  const Plan plan = make_plan(p, ShiftedPatchPass::forward);
  float* scratch = static_cast<float*>(workspace.data);
  float* used_mean = mean != nullptr ? mean : scratch + plan.mean;
  float* used_rstd = rstd != nullptr ? rstd : scratch + plan.rstd;
  with_storage("shifted_patch_forward", {x_, weight_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "shifted_patch_forward: x");
    launch(context.stream(), {.grid = ceil_div(p.groups * p.tokens(), kThreads / 32), .block = kThreads},
           statistics_kernel<T>, g, directions, x, mask, used_mean, used_rstd);
    launch(context.stream(),
           {.grid = {ceil_div(g.tokens, kTileRows), ceil_div(p.out, kTileColumns), p.n}, .block = kThreads},
           forward_kernel<T>, g, directions, x, mask, gamma, beta,
           input<T>(weight_, "shifted_patch_forward: weight"), bias, missing, used_mean, used_rstd,
           output<T>(y_, "shifted_patch_forward: y"));
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
  const Grid g = make_grid(p);
  const Directions directions = make_directions(p);
  const Plan plan = make_plan(p, ShiftedPatchPass::backward);
  float* scratch = static_cast<float*>(workspace.data);
  float* partial = scratch + plan.partial;
  float* sums = scratch + plan.sums;
  float* b = scratch + plan.b;
  float* moments = scratch + plan.moments;
  const int accumulate = mode == GradMode::accumulate ? 1 : 0;
  const StreamHandle stream = context.stream();
  with_storage("shifted_patch_backward", {x_, weight_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "shifted_patch_backward: x");
    const auto weight = input<T>(weight_, "shifted_patch_backward: weight");
    const auto dy = input<T>(dy_, "shifted_patch_backward: dy");
    launch(stream, {.grid = {ceil_div(p.out, 32), plan.chunks, p.n}, .block = {32, 8}}, sum_dy_kernel<T>, g,
           dy, sums);
    launch(stream, {.grid = ceil_div(p.groups * p.out, kThreads), .block = kThreads}, group_sums_kernel, g,
           plan.chunks, mask, sums, b, dbias, dmissing, accumulate);
    launch(stream,
           {.grid = {ceil_div(g.features, kTileRows), ceil_div(p.out, kTileColumns), p.groups * plan.chunks},
            .block = kThreads},
           weight_partial_kernel<T>, g, directions, plan.chunks, x, mask, mean, rstd, dy, partial);
    launch(stream, {.grid = ceil_div(p.groups * g.features, kThreads), .block = kThreads},
           parameters_kernel<T>, g, plan.chunks, gamma, beta, weight, partial, b, dgamma, dbeta, dweight,
           accumulate);
    if (!dx_) {
      return;
    }
    const auto dx = output<T>(dx_, "shifted_patch_backward: dx");
    float* sum = nullptr;
    if constexpr (std::is_same_v<T, float>) {
      sum = dx;
    } else {
      sum = scratch + plan.dx;
    }
    const int64_t elements = voxel_values(p);
    const int64_t blocks = std::min<int64_t>(ceil_div(elements, kThreads), 65536);
    launch(stream, {.grid = blocks, .block = kThreads}, zero_kernel, sum, elements);
    launch(stream, {.grid = {ceil_div(g.tokens, kTileRows), 1, p.n * p.groups}, .block = kThreads},
           moments_kernel<T>, g, directions, x, mask, gamma, weight, mean, rstd, dy, moments);
    for (int copy = 0; copy < g.copies; ++copy) {
      launch(stream,
             {.grid = {ceil_div(g.tokens, kTileRows), ceil_div(g.features / g.copies, kTileColumns),
                       p.n * p.groups},
              .block = kThreads},
             dx_kernel<T>, g, directions, copy, x, mask, gamma, weight, mean, rstd, dy, moments, sum);
    }
    if constexpr (!std::is_same_v<T, float>) {
      launch(stream, {.grid = blocks, .block = kThreads}, store_kernel<T>, elements, sum, dx);
    }
  });
}

}  // namespace VESAL_BACKEND
}  // namespace vesal::kernels
