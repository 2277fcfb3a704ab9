// linear through cuBLAS: float32 without TF32, bf16 and f16 on tensor cores with float32 sums; then bias and
// activation by our own kernel, for which a product of bf16 or f16 is rounded once more than in the
// hand-written way. cuBLAS is column-major: a row-major [r, c] matrix is to it the transpose with leading
// dimension c.
#include "kernels/linear/linear_cublas.hpp"

#if VESAL_WITH_CUDA
#include <cublas_v2.h>

#include "kernels/context/storage.hpp"
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

  Handle() { cublas_check(cublasCreate(&handle), "cublasCreate"); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { cublasDestroy(handle); }
};

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : dtype == DType::f16 ? CUDA_R_16F : CUDA_R_32F;
}

// Column-major C[m, n] = op(A) op(B) + beta C, summed in float32.
void gemm(Context& context, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n, int64_t k,
          ConstData a, int64_t lda, ConstData b, int64_t ldb, float beta, Data c, int64_t ldc) {
  cublasHandle_t handle = context.cache<Handle>().handle;
  cublas_check(cublasSetStream(handle, static_cast<cudaStream_t>(context.stream().native)),
               "cublasSetStream");
  const bool single = a.dtype == DType::f32;
  cublas_check(cublasSetMathMode(
                   handle, single ? CUBLAS_PEDANTIC_MATH : CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION),
               "cublasSetMathMode");
  const float alpha = 1.0f;
  cublas_check(
      cublasGemmEx_64(handle, op_a, op_b, m, n, k, &alpha, a.pointer, type_of(a.dtype), lda, b.pointer,
                      type_of(b.dtype), ldb, &beta, c.pointer, type_of(c.dtype), ldc,
                      single ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

}  // namespace

void linear_forward(Context& context, const LinearParams& p, ConstData x, ConstData weight, ConstData bias_,
                    Data y, Data pre_activation) {
  const auto* bias = bias_.as<float>("linear_forward: bias");
  with_storage("linear_forward", {x, weight, y, pre_activation}, [&](auto) {
    gemm(context, CUBLAS_OP_T, CUBLAS_OP_N, p.out, p.rows, p.in, weight, p.in, x, p.in, 0.0f, y, p.out);
  });
  if (bias != nullptr || pre_activation || p.activation != Activation::none) {
    cuda::linear_finish(context, p, bias, y, pre_activation);
  }
}

void linear_backward_data(Context& context, const LinearParams& p, ConstData dy, ConstData weight, Data dx) {
  with_storage("linear_backward_data", {dy, weight, dx}, [&](auto) {
    gemm(context, CUBLAS_OP_N, CUBLAS_OP_N, p.in, p.rows, p.out, weight, p.in, dy, p.out, 0.0f, dx, p.in);
  });
}

void linear_backward_weight(Context& context, const LinearParams& p, ConstData x, ConstData dy, Data dweight,
                            Data dbias_, GradMode mode, Workspace workspace) {
  auto* target = dweight.as<float>("linear_backward_weight: dweight");
  with_storage("linear_backward_weight", {x, dy}, [&](auto) {
    gemm(context, CUBLAS_OP_N, CUBLAS_OP_T, p.in, p.out, p.rows, x, p.in, dy, p.out,
         mode == GradMode::accumulate ? 1.0f : 0.0f, target, p.in);
  });
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
