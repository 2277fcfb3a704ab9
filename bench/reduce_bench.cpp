#include "bench/bench.hpp"
#include "kernels/reduce/reduce.hpp"
#include "kernels/reduce/reduce_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const ReduceCase& c : kReduceBenchmarkCases) {
    const int64_t n = c.n, spatial = c.spatial, channels = c.channels;
    const int64_t rows = n * spatial, count = rows * channels;
    const Parameters parameters{{"n", n}, {"spatial", spatial}, {"channels", channels}};
    const auto add_sum = [&](const char* operation, auto* reduce) {
      add(operation, c.name, parameters, reduce_work(c, 1), [=](Arena& arena) -> Call {
        float *x = arena.normal(count), *out = arena.zeros(1);
        const Workspace workspace = arena.workspace(reduce_workspace_bytes(arena.context(), count));
        return [=, &context = arena.context()] { reduce(context, count, x, out, workspace); };
      });
    };
    add_sum("sum", sum);
    add_sum("sum_squares", sum_squares);
    add_sum("max_abs", max_abs);
    add("channel_sum_forward", c.name, parameters, reduce_work(c, rows), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *out = arena.zeros(rows);
      return [=, &context = arena.context()] { channel_sum_forward(context, rows, channels, x, out); };
    });
    add("channel_sum_backward", c.name, parameters, reduce_work(c, rows), [=](Arena& arena) -> Call {
      float *dout = arena.normal(rows), *dx = arena.zeros(count);
      return [=, &context = arena.context()] { channel_sum_backward(context, rows, channels, dout, dx); };
    });
    add("sum_spatial", c.name, parameters, reduce_work(c, n * channels), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *out = arena.zeros(n * channels);
      const float factor = 1.0f / static_cast<float>(spatial);
      const Workspace workspace =
          arena.workspace(sum_spatial_workspace_bytes(arena.context(), n, spatial, channels));
      return [=, &context = arena.context()] {
        sum_spatial(context, n, spatial, channels, factor, x, out, GradMode::overwrite, workspace);
      };
    });
  }
}
