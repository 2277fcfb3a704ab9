// The shapes that gemm is tested on. The kernel's tile is 128 x 32 or 64 of C and 16 of the sum.
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/gemm/gemm.hpp"

namespace vesal::kernels {

struct GemmCase {
  std::string name;
  GemmParams params;
};

inline GemmParams scaled(GemmParams p, float alpha, float beta) {
  p.alpha = alpha;
  p.beta = beta;
  return p;
}

// Scores of attention: queries and keys are two of the three parts of [windows, tokens, 3, heads, dim].
inline GemmParams attention_scores(int64_t windows, int64_t heads, int64_t tokens, int64_t dim) {
  const GemmLayout tokens_of_heads{3 * heads * dim, 3 * heads * dim * tokens, dim};
  GemmParams p = dense_gemm(windows, heads, tokens, tokens, dim, false, true);
  p.a = p.b = tokens_of_heads;
  p.alpha = 0.25f;
  return p;
}

// Probabilities [windows, heads, tokens, tokens] times values, back into [windows, tokens, heads, dim].
inline GemmParams attention_values(int64_t windows, int64_t heads, int64_t tokens, int64_t dim) {
  GemmParams p = dense_gemm(windows, heads, tokens, dim, tokens);
  p.b = {3 * heads * dim, 3 * heads * dim * tokens, dim};
  p.c = {heads * dim, heads * dim * tokens, dim};
  return p;
}

// Every row of A, B and C longer than its matrix, and gaps between matrices.
inline GemmParams with_gaps(GemmParams p, int64_t more) {
  const auto spread = [&](GemmLayout& layout, int64_t rows) {
    layout.row_stride += more;
    layout.inner_stride = rows * layout.row_stride + more;
    layout.outer_stride = p.inner * layout.inner_stride + more;
  };
  spread(p.a, p.transpose_a ? p.k : p.m);
  spread(p.b, p.transpose_b ? p.n : p.k);
  spread(p.c, p.m);
  return p;
}

inline const std::vector<GemmCase> kGemmCases = {
    {"one_by_one", dense_gemm(1, 1, 1, 1, 1)},
    {"below_the_tiles", dense_gemm(1, 2, 127, 31, 15)},
    {"equal_to_the_tiles", dense_gemm(1, 1, 128, 32, 16)},
    {"above_the_tiles", dense_gemm(2, 1, 129, 33, 17)},
    {"wide_tile", dense_gemm(1, 1, 40, 64, 32, true, false)},
    {"above_the_wide_tile", dense_gemm(1, 1, 30, 65, 20, false, true)},
    {"transposed_a", dense_gemm(2, 3, 9, 12, 7, true, false)},
    {"transposed_b", dense_gemm(2, 3, 9, 12, 7, false, true)},
    {"transposed_both", dense_gemm(3, 2, 12, 9, 8, true, true)},
    {"alpha", scaled(dense_gemm(1, 3, 5, 6, 7), -2.0f, 0.0f)},
    {"alpha_beta", scaled(dense_gemm(2, 2, 6, 5, 4, true, false), 2.0f, -3.0f)},
    {"accumulate_long_sum", scaled(dense_gemm(1, 2, 5, 3, 700), 1.0f, 1.0f)},
    {"long_sum_with_gaps", scaled(with_gaps(dense_gemm(2, 1, 9, 5, 515, true, true), 3), -1.0f, 2.0f)},
    {"gaps", with_gaps(dense_gemm(2, 3, 5, 7, 6), 5)},
    {"gaps_aligned", with_gaps(dense_gemm(2, 2, 8, 12, 16, true, true), 4)},
    {"attention_scores", attention_scores(3, 2, 27, 12)},
    {"attention_values", attention_values(3, 2, 27, 12)},
    {"attention_scores_odd", attention_scores(2, 3, 8, 5)},
    {"attention_values_odd", attention_values(2, 3, 8, 5)},
    {"many_products", dense_gemm(30, 13, 3, 2, 4)},
    {"no_sum", scaled(dense_gemm(2, 1, 3, 4, 0), 1.0f, 2.0f)},
    {"no_sum_overwritten", dense_gemm(1, 2, 3, 4, 0)},
    {"no_rows", dense_gemm(2, 2, 0, 4, 3)},
    {"no_columns", dense_gemm(2, 2, 4, 0, 3)},
    {"no_rows_transposed", dense_gemm(2, 2, 0, 4, 3, true, true)},
    {"no_columns_transposed", dense_gemm(2, 2, 4, 0, 3, true, true)},
    {"no_products", dense_gemm(0, 2, 4, 3, 3)},
    {"no_products_inside", dense_gemm(2, 0, 4, 3, 3)},
};

// A shape of the contract at random, small enough for the emulator: at most 1 MFLOP.
inline GemmParams draw_gemm(RandomStream& random) {
  const auto among = [&](int64_t low, int64_t high) { return low + random.below(high - low + 1); };
  for (;;) {
    GemmParams p = dense_gemm(among(1, 3), among(1, 4), among(1, 140), among(1, 70),
                              random.below(4) == 0 ? among(100, 400) : among(1, 40), random.bernoulli(0.5f),
                              random.bernoulli(0.5f));
    p = scaled(p, static_cast<float>(among(-2, 2)), static_cast<float>(among(-1, 1)));
    if (p.alpha == 0.0f) {
      p.alpha = 0.5f;
    }
    switch (random.below(3)) {
      case 0:
        p = with_gaps(p, among(1, 8));
        break;
      case 1:  // the inner matrices side by side in longer rows
        for (GemmLayout* layout : {&p.a, &p.b, &p.c}) {
          const int64_t width = layout->row_stride;
          layout->row_stride = width * p.inner;
          layout->inner_stride = width;
        }
        break;
      default:
        break;
    }
    if (2 * p.products() * p.m * p.n * p.k <= 1'000'000) {
      return p;
    }
  }
}

// For benchmarks: square products, and attention in windows of the fusion network (4^3) and of SwinUNETR
// (7^3).
inline const std::vector<GemmCase> kGemmBenchmarkCases = {
    {"square_256", dense_gemm(1, 1, 256, 256, 256)},
    {"square_1024", dense_gemm(1, 1, 1024, 1024, 1024)},
    {"square_1024_transposed_b", dense_gemm(1, 1, 1024, 1024, 1024, false, true)},
    {"long_sum", dense_gemm(1, 1, 48, 48, 65536, true, false)},
    {"scores_window_4", attention_scores(512, 2, 64, 12)},
    {"values_window_4", attention_values(512, 2, 64, 12)},
    {"scores_window_7", attention_scores(64, 6, 343, 16)},
    {"values_window_7", attention_values(64, 6, 343, 16)},
};

inline Work gemm_work(const GemmParams& p) {
  const auto products = static_cast<double>(p.products());
  return {.flops = 2.0 * products * static_cast<double>(p.m * p.n * p.k),
          .bytes = 4.0 * products * static_cast<double>(p.m * p.k + p.k * p.n + p.m * p.n)};
}

}  // namespace vesal::kernels
