// gemm on the CPU: oneDNN's sgemm, a product to a thread where there are enough of them, else all threads on
// each. Stored matrices are widened for it, one product at a time.
#include "kernels/linear/gemm_cpu.hpp"

#include <type_traits>

#include "kernels/gemm/gemm_internal.hpp"

namespace vesal::kernels::cpu {
namespace {

template <class T>
constexpr bool kIsFloat = std::is_same_v<T, float>;

// Calls body(begin, end) for ranges of rows, on all threads where there are many elements.
template <class Body>
void for_each_row(int64_t rows, int64_t columns, Body&& body) {
  parallel_for(rows, std::max<int64_t>(1, 65536 / columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      body(row);
    }
  });
}

struct Matrix {
  const float* p;
  int64_t row_stride;
};

// A matrix for sgemm: float32 as it lies, a stored one copied into `scratch` without gaps.
template <class T>
Matrix widened(const T* p, int64_t row_stride, int64_t rows, int64_t columns, float* scratch) {
  if constexpr (kIsFloat<T>) {
    return {p, row_stride};
  } else {
    for_each_row(rows, columns,
                 [&](int64_t row) { widen_all(p + row * row_stride, columns, scratch + row * columns); });
    return {scratch, columns};
  }
}

// C may be float32 where A and B are not.
template <class T, class C>
void run_products(const GemmParams& p, const T* a, const T* b, C* c, int64_t begin, int64_t end) {
  const Floats scratch_a = floats(kIsFloat<T> ? 0 : p.m * p.k),
               scratch_b = floats(kIsFloat<T> ? 0 : p.k * p.n);
  const Floats scratch_c = floats(kIsFloat<C> ? 0 : p.m * p.n);
  for (int64_t i = begin; i < end; ++i) {
    const auto offset = [&](const GemmLayout& layout) {
      return i / p.inner * layout.outer_stride + i % p.inner * layout.inner_stride;
    };
    C* target = c + offset(p.c);
    float* result = scratch_c.get();
    int64_t row_stride = p.n;
    if constexpr (kIsFloat<C>) {
      result = target;
      row_stride = p.c.row_stride;
    } else if (p.beta != 0.0f) {
      widened(target, p.c.row_stride, p.m, p.n, result);
    }
    if (p.k == 0) {
      for_each_row(p.m, p.n, [&](int64_t row) {
        for (int64_t column = 0; column < p.n; ++column) {
          float& value = result[row * row_stride + column];
          value = p.beta == 0.0f ? 0.0f : p.beta * value;
        }
      });
    } else {
      const int64_t rows_a = p.transpose_a ? p.k : p.m, rows_b = p.transpose_b ? p.n : p.k;
      const Matrix left =
          widened(a + offset(p.a), p.a.row_stride, rows_a, p.m + p.k - rows_a, scratch_a.get());
      const Matrix right =
          widened(b + offset(p.b), p.b.row_stride, rows_b, p.k + p.n - rows_b, scratch_b.get());
      sgemm(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', p.m, p.n, p.k, left.p, left.row_stride,
            right.p, right.row_stride, p.beta, result, row_stride, p.alpha);
    }
    if constexpr (!kIsFloat<C>) {
      for_each_row(p.m, p.n,
                   [&](int64_t row) { narrow_all(result + row * p.n, p.n, target + row * p.c.row_stride); });
    }
  }
}

}  // namespace

size_t gemm_product_workspace_bytes(Context&, const GemmParams&) { return 0; }

void gemm_product(Context&, const GemmParams& p, ConstData a_, ConstData b_, Data c_, Workspace) {
  set_onednn_threads();
  with_product_storage(a_, b_, c_, [&]<class T>(T) {
    const T* a = a_.as<T>("gemm: A");
    const T* b = b_.as<T>("gemm: B");
    const auto run = [&](auto* c) {
      if (p.products() >= thread_count()) {
        parallel_for(p.products(), 1,
                     [&](int64_t begin, int64_t end) { run_products(p, a, b, c, begin, end); });
      } else {
        run_products(p, a, b, c, 0, p.products());
      }
    };
    if (c_.dtype == DType::f32) {
      run(c_.as<float>("gemm: C"));
    } else {
      run(c_.as<T>("gemm: C"));
    }
  });
}

}  // namespace vesal::kernels::cpu
