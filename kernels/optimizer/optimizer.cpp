// Chunk tables, argument checks, workspace size and dispatch of the optimiser.
#include "kernels/optimizer/optimizer.hpp"

#include <algorithm>
#include <limits>

#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(gradient_norm)
VESAL_DECLARE_BACKENDS(adamw_step)
VESAL_DECLARE_BACKENDS(sgd_step)
VESAL_DECLARE_BACKENDS(ema_step)

namespace {

void check_tables(const char* what, const OptimizerTables& tables) {
  check<ShapeError>(tables.chunk_count >= 0 && tables.tensor_count >= 0, what,
                    ": a table has negative length");
  check<ShapeError>(tables.chunk_count == 0 || (tables.tensors != nullptr && tables.chunks != nullptr), what,
                    ": a table is null");
}

void check_clipping(const char* what, float max_norm, const float* norm) {
  check<ShapeError>(max_norm <= 0 || norm != nullptr, what, ": clipping to ", max_norm,
                    " needs the gradient norm");
}

}  // namespace

std::vector<OptimizerChunk> optimizer_chunks(std::span<const OptimizerTensor> tensors) {
  check<ShapeError>(tensors.size() <= static_cast<size_t>(std::numeric_limits<int32_t>::max()),
                    "optimizer_chunks: too many tensors");
  std::vector<OptimizerChunk> chunks;
  for (size_t t = 0; t < tensors.size(); ++t) {
    check<ShapeError>(tensors[t].count >= 0, "optimizer_chunks: tensor ", t, " has ", tensors[t].count,
                      " elements");
    for (int64_t begin = 0; begin < tensors[t].count; begin += kOptimizerChunk) {
      chunks.push_back({.tensor = static_cast<int32_t>(t),
                        .count = static_cast<int32_t>(std::min(kOptimizerChunk, tensors[t].count - begin)),
                        .begin = begin});
    }
  }
  return chunks;
}

size_t gradient_norm_workspace_bytes(Context&, const OptimizerTables& tables) {
  return static_cast<size_t>(tables.chunk_count) * sizeof(float);
}

void gradient_norm(Context& context, const OptimizerTables& tables, float* norm, Workspace workspace) {
  check_tables("gradient_norm", tables);
  check<ShapeError>(norm != nullptr, "gradient_norm: norm is null");
  workspace.require(gradient_norm_workspace_bytes(context, tables), "gradient_norm");
  VESAL_DISPATCH(context, gradient_norm(context, tables, norm, workspace));
}

void adamw_step(Context& context, const AdamWParams& params, const OptimizerTables& tables,
                const float* norm) {
  check_tables("adamw_step", tables);
  check<ShapeError>(params.step >= 1, "adamw_step: step ", params.step, ", expected at least 1");
  check_clipping("adamw_step", params.max_norm, norm);
  VESAL_DISPATCH(context, adamw_step(context, params, tables, norm));
}

void sgd_step(Context& context, const SgdParams& params, const OptimizerTables& tables, const float* norm) {
  check_tables("sgd_step", tables);
  check<ShapeError>(params.momentum >= 0 && params.momentum < 1, "sgd_step: momentum ", params.momentum,
                    ", expected 0 or more and less than 1");
  check<ShapeError>(!params.nesterov || params.momentum > 0, "sgd_step: nesterov needs a momentum above 0");
  check_clipping("sgd_step", params.max_norm, norm);
  VESAL_DISPATCH(context, sgd_step(context, params, tables, norm));
}

void ema_step(Context& context, float decay, const OptimizerTables& tables, const float* norm) {
  check_tables("ema_step", tables);
  check<ShapeError>(decay >= 0 && decay <= 1, "ema_step: decay ", decay, ", expected 0 to 1");
  VESAL_DISPATCH(context, ema_step(context, decay, tables, norm));
}

}  // namespace vesal::kernels
