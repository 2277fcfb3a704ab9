#include "layers/ops.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/profiler.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/batch_norm/batch_norm.hpp"
#include "kernels/conv_transpose3d/conv_transpose3d.hpp"
#include "kernels/group_norm/group_norm.hpp"
#include "kernels/instance_norm/instance_norm.hpp"
#include "kernels/layer_norm/layer_norm.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/rearrange/rearrange.hpp"
#include "kernels/reduce/reduce.hpp"
#include "kernels/relative_position/relative_position.hpp"
#include "kernels/rotary/rotary.hpp"
#include "kernels/sobel/sobel.hpp"
#include "runtime/device_api.hpp"

namespace vesal::layers {
namespace {

using kernels::GradMode;
using Slot = std::shared_ptr<GradientSlot>;
using Saved = std::span<const Tensor>;

// Whether an op must record itself: there is a tape, and something that it reads wants a gradient.
bool records(const DeviceContext& context, std::initializer_list<const Variable*> inputs,
             bool has_parameters = false) {
  return context.tape() != nullptr &&
         (has_parameters || std::any_of(inputs.begin(), inputs.end(),
                                        [](const Variable* input) { return input->requires_grad(); }));
}

struct Extent5 {
  int64_t n, d, h, w, c;
};

Extent5 extent5(const Variable& x, const char* op) {
  check<ShapeError>(x.value().rank() == 5, op, ": expected [N, D, H, W, C], found ", to_string(x.shape()));
  return {x.size(0), x.size(1), x.size(2), x.size(3), x.size(4)};
}

void require_shape(const Tensor& tensor, const Shape& shape, const char* what) {
  check<ShapeError>(tensor.shape() == shape, what, ": expected shape ", to_string(shape), ", found ",
                    to_string(tensor.shape()));
}

// Tensors whose memory is copied as it is must also share their storage type.
void require_like(const Tensor& tensor, const Shape& shape, DType dtype, const char* what) {
  require_shape(tensor, shape, what);
  check<ShapeError>(tensor.dtype() == dtype, what, ": tensors are stored as ", name_of(dtype), " and ",
                    name_of(tensor.dtype()), ", expected one type");
}

// Uninitialised, stored like `like`.
Tensor empty_stored_like(DeviceContext& context, const Tensor& like, Shape shape) {
  return Tensor::empty(context, std::move(shape), like.dtype());
}

ConstData value_of(const Parameter* parameter) {
  return parameter ? ConstData(parameter->value) : ConstData();
}

// One GradMode for a backward function that writes several parameters. Where some have a gradient already and
// others do not (a bias that also feeds padding tokens), the latter start from zero and all accumulate.
GradMode shared_mode(DeviceContext& context, std::initializer_list<Parameter*> parameters) {
  const bool any_written = std::any_of(parameters.begin(), parameters.end(), [](const Parameter* p) {
    return p != nullptr && p->gradient_written;
  });
  for (Parameter* parameter : parameters) {
    if (parameter != nullptr && parameter->next_mode() == GradMode::overwrite && any_written) {
      kernels::fill(context.kernels(), parameter->gradient.count(), 0.0f, parameter->gradient);
    }
  }
  return any_written ? GradMode::accumulate : GradMode::overwrite;
}

Data gradient_of(Parameter* parameter) { return parameter ? Data(parameter->gradient) : Data(); }

kernels::RegionIndex index_of(const Regions& regions) {
  return {regions.offsets.data<int32_t>(), regions.voxels.data<int32_t>()};
}

}  // namespace

Variable conv3d(DeviceContext& context, const Variable& x, Parameter* weight, Parameter* bias,
                const ConvGeometry& geometry) {
  VESAL_RANGE("conv3d");
  const Extent5 e = extent5(x, "conv3d");
  kernels::Conv3dParams params{e.n,
                               e.d,
                               e.h,
                               e.w,
                               e.c,
                               weight->value.size(0),
                               geometry.kernel,
                               geometry.stride,
                               geometry.padding,
                               geometry.dilation,
                               geometry.groups};
  params.storage = x.value().dtype();
  kernels::check_params(params, "conv3d");
  require_shape(weight->value,
                {params.c_out, geometry.kernel[0], geometry.kernel[1], geometry.kernel[2], params.group_in()},
                "conv3d: weight");
  Tensor y = empty_stored_like(context, x.value(),
                               {e.n, params.out_d(), params.out_h(), params.out_w(), params.c_out});
  kernels::Context& k = context.kernels();
  kernels::conv3d_forward(
      k, params, x.value(), weight->stored(context, y.dtype()), value_of(bias), y,
      context.scratch(kernels::conv3d_workspace_bytes(k, params, kernels::ConvPass::forward)));
  if (!records(context, {&x}, true)) {
    return y;
  }
  return context.tape()->record(
      "conv3d", y, {x.value()},
      [params, weight, bias, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        if (weight->trainable || bias != nullptr) {
          kernels::conv3d_backward_weight(
              kc, params, saved[0], dy, weight->gradient, gradient_of(bias), shared_mode(ctx, {weight, bias}),
              ctx.scratch(kernels::conv3d_workspace_bytes(kc, params, kernels::ConvPass::backward_weight)));
        }
        if (slot) {
          Tensor dx = saved[0].empty_like(ctx);
          kernels::conv3d_backward_data(
              kc, params, dy, weight->stored(ctx, dy.dtype()), dx,
              ctx.scratch(kernels::conv3d_workspace_bytes(kc, params, kernels::ConvPass::backward_data)));
          slot->add(ctx, std::move(dx));
        }
      });
}

Variable conv_transpose3d(DeviceContext& context, const Variable& x, Parameter* weight, Parameter* bias,
                          const ConvGeometry& geometry) {
  VESAL_RANGE("conv_transpose3d");
  const Extent5 e = extent5(x, "conv_transpose3d");
  check<ShapeError>(geometry.groups >= 1, "conv_transpose3d: groups ", geometry.groups,
                    ", expected at least 1");
  kernels::ConvTranspose3dParams params{e.n,
                                        e.d,
                                        e.h,
                                        e.w,
                                        e.c,
                                        weight->value.size(4) * geometry.groups,
                                        geometry.kernel,
                                        geometry.stride,
                                        geometry.padding};
  params.storage = x.value().dtype();
  params.dilation = geometry.dilation;
  params.groups = geometry.groups;
  require_shape(weight->value,
                {e.c, geometry.kernel[0], geometry.kernel[1], geometry.kernel[2], weight->value.size(4)},
                "conv_transpose3d: weight");
  Tensor y = empty_stored_like(context, x.value(),
                               {e.n, params.out_d(), params.out_h(), params.out_w(), params.c_out});
  kernels::Context& k = context.kernels();
  kernels::conv_transpose3d_forward(
      k, params, x.value(), weight->stored(context, y.dtype()), value_of(bias), y,
      context.scratch(kernels::conv_transpose3d_workspace_bytes(k, params, kernels::ConvPass::forward)));
  if (!records(context, {&x}, true)) {
    return y;
  }
  return context.tape()->record(
      "conv_transpose3d", y, {x.value()},
      [params, weight, bias, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        kernels::conv_transpose3d_backward_weight(kc, params, saved[0], dy, weight->gradient,
                                                  gradient_of(bias), shared_mode(ctx, {weight, bias}),
                                                  ctx.scratch(kernels::conv_transpose3d_workspace_bytes(
                                                      kc, params, kernels::ConvPass::backward_weight)));
        if (slot) {
          Tensor dx = saved[0].empty_like(ctx);
          kernels::conv_transpose3d_backward_data(kc, params, dy, weight->stored(ctx, dy.dtype()), dx,
                                                  ctx.scratch(kernels::conv_transpose3d_workspace_bytes(
                                                      kc, params, kernels::ConvPass::backward_data)));
          slot->add(ctx, std::move(dx));
        }
      });
}

Variable linear(DeviceContext& context, const Variable& x, Parameter* weight, Parameter* bias,
                kernels::Activation activation) {
  VESAL_RANGE("linear");
  const int64_t in = x.size(-1);
  const int64_t out = weight->value.size(0);
  Shape weight_shape = weight->value.shape();
  while (weight_shape.size() > 2 && weight_shape.back() == 1) {
    weight_shape.pop_back();
  }
  check<ShapeError>(weight_shape == Shape{out, in}, "linear: weight: found ",
                    to_string(weight->value.shape()), ", expected ", to_string(Shape{out, in}));
  const kernels::LinearParams params{x.value().count() / in, in, out, activation};
  Shape shape = x.shape();
  shape.back() = out;
  Tensor y = empty_stored_like(context, x.value(), shape);
  const bool recording = records(context, {&x}, true);
  const bool activated = activation != kernels::Activation::none;
  Tensor pre;
  if (recording && activated) {
    pre = y.empty_like(context);
  }
  kernels::Context& k = context.kernels();
  kernels::linear_forward(
      k, params, x.value(), weight->stored(context, y.dtype()), value_of(bias), y,
      pre.defined() ? Data(pre) : Data(),
      context.scratch(kernels::linear_workspace_bytes(k, params, kernels::LinearPass::forward)));
  if (!recording) {
    return y;
  }
  return context.tape()->record(
      "linear", y, {x.value(), pre},
      [params, weight, bias, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        Tensor d = dy;
        if (params.activation != kernels::Activation::none) {
          d = dy.empty_like(ctx);
          const kernels::Unary kind =
              params.activation == kernels::Activation::gelu ? kernels::Unary::gelu : kernels::Unary::relu;
          kernels::unary_backward(kc, kind, dy.count(), saved[1], dy, d);
        }
        kernels::linear_backward_weight(
            kc, params, saved[0], d, weight->gradient, gradient_of(bias), shared_mode(ctx, {weight, bias}),
            ctx.scratch(kernels::linear_workspace_bytes(kc, params, kernels::LinearPass::backward_weight)));
        if (slot) {
          Tensor dx = saved[0].empty_like(ctx);
          kernels::linear_backward_data(
              kc, params, d, weight->stored(ctx, d.dtype()), dx,
              ctx.scratch(kernels::linear_workspace_bytes(kc, params, kernels::LinearPass::backward_data)));
          slot->add(ctx, std::move(dx));
        }
      });
}

Variable layer_norm(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta, float eps,
                    kernels::Activation activation) {
  VESAL_RANGE("layer_norm");
  const int64_t channels = x.size(-1);
  require_shape(gamma->value, {channels}, "layer_norm: gamma");
  const kernels::LayerNormParams params{x.value().count() / channels, channels, eps, activation};
  Tensor y = x.value().empty_like(context);
  Tensor mean = Tensor::empty(context, {params.rows});
  Tensor rstd = Tensor::empty(context, {params.rows});
  kernels::layer_norm_forward(context.kernels(), params, x.value(), gamma->value, beta->value, y,
                              mean.data<float>(), rstd.data<float>());
  if (!records(context, {&x}, true)) {
    return y;
  }
  return context.tape()->record(
      "layer_norm", y, {x.value(), mean, rstd},
      [params, gamma, beta, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        Tensor dx = saved[0].empty_like(ctx);
        kernels::layer_norm_backward(kc, params, saved[0], gamma->value, beta->value, saved[1].data<float>(),
                                     saved[2].data<float>(), dy, dx, gamma->gradient, beta->gradient,
                                     shared_mode(ctx, {gamma, beta}),
                                     ctx.scratch(kernels::layer_norm_backward_workspace_bytes(kc, params)));
        if (slot) {
          slot->add(ctx, std::move(dx));
        }
      });
}

Variable instance_norm(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                       kernels::Activation activation, float eps) {
  VESAL_RANGE("instance_norm");
  const int64_t n = x.size(0);
  const int64_t channels = x.size(-1);
  const kernels::InstanceNormParams params{.n = n,
                                           .spatial = x.value().count() / (n * channels),
                                           .channels = channels,
                                           .eps = eps,
                                           .activation = activation};
  Tensor y = x.value().empty_like(context);
  Tensor mean = Tensor::empty(context, {n, channels});
  Tensor rstd = Tensor::empty(context, {n, channels});
  kernels::Context& k = context.kernels();
  kernels::instance_norm_forward(k, params, x.value(), value_of(gamma), value_of(beta), y, mean.data<float>(),
                                 rstd.data<float>(),
                                 context.scratch(kernels::instance_norm_workspace_bytes(k, params)));
  if (!records(context, {&x}, gamma != nullptr)) {
    return y;
  }
  return context.tape()->record(
      "instance_norm", y, {x.value(), mean, rstd},
      [params, gamma, beta, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        Tensor dx = saved[0].empty_like(ctx);
        kernels::instance_norm_backward(
            kc, params, saved[0], value_of(gamma), value_of(beta), saved[1].data<float>(),
            saved[2].data<float>(), dy, dx, gradient_of(gamma), gradient_of(beta),
            shared_mode(ctx, {gamma, beta}), ctx.scratch(kernels::instance_norm_workspace_bytes(kc, params)));
        if (slot) {
          slot->add(ctx, std::move(dx));
        }
      });
}

Variable batch_norm(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                    const BatchNormBuffers& buffers, bool training, kernels::Activation activation, float eps,
                    float momentum) {
  VESAL_RANGE("batch_norm");
  const int64_t n = x.size(0);
  const int64_t channels = x.size(-1);
  const kernels::BatchNormParams params{.n = n,
                                        .spatial = n == 0 ? 0 : x.value().count() / (n * channels),
                                        .channels = channels,
                                        .eps = eps,
                                        .momentum = momentum,
                                        .training = training,
                                        .activation = activation};
  if (gamma != nullptr) {
    require_shape(gamma->value, {channels}, "batch_norm: gamma");
  }
  // A step counts once, also where its forward pass is run again.
  const bool moves = training && !context.recomputing();
  const auto running = [&](const Buffer* buffer) -> float* {
    if (buffer == nullptr || (training && !moves)) {
      return nullptr;
    }
    require_shape(buffer->value, {channels}, "batch_norm: running statistics");
    return buffer->value.data<float>();
  };
  Tensor y = x.value().empty_like(context);
  Tensor mean = Tensor::empty(context, {channels});
  Tensor rstd = Tensor::empty(context, {channels});
  kernels::Context& k = context.kernels();
  kernels::batch_norm_forward(k, params, x.value(), value_of(gamma), value_of(beta),
                              running(buffers.running_mean), running(buffers.running_var), y,
                              mean.data<float>(), rstd.data<float>(),
                              context.scratch(kernels::batch_norm_workspace_bytes(k, params)));
  if (moves && buffers.batches != nullptr) {
    ++buffers.batches->value;
  }
  if (!records(context, {&x}, gamma != nullptr)) {
    return y;
  }
  return context.tape()->record(
      "batch_norm", y, {x.value(), mean, rstd},
      [params, gamma, beta, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        Tensor dx = saved[0].empty_like(ctx);
        kernels::batch_norm_backward(kc, params, saved[0], value_of(gamma), value_of(beta),
                                     saved[1].data<float>(), saved[2].data<float>(), dy, dx,
                                     gradient_of(gamma), gradient_of(beta), shared_mode(ctx, {gamma, beta}),
                                     ctx.scratch(kernels::batch_norm_workspace_bytes(kc, params)));
        if (slot) {
          slot->add(ctx, std::move(dx));
        }
      });
}

Variable group_norm(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                    int64_t groups, kernels::Activation activation, float eps) {
  VESAL_RANGE("group_norm");
  const int64_t n = x.size(0);
  const int64_t channels = x.size(-1);
  const kernels::GroupNormParams params{.n = n,
                                        .spatial = n == 0 ? 1 : x.value().count() / (n * channels),
                                        .channels = channels,
                                        .groups = groups,
                                        .eps = eps,
                                        .activation = activation};
  if (gamma != nullptr) {
    require_shape(gamma->value, {channels}, "group_norm: gamma");
  }
  Tensor y = x.value().empty_like(context);
  Tensor mean = Tensor::empty(context, {n, groups});
  Tensor rstd = Tensor::empty(context, {n, groups});
  kernels::Context& k = context.kernels();
  kernels::group_norm_forward(k, params, x.value(), value_of(gamma), value_of(beta), y, mean.data<float>(),
                              rstd.data<float>(),
                              context.scratch(kernels::group_norm_workspace_bytes(k, params)));
  if (!records(context, {&x}, gamma != nullptr)) {
    return y;
  }
  return context.tape()->record(
      "group_norm", y, {x.value(), mean, rstd},
      [params, gamma, beta, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        Tensor dx = saved[0].empty_like(ctx);
        kernels::group_norm_backward(kc, params, saved[0], value_of(gamma), value_of(beta),
                                     saved[1].data<float>(), saved[2].data<float>(), dy, dx,
                                     gradient_of(gamma), gradient_of(beta), shared_mode(ctx, {gamma, beta}),
                                     ctx.scratch(kernels::group_norm_workspace_bytes(kc, params)));
        if (slot) {
          slot->add(ctx, std::move(dx));
        }
      });
}

Variable window_attention(DeviceContext& context, const Variable& qkv, Parameter* qkv_bias,
                          Parameter* bias_table, const WindowAttentionSettings& settings) {
  VESAL_RANGE("window_attention");
  const Extent5 e = extent5(qkv, "window_attention");
  const int64_t channels = e.c / 3;
  check<ShapeError>(channels * 3 == e.c && channels % settings.heads == 0, "window_attention: ", e.c,
                    " qkv channels for ", settings.heads, " heads");
  kernels::WindowAttentionParams params{.n = e.n, .d = e.d, .h = e.h, .w = e.w, .heads = settings.heads};
  params.head_dim = static_cast<int>(channels / settings.heads);
  params.window = settings.window;
  params.shift = settings.shift;
  params.padding = settings.padding;
  params.bias_window = settings.bias_window;
  params.scale = 1.0f / std::sqrt(static_cast<float>(params.head_dim));
  require_shape(bias_table->value, {params.bias_rows(), settings.heads}, "window_attention: bias table");
  Tensor out = empty_stored_like(context, qkv.value(), {e.n, e.d, e.h, e.w, channels});
  const bool recording = records(context, {&qkv}, true);
  Tensor lse;
  if (recording) {
    lse = Tensor::empty(context, {params.tokens(), settings.heads});
  }
  kernels::window_attention_forward(context.kernels(), params, qkv.value(), value_of(qkv_bias),
                                    bias_table->value, out, recording ? lse.data<float>() : nullptr);
  if (!recording) {
    return out;
  }
  return context.tape()->record(
      "window_attention", out, {qkv.value(), out, lse},
      [params, qkv_bias, bias_table, slot = qkv.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        Tensor dqkv = saved[0].empty_like(ctx);
        kernels::window_attention_backward(
            kc, params, saved[0], value_of(qkv_bias), bias_table->value, saved[1], saved[2].data<float>(), dy,
            dqkv, gradient_of(qkv_bias), bias_table->gradient, shared_mode(ctx, {qkv_bias, bias_table}),
            ctx.scratch(kernels::window_attention_backward_workspace_bytes(kc, params)));
        if (slot) {
          slot->add(ctx, std::move(dqkv));
        }
      });
}

namespace {

// A call as the kernels want it: of attention itself, and of relative positions where there are tables.
struct AttentionPlan {
  kernels::AttentionParams params;
  kernels::RelativePositionParams relative;
  kernels::RelativePositionTables tables;
  kernels::RelativePositionTableGradients table_gradients;
  bool has_tables = false;
};

AttentionPlan plan_attention(const char* op, const AttentionSettings& settings, int64_t n, int64_t queries,
                             int64_t keys, int64_t channels, int64_t stride) {
  check<ShapeError>(channels >= 1 && settings.heads >= 1 && channels % settings.heads == 0, op, ": ",
                    channels, " channels for ", settings.heads, " heads");
  AttentionPlan plan;
  kernels::AttentionParams& p = plan.params;
  p = {.n = n, .queries = queries, .keys = keys, .heads = settings.heads};
  p.head_dim = static_cast<int>(channels / settings.heads);
  p.scale = settings.scale != 0.0f ? settings.scale : 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  p.q_stride = p.k_stride = p.v_stride = stride;
  p.key_grid = settings.key_grid;
  if (settings.key_mask.defined()) {
    require_shape(settings.key_mask, {n, keys}, "attention: key mask");
  }
  if (settings.bias.defined()) {
    check<ShapeError>(
        settings.bias.rank() == 4 && settings.bias.size(2) == queries && settings.bias.size(3) == keys, op,
        ": a bias of shape ", to_string(settings.bias.shape()), " for ", queries, " queries and ", keys,
        " keys");
    p.bias_samples = settings.bias.size(0);
    p.bias_heads = settings.bias.size(1);
  }
  plan.relative = {.n = n, .heads = p.heads, .head_dim = p.head_dim, .q_stride = stride};
  plan.relative.query_grid = settings.query_grid;
  plan.relative.key_grid = settings.key_grid;
  for (size_t axis = 0; axis < 3; ++axis) {
    const Parameter* table = settings.relative_position[axis];
    if (table != nullptr) {
      require_shape(table->value, {plan.relative.table_rows(static_cast<int>(axis)), p.head_dim},
                    "attention: relative position table");
      plan.tables[axis] = table->value;
      plan.table_gradients[axis] = table->gradient;
      plan.has_tables = true;
    }
  }
  check<ShapeError>(!plan.has_tables || plan.relative.queries() == queries, op, ": a query grid of ",
                    plan.relative.queries(), " places for ", queries, " queries");
  return plan;
}

// How many tokens a sample of x [N, ..., C] has.
int64_t tokens_of(const char* op, const Variable& x) {
  const Shape shape = x.shape();
  check<ShapeError>(shape.size() >= 2, op, ": expected [N, ..., C], found ", to_string(shape));
  return std::accumulate(shape.begin() + 1, shape.end() - 1, int64_t{1}, std::multiplies<>());
}

// Where q, k and v, or their gradients, begin: in three tensors, or in one that holds all of them.
std::array<Data, 3> attention_parts(const Tensor& q, const Tensor& k, const Tensor& v, int64_t channels) {
  if (k.defined()) {
    return {q, k, v};
  }
  const auto behind = [&](int64_t elements) {
    return Data(static_cast<char*>(q.data()) + static_cast<size_t>(elements) * size_of(q.dtype()), q.dtype());
  };
  return {q, behind(channels), behind(2 * channels)};
}

kernels::AttentionInputs attention_inputs(const std::array<Data, 3>& parts, const Tensor& key_mask,
                                          const Tensor& bias, const Tensor& axial_bias) {
  kernels::AttentionInputs inputs{parts[0], parts[1], parts[2]};
  inputs.key_mask = key_mask.defined() ? key_mask.data<uint8_t>() : nullptr;
  inputs.bias = bias.defined() ? ConstData(bias) : ConstData();
  inputs.axial_bias = axial_bias.defined() ? ConstData(axial_bias) : ConstData();
  return inputs;
}

// k and v are undefined where q holds all three.
Variable attend(DeviceContext& context, const char* op, const Variable& q, const Variable& k,
                const Variable& v, const AttentionSettings& settings, const AttentionPlan& plan,
                Shape out_shape) {
  const kernels::AttentionParams& p = plan.params;
  kernels::Context& kernel_context = context.kernels();
  const auto parts = attention_parts(q.value(), k.value(), v.value(), p.channels());
  Tensor axial_bias;
  if (plan.has_tables) {
    axial_bias = Tensor::empty(context, {p.n, p.queries, p.heads, p.axial_size()});
    kernels::relative_position_forward(kernel_context, plan.relative, parts[0], plan.tables, axial_bias);
  }
  Tensor out = empty_stored_like(context, q.value(), std::move(out_shape));
  const bool recording = records(context, {&q, &k, &v}, plan.has_tables);
  Tensor lse;
  if (recording) {
    lse = Tensor::empty(context, {p.n, p.queries, p.heads});
  }
  kernels::attention_forward(kernel_context, p,
                             attention_inputs(parts, settings.key_mask, settings.bias, axial_bias), out,
                             recording ? lse.data<float>() : nullptr,
                             context.scratch(kernels::attention_forward_workspace_bytes(kernel_context, p)));
  if (!recording) {
    return out;
  }
  return context.tape()->record(
      op, out, {q.value(), k.value(), v.value(), out, lse, settings.key_mask, settings.bias, axial_bias},
      [plan, parameters = settings.relative_position,
       slots = std::array<Slot, 3>{q.slot(), k.slot(), v.slot()}](DeviceContext& ctx, const Tensor& dy,
                                                                  Saved saved) {
        kernels::Context& kc = ctx.kernels();
        const kernels::AttentionParams& params = plan.params;
        std::array<Tensor, 3> gradients;
        for (size_t i = 0; i < 3; ++i) {
          gradients[i] = saved[i].defined() ? saved[i].empty_like(ctx) : Tensor();
        }
        const Tensor daxial_bias = plan.has_tables ? saved[7].empty_like(ctx) : Tensor();
        const auto inputs = attention_parts(saved[0], saved[1], saved[2], params.channels());
        const auto outputs = attention_parts(gradients[0], gradients[1], gradients[2], params.channels());
        kernels::AttentionGradients targets{outputs[0], outputs[1], outputs[2]};
        targets.daxial_bias = plan.has_tables ? Data(daxial_bias) : Data();
        kernels::attention_backward(kc, params, attention_inputs(inputs, saved[5], saved[6], saved[7]),
                                    saved[3], saved[4].data<float>(), dy, targets,
                                    ctx.scratch(kernels::attention_backward_workspace_bytes(kc, params)));
        if (plan.has_tables) {
          kernels::relative_position_backward(
              kc, plan.relative, inputs[0], plan.tables, daxial_bias, outputs[0], GradMode::accumulate,
              plan.table_gradients, shared_mode(ctx, {parameters[0], parameters[1], parameters[2]}),
              ctx.scratch(kernels::relative_position_backward_workspace_bytes(kc, plan.relative)));
        }
        for (size_t i = 0; i < 3; ++i) {
          if (slots[i]) {
            slots[i]->add(ctx, std::move(gradients[i]));
          }
        }
      });
}

}  // namespace

Variable attention(DeviceContext& context, const Variable& q, const Variable& k, const Variable& v,
                   const AttentionSettings& settings) {
  VESAL_RANGE("attention");
  const int64_t queries = tokens_of("attention", q);
  const int64_t keys = tokens_of("attention", k);
  const int64_t n = q.size(0);
  const int64_t channels = q.size(-1);
  check<ShapeError>(k.shape() == v.shape() && k.size(0) == n && k.size(-1) == channels, "attention: queries ",
                    to_string(q.shape()), ", keys ", to_string(k.shape()), ", values ", to_string(v.shape()));
  const AttentionPlan plan = plan_attention("attention", settings, n, queries, keys, channels, channels);
  return attend(context, "attention", q, k, v, settings, plan, q.shape());
}

Variable self_attention(DeviceContext& context, const Variable& qkv, const AttentionSettings& settings) {
  VESAL_RANGE("self_attention");
  const int64_t tokens = tokens_of("self_attention", qkv);
  const int64_t channels = qkv.size(-1) / 3;
  check<ShapeError>(channels * 3 == qkv.size(-1), "self_attention: ", qkv.size(-1), " qkv channels");
  const AttentionPlan plan =
      plan_attention("self_attention", settings, qkv.size(0), tokens, tokens, channels, 3 * channels);
  Shape shape = qkv.shape();
  shape.back() = channels;
  return attend(context, "self_attention", qkv, {}, {}, settings, plan, std::move(shape));
}

Variable rotary(DeviceContext& context, const Variable& x, const RotarySettings& settings) {
  VESAL_RANGE("rotary");
  check<ShapeError>(x.value().rank() == 3 && settings.heads >= 1 && x.size(2) % settings.heads == 0,
                    "rotary: expected [N, tokens, C] for ", settings.heads, " heads, found ",
                    to_string(x.shape()));
  kernels::RotaryParams params{.n = x.size(0), .tokens = x.size(1), .heads = settings.heads};
  params.head_dim = static_cast<int>(x.size(2) / settings.heads);
  params.axes = settings.axes;
  params.grid = settings.grid;
  params.excluded = settings.excluded;
  params.theta = settings.theta;
  Tensor y = x.value().empty_like(context);
  kernels::rotary_forward(context.kernels(), params, x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record("rotary", y, {},
                                [params, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
                                  Tensor dx = dy.empty_like(ctx);
                                  kernels::rotary_backward(ctx.kernels(), params, dy, dx);
                                  slot->add(ctx, std::move(dx));
                                });
}

Variable shifted_patch(DeviceContext& context, const Variable& x, const Tensor& mask,
                       const ShiftedPatchParameters& parameters, int64_t groups, kernels::ShiftSet shifts,
                       std::array<int, 3> patch, std::array<int, 3> shift) {
  VESAL_RANGE("shifted_patch");
  const Extent5 e = extent5(x, "shifted_patch");
  kernels::ShiftedPatchParams params{.n = e.n, .d = e.d, .h = e.h, .w = e.w, .groups = groups};
  params.channels = e.c / groups;
  params.out = parameters.weight->value.size(-2);
  params.shifts = shifts;
  params.patch = patch;
  params.shift = shift;
  params.storage = x.value().dtype();
  check<ShapeError>(params.channels * groups == e.c, "shifted_patch: ", e.c, " channels in ", groups,
                    " groups");
  Shape weight_shape{groups, params.out, params.features()};
  if (groups == 1 && parameters.weight->value.rank() == 2) {
    weight_shape.erase(weight_shape.begin());
  }
  require_shape(parameters.weight->value, weight_shape, "shifted_patch: weight");
  Tensor y = empty_stored_like(context, x.value(),
                               {e.n, params.out_d(), params.out_h(), params.out_w(), params.out});
  const bool recording = records(context, {&x}, true);
  Tensor mean, rstd;
  if (recording) {
    mean = Tensor::empty(context, {groups, params.tokens()});
    rstd = Tensor::empty(context, {groups, params.tokens()});
  }
  kernels::Context& k = context.kernels();
  const auto mask_pointer = [](const Tensor& m) { return m.defined() ? m.data<uint8_t>() : nullptr; };
  kernels::shifted_patch_forward(
      k, params, x.value(), mask_pointer(mask), parameters.gamma->value, parameters.beta->value,
      parameters.weight->stored(context, y.dtype()), parameters.bias->value, value_of(parameters.missing), y,
      recording ? mean.data<float>() : nullptr, recording ? rstd.data<float>() : nullptr,
      context.scratch(kernels::shifted_patch_workspace_bytes(k, params, kernels::ShiftedPatchPass::forward)));
  if (!recording) {
    return y;
  }
  return context.tape()->record("shifted_patch", y, {x.value(), mask, mean, rstd},
                                [params, p = parameters, mask_pointer, slot = x.slot()](
                                    DeviceContext& ctx, const Tensor& dy, Saved saved) {
                                  kernels::Context& kc = ctx.kernels();
                                  Tensor dx;
                                  if (slot) {
                                    dx = saved[0].empty_like(ctx);
                                  }
                                  kernels::shifted_patch_backward(
                                      kc, params, saved[0], mask_pointer(saved[1]), p.gamma->value,
                                      p.beta->value, p.weight->stored(ctx, dy.dtype()),
                                      saved[2].data<float>(), saved[3].data<float>(), dy,
                                      slot ? Data(dx) : Data(), p.gamma->gradient, p.beta->gradient,
                                      p.weight->gradient, p.bias->gradient, gradient_of(p.missing),
                                      shared_mode(ctx, {p.gamma, p.beta, p.weight, p.bias, p.missing}),
                                      ctx.scratch(kernels::shifted_patch_workspace_bytes(
                                          kc, params, kernels::ShiftedPatchPass::backward)));
                                  if (slot) {
                                    slot->add(ctx, std::move(dx));
                                  }
                                });
}

Variable route_channels(DeviceContext& context, const Tensor& x, const Tensor& source) {
  VESAL_RANGE("route_channels");
  const int64_t n = x.size(0);
  const int64_t channels = x.size(-1);
  const int64_t out = source.size(1);
  Shape shape = x.shape();
  shape.back() = out;
  Tensor y = empty_stored_like(context, x, shape);
  kernels::route_channels(context.kernels(), n, x.count() / (n * channels), channels, out, x,
                          source.data<int32_t>(), y);
  return y;
}

namespace {

kernels::PoolParams pool_params(const Extent5& e, const PoolGeometry& geometry) {
  return {.n = e.n,
          .d = e.d,
          .h = e.h,
          .w = e.w,
          .c = e.c,
          .kernel = geometry.kernel,
          .stride = geometry.stride,
          .ceil_mode = geometry.ceil_mode,
          .padding = geometry.padding,
          .count_include_pad = geometry.count_include_pad};
}

kernels::PoolParams adaptive_params(const Extent5& e, std::array<int64_t, 3> size, const char* op) {
  for (const int64_t extent : size) {
    check<ShapeError>(extent >= 1, op, ": output extent ", extent, ", expected at least 1");
  }
  kernels::PoolParams params{.n = e.n, .d = e.d, .h = e.h, .w = e.w, .c = e.c};
  params.adaptive = size;
  return params;
}

Variable max_pool(DeviceContext& context, const Variable& x, const kernels::PoolParams& params) {
  Tensor y = empty_stored_like(context, x.value(),
                               {params.n, params.out_d(), params.out_h(), params.out_w(), params.c});
  const bool recording = records(context, {&x});
  Tensor index;
  if (recording) {
    index = Tensor::empty(context, y.shape(), params.index_type());
  }
  kernels::max_pool3d_forward(context.kernels(), params, x.value(), y, recording ? Data(index) : Data());
  if (!recording) {
    return y;
  }
  return context.tape()->record(
      "max_pool3d", y, {index},
      [params, shape = x.shape(), slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        Tensor dx = empty_stored_like(ctx, dy, shape);
        kernels::max_pool3d_backward(ctx.kernels(), params, dy, saved[0], dx);
        slot->add(ctx, std::move(dx));
      });
}

Variable avg_pool(DeviceContext& context, const Variable& x, const kernels::PoolParams& params) {
  Tensor y = empty_stored_like(context, x.value(),
                               {params.n, params.out_d(), params.out_h(), params.out_w(), params.c});
  kernels::avg_pool3d_forward(context.kernels(), params, x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "avg_pool3d", y, {},
      [params, shape = x.shape(), slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        Tensor dx = empty_stored_like(ctx, dy, shape);
        kernels::avg_pool3d_backward(ctx.kernels(), params, dy, dx);
        slot->add(ctx, std::move(dx));
      });
}

}  // namespace

Variable max_pool3d(DeviceContext& context, const Variable& x, const PoolGeometry& geometry) {
  VESAL_RANGE("max_pool3d");
  return max_pool(context, x, pool_params(extent5(x, "max_pool3d"), geometry));
}

Variable avg_pool3d(DeviceContext& context, const Variable& x, const PoolGeometry& geometry) {
  VESAL_RANGE("avg_pool3d");
  return avg_pool(context, x, pool_params(extent5(x, "avg_pool3d"), geometry));
}

Variable max_pool3d(DeviceContext& context, const Variable& x, std::array<int, 3> kernel,
                    std::array<int, 3> stride) {
  return max_pool3d(context, x, PoolGeometry{.kernel = kernel, .stride = stride});
}

Variable avg_pool3d(DeviceContext& context, const Variable& x, std::array<int, 3> kernel,
                    std::array<int, 3> stride) {
  return avg_pool3d(context, x, PoolGeometry{.kernel = kernel, .stride = stride, .ceil_mode = true});
}

Variable adaptive_max_pool3d(DeviceContext& context, const Variable& x, std::array<int64_t, 3> size) {
  VESAL_RANGE("adaptive_max_pool3d");
  return max_pool(context, x,
                  adaptive_params(extent5(x, "adaptive_max_pool3d"), size, "adaptive_max_pool3d"));
}

Variable adaptive_avg_pool3d(DeviceContext& context, const Variable& x, std::array<int64_t, 3> size) {
  VESAL_RANGE("adaptive_avg_pool3d");
  return avg_pool(context, x,
                  adaptive_params(extent5(x, "adaptive_avg_pool3d"), size, "adaptive_avg_pool3d"));
}

namespace {

// `scale` as in kernels::ResizeParams.
Variable resize_volume(DeviceContext& context, const Variable& x, std::array<int64_t, 3> size,
                       std::array<double, 3> scale, const ResizeSettings& settings) {
  const Extent5 e = extent5(x, "resize");
  const kernels::ResizeParams params{.n = e.n,
                                     .d = e.d,
                                     .h = e.h,
                                     .w = e.w,
                                     .out_d = size[0],
                                     .out_h = size[1],
                                     .out_w = size[2],
                                     .c = e.c,
                                     .interpolation = settings.interpolation,
                                     .align_corners = settings.align_corners,
                                     .scale = scale};
  Tensor y = empty_stored_like(context, x.value(), {e.n, size[0], size[1], size[2], e.c});
  kernels::resize_forward(context.kernels(), params, x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "resize", y, {},
      [params, shape = x.shape(), slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        Tensor dx = empty_stored_like(ctx, dy, shape);
        kernels::resize_backward(ctx.kernels(), params, dy, dx);
        slot->add(ctx, std::move(dx));
      });
}

}  // namespace

Variable resize(DeviceContext& context, const Variable& x, std::array<int64_t, 3> size,
                const ResizeSettings& settings) {
  VESAL_RANGE("resize");
  const Extent5 e = extent5(x, "resize");
  if (size == std::array<int64_t, 3>{e.d, e.h, e.w}) {
    return x;
  }
  return resize_volume(context, x, size, {0, 0, 0}, settings);
}

Variable resize_by(DeviceContext& context, const Variable& x, std::array<double, 3> scale,
                   const ResizeSettings& settings) {
  VESAL_RANGE("resize_by");
  const Extent5 e = extent5(x, "resize_by");
  for (const double factor : scale) {
    check<ShapeError>(factor > 0, "resize_by: scale ", factor, ", expected more than 0");
  }
  return resize_volume(context, x,
                       {kernels::resized_extent(e.d, scale[0]), kernels::resized_extent(e.h, scale[1]),
                        kernels::resized_extent(e.w, scale[2])},
                       scale, settings);
}

Variable convert(DeviceContext& context, const Variable& x, DType dtype) {
  if (x.value().dtype() == dtype) {
    return x;
  }
  VESAL_RANGE("convert");
  Tensor y = Tensor::empty(context, x.shape(), dtype);
  kernels::convert(context.kernels(), y.count(), x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record("convert", y, {},
                                [from = x.value().dtype(), shape = x.shape(), slot = x.slot()](
                                    DeviceContext& ctx, const Tensor& dy, Saved) {
                                  Tensor dx = Tensor::empty(ctx, shape, from);
                                  kernels::convert(ctx.kernels(), dx.count(), dy, dx);
                                  slot->add(ctx, std::move(dx));
                                });
}

Variable add(DeviceContext& context, const Variable& a, const Variable& b) {
  VESAL_RANGE("add");
  require_shape(b.value(), a.shape(), "add");
  Tensor y = a.value().empty_like(context);
  kernels::add(context.kernels(), y.count(), a.value(), b.value(), y);
  if (!records(context, {&a, &b})) {
    return y;
  }
  return context.tape()->record(
      "add", y, {}, [first = a.slot(), second = b.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        for (const Slot& slot : {first, second}) {
          if (slot) {
            slot->add(ctx, dy);
          }
        }
      });
}

Variable add_scaled(DeviceContext& context, const Variable& a, const Variable& b, Parameter* scale) {
  VESAL_RANGE("add_scaled");
  require_shape(b.value(), a.shape(), "add_scaled");
  const int64_t n = a.size(0);
  const int64_t inner = n == 0 ? 0 : a.value().count() / n;
  Tensor y = a.value().empty_like(context);
  kernels::scaled_add_forward(context.kernels(), n, inner, a.value(), b.value(), scale->value, ConstData(),
                              y);
  if (!records(context, {&a, &b}, true)) {
    return y;
  }
  return context.tape()->record(
      "add_scaled", y, {b.value()},
      [n, inner, scale, first = a.slot(), second = b.slot()](DeviceContext& ctx, const Tensor& dy,
                                                             Saved saved) {
        kernels::Context& kc = ctx.kernels();
        Tensor db = saved[0].empty_like(ctx);
        kernels::scaled_add_backward(kc, n, inner, saved[0], scale->value, ConstData(), dy, db,
                                     scale->gradient, scale->next_mode(),
                                     ctx.scratch(kernels::scaled_add_backward_workspace_bytes(kc, n, inner)));
        if (second) {
          second->add(ctx, std::move(db));
        }
        if (first) {
          first->add(ctx, dy);
        }
      });
}

Variable combine(DeviceContext& context, float alpha, const Variable& a, float beta, const Variable& b) {
  VESAL_RANGE("combine");
  require_shape(b.value(), a.shape(), "combine");
  Tensor y = a.value().empty_like(context);
  kernels::Context& k = context.kernels();
  kernels::scale_add(k, y.count(), beta, b.value(), 0.0f, y);
  kernels::scale_add(k, y.count(), alpha, a.value(), 1.0f, y);
  if (!records(context, {&a, &b})) {
    return y;
  }
  return context.tape()->record(
      "combine", y, {},
      [alpha, beta, first = a.slot(), second = b.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        const auto scaled = [&](float factor) {
          Tensor d = dy.empty_like(ctx);
          kernels::scale_add(ctx.kernels(), d.count(), factor, dy, 0.0f, d);
          return d;
        };
        if (first) {
          first->add(ctx, scaled(alpha));
        }
        if (second) {
          second->add(ctx, scaled(beta));
        }
      });
}

Variable relu(DeviceContext& context, const Variable& x) {
  return activate(context, x, kernels::Activation::relu);
}

Variable activate(DeviceContext& context, const Variable& x, kernels::Activation activation, float slope) {
  VESAL_RANGE("activate");
  Tensor y = x.value().empty_like(context);
  kernels::unary_forward(context.kernels(), activation, y.count(), x.value(), y, slope);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "activate", y, {x.value()},
      [activation, slope, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        Tensor dx = dy.empty_like(ctx);
        kernels::unary_backward(ctx.kernels(), activation, dx.count(), saved[0], dy, dx, slope);
        slot->add(ctx, std::move(dx));
      });
}

Variable add_sample_vector(DeviceContext& context, const Variable& x, const Variable& v) {
  VESAL_RANGE("add_sample_vector");
  const int64_t n = x.size(0);
  const int64_t channels = x.size(-1);
  const int64_t spatial = x.value().count() / (n * channels);
  require_shape(v.value(), {n, channels}, "add_sample_vector");
  Tensor y = x.value().empty_like(context);
  kernels::add_sample_vector(context.kernels(), n, spatial, channels, x.value(), v.value(), y);
  if (!records(context, {&x, &v})) {
    return y;
  }
  return context.tape()->record(
      "add_sample_vector", y, {},
      [n, spatial, channels, first = x.slot(), second = v.slot()](DeviceContext& ctx, const Tensor& dy,
                                                                  Saved) {
        if (second) {
          kernels::Context& kc = ctx.kernels();
          Tensor dv = empty_stored_like(ctx, dy, {n, channels});
          kernels::sum_spatial(kc, n, spatial, channels, 1.0f, dy, dv, GradMode::overwrite,
                               ctx.scratch(kernels::sum_spatial_workspace_bytes(kc, n, spatial, channels)));
          second->add(ctx, std::move(dv));
        }
        if (first) {
          first->add(ctx, dy);
        }
      });
}

Variable drop_path(DeviceContext& context, const Variable& x, float probability) {
  if (probability <= 0.0f) {
    return x;
  }
  VESAL_RANGE("drop_path");
  const int64_t n = x.size(0);
  const int64_t inner = x.value().count() / n;
  RandomStream random(context.seed(), context.step(), context.next_random_op());
  std::vector<float> factors(static_cast<size_t>(n));
  for (float& factor : factors) {
    factor = random.bernoulli(probability) ? 0.0f : 1.0f / (1.0f - probability);
  }
  const Tensor gate = Tensor::from_host(context, factors, {n});
  Tensor y = x.value().empty_like(context);
  kernels::gate_samples(context.kernels(), n, inner, gate, x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "drop_path", y, {gate}, [n, inner, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        Tensor dx = dy.empty_like(ctx);
        kernels::gate_samples(ctx.kernels(), n, inner, saved[0], dy, dx);
        slot->add(ctx, std::move(dx));
      });
}

Variable dropout(DeviceContext& context, const Variable& x, float probability) {
  if (probability == 0.0f) {
    return x;
  }
  VESAL_RANGE("dropout");
  const kernels::DropoutKey key{context.seed(), context.step(), context.next_random_op()};
  Tensor y = x.value().empty_like(context);
  kernels::dropout(context.kernels(), y.count(), probability, key, x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "dropout", y, {}, [probability, key, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        Tensor dx = dy.empty_like(ctx);
        kernels::dropout(ctx.kernels(), dy.count(), probability, key, dy, dx);
        slot->add(ctx, std::move(dx));
      });
}

Variable dropout_channels(DeviceContext& context, const Variable& x, float probability) {
  if (probability == 0.0f) {
    return x;
  }
  VESAL_RANGE("dropout_channels");
  const kernels::DropoutKey key{context.seed(), context.step(), context.next_random_op()};
  const int64_t n = x.size(0);
  const int64_t channels = x.size(-1);
  const int64_t spatial = n == 0 ? 0 : x.value().count() / (n * channels);
  Tensor y = x.value().empty_like(context);
  kernels::dropout_channels(context.kernels(), n, spatial, channels, probability, key, x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "dropout_channels", y, {},
      [n, spatial, channels, probability, key, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        Tensor dx = dy.empty_like(ctx);
        kernels::dropout_channels(ctx.kernels(), n, spatial, channels, probability, key, dy, dx);
        slot->add(ctx, std::move(dx));
      });
}

Variable concat_channels(DeviceContext& context, const Variable& a, const Variable& b) {
  VESAL_RANGE("concat_channels");
  const int64_t ca = a.size(-1);
  const int64_t cb = b.size(-1);
  const int64_t rows = a.value().count() / ca;
  Shape shape = a.shape();
  shape.back() = cb;
  require_shape(b.value(), shape, "concat_channels");
  shape.back() = ca + cb;
  Tensor y = empty_stored_like(context, a.value(), shape);
  kernels::Context& k = context.kernels();
  kernels::copy_channels(k, {rows, ca, 0, ca + cb, 0, ca}, a.value(), y, GradMode::overwrite);
  kernels::copy_channels(k, {rows, cb, 0, ca + cb, ca, cb}, b.value(), y, GradMode::overwrite);
  if (!records(context, {&a, &b})) {
    return y;
  }
  return context.tape()->record(
      "concat_channels", y, {},
      [rows, ca, cb, shape_a = a.shape(), shape_b = b.shape(), first = a.slot(), second = b.slot()](
          DeviceContext& ctx, const Tensor& dy, Saved) {
        const auto part = [&](const Slot& slot, const Shape& shape_of, int64_t offset, int64_t count) {
          if (slot) {
            Tensor d = empty_stored_like(ctx, dy, shape_of);
            kernels::copy_channels(ctx.kernels(), {rows, ca + cb, offset, count, 0, count}, dy, d,
                                   GradMode::overwrite);
            slot->add(ctx, std::move(d));
          }
        };
        part(first, shape_a, 0, ca);
        part(second, shape_b, ca, cb);
      });
}

namespace {

// Copies b behind a in a new tensor: samples are rows of the first axis.
Tensor stack_rows(DeviceContext& context, const Tensor& a, const Tensor& b) {
  Shape shape = a.shape();
  shape[0] += b.size(0);
  Tensor y = empty_stored_like(context, a, shape);
  const StreamHandle stream = context.stream().handle();
  device_api::copy_on_device(context.device(), stream, y.data(), a.data(), a.bytes());
  device_api::copy_on_device(context.device(), stream, y.slice(a.size(0), shape[0]).data(), b.data(),
                             b.bytes());
  return y;
}

}  // namespace

Variable concat_samples(DeviceContext& context, const Variable& a, const Variable& b) {
  VESAL_RANGE("concat_samples");
  Shape shape = a.shape();
  shape[0] = b.size(0);
  require_like(b.value(), shape, a.value().dtype(), "concat_samples");
  Tensor y = stack_rows(context, a.value(), b.value());
  if (!records(context, {&a, &b})) {
    return y;
  }
  const int64_t split = a.size(0);
  return context.tape()->record(
      "concat_samples", y, {},
      [split, first = a.slot(), second = b.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        if (first) {
          first->add(ctx, dy.slice(0, split));
        }
        if (second) {
          second->add(ctx, dy.slice(split, dy.size(0)));
        }
      });
}

Variable take_samples(DeviceContext& context, const Variable& x, int64_t begin, int64_t end) {
  Tensor y = x.value().slice(begin, end);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "take_samples", y, {},
      [begin, end, shape = x.shape(), slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        Tensor dx = Tensor::zeros(ctx, shape, dy.dtype());
        device_api::copy_on_device(ctx.device(), ctx.stream().handle(), dx.slice(begin, end).data(),
                                   dy.data(), dy.bytes());
        slot->add(ctx, std::move(dx));
      });
}

Variable gate_by_gradient(DeviceContext& context, const Variable& gradient, const Variable& x, float eps) {
  VESAL_RANGE("gate_by_gradient");
  const Extent5 e = extent5(x, "gate_by_gradient");
  require_like(gradient.value(), {e.n, e.d, e.h, e.w, 3}, x.value().dtype(), "gate_by_gradient: gradient");
  const kernels::EdgeGateParams params{.voxels = e.n * e.d * e.h * e.w, .channels = e.c, .eps = eps};
  Tensor y = x.value().empty_like(context);
  kernels::edge_gate_forward(context.kernels(), params, gradient.value(), x.value(), y);
  if (!records(context, {&gradient, &x})) {
    return y;
  }
  return context.tape()->record("gate_by_gradient", y, {gradient.value(), x.value()},
                                [params, gradient_slot = gradient.slot(), slot = x.slot()](
                                    DeviceContext& ctx, const Tensor& dy, Saved saved) {
                                  Tensor dgradient = saved[0].empty_like(ctx);
                                  Tensor dx = saved[1].empty_like(ctx);
                                  kernels::edge_gate_backward(ctx.kernels(), params, saved[0], saved[1], dy,
                                                              dgradient, dx);
                                  if (gradient_slot) {
                                    gradient_slot->add(ctx, std::move(dgradient));
                                  }
                                  if (slot) {
                                    slot->add(ctx, std::move(dx));
                                  }
                                });
}

Variable edge_gate(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                   std::array<float, 3> spacing) {
  VESAL_RANGE("edge_gate");
  const Extent5 e = extent5(x, "edge_gate");
  const int64_t voxels = e.n * e.d * e.h * e.w;
  const kernels::SobelParams sobel{.n = e.n, .d = e.d, .h = e.h, .w = e.w, .spacing = spacing};
  const bool recording = records(context, {&x}, true);
  kernels::Context& k = context.kernels();

  // All channels share one stencil, so they are summed first (spec: C + 27 operations a voxel instead of 54
  // C).
  Tensor sum = empty_stored_like(context, x.value(), {e.n, e.d, e.h, e.w, 1});
  kernels::channel_sum_forward(k, voxels, e.c, x.value(), sum);
  Tensor gradient_values = empty_stored_like(context, x.value(), {e.n, e.d, e.h, e.w, 3});
  kernels::sobel_gradient_forward(k, sobel, sum, gradient_values);
  Variable gradient = gradient_values;
  if (recording) {
    gradient = context.tape()->record(
        "sobel_gradient", gradient_values, {},
        [sobel, voxels, shape = x.shape(), slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
          if (slot) {
            Tensor dsum = empty_stored_like(ctx, dy, {voxels});
            kernels::sobel_gradient_backward(ctx.kernels(), sobel, dy, dsum);
            Tensor dx = empty_stored_like(ctx, dy, shape);
            kernels::channel_sum_backward(ctx.kernels(), voxels, shape.back(), dsum, dx);
            slot->add(ctx, std::move(dx));
          }
        });
  }
  return gate_by_gradient(context, instance_norm(context, gradient, gamma, beta), x);
}

Regions build_regions(DeviceContext& context, const Tensor& labels, int64_t regions) {
  VESAL_RANGE("build_regions");
  check<ShapeError>(labels.rank() == 4, "build_regions: expected [N, D, H, W], found ",
                    to_string(labels.shape()));
  Regions result;
  result.params = {labels.size(0), labels.size(1) * labels.size(2) * labels.size(3), regions};
  result.labels = labels;
  result.offsets = Tensor::empty(context, {labels.size(0), regions + 1}, DType::i32);
  result.voxels = Tensor::empty(context, labels.shape(), DType::i32);
  kernels::Context& k = context.kernels();
  kernels::region_index(k, result.params, labels.data<int32_t>(), index_of(result),
                        context.scratch(kernels::region_index_workspace_bytes(k, result.params)));
  return result;
}

Variable region_mean(DeviceContext& context, const Variable& x, const Regions& regions) {
  VESAL_RANGE("region_mean");
  const int64_t channels = x.size(-1);
  Shape voxels = regions.labels.shape();
  voxels.push_back(channels);
  require_shape(x.value(), voxels, "region_mean");
  Tensor y = empty_stored_like(context, x.value(), {regions.params.n, regions.params.regions, channels});
  kernels::region_mean_forward(context.kernels(), regions.params, channels, index_of(regions), x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "region_mean", y, {regions.labels, regions.offsets, regions.voxels},
      [regions, channels, voxels, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        Tensor dx = empty_stored_like(ctx, dy, voxels);
        kernels::region_mean_backward(ctx.kernels(), regions.params, channels, regions.labels.data<int32_t>(),
                                      index_of(regions), dy, dx);
        slot->add(ctx, std::move(dx));
      });
}

Variable region_gather(DeviceContext& context, const Variable& x, const Regions& regions) {
  VESAL_RANGE("region_gather");
  const int64_t channels = x.size(-1);
  const Shape nodes{regions.params.n, regions.params.regions, channels};
  require_shape(x.value(), nodes, "region_gather");
  Shape voxels = regions.labels.shape();
  voxels.push_back(channels);
  Tensor y = empty_stored_like(context, x.value(), voxels);
  kernels::region_gather_forward(context.kernels(), regions.params, channels, regions.labels.data<int32_t>(),
                                 x.value(), y);
  if (!records(context, {&x})) {
    return y;
  }
  return context.tape()->record(
      "region_gather", y, {regions.offsets, regions.voxels},
      [regions, channels, nodes, slot = x.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        Tensor dx = empty_stored_like(ctx, dy, nodes);
        kernels::region_gather_backward(ctx.kernels(), regions.params, channels, index_of(regions), dy, dx);
        slot->add(ctx, std::move(dx));
      });
}

namespace {

SparseGraph build_any_graph(DeviceContext& context, kernels::GraphParams params, const Tensor& features,
                            const int32_t* labels, const NodeSets& sets) {
  VESAL_RANGE("build_graph");
  params.branches = sets.branches;
  params.modalities = sets.modalities;
  check<ShapeError>(features.count() == params.nodes() * params.features, "build_graph: features ",
                    to_string(features.shape()), " for ", params.nodes(), " nodes in ", params.sets(),
                    " sets");
  SparseGraph result;
  result.capacity = params.edge_capacity();
  result.row_offsets = Tensor::empty(context, {params.nodes() + 1}, DType::i32);
  result.columns = Tensor::empty(context, {result.capacity}, DType::i32);
  result.types = Tensor::empty(context, {result.capacity}, DType::u8);
  result.transpose = Tensor::empty(context, {result.capacity}, DType::i32);
  result.graph = {params.nodes(),
                  result.row_offsets.data<int32_t>(),
                  result.columns.data<int32_t>(),
                  result.types.data<uint8_t>(),
                  result.transpose.data<int32_t>(),
                  params.type_count(),
                  nullptr,
                  params.nodes_per_set()};
  if (sets.available.defined()) {
    result = with_available(result, sets.available);
  }
  kernels::Context& k = context.kernels();
  kernels::graph_build(k, params, features, labels, result.graph,
                       context.scratch(kernels::graph_build_workspace_bytes(k, params)));
  return result;
}

}  // namespace

SparseGraph build_graph(DeviceContext& context, const Tensor& features, int neighbours,
                        const NodeSets& sets) {
  const int first = sets.branches * sets.modalities > 1 ? 2 : 1;
  check<ShapeError>(features.rank() == first + 4, "build_graph: expected ",
                    first == 2 ? "[N, sets, d, h, w, F]" : "[N, d, h, w, F]", ", found ",
                    to_string(features.shape()));
  return build_any_graph(context,
                         {.n = features.size(0),
                          .d = features.size(first),
                          .h = features.size(first + 1),
                          .w = features.size(first + 2),
                          .neighbours = neighbours,
                          .features = features.size(-1)},
                         features, nullptr, sets);
}

SparseGraph build_graph(DeviceContext& context, const Tensor& features, int neighbours,
                        const Regions& regions, const NodeSets& sets) {
  const Tensor& labels = regions.labels;
  return build_any_graph(context,
                         {.n = labels.size(0),
                          .d = labels.size(1),
                          .h = labels.size(2),
                          .w = labels.size(3),
                          .neighbours = neighbours,
                          .features = features.size(-1),
                          .regions = regions.params.regions},
                         features, labels.data<int32_t>(), sets);
}

SparseGraph with_available(const SparseGraph& graph, const Tensor& available) {
  check<ShapeError>(available.count() * graph.graph.nodes_per_set == graph.graph.nodes,
                    "with_available: ", to_string(available.shape()), " for ",
                    graph.graph.nodes / graph.graph.nodes_per_set, " node sets");
  SparseGraph result = graph;
  result.available = available;
  result.graph.available = available.data<uint8_t>();
  return result;
}

Variable mask_nodes(DeviceContext& context, const SparseGraph& graph, const Variable& z) {
  VESAL_RANGE("mask_nodes");
  const int64_t features = z.size(-1);
  check<ShapeError>(z.value().count() == graph.graph.nodes * features, "mask_nodes: ", to_string(z.shape()),
                    " for ", graph.graph.nodes, " nodes");
  Tensor y = z.value().empty_like(context);
  kernels::graph_mask_nodes(context.kernels(), graph.graph, features, z.value(), y);
  if (!records(context, {&z})) {
    return y;
  }
  return context.tape()->record(
      "mask_nodes", y, {}, [graph, features, slot = z.slot()](DeviceContext& ctx, const Tensor& dy, Saved) {
        Tensor dz = dy.empty_like(ctx);
        kernels::graph_mask_nodes(ctx.kernels(), graph.graph, features, dy, dz);
        slot->add(ctx, std::move(dz));
      });
}

Variable symmetric_edge_weights(DeviceContext& context, const SparseGraph& graph, Parameter* theta,
                                DType dtype) {
  VESAL_RANGE("symmetric_edge_weights");
  require_shape(theta->value, {graph.graph.type_count}, "symmetric_edge_weights: theta");
  kernels::Context& k = context.kernels();
  Tensor values = Tensor::empty(context, {graph.capacity}, dtype);
  kernels::graph_symmetric_weights_forward(
      k, graph.graph, theta->value, values,
      context.scratch(kernels::graph_symmetric_weights_workspace_bytes(k, graph.graph)));
  if (!records(context, {}, true)) {
    return values;
  }
  return context.tape()->record(
      "symmetric_edge_weights", values,
      {values, graph.row_offsets, graph.columns, graph.types, graph.transpose},
      [graph, theta](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        kernels::graph_symmetric_weights_backward(
            kc, graph.graph, theta->value, saved[0], dy, theta->gradient, theta->next_mode(),
            ctx.scratch(kernels::graph_symmetric_weights_workspace_bytes(kc, graph.graph)));
      });
}

Variable attention_edge_weights(DeviceContext& context, const SparseGraph& graph, const Variable& z,
                                Parameter* u, Parameter* v, Parameter* theta) {
  VESAL_RANGE("attention_edge_weights");
  require_shape(theta->value, {graph.graph.type_count}, "attention_edge_weights: theta");
  constexpr float slope = 0.2f;  // as in GAT
  const Variable a = linear(context, z, u, nullptr);
  const Variable b = linear(context, z, v, nullptr);
  kernels::Context& k = context.kernels();
  Tensor scores = empty_stored_like(context, z.value(), {graph.capacity});
  kernels::graph_attention_scores_forward(k, graph.graph, slope, a.value(), b.value(), theta->value, scores);
  Tensor values = scores.empty_like(context);
  kernels::graph_segment_softmax_forward(k, graph.graph, scores, values);
  if (!records(context, {&a, &b}, true)) {
    return values;
  }
  return context.tape()->record(
      "attention_edge_weights", values, {a.value(), b.value(), values},
      [graph, theta, first = a.slot(), second = b.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        Tensor dscores = dy.empty_like(ctx);
        kernels::graph_segment_softmax_backward(kc, graph.graph, saved[2], dy, dscores);
        Tensor da = saved[0].empty_like(ctx);
        Tensor db = saved[1].empty_like(ctx);
        kernels::graph_attention_scores_backward(
            kc, graph.graph, slope, saved[0], saved[1], theta->value, dscores, da, db, theta->gradient,
            theta->next_mode(),
            ctx.scratch(kernels::graph_attention_scores_workspace_bytes(kc, graph.graph)));
        first->add(ctx, std::move(da));
        second->add(ctx, std::move(db));
      });
}

Variable propagate(DeviceContext& context, const SparseGraph& graph, const Variable& weights,
                   const Variable& z) {
  VESAL_RANGE("propagate");
  const int64_t features = z.size(-1);
  check<ShapeError>(z.value().count() == graph.graph.nodes * features, "propagate: ", to_string(z.shape()),
                    " for ", graph.graph.nodes, " nodes");
  Tensor y = z.value().empty_like(context);
  kernels::graph_spmm(context.kernels(), graph.graph, features, weights.value(), z.value(), false, y,
                      GradMode::overwrite);
  if (!records(context, {&weights, &z})) {
    return y;
  }
  return context.tape()->record("propagate", y, {weights.value(), z.value()},
                                [graph, features, weight_slot = weights.slot(), slot = z.slot()](
                                    DeviceContext& ctx, const Tensor& dy, Saved saved) {
                                  kernels::Context& kc = ctx.kernels();
                                  if (weight_slot) {
                                    Tensor dvalues = empty_stored_like(ctx, dy, {graph.capacity});
                                    kernels::graph_sddmm(kc, graph.graph, features, dy, saved[1], dvalues);
                                    weight_slot->add(ctx, std::move(dvalues));
                                  }
                                  if (slot) {
                                    Tensor dz = saved[1].empty_like(ctx);
                                    kernels::graph_spmm(kc, graph.graph, features, saved[0], dy, true, dz,
                                                        GradMode::overwrite);
                                    slot->add(ctx, std::move(dz));
                                  }
                                });
}

}  // namespace vesal::layers
