// Layouts, and loading with every difference named: see parameters.hpp.
#include "weights_tools/parameters.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <mutex>
#include <set>
#include <variant>

#include "base/error.hpp"
#include "base/parallel.hpp"

namespace vesal::weights {
namespace {

// Memory of a convolution seen as [outer, taps, inner].
struct ConvolutionExtents {
  int64_t taps = 1;
  int64_t inner = 1;
};

ConvolutionExtents extents_of(const Shape& shape) {
  check<ShapeError>(shape.size() >= 3, "a convolution's weight has rank 3 at least, found ",
                    to_string(shape));
  return {element_count(std::span(shape).subspan(1, shape.size() - 2)), shape.back()};
}

// Consecutive values of [outer, rows, columns], from `position` on, to their places in [outer, columns,
// rows].
void scatter(int64_t position, std::span<const float> values, int64_t rows, int64_t columns,
             std::span<float> target) {
  while (!values.empty()) {
    const int64_t row = position / columns;
    const int64_t column = position % columns;
    const auto count = static_cast<int64_t>(values.size());
    // What is left of a row, or all whole rows that follow in the same block.
    const int64_t wide = column > 0 || count < columns ? std::min(columns - column, count) : columns;
    const int64_t high = wide < columns ? 1 : std::min(count / columns, rows - row % rows);
    float* block = target.data() + (row / rows * columns + column) * rows + row % rows;
    for (int64_t c = 0; c < wide; ++c) {
      for (int64_t r = 0; r < high; ++r) {
        block[c * rows + r] = values[static_cast<size_t>(r * wide + c)];
      }
    }
    values = values.subspan(static_cast<size_t>(high * wide));
    position += high * wide;
  }
}

std::vector<float> transposed(std::span<const float> source, int64_t rows, int64_t columns) {
  std::vector<float> result(source.size());
  parallel_for(static_cast<int64_t>(source.size()), 1 << 14, [&](int64_t begin, int64_t end) {
    const auto part = source.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    scatter(begin, part, rows, columns, result);
  });
  return result;
}

void check_count(std::span<const float> values, const Shape& shape) {
  check<ShapeError>(static_cast<int64_t>(values.size()) == element_count(shape), values.size(),
                    " values do not fill the shape ", to_string(shape));
}

template <class Values>
std::vector<std::byte> copied_bytes(const Values& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

// Names for one line: "3 missing (a, b, ...)"; the first few, and how many there are.
class Differences {
 public:
  void add(const std::string& name) {
    if (++count_ <= 3) {
      names_ += (names_.empty() ? "" : ", ") + name;
    }
  }
  size_t count() const { return count_; }
  std::string text(const char* what) const {
    return concat(count_, " ", what, " (", names_, count_ > 3 ? ", ..." : "", ")");
  }

 private:
  size_t count_ = 0;
  std::string names_;
};

int64_t read_counter(const WeightsFile& file, const StoredTensor& stored) {
  check<FormatError>(stored.dtype == "I64", file.path().string(), ": tensor ", stored.name, ": found ",
                     stored.dtype, ", expected I64");
  const std::vector<std::byte> bytes = file.read_bytes(stored);
  int64_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof(value));
  check<FormatError>(value >= 0, file.path().string(), ": tensor ", stored.name, ": found ", value,
                     ", expected no negative number");
  return value;
}

void check_constant(const WeightsFile& file, const StoredTensor& stored, const layers::Constant& constant) {
  const std::string_view dtype = stored_name(constant.dtype);
  check<FormatError>(stored.dtype == dtype, file.path().string(), ": tensor ", stored.name, ": found ",
                     stored.dtype, ", expected ", dtype);
  check<FormatError>(!constant.compared || file.read_bytes(stored) == constant.bytes(), file.path().string(),
                     ": tensor ", stored.name,
                     ": found other numbers than those of the network, which computes them itself");
}

// The first number of a tensor that is not finite, in whatever order threads look at its parts.
class FirstBad {
 public:
  void look_at(int64_t position, std::span<const float> values) {
    // Infinities and NaN are the numbers whose bits, without the sign, are the largest.
    uint32_t largest = 0;
    for (const float value : values) {
      largest = std::max(largest, std::bit_cast<uint32_t>(value) & 0x7fffffffu);
    }
    if (largest < 0x7f800000u) {
      return;
    }
    const auto bad = std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    const std::lock_guard lock(mutex_);
    if (const int64_t found = position + (bad - values.begin()); position_ < 0 || found < position_) {
      position_ = found;
      value_ = *bad;
    }
  }

  void check_none(const WeightsFile& file, const StoredTensor& stored) const {
    check<FormatError>(position_ < 0, file.path().string(), ": tensor ", stored.name, ": found ", value_,
                       " at position ", position_, ", expected finite numbers");
  }

 private:
  std::mutex mutex_;
  int64_t position_ = -1;
  float value_ = 0;
};

void read_values(const WeightsFile& file, const StoredTensor& stored, const NamedTensor& named,
                 std::span<float> target) {
  if (named.layout == layers::ParameterLayout::plain) {
    file.read_floats(stored, target);
    return;
  }
  const ConvolutionExtents extents = extents_of(named.tensor.shape());
  file.read_float_parts(stored, [&](int64_t position, std::span<const float> values) {
    scatter(position, values, extents.inner, extents.taps, target);
  });
}

}  // namespace

Shape file_shape(const Shape& memory_shape, layers::ParameterLayout layout) {
  if (layout == layers::ParameterLayout::plain) {
    return memory_shape;
  }
  check<ShapeError>(memory_shape.size() >= 3, "a convolution's weight has rank 3 at least, found ",
                    to_string(memory_shape));
  Shape shape = memory_shape;
  std::rotate(shape.begin() + 1, shape.end() - 1, shape.end());
  if (layout == layers::ParameterLayout::convolution2d) {
    check<ShapeError>(shape.size() == 5 && shape[2] == 1,
                      "a 2D convolution's weight is [a, 1, kh, kw, b] in memory, found ",
                      to_string(memory_shape));
    shape.erase(shape.begin() + 2);
  }
  return shape;
}

Shape file_shape(const NamedTensor& named) {
  return named.counter != nullptr    ? Shape{}
         : named.constant != nullptr ? named.constant->shape
                                     : file_shape(named.tensor.shape(), named.layout);
}

DType file_dtype(const NamedTensor& named) {
  return named.counter != nullptr    ? DType::i64
         : named.constant != nullptr ? named.constant->dtype
                                     : DType::f32;
}

std::vector<float> to_file_order(std::span<const float> memory, const Shape& shape,
                                 layers::ParameterLayout layout) {
  check_count(memory, shape);
  if (layout == layers::ParameterLayout::plain) {
    return {memory.begin(), memory.end()};
  }
  const ConvolutionExtents extents = extents_of(shape);
  return transposed(memory, extents.taps, extents.inner);
}

std::vector<float> to_memory_order(std::span<const float> file, const Shape& shape,
                                   layers::ParameterLayout layout) {
  check_count(file, shape);
  if (layout == layers::ParameterLayout::plain) {
    return {file.begin(), file.end()};
  }
  const ConvolutionExtents extents = extents_of(shape);
  return transposed(file, extents.inner, extents.taps);
}

std::vector<NamedTensor> named_parameters(const layers::ParameterStore& store) {
  struct Naming {
    NamedTensor operator()(layers::Parameter* parameter) const {
      return {.name = parameter->name, .tensor = parameter->value, .layout = parameter->layout};
    }
    NamedTensor operator()(layers::Buffer* buffer) const {
      return {.name = buffer->name, .tensor = buffer->value};
    }
    NamedTensor operator()(layers::Counter* counter) const {
      return {.name = counter->name, .tensor = {}, .counter = &counter->value};
    }
    NamedTensor operator()(layers::Constant* constant) const {
      return {.name = constant->name, .tensor = {}, .constant = constant};
    }
  };
  std::vector<NamedTensor> tensors;
  for (const layers::ParameterStore::Entry& entry : store.entries()) {
    tensors.push_back(std::visit(Naming{}, entry));
  }
  return tensors;
}

std::vector<std::byte> read_entry(const WeightsFile& file, const StoredTensor& stored,
                                  const NamedTensor& named) {
  if (named.constant != nullptr) {
    check_constant(file, stored, *named.constant);
    return named.constant->bytes();
  }
  if (named.counter != nullptr) {
    return copied_bytes(std::array{read_counter(file, stored)});
  }
  const std::vector<float> values = file.read_floats(stored);
  FirstBad bad;
  bad.look_at(0, values);
  bad.check_none(file, stored);
  return copied_bytes(values);
}

std::vector<std::byte> entry_bytes(DeviceContext& context, const NamedTensor& named) {
  if (named.constant != nullptr) {
    return named.constant->bytes();
  }
  if (named.counter != nullptr) {
    return copied_bytes(std::array{*named.counter});
  }
  return copied_bytes(
      to_file_order(named.tensor.to_host<float>(context), named.tensor.shape(), named.layout));
}

void write_tensors(DeviceContext& context, const std::filesystem::path& path,
                   const std::vector<NamedTensor>& tensors, const Metadata& metadata) {
  std::vector<TensorSource> sources;
  for (const NamedTensor& named : tensors) {
    const auto bytes_of = [&context, &named] { return entry_bytes(context, named); };
    sources.push_back({named.name, file_dtype(named), file_shape(named), bytes_of});
  }
  write_safetensors(path, std::move(sources), metadata);
}

void load_tensors(DeviceContext& context, const WeightsFile& file, const std::vector<NamedTensor>& tensors,
                  std::span<const std::string_view> ignored_prefixes) {
  Differences missing, unexpected, misshaped;
  std::set<std::string_view> wanted;
  for (const NamedTensor& named : tensors) {
    wanted.insert(named.name);
    const StoredTensor* stored = file.find(named.name);
    const Shape expected = file_shape(named);
    if (stored == nullptr) {
      missing.add(named.name);
    } else if (stored->shape != expected) {
      misshaped.add(
          concat(named.name, ": found ", to_string(stored->shape), ", expected ", to_string(expected)));
    }
  }
  for (const StoredTensor& stored : file.tensors()) {
    const bool ignored =
        std::any_of(ignored_prefixes.begin(), ignored_prefixes.end(),
                    [&](std::string_view prefix) { return stored.name.starts_with(prefix); });
    if (!ignored && !wanted.contains(stored.name)) {
      unexpected.add(one_line(stored.name));
    }
  }
  std::string differences;
  for (const auto& [difference, what] :
       {std::pair(&missing, "tensors missing"), std::pair(&unexpected, "unexpected"),
        std::pair(&misshaped, "of another shape")}) {
    if (difference->count() > 0) {
      differences += (differences.empty() ? "" : ", ") + difference->text(what);
    }
  }
  check<FormatError>(differences.empty(), file.path().string(), ": weights of another model: ", differences);

  // Twice over the file, so that nothing is changed before all is checked and no second copy of the model is
  // held.
  std::vector<int64_t> counters;
  for (const NamedTensor& named : tensors) {
    const StoredTensor& stored = *file.find(named.name);
    if (named.counter != nullptr) {
      counters.push_back(read_counter(file, stored));
    } else if (named.constant != nullptr) {
      check_constant(file, stored, *named.constant);
    } else {
      FirstBad bad;
      file.read_float_parts(
          stored, [&bad](int64_t position, std::span<const float> values) { bad.look_at(position, values); });
      bad.check_none(file, stored);
    }
  }
  auto next_counter = counters.begin();
  std::vector<float> on_host;
  for (const NamedTensor& named : tensors) {
    if (named.counter != nullptr) {
      *named.counter = *next_counter++;
    } else if (named.constant == nullptr) {
      const Tensor& tensor = named.tensor;
      const StoredTensor& stored = *file.find(named.name);
      const auto count = static_cast<size_t>(stored.count);
      if (tensor.device().type == DeviceType::cpu) {
        read_values(file, stored, named, {tensor.data<float>(), count});
      } else {
        on_host.resize(std::max(on_host.size(), count));
        read_values(file, stored, named, std::span(on_host).first(count));
        tensor.copy_from_host(context, on_host.data(), count * sizeof(float));
      }
    }
  }
}

}  // namespace vesal::weights
