#include <algorithm>

#include "bench/bench.hpp"
#include "kernels/gemm/gemm_cases.hpp"

namespace vesal::bench {
namespace {

// Elements from the first to the last of an operand.
int64_t extent(const kernels::GemmParams& p, const kernels::GemmLayout& layout, int64_t rows,
               int64_t columns) {
  return (p.outer - 1) * layout.outer_stride + (p.inner - 1) * layout.inner_stride +
         (rows - 1) * layout.row_stride + columns;
}

}  // namespace

void register_benchmarks() {
  using namespace kernels;
  for (const GemmCase& c : kGemmBenchmarkCases) {
    const GemmParams p = c.params;
    const auto layout = [](const GemmLayout& l) {
      return Parameters{l.outer_stride, l.inner_stride, l.row_stride};
    };
    const Parameters parameters{{"outer", p.outer},
                                {"inner", p.inner},
                                {"m", p.m},
                                {"n", p.n},
                                {"k", p.k},
                                {"transpose_a", p.transpose_a},
                                {"transpose_b", p.transpose_b},
                                {"a", layout(p.a)},
                                {"b", layout(p.b)},
                                {"c", layout(p.c)},
                                {"alpha", p.alpha}};
    const int64_t a_count = extent(p, p.a, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k);
    const int64_t b_count = extent(p, p.b, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n);
    const int64_t c_count = extent(p, p.c, p.m, p.n);
    add("gemm", c.name, parameters, gemm_work(p), [=](Arena& arena) -> Call {
      float *a = arena.normal(a_count), *b = arena.normal(b_count), *product = arena.zeros(c_count);
      const Workspace workspace =
          arena.workspace(gemm_workspace_bytes(arena.context(), p, GemmPass::forward));
      return [=, &context = arena.context()] { gemm(context, p, a, b, product, workspace); };
    });
    add("gemm_backward_a", c.name, parameters, gemm_work(p), [=](Arena& arena) -> Call {
      float *dc = arena.normal(c_count), *b = arena.normal(b_count), *da = arena.zeros(a_count);
      const Workspace workspace =
          arena.workspace(gemm_workspace_bytes(arena.context(), p, GemmPass::backward_a));
      return [=, &context = arena.context()] {
        gemm_backward_a(context, p, dc, b, da, GradMode::overwrite, workspace);
      };
    });
    add("gemm_backward_b", c.name, parameters, gemm_work(p), [=](Arena& arena) -> Call {
      float *a = arena.normal(a_count), *dc = arena.normal(c_count), *db = arena.zeros(b_count);
      const Workspace workspace =
          arena.workspace(gemm_workspace_bytes(arena.context(), p, GemmPass::backward_b));
      return [=, &context = arena.context()] {
        gemm_backward_b(context, p, a, dc, db, GradMode::overwrite, workspace);
      };
    });
  }
}

}  // namespace vesal::bench
