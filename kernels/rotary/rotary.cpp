// Argument checks of the rotary embedding and the way to the device's implementation.
#include "kernels/rotary/rotary.hpp"

#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(rotary_forward)
VESAL_DECLARE_BACKENDS(rotary_backward)

namespace {

// Checks the sizes and fills in the strides that were left out.
RotaryParams checked(const char* op, RotaryParams p) {
  check<ShapeError>(p.n >= 1 && p.tokens >= 1 && p.heads >= 1, op, ": ", p.n, " samples, ", p.tokens,
                    " tokens, ", p.heads, " heads; each must be at least 1");
  check<ShapeError>((p.axes == 2 || p.axes == 3) && p.head_dim >= 2 * p.axes && p.head_dim <= 512, op, ": ",
                    p.axes, " axes and head_dim ", p.head_dim,
                    "; supported are 2 or 3 axes, and head_dim from 2 * axes to 512");
  const auto& [d, h, w] = p.grid;
  constexpr int kMaxExtent = 1 << 20;
  check<ShapeError>(d >= 1 && h >= 1 && w >= 1 && d <= kMaxExtent && h <= kMaxExtent && w <= kMaxExtent &&
                        (p.axes == 3 || d == 1),
                    op, ": a grid of ", d, " x ", h, " x ", w, " for ", p.axes,
                    " axes; extents are 1 to 2^20, and the first is 1 with two axes");
  const std::array<int64_t, 3> grid{d, h, w};
  check<ShapeError>(
      p.excluded >= 0 && p.excluded <= p.tokens && (p.tokens - p.excluded) % element_count(grid) == 0, op,
      ": ", p.tokens, " tokens, ", p.excluded, " of them excluded, on a grid of ", p.grid_size(),
      "; the rest must fill the grid a whole number of times");
  check<ShapeError>(p.theta > 0, op, ": theta is ", p.theta, "; it must be above 0");
  for (int64_t* stride : {&p.x_stride, &p.y_stride}) {
    *stride = *stride == 0 ? p.channels() : *stride;
    check<ShapeError>(*stride >= p.channels(), op, ": a token stride of ", *stride, " for ", p.channels(),
                      " channels");
    checked_mul(checked_mul(p.n, p.tokens), *stride);
  }
  return p;
}

}  // namespace

void rotary_forward(Context& context, const RotaryParams& params, ConstData x, Data y) {
  const RotaryParams p = checked("rotary_forward", params);
  check<ShapeError>(x && y, "rotary_forward: x and y must not be null");
  VESAL_DISPATCH(context, rotary_forward(context, p, x, y));
}

void rotary_backward(Context& context, const RotaryParams& params, ConstData dy, Data dx) {
  const RotaryParams p = checked("rotary_backward", params);
  check<ShapeError>(dy && dx, "rotary_backward: dy and dx must not be null");
  VESAL_DISPATCH(context, rotary_backward(context, p, dy, dx));
}

}  // namespace vesal::kernels
