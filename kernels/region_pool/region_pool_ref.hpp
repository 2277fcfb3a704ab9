// Plain references of pooling by regions. They read the labels only: the index that the kernels share is no
// part of the maths.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/region_pool/region_pool.hpp"

namespace vesal::kernels::reference {

// Calls body(voxel, region) for every voxel that is in a region, in the order of the voxels; both count over
// the batch.
template <class Body>
void for_each_labelled(const RegionParams& p, const int32_t* labels, Body&& body) {
  for (int64_t s = 0; s < p.n; ++s) {
    for (int64_t v = 0; v < p.voxels; ++v) {
      const int64_t label = labels[s * p.voxels + v];
      if (label >= 0 && label < p.regions) {
        body(s * p.voxels + v, s * p.regions + label);
      }
    }
  }
}

inline std::vector<int64_t> region_sizes(const RegionParams& p, const int32_t* labels) {
  std::vector<int64_t> sizes(static_cast<size_t>(p.n * p.regions), 0);
  for_each_labelled(p, labels, [&](int64_t, int64_t region) { ++sizes[static_cast<size_t>(region)]; });
  return sizes;
}

template <class T>
void region_gather_backward(const RegionParams& p, int64_t channels, const int32_t* labels, const T* dy,
                            T* dx) {
  std::fill(dx, dx + p.n * p.regions * channels, T(0));
  for_each_labelled(p, labels, [&](int64_t voxel, int64_t region) {
    for (int64_t c = 0; c < channels; ++c) {
      dx[region * channels + c] += dy[voxel * channels + c];
    }
  });
}

template <class T>
void region_gather_forward(const RegionParams& p, int64_t channels, const int32_t* labels, const T* x, T* y) {
  std::fill(y, y + p.n * p.voxels * channels, T(0));
  for_each_labelled(p, labels, [&](int64_t voxel, int64_t region) {
    std::copy_n(x + region * channels, channels, y + voxel * channels);
  });
}

template <class T>
void region_mean_forward(const RegionParams& p, int64_t channels, const int32_t* labels, const T* x,
                         T* means) {
  region_gather_backward(p, channels, labels, x, means);
  const std::vector<int64_t> sizes = region_sizes(p, labels);
  for (size_t i = 0; i < sizes.size() * static_cast<size_t>(channels); ++i) {
    const int64_t size = sizes[i / static_cast<size_t>(channels)];
    means[i] = size > 0 ? means[i] / static_cast<T>(size) : T(0);
  }
}

template <class T>
void region_mean_backward(const RegionParams& p, int64_t channels, const int32_t* labels, const T* dmeans,
                          T* dx) {
  std::fill(dx, dx + p.n * p.voxels * channels, T(0));
  const std::vector<int64_t> sizes = region_sizes(p, labels);
  for_each_labelled(p, labels, [&](int64_t voxel, int64_t region) {
    for (int64_t c = 0; c < channels; ++c) {
      dx[voxel * channels + c] =
          dmeans[region * channels + c] / static_cast<T>(sizes[static_cast<size_t>(region)]);
    }
  });
}

}  // namespace vesal::kernels::reference
