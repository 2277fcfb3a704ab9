#include "bench/bench.hpp"
#include "kernels/shifted_patch/shifted_patch_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const ShiftedPatchCase& c : kShiftedPatchBenchmarkCases) {
    const ShiftedPatchParams p = c.params;
    std::vector<std::array<int, 3>> directions;
    for (int copy = 0; copy < p.copies(); ++copy) {
      directions.push_back(shift_direction(p.shifts, copy));
    }
    const Parameters parameters{{"n", p.n},           {"d", p.d},
                                {"h", p.h},           {"w", p.w},
                                {"groups", p.groups}, {"channels", p.channels},
                                {"out", p.out},       {"patch", p.patch},
                                {"shift", p.shift},   {"directions", directions}};
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      const int64_t volume = p.n * p.d * p.h * p.w * p.groups * p.channels;
      const int64_t affine = p.groups * p.features(), weights = affine * p.out, outputs = p.tokens() * p.out;
      float *x = arena.normal(volume), *gamma = arena.normal(affine), *beta = arena.normal(affine),
            *weight = arena.normal(weights, 0.1f), *bias = arena.normal(p.groups * p.out),
            *y = arena.zeros(outputs), *mean = arena.zeros(p.groups * p.tokens()),
            *rstd = arena.zeros(p.groups * p.tokens());
      const Workspace workspace =
          arena.workspace(shifted_patch_workspace_bytes(arena.context(), p, ShiftedPatchPass::forward));
      const Call forward = [=, &context = arena.context()] {
        shifted_patch_forward(context, p, x, nullptr, gamma, beta, weight, bias, nullptr, y, mean, rstd,
                              workspace);
      };
      if (!backward) {
        return forward;
      }
      forward();
      float *dy = arena.normal(outputs), *dx = arena.zeros(volume), *dgamma = arena.zeros(affine),
            *dbeta = arena.zeros(affine), *dweight = arena.zeros(weights),
            *dbias = arena.zeros(p.groups * p.out);
      const Workspace backward_workspace =
          arena.workspace(shifted_patch_workspace_bytes(arena.context(), p, ShiftedPatchPass::backward));
      return [=, &context = arena.context()] {
        shifted_patch_backward(context, p, x, nullptr, gamma, beta, weight, mean, rstd, dy, dx, dgamma, dbeta,
                               dweight, dbias, nullptr, GradMode::overwrite, backward_workspace);
      };
    };
    add("shifted_patch_forward", c.name, parameters, shifted_patch_work(p, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("shifted_patch_backward", c.name, parameters, shifted_patch_work(p, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
}
