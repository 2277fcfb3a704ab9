// Argument checks, workspace size and dispatch of batch normalisation.
#include "kernels/batch_norm/batch_norm.hpp"

#include "base/size.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(batch_norm_forward)
VESAL_DECLARE_BACKENDS(batch_norm_backward)

namespace {

void check_params(const char* what, const BatchNormParams& p) {
  check<ShapeError>(p.n >= 0 && p.spatial >= 0 && p.channels >= 1, what, ": [", p.n, ", ", p.spatial, ", ",
                    p.channels, "], expected n >= 0, spatial >= 0 and channels >= 1");
  checked_mul(checked_mul(p.n, p.spatial), p.channels);
  check<ShapeError>(!p.training || p.rows() != 1, what,
                    ": n * spatial is 1, expected 2 values a channel at least in training, or none");
  check<ShapeError>(p.momentum >= 0.0f && p.momentum <= 1.0f, what, ": momentum ", p.momentum,
                    ", expected 0 to 1");
  check<ShapeError>(NormActivations::contain(p.activation), what, ": activation ",
                    static_cast<int>(p.activation), ", expected none, relu, leaky_relu, gelu, silu or elu");
}

}  // namespace

size_t batch_norm_workspace_bytes(Context&, const BatchNormParams& params) {
  // For each slab and channel two doubles on the CPU, three floats in kernels; and two floats a channel.
  return column_partials_bytes(1, params.rows(), params.channels, 2) +
         static_cast<size_t>(params.channels) * 2 * sizeof(float);
}

void batch_norm_forward(Context& context, const BatchNormParams& params, ConstData x, ConstData gamma,
                        ConstData beta, float* running_mean, float* running_var, Data y, float* mean,
                        float* rstd, Workspace workspace) {
  check_params("batch_norm_forward", params);
  check<ShapeError>((params.rows() == 0 || (x && y)) && mean && rstd, "batch_norm_forward: a tensor is null");
  check<ShapeError>(static_cast<bool>(gamma) == static_cast<bool>(beta),
                    "batch_norm_forward: gamma and beta go together");
  check<ShapeError>((running_mean == nullptr) == (running_var == nullptr),
                    "batch_norm_forward: running_mean and running_var go together");
  check<ShapeError>(params.training || running_mean,
                    "batch_norm_forward: running_mean is null, evaluation needs it");
  workspace.require(batch_norm_workspace_bytes(context, params), "batch_norm_forward");
  if (params.training && params.rows() == 0) {
    return;
  }
  VESAL_DISPATCH(context, batch_norm_forward(context, params, x, gamma, beta, running_mean, running_var, y,
                                             mean, rstd, workspace));
}

void batch_norm_backward(Context& context, const BatchNormParams& params, ConstData x, ConstData gamma,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy, Data dx,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  check_params("batch_norm_backward", params);
  check<ShapeError>((params.rows() == 0 || (x && dy && dx)) && mean && rstd,
                    "batch_norm_backward: a tensor is null");
  check<ShapeError>(static_cast<bool>(gamma) == static_cast<bool>(beta) &&
                        static_cast<bool>(gamma) == static_cast<bool>(dgamma) &&
                        static_cast<bool>(gamma) == static_cast<bool>(dbeta),
                    "batch_norm_backward: gamma, beta, dgamma and dbeta go together");
  workspace.require(batch_norm_workspace_bytes(context, params), "batch_norm_backward");
  VESAL_DISPATCH(context, batch_norm_backward(context, params, x, gamma, beta, mean, rstd, dy, dx, dgamma,
                                              dbeta, mode, workspace));
}

}  // namespace vesal::kernels
