// linear on CUDA: y = activation(x W^T + bias), dx = dy W, dW = dy^T x, as tiled float32 products (gemm_device.hpp).
//
// Least work: 2 rows in out operations and 4 (rows in + rows out + in out) bytes for each of the three. Below about 100
// channels that is limited by memory (in = out = 32: 8 operations a byte), above by the float32 units, which this version
// uses without tensor cores. The weight gradient, whose result is small and whose sum is long, is split over rows.
// No GPU timing exists yet (see bench/results/README.md).
#include <algorithm>

#include "kernels/linear/gemm_device.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/linear/linear_internal.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// y[rows, out] = x[rows, in] W[out, in]^T: both operands have consecutive k.
template <int kTileN>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kGemmThreads<kTileN>)
    linear_forward_kernel(MatrixByDepth a, MatrixByDepth b, int splits, int64_t split_stride, Epilogue epilogue) {
  LoaderByDepth<kTileM, kGemmThreads<kTileN>, MatrixByDepth> loader_a;
  LoaderByDepth<kTileN, kGemmThreads<kTileN>, MatrixByDepth> loader_b;
  TileProduct<kTileN> product;
  const int64_t first_row = int64_t{blockIdx.x} * kTileM;
  const int64_t first_column = int64_t{blockIdx.y} * kTileN;
  const int part = split_depth(a.depth, splits);
  const int k_begin = static_cast<int>(blockIdx.z) * part;
  product.compute(loader_a, loader_b, a, b, first_row, first_column, k_begin, min(k_begin + part, a.depth));
  epilogue.out += blockIdx.z * split_stride;
  const int thread = static_cast<int>(threadIdx.x);
  VESAL_UNROLL
  for (int r = 0; r < kThreadM; ++r) {
    VESAL_UNROLL
    for (int c = 0; c < kThreadN; ++c) {
      const int64_t row = first_row + product.row(thread, r);
      const int64_t column = first_column + product.column(thread, c);
      if (row < a.rows && column < b.rows) {
        epilogue.store(row, column, product.values[r][c]);
      }
    }
  }
}

// dx[rows, in] = dy[rows, out] W[out, in]: W has consecutive columns.
template <int kTileN>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kGemmThreads<kTileN>)
    linear_backward_data_kernel(MatrixByDepth a, MatrixByRow b, int splits, int64_t split_stride, Epilogue epilogue) {
  LoaderByDepth<kTileM, kGemmThreads<kTileN>, MatrixByDepth> loader_a;
  LoaderByRow<kTileN, kGemmThreads<kTileN>, MatrixByRow> loader_b;
  TileProduct<kTileN> product;
  const int64_t first_row = int64_t{blockIdx.x} * kTileM;
  const int64_t first_column = int64_t{blockIdx.y} * kTileN;
  const int part = split_depth(a.depth, splits);
  const int k_begin = static_cast<int>(blockIdx.z) * part;
  product.compute(loader_a, loader_b, a, b, first_row, first_column, k_begin, min(k_begin + part, a.depth));
  epilogue.out += blockIdx.z * split_stride;
  const int thread = static_cast<int>(threadIdx.x);
  VESAL_UNROLL
  for (int r = 0; r < kThreadM; ++r) {
    VESAL_UNROLL
    for (int c = 0; c < kThreadN; ++c) {
      const int64_t row = first_row + product.row(thread, r);
      const int64_t column = first_column + product.column(thread, c);
      if (row < a.rows && column < b.rows) {
        epilogue.store(row, column, product.values[r][c]);
      }
    }
  }
}

// dW[out, in] as the product's transpose: rows of the tile are inputs, columns are outputs, the depth is x's rows.
template <int kTileN>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kGemmThreads<kTileN>)
    linear_backward_weight_kernel(MatrixByRow a, MatrixByRow b, int splits, int64_t split_stride, Epilogue epilogue) {
  LoaderByRow<kTileM, kGemmThreads<kTileN>, MatrixByRow> loader_a;
  LoaderByRow<kTileN, kGemmThreads<kTileN>, MatrixByRow> loader_b;
  TileProduct<kTileN> product;
  const int64_t first_row = int64_t{blockIdx.x} * kTileM;
  const int64_t first_column = int64_t{blockIdx.y} * kTileN;
  const int part = split_depth(a.depth, splits);
  const int k_begin = static_cast<int>(blockIdx.z) * part;
  product.compute(loader_a, loader_b, a, b, first_row, first_column, k_begin, min(k_begin + part, a.depth));
  epilogue.out += blockIdx.z * split_stride;
  const int thread = static_cast<int>(threadIdx.x);
  VESAL_UNROLL
  for (int r = 0; r < kThreadM; ++r) {
    VESAL_UNROLL
    for (int c = 0; c < kThreadN; ++c) {
      const int64_t row = first_row + product.row(thread, r);
      const int64_t column = first_column + product.column(thread, c);
      if (row < a.rows && column < b.rows) {
        epilogue.store(row, column, product.values[r][c]);
      }
    }
  }
}
}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
