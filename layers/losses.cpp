#include "layers/losses.hpp"

#include "base/profiler.hpp"

namespace vesal::layers {
namespace {

bool records(const DeviceContext& context, const Variable& x) {
  return context.tape() != nullptr && x.requires_grad();
}

void require_shape(const Tensor& tensor, const Shape& shape, const char* what) {
  check<ShapeError>(tensor.shape() == shape, what, ": expected shape ", to_string(shape), ", found ",
                    to_string(tensor.shape()));
}

// Null where the tensor is undefined; otherwise its shape must match.
const float* optional_weights(const Tensor& weights, const Shape& shape, const char* what) {
  if (!weights.defined()) {
    return nullptr;
  }
  require_shape(weights, shape, what);
  return weights.data<float>();
}

Shape without_last_axis(Shape shape) {
  shape.pop_back();
  return shape;
}

}  // namespace

Tensor region_targets(DeviceContext& context, const Tensor& labels) {
  Shape shape = labels.shape();
  shape.push_back(3);
  Tensor targets = Tensor::empty(context, shape, DType::u8);
  kernels::region_targets(context.kernels(), labels.count(), labels.data<uint8_t>(), targets.data<uint8_t>());
  return targets;
}

Tensor edge_targets(DeviceContext& context, const Tensor& labels) {
  check<ShapeError>(labels.rank() == 4, "edge_targets: expected labels [N, D, H, W], found ",
                    to_string(labels.shape()));
  Tensor edges = Tensor::empty(context, labels.shape(), DType::u8);
  kernels::edge_targets(context.kernels(), labels.size(0), labels.size(1), labels.size(2), labels.size(3),
                        labels.data<uint8_t>(), edges.data<uint8_t>());
  return edges;
}

Tensor region_loss(DeviceContext& context, const Variable& logits, const Tensor& targets,
                   const RegionLossSettings& settings, float weight) {
  VESAL_RANGE("region_loss");
  check<ShapeError>(logits.value().count() == targets.count(), "region_loss: logits ",
                    to_string(logits.shape()), ", targets ", to_string(targets.shape()));
  const int64_t n = logits.size(0);
  const int64_t regions = logits.size(-1);
  const kernels::RegionLossParams params{.n = n,
                                         .voxels = logits.value().count() / (n * regions),
                                         .regions = regions,
                                         .dice_weight = settings.dice_weight,
                                         .bce_weight = settings.bce_weight,
                                         .batch_dice = settings.batch_dice};
  Tensor loss = Tensor::empty(context, {1});
  Tensor dice = Tensor::empty(context, {settings.batch_dice ? 1 : n, regions, 2});
  kernels::Context& k = context.kernels();
  kernels::region_loss_forward(k, params, logits.value(), targets.data<uint8_t>(), loss, dice.data<float>(),
                               context.scratch(kernels::region_loss_workspace_bytes(k, params)));
  if (context.tape() != nullptr && logits.requires_grad()) {
    context.tape()->record_loss(
        "region_loss", {logits.value(), targets, dice},
        [params, weight, slot = logits.slot()](DeviceContext& ctx, std::span<const Tensor> saved) {
          Tensor dlogits = saved[0].empty_like(ctx);
          kernels::region_loss_backward(ctx.kernels(), params, saved[0], saved[1].data<uint8_t>(),
                                        saved[2].data<float>(), weight, dlogits);
          slot->add(ctx, std::move(dlogits));
        });
  }
  return loss;
}

Tensor edge_loss(DeviceContext& context, const Variable& logits, const Tensor& targets, float weight) {
  VESAL_RANGE("edge_loss");
  check<ShapeError>(logits.value().count() == targets.count(), "edge_loss: logits ",
                    to_string(logits.shape()), ", targets ", to_string(targets.shape()));
  const kernels::EdgeLossParams params{.voxels = targets.count()};
  Tensor loss = Tensor::empty(context, {1});
  Tensor counts = Tensor::empty(context, {2});
  kernels::Context& k = context.kernels();
  kernels::edge_loss_forward(k, params, logits.value(), targets.data<uint8_t>(), loss, counts.data<float>(),
                             context.scratch(kernels::edge_loss_workspace_bytes(k, params)));
  if (context.tape() != nullptr && logits.requires_grad()) {
    context.tape()->record_loss(
        "edge_loss", {logits.value(), targets, counts},
        [params, weight, slot = logits.slot()](DeviceContext& ctx, std::span<const Tensor> saved) {
          Tensor dlogits = saved[0].empty_like(ctx);
          kernels::edge_loss_backward(ctx.kernels(), params, saved[0], saved[1].data<uint8_t>(),
                                      saved[2].data<float>(), weight, dlogits);
          slot->add(ctx, std::move(dlogits));
        });
  }
  return loss;
}

Tensor cross_entropy_loss(DeviceContext& context, const Variable& logits, const Tensor& labels,
                          const CrossEntropySettings& settings, float weight) {
  VESAL_RANGE("cross_entropy_loss");
  const int64_t classes = logits.size(-1);
  require_shape(labels, without_last_axis(logits.shape()), "cross_entropy_loss: labels");
  const float* class_weights =
      optional_weights(settings.class_weights, {classes}, "cross_entropy_loss: class weights");
  const kernels::CrossEntropyParams params{.rows = labels.count(),
                                           .classes = classes,
                                           .ignore_label = settings.ignore_label,
                                           .label_smoothing = settings.label_smoothing,
                                           .focal_gamma = settings.focal_gamma};
  Tensor loss = Tensor::empty(context, {1});
  Tensor total_weight = Tensor::empty(context, {1});
  kernels::Context& k = context.kernels();
  kernels::cross_entropy_forward(k, params, logits.value(), labels.data<uint8_t>(), class_weights, loss,
                                 total_weight.data<float>(),
                                 context.scratch(kernels::cross_entropy_workspace_bytes(k, params)));
  if (records(context, logits)) {
    context.tape()->record_loss(
        "cross_entropy_loss", {logits.value(), labels, total_weight, settings.class_weights},
        [params, weight, slot = logits.slot()](DeviceContext& ctx, std::span<const Tensor> saved) {
          Tensor dlogits = saved[0].empty_like(ctx);
          kernels::cross_entropy_backward(ctx.kernels(), params, saved[0], saved[1].data<uint8_t>(),
                                          saved[3].defined() ? saved[3].data<float>() : nullptr,
                                          saved[2].data<float>(), weight, dlogits);
          slot->add(ctx, std::move(dlogits));
        });
  }
  return loss;
}

Tensor overlap_loss(DeviceContext& context, const Variable& logits, const Tensor& targets,
                    const OverlapLossSettings& settings, float weight) {
  VESAL_RANGE("overlap_loss");
  require_shape(targets, settings.softmax ? without_last_axis(logits.shape()) : logits.shape(),
                "overlap_loss: targets");
  const int64_t n = logits.size(0);
  const int64_t channels = logits.size(-1);
  const kernels::OverlapLossParams params{.kind = settings.kind,
                                          .softmax = settings.softmax,
                                          .n = n,
                                          .voxels = logits.value().count() / (n * channels),
                                          .channels = channels,
                                          .first_channel = settings.first_channel,
                                          .ignore_label = settings.ignore_label,
                                          .smooth = settings.smooth,
                                          .batch = settings.batch};
  Tensor loss = Tensor::empty(context, {1});
  Tensor slopes = Tensor::empty(context, {params.groups(), channels, 2});
  kernels::Context& k = context.kernels();
  kernels::overlap_loss_forward(k, params, logits.value(), targets.data<uint8_t>(), loss,
                                slopes.data<float>(),
                                context.scratch(kernels::overlap_loss_workspace_bytes(k, params)));
  if (records(context, logits)) {
    context.tape()->record_loss(
        "overlap_loss", {logits.value(), targets, slopes},
        [params, weight, slot = logits.slot()](DeviceContext& ctx, std::span<const Tensor> saved) {
          Tensor dlogits = saved[0].empty_like(ctx);
          kernels::overlap_loss_backward(ctx.kernels(), params, saved[0], saved[1].data<uint8_t>(),
                                         saved[2].data<float>(), weight, dlogits);
          slot->add(ctx, std::move(dlogits));
        });
  }
  return loss;
}

Tensor distillation_loss(DeviceContext& context, const Variable& student, const Tensor& teacher,
                         float temperature, float weight) {
  VESAL_RANGE("distillation_loss");
  require_shape(teacher, student.shape(), "distillation_loss: teacher");
  const int64_t classes = student.size(-1);
  const kernels::DistillationParams params{
      .rows = teacher.count() / classes, .classes = classes, .temperature = temperature};
  Tensor loss = Tensor::empty(context, {1});
  kernels::Context& k = context.kernels();
  kernels::distillation_forward(k, params, student.value(), teacher, loss,
                                context.scratch(kernels::distillation_workspace_bytes(k, params)));
  if (records(context, student)) {
    context.tape()->record_loss(
        "distillation_loss", {student.value(), teacher},
        [params, weight, slot = student.slot()](DeviceContext& ctx, std::span<const Tensor> saved) {
          Tensor dstudent = saved[0].empty_like(ctx);
          kernels::distillation_backward(ctx.kernels(), params, saved[0], saved[1], weight, dstudent);
          slot->add(ctx, std::move(dstudent));
        });
  }
  return loss;
}

Tensor pointwise_loss(DeviceContext& context, const Variable& x, const Tensor& target,
                      const PointwiseLossSettings& settings, float weight) {
  VESAL_RANGE("pointwise_loss");
  require_shape(target, x.shape(), "pointwise_loss: target");
  const int64_t channels = x.size(-1);
  const kernels::PointwiseLossParams params{.kind = settings.kind,
                                            .rows = target.count() / channels,
                                            .channels = channels,
                                            .beta = settings.beta,
                                            .gamma = settings.gamma,
                                            .alpha = settings.alpha};
  const kernels::PointwiseWeights weights{
      .elements = optional_weights(settings.element_weights, x.shape(), "pointwise_loss: element weights"),
      .channels = optional_weights(settings.channel_weights, {channels}, "pointwise_loss: channel weights"),
      .positive =
          optional_weights(settings.positive_weights, {channels}, "pointwise_loss: positive weights")};
  Tensor loss = Tensor::empty(context, {1});
  kernels::Context& k = context.kernels();
  kernels::pointwise_loss_forward(k, params, x.value(), target, weights, loss,
                                  context.scratch(kernels::pointwise_loss_workspace_bytes(k, params)));
  if (records(context, x)) {
    // The pointers in `weights` stay valid: the tape keeps their tensors.
    context.tape()->record_loss(
        "pointwise_loss",
        {x.value(), target, settings.element_weights, settings.channel_weights, settings.positive_weights},
        [params, weights, weight, slot = x.slot()](DeviceContext& ctx, std::span<const Tensor> saved) {
          Tensor dx = saved[0].empty_like(ctx);
          kernels::pointwise_loss_backward(ctx.kernels(), params, saved[0], saved[1], weights, weight, dx);
          slot->add(ctx, std::move(dx));
        });
  }
  return loss;
}

}  // namespace vesal::layers
