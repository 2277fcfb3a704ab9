#include "layers/optimizer.hpp"

#include <algorithm>
#include <array>

#include "base/profiler.hpp"
#include "kernels/elementwise/elementwise.hpp"
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

// The tables of `tensors` for the kernels, which live in the two tensors.
kernels::OptimizerTables upload_tables(DeviceContext& context,
                                       const std::vector<kernels::OptimizerTensor>& tensors,
                                       Tensor& tensor_table, Tensor& chunk_table) {
  const std::vector<kernels::OptimizerChunk> chunks = kernels::optimizer_chunks(tensors);
  tensor_table = upload_table(context, tensors);
  chunk_table = upload_table(context, chunks);
  return {
      static_cast<const kernels::OptimizerTensor*>(tensor_table.data()), static_cast<int64_t>(tensors.size()),
      static_cast<const kernels::OptimizerChunk*>(chunk_table.data()), static_cast<int64_t>(chunks.size())};
}

void copy(DeviceContext& context, const Tensor& target, const Tensor& source) {
  device_api::copy_on_device(context.device(), context.stream().handle(), target.data(), source.data(),
                             source.bytes());
}

}  // namespace

Optimizer::Optimizer(DeviceContext& context, ParameterStore& store, float weight_decay,
                     std::vector<StateField> fields)
    : store_(store) {
  const AllocationTag tag("optimizer");
  for (const StateField& field : fields) {
    states_.push_back({field.name, {}});
  }
  std::vector<kernels::OptimizerTensor> tensors;
  for (const auto& parameter : store.all()) {
    kernels::OptimizerTensor& tensor = tensors.emplace_back();
    tensor.parameter = parameter->value.data<float>();
    tensor.gradient = parameter->gradient.data<float>();
    // Frozen parameters keep their place, so that a state's tensors stand beside their parameters.
    tensor.count = parameter->trainable ? parameter->value.count() : 0;
    tensor.weight_decay = parameter->decays ? weight_decay : 0.0f;
    for (size_t k = 0; k < fields.size(); ++k) {
      states_[k].tensors.push_back(Tensor::zeros(context, parameter->value.shape()));
      tensor.*fields[k].field = states_[k].tensors.back().data<float>();
    }
  }
  tables_ = upload_tables(context, tensors, tensor_table_, chunk_table_);
  norm_ = Tensor::zeros(context, {1});
}

void Optimizer::step(DeviceContext& context, float learning_rate, float loss_scale) {
  VESAL_RANGE("Optimizer::step");
  for (const auto& parameter : store_.all()) {
    if (!parameter->gradient_written) {
      device_api::set_bytes(context.device(), context.stream().handle(), parameter->gradient.data(), 0,
                            parameter->gradient.bytes());
    } else if (loss_scale != 1.0f) {
      kernels::scale_add(context.kernels(), parameter->gradient.count(), 1.0f / loss_scale,
                         parameter->gradient, 0.0f, parameter->gradient);
    }
  }
  const Scratch scratch = context.scratch(kernels::gradient_norm_workspace_bytes(context.kernels(), tables_));
  kernels::gradient_norm(context.kernels(), tables_, norm_.data<float>(), scratch);
  ++steps_;
  update(context, learning_rate, tables_, norm_.data<float>());
  store_.values_changed();
}

float Optimizer::last_gradient_norm(DeviceContext& context) const { return norm_.to_host<float>(context)[0]; }

AdamW::AdamW(DeviceContext& context, ParameterStore& store, AdamWSettings settings)
    : Optimizer(
          context, store, settings.weight_decay,
          [&] {
            std::vector<StateField> fields{{"first_moment", &kernels::OptimizerTensor::first_moment},
                                           {"second_moment", &kernels::OptimizerTensor::second_moment}};
            if (settings.amsgrad) {
              fields.push_back({"largest_second_moment", &kernels::OptimizerTensor::largest_second_moment});
            }
            return fields;
          }()),
      settings_(settings) {}

void AdamW::update(DeviceContext& context, float learning_rate, const kernels::OptimizerTables& tables,
                   const float* norm) {
  kernels::adamw_step(context.kernels(),
                      {.learning_rate = learning_rate,
                       .beta1 = settings_.beta1,
                       .beta2 = settings_.beta2,
                       .eps = settings_.eps,
                       .step = steps(),
                       .max_norm = settings_.max_norm,
                       .decay = settings_.decay},
                      tables, norm);
}

Sgd::Sgd(DeviceContext& context, ParameterStore& store, SgdSettings settings)
    : Optimizer(context, store, settings.weight_decay,
                settings.momentum == 0.0f
                    ? std::vector<StateField>{}
                    : std::vector<StateField>{{"first_moment", &kernels::OptimizerTensor::first_moment}}),
      settings_(settings) {}

void Sgd::update(DeviceContext& context, float learning_rate, const kernels::OptimizerTables& tables,
                 const float* norm) {
  kernels::sgd_step(context.kernels(),
                    {.learning_rate = learning_rate,
                     .momentum = settings_.momentum,
                     .nesterov = settings_.nesterov,
                     .max_norm = settings_.max_norm},
                    tables, norm);
}

namespace {
constexpr std::array<std::string_view, 3> kOptimizerNames{"adamw", "adam", "sgd"};  // as in OptimizerKind
}

std::string_view name_of(OptimizerKind kind) { return kOptimizerNames[static_cast<size_t>(kind)]; }

OptimizerKind parse_optimizer(std::string_view name) {
  const auto found = std::find(kOptimizerNames.begin(), kOptimizerNames.end(), name);
  check<UsageError>(found != kOptimizerNames.end(), "optimizer: found ", name,
                    ", expected adamw, adam or sgd");
  return static_cast<OptimizerKind>(found - kOptimizerNames.begin());
}

OptimizerDefaults optimizer_defaults(OptimizerKind kind) {
  constexpr std::array<OptimizerDefaults, 3> defaults{{{3e-3, 1e-2}, {3e-3, 0.0}, {1e-2, 3e-5}}};
  return defaults[static_cast<size_t>(kind)];
}

std::unique_ptr<Optimizer> make_optimizer(DeviceContext& context, ParameterStore& store, OptimizerKind kind,
                                          float weight_decay, float max_norm) {
  if (kind == OptimizerKind::sgd) {
    return std::make_unique<Sgd>(context, store,
                                 SgdSettings{.weight_decay = weight_decay, .max_norm = max_norm});
  }
  return std::make_unique<AdamW>(
      context, store,
      AdamWSettings{
          .weight_decay = weight_decay,
          .max_norm = max_norm,
          .decay = kind == OptimizerKind::adam ? kernels::WeightDecay::l2 : kernels::WeightDecay::decoupled});
}

float ema_decay_at(const EmaSettings& settings, int64_t step) {
  if (!settings.warm_up) {
    return settings.decay;
  }
  const auto t = static_cast<double>(step);
  return std::min(settings.decay, static_cast<float>((1.0 + t) / (10.0 + t)));
}

Ema::Ema(DeviceContext& context, ParameterStore& store, EmaSettings settings)
    : store_(store), settings_(settings) {
  const AllocationTag tag("optimizer");
  std::vector<kernels::OptimizerTensor> tensors;
  for (const auto& parameter : store.all()) {
    averages_.push_back(parameter->value.empty_like(context));
    copy(context, averages_.back(), parameter->value);
    kernels::OptimizerTensor& tensor = tensors.emplace_back();
    tensor.parameter = parameter->value.data<float>();
    // Frozen parameters keep their place, so that a state's tensors stand beside their parameters.
    tensor.count = parameter->trainable ? parameter->value.count() : 0;
    tensor.average = averages_.back().data<float>();
  }
  tables_ = upload_tables(context, tensors, tensor_table_, chunk_table_);
}

void Ema::step(DeviceContext& context, const Tensor* gradient_norm) {
  VESAL_RANGE("Ema::step");
  ++steps_;
  kernels::ema_step(context.kernels(), ema_decay_at(settings_, steps_), tables_,
                    gradient_norm != nullptr ? gradient_norm->data<float>() : nullptr);
}

void Ema::swap(DeviceContext& context) {
  for (size_t i = 0; i < averages_.size(); ++i) {
    const Tensor& value = store_.all()[i]->value;
    const Tensor kept = value.empty_like(context);
    copy(context, kept, value);
    copy(context, value, averages_[i]);
    copy(context, averages_[i], kept);
  }
  store_.values_changed();
}

}  // namespace vesal::layers
