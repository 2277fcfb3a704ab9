// Layer normalisation. Forward reads and writes 4 bytes an element at least (a row is read three times, from
// L1 after the first); backward reads 8 and writes 4, and reads 8 again for dgamma and dbeta; about 10
// operations an element: memory bandwidth limits it. A power of two of lanes, at most a warp, shares a row,
// so that its sums are shuffles. No GPU timing exists yet: bench/results/README.md.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/layer_norm/layer_norm.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

VESAL_KERNEL void layer_norm_forward_kernel(int64_t rows, int64_t channels, int lanes, float eps,
                                            const float* VESAL_RESTRICT x, const float* VESAL_RESTRICT gamma,
                                            const float* VESAL_RESTRICT beta, float* VESAL_RESTRICT y,
                                            float* VESAL_RESTRICT mean, float* VESAL_RESTRICT rstd) {
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
  const float scale = 1.0f / sqrtf(group_sum(squares, lanes) / static_cast<float>(channels) + eps);
  for (int64_t c = lane; c < length; c += lanes) {
    y[begin + c] = fmaf((x[begin + c] - centre) * scale, gamma[c], beta[c]);
  }
  if (mean != nullptr && lane == 0 && row < rows) {
    mean[row] = centre;
    rstd[row] = scale;
  }
}

VESAL_KERNEL void layer_norm_dx_kernel(int64_t rows, int64_t channels, int lanes,
                                       const float* VESAL_RESTRICT x, const float* VESAL_RESTRICT gamma,
                                       const float* VESAL_RESTRICT mean, const float* VESAL_RESTRICT rstd,
                                       const float* VESAL_RESTRICT dy, float* VESAL_RESTRICT dx) {
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t begin = row * channels;
  const int64_t length = row < rows ? channels : 0;
  const float centre = row < rows ? mean[row] : 0.0f;
  const float scale = row < rows ? rstd[row] : 0.0f;
  float sum_g = 0.0f;
  float sum_gx = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    const float g = dy[begin + c] * gamma[c];
    sum_g += g;
    sum_gx += g * (x[begin + c] - centre) * scale;
  }
  sum_g = group_sum(sum_g, lanes) / static_cast<float>(channels);
  sum_gx = group_sum(sum_gx, lanes) / static_cast<float>(channels);
  for (int64_t c = lane; c < length; c += lanes) {
    const float xhat = (x[begin + c] - centre) * scale;
    dx[begin + c] = scale * (dy[begin + c] * gamma[c] - sum_g - xhat * sum_gx);
  }
}

struct AffineGradients {
  const float* x;
  const float* mean;
  const float* rstd;
  const float* dy;
  float* dgamma;
  float* dbeta;
  bool accumulate;
  VESAL_DEVICE int prepare(int64_t, int64_t) const { return 0; }
  VESAL_DEVICE void add(int, int64_t row, int64_t i, float (&sums)[2]) const {
    sums[0] += dy[i] * ((x[i] - mean[row]) * rstd[row]);
    sums[1] += dy[i];
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
  launch(context.stream(),
         {.grid = {ceil_div(params.rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
         layer_norm_forward_kernel, params.rows, params.channels, lanes, params.eps,
         x.as<float>("layer_norm_forward: x"), gamma.as<float>("layer_norm_forward: gamma"),
         beta.as<float>("layer_norm_forward: beta"), y.as<float>("layer_norm_forward: y"), mean, rstd);
}

void layer_norm_backward(Context& context, const LayerNormParams& params, ConstData x_, ConstData gamma,
                         const float* mean, const float* rstd, ConstData dy_, Data dx, Data dgamma,
                         Data dbeta, GradMode mode, Workspace workspace) {
  const float* x = x_.as<float>("layer_norm_backward: x");
  const float* dy = dy_.as<float>("layer_norm_backward: dy");
  const int lanes = column_width(params.channels);
  launch(context.stream(),
         {.grid = {ceil_div(params.rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
         layer_norm_dx_kernel, params.rows, params.channels, lanes, x,
         gamma.as<float>("layer_norm_backward: gamma"), mean, rstd, dy,
         dx.as<float>("layer_norm_backward: dx"));
  launch_column_sums<2>(
      context.stream(), 1, params.rows, params.channels, static_cast<float*>(workspace.data),
      AffineGradients{x, mean, rstd, dy, dgamma.as<float>("layer_norm_backward: dgamma"),
                      dbeta.as<float>("layer_norm_backward: dbeta"), mode == GradMode::accumulate});
}

}  // namespace vesal::kernels::VESAL_BACKEND
