// Argument checks, workspace size and dispatch of group normalisation.
#include "kernels/group_norm/group_norm.hpp"

#include "base/size.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(group_norm_forward)
VESAL_DECLARE_BACKENDS(group_norm_backward)

namespace {

void check_params(const char* what, const GroupNormParams& p) {
  check<ShapeError>(p.n >= 0 && p.spatial >= 0 && p.channels >= 1, what, ": [", p.n, ", ", p.spatial, ", ",
                    p.channels, "], expected n >= 0, spatial >= 0 and channels >= 1");
  checked_mul(checked_mul(p.n, p.spatial), p.channels);
  check<ShapeError>(p.groups >= 1 && p.channels % p.groups == 0, what, ": groups ", p.groups,
                    ", expected a divisor of ", p.channels, " channels");
  check<ShapeError>(NormActivations::contain(p.activation), what, ": activation ",
                    static_cast<int>(p.activation), ", expected none, relu, leaky_relu, gelu, silu or elu");
}

}  // namespace

size_t group_norm_workspace_bytes(Context&, const GroupNormParams& params) {
  // For each slab and channel two doubles on the CPU, three floats in kernels. For each channel and sample,
  // two doubles or three floats forward; two floats, and two for each group, backward.
  return column_partials_bytes(params.n, params.spatial, params.channels, 2) +
         static_cast<size_t>(params.n * params.channels) * 2 * sizeof(double);
}

void group_norm_forward(Context& context, const GroupNormParams& params, ConstData x, ConstData gamma,
                        ConstData beta, Data y, float* mean, float* rstd, Workspace workspace) {
  check_params("group_norm_forward", params);
  const bool empty = params.n * params.spatial == 0;
  check<ShapeError>(empty || (x && y && mean && rstd), "group_norm_forward: a tensor is null");
  check<ShapeError>(static_cast<bool>(gamma) == static_cast<bool>(beta),
                    "group_norm_forward: gamma and beta go together");
  workspace.require(group_norm_workspace_bytes(context, params), "group_norm_forward");
  if (empty) {
    return;
  }
  VESAL_DISPATCH(context, group_norm_forward(context, params, x, gamma, beta, y, mean, rstd, workspace));
}

void group_norm_backward(Context& context, const GroupNormParams& params, ConstData x, ConstData gamma,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy, Data dx,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  check_params("group_norm_backward", params);
  check<ShapeError>(params.n * params.spatial == 0 || (x && mean && rstd && dy && dx),
                    "group_norm_backward: a tensor is null");
  check<ShapeError>(static_cast<bool>(gamma) == static_cast<bool>(beta) &&
                        static_cast<bool>(gamma) == static_cast<bool>(dgamma) &&
                        static_cast<bool>(gamma) == static_cast<bool>(dbeta),
                    "group_norm_backward: gamma, beta, dgamma and dbeta go together");
  workspace.require(group_norm_workspace_bytes(context, params), "group_norm_backward");
  VESAL_DISPATCH(context, group_norm_backward(context, params, x, gamma, beta, mean, rstd, dy, dx, dgamma,
                                              dbeta, mode, workspace));
}

}  // namespace vesal::kernels
