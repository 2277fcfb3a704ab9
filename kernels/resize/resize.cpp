// Resizing: argument checks and the choice of the device.
#include "kernels/resize/resize.hpp"

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/resize/resize_axis.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(resize_forward)
VESAL_DECLARE_BACKENDS(resize_backward)

namespace {

void check_arguments(const ResizeParams& p, ConstData input, ConstData output, const char* what) {
  check<ShapeError>(p.n >= 0 && p.c >= 0, what, ": ", p.n, " samples of ", p.c, " channels");
  for (const int64_t extent : {p.d, p.h, p.w, p.out_d, p.out_h, p.out_w}) {
    check<ShapeError>(extent >= 1 && extent <= kLargestResizeExtent, what, ": from ", p.d, " x ", p.h, " x ",
                      p.w, " to ", p.out_d, " x ", p.out_h, " x ", p.out_w, ": extents are 1 to ",
                      kLargestResizeExtent);
  }
  const bool smooth =
      p.interpolation == Interpolation::trilinear || p.interpolation == Interpolation::tricubic;
  check<ShapeError>(smooth || !p.align_corners, what, ": align_corners with a nearest interpolation");
  for (const double scale : p.scale) {
    check<ShapeError>(scale == 0 || (scale >= 1.0 / kLargestResizeExtent && scale <= kLargestResizeExtent),
                      what, ": scale ", scale, ", expected 0 or 1/", kLargestResizeExtent, " to ",
                      kLargestResizeExtent);
  }
  const int64_t columns = checked_mul(p.n, p.c);
  checked_mul(columns, p.d * p.h * p.w);
  checked_mul(columns, p.out_d * p.out_h * p.out_w);
  check<ShapeError>(columns == 0 || (input && output), what, ": an array is null");
}

}  // namespace

void resize_forward(Context& context, const ResizeParams& params, ConstData x, Data y) {
  check_arguments(params, x, y, "resize_forward");
  if (params.n == 0 || params.c == 0) {
    return;
  }
  VESAL_DISPATCH(context, resize_forward(context, params, x, y));
}

void resize_backward(Context& context, const ResizeParams& params, ConstData dy, Data dx) {
  check_arguments(params, dx, dy, "resize_backward");
  if (params.n == 0 || params.c == 0) {
    return;
  }
  VESAL_DISPATCH(context, resize_backward(context, params, dy, dx));
}

}  // namespace vesal::kernels
