// What every device implements of gemm: the product itself, on checked arguments where C is not empty.
#pragma once

#include "kernels/gemm/gemm.hpp"

namespace vesal::kernels {

size_t gemm_product_workspace_bytes(Context& context, const GemmParams& params);
void gemm_product(Context& context, const GemmParams& params, ConstData a, ConstData b, Data c,
                  Workspace workspace);

}  // namespace vesal::kernels
