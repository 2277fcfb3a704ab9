// Argument checks of the decomposed relative position and the way to the device's implementation.
#include "kernels/relative_position/relative_position.hpp"

#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(relative_position_forward)
VESAL_DECLARE_BACKENDS(relative_position_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(relative_position_backward)

namespace {

// Checks the sizes and fills in the stride that was left out.
RelativePositionParams checked(const char* op, RelativePositionParams p) {
  check<ShapeError>(p.n >= 1 && p.heads >= 1 && p.head_dim >= 1, op, ": ", p.n, " samples, ", p.heads,
                    " heads, head_dim ", p.head_dim, "; each must be at least 1");
  int64_t queries = 1;
  for (size_t axis = 0; axis < 3; ++axis) {
    const int q = p.query_grid[axis];
    const int k = p.key_grid[axis];
    constexpr int kMaxExtent = 1 << 20;
    check<ShapeError>(q >= 1 && k >= 1 && q <= kMaxExtent && k <= kMaxExtent && (q % k == 0 || k % q == 0),
                      op, ": axis ", axis, " of D, H, W has ", q, " places of queries and ", k,
                      " of keys; both must be 1 to 2^20, and the larger a multiple of the smaller");
    queries = checked_mul(queries, q);
  }
  check<ShapeError>(queries <= int64_t{1} << 30, op, ": more than 2^30 queries");
  p.q_stride = p.q_stride == 0 ? p.channels() : p.q_stride;
  check<ShapeError>(p.q_stride >= p.channels(), op, ": a token stride of ", p.q_stride, " for ", p.channels(),
                    " channels");
  checked_mul(checked_mul(p.n, queries), p.q_stride);
  checked_mul(checked_mul(p.n, queries), checked_mul(p.heads, p.axial_size()));
  return p;
}

}  // namespace

void relative_position_forward(Context& context, const RelativePositionParams& params, ConstData q,
                               const RelativePositionTables& tables, Data axial_bias) {
  const RelativePositionParams p = checked("relative_position_forward", params);
  check<ShapeError>(q && axial_bias, "relative_position_forward: q and axial_bias must not be null");
  VESAL_DISPATCH(context, relative_position_forward(context, p, q, tables, axial_bias));
}

size_t relative_position_backward_workspace_bytes(Context& context, const RelativePositionParams& params) {
  const RelativePositionParams p = checked("relative_position_backward", params);
  VESAL_DISPATCH(context, relative_position_backward_workspace_bytes(context, p));
}

void relative_position_backward(Context& context, const RelativePositionParams& params, ConstData q,
                                const RelativePositionTables& tables, ConstData daxial_bias, Data dq,
                                GradMode dq_mode, const RelativePositionTableGradients& dtables,
                                GradMode table_mode, Workspace workspace) {
  const RelativePositionParams p = checked("relative_position_backward", params);
  check<ShapeError>(q && daxial_bias && dq,
                    "relative_position_backward: q, daxial_bias and dq must not be null");
  for (size_t axis = 0; axis < 3; ++axis) {
    check<ShapeError>(bool(tables[axis]) == bool(dtables[axis]), "relative_position_backward: axis ", axis,
                      " of D, H, W has a table without gradient or a gradient without table");
  }
  workspace.require(relative_position_backward_workspace_bytes(context, p), "relative_position_backward");
  VESAL_DISPATCH(context, relative_position_backward(context, p, q, tables, daxial_bias, dq, dq_mode, dtables,
                                                     table_mode, workspace));
}

}  // namespace vesal::kernels
