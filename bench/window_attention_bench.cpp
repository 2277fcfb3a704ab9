#include "bench/bench.hpp"
#include "kernels/window_attention/window_attention_cases.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const WindowAttentionCase& c : kWindowAttentionBenchmarkCases) {
    const WindowAttentionParams p = c.params;
    const Parameters parameters{
        {"n", p.n},           {"d", p.d},         {"h", p.h},
        {"w", p.w},           {"heads", p.heads}, {"head_dim", p.head_dim},
        {"window", p.window}, {"shift", p.shift}, {"masked", p.padding == PaddingMode::masked},
        {"scale", p.scale}};
    const int64_t tokens = p.tokens(), channels = p.channels();
    const auto prepare = [=](Arena& arena, bool backward) -> Call {
      float *qkv = arena.normal(tokens * 3 * channels), *qkv_bias = arena.normal(3 * channels),
            *table = arena.normal(p.bias_rows() * p.heads), *out = arena.zeros(tokens * channels),
            *lse = arena.zeros(tokens * p.heads);
      const Call forward = [=, &context = arena.context()] {
        window_attention_forward(context, p, qkv, qkv_bias, table, out, lse);
      };
      if (!backward) {
        return forward;
      }
      forward();
      float *dout = arena.normal(tokens * channels), *dqkv = arena.zeros(tokens * 3 * channels),
            *dqkv_bias = arena.zeros(3 * channels), *dtable = arena.zeros(p.bias_rows() * p.heads);
      const Workspace workspace =
          arena.workspace(window_attention_backward_workspace_bytes(arena.context(), p));
      return [=, &context = arena.context()] {
        window_attention_backward(context, p, qkv, qkv_bias, table, out, lse, dout, dqkv, dqkv_bias, dtable,
                                  GradMode::overwrite, workspace);
      };
    };
    add("window_attention_forward", c.name, parameters, window_attention_work(p, false),
        [=](Arena& arena) { return prepare(arena, false); });
    add("window_attention_backward", c.name, parameters, window_attention_work(p, true),
        [=](Arena& arena) { return prepare(arena, true); });
  }
}
