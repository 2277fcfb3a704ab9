// Pooling: argument checks and the choice of the device.
#include "kernels/pooling/pooling.hpp"

#include <algorithm>

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
  constexpr int64_t kMost = int64_t{1} << 30;  // voxels along an axis or in a window
  check<ShapeError>(std::max({p.d, p.h, p.w}) <= kMost, what, ": a volume of ", p.d, " x ", p.h, " x ", p.w,
                    ", at most ", kMost, " voxels along an axis are supported");
  if (p.is_adaptive()) {
    constexpr int64_t kMostAlongAxis = 32767;  // their products fit 32 bits
    int64_t outputs = 1;
    for (size_t axis = 0; axis < 3; ++axis) {
      const int64_t extent = axis == 0 ? p.d : axis == 1 ? p.h : p.w;
      check<ShapeError>(p.adaptive[axis] >= 1 && std::max(p.adaptive[axis], extent) <= kMostAlongAxis, what,
                        ": adaptive from ", p.d, " x ", p.h, " x ", p.w, " to ", p.adaptive[0], " x ",
                        p.adaptive[1], " x ", p.adaptive[2], ": extents are 1 to ", kMostAlongAxis);
      outputs = checked_mul(outputs, p.adaptive[axis]);
    }
    checked_mul(checked_mul(outputs, p.n), p.c);
    check<ShapeError>(checked_mul(checked_mul(p.d, p.h), p.w) <= kMost, what, ": adaptive pooling of ", p.d,
                      " x ", p.h, " x ", p.w, " voxels, at most ", kMost, " are supported");
  } else {
    int64_t volume = 1;
    for (size_t axis = 0; axis < 3; ++axis) {
      check<ShapeError>(p.kernel[axis] >= 1 && p.stride[axis] >= 1, what, ": window ", p.kernel[0], " x ",
                        p.kernel[1], " x ", p.kernel[2], " with strides ", p.stride[0], ", ", p.stride[1],
                        ", ", p.stride[2], ": each must be at least 1");
      check<ShapeError>(p.padding[axis] >= 0 && p.padding[axis] <= p.kernel[axis] / 2, what, ": padding ",
                        p.padding[axis], " of a window of ", p.kernel[axis], ", at most half is supported");
      volume = checked_mul(volume, p.kernel[axis]);
    }
    check<ShapeError>(volume <= kMost, what, ": a window of ", volume, " voxels, at most ", kMost,
                      " are supported");
  }
  input_count(p);
}

bool has_outputs(const PoolParams& p) {
  return input_count(p) > 0 && p.out_d() > 0 && p.out_h() > 0 && p.out_w() > 0;
}

void check_pointers(const PoolParams& p, ConstData input, ConstData output, const char* what) {
  check<ShapeError>(input_count(p) == 0 || (input && (output || !has_outputs(p))), what,
                    ": an array is null");
}

void check_index(const PoolParams& p, ConstData index, const char* what) {
  check<ShapeError>(!index || index.dtype == p.index_type(), what, ": index is stored as ",
                    name_of(index.dtype), ", expected ", name_of(p.index_type()));
}

}  // namespace

void max_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y, Data index) {
  check_params(params, "max_pool3d_forward");
  check_pointers(params, x, y, "max_pool3d_forward");
  check_index(params, index, "max_pool3d_forward");
  if (!has_outputs(params)) {
    return;
  }
  VESAL_DISPATCH(context, max_pool3d_forward(context, params, x, y, index));
}

void max_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, ConstData index, Data dx) {
  check_params(params, "max_pool3d_backward");
  check_pointers(params, dx, dy, "max_pool3d_backward");
  check<ShapeError>(input_count(params) == 0 || index,
                    "max_pool3d_backward: needs the index that the forward pass wrote");
  check_index(params, index, "max_pool3d_backward");
  if (input_count(params) == 0) {
    return;
  }
  VESAL_DISPATCH(context, max_pool3d_backward(context, params, dy, index, dx));
}

void avg_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y) {
  check_params(params, "avg_pool3d_forward");
  check_pointers(params, x, y, "avg_pool3d_forward");
  if (!has_outputs(params)) {
    return;
  }
  VESAL_DISPATCH(context, avg_pool3d_forward(context, params, x, y));
}

void avg_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, Data dx) {
  check_params(params, "avg_pool3d_backward");
  check_pointers(params, dx, dy, "avg_pool3d_backward");
  if (input_count(params) == 0) {
    return;
  }
  VESAL_DISPATCH(context, avg_pool3d_backward(context, params, dy, dx));
}

}  // namespace vesal::kernels
