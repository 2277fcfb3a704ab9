#include "bench/bench.hpp"
#include "kernels/region_pool/region_pool_cases.hpp"

namespace vesal::bench {
namespace {

kernels::RegionIndex index_of(Arena& arena, const kernels::RegionParams& p, const int32_t* labels) {
  const kernels::RegionIndex index{arena.array<int32_t>(p.index_offsets()),
                                   arena.array<int32_t>(p.n * p.voxels)};
  region_index(arena.context(), p, labels, index,
               arena.workspace(region_index_workspace_bytes(arena.context(), p)));
  return index;
}

}  // namespace
}  // namespace vesal::bench

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const RegionBenchmarkCase& c : kRegionBenchmarkCases) {
    const RegionParams p = c.params();
    const int64_t channels = c.channels;
    const int64_t voxels = p.n * p.voxels * channels, regions = p.n * p.regions * channels;
    const Parameters parameters{{"extent", c.extent}, {"block", c.block}, {"channels", channels}};
    const Work work = region_work(p, channels);
    add("region_index", c.name, parameters, region_index_work(p), [=](Arena& arena) -> Call {
      const int32_t* labels = arena.upload(c.labels());
      const RegionIndex index = index_of(arena, p, labels);
      const Workspace workspace = arena.workspace(region_index_workspace_bytes(arena.context(), p));
      return [=, &context = arena.context()] { region_index(context, p, labels, index, workspace); };
    });
    add("region_mean_forward", c.name, parameters, work, [=](Arena& arena) -> Call {
      const RegionIndex index = index_of(arena, p, arena.upload(c.labels()));
      float *x = arena.normal(voxels), *means = arena.zeros(regions);
      return [=, &context = arena.context()] { region_mean_forward(context, p, channels, index, x, means); };
    });
    add("region_mean_backward", c.name, parameters, work, [=](Arena& arena) -> Call {
      const int32_t* labels = arena.upload(c.labels());
      const RegionIndex index = index_of(arena, p, labels);
      float *dmeans = arena.normal(regions), *dx = arena.zeros(voxels);
      return [=, &context = arena.context()] {
        region_mean_backward(context, p, channels, labels, index, dmeans, dx);
      };
    });
    add("region_gather_forward", c.name, parameters, work, [=](Arena& arena) -> Call {
      const int32_t* labels = arena.upload(c.labels());
      float *x = arena.normal(regions), *y = arena.zeros(voxels);
      return [=, &context = arena.context()] { region_gather_forward(context, p, channels, labels, x, y); };
    });
    add("region_gather_backward", c.name, parameters, work, [=](Arena& arena) -> Call {
      const RegionIndex index = index_of(arena, p, arena.upload(c.labels()));
      float *dy = arena.normal(voxels), *dx = arena.zeros(regions);
      return [=, &context = arena.context()] { region_gather_backward(context, p, channels, index, dy, dx); };
    });
  }
}
