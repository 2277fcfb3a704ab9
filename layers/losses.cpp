#include "layers/losses.hpp"

#include "base/profiler.hpp"

namespace vesal::layers {

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
  check<ShapeError>(logits.value().count() == targets.count(), "region_loss: logits ", to_string(logits.shape()),
                    ", targets ", to_string(targets.shape()));
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
  check<ShapeError>(logits.value().count() == targets.count(), "edge_loss: logits ", to_string(logits.shape()),
                    ", targets ", to_string(targets.shape()));
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

}  // namespace vesal::layers
