// Argument checks and dispatch of softmax.
#include "kernels/softmax/softmax.hpp"

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(softmax_forward)
VESAL_DECLARE_BACKENDS(softmax_backward)

void softmax_forward(Context& context, int64_t rows, int64_t channels, ConstData x, Data y) {
  check<ShapeError>(rows >= 0 && channels >= 1, "softmax_forward: [", rows, ", ", channels,
                    "], expected rows >= 0 and channels >= 1");
  check<ShapeError>(checked_mul(rows, channels) == 0 || (x && y), "softmax_forward: a tensor is null");
  VESAL_DISPATCH(context, softmax_forward(context, rows, channels, x, y));
}

void softmax_backward(Context& context, int64_t rows, int64_t channels, ConstData y, ConstData dy, Data dx) {
  check<ShapeError>(rows >= 0 && channels >= 1, "softmax_backward: [", rows, ", ", channels,
                    "], expected rows >= 0 and channels >= 1");
  check<ShapeError>(checked_mul(rows, channels) == 0 || (y && dy && dx),
                    "softmax_backward: a tensor is null");
  VESAL_DISPATCH(context, softmax_backward(context, rows, channels, y, dy, dx));
}

}  // namespace vesal::kernels
