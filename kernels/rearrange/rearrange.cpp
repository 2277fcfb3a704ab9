// Argument checks and dispatch of the rearrangements.
#include "kernels/rearrange/rearrange.hpp"

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(pad_crop_forward)
VESAL_DECLARE_BACKENDS(pad_crop_backward)
VESAL_DECLARE_BACKENDS(copy_channels)
VESAL_DECLARE_BACKENDS(route_channels)

namespace {

int64_t product(std::initializer_list<int64_t> extents) {
  return element_count(std::span<const int64_t>(extents.begin(), extents.size()));
}

void check_pad_crop(const char* what, const PadCropParams& p, ConstData input, ConstData output) {
  check<ShapeError>(product({p.n, p.d, p.h, p.w, p.c}) == 0 || input, what, ": the input is null");
  check<ShapeError>(product({p.n, p.out_d, p.out_h, p.out_w, p.c}) == 0 || output, what,
                    ": the output is null");
}

}  // namespace

void pad_crop_forward(Context& context, const PadCropParams& params, ConstData x, Data y) {
  check_pad_crop("pad_crop_forward", params, x, y);
  VESAL_DISPATCH(context, pad_crop_forward(context, params, x, y));
}

void pad_crop_backward(Context& context, const PadCropParams& params, ConstData dy, Data dx) {
  check_pad_crop("pad_crop_backward", params, dx, dy);
  VESAL_DISPATCH(context, pad_crop_backward(context, params, dy, dx));
}

void copy_channels(Context& context, const CopyChannelsParams& params, ConstData source, Data target,
                   GradMode mode) {
  const CopyChannelsParams& p = params;
  check<ShapeError>(p.rows >= 0 && p.count >= 0 && p.source_offset >= 0 && p.target_offset >= 0,
                    "copy_channels: negative size or offset");
  check<ShapeError>(p.source_offset + p.count <= p.source_channels, "copy_channels: source channels [",
                    p.source_offset, ", ", p.source_offset + p.count, ") of ", p.source_channels);
  check<ShapeError>(p.target_offset + p.count <= p.target_channels, "copy_channels: target channels [",
                    p.target_offset, ", ", p.target_offset + p.count, ") of ", p.target_channels);
  check<ShapeError>(product({p.rows, p.count}) == 0 || (source && target), "copy_channels: a tensor is null");
  VESAL_DISPATCH(context, copy_channels(context, params, source, target, mode));
}

void route_channels(Context& context, int64_t n, int64_t voxels, int64_t channels, int64_t out, ConstData x,
                    const int32_t* source, Data y) {
  check<ShapeError>(product({n, voxels, channels}) == 0 || x, "route_channels: x is null");
  check<ShapeError>(product({n, voxels, out}) == 0 || (source != nullptr && y),
                    "route_channels: source or y is null");
  VESAL_DISPATCH(context, route_channels(context, n, voxels, channels, out, x, source, y));
}

}  // namespace vesal::kernels
