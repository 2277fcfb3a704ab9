// What instance, batch and group normalisation share on the CPU; layouts and statistics as in
// channel_norm_device.hpp. Statistics take one pass over memory: the rows of a slab are summed, then summed
// again, centred, from the cache. A second pass normalises. Backward likewise: one pass for the two sums of
// each channel, one for dx.
#pragma once

#include <cmath>
#include <utility>

#include "kernels/context/activations_cpu.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/wide_rows.hpp"

namespace vesal::kernels::cpu {

// partials [n, slabs, 2, channels] = the mean and the sum of squared distances from it of each slab; then
// finish(sample, c, mean, squares) with those of a whole column, slabs merged in order.
template <class T, class Finish>
void column_statistics(int64_t n, int64_t spatial, int64_t channels, Input<T> x, double* partials,
                       Finish&& finish) {
  const int64_t slabs = slab_count(spatial);
  const int64_t wide = wide_width(channels);
  parallel_for(
      n * slabs, ceil_div(16384, std::max<int64_t>(spatial / slabs * channels, 1)),
      [&](int64_t first, int64_t last) {
        std::vector<float> acc(static_cast<size_t>(2 * wide));
        std::vector<double> sums(static_cast<size_t>(2 * channels));
        for (int64_t item = first; item < last; ++item) {
          const int64_t start = item / slabs * spatial;
          const int64_t begin = start + slab_begin(spatial, slabs, item % slabs);
          const int64_t end = start + slab_begin(spatial, slabs, item % slabs + 1);
          const auto rows = static_cast<double>(end - begin);
          sum_columns<1>(begin, end, channels, acc.data(), sums.data(),
                         [=](int64_t i, int64_t, auto add) { add(0, x[i]); });
          const std::vector<float> centre =
              repeat_channels(channels, [&](int64_t c) { return sums[static_cast<size_t>(c)] / rows; });
          const float* m = centre.data();
          sum_columns<2>(begin, end, channels, acc.data(), sums.data(), [=](int64_t i, int64_t j, auto add) {
            const float d = x[i] - m[j];
            add(0, d);
            add(1, d * d);
          });
          // The sum of distances is what rounding has left out of the mean.
          double* target = partials + item * 2 * channels;
          for (int64_t c = 0; c < channels; ++c) {
            const double distance = sums[static_cast<size_t>(c)];
            const double correction = distance / rows;
            target[c] = static_cast<double>(m[c]) + correction;
            target[channels + c] = sums[static_cast<size_t>(channels + c)] - correction * distance;
          }
        }
      });
  const auto rows_of = [&](int64_t slab) {
    return static_cast<double>(slab_begin(spatial, slabs, slab + 1) - slab_begin(spatial, slabs, slab));
  };
  for (int64_t sample = 0; sample < n; ++sample) {
    for (int64_t c = 0; c < channels; ++c) {
      const double* slab_means = partials + sample * slabs * 2 * channels + c;
      double centre = 0;
      for (int64_t slab = 0; slab < slabs; ++slab) {
        centre += rows_of(slab) * slab_means[slab * 2 * channels];
      }
      centre /= static_cast<double>(spatial);
      double squares = 0;
      for (int64_t slab = 0; slab < slabs; ++slab) {
        const double shift = slab_means[slab * 2 * channels] - centre;
        squares += slab_means[(slab * 2 + 1) * channels] + rows_of(slab) * shift * shift;
      }
      finish(sample, c, centre, squares);
    }
  }
}

struct Normalisation {
  const float* mean;
  const float* rstd;
  const float* gamma;
  const float* beta;
  int64_t channels;
  float slope;        // of the activation
  int64_t group = 1;  // channels that share a statistic
  // Where a sample's statistics of a channel lie.
  int64_t statistic(int64_t sample, int64_t c) const { return (sample * channels + c) / group; }
};

// What a channel of a sample is normalised with, over a wide row: z = (x - mean) * scale + shift.
struct ColumnAffine {
  std::vector<float> mean, scale, shift;
  ColumnAffine(const Normalisation& p, int64_t sample)
      : mean(repeat_channels(p.channels, [&](int64_t c) { return p.mean[p.statistic(sample, c)]; })),
        scale(repeat_channels(
            p.channels,
            [&](int64_t c) { return p.rstd[p.statistic(sample, c)] * (p.gamma ? p.gamma[c] : 1.0f); })),
        shift(repeat_channels(p.channels, [&](int64_t c) { return p.beta ? p.beta[c] : 0.0f; })) {}
};

template <class T, Activation kActivation>
void normalise(int64_t n, int64_t rows, const Normalisation& p, Input<T> x, Output<T> y) {
  column_map(n, rows, p.channels, [&](int64_t sample) {
    return [=, slope = p.slope, a = ColumnAffine(p, sample)](int64_t i, int64_t j) {
      const auto column = static_cast<size_t>(j);
      const float z = __builtin_fmaf(x[i] - a.mean[column], a.scale[column], a.shift[column]);
      y[i] = activated<kActivation>(z, slope);
    };
  });
}

// totals [n, channels, 2] = sums of g and of g xhat, g the gradient before the activation; partials as
// column_partials<2> needs them.
template <class T, Activation kActivation>
void norm_gradient_sums(int64_t n, int64_t rows, const Normalisation& p, Input<T> x, Input<T> dy,
                        double* partials, float* totals) {
  column_partials<2>(n, rows, p.channels, partials, [&](int64_t sample) {
    return [=, slope = p.slope, a = ColumnAffine(p, sample)](int64_t i, int64_t j, auto add) {
      const auto column = static_cast<size_t>(j);
      const float centred = x[i] - a.mean[column];
      const float z = __builtin_fmaf(centred, a.scale[column], a.shift[column]);
      const float g = activation_gradient<kActivation>(z, dy[i], slope);
      add(0, g);
      add(1, g * centred);
    };
  });
  column_totals<2>(n, rows, p.channels, partials,
                   [&](int64_t sample, int64_t c, const std::array<double, 2>& sums) {
                     const int64_t k = sample * p.channels + c;
                     totals[2 * k] = static_cast<float>(sums[0]);
                     totals[2 * k + 1] = static_cast<float>(sums[1] * p.rstd[p.statistic(sample, c)]);
                   });
}

// dx = scale (g - mean_g) - (x - mean) scale rstd mean_gx within a channel, where gamma is a common factor,
// and rstd (gamma g - mean_g - (x - mean) rstd mean_gx) within a group, where the means are of gamma g.
// means(statistic) returns the pair (mean_g, mean_gx).
template <class T, Activation kActivation, class Means>
void norm_input_gradient(int64_t n, int64_t rows, const Normalisation& p, Input<T> x, Input<T> dy,
                         Means&& means, Output<T> dx) {
  const auto mean_g = [&](int64_t sample) {
    return repeat_channels(p.channels, [&](int64_t c) { return means(p.statistic(sample, c)).first; });
  };
  const auto mean_gx = [&](int64_t sample) {
    return repeat_channels(p.channels, [&](int64_t c) {
      const int64_t k = p.statistic(sample, c);
      return means(k).second * p.rstd[k];
    });
  };
  if (p.group == 1) {
    column_map(n, rows, p.channels, [&](int64_t sample) {
      return [=, slope = p.slope, a = ColumnAffine(p, sample), mean_g = mean_g(sample),
              mean_gx = mean_gx(sample)](int64_t i, int64_t j) {
        const auto column = static_cast<size_t>(j);
        const float centred = x[i] - a.mean[column];
        const float z = __builtin_fmaf(centred, a.scale[column], a.shift[column]);
        const float g = activation_gradient<kActivation>(z, dy[i], slope);
        dx[i] = a.scale[column] * __builtin_fmaf(-centred, mean_gx[column], g - mean_g[column]);
      };
    });
    return;
  }
  column_map(n, rows, p.channels, [&](int64_t sample) {
    return [=, slope = p.slope, a = ColumnAffine(p, sample), mean_g = mean_g(sample),
            mean_gx = mean_gx(sample),
            rstd = repeat_channels(p.channels, [&](int64_t c) { return p.rstd[p.statistic(sample, c)]; }),
            gamma = repeat_channels(p.channels, [&](int64_t c) { return p.gamma ? p.gamma[c] : 1.0f; })](
               int64_t i, int64_t j) {
      const auto column = static_cast<size_t>(j);
      const float centred = x[i] - a.mean[column];
      const float z = __builtin_fmaf(centred, a.scale[column], a.shift[column]);
      const float g = activation_gradient<kActivation>(z, dy[i], slope);
      dx[i] = rstd[column] * __builtin_fmaf(-centred, mean_gx[column], gamma[column] * g - mean_g[column]);
    };
  });
}

// dgamma and dbeta [channels] from totals [n, channels, 2], samples added in order.
inline void affine_gradients(int64_t n, int64_t channels, const float* totals, GradMode mode, float* dgamma,
                             float* dbeta) {
  for (int64_t c = 0; c < channels; ++c) {
    double sum_gamma = mode == GradMode::accumulate ? dgamma[c] : 0.0;
    double sum_beta = mode == GradMode::accumulate ? dbeta[c] : 0.0;
    for (int64_t sample = 0; sample < n; ++sample) {
      sum_beta += totals[2 * (sample * channels + c)];
      sum_gamma += totals[2 * (sample * channels + c) + 1];
    }
    dgamma[c] = static_cast<float>(sum_gamma);
    dbeta[c] = static_cast<float>(sum_beta);
  }
}

}  // namespace vesal::kernels::cpu
