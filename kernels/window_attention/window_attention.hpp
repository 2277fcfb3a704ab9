// Multi-head self-attention inside (shifted) 3D windows, after Swin (Liu et al. 2021, sections 3.2 and 3.3),
// as one op: cyclic shift, partition, padding, relative position bias, shift mask, softmax, product with v,
// and the way back.
//
// The volume is padded at its far ends to multiples of the window, rolled by -shift, and cut into windows.
// For tokens i, j of one window and head m, with q, k, v of `head_dim` numbers each:
//   score[i, j] = scale * q_i . k_j + bias_table[rel(i, j), m]        (-inf where masked)
//   out_i       = sum over j of softmax_j(score[i, j]) v_j
//   rel(i, j)   = (dz * (2*window_h - 1) + dy) * (2*window_w - 1) + dx,   dz = z_i - z_j + window_d - 1, ...
// Shift mask: on the rolled, padded grid each axis has the regions [0, P - window), [P - window, P - shift),
// [P - shift, P); tokens attend only within equal regions on all three axes (27 in all), derived from the
// voxel index. Where shift is 0 on an axis that axis has one region. Padding happens after the normalisation
// that precedes qkv: a padding token is a zero vector before the projection, so its q, k and v are the
// projection's bias. With PaddingMode::attend real tokens see it (as the original does); with
// PaddingMode::masked they do not. Rows of padding tokens are never written.
//
// Where a grid is no longer than the window on an axis, published networks differ:
//   - torchvision keeps the window, pads the grid up to it, and does not shift that axis;
//   - Swin clips window and shift (clip_window), with the bias table of the clipped window;
//   - MONAI and Video Swin clip likewise, but keep the table of the unclipped window: bias_window.
// With bias_window B, rel is taken between places in B: token l of the window, l = (z * window_h + y) *
// window_w + x, has the place of token l of B, for those networks cut the leading block out of B's index.
// Where B is larger on H or W this is not the distance of the tokens, but it is what the weights were trained
// with.
//
// qkv, out, dout and dqkv are stored as float32, bf16 or f16 (kernels/context/storage.hpp); all else is
// float32.
#pragma once

#include <array>
#include <cstdint>

#include "base/size.hpp"
#include "kernels/context/context.hpp"

namespace vesal::kernels {

enum class PaddingMode { attend, masked };

// Triples are in the order D, H, W.
struct WindowAttentionParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;  // token grid, not padded
  int heads = 1;
  int head_dim = 16;                   // 4 to 96
  std::array<int, 3> window{4, 4, 4};  // >= 1 per axis
  std::array<int, 3> shift{0, 0, 0};   // 0 <= shift < window
  // The window that bias_table belongs to, window <= bias_window per axis; zeros: `window` itself.
  std::array<int, 3> bias_window{0, 0, 0};
  PaddingMode padding = PaddingMode::attend;
  float scale = 1.0f;  // usually 1 / sqrt(head_dim)

  int64_t channels() const { return int64_t{heads} * head_dim; }
  int64_t tokens() const { return n * d * h * w; }
  int64_t window_tokens() const { return int64_t{window[0]} * window[1] * window[2]; }
  int64_t windows() const {
    return n * ceil_div(d, window[0]) * ceil_div(h, window[1]) * ceil_div(w, window[2]);
  }
  std::array<int, 3> table_window() const {
    return bias_window == std::array<int, 3>{0, 0, 0} ? window : bias_window;
  }
  int64_t bias_rows() const {
    const std::array<int, 3> b = table_window();
    return int64_t{2 * b[0] - 1} * (2 * b[1] - 1) * (2 * b[2] - 1);
  }
};

// A window and a shift as Swin and MONAI use them on a grid d, h, w: an axis that is no longer than its
// window is one window, as long as the grid, and is not shifted.
struct ClippedWindow {
  std::array<int, 3> window;
  std::array<int, 3> shift;
};
ClippedWindow clip_window(const std::array<int, 3>& window, const std::array<int, 3>& shift,
                          const std::array<int64_t, 3>& grid);

// qkv [n, d, h, w, 3, heads, head_dim]; qkv_bias [3, heads, head_dim] (what a padding token's q, k, v are;
// null when the projection has no bias: zeros); bias_table [bias_rows, heads]; out [n, d, h, w, heads,
// head_dim]. lse [n, d, h, w, heads]: log of the softmax's denominator per real token, for the backward pass;
// may be null.
void window_attention_forward(Context& context, const WindowAttentionParams& params, ConstData qkv,
                              ConstData qkv_bias, ConstData bias_table, Data out, float* lse);

size_t window_attention_backward_workspace_bytes(Context& context, const WindowAttentionParams& params);

// dqkv (as qkv) is overwritten. dbias_table and dqkv_bias follow `mode`; dqkv_bias (null when qkv_bias is)
// receives only what flows through padding tokens: the real tokens' part is the projection's own business.
void window_attention_backward(Context& context, const WindowAttentionParams& params, ConstData qkv,
                               ConstData qkv_bias, ConstData bias_table, ConstData out, const float* lse,
                               ConstData dout, Data dqkv, Data dqkv_bias, Data dbias_table, GradMode mode,
                               Workspace workspace);

}  // namespace vesal::kernels
