// What conv_transpose3d needs of conv3d beyond its contract. Not for layers.
#pragma once

#include <initializer_list>

#include "kernels/conv3d/conv3d.hpp"

namespace vesal::kernels {

// conv3d_backward_data with a bias [c_in] (or null) added to every voxel of dx: a transposed convolution's
// forward pass. The workspace is that of ConvPass::backward_data.
void conv3d_adjoint(Context& context, const Conv3dParams& params, ConstData dy, ConstData weight,
                    ConstData bias, Data dx, Workspace workspace);

// Throws ShapeError where the tensors are not all stored as `storage`; null ones do not count.
void check_storage(DType storage, std::initializer_list<ConstData> tensors, const char* op);

// sums[columns] (+)= the sum over rows of x[rows, columns], x stored, sums float32.
size_t column_sum_workspace_bytes(Context& context, int64_t rows, int64_t columns);
void column_sum(Context& context, int64_t rows, int64_t columns, ConstData x, Data sums, GradMode mode,
                Workspace workspace);

}  // namespace vesal::kernels
