#include "bench/bench.hpp"
#include "kernels/layer_norm/layer_norm.hpp"
#include "kernels/layer_norm/layer_norm_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const LayerNormCase& c : kLayerNormBenchmarkCases) {
    const LayerNormParams p{.rows = c.rows, .channels = c.channels};
    const int64_t count = p.rows * p.channels;
    const Parameters parameters{{"rows", p.rows}, {"channels", p.channels}};
    add("layer_norm_forward", c.name, parameters, layer_norm_work(c, false), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *gamma = arena.normal(p.channels), *beta = arena.normal(p.channels),
            *y = arena.zeros(count), *mean = arena.zeros(p.rows), *rstd = arena.zeros(p.rows);
      return
          [=, &context = arena.context()] { layer_norm_forward(context, p, x, gamma, beta, y, mean, rstd); };
    });
    add("layer_norm_backward", c.name, parameters, layer_norm_work(c, true), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *gamma = arena.normal(p.channels), *beta = arena.normal(p.channels),
            *y = arena.zeros(count), *mean = arena.zeros(p.rows), *rstd = arena.zeros(p.rows),
            *dy = arena.normal(count), *dx = arena.zeros(count), *dgamma = arena.zeros(p.channels),
            *dbeta = arena.zeros(p.channels);
      const Workspace workspace = arena.workspace(layer_norm_backward_workspace_bytes(arena.context(), p));
      layer_norm_forward(arena.context(), p, x, gamma, beta, y, mean, rstd);
      return [=, &context = arena.context()] {
        layer_norm_backward(context, p, x, gamma, beta, mean, rstd, dy, dx, dgamma, dbeta,
                            GradMode::overwrite, workspace);
      };
    });
  }
}
