// Instance normalisation on the CPU. Statistics take one pass over memory: the rows of a slab are summed,
// then summed again, centred, from the cache; slabs merge as in Chan et al. A second pass normalises.
// Backward likewise: one pass for the two sums of each channel, one for dx.
#include <algorithm>
#include <cmath>

#include "kernels/context/dispatch.hpp"
#include "kernels/context/wide_rows.hpp"
#include "kernels/instance_norm/instance_norm.hpp"

namespace vesal::kernels::cpu {
namespace {

// partials [n, slabs, 2, channels] = the mean and the sum of squared distances from it of each slab.
void slab_statistics(const InstanceNormParams& p, const float* __restrict x, double* partials) {
  const int64_t slabs = slab_count(p.spatial);
  const int64_t wide = wide_width(p.channels);
  parallel_for(p.n * slabs, ceil_div(16384, std::max<int64_t>(p.spatial / slabs * p.channels, 1)),
               [&](int64_t first, int64_t last) {
                 std::vector<float> acc(static_cast<size_t>(2 * wide));
                 std::vector<double> sums(static_cast<size_t>(2 * p.channels));
                 for (int64_t item = first; item < last; ++item) {
                   const int64_t start = item / slabs * p.spatial;
                   const int64_t begin = start + slab_begin(p.spatial, slabs, item % slabs);
                   const int64_t end = start + slab_begin(p.spatial, slabs, item % slabs + 1);
                   const auto rows = static_cast<double>(end - begin);
                   sum_columns<1>(begin, end, p.channels, acc.data(), sums.data(),
                                  [=](int64_t i, int64_t, auto add) { add(0, x[i]); });
                   const std::vector<float> centre = repeat_channels(
                       p.channels, [&](int64_t c) { return sums[static_cast<size_t>(c)] / rows; });
                   const float* m = centre.data();
                   sum_columns<2>(begin, end, p.channels, acc.data(), sums.data(),
                                  [=](int64_t i, int64_t j, auto add) {
                                    const float d = x[i] - m[j];
                                    add(0, d);
                                    add(1, d * d);
                                  });
                   // The sum of distances is what rounding has left out of the mean.
                   double* target = partials + item * 2 * p.channels;
                   for (int64_t c = 0; c < p.channels; ++c) {
                     const double distance = sums[static_cast<size_t>(c)];
                     const double correction = distance / rows;
                     target[c] = static_cast<double>(m[c]) + correction;
                     target[p.channels + c] =
                         sums[static_cast<size_t>(p.channels + c)] - correction * distance;
                   }
                 }
               });
}

// What a channel of a sample is normalised with, over a wide row: z = (x - mean) * scale + shift.
struct Affine {
  std::vector<float> mean, scale, shift;
  Affine(const InstanceNormParams& p, int64_t sample, const float* means, const float* rstds,
         const float* gamma, const float* beta)
      : mean(repeat_channels(p.channels, [&](int64_t c) { return means[sample * p.channels + c]; })),
        scale(repeat_channels(
            p.channels,
            [&](int64_t c) { return rstds[sample * p.channels + c] * (gamma ? gamma[c] : 1.0f); })),
        shift(repeat_channels(p.channels, [&](int64_t c) { return beta ? beta[c] : 0.0f; })) {}
};

inline float affine(float x, float mean, float scale, float shift) {
  return __builtin_fmaf(x - mean, scale, shift);
}

template <Activation kActivation>
void normalise(const InstanceNormParams& p, const float* x, const float* gamma, const float* beta, float* y,
               const float* mean, const float* rstd) {
  column_map(p.n, p.spatial, p.channels, [&](int64_t sample) {
    return
        [=, slope = p.negative_slope, a = Affine(p, sample, mean, rstd, gamma, beta)](int64_t i, int64_t j) {
          const auto column = static_cast<size_t>(j);
          const float z = affine(x[i], a.mean[column], a.scale[column], a.shift[column]);
          if constexpr (kActivation == Activation::relu) {
            y[i] = z <= 0.0f ? 0.0f : z;
          } else if constexpr (kActivation == Activation::leaky_relu) {
            y[i] = z * (z > 0.0f ? 1.0f : slope);
          } else {
            y[i] = z;
          }
        };
  });
}

// dy times the slope of the activation at z.
template <Activation kActivation>
inline float before_activation(float z, float dy, float slope) {
  if constexpr (kActivation == Activation::relu) {
    return z > 0.0f ? dy : 0.0f;
  } else if constexpr (kActivation == Activation::leaky_relu) {
    return dy * (z > 0.0f ? 1.0f : slope);
  } else {
    return dy;
  }
}

template <Activation kActivation>
void backward(const InstanceNormParams& p, const float* x, const float* gamma, const float* beta,
              const float* mean, const float* rstd, const float* dy, float* dx, float* dgamma, float* dbeta,
              GradMode mode, Workspace workspace) {
  auto* partials = static_cast<double*>(workspace.data);
  auto* totals =
      reinterpret_cast<float*>(partials + p.n * slab_count(p.spatial) * 2 * p.channels);  // [n, channels, 2]
  const float slope = p.negative_slope;
  // Sums of g and of g (x - mean).
  column_partials<2>(p.n, p.spatial, p.channels, partials, [&](int64_t sample) {
    return [=, a = Affine(p, sample, mean, rstd, gamma, beta)](int64_t i, int64_t j, auto add) {
      const auto column = static_cast<size_t>(j);
      const float centred = x[i] - a.mean[column];
      const float z = __builtin_fmaf(centred, a.scale[column], a.shift[column]);
      const float g = before_activation<kActivation>(z, dy[i], slope);
      add(0, g);
      add(1, g * centred);
    };
  });
  column_totals<2>(p.n, p.spatial, p.channels, partials,
                   [&](int64_t sample, int64_t c, const std::array<double, 2>& sums) {
                     const int64_t k = sample * p.channels + c;
                     totals[2 * k] = static_cast<float>(sums[0]);
                     totals[2 * k + 1] = static_cast<float>(sums[1] * rstd[k]);
                   });
  if (dgamma != nullptr) {
    for (int64_t c = 0; c < p.channels; ++c) {
      double sum_gamma = mode == GradMode::accumulate ? dgamma[c] : 0.0;
      double sum_beta = mode == GradMode::accumulate ? dbeta[c] : 0.0;
      for (int64_t sample = 0; sample < p.n; ++sample) {
        sum_beta += totals[2 * (sample * p.channels + c)];
        sum_gamma += totals[2 * (sample * p.channels + c) + 1];
      }
      dgamma[c] = static_cast<float>(sum_gamma);
      dbeta[c] = static_cast<float>(sum_beta);
    }
  }
  // dx = scale (g - mean(g)) - (x - mean) scale rstd mean(g xhat).
  const float inverse = 1.0f / static_cast<float>(p.spatial);
  column_map(p.n, p.spatial, p.channels, [&](int64_t sample) {
    const int64_t first = sample * p.channels;
    return
        [=, a = Affine(p, sample, mean, rstd, gamma, beta),
         mean_g = repeat_channels(p.channels, [&](int64_t c) { return totals[2 * (first + c)] * inverse; }),
         mean_gx = repeat_channels(p.channels, [&](int64_t c) {
           return totals[2 * (first + c) + 1] * inverse * rstd[first + c];
         })](int64_t i, int64_t j) {
          const auto column = static_cast<size_t>(j);
          const float centred = x[i] - a.mean[column];
          const float z = __builtin_fmaf(centred, a.scale[column], a.shift[column]);
          const float g = before_activation<kActivation>(z, dy[i], slope);
          dx[i] = a.scale[column] * __builtin_fmaf(-centred, mean_gx[column], g - mean_g[column]);
        };
  });
}

}  // namespace

void instance_norm_forward(Context&, const InstanceNormParams& p, ConstData x_, ConstData gamma_,
                           ConstData beta_, Data y_, float* mean, float* rstd, Workspace workspace) {
  const float* x = x_.as<float>("instance_norm_forward: x");
  const float* gamma = gamma_.as<float>("instance_norm_forward: gamma");
  const float* beta = beta_.as<float>("instance_norm_forward: beta");
  float* y = y_.as<float>("instance_norm_forward: y");
  auto* partials = static_cast<double*>(workspace.data);
  slab_statistics(p, x, partials);
  const int64_t slabs = slab_count(p.spatial);
  const auto rows_of = [&](int64_t slab) {
    return static_cast<double>(slab_begin(p.spatial, slabs, slab + 1) - slab_begin(p.spatial, slabs, slab));
  };
  for (int64_t sample = 0; sample < p.n; ++sample) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const double* slab_means = partials + sample * slabs * 2 * p.channels + c;
      double centre = 0;
      for (int64_t slab = 0; slab < slabs; ++slab) {
        centre += rows_of(slab) * slab_means[slab * 2 * p.channels];
      }
      centre /= static_cast<double>(p.spatial);
      double squares = 0;
      for (int64_t slab = 0; slab < slabs; ++slab) {
        const double shift = slab_means[slab * 2 * p.channels] - centre;
        squares += slab_means[(slab * 2 + 1) * p.channels] + rows_of(slab) * shift * shift;
      }
      mean[sample * p.channels + c] = static_cast<float>(centre);
      rstd[sample * p.channels + c] = static_cast<float>(
          1.0 / std::sqrt(squares / static_cast<double>(p.spatial) + static_cast<double>(p.eps)));
    }
  }
  switch (p.activation) {
    case Activation::relu:
      return normalise<Activation::relu>(p, x, gamma, beta, y, mean, rstd);
    case Activation::leaky_relu:
      return normalise<Activation::leaky_relu>(p, x, gamma, beta, y, mean, rstd);
    default:
      return normalise<Activation::none>(p, x, gamma, beta, y, mean, rstd);
  }
}

void instance_norm_backward(Context&, const InstanceNormParams& p, ConstData x_, ConstData gamma_,
                            ConstData beta_, const float* mean, const float* rstd, ConstData dy_, Data dx_,
                            Data dgamma_, Data dbeta_, GradMode mode, Workspace workspace) {
  const float* x = x_.as<float>("instance_norm_backward: x");
  const float* gamma = gamma_.as<float>("instance_norm_backward: gamma");
  const float* beta = beta_.as<float>("instance_norm_backward: beta");
  const float* dy = dy_.as<float>("instance_norm_backward: dy");
  float* dx = dx_.as<float>("instance_norm_backward: dx");
  float* dgamma = dgamma_.as<float>("instance_norm_backward: dgamma");
  float* dbeta = dbeta_.as<float>("instance_norm_backward: dbeta");
  switch (p.activation) {
    case Activation::relu:
      return backward<Activation::relu>(p, x, gamma, beta, mean, rstd, dy, dx, dgamma, dbeta, mode,
                                        workspace);
    case Activation::leaky_relu:
      return backward<Activation::leaky_relu>(p, x, gamma, beta, mean, rstd, dy, dx, dgamma, dbeta, mode,
                                              workspace);
    default:
      return backward<Activation::none>(p, x, gamma, beta, mean, rstd, dy, dx, dgamma, dbeta, mode,
                                        workspace);
  }
}

}  // namespace vesal::kernels::cpu
