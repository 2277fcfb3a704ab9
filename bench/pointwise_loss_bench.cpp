#include "bench/bench.hpp"
#include "kernels/pointwise_loss/pointwise_loss_cases.hpp"

namespace vesal::bench {
namespace {

const char* name_of(kernels::PointwiseLoss kind) {
  using Kind = kernels::PointwiseLoss;
  switch (kind) {
    case Kind::l1:
      return "l1";
    case Kind::smooth_l1:
      return "smooth_l1";
    case Kind::l2:
      return "l2";
    case Kind::bce:
      return "bce";
  }
  return "";
}

}  // namespace

void register_benchmarks() {
  using namespace kernels;
  for (const PointwiseLossCase& c : kPointwiseLossBenchmarkCases) {
    const PointwiseLossParams p = c.params;
    const Parameters parameters{{"kind", name_of(p.kind)},
                                {"rows", p.rows},
                                {"channels", p.channels},
                                {"beta", p.beta},
                                {"gamma", p.gamma},
                                {"alpha", p.alpha},
                                {"weighted", c.element_weights},
                                {"positive", c.positive_weights}};
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      const int64_t count = p.rows * p.channels;
      const std::vector<float> halves(static_cast<size_t>(p.channels), 0.5f);
      float *x = arena.normal(count), *loss = arena.zeros(1), *dx = arena.zeros(count);
      const ConstData target =
          c.byte_targets ? ConstData(arena.labels(count, 2)) : ConstData(arena.normal(count, 2.0f));
      const PointwiseWeights weights{.elements = c.element_weights ? arena.normal(count) : nullptr,
                                     .channels = c.channel_weights ? arena.upload(halves) : nullptr,
                                     .positive = c.positive_weights ? arena.upload(halves) : nullptr};
      const Workspace workspace = arena.workspace(pointwise_loss_workspace_bytes(arena.context(), p));
      if (!backward) {
        return [=, &context = arena.context()] {
          pointwise_loss_forward(context, p, x, target, weights, loss, workspace);
        };
      }
      return [=, &context = arena.context()] {
        pointwise_loss_backward(context, p, x, target, weights, 1.0f, dx);
      };
    };
    add("pointwise_loss_forward", c.name, parameters, pointwise_loss_work(c, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("pointwise_loss_backward", c.name, parameters, pointwise_loss_work(c, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
}

}  // namespace vesal::bench
