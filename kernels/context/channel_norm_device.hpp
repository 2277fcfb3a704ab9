// What instance, batch and group normalisation share in kernels: statistics of each channel over rows, the
// normalisation with its activation, and its gradient; in the portable kernel dialect, for .cu files.
//
// Data are [n, rows, channels]. A statistic (mean and rstd) belongs to a sample and a channel, to a channel
// (batch normalisation: n is 1, rows are the voxels of all samples), or to a sample and a group of
// neighbouring channels. Statistics are two-pass within a slab and merge as in Chan et al. 1979; all sums run
// in a fixed order.
#pragma once

#include "kernels/context/activations_device.hpp"
#include "kernels/context/device_loops.hpp"
#include "kernels/context/storage.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {  // each family registers the kernels that it launches

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
  const int64_t start = first + static_cast<int>(threadIdx.x) / width;
  const int step = kLoopThreads / width;
  const auto values = x + (sample * rows * channels + column);
  float total = 0.0f;
  for (int64_t row = start; row < last; row += step) {
    total += values[row * channels];
  }
  const float mean = column_sum(total, width, scratch) / static_cast<float>(last - first);
  float distance = 0.0f;
  float squares = 0.0f;
  for (int64_t row = start; row < last; row += step) {
    const float d = values[row * channels] - mean;
    distance += d;
    squares += d * d;
  }
  distance = column_sum(distance, width, scratch);
  squares = column_sum(squares, width, scratch);
  const float correction = distance / static_cast<float>(last - first);
  if (static_cast<int>(threadIdx.x) < width && column < channels) {
    float* target = partials + (sample * gridDim.x + blockIdx.x) * 3 * channels + column;
    target[0] = mean;
    target[channels] = correction;
    target[2 * channels] = squares - correction * distance;
  }
}

// finish(sample, column, origin, offset, squares) with the statistics of a whole column: the mean is origin +
// offset, the origin near it and the offset small, so that the difference of two columns' means can be formed
// without rounding the means first; squares is the sum of squared distances from the mean.
template <class Finish>
VESAL_KERNEL void merge_statistics_kernel(int64_t rows, int64_t slabs, int64_t channels, int width,
                                          const float* VESAL_RESTRICT partials, Finish finish) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int64_t sample = blockIdx.y;
  const int64_t column =
      static_cast<int64_t>(blockIdx.x) * width + (static_cast<int>(threadIdx.x) & (width - 1));
  const int64_t start = static_cast<int>(threadIdx.x) / width;
  const int64_t last = column < channels ? slabs : 0;
  const int step = kLoopThreads / width;
  const float* values = partials + sample * slabs * 3 * channels + column;
  // Means are counted from the first slab's: a small difference of near numbers is exact.
  const float origin = column < channels ? values[0] : 0.0f;
  float total = 0.0f;
  for (int64_t slab = start; slab < last; slab += step) {
    const auto count = static_cast<float>(slab_begin(rows, slabs, slab + 1) - slab_begin(rows, slabs, slab));
    total += count * (values[slab * 3 * channels] - origin + values[(slab * 3 + 1) * channels]);
  }
  const float offset = column_sum(total, width, scratch) / static_cast<float>(rows);
  float squares = 0.0f;
  for (int64_t slab = start; slab < last; slab += step) {
    const auto count = static_cast<float>(slab_begin(rows, slabs, slab + 1) - slab_begin(rows, slabs, slab));
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
  launch(stream, {.grid = {tiles, n, 1}, .block = {kLoopThreads, 1, 1}}, merge_statistics_kernel<Finish>,
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
