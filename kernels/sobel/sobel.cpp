// Sobel gradients and the edge gate: argument checks and the choice of the device.
#include "kernels/sobel/sobel.hpp"

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(sobel_gradient_forward)
VESAL_DECLARE_BACKENDS(sobel_gradient_backward)
VESAL_DECLARE_BACKENDS(sobel_magnitude_forward)
VESAL_DECLARE_BACKENDS(sobel_magnitude_workspace_bytes)
VESAL_DECLARE_BACKENDS(sobel_magnitude_backward)
VESAL_DECLARE_BACKENDS(edge_gate_forward)
VESAL_DECLARE_BACKENDS(edge_gate_backward)

namespace {

void check_params(const SobelParams& p, std::initializer_list<ConstData> arrays, const char* what) {
  for (const float spacing : p.spacing) {
    check<ShapeError>(spacing > 0, what, ": spacing ", p.spacing[0], ", ", p.spacing[1], ", ", p.spacing[2],
                      ": each must be above 0");
  }
  check<ShapeError>(p.eps >= 0, what, ": eps ", p.eps, " is negative");
  const int64_t voxels = checked_mul(checked_mul(checked_mul(p.n, p.d), p.h), p.w);
  checked_mul(voxels, 3);
  for (const ConstData& array : arrays) {
    check<ShapeError>(voxels == 0 || array, what, ": an array is null");
  }
}

void check_params(const EdgeGateParams& p, std::initializer_list<ConstData> arrays, const char* what) {
  check<ShapeError>(p.eps >= 0, what, ": eps ", p.eps, " is negative");
  check<ShapeError>(p.channels >= 1, what, ": ", p.channels, " channels, at least one is needed");
  checked_mul(checked_mul(p.voxels, p.channels), 3);
  for (const ConstData& array : arrays) {
    check<ShapeError>(p.voxels == 0 || array, what, ": an array is null");
  }
}

}  // namespace

void sobel_gradient_forward(Context& context, const SobelParams& params, ConstData x, Data gradient) {
  check_params(params, {x, gradient}, "sobel_gradient_forward");
  VESAL_DISPATCH(context, sobel_gradient_forward(context, params, x, gradient));
}

void sobel_gradient_backward(Context& context, const SobelParams& params, ConstData dgradient, Data dx) {
  check_params(params, {dgradient, dx}, "sobel_gradient_backward");
  VESAL_DISPATCH(context, sobel_gradient_backward(context, params, dgradient, dx));
}

void sobel_magnitude_forward(Context& context, const SobelParams& params, ConstData x, Data magnitude) {
  check_params(params, {x, magnitude}, "sobel_magnitude_forward");
  VESAL_DISPATCH(context, sobel_magnitude_forward(context, params, x, magnitude));
}

size_t sobel_magnitude_workspace_bytes(Context& context, const SobelParams& params) {
  check_params(params, {}, "sobel_magnitude");
  VESAL_DISPATCH(context, sobel_magnitude_workspace_bytes(context, params));
}

void sobel_magnitude_backward(Context& context, const SobelParams& params, ConstData x, ConstData dmagnitude,
                              Data dx, Workspace workspace) {
  check_params(params, {x, dmagnitude, dx}, "sobel_magnitude_backward");
  workspace.require(sobel_magnitude_workspace_bytes(context, params), "sobel_magnitude_backward");
  VESAL_DISPATCH(context, sobel_magnitude_backward(context, params, x, dmagnitude, dx, workspace));
}

void edge_gate_forward(Context& context, const EdgeGateParams& params, ConstData gradient, ConstData x,
                       Data y) {
  check_params(params, {gradient, x, y}, "edge_gate_forward");
  VESAL_DISPATCH(context, edge_gate_forward(context, params, gradient, x, y));
}

void edge_gate_backward(Context& context, const EdgeGateParams& params, ConstData gradient, ConstData x,
                        ConstData dy, Data dgradient, Data dx) {
  check_params(params, {gradient, x, dy, dgradient, dx}, "edge_gate_backward");
  VESAL_DISPATCH(context, edge_gate_backward(context, params, gradient, x, dy, dgradient, dx));
}

}  // namespace vesal::kernels
