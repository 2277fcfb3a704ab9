#include "bench/bench.hpp"
#include "kernels/rotary/rotary_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const RotaryCase& c : kRotaryBenchmarkCases) {
    const RotaryParams p = c.params;
    const Parameters parameters{{"n", p.n},         {"tokens", p.tokens},    {"heads", p.heads},
                                {"axes", p.axes},   {"grid", p.grid},        {"head_dim", p.head_dim},
                                {"theta", p.theta}, {"excluded", p.excluded}};
    const int64_t count = p.n * p.tokens * p.channels();
    add("rotary_forward", c.name, parameters, rotary_work(p), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *y = arena.zeros(count);
      return [=, &context = arena.context()] { rotary_forward(context, p, x, y); };
    });
    add("rotary_backward", c.name, parameters, rotary_work(p), [=](Arena& arena) -> Call {
      float *dy = arena.normal(count), *dx = arena.zeros(count);
      return [=, &context = arena.context()] { rotary_backward(context, p, dy, dx); };
    });
  }
}
