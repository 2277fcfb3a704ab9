// linear on CUDA: y = activation(x W^T + bias), dx = dy W, dW = dy^T x, as tiled float32 products
// (gemm_device.hpp).
//
// Least work: 2 rows in out operations and 4 (rows in + rows out + in out) bytes for each of the three. Below
// about 100 channels that is limited by memory (in = out = 32: 8 operations a byte), above by the float32
// units, which this version uses without tensor cores. The weight gradient, whose result is small and whose
// sum is long, is split over rows. No GPU timing exists yet (see bench/results/README.md).
#include <algorithm>

#include "kernels/linear/gemm_device.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/linear/linear_internal.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// The weight gradient is computed as its transpose: tile rows are inputs, columns are outputs, the depth is
// x's rows.
ProductSize product_size(const LinearParams& p, LinearPass pass) {
  switch (pass) {
    case LinearPass::forward:
      return {.rows = p.rows, .columns = p.out, .depth = p.in, .count = p.rows * p.out};
    case LinearPass::backward_data:
      return {.rows = p.rows, .columns = p.in, .depth = p.out, .count = p.rows * p.in};
    case LinearPass::backward_weight:
      break;
  }
  return {.rows = p.in, .columns = p.out, .depth = p.rows, .count = p.in * p.out};
}

void check_size(const LinearParams& p, const char* op) {
  constexpr int64_t kLimit = 0x7fffffff - 2 * kTileM;
  check<ShapeError>(p.rows <= kLimit && p.in <= 65535 * 32 && p.out <= 65535 * 32, op, ": ", p.rows,
                    " rows of ", p.in, " -> ", p.out, " pass the kernel's limit");
}

// C with consecutive columns.
Epilogue row_major(float* out, int64_t columns, const float* bias, Activation activation,
                   float* pre_activation) {
  return {.out = out,
          .row_stride = columns,
          .column_stride = 1,
          .bias = bias,
          .pre_activation = pre_activation,
          .activation = activation,
          .mode = GradMode::overwrite};
}

}  // namespace

size_t linear_workspace_bytes(Context&, const LinearParams& params, LinearPass pass) {
  const size_t product = product_size(params, pass).workspace_bytes();
  return pass == LinearPass::backward_weight ? std::max(product, column_sum_bytes(params.rows, params.out))
                                             : product;
}

void linear_forward(Context& context, const LinearParams& params, ConstData x_, ConstData weight_,
                    ConstData bias, Data y, Data pre_activation, Workspace workspace) {
  check_size(params, "linear_forward");
  const auto* x = x_.as<float>("linear_forward: x");
  const auto* weight = weight_.as<float>("linear_forward: weight");
  const int depth = static_cast<int>(params.in);
  launch_product(
      context, product_size(params, LinearPass::forward),
      MatrixByDepth{x, params.in, params.rows, depth, aligned16(x, params.in)},
      MatrixByDepth{weight, params.in, params.out, depth, aligned16(weight, params.in)},
      row_major(y.as<float>("linear_forward: y"), params.out, bias.as<float>("linear_forward: bias"),
                params.activation, pre_activation.as<float>("linear_forward: pre_activation")),
      static_cast<float*>(workspace.data));
}

void linear_backward_data(Context& context, const LinearParams& params, ConstData dy_, ConstData weight_,
                          Data dx, Workspace workspace) {
  check_size(params, "linear_backward_data");
  const auto* dy = dy_.as<float>("linear_backward_data: dy");
  const auto* weight = weight_.as<float>("linear_backward_data: weight");
  const int depth = static_cast<int>(params.out);
  launch_product(
      context, product_size(params, LinearPass::backward_data),
      MatrixByDepth{dy, params.out, params.rows, depth, aligned16(dy, params.out)},
      MatrixByRow{weight, params.in, params.in, depth, aligned16(weight, params.in)},
      row_major(dx.as<float>("linear_backward_data: dx"), params.in, nullptr, Activation::none, nullptr),
      static_cast<float*>(workspace.data));
}

void linear_backward_weight(Context& context, const LinearParams& params, ConstData x_, ConstData dy_,
                            Data dweight, Data dbias_, GradMode mode, Workspace workspace) {
  check_size(params, "linear_backward_weight");
  const auto* x = x_.as<float>("linear_backward_weight: x");
  const auto* dy = dy_.as<float>("linear_backward_weight: dy");
  const int depth = static_cast<int>(params.rows);
  launch_product(context, product_size(params, LinearPass::backward_weight),
                 MatrixByRow{x, params.in, params.in, depth, aligned16(x, params.in)},
                 MatrixByRow{dy, params.out, params.out, depth, aligned16(dy, params.out)},
                 Epilogue{.out = dweight.as<float>("linear_backward_weight: dweight"),
                          .row_stride = 1,
                          .column_stride = params.in,
                          .bias = nullptr,
                          .pre_activation = nullptr,
                          .activation = Activation::none,
                          .mode = mode},
                 static_cast<float*>(workspace.data));
  if (auto* dbias = dbias_.as<float>("linear_backward_weight: dbias")) {
    linear_bias_gradient(context, params, dy, dbias, mode, workspace);
  }
}

void linear_finish(Context& context, const LinearParams& params, const float* bias, float* y,
                   float* pre_activation) {
  finish(context, y, 1, params.rows * params.out, params.out, bias, params.activation, GradMode::overwrite, y,
         pre_activation);
}

void linear_bias_gradient(Context& context, const LinearParams& params, const float* dy, float* dbias,
                          GradMode mode, Workspace workspace) {
  add_up_columns(context, params.rows, params.out, dy, dbias, mode, static_cast<float*>(workspace.data));
}

}  // namespace vesal::kernels::VESAL_BACKEND
