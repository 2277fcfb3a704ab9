#include "bench/bench.hpp"
#include "kernels/overlap_loss/overlap_loss_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const OverlapLossCase& c : kOverlapLossBenchmarkCases) {
    const OverlapLossParams p = c.params;
    const Parameters parameters{{"n", p.n},
                                {"voxels", p.voxels},
                                {"channels", p.channels},
                                {"iou", p.kind == Overlap::iou},
                                {"softmax", p.softmax},
                                {"first_channel", p.first_channel},
                                {"batch", p.batch},
                                {"smooth", p.smooth}};
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      const int64_t count = p.n * p.voxels * p.channels;
      float *logits = arena.normal(count), *loss = arena.zeros(1),
            *slopes = arena.zeros(p.groups() * p.channels * 2), *dlogits = arena.zeros(count);
      uint8_t* targets =
          p.softmax ? arena.labels(p.n * p.voxels, static_cast<int>(p.channels)) : arena.labels(count, 2);
      const Workspace workspace = arena.workspace(overlap_loss_workspace_bytes(arena.context(), p));
      const Call forward = [=, &context = arena.context()] {
        overlap_loss_forward(context, p, logits, targets, loss, slopes, workspace);
      };
      if (!backward) {
        return forward;
      }
      forward();
      return [=, &context = arena.context()] {
        overlap_loss_backward(context, p, logits, targets, slopes, 1.0f, dlogits);
      };
    };
    add("overlap_loss_forward", c.name, parameters, overlap_loss_work(p, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("overlap_loss_backward", c.name, parameters, overlap_loss_work(p, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
}
