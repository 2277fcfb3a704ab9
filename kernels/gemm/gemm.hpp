// Batches of matrix products over any row-major layout: what attention and graph layers are made of where no
// fused kernel fits.
//
//   C[p, q] = alpha op(A[p, q]) op(B[p, q]) + beta C[p, q]     for p < outer, q < inner
//
// op is the transpose or nothing. Two levels of batches, because heads lie inside tokens: with queries and
// keys [windows, tokens, heads, dim] the scores of all windows and heads are one call with outer = windows,
// inner = heads, a row stride of heads * dim and an inner stride of dim.
//
// The matrices are stored as float32, bf16 or f16, all of a call alike; only the one that is written may also
// be float32 where the others are bf16 or f16 (scores before a softmax, the gradient of a weight).
//
// The gradients are products of the same kind:
//   dA = alpha dC op(B)^T, dB = alpha op(A)^T dC (transposed where A or B is), and dC for the beta term is
//   beta dC.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Where the matrices of an operand lie: element (row, column) of matrix (p, q) at p * outer_stride + q *
// inner_stride
// + row * row_stride + column, in elements.
struct GemmLayout {
  int64_t row_stride = 0;    // >= the matrix's columns as it lies in memory
  int64_t outer_stride = 0;  // >= 0; 0 in A or B: one matrix for all
  int64_t inner_stride = 0;  // likewise
};

struct GemmParams {
  int64_t outer = 1, inner = 1;     // products, >= 0
  int64_t m = 1, n = 1, k = 1;      // op(A) is [m, k], op(B) [k, n], C [m, n]; >= 0
  bool transpose_a = false;         // A lies in memory as [k, m]
  bool transpose_b = false;         // B lies in memory as [n, k]
  GemmLayout a{}, b{}, c{};         // matrices of C do not overlap
  float alpha = 1.0f, beta = 0.0f;  // beta = 0: what was in C is not read

  int64_t products() const { return outer * inner; }
};

// Layouts of matrices that lie one after the other, without gaps.
GemmParams dense_gemm(int64_t outer, int64_t inner, int64_t m, int64_t n, int64_t k, bool transpose_a = false,
                      bool transpose_b = false);

enum class GemmPass { forward, backward_a, backward_b };

// Bytes of scratch memory that the given pass needs on this context's device. Throws ShapeError for sizes
// outside the ranges above.
size_t gemm_workspace_bytes(Context& context, const GemmParams& params, GemmPass pass);

// Elements of C between rows and matrices are left alone. An empty sum (k = 0) is 0.
void gemm(Context& context, const GemmParams& params, ConstData a, ConstData b, Data c, Workspace workspace);

// da lies as A does, dc as C. A matrix that serves several products (a stride of 0) has no gradient here: its
// matrices would overlap, which is a ShapeError. GradMode::overwrite does not read da.
void gemm_backward_a(Context& context, const GemmParams& params, ConstData dc, ConstData b, Data da,
                     GradMode mode, Workspace workspace);
// db lies as B does; otherwise as above.
void gemm_backward_b(Context& context, const GemmParams& params, ConstData a, ConstData dc, Data db,
                     GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
