// gemm as plain loops, forward and backward written out independently; evaluated in double (exact) and in
// float.
#pragma once

#include "kernels/gemm/gemm.hpp"

namespace vesal::kernels::reference {

// Calls body(element of A, element of B, element of C) for every product of two numbers, in the order of k.
template <class Body>
void for_each_gemm_term(const GemmParams& p, Body&& body) {
  const auto at = [](const GemmLayout& l, int64_t outer, int64_t inner, int64_t row, int64_t column) {
    return outer * l.outer_stride + inner * l.inner_stride + row * l.row_stride + column;
  };
  for (int64_t o = 0; o < p.outer; ++o) {
    for (int64_t q = 0; q < p.inner; ++q) {
      for (int64_t row = 0; row < p.m; ++row) {
        for (int64_t column = 0; column < p.n; ++column) {
          for (int64_t i = 0; i < p.k; ++i) {
            body(p.transpose_a ? at(p.a, o, q, i, row) : at(p.a, o, q, row, i),
                 p.transpose_b ? at(p.b, o, q, column, i) : at(p.b, o, q, i, column),
                 at(p.c, o, q, row, column));
          }
        }
      }
    }
  }
}

// c holds what was there before, also between the matrices.
template <class T>
void gemm(const GemmParams& p, const T* a, const T* b, T* c) {
  for (int64_t o = 0; o < p.outer; ++o) {
    for (int64_t q = 0; q < p.inner; ++q) {
      for (int64_t row = 0; row < p.m; ++row) {
        for (int64_t column = 0; column < p.n; ++column) {
          T& value = c[o * p.c.outer_stride + q * p.c.inner_stride + row * p.c.row_stride + column];
          value = p.beta == 0.0f ? T(0) : T(p.beta) * value;
        }
      }
    }
  }
  for_each_gemm_term(p, [&](int64_t i, int64_t j, int64_t k) { c[k] += T(p.alpha) * a[i] * b[j]; });
}

// Adds to da and db.
template <class T>
void gemm_backward(const GemmParams& p, const T* a, const T* b, const T* dc, T* da, T* db) {
  for_each_gemm_term(p, [&](int64_t i, int64_t j, int64_t k) {
    da[i] += T(p.alpha) * dc[k] * b[j];
    db[j] += T(p.alpha) * a[i] * dc[k];
  });
}

}  // namespace vesal::kernels::reference
