// Instance normalisation on the CPU: statistics for each sample and channel (channel_norm_cpu.hpp).
#include "kernels/context/activations.hpp"
#include "kernels/context/channel_norm_cpu.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/instance_norm/instance_norm.hpp"

namespace vesal::kernels::cpu {
namespace {

using InstanceNormActivations = Activations<Activation::none, Activation::relu, Activation::leaky_relu>;

}  // namespace

void instance_norm_forward(Context&, const InstanceNormParams& p, ConstData x_, ConstData gamma,
                           ConstData beta, Data y_, float* mean, float* rstd, Workspace workspace) {
  with_storage("instance_norm_forward", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "instance_norm_forward: x");
    const auto y = output<T>(y_, "instance_norm_forward: y");
    column_statistics<T>(p.n, p.spatial, p.channels, x, static_cast<double*>(workspace.data),
                         [&](int64_t sample, int64_t c, double centre, double squares) {
                           mean[sample * p.channels + c] = static_cast<float>(centre);
                           rstd[sample * p.channels + c] =
                               static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(p.spatial) +
                                                                  static_cast<double>(p.eps)));
                         });
    const Normalisation normalisation{mean,
                                      rstd,
                                      gamma.as<float>("instance_norm_forward: gamma"),
                                      beta.as<float>("instance_norm_forward: beta"),
                                      p.channels,
                                      p.negative_slope};
    InstanceNormActivations::choose(p.activation, [&](auto activation) {
      normalise<T, decltype(activation)::value>(p.n, p.spatial, normalisation, x, y);
    });
  });
}

void instance_norm_backward(Context&, const InstanceNormParams& p, ConstData x_, ConstData gamma,
                            ConstData beta, const float* mean, const float* rstd, ConstData dy_, Data dx_,
                            Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  if (p.n * p.spatial == 0) {
    if (dgamma) {
      affine_gradients(0, p.channels, nullptr, mode, dgamma.as<float>("instance_norm_backward: dgamma"),
                       dbeta.as<float>("instance_norm_backward: dbeta"));
    }
    return;
  }
  with_storage("instance_norm_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "instance_norm_backward: x");
    const auto dy = input<T>(dy_, "instance_norm_backward: dy");
    const auto dx = output<T>(dx_, "instance_norm_backward: dx");
    auto* partials = static_cast<double*>(workspace.data);
    auto* totals = reinterpret_cast<float*>(partials + p.n * slab_count(p.spatial) * 2 *
                                                           p.channels);  // [n, channels, 2]
    const Normalisation normalisation{mean,
                                      rstd,
                                      gamma.as<float>("instance_norm_backward: gamma"),
                                      beta.as<float>("instance_norm_backward: beta"),
                                      p.channels,
                                      p.negative_slope};
    InstanceNormActivations::choose(p.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      norm_gradient_sums<T, kActivation>(p.n, p.spatial, normalisation, x, dy, partials, totals);
      const float inverse = 1.0f / static_cast<float>(p.spatial);
      norm_input_gradient<T, kActivation>(
          p.n, p.spatial, normalisation, x, dy,
          [=](int64_t k) { return std::pair(totals[2 * k] * inverse, totals[2 * k + 1] * inverse); }, dx);
    });
    if (dgamma) {
      affine_gradients(p.n, p.channels, totals, mode, dgamma.as<float>("instance_norm_backward: dgamma"),
                       dbeta.as<float>("instance_norm_backward: dbeta"));
    }
  });
}

}  // namespace vesal::kernels::cpu
