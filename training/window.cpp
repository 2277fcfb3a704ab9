#include "training/window.hpp"

#include <algorithm>
#include <array>

#include "base/parallel.hpp"

namespace vesal::training {
namespace {

using imaging::Size3;

bool holds_head(const imaging::LabelMap& mask, Size3 start, Size3 tile) {
  const Size3 size = mask.size();
  const int64_t x_begin = std::max<int64_t>(start.x, 0);
  const int64_t x_end = std::min(start.x + tile.x, size.x);
  for (int64_t z = std::max<int64_t>(start.z, 0); z < std::min(start.z + tile.z, size.z); ++z) {
    for (int64_t y = std::max<int64_t>(start.y, 0); y < std::min(start.y + tile.y, size.y); ++y) {
      const uint8_t* row = mask.data.data() + mask.index(0, y, z);
      if (std::any_of(row + x_begin, row + x_end, [](uint8_t inside) { return inside != 0; })) {
        return true;
      }
    }
  }
  return false;
}

// The combinations of mirrored axes that are shown, the tile as it is first.
std::vector<std::array<bool, 3>> mirror_images(const std::array<bool, 3>& axes) {
  std::vector<std::array<bool, 3>> images{{}};
  for (size_t axis = 0; axis < 3; ++axis) {
    for (size_t i = 0, n = images.size(); axes[axis] && i < n; ++i) {
      images.push_back(images[i]);
      images.back()[axis] = true;
    }
  }
  return images;
}

// to [D, H, W, channels] = from mirrored along the axes, X Y Z.
void mirror_tile(Size3 tile, int64_t channels, const std::array<bool, 3>& axes,
                 const std::vector<float>& from, std::vector<float>& to) {
  parallel_for(tile.z, 4, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < tile.y; ++y) {
        const int64_t row =
            ((axes[2] ? tile.z - 1 - z : z) * tile.y + (axes[1] ? tile.y - 1 - y : y)) * tile.x;
        float* target = to.data() + (z * tile.y + y) * tile.x * channels;
        for (int64_t x = 0; x < tile.x; ++x) {
          std::copy_n(from.data() + (row + (axes[0] ? tile.x - 1 - x : x)) * channels, channels,
                      target + x * channels);
        }
      }
    }
  });
}

}  // namespace

TileCount slide_window(const imaging::PreparedCase& prepared, std::span<const imaging::Modality> modalities,
                       int64_t channels, const PredictSettings& settings, const TileNetwork& network,
                       const imaging::SlabBlender::Callback& finished) {
  const Size3 tile = settings.patch;
  const auto inputs = static_cast<int64_t>(modalities.size());
  imaging::SlabBlender blender(prepared.size(), tile, channels, finished);
  std::vector<float> input(static_cast<size_t>(tile.voxels() * inputs));
  std::vector<float> output(static_cast<size_t>(tile.voxels() * channels));
  const std::vector<std::array<bool, 3>> images = mirror_images(settings.mirror);
  std::vector<float> mirrored_input(images.size() > 1 ? input.size() : 0);
  std::vector<float> mirrored_output(images.size() > 1 ? output.size() : 0);
  std::vector<float> back(mirrored_output.size());
  const std::vector<Size3> starts = imaging::tile_grid(prepared.size(), tile, settings.overlap);
  TileCount count{.all = static_cast<int64_t>(starts.size())};
  int64_t done = 0;
  for (const Size3 start : starts) {
    check<InterruptedError>(settings.stop == nullptr || !settings.stop->load(), prepared.name,
                            ": interrupted after ", done, " of ", count.all, " tiles");
    if (holds_head(prepared.mask, start, tile)) {
      imaging::extract_tile(prepared, start, tile, modalities, input);
      network(input, output);
      for (size_t image = 1; image < images.size(); ++image) {
        mirror_tile(tile, inputs, images[image], input, mirrored_input);
        network(mirrored_input, mirrored_output);
        mirror_tile(tile, channels, images[image], mirrored_output, back);
        for (size_t i = 0; i < output.size(); ++i) {
          output[i] += back[i];
        }
      }
      if (images.size() > 1) {
        const float share = 1.0f / static_cast<float>(images.size());
        std::for_each(output.begin(), output.end(), [share](float& value) { value *= share; });
      }
    } else {
      std::fill(output.begin(), output.end(), 0.0f);
      ++count.skipped;
    }
    blender.add(start, output);
    ++done;
    if (settings.progress) {
      settings.progress(done, count.all);
    }
  }
  blender.finish();
  return count;
}

}  // namespace vesal::training
