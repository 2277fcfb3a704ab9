// Contract of conv_transpose3d. On every device it is conv3d of the adjoint convolution (which goes from y to
// x) with the roles of forward and data gradient exchanged; the CPU has a faster way where taps do not
// overlap.
#include "kernels/conv_transpose3d/conv_transpose3d.hpp"

#include <algorithm>

#include "kernels/conv3d/conv3d_internal.hpp"
#include "kernels/conv_transpose3d/conv_transpose3d_cpu.hpp"

namespace vesal::kernels {
namespace {

// Output padding is what this convolution's stride leaves over at the far end.
Conv3dParams adjoint(const ConvTranspose3dParams& p) {
  return {.n = p.n,
          .d = p.out_d(),
          .h = p.out_h(),
          .w = p.out_w(),
          .c_in = p.c_out,
          .c_out = p.c_in,
          .kernel = p.kernel,
          .stride = p.stride,
          .padding = p.padding,
          .dilation = p.dilation,
          .groups = p.groups,
          .storage = p.storage};
}

int64_t output_voxels(const ConvTranspose3dParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w(); }

bool uses_patches(const Context& context, const ConvTranspose3dParams& params) {
  return params.n > 0 && context.device().type == DeviceType::cpu && cpu::has_separate_patches(params);
}

}  // namespace

void check_params(const ConvTranspose3dParams& p, const char* op) {
  const char* const axes[] = {"depth", "height", "width"};
  const int64_t extents[] = {p.d, p.h, p.w};
  const int64_t outputs[] = {p.out_d(), p.out_h(), p.out_w()};
  check<ShapeError>(p.n >= 0, op, ": batch is ", p.n, ", must be 0 or more");
  check<ShapeError>(p.c_in >= 1, op, ": c_in is ", p.c_in, ", must be at least 1");
  check<ShapeError>(p.c_out >= 1, op, ": c_out is ", p.c_out, ", must be at least 1");
  check<ShapeError>(p.groups >= 1 && p.c_in % p.groups == 0 && p.c_out % p.groups == 0, op, ": groups is ",
                    p.groups, ", must be at least 1 and divide c_in ", p.c_in, " and c_out ", p.c_out);
  check<ShapeError>(p.storage == DType::f32 || p.storage == DType::bf16 || p.storage == DType::f16, op,
                    ": storage is ", name_of(p.storage), ", expected f32, bf16 or f16");
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t reach = int64_t{p.dilation[axis]} * (p.kernel[axis] - 1) + 1;
    check<ShapeError>(extents[axis] >= 1, op, ": ", axes[axis], " is ", extents[axis],
                      ", must be at least 1");
    check<ShapeError>(p.kernel[axis] >= 1 && p.kernel[axis] <= 7, op, ": kernel along ", axes[axis], " is ",
                      p.kernel[axis], ", must be 1 to 7");
    check<ShapeError>(p.stride[axis] >= 1, op, ": stride along ", axes[axis], " is ", p.stride[axis],
                      ", must be at least 1");
    check<ShapeError>(p.dilation[axis] >= 1, op, ": dilation along ", axes[axis], " is ", p.dilation[axis],
                      ", must be at least 1");
    check<ShapeError>(p.padding[axis] >= 0 && p.padding[axis] < reach, op, ": padding along ", axes[axis],
                      " is ", p.padding[axis], ", must be 0 or more and less than the kernel's reach ",
                      reach);
    check<ShapeError>(p.output_padding[axis] >= 0 && p.output_padding[axis] < p.stride[axis], op,
                      ": output_padding along ", axes[axis], " is ", p.output_padding[axis],
                      ", must be 0 or more and less than the stride ", p.stride[axis]);
    check<ShapeError>(outputs[axis] >= 1, op, ": ", axes[axis], " ", extents[axis], " gives an empty output");
  }
}

size_t conv_transpose3d_workspace_bytes(Context& context, const ConvTranspose3dParams& params,
                                        ConvPass pass) {
  check_params(params, "conv_transpose3d_workspace_bytes");
  size_t bytes = 0;
  if (uses_patches(context, params)) {
    bytes = cpu::patches_workspace_bytes(params, pass);
  } else {
    const ConvPass adjoint_pass = pass == ConvPass::forward         ? ConvPass::backward_data
                                  : pass == ConvPass::backward_data ? ConvPass::forward
                                                                    : ConvPass::backward_weight;
    bytes = conv3d_workspace_bytes(context, adjoint(params), adjoint_pass);
  }
  if (pass == ConvPass::backward_weight) {
    bytes = std::max(bytes, column_sum_workspace_bytes(context, output_voxels(params), params.c_out));
  }
  return bytes;
}

void conv_transpose3d_forward(Context& context, const ConvTranspose3dParams& params, ConstData x,
                              ConstData weight, ConstData bias, Data y, Workspace workspace) {
  const char* const op = "conv_transpose3d_forward";
  check_params(params, op);
  check<ShapeError>(params.n == 0 || (x && weight && y), op, ": x, weight or y is null");
  check_storage(params.storage, {x, weight, y}, op);
  workspace.require(conv_transpose3d_workspace_bytes(context, params, ConvPass::forward), op);
  if (uses_patches(context, params)) {
    cpu::patches_forward(params, x, weight, bias, y, workspace);
  } else {
    conv3d_adjoint(context, adjoint(params), x, weight, bias, y, workspace);
  }
}

void conv_transpose3d_backward_data(Context& context, const ConvTranspose3dParams& params, ConstData dy,
                                    ConstData weight, Data dx, Workspace workspace) {
  const char* const op = "conv_transpose3d_backward_data";
  check_params(params, op);
  check<ShapeError>(params.n == 0 || (dy && weight && dx), op, ": dy, weight or dx is null");
  check_storage(params.storage, {dy, weight, dx}, op);
  workspace.require(conv_transpose3d_workspace_bytes(context, params, ConvPass::backward_data), op);
  if (uses_patches(context, params)) {
    cpu::patches_backward_data(params, dy, weight, dx, workspace);
  } else {
    conv3d_forward(context, adjoint(params), dy, weight, nullptr, dx, workspace);
  }
}

void conv_transpose3d_backward_weight(Context& context, const ConvTranspose3dParams& params, ConstData x,
                                      ConstData dy, Data dweight, Data dbias, GradMode mode,
                                      Workspace workspace) {
  const char* const op = "conv_transpose3d_backward_weight";
  check_params(params, op);
  check<ShapeError>(dweight && (params.n == 0 || (x && dy)), op, ": x, dy or dweight is null");
  check_storage(params.storage, {x, dy}, op);
  workspace.require(conv_transpose3d_workspace_bytes(context, params, ConvPass::backward_weight), op);
  if (uses_patches(context, params)) {
    cpu::patches_backward_weight(params, x, dy, dweight, mode, workspace);
  } else {
    conv3d_backward_weight(context, adjoint(params), dy, x, dweight, nullptr, mode, workspace);
  }
  if (dbias) {
    column_sum(context, output_voxels(params), params.c_out, dy, dbias, mode, workspace);
  }
}

}  // namespace vesal::kernels
