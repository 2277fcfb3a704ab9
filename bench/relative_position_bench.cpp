#include "bench/bench.hpp"
#include "kernels/relative_position/relative_position_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const RelativePositionCase& c : kRelativePositionBenchmarkCases) {
    const RelativePositionParams p = c.params;
    const std::array<bool, 3> present = c.tables;
    const Parameters parameters{{"n", p.n},
                                {"heads", p.heads},
                                {"head_dim", p.head_dim},
                                {"query_grid", p.query_grid},
                                {"key_grid", p.key_grid},
                                {"tables", present}};
    const int64_t tokens = p.n * p.queries();
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      const float* q = arena.normal(tokens * p.q_stride);
      RelativePositionTables tables{};
      RelativePositionTableGradients gradients{};
      for (size_t axis = 0; axis < 3; ++axis) {
        if (present[axis]) {
          const int64_t count = p.table_rows(static_cast<int>(axis)) * p.head_dim;
          tables[axis] = arena.normal(count);
          gradients[axis] = arena.zeros(count);
        }
      }
      float* axial_bias = arena.normal(tokens * p.heads * p.axial_size());
      if (!backward) {
        return
            [=, &context = arena.context()] { relative_position_forward(context, p, q, tables, axial_bias); };
      }
      float* dq = arena.zeros(tokens * p.q_stride);
      const Workspace workspace =
          arena.workspace(relative_position_backward_workspace_bytes(arena.context(), p));
      return [=, &context = arena.context()] {
        relative_position_backward(context, p, q, tables, axial_bias, dq, GradMode::overwrite, gradients,
                                   GradMode::overwrite, workspace);
      };
    };
    add("relative_position_forward", c.name, parameters, relative_position_work(p, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("relative_position_backward", c.name, parameters, relative_position_work(p, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
}
