// What every device implements of gemm: the product itself, on checked arguments where C is not empty.
#pragma once

#include "kernels/context/storage.hpp"
#include "kernels/gemm/gemm.hpp"

namespace vesal::kernels {

size_t gemm_product_workspace_bytes(Context& context, const GemmParams& params);
void gemm_product(Context& context, const GemmParams& params, ConstData a, ConstData b, Data c,
                  Workspace workspace);

// with_storage of a product: of A and B alone where C is float32, which it always may be.
template <class Body>
void with_product_storage(ConstData a, ConstData b, Data c, Body&& body) {
  if (c.dtype == DType::f32) {
    with_storage("gemm", {a, b}, body);
  } else {
    with_storage("gemm", {a, b, c}, body);
  }
}

}  // namespace vesal::kernels
