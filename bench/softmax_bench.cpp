#include "bench/bench.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/softmax/softmax_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const SoftmaxCase& c : kSoftmaxBenchmarkCases) {
    const int64_t rows = c.rows, channels = c.channels, count = rows * channels;
    const Parameters parameters{{"rows", rows}, {"channels", channels}};
    add("softmax_forward", c.name, parameters, softmax_work(c, false), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *y = arena.zeros(count);
      return [=, &context = arena.context()] { softmax_forward(context, rows, channels, x, y); };
    });
    add("softmax_backward", c.name, parameters, softmax_work(c, true), [=](Arena& arena) -> Call {
      float *y = arena.zeros(count), *dy = arena.normal(count), *dx = arena.zeros(count);
      softmax_forward(arena.context(), rows, channels, dy, y);
      return [=, &context = arena.context()] { softmax_backward(context, rows, channels, y, dy, dx); };
    });
  }
}
