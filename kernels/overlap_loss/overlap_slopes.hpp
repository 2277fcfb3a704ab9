// From the sums of one group and channel to its loss and to the slopes of the backward pass, for every
// device.
#pragma once

#include "base/host_device.hpp"
#include "kernels/overlap_loss/overlap_loss.hpp"

namespace vesal::kernels {

struct OverlapSums {
  double product, probability, target;
};

struct OverlapTerm {
  double loss;              // 1 - A / B
  double constant, linear;  // d loss / d p = constant - linear t
};

// dA/dp = a t with a = 2 for Dice and 1 for IoU; dB/dp = 1 for Dice and 1 - t for IoU; so
// d(1 - A/B)/dp = (A dB/dp - B dA/dp) / B^2 = A / B^2 - t (a B + [iou] A) / B^2.
VESAL_HOST_DEVICE inline OverlapTerm overlap_term(Overlap kind, double smooth, const OverlapSums& sums) {
  const bool iou = kind == Overlap::iou;
  const double a = iou ? 1.0 : 2.0;
  const double numerator = a * sums.product + smooth;
  const double denominator = sums.probability + sums.target - (iou ? sums.product : 0.0) + smooth;
  const double constant = numerator / denominator / denominator;
  return {1.0 - numerator / denominator, constant, a / denominator + (iou ? constant : 0.0)};
}

}  // namespace vesal::kernels
