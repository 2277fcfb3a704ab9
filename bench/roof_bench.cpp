// What this machine can do at most: a large matrix product by the library that the kernels use (oneDNN,
// cuBLAS), and a copy by as many threads as the kernels have.
#include <cstring>

#include "base/parallel.hpp"
#include "bench/bench.hpp"
#include "kernels/linear/linear.hpp"
#include "runtime/device_api.hpp"

void vesal::bench::register_benchmarks() {
  using namespace kernels;
  for (const int64_t size : {2048, 4096}) {
    const LinearParams p{.rows = size, .in = size, .out = size};
    const auto extent = static_cast<double>(size);
    add("roof_gemm", "square_" + std::to_string(size), {{"size", size}},
        {.flops = 2 * extent * extent * extent, .bytes = 12 * extent * extent}, [=](Arena& arena) -> Call {
          if (arena.device_context().device().type == DeviceType::cuda) {
            set_gemm_algorithm(arena.context(), GemmAlgorithm::cublas);
          }
          float *x = arena.normal(size * size), *weight = arena.normal(size * size),
                *y = arena.zeros(size * size);
          const Workspace workspace =
              arena.workspace(linear_workspace_bytes(arena.context(), p, LinearPass::forward));
          return [=, &context = arena.context()] {
            linear_forward(context, p, x, weight, nullptr, y, nullptr, workspace);
          };
        });
  }

  constexpr int64_t kCopied = int64_t{256} << 20;
  add("roof_copy", "256_mib", {{"bytes", kCopied}}, {.bytes = 2.0 * static_cast<double>(kCopied)},
      [=](Arena& arena) -> Call {
        float *source = arena.normal(kCopied / 4), *target = arena.zeros(kCopied / 4);
        DeviceContext& context = arena.device_context();
        if (context.device().type == DeviceType::cpu) {
          return [=] {
            parallel_for(kCopied / 4, 1, [&](int64_t begin, int64_t end) {
              std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin) * sizeof(float));
            });
          };
        }
        return [=, &context] {
          device_api::copy_on_device(context.device(), context.stream().handle(), target, source, kCopied);
        };
      });
}
