// Instance normalisation with affine map and activation. Forward moves 12 bytes an element (read for the
// statistics, read and written to normalise), backward 20 (x and dy twice, dx once); about 5 and 15
// operations: memory bandwidth limits both.
#include "kernels/context/activations.hpp"
#include "kernels/context/channel_norm_device.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/instance_norm/instance_norm.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

using InstanceNormActivations = Activations<Activation::none, Activation::relu, Activation::leaky_relu>;

struct SampleStatistics {
  float* mean;
  float* rstd;
  int64_t channels;
  float rows, eps;
  VESAL_DEVICE void operator()(int64_t sample, int64_t column, float origin, float offset,
                               float squares) const {
    mean[sample * channels + column] = origin + offset;
    rstd[sample * channels + column] = 1.0f / sqrtf(squares / rows + eps);
  }
};

}  // namespace

void instance_norm_forward(Context& context, const InstanceNormParams& p, ConstData x_, ConstData gamma,
                           ConstData beta, Data y_, float* mean, float* rstd, Workspace workspace) {
  with_storage("instance_norm_forward", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "instance_norm_forward: x");
    const auto y = output<T>(y_, "instance_norm_forward: y");
    launch_column_statistics<T>(
        context.stream(), p.n, p.spatial, p.channels, x, static_cast<float*>(workspace.data),
        SampleStatistics{mean, rstd, p.channels, static_cast<float>(p.spatial), p.eps});
    const Normalisation normalisation{mean, rstd, gamma.as<float>("instance_norm_forward: gamma"),
                                      beta.as<float>("instance_norm_forward: beta"), p.channels};
    InstanceNormActivations::choose(p.activation, [&](auto activation) {
      launch_column_map(context.stream(), p.n, p.spatial, p.channels,
                        Normalise<T, decltype(activation)::value>{normalisation, x, y, p.negative_slope});
    });
  });
}

void instance_norm_backward(Context& context, const InstanceNormParams& p, ConstData x_, ConstData gamma,
                            ConstData beta, const float* mean, const float* rstd, ConstData dy_, Data dx_,
                            Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  if (p.n * p.spatial == 0) {
    if (dgamma) {
      launch_affine_gradient(context.stream(), 0, p.channels, mode, nullptr,
                             dgamma.as<float>("instance_norm_backward: dgamma"),
                             dbeta.as<float>("instance_norm_backward: dbeta"));
    }
    return;
  }
  with_storage("instance_norm_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "instance_norm_backward: x");
    const auto dy = input<T>(dy_, "instance_norm_backward: dy");
    const auto dx = output<T>(dx_, "instance_norm_backward: dx");
    auto* partials = static_cast<float*>(workspace.data);
    float* totals = partials + p.n * slab_count(p.spatial) * 2 * p.channels;
    const Normalisation normalisation{mean, rstd, gamma.as<float>("instance_norm_backward: gamma"),
                                      beta.as<float>("instance_norm_backward: beta"), p.channels};
    InstanceNormActivations::choose(p.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      launch_column_sums<2>(context.stream(), p.n, p.spatial, p.channels, partials,
                            NormGradientSums<T, kActivation>{normalisation, x, dy, p.negative_slope, totals});
      launch_column_map(context.stream(), p.n, p.spatial, p.channels,
                        NormInputGradient<T, kActivation>{normalisation, x, dy, p.negative_slope, totals,
                                                          1.0f / static_cast<float>(p.spatial), dx});
    });
    if (dgamma) {
      launch_affine_gradient(context.stream(), p.n, p.channels, mode, totals,
                             dgamma.as<float>("instance_norm_backward: dgamma"),
                             dbeta.as<float>("instance_norm_backward: dbeta"));
    }
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
