// linear on CUDA: y = activation(x W^T + bias), dx = dy W, dW = dy^T x, as tiled float32 products of stored
// operands (gemm_device.hpp).
//
// Least work: 2 rows in out operations and 4 (rows in + rows out + in out) bytes (half of them in bf16 and
// f16) for each of the three. In float32 that is limited by memory below about 100 channels (in = out = 32: 8
// operations a byte), above by the float32
// units, which this version uses without tensor cores. The weight gradient, whose result is small and whose
// sum is long, is split over rows.
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
template <class T>
Epilogue<T> row_major(T* out, int64_t columns, const float* bias, Activation activation, T* pre_activation) {
  return {.out = out,
          .row_stride = columns,
          .column_stride = 1,
          .bias = bias,
          .pre_activation = Output<T>{pre_activation},
          .activation = activation,
          .mode = GradMode::overwrite};
}

template <class T>
MatrixByDepth<T> by_depth(const T* matrix, int64_t rows, int64_t depth) {
  return {.p = Input<T>{matrix},
          .stride = depth,
          .rows = rows,
          .depth = static_cast<int>(depth),
          .aligned = aligned_quads(matrix, depth)};
}

template <class T>
MatrixByRow<T> by_row(const T* matrix, int64_t rows, int64_t depth) {
  return {.p = Input<T>{matrix},
          .stride = rows,
          .rows = rows,
          .depth = static_cast<int>(depth),
          .aligned = aligned_quads(matrix, rows)};
}

}  // namespace

size_t linear_workspace_bytes(Context&, const LinearParams& params, LinearPass pass) {
  const size_t product = product_size(params, pass).workspace_bytes();
  return pass == LinearPass::backward_weight ? std::max(product, column_sum_bytes(params.rows, params.out))
                                             : product;
}

void linear_forward(Context& context, const LinearParams& params, ConstData x, ConstData weight,
                    ConstData bias, Data y, Data pre_activation, Workspace workspace) {
  check_size(params, "linear_forward");
  with_storage("linear_forward", {x, weight, y, pre_activation}, [&]<class T>(T) {
    launch_product(context, product_size(params, LinearPass::forward),
                   by_depth(x.as<T>("linear_forward: x"), params.rows, params.in),
                   by_depth(weight.as<T>("linear_forward: weight"), params.out, params.in),
                   row_major(y.as<T>("linear_forward: y"), params.out, bias.as<float>("linear_forward: bias"),
                             params.activation, pre_activation.as<T>("linear_forward: pre_activation")),
                   static_cast<float*>(workspace.data));
  });
}

void linear_backward_data(Context& context, const LinearParams& params, ConstData dy, ConstData weight,
                          Data dx, Workspace workspace) {
  check_size(params, "linear_backward_data");
  with_storage("linear_backward_data", {dy, weight, dx}, [&]<class T>(T) {
    launch_product(
        context, product_size(params, LinearPass::backward_data),
        by_depth(dy.as<T>("linear_backward_data: dy"), params.rows, params.out),
        by_row(weight.as<T>("linear_backward_data: weight"), params.in, params.out),
        row_major<T>(dx.as<T>("linear_backward_data: dx"), params.in, nullptr, Activation::none, nullptr),
        static_cast<float*>(workspace.data));
  });
}

void linear_backward_weight(Context& context, const LinearParams& params, ConstData x, ConstData dy,
                            Data dweight, Data dbias, GradMode mode, Workspace workspace) {
  check_size(params, "linear_backward_weight");
  with_storage("linear_backward_weight", {x, dy}, [&]<class T>(T) {
    launch_product(context, product_size(params, LinearPass::backward_weight),
                   by_row(x.as<T>("linear_backward_weight: x"), params.in, params.rows),
                   by_row(dy.as<T>("linear_backward_weight: dy"), params.out, params.rows),
                   Epilogue<T>{.out = dweight.as<float>("linear_backward_weight: dweight"),
                               .row_stride = 1,
                               .column_stride = params.in,
                               .bias = nullptr,
                               .pre_activation = {},
                               .activation = Activation::none,
                               .mode = mode},
                   static_cast<float*>(workspace.data));
  });
  if (auto* sums = dbias.as<float>("linear_backward_weight: dbias")) {
    linear_bias_gradient(context, params, dy, sums, mode, workspace);
  }
}

void linear_finish(Context& context, const LinearParams& params, const float* bias, Data y,
                   Data pre_activation) {
  with_storage("linear_forward", {y, pre_activation}, [&]<class T>(T) {
    T* values = y.as<T>("linear_forward: y");
    finish<T, T>(context, Input<T>{values}, 1, params.rows * params.out, params.out, bias, params.activation,
                 GradMode::overwrite, values,
                 Output<T>{pre_activation.as<T>("linear_forward: pre_activation")});
  });
}

void linear_bias_gradient(Context& context, const LinearParams& params, ConstData dy, float* dbias,
                          GradMode mode, Workspace workspace) {
  with_storage("linear_backward_weight", {dy}, [&]<class T>(T) {
    add_up_columns<T>(context, params.rows, params.out, input<T>(dy, "linear_backward_weight: dy"), dbias,
                      mode, static_cast<float*>(workspace.data));
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
