// gemm on CUDA: the tiled float32 product of gemm_device.hpp, a piece of the launch for each product.
//
// Least work: 2 m n k operations and 4 (m k + k n + m n) bytes a product, 2 (m k + k n + m n) in bf16 and
// f16. Attention at 32 channels a head is limited by memory. Products with a small result and a long sum are
// split over k.
#include <algorithm>

#include "kernels/gemm/gemm_internal.hpp"
#include "kernels/linear/gemm_device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int64_t kMostPieces = 65535;  // of a launch

template <class T>
struct ScaledStore {
  Result<T> out;
  int64_t row_stride;
  float alpha, beta;
  PieceStride piece_stride;

  VESAL_DEVICE void begin_block(int piece, int64_t split_offset) {
    out.move(piece_stride.offset(piece) + split_offset);
  }
  VESAL_DEVICE void store(int64_t row, int64_t column, float sum) const {
    const int64_t at = row * row_stride + column;
    const float value = alpha * sum;
    out.store(at, beta != 0.0f ? fmaf(beta, out.load(at), value) : value);
  }
};

// Adds the parts of the sums, which lie without gaps, and stores them where C lies.
template <class T>
VESAL_KERNEL void gemm_finish_kernel(const float* partials, int splits, int64_t count, int64_t m, int64_t n,
                                     ScaledStore<T> store) {
  const int64_t i = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x;
  if (i >= count) {
    return;
  }
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) {
    sum += partials[split * count + i];
  }
  store.begin_block(static_cast<int>(i / (m * n)), 0);
  store.store(i / n % m, i % n, sum);
}

ProductSize product_size(const GemmParams& p) {
  return {.rows = p.m,
          .columns = p.n,
          .depth = p.k,
          .count = p.products() * p.m * p.n,
          .pieces = static_cast<int>(p.products())};
}

void check_size(const GemmParams& p) {
  constexpr int64_t kLimit = 0x7fffffff - 2 * kTileM;
  check<ShapeError>(p.m <= kLimit && p.k <= kLimit && p.n <= 65535 * 32 && p.products() <= kLimit,
                    "gemm: ", p.m, " x ", p.n, " x ", p.k, " in ", p.products(),
                    " products passes the kernel's limit");
}

template <template <class> class Matrix, class T>
Matrix<T> operand(const T* p, const GemmLayout& layout, int64_t rows, int64_t depth,
                  const PieceStride& stride) {
  const bool aligned =
      aligned_quads(p, layout.row_stride) && layout.outer_stride % 4 == 0 && layout.inner_stride % 4 == 0;
  return {.p = Input<T>{p},
          .stride = layout.row_stride,
          .rows = rows,
          .depth = static_cast<int>(depth),
          .aligned = aligned,
          .piece_stride = stride};
}

template <class T>
void run_product(Context& context, const GemmParams& p, const T* a, const T* b, const Result<T>& c,
                 float* partials) {
  ProductSize size = product_size(p);
  const int splits = size.splits();
  const auto stride = [&](const GemmLayout& layout, int64_t first) {
    return PieceStride{.outer = layout.outer_stride,
                       .inner = layout.inner_stride,
                       .inner_count = static_cast<int>(p.inner),
                       .first = static_cast<int>(first)};
  };
  for (int64_t first = 0; first < p.products(); first += kMostPieces) {
    size.pieces = static_cast<int>(std::min(p.products() - first, kMostPieces));
    ScaledStore<T> store{c, p.c.row_stride, p.alpha, p.beta, stride(p.c, first)};
    if (splits > 1) {
      store = {partials, p.n, 1.0f, 0.0f, {.outer = p.m * p.n}};
    }
    const auto run = [&](const auto& left) {
      if (p.transpose_b) {
        launch_tiles(context, size, splits, left,
                     operand<MatrixByDepth>(b, p.b, p.n, p.k, stride(p.b, first)), store);
      } else {
        launch_tiles(context, size, splits, left, operand<MatrixByRow>(b, p.b, p.n, p.k, stride(p.b, first)),
                     store);
      }
    };
    if (p.transpose_a) {
      run(operand<MatrixByRow>(a, p.a, p.m, p.k, stride(p.a, first)));
    } else {
      run(operand<MatrixByDepth>(a, p.a, p.m, p.k, stride(p.a, first)));
    }
  }
  if (splits > 1) {  // then there are few products, and one launch has done them
    launch(context.stream(), {.grid = ceil_div(size.count, kFinishThreads), .block = kFinishThreads},
           gemm_finish_kernel<T>, static_cast<const float*>(partials), splits, size.count, p.m, p.n,
           ScaledStore<T>{c, p.c.row_stride, p.alpha, p.beta, stride(p.c, 0)});
  }
}

}  // namespace

size_t gemm_product_workspace_bytes(Context&, const GemmParams& params) {
  check_size(params);
  return product_size(params).workspace_bytes();
}

void gemm_product(Context& context, const GemmParams& p, ConstData a, ConstData b, Data c,
                  Workspace workspace) {
  check_size(p);
  with_product_storage(a, b, c, [&]<class T>(T) {
    const Result<T> result =
        c.dtype == DType::f32 ? Result<T>(c.as<float>("gemm: C")) : Result<T>(c.as<T>("gemm: C"));
    run_product<T>(context, p, a.as<T>("gemm: A"), b.as<T>("gemm: B"), result,
                   static_cast<float*>(workspace.data));
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
