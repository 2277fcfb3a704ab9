// A tiled float32 matrix product for CUDA, C[m, n] = sum over k of A[m, k] B[k, n], where A and B are
// whatever the operand types say: linear takes plain matrices, conv3d gathers voxels (implicit GEMM). Stored
// operands (storage.hpp) are widened as they are loaded, results are narrowed as they are written; all
// between is float32, in the same order for every storage type.
//
// An operand has
// - begin_block(piece): called once by all threads of a block; `piece` numbers independent products;
// - rows, depth: its extent in this piece (for B: the columns of C);
// - Line, line(row): what a thread keeps about a row, or about four of them;
// - load(line, k): four consecutive k of the row, or depth k of four consecutive rows; zeros past the end;
// - Loader<rows, threads>: which of the two it is; and A also target_row(row), the row of C's memory.
//
// A block computes a tile of 128 x 32 or 128 x 64 of C; each thread 8 x 4 of it in registers. Slices of 16 of
// the depth k go through shared memory; the next slice is fetched to registers while the present one is used.
// A product with few tiles and a long depth is split over k into partial sums that finish_kernel adds in
// order, so that the result does not depend on which block runs first.
#pragma once

#include <algorithm>

#include "base/size.hpp"
#include "kernels/context/context.hpp"
#include "kernels/context/quads.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kTileM = 128;
constexpr int kTileK = 16;
constexpr int kThreadM = 8;
constexpr int kThreadN = 4;
constexpr int kFinishThreads = 256;
constexpr int kSumColumns = 32;  // of a block of column_sum_kernel
constexpr int kSumRows = 8;

template <int kTileN>
constexpr int kGemmThreads = (kTileM / kThreadM) * (kTileN / kThreadN);

// Where the matrices of a launch's pieces lie: piece = outer number * inner_count + inner number.
struct PieceStride {
  int64_t outer = 0, inner = 0;  // in elements
  int inner_count = 1;
  int first = 0;  // number of the launch's first piece

  VESAL_DEVICE int64_t offset(int piece) const {
    piece += first;
    return piece / inner_count * outer + piece % inner_count * inner;
  }
};

template <int kRows, int kThreads, class Operand>
struct LoaderByDepth;
template <int kRows, int kThreads, class Operand>
struct LoaderByRow;

// ---- Plain matrices as operands. `aligned`: base and all strides are multiples of four elements. ----

// Element (row, k) at p[row * stride + k]: four consecutive k at once.
template <class T>
struct MatrixByDepth {
  Input<T> p;
  int64_t stride;
  int64_t rows;
  int depth;
  bool aligned;
  PieceStride piece_stride{};

  template <int kRows, int kThreads>
  using Loader = LoaderByDepth<kRows, kThreads, MatrixByDepth>;
  struct Line {
    Input<T> p;
  };
  VESAL_DEVICE void begin_block(int piece) { p = p + piece_stride.offset(piece); }
  VESAL_DEVICE int64_t target_row(int64_t row) const { return row; }
  VESAL_DEVICE Line line(int64_t row) const { return {row < rows ? p + row * stride : Input<T>{}}; }
  VESAL_DEVICE float4 load(const Line& line, int k) const {
    return line.p ? load_up_to_4(line.p + k, depth - k, aligned) : zero4();
  }
};

// Element (row, k) at p[k * stride + row]: four consecutive rows at once.
template <class T>
struct MatrixByRow {
  Input<T> p;
  int64_t stride;
  int64_t rows;
  int depth;
  bool aligned;
  PieceStride piece_stride{};

  template <int kRows, int kThreads>
  using Loader = LoaderByRow<kRows, kThreads, MatrixByRow>;
  struct Line {
    Input<T> p;
    int count;
  };
  VESAL_DEVICE void begin_block(int piece) { p = p + piece_stride.offset(piece); }
  VESAL_DEVICE int64_t target_row(int64_t row) const { return row; }
  VESAL_DEVICE Line line(int64_t row) const {
    return {p + row, row < rows ? static_cast<int>(min(rows - row, int64_t{4})) : 0};
  }
  VESAL_DEVICE float4 load(const Line& line, int k) const {
    return k < depth ? load_up_to_4(line.p + k * stride, line.count, aligned) : zero4();
  }
};

// ---- Loaders: a slice of kRows x kTileK from an operand into shared memory as tile[k][row] ----

template <int kRows, int kThreads, class Operand>
struct LoaderByDepth {
  static constexpr int kGroups = kRows * kTileK / 4 / kThreads;
  typename Operand::Line lines[kGroups];
  float4 values[kGroups];

  VESAL_DEVICE void start(const Operand& operand, int64_t first_row, int thread) {
    VESAL_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      lines[g] = operand.line(first_row + (thread + g * kThreads) / (kTileK / 4));
    }
  }
  VESAL_DEVICE void fetch(const Operand& operand, int k, int thread) {
    VESAL_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      values[g] = operand.load(lines[g], k + thread % (kTileK / 4) * 4);
    }
  }
  VESAL_DEVICE void put(float4* tile, int thread) const {
    constexpr int kPitch = kRows + 4;
    float* target = reinterpret_cast<float*>(tile);
    VESAL_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int row = (thread + g * kThreads) / (kTileK / 4);
      const int k = thread % (kTileK / 4) * 4;
      target[(k + 0) * kPitch + row] = values[g].x;
      target[(k + 1) * kPitch + row] = values[g].y;
      target[(k + 2) * kPitch + row] = values[g].z;
      target[(k + 3) * kPitch + row] = values[g].w;
    }
  }
};

template <int kRows, int kThreads, class Operand>
struct LoaderByRow {
  static constexpr int kGroups = kRows * kTileK / 4 / kThreads;
  static constexpr int kQuads = kRows / 4;
  static_assert(kThreads % kQuads == 0, "a thread keeps its rows from slice to slice");
  typename Operand::Line line;
  float4 values[kGroups];

  VESAL_DEVICE void start(const Operand& operand, int64_t first_row, int thread) {
    line = operand.line(first_row + thread % kQuads * 4);
  }
  VESAL_DEVICE void fetch(const Operand& operand, int k, int thread) {
    VESAL_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      values[g] = operand.load(line, k + thread / kQuads + g * (kThreads / kQuads));
    }
  }
  VESAL_DEVICE void put(float4* tile, int thread) const {
    VESAL_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      tile[(thread / kQuads + g * (kThreads / kQuads)) * (kRows / 4 + 1) + thread % kQuads] = values[g];
    }
  }
};

// ---- The product of one tile ----

// The accumulators of a thread: rows row(r), columns column(c) of the block's tile.
template <int kTileN>
struct TileProduct {
  static constexpr int kQuadsA = kTileM / 4 + 1;  // one quad of padding against bank conflicts
  static constexpr int kQuadsB = kTileN / 4 + 1;
  float values[kThreadM][kThreadN];

  VESAL_DEVICE static int row(int thread, int r) {
    return r / 4 * (kTileM / 2) + thread / (kTileN / kThreadN) * 4 + r % 4;
  }
  VESAL_DEVICE static int column(int thread, int c) { return thread % (kTileN / kThreadN) * 4 + c; }

  VESAL_DEVICE void clear() {
    VESAL_UNROLL
    for (int r = 0; r < kThreadM; ++r) {
      VESAL_UNROLL
      for (int c = 0; c < kThreadN; ++c) {
        values[r][c] = 0.0f;
      }
    }
  }

  // Adds the product of two slices in shared memory, tile[kTileK][rows / 4] with the padding.
  VESAL_DEVICE void multiply(const float4* tile_a, const float4* tile_b, int thread) {
    const int quad_m = thread / (kTileN / kThreadN);
    const int quad_n = thread % (kTileN / kThreadN);
    VESAL_UNROLL
    for (int j = 0; j < kTileK; ++j) {
      const float4 low = tile_a[j * kQuadsA + quad_m];
      const float4 high = tile_a[j * kQuadsA + kTileM / 8 + quad_m];
      const float4 right = tile_b[j * kQuadsB + quad_n];
      const float left[kThreadM] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      VESAL_UNROLL
      for (int r = 0; r < kThreadM; ++r) {
        values[r][0] = fmaf(left[r], right.x, values[r][0]);
        values[r][1] = fmaf(left[r], right.y, values[r][1]);
        values[r][2] = fmaf(left[r], right.z, values[r][2]);
        values[r][3] = fmaf(left[r], right.w, values[r][3]);
      }
    }
  }

  template <class LoaderA, class LoaderB, class OperandA, class OperandB>
  VESAL_DEVICE void compute(LoaderA& loader_a, LoaderB& loader_b, const OperandA& a, const OperandB& b,
                            int64_t first_row, int64_t first_column, int k_begin, int k_end) {
    VESAL_SHARED(float4, tile_a, [kTileK * kQuadsA]);
    VESAL_SHARED(float4, tile_b, [kTileK * kQuadsB]);
    const int thread = static_cast<int>(threadIdx.x);
    clear();
    if (k_begin >= k_end) {
      return;
    }
    loader_a.start(a, first_row, thread);
    loader_b.start(b, first_column, thread);
    loader_a.fetch(a, k_begin, thread);
    loader_b.fetch(b, k_begin, thread);
    for (int k = k_begin; k < k_end; k += kTileK) {
      loader_a.put(tile_a, thread);
      loader_b.put(tile_b, thread);
      __syncthreads();
      if (k + kTileK < k_end) {
        loader_a.fetch(a, k + kTileK, thread);
        loader_b.fetch(b, k + kTileK, thread);
      }
      multiply(tile_a, tile_b, thread);
      __syncthreads();
    }
  }
};

// ---- What becomes of a sum ----

VESAL_DEVICE inline float activate(Activation activation, float value) {
  if (activation == Activation::relu) {
    return value < 0.0f ? 0.0f : value;
  }
  if (activation == Activation::gelu) {
    return 0.5f * value * (1.0f + erff(value * 0.707106781f));
  }
  return value;
}

// Where results go: a stored tensor or, where `wide` is not null, float32 memory (partial sums, gradients of
// weights). A choice while the kernel runs, so that a storage type needs one kernel for both.
template <class T>
struct Result {
  Writer<T> stored{};
  float* wide = nullptr;

  Result(T* tensor) : stored{tensor} {}
  Result(float* memory) : wide(memory) {}
  VESAL_DEVICE void move(int64_t offset) {
    if (wide != nullptr) {
      wide += offset;
    } else {
      stored = stored + offset;
    }
  }
  VESAL_DEVICE float load(int64_t i) const {
    return wide != nullptr ? wide[i] : static_cast<float>(stored[i]);
  }
  VESAL_DEVICE void store(int64_t i, float value) const {
    if (wide != nullptr) {
      wide[i] = value;
    } else {
      stored[i] = value;
    }
  }
};
template <>
struct Result<float> {
  float* memory;

  Result(float* p) : memory(p) {}
  VESAL_DEVICE void move(int64_t offset) { memory += offset; }
  VESAL_DEVICE float load(int64_t i) const { return memory[i]; }
  VESAL_DEVICE void store(int64_t i, float value) const { memory[i] = value; }
};

// Element (row, column) of a piece's result at out[piece's offset + row * row_stride + column *
// column_stride].
template <class T>
struct Epilogue {
  Result<T> out;
  int64_t row_stride;
  int64_t column_stride;
  const float* bias;         // of columns, or null
  Output<T> pre_activation;  // like out, or null
  Activation activation;
  GradMode mode;
  PieceStride piece_stride{};  // of out and pre_activation; and of the bias, which lies along a row of out

  VESAL_DEVICE void begin_block(int piece, int64_t split_offset) {
    const int64_t offset = piece_stride.offset(piece);
    out.move(offset + split_offset);
    bias = bias != nullptr ? bias + offset : nullptr;
    pre_activation = pre_activation ? pre_activation + offset : pre_activation;
  }
  VESAL_DEVICE void store(int64_t row, int64_t column, float sum) const {
    const int64_t at = row * row_stride + column * column_stride;
    if (bias != nullptr) {
      sum += bias[column];
    }
    if (pre_activation) {
      pre_activation[at] = sum;
    }
    const float value = activate(activation, sum);
    out.store(at, mode == GradMode::accumulate ? out.load(at) + value : value);
  }
};

// out = activation(sum over splits of partials[split][count] + bias[index % columns]); partials may be out
// itself.
template <class P, class T>
VESAL_KERNEL void finish_kernel(Input<P> partials, int splits, int64_t count, int columns, const float* bias,
                                Activation activation, GradMode mode, Result<T> out,
                                Output<T> pre_activation) {
  const int64_t i = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x;
  if (i >= count) {
    return;
  }
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) {
    sum += partials[split * count + i];
  }
  if (bias != nullptr) {
    sum += bias[i % columns];
  }
  if (pre_activation) {
    pre_activation[i] = sum;
  }
  const float value = activate(activation, sum);
  out.store(i, mode == GradMode::accumulate ? out.load(i) + value : value);
}

// partials[slab][column] = sum over the slab's rows of x[row][column]. grid (column tiles, slabs), block 32
// x 8.
template <class T>
VESAL_KERNEL void column_sum_kernel(Input<T> x, int64_t rows, int64_t columns, float* partials) {
  VESAL_SHARED(float, sums, [kSumRows][kSumColumns]);
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + threadIdx.x;
  const int64_t begin = rows * blockIdx.y / gridDim.y;
  const int64_t end = rows * (blockIdx.y + 1) / gridDim.y;
  float sum = 0.0f;
  if (column < columns) {
    for (int64_t row = begin + threadIdx.y; row < end; row += kSumRows) {
      sum += x[row * columns + column];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int r = 1; r < kSumRows; ++r) {
      sum += sums[r][threadIdx.x];
    }
    partials[blockIdx.y * columns + column] = sum;
  }
}

// The depth of one part of a split product, a multiple of the slice.
VESAL_DEVICE inline int split_depth(int depth, int splits) {
  return ((depth + splits - 1) / splits + kTileK - 1) / kTileK * kTileK;
}

// One tile of C, or of the partial sum of one part of the depth. grid (row tiles, column tiles, pieces *
// splits).
// Room for 512 threads a multiprocessor at least, that is 128 registers a thread: left alone, ptxas aims at
// more blocks and spills (bf16, 32 columns, sm_80).
template <int kTileN, class A, class B, class E>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kGemmThreads<kTileN>, 512 / kGemmThreads<kTileN>)
    product_kernel(A a, B b, int splits, int64_t split_stride, E epilogue) {
  const int piece = static_cast<int>(blockIdx.z) / splits;
  const int split = static_cast<int>(blockIdx.z) % splits;
  a.begin_block(piece);
  b.begin_block(piece);
  const int64_t first_row = int64_t{blockIdx.x} * kTileM;
  const int64_t first_column = int64_t{blockIdx.y} * kTileN;
  if (first_row >= a.rows) {
    return;  // pieces differ in size
  }
  typename A::template Loader<kTileM, kGemmThreads<kTileN>> loader_a;
  typename B::template Loader<kTileN, kGemmThreads<kTileN>> loader_b;
  TileProduct<kTileN> product;
  const int part = split_depth(a.depth, splits);
  product.compute(loader_a, loader_b, a, b, first_row, first_column, split * part,
                  min(split * part + part, a.depth));
  epilogue.begin_block(piece, split * split_stride);
  const int thread = static_cast<int>(threadIdx.x);
  VESAL_UNROLL
  for (int r = 0; r < kThreadM; ++r) {
    const int64_t row = first_row + product.row(thread, r);
    if (row < a.rows) {
      const int64_t target = a.target_row(row);
      VESAL_UNROLL
      for (int c = 0; c < kThreadN; ++c) {
        const int64_t column = first_column + product.column(thread, c);
        if (column < b.rows) {
          epilogue.store(target, column, product.values[r][c]);
        }
      }
    }
  }
}

// ---- Host side ----

// A product of `rows` x `columns` in each of `pieces`, with a depth of at most `depth`; `count` elements in
// all of C.
struct ProductSize {
  int64_t rows, columns, depth, count;
  int pieces = 1;

  int64_t tile_columns() const { return columns <= 32 ? 32 : 64; }
  // In how many parts the depth is cut: enough to fill a GPU with blocks, each part at least 128 deep. From
  // the sizes only, so that results do not depend on the GPU.
  int splits() const {
    const int64_t blocks =
        std::max<int64_t>(1, ceil_div(rows, kTileM) * ceil_div(columns, tile_columns()) * pieces);
    return static_cast<int>(
        std::clamp<int64_t>(std::min(ceil_div(256, blocks), ceil_div(depth, 128)), 1, 128));
  }
  // Room for the partial sums.
  size_t workspace_bytes() const {
    return splits() > 1 ? static_cast<size_t>(splits() * count) * sizeof(float) : 0;
  }
};

template <class P, class T>
void finish(Context& context, Input<P> partials, int splits, int64_t count, int64_t columns,
            const float* bias, Activation activation, GradMode mode, const Result<T>& out,
            Output<T> pre_activation) {
  launch(context.stream(), {.grid = ceil_div(count, kFinishThreads), .block = kFinishThreads},
         finish_kernel<P, T>, partials, splits, count, static_cast<int>(columns), bias, activation, mode, out,
         pre_activation);
}

// One launch for all tiles, pieces and splits; a split's results lie size.count elements after those of the
// split before.
template <class A, class B, class E>
void launch_tiles(Context& context, const ProductSize& size, int splits, const A& a, const B& b,
                  const E& epilogue) {
  const Dim3 grid{ceil_div(size.rows, kTileM), ceil_div(size.columns, size.tile_columns()),
                  size.pieces * splits};
  if (size.tile_columns() == 32) {
    launch(context.stream(), {.grid = grid, .block = kGemmThreads<32>}, product_kernel<32, A, B, E>, a, b,
           splits, size.count, epilogue);
  } else {
    launch(context.stream(), {.grid = grid, .block = kGemmThreads<64>}, product_kernel<64, A, B, E>, a, b,
           splits, size.count, epilogue);
  }
}

// Runs the product; `partials` holds size.workspace_bytes(). A bias needs C with consecutive columns.
template <class A, class B, class T>
void launch_product(Context& context, const ProductSize& size, const A& a, const B& b,
                    const Epilogue<T>& epilogue, float* partials) {
  const int splits = size.splits();
  Epilogue<T> first = epilogue;
  if (splits > 1) {
    first.out = Result<T>(partials);
    first.bias = nullptr;
    first.pre_activation = {};
    first.activation = Activation::none;
    first.mode = GradMode::overwrite;
  }
  launch_tiles(context, size, splits, a, b, first);
  if (splits > 1) {
    finish<float, T>(context, partials, splits, size.count, epilogue.row_stride, epilogue.bias,
                     epilogue.activation, epilogue.mode, epilogue.out, epilogue.pre_activation);
  }
}

inline int column_slabs(int64_t rows) { return static_cast<int>(std::clamp<int64_t>(rows / 1024, 1, 256)); }

inline size_t column_sum_bytes(int64_t rows, int64_t columns) {
  return static_cast<size_t>(column_slabs(rows) * columns) * sizeof(float);
}

// sums (+)= the sum over rows of x[rows, columns]; scratch holds column_sum_bytes.
template <class T>
void add_up_columns(Context& context, int64_t rows, int64_t columns, Input<T> x, float* sums, GradMode mode,
                    float* scratch) {
  const int slabs = column_slabs(rows);
  launch(context.stream(),
         {.grid = {ceil_div(columns, kSumColumns), slabs}, .block = {kSumColumns, kSumRows}},
         column_sum_kernel<T>, x, rows, columns, scratch);
  finish<float, float>(context, scratch, slabs, columns, columns, nullptr, Activation::none, mode, sums,
                       nullptr);
}

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
