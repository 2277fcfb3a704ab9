// Layer normalisation with activation. Forward reads and writes 4 bytes an element at least (a row is read
// three times, from L1 after the first); backward reads 8 and writes 4, and reads 8 again for dgamma and
// dbeta; about 10 operations an element: memory bandwidth limits it. A power of two of lanes, at most a warp,
// shares a row, so that its sums are shuffles.
#include "kernels/context/activations.hpp"
#include "kernels/context/activations_device.hpp"
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/layer_norm/layer_norm.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// gamma and beta null: no affine map.
struct Affine {
  const float* gamma;
  const float* beta;
  VESAL_DEVICE float scale(int64_t c) const { return gamma != nullptr ? gamma[c] : 1.0f; }
  VESAL_DEVICE float value(float xhat, int64_t c) const {
    return gamma != nullptr ? fmaf(xhat, gamma[c], beta[c]) : xhat;
  }
};

template <class T, Activation kActivation>
VESAL_KERNEL void layer_norm_forward_kernel(int64_t rows, int64_t channels, int lanes, float eps, float slope,
                                            const T* VESAL_RESTRICT x_, const float* VESAL_RESTRICT gamma,
                                            const float* VESAL_RESTRICT beta, T* VESAL_RESTRICT y_,
                                            float* VESAL_RESTRICT mean, float* VESAL_RESTRICT rstd) {
  const Input<T> x{x_};
  const Output<T> y{y_};
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t begin = row * channels;
  const int64_t length = row < rows ? channels : 0;
  float total = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    total += x[begin + c];
  }
  const float centre = group_sum(total, lanes) / static_cast<float>(channels);
  float squares = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    const float d = x[begin + c] - centre;
    squares += d * d;
  }
  const Affine affine{gamma, beta};
  const float scale = 1.0f / sqrtf(group_sum(squares, lanes) / static_cast<float>(channels) + eps);
  for (int64_t c = lane; c < length; c += lanes) {
    y[begin + c] = activated<kActivation>(affine.value((x[begin + c] - centre) * scale, c), slope);
  }
  if (mean != nullptr && lane == 0 && row < rows) {
    mean[row] = centre;
    rstd[row] = scale;
  }
}

template <class T, Activation kActivation>
VESAL_KERNEL void layer_norm_dx_kernel(int64_t rows, int64_t channels, int lanes, float slope,
                                       const T* VESAL_RESTRICT x_, const float* VESAL_RESTRICT gamma,
                                       const float* VESAL_RESTRICT beta, const float* VESAL_RESTRICT mean,
                                       const float* VESAL_RESTRICT rstd, const T* VESAL_RESTRICT dy_,
                                       T* VESAL_RESTRICT dx_) {
  const Input<T> x{x_};
  const Input<T> dy{dy_};
  const Output<T> dx{dx_};
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t begin = row * channels;
  const int64_t length = row < rows ? channels : 0;
  const float centre = row < rows ? mean[row] : 0.0f;
  const float scale = row < rows ? rstd[row] : 0.0f;
  const Affine affine{gamma, beta};
  // Rounded here: fused into the difference below, one channel would not give 0.
  const auto gradient = [&](float xhat, int64_t c) {
    return __fmul_rn(activation_gradient<kActivation>(affine.value(xhat, c), dy[begin + c], slope),
                     affine.scale(c));
  };
  float sum_g = 0.0f;
  float sum_gx = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    const float xhat = (x[begin + c] - centre) * scale;
    const float g = gradient(xhat, c);
    sum_g += g;
    sum_gx += g * xhat;
  }
  sum_g = group_sum(sum_g, lanes) / static_cast<float>(channels);
  sum_gx = group_sum(sum_gx, lanes) / static_cast<float>(channels);
  for (int64_t c = lane; c < length; c += lanes) {
    const float xhat = (x[begin + c] - centre) * scale;
    const float g = gradient(xhat, c);
    dx[begin + c] = scale * (g - sum_g - xhat * sum_gx);
  }
}

template <class T, Activation kActivation>
struct AffineGradients {
  Affine affine;
  float slope;
  Input<T> x;
  const float* mean;
  const float* rstd;
  Input<T> dy;
  float* dgamma;
  float* dbeta;
  bool accumulate;
  VESAL_DEVICE int64_t prepare(int64_t, int64_t column) const { return column; }
  VESAL_DEVICE void add(int64_t column, int64_t row, int64_t i, float (&sums)[2]) const {
    const float xhat = (x[i] - mean[row]) * rstd[row];
    const float g = activation_gradient<kActivation>(affine.value(xhat, column), dy[i], slope);
    sums[0] += g * xhat;
    sums[1] += g;
  }
  VESAL_DEVICE void finish(int64_t, int64_t c, const float (&sums)[2]) const {
    dgamma[c] = (accumulate ? dgamma[c] : 0.0f) + sums[0];
    dbeta[c] = (accumulate ? dbeta[c] : 0.0f) + sums[1];
  }
};

}  // namespace

void layer_norm_forward(Context& context, const LayerNormParams& params, ConstData x, ConstData gamma,
                        ConstData beta, Data y, float* mean, float* rstd) {
  const int lanes = column_width(params.channels);
  with_storage("layer_norm_forward", {x, y}, [&]<class T>(T) {
    NormActivations::choose(params.activation, [&](auto activation) {
      launch(context.stream(),
             {.grid = {ceil_div(params.rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
             layer_norm_forward_kernel<T, decltype(activation)::value>, params.rows, params.channels, lanes,
             params.eps, params.negative_slope, x.as<T>("layer_norm_forward: x"),
             gamma.as<float>("layer_norm_forward: gamma"), beta.as<float>("layer_norm_forward: beta"),
             y.as<T>("layer_norm_forward: y"), mean, rstd);
    });
  });
}

void layer_norm_backward(Context& context, const LayerNormParams& params, ConstData x_, ConstData gamma_,
                         ConstData beta_, const float* mean, const float* rstd, ConstData dy_, Data dx_,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  with_storage("layer_norm_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const T* x = x_.as<T>("layer_norm_backward: x");
    const float* gamma = gamma_.as<float>("layer_norm_backward: gamma");
    const float* beta = beta_.as<float>("layer_norm_backward: beta");
    const T* dy = dy_.as<T>("layer_norm_backward: dy");
    T* dx = dx_.as<T>("layer_norm_backward: dx");
    const int lanes = column_width(params.channels);
    NormActivations::choose(params.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      launch(context.stream(),
             {.grid = {ceil_div(params.rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
             layer_norm_dx_kernel<T, kActivation>, params.rows, params.channels, lanes, params.negative_slope,
             x, gamma, beta, mean, rstd, dy, dx);
      if (dgamma) {
        launch_column_sums<2>(context.stream(), 1, params.rows, params.channels,
                              static_cast<float*>(workspace.data),
                              AffineGradients<T, kActivation>{{gamma, beta},
                                                              params.negative_slope,
                                                              Input<T>{x},
                                                              mean,
                                                              rstd,
                                                              Input<T>{dy},
                                                              dgamma.as<float>("layer_norm_backward: dgamma"),
                                                              dbeta.as<float>("layer_norm_backward: dbeta"),
                                                              mode == GradMode::accumulate});
      }
    });
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
