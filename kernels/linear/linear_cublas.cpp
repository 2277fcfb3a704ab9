// linear through cuBLAS in plain float32 (no TF32), then bias and activation by our own kernel. cuBLAS is
// column-major: a row-major [r, c] matrix is to it the transpose with leading dimension c.
#include "kernels/linear/linear_cublas.hpp"

#if VESAL_WITH_CUDA
#include <cublas_v2.h>

#include "kernels/linear/linear_internal.hpp"
#endif

namespace vesal::kernels::cublas {

#if VESAL_WITH_CUDA
namespace {

void cublas_check(cublasStatus_t status, const char* what) {
  check<DeviceError>(status == CUBLAS_STATUS_SUCCESS, what, ": ", cublasGetStatusString(status));
}

struct Handle {
  cublasHandle_t handle = nullptr;

  Handle() {
    cublas_check(cublasCreate(&handle), "cublasCreate");
    cublas_check(cublasSetMathMode(handle, CUBLAS_PEDANTIC_MATH), "cublasSetMathMode");
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { cublasDestroy(handle); }
};

// Column-major C[m, n] = op(A) op(B) + beta C.
void gemm(Context& context, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n, int64_t k,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  cublasHandle_t handle = context.cache<Handle>().handle;
  cublas_check(cublasSetStream(handle, static_cast<cudaStream_t>(context.stream().native)),
               "cublasSetStream");
  const float alpha = 1.0f;
  cublas_check(cublasSgemm_64(handle, op_a, op_b, m, n, k, &alpha, a, lda, b, ldb, &beta, c, ldc),
               "cublasSgemm");
}

}  // namespace

void linear_forward(Context& context, const LinearParams& p, ConstData x, ConstData weight, ConstData bias_,
                    Data y_, Data pre_activation_) {
  auto* y = y_.as<float>("linear_forward: y");
  auto* pre_activation = pre_activation_.as<float>("linear_forward: pre_activation");
  const auto* bias = bias_.as<float>("linear_forward: bias");
  gemm(context, CUBLAS_OP_T, CUBLAS_OP_N, p.out, p.rows, p.in, weight.as<float>("linear_forward: weight"),
       p.in, x.as<float>("linear_forward: x"), p.in, 0.0f, y, p.out);
  if (bias != nullptr || pre_activation != nullptr || p.activation != Activation::none) {
    cuda::linear_finish(context, p, bias, y, pre_activation);
  }
}

void linear_backward_data(Context& context, const LinearParams& p, ConstData dy, ConstData weight, Data dx) {
  gemm(context, CUBLAS_OP_N, CUBLAS_OP_N, p.in, p.rows, p.out,
       weight.as<float>("linear_backward_data: weight"), p.in, dy.as<float>("linear_backward_data: dy"),
       p.out, 0.0f, dx.as<float>("linear_backward_data: dx"), p.in);
}

void linear_backward_weight(Context& context, const LinearParams& p, ConstData x, ConstData dy_, Data dweight,
                            Data dbias_, GradMode mode, Workspace workspace) {
  const auto* dy = dy_.as<float>("linear_backward_weight: dy");
  gemm(context, CUBLAS_OP_N, CUBLAS_OP_T, p.in, p.out, p.rows, x.as<float>("linear_backward_weight: x"), p.in,
       dy, p.out, mode == GradMode::accumulate ? 1.0f : 0.0f,
       dweight.as<float>("linear_backward_weight: dweight"), p.in);
  if (auto* dbias = dbias_.as<float>("linear_backward_weight: dbias")) {
    cuda::linear_bias_gradient(context, p, dy, dbias, mode, workspace);
  }
}
#else
namespace {
[[noreturn]] void not_built() {
  throw DeviceError("this build of vesal has no CUDA backend, and so no cuBLAS");
}
}  // namespace

void linear_forward(Context&, const LinearParams&, ConstData, ConstData, ConstData, Data, Data) {
  not_built();
}
void linear_backward_data(Context&, const LinearParams&, ConstData, ConstData, Data) { not_built(); }
void linear_backward_weight(Context&, const LinearParams&, ConstData, ConstData, Data, Data, GradMode,
                            Workspace) {
  not_built();
}
#endif

}  // namespace vesal::kernels::cublas
