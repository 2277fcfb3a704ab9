// Batch normalisation on the CPU: the samples' voxels are one run of rows (channel_norm_cpu.hpp).
#include "kernels/batch_norm/batch_norm.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/channel_norm_cpu.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"

namespace vesal::kernels::cpu {

void batch_norm_forward(Context&, const BatchNormParams& p, ConstData x_, ConstData gamma, ConstData beta,
                        float* running_mean, float* running_var, Data y_, float* mean, float* rstd,
                        Workspace workspace) {
  with_storage("batch_norm_forward", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "batch_norm_forward: x");
    const auto y = output<T>(y_, "batch_norm_forward: y");
    const auto rows = static_cast<double>(p.rows());
    const auto eps = static_cast<double>(p.eps);
    if (p.training) {
      const auto momentum = static_cast<double>(p.momentum);
      const auto follow = [&](float& running, double value) {
        running = static_cast<float>((1.0 - momentum) * running + momentum * value);
      };
      column_statistics<T>(1, p.rows(), p.channels, x, static_cast<double*>(workspace.data),
                           [&](int64_t, int64_t c, double centre, double squares) {
                             mean[c] = static_cast<float>(centre);
                             rstd[c] = static_cast<float>(1.0 / std::sqrt(squares / rows + eps));
                             if (running_mean != nullptr) {
                               follow(running_mean[c], centre);
                               follow(running_var[c], squares / (rows - 1.0));
                             }
                           });
    } else {
      for (int64_t c = 0; c < p.channels; ++c) {
        mean[c] = running_mean[c];
        rstd[c] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(running_var[c]) + eps));
      }
    }
    const Normalisation normalisation{mean,
                                      rstd,
                                      gamma.as<float>("batch_norm_forward: gamma"),
                                      beta.as<float>("batch_norm_forward: beta"),
                                      p.channels,
                                      p.negative_slope};
    NormActivations::choose(p.activation, [&](auto activation) {
      normalise<T, decltype(activation)::value>(1, p.rows(), normalisation, x, y);
    });
  });
}

void batch_norm_backward(Context&, const BatchNormParams& p, ConstData x_, ConstData gamma, ConstData beta,
                         const float* mean, const float* rstd, ConstData dy_, Data dx_, Data dgamma,
                         Data dbeta, GradMode mode, Workspace workspace) {
  if (p.rows() == 0) {
    if (dgamma) {
      affine_gradients(0, p.channels, nullptr, mode, dgamma.as<float>("batch_norm_backward: dgamma"),
                       dbeta.as<float>("batch_norm_backward: dbeta"));
    }
    return;
  }
  with_storage("batch_norm_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "batch_norm_backward: x");
    const auto dy = input<T>(dy_, "batch_norm_backward: dy");
    const auto dx = output<T>(dx_, "batch_norm_backward: dx");
    auto* partials = static_cast<double*>(workspace.data);
    auto* totals =
        reinterpret_cast<float*>(partials + slab_count(p.rows()) * 2 * p.channels);  // [channels, 2]
    const Normalisation normalisation{mean,
                                      rstd,
                                      gamma.as<float>("batch_norm_backward: gamma"),
                                      beta.as<float>("batch_norm_backward: beta"),
                                      p.channels,
                                      p.negative_slope};
    NormActivations::choose(p.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      if (p.training || dgamma) {
        norm_gradient_sums<T, kActivation>(1, p.rows(), normalisation, x, dy, partials, totals);
      }
      const float inverse = 1.0f / static_cast<float>(p.rows());
      norm_input_gradient<T, kActivation>(
          1, p.rows(), normalisation, x, dy,
          [=, training = p.training](int64_t k) {
            return training ? std::pair(totals[2 * k] * inverse, totals[2 * k + 1] * inverse)
                            : std::pair(0.0f, 0.0f);
          },
          dx);
    });
    if (dgamma) {
      affine_gradients(1, p.channels, totals, mode, dgamma.as<float>("batch_norm_backward: dgamma"),
                       dbeta.as<float>("batch_norm_backward: dbeta"));
    }
  });
}

}  // namespace vesal::kernels::cpu
