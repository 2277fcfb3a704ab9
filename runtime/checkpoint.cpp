#include "runtime/checkpoint.hpp"

#include <algorithm>

namespace vesal {

std::vector<Variable> checkpoint(DeviceContext& context, const std::vector<Variable>& inputs, Block block) {
  Tape* tape = context.tape();
  if (tape == nullptr) {
    return block(context, inputs);
  }
  const RandomPosition start = context.random_position();
  std::vector<Variable> outputs;
  {
    const TapeScope unrecorded(context, nullptr);
    for (const Variable& output : block(context, inputs)) {
      outputs.push_back(Variable::leaf(output.value()));
    }
  }

  std::vector<Tensor> saved;
  std::vector<std::shared_ptr<GradientSlot>> input_slots, output_slots;
  for (const Variable& input : inputs) {
    saved.push_back(input.value());
    input_slots.push_back(input.slot());
  }
  for (const Variable& output : outputs) {
    output_slots.push_back(output.slot());
  }
  // Like a loss it has no single gradient coming in; it looks after those of its outputs itself.
  tape->record_loss("checkpoint", std::move(saved),
                    [start, block = std::move(block), input_slots, output_slots](
                        DeviceContext& ctx, std::span<const Tensor> kept) {
                      const auto reached = [](const auto& slot) { return slot->defined(); };
                      if (std::none_of(output_slots.begin(), output_slots.end(), reached)) {
                        return;
                      }
                      // The inputs' own slots, so that a sum that began after this block goes on in the same
                      // order.
                      std::vector<Variable> again;
                      for (size_t i = 0; i < kept.size(); ++i) {
                        again.emplace_back(kept[i], input_slots[i]);
                      }
                      Tape inner;
                      std::vector<Variable> results;
                      {
                        const RecomputeScope repeat(ctx, start);
                        const TapeScope recorded(ctx, &inner);
                        const AllocationTag tag("activations");
                        results = block(ctx, again);
                      }
                      for (size_t i = 0; i < results.size(); ++i) {
                        if (output_slots[i]->defined()) {
                          results[i].add_gradient(ctx, output_slots[i]->gradient());
                          output_slots[i]->clear();
                        }
                      }
                      results.clear();
                      inner.backward(ctx);
                    });
  return outputs;
}

}  // namespace vesal
