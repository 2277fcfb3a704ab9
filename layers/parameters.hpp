// Learned tensors: where they live, how they start, and what they are called in files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/context.hpp"
#include "runtime/tensor.hpp"

namespace vesal::layers {

// How a parameter's memory relates to the layout that PyTorch writes.
enum class ParameterLayout {
  plain,          // the same
  convolution,    // memory [a, kd, kh, kw, b], file [a, b, kd, kh, kw]
  convolution2d,  // memory [a, 1, kh, kw, b], file [a, b, kh, kw]
};

struct Parameter {
  std::string name;               // PyTorch-like: "decoder.up1.conv.weight"
  Tensor value;                   // float32: what optimisers change and files hold
  Tensor gradient;                // float32, the same shape; meaningful once gradient_written
  bool gradient_written = false;  // in this step
  bool decays = true;             // weight decay applies (weights: yes; biases, norms, tables: no)
  bool trainable = true;          // false: no optimiser moves it, whatever its gradient
  ParameterLayout layout = ParameterLayout::plain;

  // What the next backward function must do with `gradient`: the first one in a step overwrites. Marks it
  // written.
  kernels::GradMode next_mode() {
    const bool first = !gradient_written;
    gradient_written = true;
    return first ? kernels::GradMode::overwrite : kernels::GradMode::accumulate;
  }

  // The value as kernels want it beside activations stored as `dtype`: `value` itself for float32, otherwise
  // a rounded copy, made when it is first asked for and once after every change of the value. (Float32 master
  // weights: Micikevicius et al. 2018, "Mixed Precision Training", arXiv:1710.03740, section 3.1.)
  const Tensor& stored(DeviceContext& context, DType dtype);

 private:
  friend class ParameterStore;
  Tensor copy_;
  bool copy_is_current_ = false;
};

// What a module keeps beside its parameters: it changes in training and belongs into weights files, but no
// gradient reaches it and no optimiser moves it.
struct Buffer {
  std::string name;  // PyTorch-like: "norm.running_mean"
  Tensor value;
};

// A number that a module counts on the host; one I64 in files, as PyTorch's "norm.num_batches_tracked".
struct Counter {
  std::string name;
  int64_t value = 0;
};

// A tensor that PyTorch's files carry although the network computes it itself (an index, a mask): written so
// that files travel back, never read into anything.
struct Constant {
  std::string name;  // PyTorch-like: "attn.relative_position_index"
  DType dtype = DType::f32;
  Shape shape;
  std::function<std::vector<std::byte>()> bytes;  // the numbers, row-major; called when they are written
  bool compared = true;                           // a file that holds other numbers is of another network
};

// All parameters of a model, in the order of their creation, which is part of the file format's stability;
// and its buffers, counters and constants, which share the parameters' names but are counted and trained
// nowhere.
class ParameterStore {
 public:
  using Entry = std::variant<Parameter*, Buffer*, Counter*, Constant*>;

  // Everything that a file of weights holds, in the order of creation: that of PyTorch's state_dict where the
  // modules are created as there.
  const std::vector<Entry>& entries() const { return entries_; }
  const std::vector<std::unique_ptr<Parameter>>& all() const { return parameters_; }
  const std::vector<std::unique_ptr<Buffer>>& buffers() const { return buffers_; }
  const std::vector<std::unique_ptr<Counter>>& counters() const { return counters_; }
  const std::vector<std::unique_ptr<Constant>>& constants() const { return constants_; }
  // Null when there is none of that name.
  Parameter* find(std::string_view name) const;
  // Numbers, not tensors.
  int64_t count() const;
  // Forgets this step's gradients without touching memory.
  void clear_gradients();
  // Whoever writes into the parameters' values says so: copies (Parameter::stored) are made anew when they
  // are next read.
  void values_changed();

 private:
  friend class ParameterBuilder;
  // Keeps what is added, under a name that no other has; ShapeError where one has it.
  template <class T>
  T* add(std::vector<std::unique_ptr<T>>& kind, std::unique_ptr<T> entry);

  std::vector<Entry> entries_;
  std::set<std::string, std::less<>> names_;
  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<std::unique_ptr<Counter>> counters_;
  std::vector<std::unique_ptr<Constant>> constants_;
};

// Creates parameters under dotted names with PyTorch's default initial values. Numbers are drawn by Philox
// keyed by the seed and the parameter's position, so they depend on nothing else. Without a seed memory is
// allocated and left as it is, for weights that a file fills.
class ParameterBuilder {
 public:
  ParameterBuilder(DeviceContext& context, ParameterStore& store, std::optional<uint64_t> seed)
      : context_(context), store_(store), seed_(seed) {}

  // The same builder one name deeper: builder.scope("conv1") names "….conv1.weight".
  ParameterBuilder scope(std::string_view name) const;
  // The same builder for parameters that no optimiser moves (Parameter::trainable).
  ParameterBuilder frozen() const;

  // Uniform in [-bound, bound].
  Parameter* uniform(std::string_view name, Shape shape, float bound, bool decays,
                     ParameterLayout layout = ParameterLayout::plain) const;
  Parameter* constant(std::string_view name, Shape shape, float value) const;
  // Starts as `values`, row-major in memory.
  Parameter* given(std::string_view name, Shape shape, std::span<const float> values, bool decays,
                   ParameterLayout layout = ParameterLayout::plain) const;
  // Full of `value`.
  Buffer* buffer(std::string_view name, Shape shape, float value) const;
  Counter* counter(std::string_view name) const;
  Constant* fixed(std::string_view name, DType dtype, Shape shape,
                  std::function<std::vector<std::byte>()> bytes, bool compared = true) const;
  // Normal with the given standard deviation, drawn again outside two of them.
  Parameter* truncated_normal(std::string_view name, Shape shape, float deviation) const;

 private:
  // `fill` gives the starting values; it is not called without a seed.
  Parameter* add(std::string_view name, Shape shape, bool decays, ParameterLayout layout,
                 const std::function<void(std::vector<float>&)>& fill) const;
  Tensor tensor(const char* tag, const Shape& shape,
                const std::function<void(std::vector<float>&)>& fill) const;
  RandomStream random() const;

  DeviceContext& context_;
  ParameterStore& store_;
  std::optional<uint64_t> seed_;
  std::string prefix_;
  bool trainable_ = true;
};

}  // namespace vesal::layers
