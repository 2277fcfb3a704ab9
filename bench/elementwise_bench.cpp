#include "bench/activation_name.hpp"
#include "bench/bench.hpp"
#include "kernels/elementwise/elementwise.hpp"
#include "kernels/elementwise/elementwise_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const ElementwiseCase& c : kElementwiseBenchmarkCases) {
    const int64_t n = c.n, spatial = c.spatial, channels = c.channels, inner = c.inner(), count = c.count();
    const Parameters parameters{{"n", n}, {"spatial", spatial}, {"channels", channels}};
    for (const Activation kind :
         {Activation::relu, Activation::leaky_relu, Activation::gelu, Activation::gelu_tanh, Activation::silu,
          Activation::hardswish, Activation::elu, Activation::sigmoid}) {
      Parameters with_kind = parameters;
      with_kind["activation"] = activation_name(kind);
      const std::string name = concat(activation_name(kind), "_", c.name);
      add("unary_forward", name, with_kind, elementwise_work(c, 2), [=](Arena& arena) -> Call {
        float *x = arena.normal(count), *y = arena.zeros(count);
        return [=, &context = arena.context()] { unary_forward(context, kind, count, x, y); };
      });
      add("unary_backward", name, with_kind, elementwise_work(c, 3), [=](Arena& arena) -> Call {
        float *x = arena.normal(count), *dy = arena.normal(count), *dx = arena.zeros(count);
        return [=, &context = arena.context()] { unary_backward(context, kind, count, x, dy, dx); };
      });
    }
    add("fill", c.name, parameters, elementwise_work(c, 1), [=](Arena& arena) -> Call {
      float* y = arena.zeros(count);
      return [=, &context = arena.context()] { fill(context, count, 1.0f, y); };
    });
    add("add", c.name, parameters, elementwise_work(c, 3), [=](Arena& arena) -> Call {
      float *a = arena.normal(count), *b = arena.normal(count), *y = arena.zeros(count);
      return [=, &context = arena.context()] { kernels::add(context, count, a, b, y); };
    });
    add("multiply", c.name, parameters, elementwise_work(c, 3), [=](Arena& arena) -> Call {
      float *a = arena.normal(count), *b = arena.normal(count), *y = arena.zeros(count);
      return [=, &context = arena.context()] { multiply(context, count, a, b, y); };
    });
    add("scale_add", c.name, parameters, elementwise_work(c, 3), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *y = arena.zeros(count);
      return [=, &context = arena.context()] { scale_add(context, count, 0.5f, x, 0.5f, y); };
    });
    add("scaled_add_forward", c.name, parameters, elementwise_work(c, 3), [=](Arena& arena) -> Call {
      float *a = arena.normal(count), *b = arena.normal(count), *scale = arena.normal(1),
            *y = arena.zeros(count);
      return
          [=, &context = arena.context()] { scaled_add_forward(context, n, inner, a, b, scale, nullptr, y); };
    });
    add("scaled_add_backward", c.name, parameters, elementwise_work(c, 3), [=](Arena& arena) -> Call {
      float *b = arena.normal(count), *scale = arena.normal(1), *dy = arena.normal(count),
            *db = arena.zeros(count), *dscale = arena.zeros(1);
      const Workspace workspace =
          arena.workspace(scaled_add_backward_workspace_bytes(arena.context(), n, inner));
      return [=, &context = arena.context()] {
        scaled_add_backward(context, n, inner, b, scale, nullptr, dy, db, dscale, GradMode::overwrite,
                            workspace);
      };
    });
    add("dropout", c.name, parameters, elementwise_work(c, 2), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *y = arena.zeros(count);
      return [=, &context = arena.context()] { dropout(context, count, 0.1f, {1, 2, 3}, x, y); };
    });
    add("dropout_channels", c.name, parameters, elementwise_work(c, 2), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *y = arena.zeros(count);
      return [=, &context = arena.context()] {
        dropout_channels(context, n, spatial, channels, 0.1f, {1, 2, 3}, x, y);
      };
    });
    add("add_sample_vector", c.name, parameters, elementwise_work(c, 2), [=](Arena& arena) -> Call {
      float *x = arena.normal(count), *v = arena.normal(n * channels), *y = arena.zeros(count);
      return [=, &context = arena.context()] { add_sample_vector(context, n, spatial, channels, x, v, y); };
    });
  }
}
