// Tiles over a volume and the blending of their results, slab by slab.
//
// Starts are evenly spread and cover both ends exactly, round(linspace) as in nnU-Net (Isensee et al., Nature
// Methods 2021). Tiles are weighted with a Gaussian about their centre, so that borders, which see less
// context, count little.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "imaging/volume.hpp"

namespace vesal::imaging {

// First voxels of the tiles on one axis. overlap in [0, 1) is the share that neighbours have in common at
// least (nnU-Net's step size is 1 - overlap). An extent smaller than the tile gives one negative start: the
// volume is centred in the tile and padded.
std::vector<int64_t> tile_starts(int64_t extent, int64_t tile, double overlap);

// All tiles of a volume in the order in which SlabBlender wants them: z slowest, x fastest.
std::vector<Size3> tile_grid(Size3 volume, Size3 tile, double overlap);

// [D, H, W] weights exp(-r^2 / 2) with sigma = tile / 8 on each axis about the tile's centre; the largest is
// scaled to 1, and none is below the smallest positive normal float, so that every voxel can be normalised.
std::vector<float> gaussian_weights(Size3 tile);

// Sums weighted tiles and hands out finished slices. It holds tile.z slices of sums, whatever the volume's
// depth.
class SlabBlender {
 public:
  // Called with the normalised values [z_end - z_begin, H, W, channels] of the slices [z_begin, z_end), in
  // order, every slice once.
  using Callback = std::function<void(int64_t z_begin, int64_t z_end, std::span<const float> values)>;

  SlabBlender(Size3 volume, Size3 tile, int64_t channels, Callback finished);

  // values: [D, H, W, channels] of the tile at `start`. Tiles come with non-decreasing start.z; what lies
  // outside the volume is dropped. Throws ShapeError otherwise.
  void add(Size3 start, std::span<const float> values);
  // Hands out the rest. Throws ShapeError when voxels were covered by no tile.
  void finish();

  // Bytes held, for a memory plan.
  static int64_t bytes(Size3 volume, Size3 tile, int64_t channels);

 private:
  void release(int64_t z_end);

  Size3 volume_;
  Size3 tile_;
  int64_t channels_;
  Callback finished_;
  std::vector<float> weights_;  // of one tile
  int64_t depth_;               // slices held
  int64_t next_ = 0;            // first slice not handed out
  std::vector<float> sums_;     // [depth, H, W, channels], slice z at z % depth
  std::vector<float> totals_;   // [depth, H, W]
  std::vector<float> output_;
};

}  // namespace vesal::imaging
