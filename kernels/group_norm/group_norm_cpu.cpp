// Group normalisation on the CPU: the passes over the data are per channel (channel_norm_cpu.hpp); in between
// the channels of each group are brought together in double.
#include "kernels/context/activations.hpp"
#include "kernels/context/channel_norm_cpu.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/group_norm/group_norm.hpp"

namespace vesal::kernels::cpu {

void group_norm_forward(Context&, const GroupNormParams& p, ConstData x_, ConstData gamma, ConstData beta,
                        Data y_, float* mean, float* rstd, Workspace workspace) {
  with_storage("group_norm_forward", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "group_norm_forward: x");
    const auto y = output<T>(y_, "group_norm_forward: y");
    auto* partials = static_cast<double*>(workspace.data);
    double* columns = partials + p.n * slab_count(p.spatial) * 2 * p.channels;  // [n, channels, 2]
    column_statistics<T>(p.n, p.spatial, p.channels, x, partials,
                         [&](int64_t sample, int64_t c, double centre, double squares) {
                           columns[2 * (sample * p.channels + c)] = centre;
                           columns[2 * (sample * p.channels + c) + 1] = squares;
                         });
    const int64_t size = p.channels / p.groups;
    const auto rows = static_cast<double>(p.spatial);
    for (int64_t group = 0; group < p.n * p.groups; ++group) {
      const double* first = columns + 2 * group * size;
      double centre = 0;
      for (int64_t c = 0; c < size; ++c) {
        centre += first[2 * c];
      }
      centre /= static_cast<double>(size);
      double squares = 0;
      for (int64_t c = 0; c < size; ++c) {
        const double shift = first[2 * c] - centre;
        squares += first[2 * c + 1] + rows * shift * shift;
      }
      mean[group] = static_cast<float>(centre);
      rstd[group] = static_cast<float>(
          1.0 / std::sqrt(squares / (rows * static_cast<double>(size)) + static_cast<double>(p.eps)));
    }
    const Normalisation normalisation{mean,
                                      rstd,
                                      gamma.as<float>("group_norm_forward: gamma"),
                                      beta.as<float>("group_norm_forward: beta"),
                                      p.channels,
                                      p.negative_slope,
                                      size};
    NormActivations::choose(p.activation, [&](auto activation) {
      normalise<T, decltype(activation)::value>(p.n, p.spatial, normalisation, x, y);
    });
  });
}

void group_norm_backward(Context&, const GroupNormParams& p, ConstData x_, ConstData gamma_, ConstData beta,
                         const float* mean, const float* rstd, ConstData dy_, Data dx_, Data dgamma,
                         Data dbeta, GradMode mode, Workspace workspace) {
  if (p.n * p.spatial == 0) {
    if (dgamma) {
      affine_gradients(0, p.channels, nullptr, mode, dgamma.as<float>("group_norm_backward: dgamma"),
                       dbeta.as<float>("group_norm_backward: dbeta"));
    }
    return;
  }
  with_storage("group_norm_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "group_norm_backward: x");
    const float* gamma = gamma_.as<float>("group_norm_backward: gamma");
    const auto dy = input<T>(dy_, "group_norm_backward: dy");
    const auto dx = output<T>(dx_, "group_norm_backward: dx");
    auto* partials = static_cast<double*>(workspace.data);
    auto* totals = reinterpret_cast<float*>(partials + p.n * slab_count(p.spatial) * 2 *
                                                           p.channels);  // [n, channels, 2]
    float* sums = totals + p.n * p.channels * 2;                         // [n, groups, 2]
    const int64_t size = p.channels / p.groups;
    const Normalisation normalisation{
        mean, rstd, gamma, beta.as<float>("group_norm_backward: beta"), p.channels, p.negative_slope, size};
    NormActivations::choose(p.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      norm_gradient_sums<T, kActivation>(p.n, p.spatial, normalisation, x, dy, partials, totals);
      // gamma is a common factor within a channel, but not within a group.
      for (int64_t group = 0; group < (size > 1 ? p.n * p.groups : 0); ++group) {
        double sum_g = 0;
        double sum_gx = 0;
        for (int64_t k = group * size; k < (group + 1) * size; ++k) {
          const double scale = gamma != nullptr ? gamma[k % p.channels] : 1.0;
          sum_g += scale * totals[2 * k];
          sum_gx += scale * totals[2 * k + 1];
        }
        sums[2 * group] = static_cast<float>(sum_g);
        sums[2 * group + 1] = static_cast<float>(sum_gx);
      }
      const float* behind = size > 1 ? sums : totals;
      const float inverse = 1.0f / static_cast<float>(p.spatial * size);
      norm_input_gradient<T, kActivation>(
          p.n, p.spatial, normalisation, x, dy,
          [=](int64_t k) { return std::pair(behind[2 * k] * inverse, behind[2 * k + 1] * inverse); }, dx);
    });
    if (dgamma) {
      affine_gradients(p.n, p.channels, totals, mode, dgamma.as<float>("group_norm_backward: dgamma"),
                       dbeta.as<float>("group_norm_backward: dbeta"));
    }
  });
}

}  // namespace vesal::kernels::cpu
