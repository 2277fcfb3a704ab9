// Argument checks, workspace sizes and dispatch of the losses.
#include "kernels/losses/losses.hpp"

#include <algorithm>

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(region_targets)
VESAL_DECLARE_BACKENDS(edge_targets)
VESAL_DECLARE_BACKENDS(region_loss_forward)
VESAL_DECLARE_BACKENDS(region_loss_backward)
VESAL_DECLARE_BACKENDS(edge_loss_forward)
VESAL_DECLARE_BACKENDS(edge_loss_backward)

namespace {

void check_params(const char* what, const RegionLossParams& p) {
  check<ShapeError>(p.n >= 0 && p.voxels >= 0 && p.regions >= 1, what, ": [", p.n, ", ", p.voxels, ", ",
                    p.regions, "], expected no negative number and at least 1 region");
  check<ShapeError>(p.smooth > 0, what, ": smooth ", p.smooth,
                    ", expected more than 0 (an empty region divides by it)");
  checked_mul(checked_mul(p.n, p.voxels), p.regions);
}

}  // namespace

void region_targets(Context& context, int64_t voxels, const uint8_t* labels, uint8_t* targets) {
  check<ShapeError>(voxels >= 0, "region_targets: voxels ", voxels, " is negative");
  check<ShapeError>(voxels == 0 || (labels != nullptr && targets != nullptr),
                    "region_targets: a tensor is null");
  if (voxels == 0) {
    return;
  }
  VESAL_DISPATCH(context, region_targets(context, voxels, labels, targets));
}

void edge_targets(Context& context, int64_t n, int64_t d, int64_t h, int64_t w, const uint8_t* labels,
                  uint8_t* edges) {
  const int64_t voxels = checked_mul(checked_mul(n, d), checked_mul(h, w));
  check<ShapeError>(voxels == 0 || (labels != nullptr && edges != nullptr), "edge_targets: a tensor is null");
  if (voxels == 0) {
    return;
  }
  VESAL_DISPATCH(context, edge_targets(context, n, d, h, w, labels, edges));
}

size_t region_loss_workspace_bytes(Context&, const RegionLossParams& params) {
  // Partial sums of the slabs, and four sums of each region and sample.
  return column_partials_bytes(params.n, params.voxels, params.regions, 4) +
         static_cast<size_t>(std::max<int64_t>(params.n, 1) * params.regions) * 4 * sizeof(double);
}

void region_loss_forward(Context& context, const RegionLossParams& params, ConstData logits,
                         const uint8_t* targets, Data loss, float* dice, Workspace workspace) {
  check_params("region_loss_forward", params);
  check<ShapeError>(params.n * params.voxels == 0 || (logits && targets != nullptr),
                    "region_loss_forward: a tensor is null");
  check<ShapeError>(loss && (dice != nullptr || (params.n == 0 && !params.batch_dice)),
                    "region_loss_forward: loss or dice is null");
  workspace.require(region_loss_workspace_bytes(context, params), "region_loss_forward");
  VESAL_DISPATCH(context, region_loss_forward(context, params, logits, targets, loss, dice, workspace));
}

void region_loss_backward(Context& context, const RegionLossParams& params, ConstData logits,
                          const uint8_t* targets, const float* dice, float weight, Data dlogits) {
  check_params("region_loss_backward", params);
  if (params.n * params.voxels == 0) {
    return;
  }
  check<ShapeError>(logits && targets != nullptr && dlogits && dice != nullptr,
                    "region_loss_backward: a tensor is null");
  VESAL_DISPATCH(context, region_loss_backward(context, params, logits, targets, dice, weight, dlogits));
}

size_t edge_loss_workspace_bytes(Context&, const EdgeLossParams& params) {
  return column_partials_bytes(1, params.voxels, 1, 4);
}

void edge_loss_forward(Context& context, const EdgeLossParams& params, ConstData logits,
                       const uint8_t* targets, Data loss, float* counts, Workspace workspace) {
  check<ShapeError>(params.voxels >= 0, "edge_loss_forward: voxels ", params.voxels, " is negative");
  check<ShapeError>(params.voxels == 0 || (logits && targets != nullptr),
                    "edge_loss_forward: a tensor is null");
  check<ShapeError>(loss && counts != nullptr, "edge_loss_forward: loss or counts is null");
  workspace.require(edge_loss_workspace_bytes(context, params), "edge_loss_forward");
  VESAL_DISPATCH(context, edge_loss_forward(context, params, logits, targets, loss, counts, workspace));
}

void edge_loss_backward(Context& context, const EdgeLossParams& params, ConstData logits,
                        const uint8_t* targets, const float* counts, float weight, Data dlogits) {
  check<ShapeError>(params.voxels >= 0, "edge_loss_backward: voxels ", params.voxels, " is negative");
  if (params.voxels == 0) {
    return;
  }
  check<ShapeError>(logits && targets != nullptr && counts != nullptr && dlogits,
                    "edge_loss_backward: a tensor is null");
  VESAL_DISPATCH(context, edge_loss_backward(context, params, logits, targets, counts, weight, dlogits));
}

}  // namespace vesal::kernels
