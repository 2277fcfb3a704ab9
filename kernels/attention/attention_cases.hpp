// Shapes on which attention is verified on every device. Sizes meet, miss by one and pass by one what the
// kernels cut by: on a GPU 64 or 32 queries or keys and tiles of as many, columns of 16, chunks of 64
// dimensions, shares of a tile or more for at most 32 blocks each, fewer where heads fill a GPU; 8 rows and
// tiles of 512 to 32 tokens on the CPU; 4 dimensions, 16 lanes; and the head dimensions at which the GPU's
// layout changes.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention/attention.hpp"
#include "kernels/context/work.hpp"

namespace vesal::kernels {

enum class AttentionLayout {
  packed,  // q, k and v apart
  fused,   // one qkv [n, tokens, 3, heads, head_dim]
  roomy,   // q, k and v apart, with room for one, two and three more heads after each token
};

struct AttentionCase {
  std::string name;
  AttentionParams params;  // strides are the layout's
  AttentionLayout layout = AttentionLayout::packed;
  bool key_mask = false;
  bool bias = false;
  bool axial = false;
};

inline const std::vector<AttentionCase> kAttentionCases{
    {"one query, one key", {.head_dim = 4}},
    {"one query, many keys", {.queries = 1, .keys = 67, .heads = 2, .head_dim = 8, .scale = 0.35f}},
    {"many queries, one key", {.n = 2, .queries = 66, .keys = 1, .heads = 2, .head_dim = 8, .scale = 0.35f}},
    {"head dim 1", {.queries = 5, .keys = 9, .heads = 3, .head_dim = 1}},
    {"head dim 3, batch", {.n = 3, .queries = 9, .keys = 7, .heads = 2, .head_dim = 3, .scale = 0.6f}},
    {"head dim 7", {.queries = 63, .keys = 31, .head_dim = 7, .scale = 0.4f}},
    {"head dim 8", {.queries = 64, .keys = 32, .head_dim = 8, .scale = 0.35f}},
    {"head dim 9", {.queries = 65, .keys = 33, .head_dim = 9, .scale = 0.33f}},
    {"head dim 15, fused",
     {.n = 2, .queries = 33, .keys = 33, .heads = 2, .head_dim = 15, .scale = 0.26f},
     AttentionLayout::fused},
    {"head dim 16, memory of 64",
     {.n = 2, .queries = 7, .keys = 64, .heads = 2, .head_dim = 16, .scale = 0.25f}},
    {"head dim 17, roomy",
     {.n = 2, .queries = 15, .keys = 17, .heads = 2, .head_dim = 17, .scale = 0.24f},
     AttentionLayout::roomy},
    {"head dim 31", {.queries = 64, .keys = 31, .head_dim = 31, .scale = 0.18f}},
    {"head dim 32, fused",
     {.queries = 65, .keys = 65, .heads = 2, .head_dim = 32, .scale = 0.18f},
     AttentionLayout::fused},
    {"head dim 33", {.queries = 31, .keys = 33, .head_dim = 33, .scale = 0.17f}},
    {"head dim 64, 127 keys", {.queries = 32, .keys = 127, .head_dim = 64, .scale = 0.125f}},
    {"head dim 64, 128 keys", {.queries = 9, .keys = 128, .head_dim = 64, .scale = 0.125f}},
    {"head dim 64, 129 queries", {.queries = 129, .keys = 33, .head_dim = 64, .scale = 0.125f}},
    {"head dim 65", {.queries = 15, .keys = 31, .head_dim = 65, .scale = 0.125f}},
    {"head dim 72, windows of 16",
     {.n = 3, .queries = 16, .keys = 16, .heads = 2, .head_dim = 72, .scale = 0.12f}},
    {"head dim 96", {.queries = 17, .keys = 65, .head_dim = 96, .scale = 0.1f}},
    {"head dim 97", {.queries = 31, .keys = 33, .head_dim = 97, .scale = 0.1f}},
    {"head dim 128", {.queries = 33, .keys = 32, .head_dim = 128, .scale = 0.09f}},
    {"head dim 129", {.queries = 15, .keys = 17, .head_dim = 129, .scale = 0.09f}},
    {"head dim 255", {.queries = 16, .keys = 15, .head_dim = 255, .scale = 0.06f}},
    {"head dim 256, memory of 33", {.n = 2, .queries = 17, .keys = 33, .head_dim = 256, .scale = 0.0625f}},
    {"511 keys", {.queries = 3, .keys = 511, .head_dim = 4, .scale = 0.5f}},
    {"513 keys", {.queries = 3, .keys = 513, .head_dim = 5, .scale = 0.5f}},
    {"513 queries", {.queries = 513, .keys = 3, .head_dim = 5, .scale = 0.5f}},
    {"key mask",
     {.n = 3, .queries = 18, .keys = 37, .heads = 2, .head_dim = 12, .scale = 0.3f},
     AttentionLayout::packed,
     true},
    {"key mask, fused, head dim 40",
     {.n = 3, .queries = 35, .keys = 35, .heads = 2, .head_dim = 40, .scale = 0.16f},
     AttentionLayout::fused,
     true},
    {"bias for all",
     {.n = 2, .queries = 9, .keys = 35, .heads = 2, .head_dim = 6, .scale = 0.4f},
     AttentionLayout::packed,
     false,
     true},
    {"bias per head",
     {.n = 2, .queries = 33, .keys = 18, .heads = 3, .head_dim = 20, .scale = 0.22f, .bias_heads = 3},
     AttentionLayout::packed,
     false,
     true},
    {"bias per sample, key mask",
     {.n = 3, .queries = 10, .keys = 33, .heads = 2, .head_dim = 8, .scale = 0.35f, .bias_samples = 3},
     AttentionLayout::packed,
     true,
     true},
    {"bias per sample and head, roomy",
     {.n = 2,
      .queries = 10,
      .keys = 17,
      .heads = 2,
      .head_dim = 8,
      .scale = 0.3f,
      .bias_samples = 2,
      .bias_heads = 2},
     AttentionLayout::roomy,
     false,
     true},
    {"axial 1x6x7, fused",
     {.n = 2, .queries = 42, .keys = 42, .heads = 2, .head_dim = 12, .scale = 0.3f, .key_grid = {1, 6, 7}},
     AttentionLayout::fused,
     false,
     false,
     true},
    {"axial 3x2x5, cross",
     {.n = 2, .queries = 17, .keys = 30, .heads = 2, .head_dim = 20, .scale = 0.22f, .key_grid = {3, 2, 5}},
     AttentionLayout::packed,
     false,
     false,
     true},
    {"axial 1x14x14, head dim 64",
     {.queries = 34, .keys = 196, .head_dim = 64, .scale = 0.125f, .key_grid = {1, 14, 14}},
     AttentionLayout::packed,
     false,
     false,
     true},
    {"axial, bias and key mask",
     {.n = 2,
      .queries = 20,
      .keys = 36,
      .heads = 2,
      .head_dim = 9,
      .scale = 0.3f,
      .key_grid = {3, 3, 4},
      .bias_heads = 2},
     AttentionLayout::packed,
     true,
     true,
     true},
    {"axial of 132: gradient not in shared memory",
     {.queries = 5, .keys = 130, .heads = 2, .head_dim = 4, .scale = 0.5f, .key_grid = {1, 1, 130}},
     AttentionLayout::packed,
     false,
     false,
     true},
    {"axial of 263: not in shared memory",
     {.queries = 9, .keys = 520, .heads = 2, .head_dim = 4, .scale = 0.5f, .key_grid = {1, 2, 260}},
     AttentionLayout::packed,
     true,
     false,
     true},
    {"129 queries and keys, all biases",
     {.n = 2,
      .queries = 129,
      .keys = 130,
      .heads = 2,
      .head_dim = 5,
      .scale = 0.4f,
      .key_grid = {5, 2, 13},
      .bias_samples = 2,
      .bias_heads = 2},
     AttentionLayout::roomy,
     true,
     true,
     true},
    {"2049 keys", {.queries = 2, .keys = 2049, .head_dim = 3, .scale = 0.6f}},
    {"2112 keys", {.queries = 2, .keys = 2112, .head_dim = 3, .scale = 0.6f}, AttentionLayout::packed, true},
    {"47 queries, 48 keys", {.queries = 47, .keys = 48, .head_dim = 64, .scale = 0.125f}},
    {"49 queries, 50 keys", {.queries = 49, .keys = 50, .head_dim = 12, .scale = 0.3f}},
    {"head dim 192, 65 queries and keys", {.queries = 65, .keys = 65, .head_dim = 192, .scale = 0.07f}},
    {"axial 4x9x2",
     {.queries = 9, .keys = 72, .heads = 2, .head_dim = 8, .scale = 0.35f, .key_grid = {4, 9, 2}},
     AttentionLayout::packed,
     false,
     false,
     true},
    {"axial 70x1x1",
     {.queries = 9, .keys = 70, .heads = 2, .head_dim = 8, .scale = 0.35f, .key_grid = {70, 1, 1}},
     AttentionLayout::packed,
     false,
     false,
     true},
    {"132 heads", {.queries = 2, .keys = 65, .heads = 132, .head_dim = 2, .scale = 0.7f}},
    {"133 heads", {.queries = 2, .keys = 65, .heads = 133, .head_dim = 2, .scale = 0.7f}},
};

// For benchmarks: the encoder of UNETR at 96^3, SAM's windows and SAM-Med3D's whole grid with the decomposed
// relative position, and across: SAM's mask decoder both ways, SAM 2's memory attention (two frames of
// 32x32).
inline const std::vector<AttentionCase> kAttentionBenchmarkCases{
    {"unetr_216_self",
     {.queries = 216, .keys = 216, .heads = 12, .head_dim = 64, .scale = 0.125f},
     AttentionLayout::fused},
    {"vit_1000_self",
     {.queries = 1000, .keys = 1000, .heads = 12, .head_dim = 64, .scale = 0.125f},
     AttentionLayout::fused},
    {"sam_windows_14_axial",
     {.n = 25,
      .queries = 196,
      .keys = 196,
      .heads = 12,
      .head_dim = 64,
      .scale = 0.125f,
      .key_grid = {1, 14, 14}},
     AttentionLayout::fused,
     false,
     false,
     true},
    {"sam_med3d_512_axial",
     {.queries = 512, .keys = 512, .heads = 12, .head_dim = 64, .scale = 0.125f, .key_grid = {8, 8, 8}},
     AttentionLayout::fused,
     false,
     false,
     true},
    {"sam_tokens_to_image", {.queries = 9, .keys = 4096, .heads = 8, .head_dim = 16, .scale = 0.25f}},
    {"sam_image_to_tokens", {.queries = 4096, .keys = 9, .heads = 8, .head_dim = 16, .scale = 0.25f}},
    {"sam2_memory_cross", {.queries = 1024, .keys = 2048, .head_dim = 256, .scale = 0.0625f}},
};

// Two products forward; backward the scores again and four gradients.
inline Work attention_work(const AttentionCase& c, bool backward) {
  const AttentionParams& p = c.params;
  const auto products = static_cast<double>(p.n * p.queries * p.keys * p.channels());
  const auto tokens = static_cast<double>(p.n * (p.queries + p.keys) * p.channels());
  const auto axial = static_cast<double>(c.axial ? p.n * p.queries * p.heads * p.axial_size() : 0);
  return {.flops = 2.0 * products * (backward ? 5 : 2),
          .bytes = 4.0 * (tokens * (backward ? 4 : 2) + axial * (backward ? 2 : 1))};
}

}  // namespace vesal::kernels
