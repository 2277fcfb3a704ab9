// Argument checks of window attention and the way to the device's implementation.
#include "kernels/window_attention/window_attention.hpp"

#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(window_attention_forward)
VESAL_DECLARE_BACKENDS(window_attention_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(window_attention_backward)

namespace {

void check_params(const char* op, const WindowAttentionParams& p) {
  check<ShapeError>(p.n >= 1 && p.d >= 1 && p.h >= 1 && p.w >= 1 && p.heads >= 1, op, ": grid ", p.n, " x ",
                    p.d, " x ", p.h, " x ", p.w, " with ", p.heads,
                    " heads; every extent must be at least 1");
  check<ShapeError>(p.head_dim >= 4 && p.head_dim <= 96, op, ": head_dim is ", p.head_dim,
                    ", supported are 4 to 96");
  const std::array<int64_t, 3> extent{p.d, p.h, p.w};
  const std::array<int, 3> table = p.table_window();
  int64_t bias_rows = 1;
  for (int axis = 0; axis < 3; ++axis) {
    check<ShapeError>(p.window[axis] >= 1 && p.shift[axis] >= 0 && p.shift[axis] < p.window[axis], op,
                      ": axis ", axis, " of D, H, W has window ", p.window[axis], " and shift ",
                      p.shift[axis],
                      "; the window must be at least 1 and the shift between 0 and window - 1");
    check<ShapeError>(table[axis] >= p.window[axis], op, ": axis ", axis, " of D, H, W has window ",
                      p.window[axis], ", but the bias table's window is ", table[axis], " long");
    constexpr int64_t kMaxExtent = int64_t{1} << 29;
    check<ShapeError>(extent[axis] <= kMaxExtent && table[axis] <= kMaxExtent, op, ": an extent passes 2^29");
    bias_rows = checked_mul(bias_rows, 2 * int64_t{table[axis]} - 1);
    check<ShapeError>(bias_rows <= kMaxExtent, op, ": the bias table of window ", table[0], " x ", table[1],
                      " x ", table[2], " has more than 2^29 rows");
  }
  const std::array<int64_t, 6> shape{p.n, p.d, p.h, p.w, 3, p.channels()};
  element_count(shape);
}

}  // namespace

ClippedWindow clip_window(const std::array<int, 3>& window, const std::array<int, 3>& shift,
                          const std::array<int64_t, 3>& grid) {
  ClippedWindow clipped{window, shift};
  for (size_t axis = 0; axis < 3; ++axis) {
    if (grid[axis] <= window[axis]) {
      clipped.window[axis] = static_cast<int>(grid[axis]);
      clipped.shift[axis] = 0;
    }
  }
  return clipped;
}

void window_attention_forward(Context& context, const WindowAttentionParams& params, ConstData qkv,
                              ConstData qkv_bias, ConstData bias_table, Data out, float* lse) {
  check_params("window_attention_forward", params);
  check<ShapeError>(qkv && bias_table && out,
                    "window_attention_forward: qkv, bias_table and out must not be null");
  VESAL_DISPATCH(context, window_attention_forward(context, params, qkv, qkv_bias, bias_table, out, lse));
}

size_t window_attention_backward_workspace_bytes(Context& context, const WindowAttentionParams& params) {
  check_params("window_attention_backward", params);
  VESAL_DISPATCH(context, window_attention_backward_workspace_bytes(context, params));
}

void window_attention_backward(Context& context, const WindowAttentionParams& params, ConstData qkv,
                               ConstData qkv_bias, ConstData bias_table, ConstData out, const float* lse,
                               ConstData dout, Data dqkv, Data dqkv_bias, Data dbias_table, GradMode mode,
                               Workspace workspace) {
  check_params("window_attention_backward", params);
  check<ShapeError>(qkv && bias_table && out && lse != nullptr && dout && dqkv && dbias_table,
                    "window_attention_backward: only qkv_bias and dqkv_bias may be null");
  check<ShapeError>(qkv_bias || !dqkv_bias,
                    "window_attention_backward: dqkv_bias is given, but qkv_bias is null");
  workspace.require(window_attention_backward_workspace_bytes(context, params), "window_attention_backward");
  VESAL_DISPATCH(context, window_attention_backward(context, params, qkv, qkv_bias, bias_table, out, lse,
                                                    dout, dqkv, dqkv_bias, dbias_table, mode, workspace));
}

}  // namespace vesal::kernels
