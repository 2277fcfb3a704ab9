// Batch normalisation with affine map and activation. The samples' voxels are one run of rows, so that it is
// the channel normalisation of one large sample. Forward moves 12 bytes an element in training (read for the
// statistics, read and written to normalise) and 8 in evaluation; backward 20 and, in evaluation without
// affine map, 12; up to about 40 operations: memory bandwidth limits all of them. Statistics and sums have
// eight rows a thread on their way at a time.
#include "kernels/batch_norm/batch_norm.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/channel_norm_device.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

struct BatchStatistics {
  float* mean;
  float* rstd;
  float* running_mean;
  float* running_var;
  float rows, rows_minus_one, eps, momentum;
  VESAL_DEVICE void operator()(int64_t, int64_t c, float origin, float offset, float squares) const {
    mean[c] = origin + offset;
    rstd[c] = 1.0f / sqrtf(squares / rows + eps);
    if (running_mean != nullptr) {
      running_mean[c] = (1.0f - momentum) * running_mean[c] + momentum * (origin + offset);
      running_var[c] = (1.0f - momentum) * running_var[c] + momentum * (squares / rows_minus_one);
    }
  }
};

struct RunningStatistics {
  const float* running_mean;
  const float* running_var;
  float* mean;
  float* rstd;
  float eps;
  VESAL_DEVICE void operator()(int64_t c) const {
    mean[c] = running_mean[c];
    rstd[c] = 1.0f / sqrtf(running_var[c] + eps);
  }
};

}  // namespace

void batch_norm_forward(Context& context, const BatchNormParams& p, ConstData x_, ConstData gamma,
                        ConstData beta, float* running_mean, float* running_var, Data y_, float* mean,
                        float* rstd, Workspace workspace) {
  with_storage("batch_norm_forward", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "batch_norm_forward: x");
    const auto y = output<T>(y_, "batch_norm_forward: y");
    if (p.training) {
      const auto rows = static_cast<float>(p.rows());
      launch_column_statistics<T>(context.stream(), 1, p.rows(), p.channels, x,
                                  static_cast<float*>(workspace.data),
                                  BatchStatistics{mean, rstd, running_mean, running_var, rows,
                                                  static_cast<float>(p.rows() - 1), p.eps, p.momentum});
    } else {
      launch_map(context.stream(), p.channels,
                 RunningStatistics{running_mean, running_var, mean, rstd, p.eps});
    }
    const Normalisation normalisation{mean, rstd, gamma.as<float>("batch_norm_forward: gamma"),
                                      beta.as<float>("batch_norm_forward: beta"), p.channels};
    NormActivations::choose(p.activation, [&](auto activation) {
      launch_column_map(context.stream(), 1, p.rows(), p.channels,
                        Normalise<T, decltype(activation)::value>{normalisation, x, y, p.negative_slope});
    });
  });
}

void batch_norm_backward(Context& context, const BatchNormParams& p, ConstData x_, ConstData gamma,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy_, Data dx_,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  if (p.rows() == 0) {
    if (dgamma) {
      launch_affine_gradient(context.stream(), 0, p.channels, mode, nullptr,
                             dgamma.as<float>("batch_norm_backward: dgamma"),
                             dbeta.as<float>("batch_norm_backward: dbeta"));
    }
    return;
  }
  with_storage("batch_norm_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "batch_norm_backward: x");
    const auto dy = input<T>(dy_, "batch_norm_backward: dy");
    const auto dx = output<T>(dx_, "batch_norm_backward: dx");
    auto* partials = static_cast<float*>(workspace.data);
    float* totals = partials + slab_count(p.rows()) * 2 * p.channels;
    const Normalisation normalisation{mean, rstd, gamma.as<float>("batch_norm_backward: gamma"),
                                      beta.as<float>("batch_norm_backward: beta"), p.channels};
    NormActivations::choose(p.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      if (p.training || dgamma) {
        launch_column_sums<2>(
            context.stream(), 1, p.rows(), p.channels, partials,
            NormGradientSums<T, kActivation>{normalisation, x, dy, p.negative_slope, totals});
      }
      launch_column_map(context.stream(), 1, p.rows(), p.channels,
                        NormInputGradient<T, kActivation>{normalisation, x, dy, p.negative_slope,
                                                          p.training ? totals : nullptr,
                                                          1.0f / static_cast<float>(p.rows()), dx});
    });
    if (dgamma) {
      launch_affine_gradient(context.stream(), 1, p.channels, mode, totals,
                             dgamma.as<float>("batch_norm_backward: dgamma"),
                             dbeta.as<float>("batch_norm_backward: dbeta"));
    }
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
