#include "bench/bench.hpp"
#include "kernels/pooling/pooling_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const PoolCase& c : kPoolBenchmarkCases) {
    const PoolParams p = c.params;
    const int64_t inputs = p.n * p.d * p.h * p.w * p.c;
    const int64_t outputs = p.n * p.out_d() * p.out_h() * p.out_w() * p.c;
    const Parameters parameters{
        {"n", p.n}, {"d", p.d},           {"h", p.h},           {"w", p.w},
        {"c", p.c}, {"kernel", p.kernel}, {"stride", p.stride}, {"ceil_mode", p.ceil_mode}};
    add("max_pool3d_forward", c.name, parameters, pooling_work(p, true), [=](Arena& arena) -> Call {
      float *x = arena.normal(inputs), *y = arena.zeros(outputs);
      auto* index = arena.array<uint8_t>(outputs);
      return [=, &context = arena.context()] { max_pool3d_forward(context, p, x, y, index); };
    });
    add("max_pool3d_backward", c.name, parameters, pooling_work(p, true), [=](Arena& arena) -> Call {
      float *x = arena.normal(inputs), *dy = arena.normal(outputs), *y = arena.zeros(outputs),
            *dx = arena.zeros(inputs);
      auto* index = arena.array<uint8_t>(outputs);
      max_pool3d_forward(arena.context(), p, x, y, index);
      return [=, &context = arena.context()] { max_pool3d_backward(context, p, dy, index, dx); };
    });
    add("avg_pool3d_forward", c.name, parameters, pooling_work(p, false), [=](Arena& arena) -> Call {
      float *x = arena.normal(inputs), *y = arena.zeros(outputs);
      return [=, &context = arena.context()] { avg_pool3d_forward(context, p, x, y); };
    });
    add("avg_pool3d_backward", c.name, parameters, pooling_work(p, false), [=](Arena& arena) -> Call {
      float *dy = arena.normal(outputs), *dx = arena.zeros(inputs);
      return [=, &context = arena.context()] { avg_pool3d_backward(context, p, dy, dx); };
    });
  }
}
