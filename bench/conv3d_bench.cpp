#include "bench/bench.hpp"
#include "kernels/conv3d/conv3d_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const Conv3dCase& c : kConv3dBenchmarkCases) {
    const Conv3dParams p = c.params;
    const Parameters parameters{{"n", p.n},
                                {"d", p.d},
                                {"h", p.h},
                                {"w", p.w},
                                {"c_in", p.c_in},
                                {"c_out", p.c_out},
                                {"kernel", p.kernel},
                                {"stride", p.stride},
                                {"padding", p.padding},
                                {"groups", p.groups},
                                {"dilation", p.dilation}};
    add("conv3d_forward", c.name, parameters, conv3d_work(p), [=](Arena& arena) -> Call {
      float *x = arena.normal(p.input_count()), *weight = arena.normal(p.weight_count(), 0.1f),
            *bias = arena.normal(p.c_out), *y = arena.zeros(p.output_count());
      const Workspace workspace =
          arena.workspace(conv3d_workspace_bytes(arena.context(), p, ConvPass::forward));
      return [=, &context = arena.context()] { conv3d_forward(context, p, x, weight, bias, y, workspace); };
    });
    add("conv3d_backward_data", c.name, parameters, conv3d_work(p), [=](Arena& arena) -> Call {
      float *dy = arena.normal(p.output_count()), *weight = arena.normal(p.weight_count(), 0.1f),
            *dx = arena.zeros(p.input_count());
      const Workspace workspace =
          arena.workspace(conv3d_workspace_bytes(arena.context(), p, ConvPass::backward_data));
      return [=, &context = arena.context()] { conv3d_backward_data(context, p, dy, weight, dx, workspace); };
    });
    add("conv3d_backward_weight", c.name, parameters, conv3d_work(p), [=](Arena& arena) -> Call {
      float *x = arena.normal(p.input_count()), *dy = arena.normal(p.output_count()),
            *dweight = arena.zeros(p.weight_count()), *dbias = arena.zeros(p.c_out);
      const Workspace workspace =
          arena.workspace(conv3d_workspace_bytes(arena.context(), p, ConvPass::backward_weight));
      return [=, &context = arena.context()] {
        conv3d_backward_weight(context, p, x, dy, dweight, dbias, GradMode::overwrite, workspace);
      };
    });
  }
}
