// Argument checks, workspace size and dispatch of the overlap losses.
#include "kernels/overlap_loss/overlap_loss.hpp"

#include <algorithm>

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(overlap_loss_forward)
VESAL_DECLARE_BACKENDS(overlap_loss_backward)

namespace {

void check_params(const char* what, const OverlapLossParams& p) {
  check<ShapeError>(p.n >= 0 && p.voxels >= 0 && p.channels >= 1 && p.channels <= 256, what, ": [", p.n, ", ",
                    p.voxels, ", ", p.channels, "], expected no negative number and 1 to 256 channels");
  checked_mul(checked_mul(p.n, p.voxels), p.channels);
  check<ShapeError>(p.first_channel >= 0 && p.first_channel < p.channels, what, ": first_channel ",
                    p.first_channel, " of ", p.channels, " channels");
  check<ShapeError>(p.ignore_label >= -1 && p.ignore_label <= 255, what, ": ignore_label ", p.ignore_label,
                    ", expected -1 to 255");
  check<ShapeError>(p.smooth > 0, what, ": smooth ", p.smooth,
                    ", expected more than 0 (an empty region divides by it)");
}

}  // namespace

size_t overlap_loss_workspace_bytes(Context&, const OverlapLossParams& p) {
  // Partial sums of the slabs, and three sums of each channel and sample.
  return column_partials_bytes(p.n, p.voxels, p.channels, 3) +
         static_cast<size_t>(std::max<int64_t>(p.n, 1) * p.channels) * 3 * sizeof(double);
}

void overlap_loss_forward(Context& context, const OverlapLossParams& params, ConstData logits,
                          const uint8_t* targets, Data loss, float* slopes, Workspace workspace) {
  check_params("overlap_loss_forward", params);
  check<ShapeError>(params.n * params.voxels == 0 || (logits && targets != nullptr),
                    "overlap_loss_forward: a tensor is null");
  check<ShapeError>(loss && (slopes != nullptr || params.groups() == 0),
                    "overlap_loss_forward: loss or slopes is null");
  workspace.require(overlap_loss_workspace_bytes(context, params), "overlap_loss_forward");
  VESAL_DISPATCH(context, overlap_loss_forward(context, params, logits, targets, loss, slopes, workspace));
}

void overlap_loss_backward(Context& context, const OverlapLossParams& params, ConstData logits,
                           const uint8_t* targets, const float* slopes, float weight, Data dlogits) {
  check_params("overlap_loss_backward", params);
  if (params.n * params.voxels == 0) {
    return;
  }
  check<ShapeError>(logits && targets != nullptr && slopes != nullptr && dlogits,
                    "overlap_loss_backward: a tensor is null");
  VESAL_DISPATCH(context, overlap_loss_backward(context, params, logits, targets, slopes, weight, dlogits));
}

}  // namespace vesal::kernels
