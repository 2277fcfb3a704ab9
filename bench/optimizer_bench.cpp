#include "bench/bench.hpp"
#include "kernels/optimizer/optimizer_cases.hpp"

namespace vesal::bench {
namespace {

kernels::OptimizerTables tables_of(Arena& arena, const kernels::OptimizerCase& c) {
  std::vector<kernels::OptimizerTensor> tensors;
  for (const int64_t count : c.counts) {
    tensors.push_back({.parameter = arena.normal(count),
                       .gradient = arena.normal(count, 0.01f),
                       .first_moment = arena.zeros(count),
                       .second_moment = arena.zeros(count),
                       .count = count,
                       .weight_decay = 0.01f,
                       .average = arena.zeros(count)});
  }
  const std::vector<kernels::OptimizerChunk> chunks = kernels::optimizer_chunks(tensors);
  return {.tensors = arena.upload(tensors),
          .tensor_count = static_cast<int64_t>(tensors.size()),
          .chunks = arena.upload(chunks),
          .chunk_count = static_cast<int64_t>(chunks.size())};
}

}  // namespace

void register_benchmarks() {
  using namespace kernels;
  for (const OptimizerCase& c : kOptimizerBenchmarkCases) {
    const Parameters parameters{{"counts", c.counts}, {"max_norm", c.max_norm}};
    add("gradient_norm", c.name, parameters, optimizer_work(c, 1), [=](Arena& arena) -> Call {
      const OptimizerTables tables = tables_of(arena, c);
      float* norm = arena.zeros(1);
      const Workspace workspace = arena.workspace(gradient_norm_workspace_bytes(arena.context(), tables));
      return [=, &context = arena.context()] { gradient_norm(context, tables, norm, workspace); };
    });
    add("adamw_step", c.name, parameters, optimizer_work(c, 7), [=](Arena& arena) -> Call {
      const OptimizerTables tables = tables_of(arena, c);
      return [=, &context = arena.context()] {
        adamw_step(context, {.learning_rate = 1e-4f, .step = 100}, tables, nullptr);
      };
    });
    add("sgd_step", c.name, parameters, optimizer_work(c, 5), [=](Arena& arena) -> Call {
      const OptimizerTables tables = tables_of(arena, c);
      return [=, &context = arena.context()] {
        sgd_step(context, {.learning_rate = 1e-4f, .momentum = 0.99f, .nesterov = true}, tables, nullptr);
      };
    });
    add("ema_step", c.name, parameters, optimizer_work(c, 3), [=](Arena& arena) -> Call {
      const OptimizerTables tables = tables_of(arena, c);
      return [=, &context = arena.context()] { ema_step(context, 0.999f, tables, nullptr); };
    });
  }
}

}  // namespace vesal::bench
