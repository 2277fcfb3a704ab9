// Argument checks, workspace size and dispatch of layer normalisation.
#include "kernels/layer_norm/layer_norm.hpp"

#include "base/size.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(layer_norm_forward)
VESAL_DECLARE_BACKENDS(layer_norm_backward)

namespace {

void check_params(const char* what, const LayerNormParams& p) {
  check<ShapeError>(p.rows >= 0 && p.channels >= 1, what, ": [", p.rows, ", ", p.channels,
                    "], expected rows >= 0 and channels >= 1");
  checked_mul(p.rows, p.channels);
  check<ShapeError>(NormActivations::contain(p.activation), what, ": activation ",
                    static_cast<int>(p.activation), ", expected none, relu, leaky_relu, gelu, silu or elu");
}

}  // namespace

void layer_norm_forward(Context& context, const LayerNormParams& params, ConstData x, ConstData gamma,
                        ConstData beta, Data y, float* mean, float* rstd) {
  check_params("layer_norm_forward", params);
  check<ShapeError>(params.rows == 0 || (x && y), "layer_norm_forward: a tensor is null");
  check<ShapeError>(static_cast<bool>(gamma) == static_cast<bool>(beta),
                    "layer_norm_forward: gamma and beta go together");
  check<ShapeError>((mean == nullptr) == (rstd == nullptr), "layer_norm_forward: mean and rstd go together");
  VESAL_DISPATCH(context, layer_norm_forward(context, params, x, gamma, beta, y, mean, rstd));
}

size_t layer_norm_backward_workspace_bytes(Context&, const LayerNormParams& params) {
  return column_partials_bytes(1, params.rows, params.channels, 2);
}

void layer_norm_backward(Context& context, const LayerNormParams& params, ConstData x, ConstData gamma,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy, Data dx,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  check_params("layer_norm_backward", params);
  check<ShapeError>(params.rows == 0 || (x && mean && rstd && dy && dx),
                    "layer_norm_backward: a tensor is null");
  check<ShapeError>(static_cast<bool>(gamma) == static_cast<bool>(beta) &&
                        static_cast<bool>(gamma) == static_cast<bool>(dgamma) &&
                        static_cast<bool>(gamma) == static_cast<bool>(dbeta),
                    "layer_norm_backward: gamma, beta, dgamma and dbeta go together");
  workspace.require(layer_norm_backward_workspace_bytes(context, params), "layer_norm_backward");
  VESAL_DISPATCH(context, layer_norm_backward(context, params, x, gamma, beta, mean, rstd, dy, dx, dgamma,
                                              dbeta, mode, workspace));
}

}  // namespace vesal::kernels
