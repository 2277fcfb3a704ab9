// Contract of conv3d: argument checks, then the implementation of the context's device.
#include "kernels/conv3d/conv3d.hpp"

#include <algorithm>

#include "kernels/context/dispatch.hpp"
#include "kernels/conv3d/conv3d_internal.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(conv3d_workspace_bytes)
VESAL_DECLARE_BACKENDS(conv3d_forward)
VESAL_DECLARE_BACKENDS(conv3d_adjoint)
VESAL_DECLARE_BACKENDS(conv3d_backward_weight)
VESAL_DECLARE_BACKENDS(column_sum_workspace_bytes)
VESAL_DECLARE_BACKENDS(column_sum)

void check_storage(DType storage, std::initializer_list<ConstData> tensors, const char* op) {
  for (const ConstData& tensor : tensors) {
    check<ShapeError>(!tensor || tensor.dtype == storage, op, ": a tensor is stored as ",
                      name_of(tensor.dtype), ", params.storage is ", name_of(storage));
  }
}

void check_params(const Conv3dParams& p, const char* op) {
  const char* const axes[] = {"depth", "height", "width"};
  const int64_t extents[] = {p.d, p.h, p.w};
  check<ShapeError>(p.n >= 0, op, ": batch is ", p.n, ", must be 0 or more");
  check<ShapeError>(p.c_in >= 1, op, ": c_in is ", p.c_in, ", must be at least 1");
  check<ShapeError>(p.c_out >= 1, op, ": c_out is ", p.c_out, ", must be at least 1");
  check<ShapeError>(p.groups >= 1 && p.c_in % p.groups == 0 && p.c_out % p.groups == 0, op, ": groups is ",
                    p.groups, ", must be at least 1 and divide c_in ", p.c_in, " and c_out ", p.c_out);
  check<ShapeError>(p.storage == DType::f32 || p.storage == DType::bf16 || p.storage == DType::f16, op,
                    ": storage is ", name_of(p.storage), ", expected f32, bf16 or f16");
  for (size_t axis = 0; axis < 3; ++axis) {
    const int end = p.far_padding()[axis];
    check<ShapeError>(extents[axis] >= 1, op, ": ", axes[axis], " is ", extents[axis],
                      ", must be at least 1");
    check<ShapeError>(p.kernel[axis] >= 1 && p.kernel[axis] <= 7, op, ": kernel along ", axes[axis], " is ",
                      p.kernel[axis], ", must be 1 to 7");
    check<ShapeError>(p.stride[axis] >= 1, op, ": stride along ", axes[axis], " is ", p.stride[axis],
                      ", must be at least 1");
    check<ShapeError>(p.padding[axis] >= 0, op, ": padding along ", axes[axis], " is ", p.padding[axis],
                      ", must be 0 or more");
    check<ShapeError>(end >= 0, op, ": padding_end along ", axes[axis], " is ", end, ", must be 0 or more");
    check<ShapeError>(p.dilation[axis] >= 1, op, ": dilation along ", axes[axis], " is ", p.dilation[axis],
                      ", must be at least 1");
    check<ShapeError>(extents[axis] + p.padding[axis] + end >= p.reach(axis), op, ": ", axes[axis], " ",
                      extents[axis], " with padding ", p.padding[axis], " and ", end,
                      " is smaller than the kernel, which reaches over ", p.reach(axis));
  }
}

size_t conv3d_workspace_bytes(Context& context, const Conv3dParams& params, ConvPass pass) {
  check_params(params, "conv3d_workspace_bytes");
  if (params.n == 0) {
    return pass == ConvPass::backward_weight
               ? std::max(column_sum_workspace_bytes(context, 0, params.weight_count()),
                          column_sum_workspace_bytes(context, 0, params.c_out))
               : 0;
  }
  VESAL_DISPATCH(context, conv3d_workspace_bytes(context, params, pass));
}

void conv3d_forward(Context& context, const Conv3dParams& params, ConstData x, ConstData weight,
                    ConstData bias, Data y, Workspace workspace) {
  check_params(params, "conv3d_forward");
  if (params.n == 0) {
    return;
  }
  check<ShapeError>(x && weight && y, "conv3d_forward: x, weight or y is null");
  check_storage(params.storage, {x, weight, y}, "conv3d_forward");
  workspace.require(conv3d_workspace_bytes(context, params, ConvPass::forward), "conv3d_forward");
  VESAL_DISPATCH(context, conv3d_forward(context, params, x, weight, bias, y, workspace));
}

void conv3d_adjoint(Context& context, const Conv3dParams& params, ConstData dy, ConstData weight,
                    ConstData bias, Data dx, Workspace workspace) {
  check_params(params, "conv3d_backward_data");
  if (params.n == 0) {
    return;
  }
  check<ShapeError>(dy && weight && dx, "conv3d_backward_data: dy, weight or dx is null");
  check_storage(params.storage, {dy, weight, dx}, "conv3d_backward_data");
  workspace.require(conv3d_workspace_bytes(context, params, ConvPass::backward_data), "conv3d_backward_data");
  VESAL_DISPATCH(context, conv3d_adjoint(context, params, dy, weight, bias, dx, workspace));
}

void conv3d_backward_data(Context& context, const Conv3dParams& params, ConstData dy, ConstData weight,
                          Data dx, Workspace workspace) {
  conv3d_adjoint(context, params, dy, weight, nullptr, dx, workspace);
}

void conv3d_backward_weight(Context& context, const Conv3dParams& params, ConstData x, ConstData dy,
                            Data dweight, Data dbias, GradMode mode, Workspace workspace) {
  check_params(params, "conv3d_backward_weight");
  check<ShapeError>(dweight && (params.n == 0 || (x && dy)),
                    "conv3d_backward_weight: x, dy or dweight is null");
  check_storage(params.storage, {x, dy}, "conv3d_backward_weight");
  workspace.require(conv3d_workspace_bytes(context, params, ConvPass::backward_weight),
                    "conv3d_backward_weight");
  if (params.n == 0) {
    column_sum(context, 0, params.weight_count(), nullptr, dweight, mode, workspace);
    if (dbias) {
      column_sum(context, 0, params.c_out, nullptr, dbias, mode, workspace);
    }
    return;
  }
  VESAL_DISPATCH(context, conv3d_backward_weight(context, params, x, dy, dweight, dbias, mode, workspace));
}

size_t column_sum_workspace_bytes(Context& context, int64_t rows, int64_t columns) {
  VESAL_DISPATCH(context, column_sum_workspace_bytes(context, rows, columns));
}

void column_sum(Context& context, int64_t rows, int64_t columns, ConstData x, Data sums, GradMode mode,
                Workspace workspace) {
  workspace.require(column_sum_workspace_bytes(context, rows, columns), "column_sum");
  VESAL_DISPATCH(context, column_sum(context, rows, columns, x, sums, mode, workspace));
}

}  // namespace vesal::kernels
