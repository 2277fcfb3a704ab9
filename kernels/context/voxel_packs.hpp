// Which voxel and which channels of a channels-last volume belong to a thread, in the portable kernel
// dialect; for .cu files.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/context/divider.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {

template <class Index>
struct VoxelPack {
  Index n;
  int d, h, w;
  Index c;  // the first channel
};

// [n, d, h, w, c] in packs of kWidth channels, which divides c: pack i begins at element i * kWidth. Index is
// int or int64_t, that of element numbers.
template <class Index, int kWidth>
struct VoxelPacks {
  Index count;  // in all
  Index packs;  // of a voxel
  int d, h, w;
  Divider<Index> by_packs, by_d, by_h, by_w;

  // Where there are none, nothing is divided.
  VoxelPacks(int64_t n, int64_t d_, int64_t h_, int64_t w_, int64_t c)
      : count(static_cast<Index>(n * d_ * h_ * w_ * (c / kWidth))),
        packs(static_cast<Index>(c / kWidth)),
        d(static_cast<int>(d_)),
        h(static_cast<int>(h_)),
        w(static_cast<int>(w_)),
        by_packs(std::max(packs, Index{1})),
        by_d(std::max(d, 1)),
        by_h(std::max(h, 1)),
        by_w(std::max(w, 1)) {}

  VESAL_DEVICE VoxelPack<Index> at(Index pack) const {
    VoxelPack<Index> p;
    Index rest = by_packs.divide(pack);
    p.c = (pack - rest * packs) * kWidth;
    Index next = by_w.divide(rest);
    p.w = static_cast<int>(rest - next * w);
    rest = next;
    next = by_h.divide(rest);
    p.h = static_cast<int>(rest - next * h);
    p.n = by_d.divide(next);
    p.d = static_cast<int>(next - p.n * d);
    return p;
  }
};

}  // namespace vesal::kernels::VESAL_BACKEND
