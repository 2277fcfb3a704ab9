// Contract of linear: argument checks, then the implementation of the context's device.
#include "kernels/linear/linear.hpp"

#include "kernels/context/dispatch.hpp"
#include "kernels/linear/linear_cublas.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(linear_workspace_bytes)
VESAL_DECLARE_BACKENDS(linear_forward)
VESAL_DECLARE_BACKENDS(linear_backward_data)
VESAL_DECLARE_BACKENDS(linear_backward_weight)

namespace {

struct GemmChoice {
  GemmAlgorithm algorithm = GemmAlgorithm::own;
};

bool uses_cublas(Context& context) {
  return context.device().type == DeviceType::cuda &&
         context.cache<GemmChoice>().algorithm == GemmAlgorithm::cublas;
}

void check_params(const LinearParams& params, const char* op) {
  check<ShapeError>(params.rows >= 0, op, ": rows is ", params.rows, ", must be 0 or more");
  check<ShapeError>(params.in >= 1, op, ": in is ", params.in, ", must be at least 1");
  check<ShapeError>(params.out >= 1, op, ": out is ", params.out, ", must be at least 1");
  check<ShapeError>(params.activation == Activation::none || params.activation == Activation::relu ||
                        params.activation == Activation::gelu,
                    op, ": activation must be none, relu or gelu");
}

void check_present(bool present, const char* op, const char* argument) {
  check<ShapeError>(present, op, ": ", argument, " is null");
}

}  // namespace

void set_gemm_algorithm(Context& context, GemmAlgorithm algorithm) {
  context.cache<GemmChoice>().algorithm = algorithm;
}

size_t linear_workspace_bytes(Context& context, const LinearParams& params, LinearPass pass) {
  check_params(params, "linear_workspace_bytes");
  VESAL_DISPATCH(context, linear_workspace_bytes(context, params, pass));
}

void linear_forward(Context& context, const LinearParams& params, ConstData x, ConstData weight,
                    ConstData bias, Data y, Data pre_activation, Workspace workspace) {
  const size_t needed = linear_workspace_bytes(context, params, LinearPass::forward);
  check_present(static_cast<bool>(weight), "linear_forward", "weight");
  check_present(params.rows == 0 || (x && y), "linear_forward", "x or y");
  workspace.require(needed, "linear_forward");
  if (params.rows == 0) {
    return;
  }
  if (uses_cublas(context)) {
    return cublas::linear_forward(context, params, x, weight, bias, y, pre_activation);
  }
  VESAL_DISPATCH(context, linear_forward(context, params, x, weight, bias, y, pre_activation, workspace));
}

void linear_backward_data(Context& context, const LinearParams& params, ConstData dy, ConstData weight,
                          Data dx, Workspace workspace) {
  const size_t needed = linear_workspace_bytes(context, params, LinearPass::backward_data);
  check_present(static_cast<bool>(weight), "linear_backward_data", "weight");
  check_present(params.rows == 0 || (dy && dx), "linear_backward_data", "dy or dx");
  workspace.require(needed, "linear_backward_data");
  if (params.rows == 0) {
    return;
  }
  if (uses_cublas(context)) {
    return cublas::linear_backward_data(context, params, dy, weight, dx);
  }
  VESAL_DISPATCH(context, linear_backward_data(context, params, dy, weight, dx, workspace));
}

void linear_backward_weight(Context& context, const LinearParams& params, ConstData x, ConstData dy,
                            Data dweight, Data dbias, GradMode mode, Workspace workspace) {
  const size_t needed = linear_workspace_bytes(context, params, LinearPass::backward_weight);
  check_present(static_cast<bool>(dweight), "linear_backward_weight", "dweight");
  check_present(params.rows == 0 || (x && dy), "linear_backward_weight", "x or dy");
  workspace.require(needed, "linear_backward_weight");
  if (uses_cublas(context) && params.rows > 0) {
    return cublas::linear_backward_weight(context, params, x, dy, dweight, dbias, mode, workspace);
  }
  VESAL_DISPATCH(context, linear_backward_weight(context, params, x, dy, dweight, dbias, mode, workspace));
}

}  // namespace vesal::kernels
