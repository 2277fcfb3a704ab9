// Argument checks of attention and the way to the device's implementation.
#include "kernels/attention/attention.hpp"

#include <algorithm>

#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(attention_forward_workspace_bytes)
VESAL_DECLARE_BACKENDS(attention_forward)
VESAL_DECLARE_BACKENDS(attention_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(attention_backward)

namespace {

// Checks the sizes and fills in the strides that were left out.
AttentionParams checked(const char* op, AttentionParams p) {
  check<ShapeError>(p.n >= 1 && p.queries >= 1 && p.keys >= 1 && p.heads >= 1, op, ": ", p.n, " samples, ",
                    p.queries, " queries, ", p.keys, " keys, ", p.heads, " heads; each must be at least 1");
  check<ShapeError>(p.head_dim >= 1 && p.head_dim <= 256, op, ": head_dim is ", p.head_dim,
                    ", supported are 1 to 256");
  constexpr int64_t kMaxTokens = int64_t{1} << 30;
  check<ShapeError>(p.queries <= kMaxTokens && p.keys <= kMaxTokens && p.heads <= 65535, op,
                    ": more than 2^30 queries or keys, or more than 65535 heads");
  for (int64_t* stride : {&p.q_stride, &p.k_stride, &p.v_stride}) {
    *stride = *stride == 0 ? p.channels() : *stride;
    check<ShapeError>(*stride >= p.channels(), op, ": a token stride of ", *stride, " for ", p.channels(),
                      " channels");
    checked_mul(checked_mul(p.n, std::max(p.queries, p.keys)), *stride);
  }
  return p;
}

void check_inputs(const char* op, const AttentionParams& p, const AttentionInputs& inputs) {
  check<ShapeError>(inputs.q && inputs.k && inputs.v, op, ": q, k and v must not be null");
  if (inputs.bias) {
    check<ShapeError>(
        (p.bias_samples == 1 || p.bias_samples == p.n) && (p.bias_heads == 1 || p.bias_heads == p.heads), op,
        ": a bias for ", p.bias_samples, " samples and ", p.bias_heads, " heads, there are ", p.n, " and ",
        p.heads);
    const std::array<int64_t, 4> shape{p.bias_samples, p.bias_heads, p.queries, p.keys};
    element_count(shape);
  }
  if (inputs.axial_bias) {
    const auto& [d, h, w] = p.key_grid;
    check<ShapeError>(d >= 1 && h >= 1 && w >= 1 && int64_t{d} * h <= p.keys && int64_t{d} * h * w == p.keys,
                      op, ": a key grid of ", d, " x ", h, " x ", w, " for ", p.keys, " keys");
    const std::array<int64_t, 4> shape{p.n, p.queries, p.heads, p.axial_size()};
    element_count(shape);
  }
}

}  // namespace

size_t attention_forward_workspace_bytes(Context& context, const AttentionParams& params) {
  const AttentionParams p = checked("attention_forward", params);
  VESAL_DISPATCH(context, attention_forward_workspace_bytes(context, p));
}

void attention_forward(Context& context, const AttentionParams& params, const AttentionInputs& inputs,
                       Data out, float* lse, Workspace workspace) {
  const AttentionParams p = checked("attention_forward", params);
  check_inputs("attention_forward", p, inputs);
  check<ShapeError>(bool(out), "attention_forward: out must not be null");
  workspace.require(attention_forward_workspace_bytes(context, p), "attention_forward");
  VESAL_DISPATCH(context, attention_forward(context, p, inputs, out, lse, workspace));
}

size_t attention_backward_workspace_bytes(Context& context, const AttentionParams& params) {
  const AttentionParams p = checked("attention_backward", params);
  VESAL_DISPATCH(context, attention_backward_workspace_bytes(context, p));
}

void attention_backward(Context& context, const AttentionParams& params, const AttentionInputs& inputs,
                        ConstData out, const float* lse, ConstData dout, const AttentionGradients& gradients,
                        Workspace workspace) {
  const AttentionParams p = checked("attention_backward", params);
  check_inputs("attention_backward", p, inputs);
  check<ShapeError>(out && lse != nullptr && dout && gradients.dq && gradients.dk && gradients.dv,
                    "attention_backward: out, lse, dout, dq, dk and dv must not be null");
  check<ShapeError>(bool(inputs.axial_bias) == bool(gradients.daxial_bias),
                    "attention_backward: axial_bias and daxial_bias must both be given or both be null");
  workspace.require(attention_backward_workspace_bytes(context, p), "attention_backward");
  VESAL_DISPATCH(context, attention_backward(context, p, inputs, out, lse, dout, gradients, workspace));
}

}  // namespace vesal::kernels
