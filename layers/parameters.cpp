#include "layers/parameters.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/elementwise/elementwise.hpp"

namespace vesal::layers {

const Tensor& Parameter::stored(DeviceContext& context, DType dtype) {
  if (dtype == DType::f32) {
    return value;
  }
  if (!copy_.defined() || copy_.dtype() != dtype) {
    const AllocationTag tag("parameters");
    copy_ = Tensor::empty(context, value.shape(), dtype);
    copy_is_current_ = false;
  }
  if (!copy_is_current_) {
    kernels::convert(context.kernels(), value.count(), value, copy_);
    copy_is_current_ = true;
  }
  return copy_;
}

Parameter* ParameterStore::find(std::string_view name) const {
  for (const auto& parameter : parameters_) {
    if (parameter->name == name) {
      return parameter.get();
    }
  }
  return nullptr;
}

bool ParameterStore::has_name(std::string_view name) const {
  const auto named = [&](const auto& entry) { return entry->name == name; };
  return std::any_of(parameters_.begin(), parameters_.end(), named) ||
         std::any_of(buffers_.begin(), buffers_.end(), named) ||
         std::any_of(counters_.begin(), counters_.end(), named);
}

int64_t ParameterStore::count() const {
  int64_t total = 0;
  for (const auto& parameter : parameters_) {
    total += parameter->value.count();
  }
  return total;
}

void ParameterStore::clear_gradients() {
  for (const auto& parameter : parameters_) {
    parameter->gradient_written = false;
  }
}

void ParameterStore::values_changed() {
  for (const auto& parameter : parameters_) {
    parameter->copy_is_current_ = false;
  }
}

ParameterBuilder ParameterBuilder::scope(std::string_view name) const {
  ParameterBuilder inner = *this;
  inner.prefix_ += std::string(name) + ".";
  return inner;
}

RandomStream ParameterBuilder::random() const {
  // Step 2^64 - 1 never occurs in training: initial values share no numbers with dropout or augmentation.
  return RandomStream(seed_, ~uint64_t{0}, store_.parameters_.size());
}

Parameter* ParameterBuilder::uniform(std::string_view name, Shape shape, float bound, bool decays,
                                     ParameterLayout layout) const {
  RandomStream stream = random();
  std::vector<float> values(static_cast<size_t>(element_count(shape)));
  for (float& value : values) {
    value = stream.uniform(-bound, bound);
  }
  return add(name, std::move(shape), values, decays, layout);
}

Parameter* ParameterBuilder::constant(std::string_view name, Shape shape, float value) const {
  const std::vector<float> values(static_cast<size_t>(element_count(shape)), value);
  return add(name, std::move(shape), values, false, ParameterLayout::plain);
}

Buffer* ParameterBuilder::buffer(std::string_view name, Shape shape, float value) const {
  auto buffer = std::make_unique<Buffer>();
  buffer->name = prefix_ + std::string(name);
  check<ShapeError>(!store_.has_name(buffer->name), "parameter ", buffer->name, " exists already");
  const std::vector<float> values(static_cast<size_t>(element_count(shape)), value);
  const AllocationTag tag("buffers");
  buffer->value = Tensor::from_host(context_, values, std::move(shape));
  store_.buffers_.push_back(std::move(buffer));
  return store_.buffers_.back().get();
}

Counter* ParameterBuilder::counter(std::string_view name) const {
  auto counter = std::make_unique<Counter>();
  counter->name = prefix_ + std::string(name);
  check<ShapeError>(!store_.has_name(counter->name), "parameter ", counter->name, " exists already");
  store_.counters_.push_back(std::move(counter));
  return store_.counters_.back().get();
}

Parameter* ParameterBuilder::truncated_normal(std::string_view name, Shape shape, float deviation) const {
  RandomStream stream = random();
  std::vector<float> values(static_cast<size_t>(element_count(shape)));
  for (float& value : values) {
    do {
      value = stream.normal();
    } while (std::abs(value) > 2.0f);
    value *= deviation;
  }
  return add(name, std::move(shape), values, false, ParameterLayout::plain);
}

Parameter* ParameterBuilder::add(std::string_view name, Shape shape, const std::vector<float>& values,
                                 bool decays, ParameterLayout layout) const {
  auto parameter = std::make_unique<Parameter>();
  parameter->name = prefix_ + std::string(name);
  check<ShapeError>(!store_.has_name(parameter->name), "parameter ", parameter->name, " exists already");
  {
    const AllocationTag tag("parameters");
    parameter->value = Tensor::from_host(context_, values, shape);
  }
  {
    const AllocationTag tag("parameter gradients");
    parameter->gradient = Tensor::empty(context_, std::move(shape));
  }
  parameter->decays = decays;
  parameter->layout = layout;
  store_.parameters_.push_back(std::move(parameter));
  return store_.parameters_.back().get();
}

}  // namespace vesal::layers
