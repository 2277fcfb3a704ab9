#include "bench/bench.hpp"
#include "kernels/losses/losses_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const EdgeTargetsCase& c : kEdgeTargetsBenchmarkCases) {
    const int64_t voxels = c.n * c.d * c.h * c.w;
    const Parameters parameters{{"n", c.n}, {"d", c.d}, {"h", c.h}, {"w", c.w}};
    add("region_targets", c.name, parameters, region_targets_work(c), [=](Arena& arena) -> Call {
      const uint8_t* labels = arena.labels(voxels, 4);
      auto* targets = arena.array<uint8_t>(voxels * 3);
      return [=, &context = arena.context()] { region_targets(context, voxels, labels, targets); };
    });
    add("edge_targets", c.name, parameters, edge_targets_work(c), [=](Arena& arena) -> Call {
      const uint8_t* labels = arena.labels(voxels, 4);
      auto* edges = arena.array<uint8_t>(voxels);
      return [=, &context = arena.context()] { edge_targets(context, c.n, c.d, c.h, c.w, labels, edges); };
    });
  }
  for (const RegionLossCase& c : kRegionLossBenchmarkCases) {
    const RegionLossParams p = c.params;
    const Parameters parameters{{"n", p.n},
                                {"voxels", p.voxels},
                                {"regions", p.regions},
                                {"dice_weight", p.dice_weight},
                                {"bce_weight", p.bce_weight},
                                {"smooth", p.smooth},
                                {"batch", p.batch_dice}};
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      const int64_t count = p.n * p.voxels * p.regions;
      float *logits = arena.normal(count), *loss = arena.zeros(1), *dice = arena.zeros(p.n * p.regions * 2),
            *dlogits = arena.zeros(count);
      const uint8_t* targets = arena.labels(count, 2);
      const Workspace workspace = arena.workspace(region_loss_workspace_bytes(arena.context(), p));
      const Call forward = [=, &context = arena.context()] {
        region_loss_forward(context, p, logits, targets, loss, dice, workspace);
      };
      if (!backward) {
        return forward;
      }
      forward();
      return [=, &context = arena.context()] {
        region_loss_backward(context, p, logits, targets, dice, 1.0f, dlogits);
      };
    };
    add("region_loss_forward", c.name, parameters, region_loss_work(p, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("region_loss_backward", c.name, parameters, region_loss_work(p, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
  for (const EdgeLossCase& c : kEdgeLossBenchmarkCases) {
    const EdgeLossParams p = c.params;
    const Parameters parameters{{"voxels", p.voxels}, {"negative_factor", p.negative_factor}};
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      float *logits = arena.normal(p.voxels), *loss = arena.zeros(1), *counts = arena.zeros(2),
            *dlogits = arena.zeros(p.voxels);
      const uint8_t* targets = arena.labels(p.voxels, 3);
      const Workspace workspace = arena.workspace(edge_loss_workspace_bytes(arena.context(), p));
      const Call forward = [=, &context = arena.context()] {
        edge_loss_forward(context, p, logits, targets, loss, counts, workspace);
      };
      if (!backward) {
        return forward;
      }
      forward();
      return [=, &context = arena.context()] {
        edge_loss_backward(context, p, logits, targets, counts, 1.0f, dlogits);
      };
    };
    add("edge_loss_forward", c.name, parameters, edge_loss_work(p, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("edge_loss_backward", c.name, parameters, edge_loss_work(p, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
}
