// Reverse-mode differentiation over coarse ops. The tape remembers which backward function to call with which
// saved tensors; what the function computes is the op's business. Saved memory is visible and counted.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "runtime/tensor.hpp"

namespace vesal {

// Collects the gradient of one variable while the tape runs backward.
class GradientSlot {
 public:
  bool defined() const { return gradient_.defined(); }
  const Tensor& gradient() const { return gradient_; }
  // Adds dx (any shape with the same number of elements). The first one is adopted, not copied; a sum is
  // formed in place only where nobody else holds the memory.
  void add(DeviceContext& context, Tensor dx);
  void clear() { gradient_ = Tensor(); }

 private:
  Tensor gradient_;
};

// A tensor and, where a gradient is wanted, the place that collects it. Cheap to copy.
class Variable {
 public:
  Variable() = default;
  // A constant: no gradient.
  Variable(Tensor value) : value_(std::move(value)) {}
  // A tensor whose gradient goes to `slot`; null: a constant.
  Variable(Tensor value, std::shared_ptr<GradientSlot> slot)
      : value_(std::move(value)), slot_(std::move(slot)) {}
  // A leaf whose gradient can be read after Tape::backward.
  static Variable leaf(Tensor value);

  const Tensor& value() const { return value_; }
  const Shape& shape() const { return value_.shape(); }
  int64_t size(int axis) const { return value_.size(axis); }
  bool requires_grad() const { return slot_ != nullptr; }
  const std::shared_ptr<GradientSlot>& slot() const { return slot_; }
  // The collected gradient in the value's shape; undefined if none arrived.
  Tensor gradient() const;
  // Adds to the gradient; does nothing for a constant.
  void add_gradient(DeviceContext& context, Tensor dx) const;

  // The same memory and the same gradient under another shape.
  Variable reshape(Shape shape) const;

 private:
  Tensor value_;
  std::shared_ptr<GradientSlot> slot_;
};

class Tape {
 public:
  // Called with the gradient of the op's output (in its shape) and the saved tensors; passes gradients on
  // with Variable::add_gradient and writes parameter gradients.
  using Backward = std::function<void(DeviceContext&, const Tensor& dy, std::span<const Tensor> saved)>;
  // A loss has no gradient coming in: its backward starts the chain.
  using LossBackward = std::function<void(DeviceContext&, std::span<const Tensor> saved)>;

  // Registers an op; the result requires a gradient. `saved` is kept until the backward function has run.
  Variable record(const char* op, Tensor output, std::vector<Tensor> saved, Backward backward);
  void record_loss(const char* op, std::vector<Tensor> saved, LossBackward backward);

  // Runs all backward functions, last op first, and forgets them. Ops whose output got no gradient are
  // skipped.
  void backward(DeviceContext& context);

  // Bytes that the saved tensors keep alive; storage shared by several counts once.
  size_t saved_bytes() const;
  size_t op_count() const { return nodes_.size(); }
  void clear() { nodes_.clear(); }

 private:
  struct Node {
    const char* op;
    std::shared_ptr<GradientSlot> slot;  // null for a loss
    Shape shape;
    std::vector<Tensor> saved;
    Backward backward;
  };
  std::vector<Node> nodes_;
};

}  // namespace vesal
