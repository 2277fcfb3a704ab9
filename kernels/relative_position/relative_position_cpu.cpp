// The decomposed relative position on the CPU, as matrix products: all queries at one place of an axis meet
// the same rows of its table. A task is a place and a block of its queries; what several tasks add to (dq
// over the axes, a table's row over the places) is added in a fixed order.
#include <algorithm>
#include <vector>

#include "base/parallel.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/linear/gemm_cpu.hpp"
#include "kernels/relative_position/relative_position.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(relative_position_forward)
VESAL_DECLARE_BACKENDS(relative_position_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(relative_position_backward)

namespace cpu {
namespace {

constexpr int64_t kBlock = 256;  // queries of a task

// Row i of those at one place: samples, then tokens, then heads.
struct PlaceRow {
  int64_t token, head;
};

struct Places {
  const RelativePositionParams& p;
  const RelativePositionAxis& axis;

  int64_t others() const { return p.queries() / axis.queries; }
  int64_t rows() const { return p.n * others() * p.heads; }
  PlaceRow row(int place, int64_t i) const {
    const int64_t other = i / p.heads;
    return {other / others() * p.queries() + axis.token(place, other % others()), i % p.heads};
  }
  int64_t query_offset(const PlaceRow& r) const { return r.token * p.q_stride + r.head * p.head_dim; }
  int64_t bias_offset(const PlaceRow& r) const {
    return (r.token * p.heads + r.head) * p.axial_size() + axis.offset;
  }

  // table[row(place, key)] for every key, [keys, head_dim].
  void gather_table(const float* table, int place, float* gathered) const {
    for (int key = 0; key < axis.keys; ++key) {
      std::copy_n(table + int64_t{axis.row(place, key)} * p.head_dim, p.head_dim,
                  gathered + int64_t{key} * p.head_dim);
    }
  }
  template <class Queries>
  void gather_queries(Queries q, int place, int64_t begin, int64_t count, float* gathered) const {
    for (int64_t i = 0; i < count; ++i) {
      const auto from = q + query_offset(row(place, begin + i));
      float* to = gathered + i * p.head_dim;
      for (int c = 0; c < p.head_dim; ++c) {
        to[c] = from[c];
      }
    }
  }
  void gather_bias(const float* bias, int place, int64_t begin, int64_t count, float* gathered) const {
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(bias + bias_offset(row(place, begin + i)), axis.keys, gathered + i * axis.keys);
    }
  }
};

// Room for a task.
struct Scratch {
  std::vector<float> table, queries, bias;
  explicit Scratch(const Places& places)
      : table(static_cast<size_t>(int64_t{places.axis.keys} * places.p.head_dim)),
        queries(static_cast<size_t>(kBlock * places.p.head_dim)),
        bias(static_cast<size_t>(kBlock * places.axis.keys)) {}
};

// body(place, first row, rows, scratch) for the blocks of all places, on several threads.
template <class Body>
void for_each_block(const Places& places, Body&& body) {
  const int64_t blocks = ceil_div(places.rows(), kBlock);
  parallel_for(places.axis.queries * blocks, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(places);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * kBlock;
      body(static_cast<int>(task / blocks), first, std::min(kBlock, places.rows() - first), scratch);
    }
  });
}

int64_t query_gradient_floats(const RelativePositionParams& p) { return p.n * p.queries() * p.channels(); }

}  // namespace

void relative_position_forward(Context&, const RelativePositionParams& p, ConstData q_,
                               const RelativePositionTables& tables, Data axial_bias_) {
  float* axial_bias = axial_bias_.as<float>("relative_position_forward: axial_bias");
  const auto axes = relative_position_axes(p);
  with_storage("relative_position_forward", {q_}, [&]<class T>(T) {
    const auto q = input<T>(q_, "relative_position_forward: q");
    for (size_t a = 0; a < 3; ++a) {
      const Places places{p, axes[a]};
      const float* table = tables[a].as<float>("relative_position_forward: table");
      for_each_block(places, [&](int place, int64_t first, int64_t count, Scratch& scratch) {
        if (table == nullptr) {
          std::fill(scratch.bias.begin(), scratch.bias.end(), 0.0f);
        } else {
          places.gather_table(table, place, scratch.table.data());
          places.gather_queries(q, place, first, count, scratch.queries.data());
          sgemm('N', 'T', count, axes[a].keys, p.head_dim, scratch.queries.data(), p.head_dim,
                scratch.table.data(), p.head_dim, 0.0f, scratch.bias.data(), axes[a].keys);
        }
        for (int64_t i = 0; i < count; ++i) {
          std::copy_n(scratch.bias.data() + i * axes[a].keys, axes[a].keys,
                      axial_bias + places.bias_offset(places.row(place, first + i)));
        }
      });
    }
  });
}

// dq in float32 before it is stored, and the part that each place has of each table's gradient.
size_t relative_position_backward_workspace_bytes(Context&, const RelativePositionParams& p) {
  int64_t parts = 0;
  for (const RelativePositionAxis& axis : relative_position_axes(p)) {
    parts = std::max(parts, int64_t{axis.queries} * axis.keys * p.head_dim);
  }
  return static_cast<size_t>(query_gradient_floats(p) + parts) * sizeof(float);
}

void relative_position_backward(Context&, const RelativePositionParams& p, ConstData q_,
                                const RelativePositionTables& tables, ConstData daxial_bias_, Data dq_,
                                GradMode dq_mode, const RelativePositionTableGradients& dtables,
                                GradMode table_mode, Workspace workspace) {
  const float* daxial_bias = daxial_bias_.as<float>("relative_position_backward: daxial_bias");
  const auto axes = relative_position_axes(p);
  auto* sums = static_cast<float*>(workspace.data);  // [n, queries, heads, head_dim]
  float* parts = sums + query_gradient_floats(p);    // [places, keys, head_dim]
  with_storage("relative_position_backward", {q_, dq_}, [&]<class T>(T) {
    const auto q = input<T>(q_, "relative_position_backward: q");
    const auto dq = output<T>(dq_, "relative_position_backward: dq");
    const auto for_each_row = [&](auto&& body) {
      parallel_for(p.n * p.queries() * p.heads, std::max<int64_t>(1, 16384 / p.head_dim),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       body(dq + (i / p.heads * p.q_stride + i % p.heads * p.head_dim),
                            sums + i * p.head_dim);
                     }
                   });
    };
    for_each_row([&](Output<T> target, float* row) {
      for (int c = 0; c < p.head_dim; ++c) {
        row[c] = dq_mode == GradMode::overwrite ? 0.0f : static_cast<float>(target[c]);
      }
    });
    for (size_t a = 0; a < 3; ++a) {
      const RelativePositionAxis& axis = axes[a];
      const Places places{p, axis};
      const float* table = tables[a].as<float>("relative_position_backward: table");
      float* dtable = dtables[a].as<float>("relative_position_backward: dtable");
      if (table == nullptr) {
        continue;
      }
      for_each_block(places, [&](int place, int64_t first, int64_t count, Scratch& scratch) {
        places.gather_table(table, place, scratch.table.data());
        places.gather_bias(daxial_bias, place, first, count, scratch.bias.data());
        sgemm('N', 'N', count, p.head_dim, axis.keys, scratch.bias.data(), axis.keys, scratch.table.data(),
              p.head_dim, 0.0f, scratch.queries.data(), p.head_dim);
        for (int64_t i = 0; i < count; ++i) {
          const PlaceRow at = places.row(place, first + i);
          float* row = sums + (at.token * p.heads + at.head) * p.head_dim;
          const float* added = scratch.queries.data() + i * p.head_dim;
          for (int c = 0; c < p.head_dim; ++c) {
            row[c] += added[c];
          }
        }
      });
      parallel_for(axis.queries, 1, [&](int64_t begin, int64_t end) {
        Scratch scratch(places);
        for (auto place = static_cast<int>(begin); place < end; ++place) {
          float* part = parts + int64_t{place} * axis.keys * p.head_dim;
          std::fill_n(part, int64_t{axis.keys} * p.head_dim, 0.0f);
          for (int64_t first = 0; first < places.rows(); first += kBlock) {
            const int64_t count = std::min(kBlock, places.rows() - first);
            places.gather_bias(daxial_bias, place, first, count, scratch.bias.data());
            places.gather_queries(q, place, first, count, scratch.queries.data());
            sgemm('T', 'N', axis.keys, p.head_dim, count, scratch.bias.data(), axis.keys,
                  scratch.queries.data(), p.head_dim, 1.0f, part, p.head_dim);
          }
        }
      });
      parallel_for(p.table_rows(static_cast<int>(a)), 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          float* target = dtable + row * p.head_dim;
          if (table_mode == GradMode::overwrite) {
            std::fill_n(target, p.head_dim, 0.0f);
          }
          for (int place = 0; place < axis.queries; ++place) {
            const int key = axis.key(place, static_cast<int>(row));
            if (key < 0) {
              continue;
            }
            const float* part = parts + (int64_t{place} * axis.keys + key) * p.head_dim;
            for (int c = 0; c < p.head_dim; ++c) {
              target[c] += part[c];
            }
          }
        }
      });
    }
    for_each_row([&](Output<T> target, const float* row) {
      for (int c = 0; c < p.head_dim; ++c) {
        target[c] = row[c];
      }
    });
  });
}

}  // namespace cpu
}  // namespace vesal::kernels
