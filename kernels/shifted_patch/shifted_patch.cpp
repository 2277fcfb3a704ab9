// Argument checks of shifted patch tokenization and the way to the device's implementation.
#include "kernels/shifted_patch/shifted_patch.hpp"

#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(shifted_patch_workspace_bytes)
VESAL_DECLARE_BACKENDS(shifted_patch_forward)
VESAL_DECLARE_BACKENDS(shifted_patch_backward)

namespace {

void check_params(const char* op, const ShiftedPatchParams& p) {
  check<ShapeError>(
      p.n >= 1 && p.d >= 1 && p.h >= 1 && p.w >= 1 && p.groups >= 1 && p.channels >= 1 && p.out >= 1, op,
      ": volume ", p.n, " x ", p.d, " x ", p.h, " x ", p.w, " with ", p.groups, " groups of ", p.channels,
      " channels, ", p.out, " outputs; every extent must be at least 1");
  constexpr int64_t kMaxExtent = int64_t{1} << 29;
  check<ShapeError>(p.d <= kMaxExtent && p.h <= kMaxExtent && p.w <= kMaxExtent, op,
                    ": an extent passes 2^29");
  for (size_t axis = 0; axis < 3; ++axis) {
    check<ShapeError>(p.patch[axis] >= 1 && p.patch[axis] <= 64, op, ": patch is ", p.patch[axis],
                      " on axis ", axis, " of D, H, W, supported are 1 to 64");
    check<ShapeError>(p.shift[axis] >= 0 && p.shift[axis] <= kMaxExtent, op, ": shift is ", p.shift[axis],
                      " on axis ", axis, " of D, H, W, supported are 0 to 2^29");
  }
  check<ShapeError>(p.eps >= 0.0f, op, ": eps is ", p.eps, ", it must not be negative");
  element_count(std::array<int64_t, 6>{p.n, p.d, p.h, p.w, p.groups, p.channels});
  const int64_t parameters = element_count(
      std::array<int64_t, 7>{p.groups, p.out, p.copies(), p.patch[0], p.patch[1], p.patch[2], p.channels});
  check<ShapeError>(parameters < int64_t{1} << 31, op, ": the weight has ", parameters,
                    " elements, at most 2^31 - 1 fit");
}

// Without it the workspace would be sized for another type.
void check_storage(const char* op, const ShiftedPatchParams& p, ConstData x) {
  check<ShapeError>(x.dtype == p.storage, op, ": x is stored as ", name_of(x.dtype), ", the parameters say ",
                    name_of(p.storage));
}

}  // namespace

int shift_copies(ShiftSet shifts) {
  switch (shifts) {
    case ShiftSet::corner8:
    case ShiftSet::cardinal8:
      return 9;
    case ShiftSet::face6:
      return 7;
    case ShiftSet::tetra4:
    case ShiftSet::diagonal4:
    case ShiftSet::cardinal4:
      return 5;
  }
  throw ShapeError("shift_copies: unknown set of shifts");
}

std::array<int, 3> shift_direction(ShiftSet shifts, int copy) {
  check<ShapeError>(copy >= 0 && copy < shift_copies(shifts), "shift_direction: copy is ", copy,
                    ", the set has ", shift_copies(shifts));
  if (copy == 0) {
    return {0, 0, 0};
  }
  const int k = copy - 1;
  switch (shifts) {
    case ShiftSet::corner8:
      return {(k & 4) != 0 ? 1 : -1, (k & 2) != 0 ? 1 : -1, (k & 1) != 0 ? 1 : -1};
    case ShiftSet::face6: {
      std::array<int, 3> direction{0, 0, 0};
      direction[static_cast<size_t>(k / 2)] = k % 2 == 0 ? -1 : 1;
      return direction;
    }
    case ShiftSet::tetra4: {
      constexpr std::array<std::array<int, 3>, 4> kDirections{
          {{-1, -1, -1}, {1, -1, 1}, {1, 1, -1}, {-1, 1, 1}}};
      return kDirections[static_cast<size_t>(k)];
    }
    case ShiftSet::diagonal4:
      return {0, k < 2 ? -1 : 1, k % 2 == 0 ? -1 : 1};
    case ShiftSet::cardinal4: {
      const int step = k % 2 == 0 ? -1 : 1;
      return {0, k < 2 ? 0 : step, k < 2 ? step : 0};
    }
    case ShiftSet::cardinal8:
      return k < 4 ? shift_direction(ShiftSet::cardinal4, copy)
                   : shift_direction(ShiftSet::diagonal4, copy - 4);
  }
  throw ShapeError("shift_direction: unknown set of shifts");
}

size_t shifted_patch_workspace_bytes(Context& context, const ShiftedPatchParams& params,
                                     ShiftedPatchPass pass) {
  check_params("shifted_patch", params);
  VESAL_DISPATCH(context, shifted_patch_workspace_bytes(context, params, pass));
}

void shifted_patch_forward(Context& context, const ShiftedPatchParams& params, ConstData x,
                           const uint8_t* mask, ConstData gamma, ConstData beta, ConstData weight,
                           ConstData bias, ConstData missing, Data y, float* mean, float* rstd,
                           Workspace workspace) {
  check_params("shifted_patch_forward", params);
  check<ShapeError>(x && gamma && beta && weight && bias && y,
                    "shifted_patch_forward: only mask, missing, mean and rstd may be null");
  check_storage("shifted_patch_forward", params, x);
  check<ShapeError>(mask == nullptr || missing,
                    "shifted_patch_forward: a mask is given, but missing is null");
  check<ShapeError>((mean == nullptr) == (rstd == nullptr),
                    "shifted_patch_forward: mean and rstd must both be given or both be null");
  workspace.require(shifted_patch_workspace_bytes(context, params, ShiftedPatchPass::forward),
                    "shifted_patch_forward");
  VESAL_DISPATCH(context, shifted_patch_forward(context, params, x, mask, gamma, beta, weight, bias, missing,
                                                y, mean, rstd, workspace));
}

void shifted_patch_backward(Context& context, const ShiftedPatchParams& params, ConstData x,
                            const uint8_t* mask, ConstData gamma, ConstData beta, ConstData weight,
                            const float* mean, const float* rstd, ConstData dy, Data dx, Data dgamma,
                            Data dbeta, Data dweight, Data dbias, Data dmissing, GradMode mode,
                            Workspace workspace) {
  check_params("shifted_patch_backward", params);
  check<ShapeError>(x && gamma && beta && weight && mean != nullptr && rstd != nullptr && dy && dgamma &&
                        dbeta && dweight && dbias,
                    "shifted_patch_backward: only mask, dx and dmissing may be null");
  check_storage("shifted_patch_backward", params, x);
  workspace.require(shifted_patch_workspace_bytes(context, params, ShiftedPatchPass::backward),
                    "shifted_patch_backward");
  VESAL_DISPATCH(context,
                 shifted_patch_backward(context, params, x, mask, gamma, beta, weight, mean, rstd, dy, dx,
                                        dgamma, dbeta, dweight, dbias, dmissing, mode, workspace));
}

}  // namespace vesal::kernels
