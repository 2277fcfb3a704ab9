#include "bench/bench.hpp"
#include "kernels/cross_entropy/cross_entropy_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const CrossEntropyCase& c : kCrossEntropyBenchmarkCases) {
    const CrossEntropyParams p = c.params;
    const bool weighted = c.class_weights;
    const Parameters parameters{{"rows", p.rows},
                                {"classes", p.classes},
                                {"weighted", weighted},
                                {"ignore_label", p.ignore_label},
                                {"label_smoothing", p.label_smoothing}};
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      const int64_t count = p.rows * p.classes;
      float *logits = arena.normal(count), *loss = arena.zeros(1), *total_weight = arena.zeros(1),
            *dlogits = arena.zeros(count),
            *weights =
                weighted ? arena.upload(std::vector<float>(static_cast<size_t>(p.classes), 0.5f)) : nullptr;
      uint8_t* labels = arena.labels(p.rows, static_cast<int>(p.classes));
      const Workspace workspace = arena.workspace(cross_entropy_workspace_bytes(arena.context(), p));
      const Call forward = [=, &context = arena.context()] {
        cross_entropy_forward(context, p, logits, labels, weights, loss, total_weight, workspace);
      };
      if (!backward) {
        return forward;
      }
      forward();
      return [=, &context = arena.context()] {
        cross_entropy_backward(context, p, logits, labels, weights, total_weight, 1.0f, dlogits);
      };
    };
    add("cross_entropy_forward", c.name, parameters, cross_entropy_work(p, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("cross_entropy_backward", c.name, parameters, cross_entropy_work(p, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
  for (const DistillationCase& c : kDistillationBenchmarkCases) {
    const DistillationParams p = c.params;
    const int64_t count = p.rows * p.classes;
    const Parameters parameters{{"rows", p.rows}, {"classes", p.classes}, {"temperature", p.temperature}};
    add("distillation_forward", c.name, parameters, distillation_work(p, false), [=](Arena& arena) -> Call {
      float *student = arena.normal(count), *teacher = arena.normal(count, 2.0f), *loss = arena.zeros(1);
      const Workspace workspace = arena.workspace(distillation_workspace_bytes(arena.context(), p));
      return [=, &context = arena.context()] {
        distillation_forward(context, p, student, teacher, loss, workspace);
      };
    });
    add("distillation_backward", c.name, parameters, distillation_work(p, true), [=](Arena& arena) -> Call {
      float *student = arena.normal(count), *teacher = arena.normal(count, 2.0f),
            *dstudent = arena.zeros(count);
      return [=, &context = arena.context()] {
        distillation_backward(context, p, student, teacher, 1.0f, dstudent);
      };
    });
  }
}
