// What instance, batch and group normalisation share in kernels: statistics of each channel over rows, the
// normalisation with its activation, and its gradient; in the portable kernel dialect, for .cu files.
//
// Data are [n, rows, channels]. A statistic (mean and rstd) belongs to a sample and a channel, to a channel
// (batch normalisation: n is 1, rows are the voxels of all samples), or to a sample and a group of
// neighbouring channels. Statistics are two-pass within a few rows of a thread, which stay in registers, and
// merge as in Chan et al. 1979: x is read once. All sums run in a fixed order.
#pragma once

#include "kernels/context/activations_device.hpp"
#include "kernels/context/device_loops.hpp"
#include "kernels/context/storage.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {  // each family registers the kernels that it launches

constexpr int kStatisticRows = 8;    // read together: enough bytes on their way to fill the memory's pipe
constexpr int kMergeThreads = 1024;  // a single block merges all slabs

// partials [n, slabs, 3, channels] = the mean of each slab, what rounding has left out of that mean, and the
// sum of squared distances from the two together: a mean far from 0 costs no digits of the variance.
template <class T>
VESAL_KERNEL void slab_statistics_kernel(int64_t rows, int64_t channels, int width, Input<T> x,
                                         float* VESAL_RESTRICT partials) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int64_t sample = blockIdx.z;
  const int64_t column =
      static_cast<int64_t>(blockIdx.y) * width + (static_cast<int>(threadIdx.x) & (width - 1));
  const int64_t first = slab_begin(rows, gridDim.x, blockIdx.x);
  const int64_t last =
      column < channels ? slab_begin(rows, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1) : first;
  const int step = kLoopThreads / width;
  const auto values = x + (sample * rows * channels + column);
  const auto all = static_cast<float>(last - first);
  float* target = partials + (sample * gridDim.x + blockIdx.x) * 3 * channels + column;
  const bool writes = static_cast<int>(threadIdx.x) < width && column < channels;
  int64_t row = first + static_cast<int>(threadIdx.x) / width;
  if (slab_begin(rows, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1) - first < kStatisticRows * step) {
    // Read twice, from L1: distances from the mean itself are the most exact, and few rows cancel most.
    float total = 0.0f;
    for (int64_t r = row; r < last; r += step) {
      total += values[r * channels];
    }
    const float mean = column_sum(total, width, scratch) / all;
    float distance = 0.0f;
    float squares = 0.0f;
    for (int64_t r = row; r < last; r += step) {
      const float d = values[r * channels] - mean;
      distance += d;
      squares += d * d;
    }
    distance = column_sum(distance, width, scratch);
    squares = column_sum(squares, width, scratch);
    if (writes) {
      target[0] = mean;
      target[channels] = distance / all;
      target[2 * channels] = squares - distance / all * distance;
    }
    return;
  }
  // Of this thread's rows, the mean counted from the origin: that of the first ones.
  float origin = 0.0f;
  float count = 0.0f;
  float mean = 0.0f;
  float squares = 0.0f;
  const auto merge = [&](float other_count, float other_mean, float other_squares) {
    const float share = other_count / (count + other_count);
    const float difference = other_mean - mean;
    squares += fmaf(difference * difference, count * share, other_squares);
    mean = fmaf(difference, share, mean);
    count += other_count;
  };
  for (; row + (kStatisticRows - 1) * step < last; row += kStatisticRows * step) {
    float value[kStatisticRows];
    VESAL_UNROLL
    for (int k = 0; k < kStatisticRows; ++k) {
      value[k] = values[(row + k * step) * channels];
    }
    if (count == 0.0f) {
      float sum = 0.0f;
      VESAL_UNROLL
      for (int k = 0; k < kStatisticRows; ++k) {
        sum += value[k];
      }
      origin = sum * (1.0f / kStatisticRows);
    }
    float distance = 0.0f;
    VESAL_UNROLL
    for (int k = 0; k < kStatisticRows; ++k) {
      value[k] -= origin;
      distance += value[k];
    }
    distance *= 1.0f / kStatisticRows;
    float sum_squares = 0.0f;
    VESAL_UNROLL
    for (int k = 0; k < kStatisticRows; ++k) {
      const float d = value[k] - distance;
      sum_squares = fmaf(d, d, sum_squares);
    }
    merge(kStatisticRows, distance, sum_squares);
  }
  for (; row < last; row += step) {
    const float value = values[row * channels];
    origin = count == 0.0f ? value : origin;
    merge(1.0f, value - origin, 0.0f);
  }
  // The column's threads together, counted from the origin of the first of them.
  scratch[threadIdx.x] = origin;
  __syncthreads();
  const float common = scratch[static_cast<int>(threadIdx.x) & (width - 1)];
  __syncthreads();
  mean += origin - common;
  const float offset = column_sum(count * mean, width, scratch) / all;
  const float d = mean - offset;
  const float rest = column_sum(count * d, width, scratch);
  squares = column_sum(fmaf(count * d, d, squares), width, scratch);
  if (writes) {
    const float rounded = common + offset;
    const float added = rounded - common;
    target[0] = rounded;
    target[channels] = (common - (rounded - added)) + (offset - added) + rest / all;
    target[2 * channels] = squares - rest * (rest / all);
  }
}

// finish(sample, column, origin, offset, squares) with the statistics of a whole column: the mean is origin +
// offset, the origin near it and the offset small, so that the difference of two columns' means can be formed
// without rounding the means first; squares is the sum of squared distances from the mean.
template <class Finish>
VESAL_KERNEL void merge_statistics_kernel(int64_t rows, int64_t slabs, int64_t channels, int width,
                                          const float* VESAL_RESTRICT partials, Finish finish) {
  VESAL_SHARED(float, scratch, [kMergeThreads]);
  const int64_t sample = blockIdx.y;
  const int64_t column =
      static_cast<int64_t>(blockIdx.x) * width + (static_cast<int>(threadIdx.x) & (width - 1));
  const int64_t start = static_cast<int>(threadIdx.x) / width;
  const int64_t last = column < channels ? slabs : 0;
  const int step = kMergeThreads / width;
  // Rows of a slab, as slab_begin counts them, but in 32 bits: there are at most kMaxSlabs slabs.
  const int64_t whole = rows / slabs;
  const auto remainder = static_cast<unsigned>(rows - whole * slabs);
  const auto pieces = static_cast<unsigned>(slabs);
  const auto rows_of = [&](int64_t slab) {
    const auto s = static_cast<unsigned>(slab);
    return static_cast<float>(whole + (remainder * (s + 1) / pieces - remainder * s / pieces));
  };
  const float* values = partials + sample * slabs * 3 * channels + column;
  // Means are counted from the first slab's: a small difference of near numbers is exact.
  const float origin = column < channels ? values[0] : 0.0f;
  float total = 0.0f;
  for (int64_t slab = start; slab < last; slab += step) {
    const float count = rows_of(slab);
    total += count * (values[slab * 3 * channels] - origin + values[(slab * 3 + 1) * channels]);
  }
  const float offset = column_sum(total, width, scratch) / static_cast<float>(rows);
  float squares = 0.0f;
  for (int64_t slab = start; slab < last; slab += step) {
    const float count = rows_of(slab);
    const float d = values[slab * 3 * channels] - origin + values[(slab * 3 + 1) * channels] - offset;
    squares += values[(slab * 3 + 2) * channels] + count * d * d;
  }
  squares = column_sum(squares, width, scratch);
  if (static_cast<int>(threadIdx.x) < width && column < channels) {
    finish(sample, column, origin, offset, squares);
  }
}

// Both of the above. partials holds n * slab_count(rows) * 3 * channels floats. finish is called by one
// thread for each sample and column.
template <class T, class Finish>
void launch_column_statistics(StreamHandle stream, int64_t n, int64_t rows, int64_t channels, Input<T> x,
                              float* partials, const Finish& finish) {
  const int width = column_width(channels);
  const int64_t slabs = slab_count(rows);
  const int64_t tiles = ceil_div(channels, width);
  launch(stream, {.grid = {slabs, tiles, n}, .block = {kLoopThreads, 1, 1}}, slab_statistics_kernel<T>, rows,
         channels, width, x, partials);
  launch(stream, {.grid = {tiles, n, 1}, .block = {kMergeThreads, 1, 1}}, merge_statistics_kernel<Finish>,
         rows, slabs, channels, width, static_cast<const float*>(partials), finish);
}

// What a column is normalised with: z = (x - mean) * scale + shift.
struct ColumnAffine {
  float mean, rstd, scale, shift;
};

struct Normalisation {
  const float* mean;
  const float* rstd;
  const float* gamma;
  const float* beta;
  int64_t channels;
  int64_t group = 1;  // channels that share a statistic
  // Where a sample's statistics of a column lie.
  VESAL_DEVICE int64_t statistic(int64_t sample, int64_t column) const {
    return group == 1 ? sample * channels + column : (sample * channels + column) / group;
  }
  VESAL_DEVICE ColumnAffine column_affine(int64_t sample, int64_t column) const {
    const int64_t k = statistic(sample, column);
    const float r = rstd[k];
    return {mean[k], r, gamma != nullptr ? r * gamma[column] : r, beta != nullptr ? beta[column] : 0.0f};
  }
};

template <class T, Activation kActivation>
struct Normalise {
  Normalisation normalisation;
  Input<T> x;
  Output<T> y;
  float slope;
  VESAL_DEVICE ColumnAffine prepare(int64_t sample, int64_t column) const {
    return normalisation.column_affine(sample, column);
  }
  VESAL_DEVICE void apply(const ColumnAffine& a, int64_t, int64_t i) const {
    y[i] = activated<kActivation>(fmaf(x[i] - a.mean, a.scale, a.shift), slope);
  }
};

// totals [n, channels, 2] = sums of g and of g xhat, g the gradient before the activation.
template <class T, Activation kActivation>
struct NormGradientSums {
  static constexpr int kRowsAhead = kActivation == Activation::none || kActivation == Activation::relu ||
                                            kActivation == Activation::leaky_relu
                                        ? 8
                                        : 1;
  Normalisation normalisation;
  Input<T> x;
  Input<T> dy;
  float slope;
  float* totals;
  VESAL_DEVICE ColumnAffine prepare(int64_t sample, int64_t column) const {
    return normalisation.column_affine(sample, column);
  }
  VESAL_DEVICE void add(const ColumnAffine& a, int64_t, int64_t i, float (&sums)[2]) const {
    const float centred = x[i] - a.mean;
    const float g = activation_gradient<kActivation>(fmaf(centred, a.scale, a.shift), dy[i], slope);
    sums[0] += g;
    sums[1] += g * (centred * a.rstd);
  }
  VESAL_DEVICE void finish(int64_t sample, int64_t column, const float (&sums)[2]) const {
    float* target = totals + (sample * normalisation.channels + column) * 2;
    target[0] = sums[0];
    target[1] = sums[1];
  }
};

// dx = outer (inner g - mean_g - xhat mean_gx). Within a channel gamma is a common factor (outer = gamma
// rstd, inner = 1); within a group it is not (outer = rstd, inner = gamma, and the means are of gamma g).
struct GradientColumn {
  ColumnAffine a;
  float outer, inner, mean_g, mean_gx;
};

template <class T, Activation kActivation>
struct NormInputGradient {
  Normalisation normalisation;
  Input<T> x;
  Input<T> dy;
  float slope;
  // [n, statistics, 2], sums of g and of g xhat over what a statistic was taken from (of gamma g in groups);
  // null where the statistics do not depend on x.
  const float* sums;
  float inverse;  // 1 / elements behind a statistic
  Output<T> dx;
  VESAL_DEVICE GradientColumn prepare(int64_t sample, int64_t column) const {
    const ColumnAffine a = normalisation.column_affine(sample, column);
    const int64_t k = 2 * normalisation.statistic(sample, column);
    const float mean_g = sums != nullptr ? sums[k] * inverse : 0.0f;
    const float mean_gx = sums != nullptr ? sums[k + 1] * inverse : 0.0f;
    if (normalisation.group == 1) {
      return {a, a.scale, 1.0f, mean_g, mean_gx};
    }
    return {a, a.rstd, normalisation.gamma != nullptr ? normalisation.gamma[column] : 1.0f, mean_g, mean_gx};
  }
  VESAL_DEVICE void apply(const GradientColumn& s, int64_t, int64_t i) const {
    const float centred = x[i] - s.a.mean;
    const float g = activation_gradient<kActivation>(fmaf(centred, s.a.scale, s.a.shift), dy[i], slope);
    dx[i] = s.outer * (s.inner * g - s.mean_g - centred * s.a.rstd * s.mean_gx);
  }
};

// dgamma and dbeta [channels] from totals [n, channels, 2], samples added in order.
VESAL_KERNEL void affine_gradient_kernel(int64_t n, int64_t channels, bool accumulate,
                                         const float* VESAL_RESTRICT totals, float* VESAL_RESTRICT dgamma,
                                         float* VESAL_RESTRICT dbeta) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kLoopThreads + threadIdx.x;
  if (c >= channels) {
    return;
  }
  float sum_gamma = accumulate ? dgamma[c] : 0.0f;
  float sum_beta = accumulate ? dbeta[c] : 0.0f;
  for (int64_t sample = 0; sample < n; ++sample) {
    sum_beta += totals[(sample * channels + c) * 2];
    sum_gamma += totals[(sample * channels + c) * 2 + 1];
  }
  dgamma[c] = sum_gamma;
  dbeta[c] = sum_beta;
}

void launch_affine_gradient(StreamHandle stream, int64_t n, int64_t channels, GradMode mode,
                            const float* totals, float* dgamma, float* dbeta) {
  launch(stream, {.grid = {ceil_div(channels, kLoopThreads), 1, 1}, .block = {kLoopThreads, 1, 1}},
         affine_gradient_kernel, n, channels, mode == GradMode::accumulate, totals, dgamma, dbeta);
}

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
