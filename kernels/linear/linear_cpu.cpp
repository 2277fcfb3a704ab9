// linear on the CPU: oneDNN's sgemm, with bias and activation applied while a block of rows is in cache.
#include "kernels/linear/gemm_cpu.hpp"
#include "kernels/linear/linear.hpp"

namespace vesal::kernels::cpu {

size_t linear_workspace_bytes(Context&, const LinearParams& params, LinearPass pass) {
  return pass == LinearPass::backward_weight ? column_sum_bytes(params.rows, params.out) : 0;
}

void linear_forward(Context&, const LinearParams& params, ConstData x, ConstData weight, ConstData bias,
                    Data y, Data pre_activation, Workspace) {
  with_storage("linear_forward", {x, weight, y, pre_activation}, [&]<class T>(T) {
    product_forward(params.rows, params.in, params.out, x.as<T>("linear_forward: x"),
                    weight.as<T>("linear_forward: weight"), bias.as<float>("linear_forward: bias"),
                    params.activation, y.as<T>("linear_forward: y"),
                    pre_activation.as<T>("linear_forward: pre_activation"));
  });
}

void linear_backward_data(Context&, const LinearParams& params, ConstData dy, ConstData weight, Data dx,
                          Workspace) {
  with_storage("linear_backward_data", {dy, weight, dx}, [&]<class T>(T) {
    product_backward_data(params.rows, params.in, params.out, dy.as<T>("linear_backward_data: dy"),
                          weight.as<T>("linear_backward_data: weight"), nullptr,
                          dx.as<T>("linear_backward_data: dx"));
  });
}

void linear_backward_weight(Context&, const LinearParams& params, ConstData x, ConstData dy, Data dweight,
                            Data dbias, GradMode mode, Workspace workspace) {
  with_storage("linear_backward_weight", {x, dy}, [&]<class T>(T) {
    const T* gradient = dy.as<T>("linear_backward_weight: dy");
    product_backward_weight(params.rows, params.in, params.out, x.as<T>("linear_backward_weight: x"),
                            gradient, dweight.as<float>("linear_backward_weight: dweight"), mode);
    if (float* sums = dbias.as<float>("linear_backward_weight: dbias")) {
      add_up_columns(params.rows, params.out, gradient, sums, mode, static_cast<float*>(workspace.data));
    }
  });
}

}  // namespace vesal::kernels::cpu
