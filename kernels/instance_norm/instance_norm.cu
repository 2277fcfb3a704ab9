// Instance normalisation with affine map and activation. Forward moves 12 bytes an element (read for the
// statistics, read and written to normalise; the centred second read of a slab comes from cache), backward 20
// (x and dy twice, dx once); about 5 and 15 operations: memory bandwidth limits both. Statistics are two-pass
// within a slab and merge as in Chan et al.; all sums run in a fixed order. No GPU timing exists yet:
// bench/results/README.md.
#include <type_traits>

#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/instance_norm/instance_norm.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// partials [n, slabs, 3, channels] = the mean of each slab, what rounding has left out of that mean, and the
// sum of squared distances from the two together: a mean far from 0 costs no digits of the variance.
VESAL_KERNEL void slab_statistics_kernel(int64_t rows, int64_t channels, int width,
                                         const float* VESAL_RESTRICT x, float* VESAL_RESTRICT partials) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int64_t sample = blockIdx.z;
  const int64_t column =
      static_cast<int64_t>(blockIdx.y) * width + (static_cast<int>(threadIdx.x) & (width - 1));
  const int64_t first = slab_begin(rows, gridDim.x, blockIdx.x);
  const int64_t last =
      column < channels ? slab_begin(rows, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1) : first;
  const int64_t start = first + static_cast<int>(threadIdx.x) / width;
  const int step = kLoopThreads / width;
  const float* values = x + sample * rows * channels + column;
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

// Mean and rstd of each channel and sample from the slabs' statistics.
VESAL_KERNEL void merge_statistics_kernel(int64_t rows, int64_t slabs, int64_t channels, int width, float eps,
                                          const float* VESAL_RESTRICT partials, float* VESAL_RESTRICT mean,
                                          float* VESAL_RESTRICT rstd) {
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
    mean[sample * channels + column] = origin + offset;
    rstd[sample * channels + column] = 1.0f / sqrtf(squares / static_cast<float>(rows) + eps);
  }
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
  VESAL_DEVICE ColumnAffine column_affine(int64_t sample, int64_t column) const {
    const float r = rstd[sample * channels + column];
    return {mean[sample * channels + column], r, gamma != nullptr ? r * gamma[column] : r,
            beta != nullptr ? beta[column] : 0.0f};
  }
};

template <Activation kActivation>
struct Normalise {
  Normalisation normalisation;
  const float* x;
  float* y;
  float slope;
  VESAL_DEVICE ColumnAffine prepare(int64_t sample, int64_t column) const {
    return normalisation.column_affine(sample, column);
  }
  VESAL_DEVICE void apply(const ColumnAffine& a, int64_t, int64_t i) const {
    const float z = fmaf(x[i] - a.mean, a.scale, a.shift);
    if constexpr (kActivation == Activation::relu) {
      y[i] = z <= 0.0f ? 0.0f : z;
    } else if constexpr (kActivation == Activation::leaky_relu) {
      y[i] = z > 0.0f ? z : slope * z;
    } else {
      y[i] = z;
    }
  }
};

// dy times the slope of the activation at z.
template <Activation kActivation>
VESAL_DEVICE float before_activation(float z, float dy, float slope) {
  if constexpr (kActivation == Activation::relu) {
    return z > 0.0f ? dy : 0.0f;
  } else if constexpr (kActivation == Activation::leaky_relu) {
    return z > 0.0f ? dy : slope * dy;
  } else {
    return dy;
  }
}

// totals [n, channels, 2] = sums of g and of g xhat.
template <Activation kActivation>
struct GradientSums {
  Normalisation normalisation;
  const float* x;
  const float* dy;
  float slope;
  float* totals;
  VESAL_DEVICE ColumnAffine prepare(int64_t sample, int64_t column) const {
    return normalisation.column_affine(sample, column);
  }
  VESAL_DEVICE void add(const ColumnAffine& a, int64_t, int64_t i, float (&sums)[2]) const {
    const float centred = x[i] - a.mean;
    const float g = before_activation<kActivation>(fmaf(centred, a.scale, a.shift), dy[i], slope);
    sums[0] += g;
    sums[1] += g * (centred * a.rstd);
  }
  VESAL_DEVICE void finish(int64_t sample, int64_t column, const float (&sums)[2]) const {
    float* target = totals + (sample * normalisation.channels + column) * 2;
    target[0] = sums[0];
    target[1] = sums[1];
  }
};

struct GradientColumn {
  ColumnAffine a;
  float mean_g, mean_gx;
};

template <Activation kActivation>
struct InputGradient {
  Normalisation normalisation;
  const float* x;
  const float* dy;
  float slope;
  const float* totals;
  float inverse;  // 1 / voxels
  float* dx;
  VESAL_DEVICE GradientColumn prepare(int64_t sample, int64_t column) const {
    const float* sums = totals + (sample * normalisation.channels + column) * 2;
    return {normalisation.column_affine(sample, column), sums[0] * inverse, sums[1] * inverse};
  }
  VESAL_DEVICE void apply(const GradientColumn& s, int64_t, int64_t i) const {
    const float centred = x[i] - s.a.mean;
    const float g = before_activation<kActivation>(fmaf(centred, s.a.scale, s.a.shift), dy[i], slope);
    dx[i] = s.a.scale * (g - s.mean_g - centred * s.a.rstd * s.mean_gx);
  }
};

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

// use(std::integral_constant<Activation, activation>).
template <class Use>
void with_activation(Activation activation, Use use) {
  switch (activation) {
    case Activation::relu:
      return use(std::integral_constant<Activation, Activation::relu>{});
    case Activation::leaky_relu:
      return use(std::integral_constant<Activation, Activation::leaky_relu>{});
    default:
      return use(std::integral_constant<Activation, Activation::none>{});
  }
}

}  // namespace

void instance_norm_forward(Context& context, const InstanceNormParams& p, ConstData x_, ConstData gamma,
                           ConstData beta, Data y, float* mean, float* rstd, Workspace workspace) {
  const float* x = x_.as<float>("instance_norm_forward: x");
  auto* partials = static_cast<float*>(workspace.data);
  const int width = column_width(p.channels);
  const int64_t slabs = slab_count(p.spatial);
  const int64_t tiles = ceil_div(p.channels, width);
  launch(context.stream(), {.grid = {slabs, tiles, p.n}, .block = {kLoopThreads, 1, 1}},
         slab_statistics_kernel, p.spatial, p.channels, width, x, partials);
  launch(context.stream(), {.grid = {tiles, p.n, 1}, .block = {kLoopThreads, 1, 1}}, merge_statistics_kernel,
         p.spatial, slabs, p.channels, width, p.eps, static_cast<const float*>(partials), mean, rstd);
  const Normalisation normalisation{mean, rstd, gamma.as<float>("instance_norm_forward: gamma"),
                                    beta.as<float>("instance_norm_forward: beta"), p.channels};
  with_activation(p.activation, [&](auto activation) {
    launch_column_map(context.stream(), p.n, p.spatial, p.channels,
                      Normalise<decltype(activation)::value>{
                          normalisation, x, y.as<float>("instance_norm_forward: y"), p.negative_slope});
  });
}

void instance_norm_backward(Context& context, const InstanceNormParams& p, ConstData x_, ConstData gamma,
                            ConstData beta, const float* mean, const float* rstd, ConstData dy_, Data dx,
                            Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  const float* x = x_.as<float>("instance_norm_backward: x");
  const float* dy = dy_.as<float>("instance_norm_backward: dy");
  auto* partials = static_cast<float*>(workspace.data);
  float* totals = partials + p.n * slab_count(p.spatial) * 2 * p.channels;
  const Normalisation normalisation{mean, rstd, gamma.as<float>("instance_norm_backward: gamma"),
                                    beta.as<float>("instance_norm_backward: beta"), p.channels};
  with_activation(p.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    launch_column_sums<2>(context.stream(), p.n, p.spatial, p.channels, partials,
                          GradientSums<kActivation>{normalisation, x, dy, p.negative_slope, totals});
    launch_column_map(context.stream(), p.n, p.spatial, p.channels,
                      InputGradient<kActivation>{normalisation, x, dy, p.negative_slope, totals,
                                                 1.0f / static_cast<float>(p.spatial),
                                                 dx.as<float>("instance_norm_backward: dx")});
  });
  if (dgamma) {
    launch(context.stream(),
           {.grid = {ceil_div(p.channels, kLoopThreads), 1, 1}, .block = {kLoopThreads, 1, 1}},
           affine_gradient_kernel, p.n, p.channels, mode == GradMode::accumulate,
           static_cast<const float*>(totals), dgamma.as<float>("instance_norm_backward: dgamma"),
           dbeta.as<float>("instance_norm_backward: dbeta"));
  }
}

}  // namespace vesal::kernels::VESAL_BACKEND
