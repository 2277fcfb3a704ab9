// How conv3d's device code sees a convolution.
#pragma once

#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

struct Triple {
  int d, h, w;

  VESAL_HOST_DEVICE int product() const { return d * h * w; }
};

// A convolution as the kernels see it: `source` is gathered from, `target` is written (x and y, exchanged for
// the data gradient).
struct Geometry {
  Triple source, target, kernel, stride, padding, dilation;
  Triple period;  // stride / gcd(stride, dilation): the step between taps that meet the same voxel of dx
  int n;
  int channels;  // of the source that a group reads
  int pitch;     // all channels of a voxel of the source
  int residues;  // pieces of a group
};

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
