#include "bench/bench.hpp"
#include "kernels/sobel/sobel_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const SobelCase& c : kSobelBenchmarkCases) {
    const SobelParams p = c.params;
    const int64_t voxels = p.n * p.d * p.h * p.w;
    const Parameters parameters{{"n", p.n}, {"d", p.d}, {"h", p.h}, {"w", p.w}, {"eps", p.eps}};
    add("sobel_gradient_forward", c.name, parameters, sobel_work(p, 4), [=](Arena& arena) -> Call {
      float *x = arena.normal(voxels), *gradient = arena.zeros(3 * voxels);
      return [=, &context = arena.context()] { sobel_gradient_forward(context, p, x, gradient); };
    });
    add("sobel_gradient_backward", c.name, parameters, sobel_work(p, 4), [=](Arena& arena) -> Call {
      float *dgradient = arena.normal(3 * voxels), *dx = arena.zeros(voxels);
      return [=, &context = arena.context()] { sobel_gradient_backward(context, p, dgradient, dx); };
    });
    add("sobel_magnitude_forward", c.name, parameters, sobel_work(p, 2), [=](Arena& arena) -> Call {
      float *x = arena.normal(voxels), *magnitude = arena.zeros(voxels);
      return [=, &context = arena.context()] { sobel_magnitude_forward(context, p, x, magnitude); };
    });
    add("sobel_magnitude_backward", c.name, parameters, sobel_work(p, 3), [=](Arena& arena) -> Call {
      float *x = arena.normal(voxels), *dmagnitude = arena.normal(voxels), *dx = arena.zeros(voxels);
      const Workspace workspace = arena.workspace(sobel_magnitude_workspace_bytes(arena.context(), p));
      return [=, &context = arena.context()] {
        sobel_magnitude_backward(context, p, x, dmagnitude, dx, workspace);
      };
    });
  }
  for (const EdgeGateCase& c : kEdgeGateBenchmarkCases) {
    const EdgeGateParams p = c.params;
    const int64_t count = p.voxels * p.channels;
    const Parameters parameters{{"voxels", p.voxels}, {"channels", p.channels}, {"eps", p.eps}};
    add("edge_gate_forward", c.name, parameters, edge_gate_work(p, false), [=](Arena& arena) -> Call {
      float *gradient = arena.normal(3 * p.voxels), *x = arena.normal(count), *y = arena.zeros(count);
      return [=, &context = arena.context()] { edge_gate_forward(context, p, gradient, x, y); };
    });
    add("edge_gate_backward", c.name, parameters, edge_gate_work(p, true), [=](Arena& arena) -> Call {
      float *gradient = arena.normal(3 * p.voxels), *x = arena.normal(count), *dy = arena.normal(count),
            *dgradient = arena.zeros(3 * p.voxels), *dx = arena.zeros(count);
      return
          [=, &context = arena.context()] { edge_gate_backward(context, p, gradient, x, dy, dgradient, dx); };
    });
  }
}
