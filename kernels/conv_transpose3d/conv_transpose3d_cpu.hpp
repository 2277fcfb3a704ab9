// Transposed convolution on the CPU where the taps of neighbouring voxels do not overlap (kernel = stride, no
// padding, one group): a matrix product from each input voxel to its own patch of the output.
#pragma once

#include "kernels/conv_transpose3d/conv_transpose3d.hpp"

namespace vesal::kernels::cpu {

bool has_separate_patches(const ConvTranspose3dParams& params);

size_t patches_workspace_bytes(const ConvTranspose3dParams& params, ConvPass pass);
void patches_forward(const ConvTranspose3dParams& params, ConstData x, ConstData weight, ConstData bias,
                     Data y, Workspace workspace);
void patches_backward_data(const ConvTranspose3dParams& params, ConstData dy, ConstData weight, Data dx,
                           Workspace workspace);
// Without the bias gradient.
void patches_backward_weight(const ConvTranspose3dParams& params, ConstData x, ConstData dy, Data dweight,
                             GradMode mode, Workspace workspace);

}  // namespace vesal::kernels::cpu
