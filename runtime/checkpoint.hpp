// Activation checkpointing: memory for time. A block of the network keeps its inputs only and is run again
// when its gradient is due (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "runtime/tape.hpp"

namespace vesal {

// Part of a network: makes its outputs from its inputs and from parameters.
using Block = std::function<std::vector<Variable>(DeviceContext&, std::span<const Variable> inputs)>;

// Gives what block(context, inputs) gives, and the same gradients, bit for bit: the second run draws the same
// random numbers, ops see DeviceContext::recomputing(), and gradients are added in the same order. `block` is
// kept until the backward pass, so what it refers to must live. Its outputs must be results of its own ops,
// not inputs handed through. Without a tape, just the block.
std::vector<Variable> checkpoint(DeviceContext& context, const std::vector<Variable>& inputs, Block block);

}  // namespace vesal
