#include "bench/bench.hpp"
#include "kernels/attention/attention_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const AttentionCase& c : kAttentionBenchmarkCases) {
    const bool fused = c.layout == AttentionLayout::fused, axial = c.axial;
    AttentionParams p = c.params;
    if (fused) {
      p.q_stride = p.k_stride = p.v_stride = 3 * p.channels();
    }
    const Parameters parameters{{"n", p.n},         {"queries", p.queries},   {"keys", p.keys},
                                {"heads", p.heads}, {"head_dim", p.head_dim}, {"scale", p.scale},
                                {"fused", fused},   {"axial", axial},         {"key_grid", p.key_grid}};
    const int64_t rows = p.n * p.queries * p.heads, q_count = p.n * p.queries * p.channels(),
                  k_count = p.n * p.keys * p.channels();
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      AttentionInputs inputs;
      if (fused) {
        const float* qkv = arena.normal(3 * q_count);
        inputs = {qkv, qkv + p.channels(), qkv + 2 * p.channels()};
      } else {
        inputs = {arena.normal(q_count), arena.normal(k_count), arena.normal(k_count)};
      }
      if (axial) {
        inputs.axial_bias = arena.normal(rows * p.axial_size());
      }
      float *out = arena.zeros(q_count), *lse = arena.zeros(rows);
      const Workspace forward_workspace =
          arena.workspace(attention_forward_workspace_bytes(arena.context(), p));
      const Call forward = [=, &context = arena.context()] {
        attention_forward(context, p, inputs, out, lse, forward_workspace);
      };
      if (!backward) {
        return forward;
      }
      forward();
      AttentionGradients gradients;
      if (fused) {
        float* dqkv = arena.zeros(3 * q_count);
        gradients = {dqkv, dqkv + p.channels(), dqkv + 2 * p.channels()};
      } else {
        gradients = {arena.zeros(q_count), arena.zeros(k_count), arena.zeros(k_count)};
      }
      if (axial) {
        gradients.daxial_bias = arena.zeros(rows * p.axial_size());
      }
      const float* dout = arena.normal(q_count);
      const Workspace workspace = arena.workspace(attention_backward_workspace_bytes(arena.context(), p));
      return [=, &context = arena.context()] {
        attention_backward(context, p, inputs, out, lse, dout, gradients, workspace);
      };
    };
    add("attention_forward", c.name, parameters, attention_work(c, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("attention_backward", c.name, parameters, attention_work(c, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
}
