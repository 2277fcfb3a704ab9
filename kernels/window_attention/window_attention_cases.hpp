// Shapes on which window attention is verified on every device. Sizes meet, miss by one and pass by one what
// the kernels cut by: 64 query rows and 32 keys a block on a GPU, 8 rows and 32 keys on the CPU, 4
// dimensions, 16 lanes; bias tables stay in fast memory up to 4096 rows. Below them the windows that
// published networks use: 2D Swin 1x7x7, SAM 1x14x14, SwinUNETR 7^3, and their clipped forms.
#pragma once

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/window_attention/window_attention.hpp"

namespace vesal::kernels {

struct WindowAttentionCase {
  std::string name;
  WindowAttentionParams params;
  bool qkv_bias = true;
};

// `params` with the window clipped to the grid; its bias table is that of the unclipped window where
// `keep_table`.
inline WindowAttentionCase clipped_case(const std::string& name, WindowAttentionParams params,
                                        const std::array<int, 3>& window, const std::array<int, 3>& shift,
                                        bool keep_table, bool qkv_bias = true) {
  const ClippedWindow clipped = clip_window(window, shift, {params.d, params.h, params.w});
  params.window = clipped.window;
  params.shift = clipped.shift;
  if (keep_table) {
    params.bias_window = window;
  }
  return {name, params, qkv_bias};
}

inline const std::vector<WindowAttentionCase> kWindowAttentionCases{
    {"one token", {.head_dim = 4, .window = {1, 1, 1}}},
    {"one window 4^3", {.d = 4, .h = 4, .w = 4, .heads = 2, .head_dim = 12, .scale = 0.29f}},
    {"window 4^3 shifted",
     {.d = 8, .h = 8, .w = 8, .heads = 2, .head_dim = 12, .shift = {2, 2, 2}, .scale = 0.29f}},
    {"window 4^3 shifted, no qkv bias, grid not a multiple",
     {.d = 5, .h = 6, .w = 7, .heads = 1, .head_dim = 16, .shift = {2, 1, 3}, .scale = 0.25f},
     false},
    {"padding attends",
     {.d = 3, .h = 5, .w = 6, .heads = 2, .head_dim = 12, .shift = {1, 2, 2}, .scale = 0.3f}},
    {"padding masked",
     {.d = 3,
      .h = 5,
      .w = 6,
      .heads = 2,
      .head_dim = 12,
      .shift = {1, 2, 2},
      .padding = PaddingMode::masked,
      .scale = 0.3f}},
    {"padding masked, not shifted, batch",
     {.n = 2,
      .d = 5,
      .h = 3,
      .w = 4,
      .heads = 1,
      .head_dim = 8,
      .window = {2, 2, 3},
      .padding = PaddingMode::masked,
      .scale = 0.3f}},
    {"grid smaller than the window",
     {.d = 2, .h = 3, .w = 1, .heads = 3, .head_dim = 5, .window = {4, 4, 4}, .scale = 0.4f}},
    {"grid smaller than the window, shifted, masked",
     {.d = 2,
      .h = 3,
      .w = 3,
      .heads = 1,
      .head_dim = 7,
      .window = {4, 4, 4},
      .shift = {1, 2, 0},
      .padding = PaddingMode::masked,
      .scale = 0.4f}},
    {"2D, window 1x7x7 shifted",
     {.d = 1,
      .h = 10,
      .w = 9,
      .heads = 1,
      .head_dim = 32,
      .window = {1, 7, 7},
      .shift = {0, 3, 3},
      .scale = 0.18f}},
    {"31 tokens a window",
     {.d = 1, .h = 1, .w = 62, .head_dim = 4, .window = {1, 1, 31}, .shift = {0, 0, 15}}},
    {"32 tokens a window", {.d = 2, .h = 4, .w = 8, .head_dim = 5, .window = {2, 4, 4}, .shift = {0, 0, 2}}},
    {"33 tokens a window", {.d = 3, .h = 11, .w = 2, .head_dim = 13, .window = {3, 11, 1}, .scale = 0.3f}},
    {"63 tokens a window",
     {.d = 7, .h = 3, .w = 3, .head_dim = 15, .window = {7, 3, 3}, .shift = {3, 1, 0}, .scale = 0.3f}},
    {"65 tokens a window", {.d = 5, .h = 13, .w = 1, .head_dim = 17, .window = {5, 13, 1}, .scale = 0.3f}},
    {"window 5^3, batch",
     {.n = 2, .d = 5, .h = 5, .w = 5, .head_dim = 6, .window = {5, 5, 5}, .shift = {2, 2, 2}, .scale = 0.4f}},
    {"128 tokens a window", {.d = 8, .h = 4, .w = 4, .head_dim = 4, .window = {8, 4, 4}, .scale = 0.5f}},
    {"129 tokens a window", {.d = 1, .h = 43, .w = 3, .head_dim = 4, .window = {1, 43, 3}, .scale = 0.5f}},
    {"head dim 31", {.d = 2, .h = 3, .w = 3, .heads = 2, .head_dim = 31, .window = {2, 3, 3}, .scale = 0.2f}},
    {"head dim 33", {.d = 2, .h = 3, .w = 3, .heads = 2, .head_dim = 33, .window = {2, 3, 3}, .scale = 0.2f}},
    {"head dim 64",
     {.d = 2, .h = 4, .w = 3, .head_dim = 64, .window = {2, 2, 3}, .shift = {1, 1, 1}, .scale = 0.125f}},
    {"head dim 65", {.d = 2, .h = 2, .w = 3, .head_dim = 65, .window = {2, 2, 3}, .scale = 0.125f}},
    {"head dim 96",
     {.d = 4, .h = 5, .w = 3, .head_dim = 96, .window = {4, 3, 3}, .shift = {2, 1, 1}, .scale = 0.1f}},
    {"tiny windows, many",
     {.n = 2,
      .d = 7,
      .h = 6,
      .w = 9,
      .heads = 2,
      .head_dim = 4,
      .window = {2, 1, 2},
      .shift = {1, 0, 1},
      .scale = 0.5f}},
    {"window 7^3",
     {.d = 7, .h = 7, .w = 7, .head_dim = 4, .window = {7, 7, 7}, .shift = {3, 3, 3}, .scale = 0.5f}},
    {"window 8^3, head dim 5", {.d = 6, .h = 8, .w = 8, .head_dim = 5, .window = {8, 8, 8}, .scale = 0.4f}},
    {"window 4x9x5, head dim 96: several tiles of keys",
     {.d = 2, .h = 9, .w = 5, .head_dim = 96, .window = {4, 9, 5}, .shift = {1, 0, 2}, .scale = 0.1f}},
    {"2D, window 1x7x7 shifted, batch, masked",
     {.n = 2,
      .d = 1,
      .h = 8,
      .w = 13,
      .heads = 2,
      .head_dim = 24,
      .window = {1, 7, 7},
      .shift = {0, 3, 3},
      .padding = PaddingMode::masked,
      .scale = 0.2f},
     false},
    {"window 5^3 shifted, masked",
     {.d = 6,
      .h = 5,
      .w = 9,
      .head_dim = 16,
      .window = {5, 5, 5},
      .shift = {2, 2, 2},
      .padding = PaddingMode::masked,
      .scale = 0.25f}},
    {"window 7^3 shifted, padding attends",
     {.d = 7, .h = 8, .w = 7, .head_dim = 16, .window = {7, 7, 7}, .shift = {0, 3, 0}, .scale = 0.25f}},
    {"window 7^3 shifted, masked, no qkv bias",
     {.d = 3,
      .h = 7,
      .w = 9,
      .head_dim = 8,
      .window = {7, 7, 7},
      .shift = {3, 3, 3},
      .padding = PaddingMode::masked,
      .scale = 0.35f},
     false},
    {"window 8^3 shifted, masked",
     {.d = 8,
      .h = 8,
      .w = 9,
      .head_dim = 12,
      .window = {8, 8, 8},
      .shift = {0, 0, 4},
      .padding = PaddingMode::masked,
      .scale = 0.29f}},
    {"window 8^3, head dim 96: the largest shared table with gradients of four warps",
     {.d = 2, .h = 4, .w = 3, .head_dim = 96, .window = {8, 8, 8}, .scale = 0.1f}},
    {"2D, window 1x14x14 shifted, padding attends",
     {.d = 1, .h = 15, .w = 14, .head_dim = 32, .window = {1, 14, 14}, .shift = {0, 7, 7}, .scale = 0.18f}},
    {"2D, window 1x14x14, masked, batch, head dim 64",
     {.n = 2,
      .d = 1,
      .h = 9,
      .w = 14,
      .head_dim = 64,
      .window = {1, 14, 14},
      .padding = PaddingMode::masked,
      .scale = 0.125f}},
    clipped_case("Swin, window 1x7x7 clipped on a grid of 5x9",
                 {.h = 5, .w = 9, .heads = 2, .head_dim = 16, .scale = 0.25f}, {1, 7, 7}, {0, 3, 3}, false),
    clipped_case("Swin, window 8^3 clipped on every axis",
                 {.n = 2, .d = 3, .h = 8, .w = 2, .heads = 2, .head_dim = 9, .scale = 0.3f}, {8, 8, 8},
                 {4, 4, 4}, false),
    clipped_case("MONAI, window 7^3 on a grid of 6^3",
                 {.d = 6, .h = 6, .w = 6, .head_dim = 16, .scale = 0.25f}, {7, 7, 7}, {3, 3, 3}, true),
    clipped_case("MONAI, window 7^3 on a grid of 3^3, batch",
                 {.n = 2, .d = 3, .h = 3, .w = 3, .heads = 3, .head_dim = 16, .scale = 0.25f}, {7, 7, 7},
                 {3, 3, 3}, true),
    clipped_case("MONAI, window 7^3 clipped on two axes, shifted on the third",
                 {.d = 3, .h = 8, .w = 5, .heads = 2, .head_dim = 8, .scale = 0.35f}, {7, 7, 7}, {3, 3, 3},
                 true),
    clipped_case("MONAI, window 4^3 clipped on W, shifted, masked",
                 {.n = 2,
                  .d = 5,
                  .h = 6,
                  .w = 3,
                  .heads = 2,
                  .head_dim = 12,
                  .padding = PaddingMode::masked,
                  .scale = 0.3f},
                 {4, 4, 4}, {2, 2, 2}, true),
    clipped_case("MONAI, 2D, window 1x7x7 clipped on H", {.h = 5, .w = 9, .head_dim = 20, .scale = 0.2f},
                 {1, 7, 7}, {0, 3, 3}, true),
    clipped_case("bias table of 4095 rows, head dim 96", {.w = 5, .heads = 2, .head_dim = 96, .scale = 0.1f},
                 {1, 1, 2048}, {0, 0, 0}, true),
    clipped_case("bias table of 4097 rows", {.w = 5, .heads = 2, .head_dim = 33, .scale = 0.2f}, {1, 1, 2049},
                 {0, 0, 0}, true),
    clipped_case("bias table of 4913 rows, two warps",
                 {.d = 2, .h = 3, .w = 4, .heads = 2, .head_dim = 6, .scale = 0.4f}, {9, 9, 9}, {4, 4, 4},
                 true),
};

// For benchmarks: the fusion network (tiny at 64^3, base at 96^3, its deepest level), SwinUNETR at 96^3.
inline const std::vector<WindowAttentionCase> kWindowAttentionBenchmarkCases{
    {"tiny_32_window_4", {.d = 32, .h = 32, .w = 32, .heads = 2, .head_dim = 12, .scale = 0.2887f}},
    {"tiny_32_window_4_shifted",
     {.d = 32,
      .h = 32,
      .w = 32,
      .heads = 2,
      .head_dim = 12,
      .shift = {2, 2, 2},
      .padding = PaddingMode::masked,
      .scale = 0.2887f}},
    {"tiny_4_window_4", {.d = 4, .h = 4, .w = 4, .heads = 16, .head_dim = 12, .scale = 0.2887f}},
    {"base_48_window_4_shifted",
     {.d = 48,
      .h = 48,
      .w = 48,
      .heads = 3,
      .head_dim = 16,
      .shift = {2, 2, 2},
      .padding = PaddingMode::masked,
      .scale = 0.25f}},
    {"swinunetr_48_window_7",
     {.d = 48, .h = 48, .w = 48, .heads = 3, .head_dim = 16, .window = {7, 7, 7}, .scale = 0.25f}},
    {"swinunetr_24_window_7_shifted",
     {.d = 24,
      .h = 24,
      .w = 24,
      .heads = 6,
      .head_dim = 16,
      .window = {7, 7, 7},
      .shift = {3, 3, 3},
      .scale = 0.25f}},
};

// Two products forward; backward the scores again and four gradients. Padding tokens count.
inline Work window_attention_work(const WindowAttentionParams& p, bool backward) {
  const auto per_head = static_cast<double>(p.windows() * p.window_tokens() * p.window_tokens() * p.head_dim);
  const auto tokens = static_cast<double>(p.tokens() * p.channels());
  return {.flops = 2.0 * per_head * p.heads * (backward ? 5 : 2), .bytes = 4.0 * tokens * (backward ? 8 : 4)};
}

// A shape of the contract at random, small enough for the emulator: at most 40000 products q k.
inline WindowAttentionCase draw_window_attention(RandomStream& random) {
  const auto among = [&](int64_t low, int64_t high) { return low + random.below(high - low + 1); };
  constexpr std::array<std::array<int, 3>, 8> kWindows{
      {{1, 7, 7}, {4, 4, 4}, {5, 5, 5}, {7, 7, 7}, {8, 8, 8}, {1, 14, 14}, {2, 7, 7}, {2, 2, 2}}};
  for (;;) {
    WindowAttentionCase c{"random", {.n = among(1, 3)}, random.below(4) != 0};
    WindowAttentionParams& p = c.params;
    p.d = random.below(3) == 0 ? 1 : among(1, 9);
    p.h = among(1, 9);
    p.w = among(1, 15);
    p.heads = static_cast<int>(among(1, 3));
    p.head_dim = static_cast<int>(random.below(4) == 0 ? among(4, 96) : among(4, 18));
    p.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
    p.padding = random.below(2) == 0 ? PaddingMode::attend : PaddingMode::masked;
    for (size_t axis = 0; axis < 3; ++axis) {
      p.window[axis] = static_cast<int>(among(1, 6));
    }
    if (random.below(2) == 0) {
      p.window = kWindows[static_cast<size_t>(random.below(kWindows.size()))];
    }
    for (size_t axis = 0; axis < 3; ++axis) {
      p.shift[axis] =
          static_cast<int>(random.below(2) == 0 ? p.window[axis] / 2 : random.below(p.window[axis]));
    }
    if (const int64_t rule = random.below(3); rule > 0) {
      c = clipped_case("random, clipped", p, p.window, p.shift, rule == 1, c.qkv_bias);
    }
    if (p.windows() * p.window_tokens() * p.window_tokens() * p.channels() <= 40'000) {
      const auto triple = [](const std::array<int, 3>& t) { return concat(t[0], 'x', t[1], 'x', t[2]); };
      c.name = concat(p.n, 'x', p.d, 'x', p.h, 'x', p.w, ", ", p.heads, " heads of ", p.head_dim, ", window ",
                      triple(p.window), ", shift ", triple(p.shift), ", table of ", triple(p.table_window()),
                      p.padding == PaddingMode::masked ? ", masked" : ", attend",
                      c.qkv_bias ? "" : ", no qkv bias");
      return c;
    }
  }
}

}  // namespace vesal::kernels
