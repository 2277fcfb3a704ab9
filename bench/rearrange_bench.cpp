#include "bench/bench.hpp"
#include "kernels/rearrange/rearrange_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const PadCropCase& c : kPadCropBenchmarkCases) {
    const PadCropParams p = c.params;
    const int64_t inputs = p.n * p.d * p.h * p.w * p.c, outputs = p.n * p.out_d * p.out_h * p.out_w * p.c;
    const Parameters parameters{{"n", p.n},         {"d", p.d},         {"h", p.h},
                                {"w", p.w},         {"out_d", p.out_d}, {"out_h", p.out_h},
                                {"out_w", p.out_w}, {"c", p.c},         {"low", p.low}};
    add("pad_crop_forward", c.name, parameters, pad_crop_work(p, false), [=](Arena& arena) -> Call {
      float *x = arena.normal(inputs), *y = arena.zeros(outputs);
      return [=, &context = arena.context()] { pad_crop_forward(context, p, x, y); };
    });
    add("pad_crop_backward", c.name, parameters, pad_crop_work(p, true), [=](Arena& arena) -> Call {
      float *dy = arena.normal(outputs), *dx = arena.zeros(inputs);
      return [=, &context = arena.context()] { pad_crop_backward(context, p, dy, dx); };
    });
  }
  for (const CopyChannelsCase& c : kCopyChannelsBenchmarkCases) {
    const CopyChannelsParams p = c.params;
    for (const bool accumulate : {false, true}) {
      const Parameters parameters{{"rows", p.rows},
                                  {"source_channels", p.source_channels},
                                  {"source_offset", p.source_offset},
                                  {"target_channels", p.target_channels},
                                  {"target_offset", p.target_offset},
                                  {"count", p.count},
                                  {"accumulate", accumulate}};
      const GradMode mode = accumulate ? GradMode::accumulate : GradMode::overwrite;
      add("copy_channels", concat(accumulate ? "added_" : "", c.name), parameters,
          copy_channels_work(p, accumulate), [=](Arena& arena) -> Call {
            float *source = arena.normal(p.rows * p.source_channels),
                  *target = arena.zeros(p.rows * p.target_channels);
            return [=, &context = arena.context()] { copy_channels(context, p, source, target, mode); };
          });
    }
  }
  for (const RouteChannelsCase& c : kRouteChannelsBenchmarkCases) {
    const Parameters parameters{
        {"n", c.n}, {"voxels", c.voxels}, {"channels", c.channels}, {"source", c.source}};
    add("route_channels", c.name, parameters, route_channels_work(c), [=](Arena& arena) -> Call {
      const float* x = arena.normal(c.n * c.voxels * c.channels);
      float* y = arena.zeros(c.n * c.voxels * c.out);
      const int32_t* source = arena.upload(c.source);
      return [=, &context = arena.context()] {
        route_channels(context, c.n, c.voxels, c.channels, c.out, x, source, y);
      };
    });
  }
}
