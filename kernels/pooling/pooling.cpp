// Pooling: argument checks and the choice of the device.
#include "kernels/pooling/pooling.hpp"

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(max_pool3d_forward)
VESAL_DECLARE_BACKENDS(max_pool3d_backward)
VESAL_DECLARE_BACKENDS(avg_pool3d_forward)
VESAL_DECLARE_BACKENDS(avg_pool3d_backward)

namespace {

int64_t input_count(const PoolParams& p) {
  return checked_mul(checked_mul(checked_mul(checked_mul(p.n, p.d), p.h), p.w), p.c);
}

void check_params(const PoolParams& p, const char* what) {
  int64_t volume = 1;
  for (int axis = 0; axis < 3; ++axis) {
    check<ShapeError>(p.kernel[axis] >= 1 && p.stride[axis] >= 1, what, ": window ", p.kernel[0], " x ",
                      p.kernel[1], " x ", p.kernel[2], " with strides ", p.stride[0], ", ", p.stride[1], ", ",
                      p.stride[2], ": each must be at least 1");
    volume = checked_mul(volume, p.kernel[axis]);
  }
  check<ShapeError>(volume <= 255, what, ": a window of ", volume, " voxels, at most 255 are supported");
  input_count(p);
}

void check_pointers(const PoolParams& p, ConstData input, ConstData output, const char* what) {
  const bool outputs = p.out_d() > 0 && p.out_h() > 0 && p.out_w() > 0;
  check<ShapeError>(input_count(p) == 0 || (input && (output || !outputs)), what, ": an array is null");
}

}  // namespace

void max_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y, uint8_t* index) {
  check_params(params, "max_pool3d_forward");
  check_pointers(params, x, y, "max_pool3d_forward");
  VESAL_DISPATCH(context, max_pool3d_forward(context, params, x, y, index));
}

void max_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, const uint8_t* index,
                         Data dx) {
  check_params(params, "max_pool3d_backward");
  check_pointers(params, dx, dy, "max_pool3d_backward");
  check<ShapeError>(input_count(params) == 0 || index != nullptr,
                    "max_pool3d_backward: needs the index that the forward pass wrote");
  VESAL_DISPATCH(context, max_pool3d_backward(context, params, dy, index, dx));
}

void avg_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y) {
  check_params(params, "avg_pool3d_forward");
  check_pointers(params, x, y, "avg_pool3d_forward");
  VESAL_DISPATCH(context, avg_pool3d_forward(context, params, x, y));
}

void avg_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, Data dx) {
  check_params(params, "avg_pool3d_backward");
  check_pointers(params, dx, dy, "avg_pool3d_backward");
  VESAL_DISPATCH(context, avg_pool3d_backward(context, params, dy, dx));
}

}  // namespace vesal::kernels
