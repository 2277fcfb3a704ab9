#include "bench/bench.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "base/philox.hpp"
#include "runtime/device_api.hpp"

namespace vesal::bench {
namespace {

// A call and the memory that it works on.
struct Prepared {
  Prepared(DeviceContext& context, const Prepare& prepare) : arena(context), call(prepare(arena)) {}
  Arena arena;
  Call call;
};

// Google Benchmark enters a benchmark several times until it has found how often to repeat it; what was
// prepared stays until another benchmark begins.
struct Current {
  std::string name;
  std::unique_ptr<Prepared> prepared;
};

DeviceContext& context_of(Device device) {
  static std::vector<std::unique_ptr<DeviceContext>> contexts;
  for (const auto& context : contexts) {
    if (context->device() == device) {
      return *context;
    }
  }
  return *contexts.emplace_back(std::make_unique<DeviceContext>(device));
}

std::vector<Device> measured_devices() {
  std::vector<Device> devices;
  for (const Device device : device_api::present_devices()) {
    // One GPU speaks for all; the emulator's time says nothing.
    if (device.type != DeviceType::simt && device.index == 0) {
      devices.push_back(device);
    }
  }
  return devices;
}

void run(benchmark::State& state, const std::string& name, Device device, const std::string& label,
         const kernels::Work& work, const Prepare& prepare) {
  DeviceContext& context = context_of(device);
  static Current current;  // after the contexts, so that it goes before them
  if (current.name != name) {
    current.prepared.reset();
    context.allocator().release_cached();
    current.prepared = std::make_unique<Prepared>(context, prepare);
    current.name = name;
    current.prepared->call();  // caches fill, pages appear
    context.synchronize();
  }
  // On a GPU a queue of calls hides what it costs to start one and to wait for it.
  const int64_t batch = device.type == DeviceType::cpu ? 1 : 16;
  while (state.KeepRunningBatch(batch)) {
    for (int64_t i = 0; i < batch; ++i) {
      current.prepared->call();
    }
    context.synchronize();
  }
  state.SetLabel(label);
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["flops"] = work.flops;
  state.counters["bytes"] = work.bytes;
  state.counters["GFLOP"] = benchmark::Counter(work.flops / 1e9, rate);
  state.counters["GB"] = benchmark::Counter(work.bytes / 1e9, rate);
}

}  // namespace

void* Arena::allocate(size_t bytes) {
  return blocks_.emplace_back(context_.allocator().allocate(std::max<size_t>(bytes, 1))).get();
}

void Arena::copy(void* target, const void* source, size_t bytes) {
  device_api::copy_to_device(context_.device(), context_.stream().handle(), target, source, bytes);
  context_.synchronize();
}

float* Arena::normal(int64_t count, float scale) {
  // A block of numbers over and over: drawing hundreds of millions would take longer than what is measured.
  RandomStream random(1, 0, 0);
  std::vector<float> block(static_cast<size_t>(std::min<int64_t>(count, 1 << 16)));
  for (float& value : block) {
    value = scale * random.normal();
  }
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t begin = 0; begin < values.size(); begin += block.size()) {
    std::memcpy(&values[begin], block.data(), std::min(block.size(), values.size() - begin) * sizeof(float));
  }
  return upload(values);
}

float* Arena::zeros(int64_t count) { return upload(std::vector<float>(static_cast<size_t>(count))); }

uint8_t* Arena::labels(int64_t count, int below) {
  // Runs of 37 voxels, as in a label map.
  std::vector<uint8_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<uint8_t>(i / 37 * 2654435761u % static_cast<unsigned>(below));
  }
  return upload(values);
}

kernels::Workspace Arena::workspace(size_t bytes) { return {allocate(bytes), bytes}; }

void add(const std::string& operation, const std::string& case_name, const Parameters& parameters,
         const kernels::Work& work, const Prepare& prepare) {
  for (const Device device : measured_devices()) {
    const std::string name = operation + "/" + case_name + "/" + to_string({device.type, 0});
    const std::string label =
        Parameters{{"operation", operation}, {"case", case_name}, {"parameters", parameters}}.dump();
    benchmark::RegisterBenchmark(
        name.c_str(), [=](benchmark::State& state) { run(state, name, device, label, work, prepare); })
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace vesal::bench

int main(int argc, char** argv) {
  try {
    for (const vesal::Device device : vesal::bench::measured_devices()) {
      benchmark::AddCustomContext(vesal::to_string(device), vesal::device_api::describe(device));
    }
    benchmark::AddCustomContext("threads", std::to_string(vesal::thread_count()));
    vesal::bench::register_benchmarks();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
      return 2;
    }
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
