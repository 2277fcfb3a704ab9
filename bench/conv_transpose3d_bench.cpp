#include "bench/bench.hpp"
#include "kernels/conv_transpose3d/conv_transpose3d_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const ConvTranspose3dCase& c : kConvTranspose3dBenchmarkCases) {
    const ConvTranspose3dParams p = c.params;
    const Parameters parameters{{"n", p.n},
                                {"d", p.d},
                                {"h", p.h},
                                {"w", p.w},
                                {"c_in", p.c_in},
                                {"c_out", p.c_out},
                                {"kernel", p.kernel},
                                {"stride", p.stride},
                                {"padding", p.padding},
                                {"output_padding", p.output_padding},
                                {"groups", p.groups},
                                {"dilation", p.dilation}};
    const Work work = conv_transpose3d_work(p);
    add("conv_transpose3d_forward", c.name, parameters, work, [=](Arena& arena) -> Call {
      float *x = arena.normal(p.input_count()), *weight = arena.normal(p.weight_count(), 0.1f),
            *bias = arena.normal(p.c_out), *y = arena.zeros(p.output_count());
      const Workspace workspace =
          arena.workspace(conv_transpose3d_workspace_bytes(arena.context(), p, ConvPass::forward));
      return [=, &context = arena.context()] {
        conv_transpose3d_forward(context, p, x, weight, bias, y, workspace);
      };
    });
    add("conv_transpose3d_backward_data", c.name, parameters, work, [=](Arena& arena) -> Call {
      float *dy = arena.normal(p.output_count()), *weight = arena.normal(p.weight_count(), 0.1f),
            *dx = arena.zeros(p.input_count());
      const Workspace workspace =
          arena.workspace(conv_transpose3d_workspace_bytes(arena.context(), p, ConvPass::backward_data));
      return [=, &context = arena.context()] {
        conv_transpose3d_backward_data(context, p, dy, weight, dx, workspace);
      };
    });
    add("conv_transpose3d_backward_weight", c.name, parameters, work, [=](Arena& arena) -> Call {
      float *x = arena.normal(p.input_count()), *dy = arena.normal(p.output_count()),
            *dweight = arena.zeros(p.weight_count()), *dbias = arena.zeros(p.c_out);
      const Workspace workspace =
          arena.workspace(conv_transpose3d_workspace_bytes(arena.context(), p, ConvPass::backward_weight));
      return [=, &context = arena.context()] {
        conv_transpose3d_backward_weight(context, p, x, dy, dweight, dbias, GradMode::overwrite, workspace);
      };
    });
  }
}
