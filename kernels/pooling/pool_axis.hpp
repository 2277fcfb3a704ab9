// Where the windows of an axis lie, for host and device.
#pragma once

#include <cstdint>

#include "base/host_device.hpp"
#include "kernels/pooling/pooling.hpp"

namespace vesal::kernels {

// Index is int or int64_t.
template <class Index>
struct PoolAxis {
  Index in;
  Index out;
  Index kernel;  // 0: adaptive
  Index stride;
  Index padding;

  // Window o covers [begin(o), end(o)), padding included, and the voxels [first(o), last(o)).
  VESAL_HOST_DEVICE Index begin(Index o) const { return kernel == 0 ? o * in / out : o * stride - padding; }
  VESAL_HOST_DEVICE Index end(Index o) const {
    return kernel == 0 ? ((o + 1) * in + out - 1) / out : begin(o) + kernel;
  }
  VESAL_HOST_DEVICE Index extent(Index o) const { return kernel == 0 ? end(o) - begin(o) : kernel; }
  VESAL_HOST_DEVICE Index first(Index o) const { return begin(o) < 0 ? Index{0} : begin(o); }
  VESAL_HOST_DEVICE Index last(Index o) const { return end(o) < in ? end(o) : in; }
  // What an average divides by along this axis.
  VESAL_HOST_DEVICE Index divisor(Index o, bool count_include_pad) const {
    if (!count_include_pad) {
      return last(o) - first(o);
    }
    return (end(o) < in + padding ? end(o) : in + padding) - begin(o);
  }

  // The windows that cover a voxel: [begin, end).
  struct Range {
    Index begin, end;
  };
  VESAL_HOST_DEVICE Range windows_over(Index position) const {
    if (kernel == 0) {
      return {position * out / in, ((position + 1) * out + in - 1) / in};
    }
    const Index padded = position + padding;
    const Index begin = padded < kernel ? Index{0} : (padded - kernel) / stride + 1;
    const Index end = padded / stride + 1;
    return {begin, end < out ? end : out};
  }
};

template <class Index>
struct PoolAxes {
  PoolAxis<Index> d, h, w;
};

template <class Index>
PoolAxes<Index> pool_axes(const PoolParams& p) {
  const auto axis = [&](int64_t in, int64_t out, size_t a) {
    return PoolAxis<Index>{static_cast<Index>(in), static_cast<Index>(out),
                           p.is_adaptive() ? Index{0} : static_cast<Index>(p.kernel[a]),
                           static_cast<Index>(p.stride[a]),
                           p.is_adaptive() ? Index{0} : static_cast<Index>(p.padding[a])};
  };
  return {axis(p.d, p.out_d(), 0), axis(p.h, p.out_h(), 1), axis(p.w, p.out_w(), 2)};
}

}  // namespace vesal::kernels
