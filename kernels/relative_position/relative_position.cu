// The decomposed relative position on a GPU, float32 arithmetic, in the portable dialect.
//
// What it computes: relative_position.hpp. For T queries (tokens and heads), A numbers of axial bias each and
// d dimensions: 2 T A d flops forward, 4 T A d backward; at least T (d + A) numbers moved forward. What
// limits it: reads of the tables, which stay in the first cache. How: a thread a number of the result, for dq
// over all three axes, so that it is rounded once; a row of a table's gradient has a block of kWarps warps,
// whose sums over every kWarps-th query are added in order. It is about A / keys of the attention that
// follows. No GPU timing exists yet (see bench/results/README.md).
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/relative_position/relative_position.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(relative_position_forward)
VESAL_DECLARE_BACKENDS(relative_position_backward)

namespace VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = 8;

// Plain data, passed to kernels by value.
struct Geometry {
  int64_t n, queries, q_stride;
  int heads, dim, axial;
};

Geometry geometry_of(const RelativePositionParams& p) {
  return {p.n, p.queries(), p.q_stride, p.heads, p.head_dim, static_cast<int>(p.axial_size())};
}

// Thread (token, head, key) of one axis.
template <class T>
VESAL_KERNEL void forward_kernel(Geometry g, RelativePositionAxis axis, const T* VESAL_RESTRICT q,
                                 const float* VESAL_RESTRICT table, float* VESAL_RESTRICT axial_bias) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= g.n * g.queries * g.heads * axis.keys) {
    return;
  }
  const int key = static_cast<int>(i % axis.keys);
  const int64_t row = i / axis.keys;
  const int64_t token = row / g.heads;
  float sum = 0.0f;
  if (table != nullptr) {
    const T* query = q + token * g.q_stride + row % g.heads * g.dim;
    const float* entry = table + static_cast<int64_t>(axis.row(axis.place(token), key)) * g.dim;
    for (int c = 0; c < g.dim; ++c) {
      sum = fmaf(widen(query[c]), entry[c], sum);
    }
  }
  axial_bias[row * g.axial + axis.offset + key] = sum;
}

// An axis and its table, or null.
struct TableAxis {
  RelativePositionAxis axis;
  const float* table;
};

// `sum` with one axis' part of dq[token, head, c] added; `source` is the axial bias' gradient of that query.
VESAL_DEVICE float add_axis(const TableAxis& a, const float* VESAL_RESTRICT source, int64_t token, int dim,
                            int c, float sum) {
  if (a.table != nullptr) {
    const int place = a.axis.place(token);
    for (int key = 0; key < a.axis.keys; ++key) {
      sum = fmaf(source[a.axis.offset + key], a.table[static_cast<int64_t>(a.axis.row(place, key)) * dim + c],
                 sum);
    }
  }
  return sum;
}

// Thread (token, head, dimension).
template <class T>
VESAL_KERNEL void query_gradients_kernel(Geometry g, TableAxis d, TableAxis h, TableAxis w,
                                         const float* VESAL_RESTRICT daxial_bias, T* VESAL_RESTRICT dq,
                                         int accumulate) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= g.n * g.queries * g.heads * g.dim) {
    return;
  }
  const int c = static_cast<int>(i % g.dim);
  const int64_t row = i / g.dim;
  const int64_t token = row / g.heads;
  T* target = dq + token * g.q_stride + row % g.heads * g.dim + c;
  const float* source = daxial_bias + row * g.axial;
  float sum = accumulate != 0 ? widen(*target) : 0.0f;
  sum = add_axis(d, source, token, g.dim, c, sum);
  sum = add_axis(h, source, token, g.dim, c, sum);
  sum = add_axis(w, source, token, g.dim, c, sum);
  *target = narrow<T>(sum);
}

// Block (row of the table, 32 dimensions), thread (dimension, warp).
template <class T>
VESAL_KERNEL void table_gradients_kernel(Geometry g, RelativePositionAxis axis, const T* VESAL_RESTRICT q,
                                         const float* VESAL_RESTRICT daxial_bias,
                                         float* VESAL_RESTRICT dtable, int accumulate) {
  VESAL_SHARED(float, sums, [kWarps][32]);
  const int row = static_cast<int>(blockIdx.x);
  const int c = static_cast<int>(blockIdx.y) * 32 + static_cast<int>(threadIdx.x);
  const int64_t others = g.queries / axis.queries;
  float sum = 0.0f;
  for (int place = 0; place < axis.queries && c < g.dim; ++place) {
    const int key = axis.key(place, row);
    for (int64_t i = threadIdx.y; key >= 0 && i < g.n * others * g.heads; i += kWarps) {
      const int64_t other = i / g.heads;
      const int64_t token = other / others * g.queries + axis.token(place, other % others);
      const int64_t head = i % g.heads;
      sum = fmaf(daxial_bias[(token * g.heads + head) * g.axial + axis.offset + key],
                 widen(q[token * g.q_stride + head * g.dim + c]), sum);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && c < g.dim) {
    for (int warp = 1; warp < kWarps; ++warp) {
      sum += sums[warp][threadIdx.x];
    }
    float* target = dtable + static_cast<int64_t>(row) * g.dim + c;
    *target = accumulate != 0 ? *target + sum : sum;
  }
}

}  // namespace

void relative_position_forward(Context& context, const RelativePositionParams& params, ConstData q_,
                               const RelativePositionTables& tables, Data axial_bias_) {
  float* axial_bias = axial_bias_.as<float>("relative_position_forward: axial_bias");
  const Geometry g = geometry_of(params);
  const auto axes = relative_position_axes(params);
  with_storage("relative_position_forward", {q_}, [&]<class T>(T) {
    const T* q = q_.as<T>("relative_position_forward: q");
    for (size_t a = 0; a < 3; ++a) {
      const float* table = tables[a].as<float>("relative_position_forward: table");
      launch(context.stream(),
             {.grid = ceil_div(g.n * g.queries * g.heads * axes[a].keys, kBlock), .block = kBlock},
             forward_kernel<T>, g, axes[a], q, table, axial_bias);
    }
  });
}

void relative_position_backward(Context& context, const RelativePositionParams& params, ConstData q_,
                                const RelativePositionTables& tables, ConstData daxial_bias_, Data dq_,
                                GradMode dq_mode, const RelativePositionTableGradients& dtables,
                                GradMode table_mode) {
  const float* daxial_bias = daxial_bias_.as<float>("relative_position_backward: daxial_bias");
  const Geometry g = geometry_of(params);
  const auto axes = relative_position_axes(params);
  std::array<TableAxis, 3> table_axes;
  for (size_t a = 0; a < 3; ++a) {
    table_axes[a] = {axes[a], tables[a].as<float>("relative_position_backward: table")};
  }
  with_storage("relative_position_backward", {q_, dq_}, [&]<class T>(T) {
    const T* q = q_.as<T>("relative_position_backward: q");
    T* dq = dq_.as<T>("relative_position_backward: dq");
    launch(context.stream(), {.grid = ceil_div(g.n * g.queries * g.heads * g.dim, kBlock), .block = kBlock},
           query_gradients_kernel<T>, g, table_axes[0], table_axes[1], table_axes[2], daxial_bias, dq,
           dq_mode == GradMode::accumulate ? 1 : 0);
    for (size_t a = 0; a < 3; ++a) {
      float* dtable = dtables[a].as<float>("relative_position_backward: dtable");
      if (dtable != nullptr) {
        launch(context.stream(),
               {.grid = {params.table_rows(static_cast<int>(a)), ceil_div(g.dim, 32)}, .block = {32, kWarps}},
               table_gradients_kernel<T>, g, axes[a], q, daxial_bias, dtable,
               table_mode == GradMode::accumulate ? 1 : 0);
      }
    }
  });
}

}  // namespace VESAL_BACKEND
}  // namespace vesal::kernels
