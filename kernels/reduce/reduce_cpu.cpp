// Reductions on the CPU: float32 sums in the columns of wide rows within a slab, slabs added in double and in
// order.
#include <algorithm>
#include <bit>

#include "base/parallel.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/wide_rows.hpp"
#include "kernels/reduce/reduce.hpp"

namespace vesal::kernels::cpu {
namespace {

// out[0] = sum of term(i).
template <class Term>
void sum_terms(int64_t count, float* out, Workspace workspace, Term term) {
  auto* partials = static_cast<double*>(workspace.data);
  column_partials<1>(1, count, 1, partials,
                     [&](int64_t) { return [=](int64_t i, int64_t, auto add) { add(0, term(i)); }; });
  column_totals<1>(1, count, 1, partials, [&](int64_t, int64_t, const std::array<double, 1>& sums) {
    *out = static_cast<float>(sums[0]);
  });
}

}  // namespace

void sum(Context&, int64_t count, ConstData x_, Data out, Workspace workspace) {
  with_storage("sum", {x_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "sum: x");
    sum_terms(count, out.as<float>("sum: out"), workspace, [=](int64_t i) { return x[i]; });
  });
}

void sum_squares(Context&, int64_t count, ConstData x_, Data out, Workspace workspace) {
  with_storage("sum_squares", {x_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "sum_squares: x");
    sum_terms(count, out.as<float>("sum_squares: out"), workspace, [=](int64_t i) { return x[i] * x[i]; });
  });
}

void max_abs(Context&, int64_t count, ConstData x_, Data out, Workspace workspace) {
  // Magnitudes compare like their bits, and a NaN's bits are above infinity's.
  const int64_t slabs = slab_count(count);
  auto* partials = static_cast<int32_t*>(workspace.data);
  with_storage("max_abs", {x_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "max_abs: x");
    parallel_for(
        slabs, ceil_div(16384, std::max<int64_t>(count / slabs, 1)), [&](int64_t first, int64_t last) {
          for (int64_t slab = first; slab < last; ++slab) {
            const auto values = x + slab_begin(count, slabs, slab);
            const int64_t length = slab_begin(count, slabs, slab + 1) - slab_begin(count, slabs, slab);
            int32_t largest = 0;
#pragma omp simd reduction(max : largest)
            for (int64_t i = 0; i < length; ++i) {
              const int32_t magnitude = std::bit_cast<int32_t>(static_cast<float>(values[i])) & 0x7fffffff;
              largest = magnitude > largest ? magnitude : largest;
            }
            partials[slab] = largest;
          }
        });
  });
  *out.as<float>("max_abs: out") = std::bit_cast<float>(*std::max_element(partials, partials + slabs));
}

void channel_sum_forward(Context&, int64_t rows, int64_t channels, ConstData x_, Data out_) {
  with_storage("channel_sum_forward", {x_, out_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "channel_sum_forward: x");
    const auto out = output<T>(out_, "channel_sum_forward: out");
    parallel_for(rows, ceil_div(16384, channels), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto values = x + row * channels;
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t c = 0; c < channels; ++c) {
          total += values[c];
        }
        out[row] = total;
      }
    });
  });
}

void channel_sum_backward(Context&, int64_t rows, int64_t channels, ConstData dout_, Data dx_) {
  with_storage("channel_sum_backward", {dout_, dx_}, [&]<class T>(T) {
    const T* dout = dout_.as<T>("channel_sum_backward: dout");
    T* dx = dx_.as<T>("channel_sum_backward: dx");
    parallel_for(rows, ceil_div(16384, channels), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        std::fill_n(dx + row * channels, channels, dout[row]);
      }
    });
  });
}

void sum_spatial(Context&, int64_t n, int64_t spatial, int64_t channels, float factor, ConstData x_,
                 Data out_, GradMode mode, Workspace workspace) {
  auto* partials = static_cast<double*>(workspace.data);
  with_storage("sum_spatial", {x_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "sum_spatial: x");
    column_partials<1>(n, spatial, channels, partials,
                       [=](int64_t) { return [=](int64_t i, int64_t, auto add) { add(0, x[i]); }; });
  });
  with_storage("sum_spatial", {out_}, [&]<class Sum>(Sum) {
    const auto out = output<Sum>(out_, "sum_spatial: out");
    column_totals<1>(n, spatial, channels, partials,
                     [=](int64_t sample, int64_t c, const std::array<double, 1>& sums) {
                       const int64_t target = sample * channels + c;
                       const double before = mode == GradMode::accumulate ? out[target] : 0.0f;
                       out[target] = static_cast<float>(before + factor * sums[0]);
                     });
  });
}

}  // namespace vesal::kernels::cpu
