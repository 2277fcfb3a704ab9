#include "runtime/tape.hpp"

#include <set>

#include "base/profiler.hpp"
#include "kernels/elementwise/elementwise.hpp"

namespace vesal {

void GradientSlot::add(DeviceContext& context, Tensor dx) {
  if (!gradient_.defined()) {
    gradient_ = std::move(dx);
    return;
  }
  check<ShapeError>(dx.count() == gradient_.count(), "gradient of shape ", to_string(dx.shape()),
                    " added to one of ", to_string(gradient_.shape()));
  Tensor sum = gradient_.storage_users() == 1 ? gradient_ : gradient_.empty_like(context);
  kernels::add(context.kernels(), sum.count(), gradient_, dx, sum);
  gradient_ = std::move(sum);
}

Variable Variable::leaf(Tensor value) { return {std::move(value), std::make_shared<GradientSlot>()}; }

Tensor Variable::gradient() const {
  return slot_ && slot_->defined() ? slot_->gradient().reshape(value_.shape()) : Tensor();
}

void Variable::add_gradient(DeviceContext& context, Tensor dx) const {
  if (slot_) {
    slot_->add(context, std::move(dx));
  }
}

Variable Variable::reshape(Shape shape) const {
  Variable view = *this;
  view.value_ = value_.reshape(std::move(shape));
  return view;
}

Variable Tape::record(const char* op, Tensor output, std::vector<Tensor> saved, Backward backward) {
  Variable result = Variable::leaf(std::move(output));
  nodes_.push_back({op, result.slot(), result.shape(), std::move(saved), std::move(backward)});
  return result;
}

void Tape::record_loss(const char* op, std::vector<Tensor> saved, LossBackward backward) {
  nodes_.push_back({op,
                    nullptr,
                    {},
                    std::move(saved),
                    [run = std::move(backward)](DeviceContext& context, const Tensor&,
                                                std::span<const Tensor> kept) { run(context, kept); }});
}

void Tape::backward(DeviceContext& context) {
  const TapeScope no_grad(context, nullptr);
  const AllocationTag tag("gradients");
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    if (!node.slot) {
      VESAL_RANGE(node.op);
      node.backward(context, Tensor(), node.saved);
    } else if (node.slot->defined()) {
      VESAL_RANGE(node.op);
      const Tensor dy = node.slot->gradient().reshape(node.shape);
      // Nobody reads an inner gradient after its op: letting go here frees it as soon as the op is done.
      node.slot->clear();
      node.backward(context, dy, node.saved);
    }
  }
}

size_t Tape::saved_bytes() const {
  std::set<const void*> seen;
  size_t bytes = 0;
  for (const Node& node : nodes_) {
    for (const Tensor& tensor : node.saved) {
      if (tensor.defined() && seen.insert(tensor.storage()).second) {
        bytes += tensor.storage_bytes();
      }
    }
  }
  return bytes;
}

}  // namespace vesal
