// Argument checks, workspace size and dispatch of the element-wise losses.
#include "kernels/pointwise_loss/pointwise_loss.hpp"

#include <algorithm>

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(pointwise_loss_forward)
VESAL_DECLARE_BACKENDS(pointwise_loss_backward)

namespace {

void check_arguments(const char* what, const PointwiseLossParams& p, ConstData x, ConstData target,
                     const PointwiseWeights& weights) {
  check<ShapeError>(p.rows >= 0 && p.channels >= 1, what, ": [", p.rows, ", ", p.channels,
                    "], expected 0 rows or more and at least 1 channel");
  const int64_t count = checked_mul(p.rows, p.channels);
  const bool bce = p.kind == PointwiseLoss::bce;
  check<ShapeError>(p.kind != PointwiseLoss::smooth_l1 || p.beta > 0, what, ": beta ", p.beta,
                    ", expected more than 0");
  check<ShapeError>(!bce || p.gamma >= 0, what, ": gamma ", p.gamma, ", expected 0 or more");
  check<ShapeError>(!bce || p.alpha <= 1, what, ": alpha ", p.alpha, ", expected at most 1");
  check<ShapeError>(bce || weights.positive == nullptr, what, ": positive weights belong to bce");
  check<ShapeError>(count == 0 || (x && target), what, ": a tensor is null");
  check<ShapeError>(bce || target.dtype != DType::u8, what, ": target is stored as u8, which belongs to bce");
}

}  // namespace

size_t pointwise_loss_workspace_bytes(Context&, const PointwiseLossParams& p) {
  // The CPU keeps sums by channel, the kernels see one long row.
  return std::max(column_partials_bytes(1, p.rows, p.channels, 1),
                  column_partials_bytes(1, checked_mul(p.rows, p.channels), 1, 1));
}

void pointwise_loss_forward(Context& context, const PointwiseLossParams& params, ConstData x,
                            ConstData target, const PointwiseWeights& weights, Data loss,
                            Workspace workspace) {
  check_arguments("pointwise_loss_forward", params, x, target, weights);
  check<ShapeError>(static_cast<bool>(loss), "pointwise_loss_forward: loss is null");
  workspace.require(pointwise_loss_workspace_bytes(context, params), "pointwise_loss_forward");
  VESAL_DISPATCH(context, pointwise_loss_forward(context, params, x, target, weights, loss, workspace));
}

void pointwise_loss_backward(Context& context, const PointwiseLossParams& params, ConstData x,
                             ConstData target, const PointwiseWeights& weights, float weight, Data dx) {
  check_arguments("pointwise_loss_backward", params, x, target, weights);
  check<ShapeError>(params.rows == 0 || dx, "pointwise_loss_backward: dx is null");
  VESAL_DISPATCH(context, pointwise_loss_backward(context, params, x, target, weights, weight, dx));
}

}  // namespace vesal::kernels
