// Argument checks, workspace sizes and dispatch of the reductions.
#include "kernels/reduce/reduce.hpp"

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(sum)
VESAL_DECLARE_BACKENDS(sum_squares)
VESAL_DECLARE_BACKENDS(max_abs)
VESAL_DECLARE_BACKENDS(channel_sum_forward)
VESAL_DECLARE_BACKENDS(channel_sum_backward)
VESAL_DECLARE_BACKENDS(sum_spatial)

namespace {

void check_reduction(const char* what, Context& context, int64_t count, ConstData x, Data out,
                     Workspace workspace) {
  check<ShapeError>(count >= 0, what, ": count ", count, " is negative");
  check<ShapeError>((count == 0 || x) && out, what, ": a tensor is null");
  workspace.require(reduce_workspace_bytes(context, count), what);
}

}  // namespace

size_t reduce_workspace_bytes(Context&, int64_t count) { return column_partials_bytes(1, count, 1, 1); }

void sum(Context& context, int64_t count, ConstData x, Data out, Workspace workspace) {
  check_reduction("sum", context, count, x, out, workspace);
  VESAL_DISPATCH(context, sum(context, count, x, out, workspace));
}

void sum_squares(Context& context, int64_t count, ConstData x, Data out, Workspace workspace) {
  check_reduction("sum_squares", context, count, x, out, workspace);
  VESAL_DISPATCH(context, sum_squares(context, count, x, out, workspace));
}

void max_abs(Context& context, int64_t count, ConstData x, Data out, Workspace workspace) {
  check_reduction("max_abs", context, count, x, out, workspace);
  VESAL_DISPATCH(context, max_abs(context, count, x, out, workspace));
}

void channel_sum_forward(Context& context, int64_t rows, int64_t channels, ConstData x, Data out) {
  check<ShapeError>(checked_mul(rows, channels) == 0 || (x && out), "channel_sum_forward: a tensor is null");
  check<ShapeError>(channels >= 1, "channel_sum_forward: channels ", channels, ", expected at least 1");
  VESAL_DISPATCH(context, channel_sum_forward(context, rows, channels, x, out));
}

void channel_sum_backward(Context& context, int64_t rows, int64_t channels, ConstData dout, Data dx) {
  check<ShapeError>(checked_mul(rows, channels) == 0 || (dout && dx),
                    "channel_sum_backward: a tensor is null");
  check<ShapeError>(channels >= 1, "channel_sum_backward: channels ", channels, ", expected at least 1");
  VESAL_DISPATCH(context, channel_sum_backward(context, rows, channels, dout, dx));
}

size_t sum_spatial_workspace_bytes(Context&, int64_t n, int64_t spatial, int64_t channels) {
  return column_partials_bytes(n, spatial, channels, 1);
}

void sum_spatial(Context& context, int64_t n, int64_t spatial, int64_t channels, float factor, ConstData x,
                 Data out, GradMode mode, Workspace workspace) {
  const int64_t count = checked_mul(checked_mul(n, spatial), channels);
  check<ShapeError>((count == 0 || x) && (n * channels == 0 || out), "sum_spatial: a tensor is null");
  workspace.require(sum_spatial_workspace_bytes(context, n, spatial, channels), "sum_spatial");
  VESAL_DISPATCH(context, sum_spatial(context, n, spatial, channels, factor, x, out, mode, workspace));
}

}  // namespace vesal::kernels
