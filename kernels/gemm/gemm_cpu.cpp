// gemm on the CPU: oneDNN's sgemm, a product to a thread where there are enough of them, else all threads on
// each.
#include "kernels/linear/gemm_cpu.hpp"

#include "kernels/gemm/gemm_internal.hpp"

namespace vesal::kernels::cpu {

size_t gemm_product_workspace_bytes(Context&, const GemmParams&) { return 0; }

void gemm_product(Context&, const GemmParams& p, ConstData a_, ConstData b_, Data c_, Workspace) {
  const auto* a = a_.as<float>("gemm: A");
  const auto* b = b_.as<float>("gemm: B");
  auto* c = c_.as<float>("gemm: C");
  set_onednn_threads();
  const auto products = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto offset = [&](const GemmLayout& layout) {
        return i / p.inner * layout.outer_stride + i % p.inner * layout.inner_stride;
      };
      float* result = c + offset(p.c);
      if (p.k == 0) {
        for (int64_t row = 0; row < p.m; ++row) {
          for (int64_t column = 0; column < p.n; ++column) {
            float& value = result[row * p.c.row_stride + column];
            value = p.beta == 0.0f ? 0.0f : p.beta * value;
          }
        }
        continue;
      }
      sgemm(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', p.m, p.n, p.k, a + offset(p.a),
            p.a.row_stride, b + offset(p.b), p.b.row_stride, p.beta, result, p.c.row_stride, p.alpha);
    }
  };
  if (p.products() >= thread_count()) {
    parallel_for(p.products(), 1, products);
  } else {
    products(0, p.products());
  }
}

}  // namespace vesal::kernels::cpu
