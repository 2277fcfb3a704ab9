#include "bench/bench.hpp"
#include "kernels/resize/resize_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const ResizeCase& c : kResizeBenchmarkCases) {
    for (const Interpolation interpolation : {Interpolation::trilinear, Interpolation::nearest}) {
      ResizeParams p = c.params;
      p.interpolation = interpolation;
      const char* const mode = interpolation == Interpolation::trilinear ? "trilinear" : "nearest";
      const std::string name = std::string(mode) + "_" + c.name;
      const int64_t inputs = p.n * p.d * p.h * p.w * p.c;
      const int64_t outputs = p.n * p.out_d * p.out_h * p.out_w * p.c;
      const Parameters parameters{{"n", p.n},         {"d", p.d},         {"h", p.h},
                                  {"w", p.w},         {"c", p.c},         {"out_d", p.out_d},
                                  {"out_h", p.out_h}, {"out_w", p.out_w}, {"mode", mode}};
      add("resize_forward", name, parameters, resize_work(p), [=](Arena& arena) -> Call {
        float *x = arena.normal(inputs), *y = arena.zeros(outputs);
        return [=, &context = arena.context()] { resize_forward(context, p, x, y); };
      });
      add("resize_backward", name, parameters, resize_work(p), [=](Arena& arena) -> Call {
        float *dy = arena.normal(outputs), *dx = arena.zeros(inputs);
        return [=, &context = arena.context()] { resize_backward(context, p, dy, dx); };
      });
    }
  }
}
