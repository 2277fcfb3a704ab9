// Tile starts, Gaussian weights, slab-wise blending: see sliding_window.hpp.
#include "imaging/sliding_window.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/parallel.hpp"

namespace vesal::imaging {

std::vector<int64_t> tile_starts(int64_t extent, int64_t tile, double overlap) {
  check<UsageError>(extent >= 1 && tile >= 1, "tile of ", tile, " voxels over ", extent,
                    ": expected at least 1");
  check<UsageError>(overlap >= 0 && overlap < 1, "tile overlap ", overlap, ": expected 0 <= overlap < 1");
  if (extent <= tile) {
    return {-((tile - extent) / 2)};
  }
  const double step = std::max(1.0, static_cast<double>(tile) * (1.0 - overlap));
  // A quotient that is whole but for rounding must not cost one more tile.
  const int64_t steps = static_cast<int64_t>(std::ceil(static_cast<double>(extent - tile) / step - 1e-9));
  const double spread = static_cast<double>(extent - tile) / static_cast<double>(steps);
  std::vector<int64_t> starts;
  for (int64_t i = 0; i <= steps; ++i) {
    starts.push_back(std::llround(spread * static_cast<double>(i)));
  }
  return starts;
}

std::vector<Size3> tile_grid(Size3 volume, Size3 tile, double overlap) {
  const std::vector<int64_t> xs = tile_starts(volume.x, tile.x, overlap);
  const std::vector<int64_t> ys = tile_starts(volume.y, tile.y, overlap);
  const std::vector<int64_t> zs = tile_starts(volume.z, tile.z, overlap);
  std::vector<Size3> grid;
  for (const int64_t z : zs) {
    for (const int64_t y : ys) {
      for (const int64_t x : xs) {
        grid.push_back({x, y, z});
      }
    }
  }
  return grid;
}

std::vector<float> gaussian_weights(Size3 tile) {
  std::array<std::vector<double>, 3> line;
  for (int axis = 0; axis < 3; ++axis) {
    const double sigma = static_cast<double>(tile[axis]) / 8.0;
    const double centre = 0.5 * static_cast<double>(tile[axis] - 1);
    for (int64_t i = 0; i < tile[axis]; ++i) {
      const double r = (static_cast<double>(i) - centre) / sigma;
      line[static_cast<size_t>(axis)].push_back(std::exp(-0.5 * r * r));
    }
  }
  std::vector<float> weights;
  weights.reserve(static_cast<size_t>(tile.voxels()));
  double largest = 1;
  for (const auto& values : line) {
    largest *= *std::max_element(values.begin(), values.end());
  }
  for (const double z : line[2]) {
    for (const double y : line[1]) {
      for (const double x : line[0]) {
        weights.push_back(
            std::max(static_cast<float>(x * y * z / largest), std::numeric_limits<float>::min()));
      }
    }
  }
  return weights;
}

SlabBlender::SlabBlender(Size3 volume, Size3 tile, int64_t channels, Callback finished)
    : volume_(volume),
      tile_(tile),
      channels_(channels),
      finished_(std::move(finished)),
      weights_(gaussian_weights(tile)),
      depth_(std::min(volume.z, tile.z)) {
  check<ShapeError>(volume.voxels() > 0 && tile.voxels() > 0 && channels > 0, "blender: volume ",
                    to_string(volume), ", tile ", to_string(tile), ", ", channels,
                    " channels: expected at least 1 of each");
  const int64_t plane = checked_mul(volume.x, volume.y);
  totals_.assign(static_cast<size_t>(checked_mul(plane, depth_)), 0.0f);
  sums_.assign(static_cast<size_t>(checked_mul(checked_mul(plane, depth_), channels)), 0.0f);
}

int64_t SlabBlender::bytes(Size3 volume, Size3 tile, int64_t channels) {
  const int64_t voxels = Size3{volume.x, volume.y, std::min(volume.z, tile.z)}.voxels();
  // Sums, totals, the slab that is handed out, the tile's weights.
  return 4 * (checked_mul(voxels, 2 * channels + 1) + tile.voxels());
}

void SlabBlender::add(Size3 start, std::span<const float> values) {
  check<ShapeError>(static_cast<int64_t>(values.size()) == tile_.voxels() * channels_, "blender: a tile of ",
                    values.size(), " values, expected ", to_string(tile_), " voxels with ", channels_,
                    " channels");
  const int64_t first_z = std::max<int64_t>(start.z, 0);
  check<ShapeError>(first_z >= next_, "blender: tile at slice ", start.z, " after slices up to ", next_,
                    " were handed out; tiles come in the order of z");
  release(std::min(first_z, volume_.z));
  const int64_t last_z = std::min(start.z + tile_.z, volume_.z);
  const int64_t first_x = std::max<int64_t>(start.x, 0);
  const int64_t last_x = std::min(start.x + tile_.x, volume_.x);
  parallel_for(last_z - first_z, 1, [&](int64_t begin, int64_t end) {
    for (int64_t z = first_z + begin; z < first_z + end; ++z) {
      for (int64_t y = std::max<int64_t>(start.y, 0); y < std::min(start.y + tile_.y, volume_.y); ++y) {
        const int64_t from = ((z - start.z) * tile_.y + (y - start.y)) * tile_.x - start.x;
        const int64_t to = (z % depth_ * volume_.y + y) * volume_.x;
        for (int64_t x = first_x; x < last_x; ++x) {
          const float weight = weights_[static_cast<size_t>(from + x)];
          totals_[static_cast<size_t>(to + x)] += weight;
          const float* value = values.data() + (from + x) * channels_;
          float* sum = sums_.data() + (to + x) * channels_;
          for (int64_t c = 0; c < channels_; ++c) {
            sum[c] += weight * value[c];
          }
        }
      }
    }
  });
}

void SlabBlender::release(int64_t z_end) {
  if (z_end <= next_) {
    return;
  }
  check<ShapeError>(z_end - next_ <= depth_, "blender: slices ", next_ + depth_, " to ", z_end,
                    " are covered by no tile");
  const int64_t plane = volume_.x * volume_.y;
  output_.resize(static_cast<size_t>((z_end - next_) * plane * channels_));
  for (int64_t z = next_; z < z_end; ++z) {
    float* total = totals_.data() + z % depth_ * plane;
    float* sum = sums_.data() + z % depth_ * plane * channels_;
    check<ShapeError>(*std::min_element(total, total + plane) > 0, "blender: voxels of slice ", z,
                      " are covered by no tile");
    float* out = output_.data() + (z - next_) * plane * channels_;
    for (int64_t i = 0; i < plane; ++i) {
      for (int64_t c = 0; c < channels_; ++c) {
        out[i * channels_ + c] = sum[i * channels_ + c] / total[i];
      }
    }
    std::fill_n(total, plane, 0.0f);
    std::fill_n(sum, plane * channels_, 0.0f);
  }
  const int64_t begin = std::exchange(next_, z_end);
  finished_(begin, z_end, output_);
}

void SlabBlender::finish() { release(volume_.z); }

}  // namespace vesal::imaging
