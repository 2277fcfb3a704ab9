// Shifted patch tokenization (Lee, Lee, Song 2021, "Vision Transformer for Small-Size Datasets", section 3.1)
// in 3D, for patch embedding and for patch merging, as one op: shift, space-to-depth, LayerNorm, projection.
//
// The volume and `copies - 1` shifted versions of it, y_k[v] = x[v + shift * direction_k] (per axis; zero
// outside), are stacked on channels; blocks of patch_d x patch_h x patch_w voxels become feature vectors in
// the order (pd, ph, pw, copy, c), c fastest; each is normalised and projected. An extent that is no multiple
// of the patch is padded with zeros at its far end, after the stacking: a voxel that exists only by padding
// is zero in every copy.
//
// Masked per-modality form: the channels form `groups` groups (modalities), each with its own LayerNorm and
// projection
//   f_k = W_k LayerNorm_k(features of group k) + b_k,
//   y   = (groups / sum m) * sum over present k of f_k  +  sum over absent k of missing_k
// An absent group is skipped, not multiplied by zero: its voxels may be NaN.
//
// Images are volumes of depth 1 with patch {1, p, p}, shift {0, s, s} and one of the paper's own sets of
// shifts, which move within a slice: features are then in the order (p_row, p_col, copy, c) of 2D
// checkpoints.
//
// x, weight, y, dy and dx are stored as float32, bf16 or f16 (kernels/context/storage.hpp); all else, the
// parameters' gradients too, is float32.
#pragma once

#include <array>
#include <cstdint>

#include "base/size.hpp"
#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Directions (dz, dy, dx), after the unshifted copy (0, 0, 0):
//   corner8: (+-1, +-1, +-1), dz slowest, minus first;  face6: -z, +z, -y, +y, -x, +x;
//   tetra4:  (-,-,-) (+,-,+) (+,+,-) (-,+,+)
// Within the slice, dz = 0, written (dy, dx):
//   diagonal4: (-,-) (-,+) (+,-) (+,+);  cardinal4: (0,-) (0,+) (-,0) (+,0);
//   cardinal8: those of cardinal4, then those of diagonal4
// Names in files follow this order: new sets go to the end.
enum class ShiftSet { corner8, face6, tetra4, diagonal4, cardinal4, cardinal8 };

// Number of copies, the unshifted one included.
int shift_copies(ShiftSet shifts);
// (dz, dy, dx) of copy k, k = 0 the unshifted one.
std::array<int, 3> shift_direction(ShiftSet shifts, int copy);

// Triples are in the order D, H, W.
struct ShiftedPatchParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;        // input extent
  int64_t groups = 1;                 // modalities; 1 for the plain form
  int64_t channels = 1;               // per group
  int64_t out = 1;                    // features after the projection
  std::array<int, 3> patch{2, 2, 2};  // 1 to 64 per axis
  std::array<int, 3> shift{1, 1, 1};  // voxels, >= 0; patch / 2 in the paper
  ShiftSet shifts = ShiftSet::corner8;
  float eps = 1e-5f;
  // What x and the rest are stored as: with bf16 and f16 the workspace also holds dx in float32, in which the
  // copies' shares are added.
  DType storage = DType::f32;

  int copies() const { return shift_copies(shifts); }
  int64_t features() const { return int64_t{copies()} * patch[0] * patch[1] * patch[2] * channels; }
  int64_t out_d() const { return ceil_div(d, patch[0]); }
  int64_t out_h() const { return ceil_div(h, patch[1]); }
  int64_t out_w() const { return ceil_div(w, patch[2]); }
  int64_t tokens() const { return n * out_d() * out_h() * out_w(); }
};

enum class ShiftedPatchPass { forward, backward };
size_t shifted_patch_workspace_bytes(Context& context, const ShiftedPatchParams& params,
                                     ShiftedPatchPass pass);

// x [n, d, h, w, groups, channels]; mask [n, groups], 1 = present, in the context's device memory, null for
// all present (each sample has at least one present group: the caller's duty); gamma, beta [groups,
// features]; weight [groups, out, features]; bias [groups, out]; missing [groups, out], may be null when mask
// is; y [n, out_d, out_h, out_w, out]; mean, rstd [groups, tokens] for the backward pass (entries of absent
// groups are not written), or null.
void shifted_patch_forward(Context& context, const ShiftedPatchParams& params, ConstData x,
                           const uint8_t* mask, ConstData gamma, ConstData beta, ConstData weight,
                           ConstData bias, ConstData missing, Data y, float* mean, float* rstd,
                           Workspace workspace);

// dx (as x) is overwritten, zero for absent groups; null where the input needs no gradient. The parameters'
// gradients follow `mode`; dmissing may be null.
void shifted_patch_backward(Context& context, const ShiftedPatchParams& params, ConstData x,
                            const uint8_t* mask, ConstData gamma, ConstData beta, ConstData weight,
                            const float* mean, const float* rstd, ConstData dy, Data dx, Data dgamma,
                            Data dbeta, Data dweight, Data dbias, Data dmissing, GradMode mode,
                            Workspace workspace);

}  // namespace vesal::kernels
