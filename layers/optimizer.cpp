#include "layers/optimizer.hpp"

#include <cstring>

#include "base/profiler.hpp"
#include "runtime/device_api.hpp"

namespace vesal::layers {
namespace {

// A table of plain structs in device memory.
template <class T>
Tensor upload_table(DeviceContext& context, const std::vector<T>& rows) {
  const size_t bytes = rows.size() * sizeof(T);
  Tensor table = Tensor::empty(context, {static_cast<int64_t>(bytes)}, DType::u8);
  table.copy_from_host(context, rows.data(), bytes);
  return table;
}

}  // namespace

AdamW::AdamW(DeviceContext& context, ParameterStore& store, AdamWSettings settings)
    : store_(store), settings_(settings) {
  const AllocationTag tag("optimizer");
  std::vector<kernels::OptimizerTensor> tensors;
  for (const auto& parameter : store.all()) {
    first_.push_back(Tensor::zeros(context, parameter->value.shape()));
    second_.push_back(Tensor::zeros(context, parameter->value.shape()));
    tensors.push_back({parameter->value.data<float>(), parameter->gradient.data<float>(), first_.back().data<float>(),
                       second_.back().data<float>(), parameter->value.count(),
                       parameter->decays ? settings.weight_decay : 0.0f});
  }
  const std::vector<kernels::OptimizerChunk> chunks = kernels::optimizer_chunks(tensors);
  tensor_table_ = upload_table(context, tensors);
  chunk_table_ = upload_table(context, chunks);
  norm_ = Tensor::zeros(context, {1});
  tables_ = {static_cast<const kernels::OptimizerTensor*>(tensor_table_.data()), static_cast<int64_t>(tensors.size()),
             static_cast<const kernels::OptimizerChunk*>(chunk_table_.data()), static_cast<int64_t>(chunks.size())};
}

void AdamW::step(DeviceContext& context, float learning_rate) {
  VESAL_RANGE("AdamW::step");
  for (const auto& parameter : store_.all()) {
    if (!parameter->gradient_written) {
      device_api::set_bytes(context.device(), context.stream().handle(), parameter->gradient.data(), 0,
                            parameter->gradient.bytes());
    }
  }
  const Scratch scratch = context.scratch(kernels::gradient_norm_workspace_bytes(context.kernels(), tables_));
  kernels::gradient_norm(context.kernels(), tables_, norm_.data<float>(), scratch);
  ++steps_;
  kernels::adamw_step(context.kernels(),
                      {.learning_rate = learning_rate,
                       .beta1 = settings_.beta1,
                       .beta2 = settings_.beta2,
                       .eps = settings_.eps,
                       .step = steps_,
                       .max_norm = settings_.max_norm},
                      tables_, norm_.data<float>());
}

float AdamW::last_gradient_norm(DeviceContext& context) const { return norm_.to_host<float>(context)[0]; }

}  // namespace vesal::layers
