// Contract of gemm: argument checks, gradients as products, then the implementation of the context's device.
#include "kernels/gemm/gemm.hpp"

#include <utility>

#include "kernels/context/dispatch.hpp"
#include "kernels/gemm/gemm_internal.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(gemm_product_workspace_bytes)
VESAL_DECLARE_BACKENDS(gemm_product)

namespace {

void check_layout(const GemmLayout& layout, int64_t columns, const char* op, const char* matrix) {
  check<ShapeError>(layout.row_stride >= columns, op, ": row stride of ", matrix, " is ", layout.row_stride,
                    ", must be at least its ", columns, " columns");
  check<ShapeError>(layout.outer_stride >= 0 && layout.inner_stride >= 0, op, ": strides of ", matrix,
                    " are ", layout.outer_stride, " and ", layout.inner_stride, ", must be 0 or more");
}

// Whether `count` blocks of `rows` x `width` elements, a `stride` apart, keep out of each other's way: each
// follows the one before, or all of them fit between two rows.
bool are_apart(int64_t count, int64_t stride, int64_t rows, int64_t width, int64_t row_stride) {
  return count <= 1 || stride >= (rows - 1) * row_stride + width ||
         (stride >= width && (rows == 1 || row_stride >= (count - 1) * stride + width));
}

// The level of batches with the smaller stride first; where its matrices lie side by side they are wider rows
// to the other level, else longer blocks.
void check_written(const GemmLayout& l, const GemmParams& p, int64_t rows, int64_t columns, const char* op,
                   const char* matrix) {
  if (p.products() == 0 || rows == 0 || columns == 0) {
    return;
  }
  int64_t near = l.inner_stride, near_count = p.inner;
  int64_t far = l.outer_stride, far_count = p.outer;
  if (far < near) {
    std::swap(near, far);
    std::swap(near_count, far_count);
  }
  const int64_t more = (near_count - 1) * near;
  const bool side_by_side = more + columns <= l.row_stride;
  const bool far_apart = side_by_side ? are_apart(far_count, far, rows, columns + more, l.row_stride)
                                      : far_count <= 1 || far >= (rows - 1) * l.row_stride + columns + more;
  check<ShapeError>(are_apart(near_count, near, rows, columns, l.row_stride) && far_apart, op,
                    ": matrices of ", matrix, " overlap: ", p.outer, " x ", p.inner, " of ", rows, " x ",
                    columns, " with strides ", l.outer_stride, ", ", l.inner_stride, " and ", l.row_stride);
}

void check_params(const GemmParams& p, const char* op) {
  check<ShapeError>(p.outer >= 0 && p.inner >= 0, op, ": outer x inner is ", p.outer, " x ", p.inner,
                    ", must be 0 or more");
  check<ShapeError>(p.m >= 0 && p.n >= 0 && p.k >= 0, op, ": m, n, k are ", p.m, ", ", p.n, ", ", p.k,
                    ", must be 0 or more");
  check_layout(p.a, p.transpose_a ? p.m : p.k, op, "A");
  check_layout(p.b, p.transpose_b ? p.k : p.n, op, "B");
  check_layout(p.c, p.n, op, "C");
}

bool is_empty(const GemmParams& p) { return p.products() == 0 || p.m == 0 || p.n == 0; }

// dA[m, k] = alpha dC[m, n] op(B)^T, or dA[k, m] = alpha op(B) dC^T: the operands are (dC, B) or (B, dC).
GemmParams product_of_a(const GemmParams& p, GradMode mode) {
  GemmParams g{.outer = p.outer, .inner = p.inner, .c = p.a, .alpha = p.alpha};
  g.beta = mode == GradMode::accumulate ? 1.0f : 0.0f;
  g.k = p.n;
  g.m = p.transpose_a ? p.k : p.m;
  g.n = p.transpose_a ? p.m : p.k;
  g.transpose_a = p.transpose_a && p.transpose_b;
  g.transpose_b = p.transpose_a || !p.transpose_b;
  g.a = p.transpose_a ? p.b : p.c;
  g.b = p.transpose_a ? p.c : p.b;
  return g;
}

// dB[k, n] = alpha op(A)^T dC, or dB[n, k] = alpha dC^T op(A): the operands are (A, dC) or (dC, A).
GemmParams product_of_b(const GemmParams& p, GradMode mode) {
  GemmParams g{.outer = p.outer, .inner = p.inner, .c = p.b, .alpha = p.alpha};
  g.beta = mode == GradMode::accumulate ? 1.0f : 0.0f;
  g.k = p.m;
  g.m = p.transpose_b ? p.n : p.k;
  g.n = p.transpose_b ? p.k : p.n;
  g.transpose_a = p.transpose_b || !p.transpose_a;
  g.transpose_b = p.transpose_b && p.transpose_a;
  g.a = p.transpose_b ? p.c : p.a;
  g.b = p.transpose_b ? p.a : p.c;
  return g;
}

size_t product_workspace_bytes(Context& context, const GemmParams& params) {
  if (is_empty(params)) {
    return 0;
  }
  VESAL_DISPATCH(context, gemm_product_workspace_bytes(context, params));
}

void run_product(Context& context, const GemmParams& params, ConstData a, ConstData b, Data c,
                 Workspace workspace, const char* op, const char* written) {
  check_written(params.c, params, params.m, params.n, op, written);
  if (is_empty(params)) {
    return;
  }
  check<ShapeError>(c && (params.k == 0 || (a && b)), op, ": a matrix is null");
  workspace.require(product_workspace_bytes(context, params), op);
  VESAL_DISPATCH(context, gemm_product(context, params, a, b, c, workspace));
}

}  // namespace

GemmParams dense_gemm(int64_t outer, int64_t inner, int64_t m, int64_t n, int64_t k, bool transpose_a,
                      bool transpose_b) {
  const auto layout = [&](int64_t rows, int64_t columns) {
    return GemmLayout{
        .row_stride = columns, .outer_stride = inner * rows * columns, .inner_stride = rows * columns};
  };
  return {.outer = outer,
          .inner = inner,
          .m = m,
          .n = n,
          .k = k,
          .transpose_a = transpose_a,
          .transpose_b = transpose_b,
          .a = transpose_a ? layout(k, m) : layout(m, k),
          .b = transpose_b ? layout(n, k) : layout(k, n),
          .c = layout(m, n)};
}

size_t gemm_workspace_bytes(Context& context, const GemmParams& params, GemmPass pass) {
  check_params(params, "gemm_workspace_bytes");
  switch (pass) {
    case GemmPass::forward:
      return product_workspace_bytes(context, params);
    case GemmPass::backward_a:
      return product_workspace_bytes(context, product_of_a(params, GradMode::overwrite));
    case GemmPass::backward_b:
      break;
  }
  return product_workspace_bytes(context, product_of_b(params, GradMode::overwrite));
}

void gemm(Context& context, const GemmParams& params, ConstData a, ConstData b, Data c, Workspace workspace) {
  check_params(params, "gemm");
  run_product(context, params, a, b, c, workspace, "gemm", "C");
}

void gemm_backward_a(Context& context, const GemmParams& params, ConstData dc, ConstData b, Data da,
                     GradMode mode, Workspace workspace) {
  check_params(params, "gemm_backward_a");
  const bool swapped = params.transpose_a;
  run_product(context, product_of_a(params, mode), swapped ? b : dc, swapped ? dc : b, da, workspace,
              "gemm_backward_a", "dA");
}

void gemm_backward_b(Context& context, const GemmParams& params, ConstData a, ConstData dc, Data db,
                     GradMode mode, Workspace workspace) {
  check_params(params, "gemm_backward_b");
  const bool swapped = params.transpose_b;
  run_product(context, product_of_b(params, mode), swapped ? dc : a, swapped ? a : dc, db, workspace,
              "gemm_backward_b", "dB");
}

}  // namespace vesal::kernels
