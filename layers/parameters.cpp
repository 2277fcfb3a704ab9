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

template <class T>
T* ParameterStore::add(std::vector<std::unique_ptr<T>>& kind, std::unique_ptr<T> entry) {
  check<ShapeError>(names_.insert(entry->name).second, "parameter ", entry->name, " exists already");
  kind.push_back(std::move(entry));
  entries_.emplace_back(kind.back().get());
  return kind.back().get();
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

ParameterBuilder ParameterBuilder::frozen() const {
  ParameterBuilder inner = *this;
  inner.trainable_ = false;
  return inner;
}

RandomStream ParameterBuilder::random() const {
  // Step 2^64 - 1 never occurs in training: initial values share no numbers with dropout or augmentation.
  return RandomStream(*seed_, ~uint64_t{0}, store_.parameters_.size());
}

Parameter* ParameterBuilder::uniform(std::string_view name, Shape shape, float bound, bool decays,
                                     ParameterLayout layout) const {
  return add(name, std::move(shape), decays, layout, [&](std::vector<float>& values) {
    RandomStream stream = random();
    for (float& value : values) {
      value = stream.uniform(-bound, bound);
    }
  });
}

Parameter* ParameterBuilder::constant(std::string_view name, Shape shape, float value) const {
  return add(name, std::move(shape), false, ParameterLayout::plain,
             [&](std::vector<float>& values) { std::fill(values.begin(), values.end(), value); });
}

Parameter* ParameterBuilder::given(std::string_view name, Shape shape, std::span<const float> values,
                                   bool decays, ParameterLayout layout) const {
  check<ShapeError>(static_cast<int64_t>(values.size()) == element_count(shape), "parameter ", prefix_, name,
                    ": ", values.size(), " values for the shape ", to_string(shape));
  return add(name, std::move(shape), decays, layout,
             [&](std::vector<float>& target) { target.assign(values.begin(), values.end()); });
}

Parameter* ParameterBuilder::truncated_normal(std::string_view name, Shape shape, float deviation) const {
  return add(name, std::move(shape), false, ParameterLayout::plain, [&](std::vector<float>& values) {
    RandomStream stream = random();
    for (float& value : values) {
      do {
        value = stream.normal();
      } while (std::abs(value) > 2.0f);
      value *= deviation;
    }
  });
}

Buffer* ParameterBuilder::buffer(std::string_view name, Shape shape, float value) const {
  auto buffer = std::make_unique<Buffer>();
  buffer->name = prefix_ + std::string(name);
  buffer->value = tensor("buffers", shape,
                         [&](std::vector<float>& values) { std::fill(values.begin(), values.end(), value); });
  return store_.add(store_.buffers_, std::move(buffer));
}

Counter* ParameterBuilder::counter(std::string_view name) const {
  auto counter = std::make_unique<Counter>();
  counter->name = prefix_ + std::string(name);
  return store_.add(store_.counters_, std::move(counter));
}

Constant* ParameterBuilder::fixed(std::string_view name, DType dtype, Shape shape,
                                  std::function<std::vector<std::byte>()> bytes, bool compared) const {
  auto constant = std::make_unique<Constant>();
  *constant = {prefix_ + std::string(name), dtype, std::move(shape), std::move(bytes), compared};
  return store_.add(store_.constants_, std::move(constant));
}

Tensor ParameterBuilder::tensor(const char* tag, const Shape& shape,
                                const std::function<void(std::vector<float>&)>& fill) const {
  const AllocationTag allocation(tag);
  if (!seed_) {
    return Tensor::empty(context_, shape);
  }
  std::vector<float> values(static_cast<size_t>(element_count(shape)));
  fill(values);
  return Tensor::from_host(context_, values, shape);
}

Parameter* ParameterBuilder::add(std::string_view name, Shape shape, bool decays, ParameterLayout layout,
                                 const std::function<void(std::vector<float>&)>& fill) const {
  auto parameter = std::make_unique<Parameter>();
  parameter->name = prefix_ + std::string(name);
  parameter->value = tensor("parameters", shape, fill);
  {
    const AllocationTag tag("parameter gradients");
    parameter->gradient = Tensor::empty(context_, std::move(shape));
  }
  parameter->decays = decays;
  parameter->trainable = trainable_;
  parameter->layout = layout;
  return store_.add(store_.parameters_, std::move(parameter));
}

}  // namespace vesal::layers
