#include "bench/activation_name.hpp"
#include "bench/bench.hpp"
#include "kernels/linear/linear_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const LinearCase& c : kLinearBenchmarkCases) {
    const LinearParams p = c.params;
    const Parameters parameters{
        {"rows", p.rows}, {"in", p.in}, {"out", p.out}, {"activation", activation_name(p.activation)}};
    add("linear_forward", c.name, parameters, linear_work(p), [=](Arena& arena) -> Call {
      float *x = arena.normal(p.rows * p.in), *weight = arena.normal(p.in * p.out, 0.1f),
            *bias = arena.normal(p.out), *y = arena.zeros(p.rows * p.out);
      const Workspace workspace =
          arena.workspace(linear_workspace_bytes(arena.context(), p, LinearPass::forward));
      return [=, &context = arena.context()] {
        linear_forward(context, p, x, weight, bias, y, nullptr, workspace);
      };
    });
    // The gradient before the activation: that of the product alone.
    Parameters product = parameters;
    product["activation"] = "none";
    add("linear_backward_data", c.name, product, linear_work(p), [=](Arena& arena) -> Call {
      float *dy = arena.normal(p.rows * p.out), *weight = arena.normal(p.in * p.out, 0.1f),
            *dx = arena.zeros(p.rows * p.in);
      const Workspace workspace =
          arena.workspace(linear_workspace_bytes(arena.context(), p, LinearPass::backward_data));
      return [=, &context = arena.context()] { linear_backward_data(context, p, dy, weight, dx, workspace); };
    });
    add("linear_backward_weight", c.name, product, linear_work(p), [=](Arena& arena) -> Call {
      float *x = arena.normal(p.rows * p.in), *dy = arena.normal(p.rows * p.out),
            *dweight = arena.zeros(p.in * p.out), *dbias = arena.zeros(p.out);
      const Workspace workspace =
          arena.workspace(linear_workspace_bytes(arena.context(), p, LinearPass::backward_weight));
      return [=, &context = arena.context()] {
        linear_backward_weight(context, p, x, dy, dweight, dbias, GradMode::overwrite, workspace);
      };
    });
  }
}
