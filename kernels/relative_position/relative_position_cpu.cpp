// The decomposed relative position on the CPU: products of a query with consecutive rows of a table, and sums
// of rows scaled by numbers; contiguous over head_dim. A table's row is summed by one task, over the queries
// in order.
#include <algorithm>
#include <vector>

#include "base/parallel.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/relative_position/relative_position.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(relative_position_forward)
VESAL_DECLARE_BACKENDS(relative_position_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(relative_position_backward)

namespace cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;  // multiply-adds worth a thread

float dot(const float* a, const float* b, int count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int c = 0; c < count; ++c) {
    sum += a[c] * b[c];
  }
  return sum;
}

// Calls body(token, head, row) for all of them, on several threads; row is room for head_dim numbers.
template <class Body>
void for_each_query(const RelativePositionParams& p, Body&& body) {
  const int64_t work = p.axial_size() * p.head_dim;
  parallel_for(p.n * p.queries() * p.heads, std::max<int64_t>(1, kGrain / work),
               [&](int64_t begin, int64_t end) {
                 std::vector<float> row(static_cast<size_t>(p.head_dim));
                 for (int64_t i = begin; i < end; ++i) {
                   body(i / p.heads, i % p.heads, row.data());
                 }
               });
}

}  // namespace

void relative_position_forward(Context&, const RelativePositionParams& p, ConstData q_,
                               const RelativePositionTables& tables, Data axial_bias_) {
  float* axial_bias = axial_bias_.as<float>("relative_position_forward: axial_bias");
  const auto axes = relative_position_axes(p);
  with_storage("relative_position_forward", {q_}, [&]<class T>(T) {
    const auto q = input<T>(q_, "relative_position_forward: q");
    for_each_query(p, [&](int64_t token, int64_t head, float* query) {
      const Input<T> from = q + (token * p.q_stride + head * p.head_dim);
      for (int c = 0; c < p.head_dim; ++c) {
        query[c] = from[c];
      }
      for (size_t a = 0; a < 3; ++a) {
        const RelativePositionAxis& axis = axes[a];
        const float* table = tables[a].as<float>("relative_position_forward: table");
        float* target = axial_bias + (token * p.heads + head) * p.axial_size() + axis.offset;
        const int place = axis.place(token);
        for (int key = 0; key < axis.keys; ++key) {
          target[key] = table == nullptr
                            ? 0.0f
                            : dot(query, table + int64_t{axis.row(place, key)} * p.head_dim, p.head_dim);
        }
      }
    });
  });
}

size_t relative_position_backward_workspace_bytes(Context&, const RelativePositionParams&) { return 0; }

void relative_position_backward(Context&, const RelativePositionParams& p, ConstData q_,
                                const RelativePositionTables& tables, ConstData daxial_bias_, Data dq_,
                                GradMode dq_mode, const RelativePositionTableGradients& dtables,
                                GradMode table_mode, Workspace) {
  const float* daxial_bias = daxial_bias_.as<float>("relative_position_backward: daxial_bias");
  const auto axes = relative_position_axes(p);
  with_storage("relative_position_backward", {q_, dq_}, [&]<class T>(T) {
    const auto q = input<T>(q_, "relative_position_backward: q");
    const auto dq = output<T>(dq_, "relative_position_backward: dq");
    for_each_query(p, [&](int64_t token, int64_t head, float* sums) {
      const Output<T> target = dq + (token * p.q_stride + head * p.head_dim);
      const float* source = daxial_bias + (token * p.heads + head) * p.axial_size();
      for (int c = 0; c < p.head_dim; ++c) {
        sums[c] = dq_mode == GradMode::overwrite ? 0.0f : static_cast<float>(target[c]);
      }
      for (size_t a = 0; a < 3; ++a) {
        const float* table = tables[a].as<float>("relative_position_backward: table");
        const int place = axes[a].place(token);
        for (int key = 0; table != nullptr && key < axes[a].keys; ++key) {
          const float* row = table + int64_t{axes[a].row(place, key)} * p.head_dim;
          const float factor = source[axes[a].offset + key];
          for (int c = 0; c < p.head_dim; ++c) {
            sums[c] += factor * row[c];
          }
        }
      }
      for (int c = 0; c < p.head_dim; ++c) {
        target[c] = sums[c];
      }
    });
    for (size_t a = 0; a < 3; ++a) {
      float* dtable = dtables[a].as<float>("relative_position_backward: dtable");
      if (dtable == nullptr) {
        continue;
      }
      const RelativePositionAxis& axis = axes[a];
      const int64_t others = p.queries() / axis.queries;
      parallel_for(p.table_rows(static_cast<int>(a)), 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          float* target = dtable + row * p.head_dim;
          if (table_mode == GradMode::overwrite) {
            std::fill_n(target, p.head_dim, 0.0f);
          }
          for (int place = 0; place < axis.queries; ++place) {
            const int key = axis.key(place, static_cast<int>(row));
            for (int64_t i = 0; key >= 0 && i < p.n * others; ++i) {
              const int64_t token = i / others * p.queries() + axis.token(place, i % others);
              for (int64_t head = 0; head < p.heads; ++head) {
                const Input<T> query = q + (token * p.q_stride + head * p.head_dim);
                const float factor =
                    daxial_bias[(token * p.heads + head) * p.axial_size() + axis.offset + key];
                for (int c = 0; c < p.head_dim; ++c) {
                  target[c] += factor * query[c];
                }
              }
            }
          }
        }
      });
    }
  });
}

}  // namespace cpu
}  // namespace vesal::kernels
