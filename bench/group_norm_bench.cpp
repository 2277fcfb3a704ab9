#include "bench/activation_name.hpp"
#include "bench/bench.hpp"
#include "kernels/group_norm/group_norm_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const GroupNormCase& c : kGroupNormBenchmarkCases) {
    const GroupNormParams p = c.params;
    const bool affine = c.affine;
    const int64_t count = p.n * p.spatial * p.channels;
    const Parameters parameters{
        {"n", p.n},           {"spatial", p.spatial}, {"channels", p.channels},
        {"groups", p.groups}, {"affine", affine},     {"activation", activation_name(p.activation)}};
    // The forward pass, and in its arrays what the backward pass needs.
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      float *x = arena.normal(count), *gamma = affine ? arena.normal(p.channels) : nullptr,
            *beta = affine ? arena.normal(p.channels) : nullptr, *y = arena.zeros(count),
            *mean = arena.zeros(p.n * p.groups), *rstd = arena.zeros(p.n * p.groups);
      const Workspace workspace = arena.workspace(group_norm_workspace_bytes(arena.context(), p));
      const Call forward = [=, &context = arena.context()] {
        group_norm_forward(context, p, x, gamma, beta, y, mean, rstd, workspace);
      };
      if (!backward) {
        return forward;
      }
      forward();
      float *dy = arena.normal(count), *dx = arena.zeros(count),
            *dgamma = affine ? arena.zeros(p.channels) : nullptr,
            *dbeta = affine ? arena.zeros(p.channels) : nullptr;
      return [=, &context = arena.context()] {
        group_norm_backward(context, p, x, gamma, beta, mean, rstd, dy, dx, dgamma, dbeta,
                            GradMode::overwrite, workspace);
      };
    };
    add("group_norm_forward", c.name, parameters, group_norm_work(p, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("group_norm_backward", c.name, parameters, group_norm_work(p, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
}
