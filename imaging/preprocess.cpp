// Crop, resample, z-score, and the way back: see preprocess.hpp.
#include "imaging/preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/parallel.hpp"
#include "imaging/components.hpp"
#include "imaging/resample.hpp"

namespace vesal::imaging {
namespace {

constexpr int64_t kRestoreSlices = 8;  // full-size slices that exist at a time on the way back

// Mean 0 and standard deviation 1 inside the mask, 0 outside. Sums are in double and per slice, added in
// slice order, so that they do not depend on the number of threads.
void normalise(Image& image, const LabelMap& mask) {
  const Size3 n = image.size();
  const int64_t plane = n.x * n.y;
  const auto total_of = [&](const auto& value) {
    std::vector<double> sums(static_cast<size_t>(n.z), 0.0);
    parallel_for(n.z, 1, [&](int64_t begin, int64_t end) {
      for (int64_t z = begin; z < end; ++z) {
        double sum = 0;
        for (int64_t i = z * plane; i < (z + 1) * plane; ++i) {
          if (mask.data[static_cast<size_t>(i)] != 0) {
            sum += value(static_cast<size_t>(i));
          }
        }
        sums[static_cast<size_t>(z)] = sum;
      }
    });
    double total = 0;
    for (const double sum : sums) {
      total += sum;
    }
    return total;
  };
  const double inside = total_of([](size_t) { return 1.0; });
  const double mean =
      inside > 0 ? total_of([&](size_t i) { return static_cast<double>(image.data[i]); }) / inside : 0;
  const double variance = inside > 0 ? total_of([&](size_t i) {
                                         const double d = static_cast<double>(image.data[i]) - mean;
                                         return d * d;
                                       }) / inside
                                     : 0;
  // A constant modality becomes 0 everywhere instead of noise blown up.
  const double deviation = std::sqrt(variance);
  const double factor = deviation > 1e-6 * std::max(1.0, std::abs(mean)) ? 1.0 / deviation : 0.0;
  parallel_for(n.z, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * plane; i < end * plane; ++i) {
      float& value = image.data[static_cast<size_t>(i)];
      value = mask.data[static_cast<size_t>(i)] != 0
                  ? static_cast<float>((static_cast<double>(value) - mean) * factor)
                  : 0.0f;
    }
  });
}

// Walks over the slices of the cropped grid: decide(z, values [H, W, channels]) for each, in order.
template <class Decide>
void for_each_restored_slice(const PreparedCase& prepared, std::span<const float> values, int64_t channels,
                             const Decide& decide) {
  const Size3 from = prepared.geometry.size;
  const Size3 to = prepared.cropped.size;
  check<ShapeError>(static_cast<int64_t>(values.size()) == checked_mul(from.voxels(), channels),
                    "restore: ", values.size(), " values for ", to_string(from), " voxels with ", channels,
                    " channels");
  const int64_t plane = to.x * to.y * channels;
  if (from == to) {
    for (int64_t z = 0; z < to.z; ++z) {
      decide(z, values.data() + z * plane);
    }
    return;
  }
  const SliceResampler resampler(from, to, channels);
  std::vector<float> slab(static_cast<size_t>(plane * std::min(kRestoreSlices, to.z)));
  for (int64_t begin = 0; begin < to.z; begin += kRestoreSlices) {
    const int64_t end = std::min(begin + kRestoreSlices, to.z);
    resampler.run(values, begin, end, std::span(slab).first(static_cast<size_t>((end - begin) * plane)));
    for (int64_t z = begin; z < end; ++z) {
      decide(z, slab.data() + (z - begin) * plane);
    }
  }
}

template <class T, class Pick>
Volume<T> restore(const PreparedCase& prepared, std::span<const float> values, int64_t channels,
                  const Pick& pick) {
  Volume<T> result(prepared.original);
  const Size3 start = prepared.box.start;
  const Size3 size = prepared.cropped.size;
  for_each_restored_slice(prepared, values, channels, [&](int64_t z, const float* slice) {
    parallel_for(size.y, 16, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        const float* from = slice + y * size.x * channels;
        T* to = &result.at(start.x, start.y + y, start.z + z);
        for (int64_t x = 0; x < size.x; ++x) {
          to[x] = pick(from + x * channels);
        }
      }
    });
  });
  return result;
}

}  // namespace

PreparedCase prepare_case(const Case& source, const PreprocessOptions& options) {
  check<UsageError>(count(source.present) > 0, "case ", source.name, ": no modality is present");
  PreparedCase prepared;
  prepared.name = source.name;
  prepared.present = source.present;
  prepared.original = source.geometry;

  LabelMap head(source.geometry);
  for (const Modality modality : kModalities) {
    const size_t m = static_cast<size_t>(modality);
    if (!source.present[m]) {
      continue;
    }
    check<ShapeError>(source.images[m].size() == source.geometry.size, "case ", source.name, ": ",
                      name_of(modality), " has ", to_string(source.images[m].size()), " voxels, expected ",
                      to_string(source.geometry.size));
    parallel_for(static_cast<int64_t>(head.data.size()), 1 << 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        head.data[static_cast<size_t>(i)] |= source.images[m].data[static_cast<size_t>(i)] != 0.0f ? 1 : 0;
      }
    });
  }
  const auto box = bounding_box(head);
  check<FormatError>(box.has_value(), "case ", source.name, ": all voxels of all modalities are 0");
  prepared.box = *box;
  prepared.cropped = cropped_geometry(source.geometry, *box);

  Vector3 spacing = prepared.cropped.spacing_mm;
  for (int axis = 0; axis < 3; ++axis) {
    spacing[axis] = options.spacing_mm[axis] != 0 ? options.spacing_mm[axis] : spacing[axis];
  }
  prepared.geometry = geometry_for_spacing(prepared.cropped, spacing);
  prepared.mask = resample_to_grid(crop(head, *box), prepared.geometry);
  for (size_t m = 0; m < prepared.images.size(); ++m) {
    if (source.present[m]) {
      prepared.images[m] = resample_to_grid(crop(source.images[m], *box), prepared.geometry);
      normalise(prepared.images[m], prepared.mask);
    }
  }
  if (!source.labels.empty()) {
    prepared.labels = resample_to_grid(crop(source.labels, *box), prepared.geometry);
  }
  return prepared;
}

void extract_tile(const PreparedCase& prepared, Size3 start, Size3 tile, std::span<float> out) {
  check<ShapeError>(static_cast<int64_t>(out.size()) == tile.voxels() * kModalityCount,
                    "extract_tile: ", out.size(), " floats for a tile of ", to_string(tile), " voxels with ",
                    kModalityCount, " modalities");
  const Size3 n = prepared.geometry.size;
  parallel_for(tile.z, 1, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < tile.y; ++y) {
        float* row = out.data() + (z * tile.y + y) * tile.x * kModalityCount;
        std::fill_n(row, tile.x * kModalityCount, 0.0f);
        const int64_t from_z = start.z + z;
        const int64_t from_y = start.y + y;
        if (from_z < 0 || from_z >= n.z || from_y < 0 || from_y >= n.y) {
          continue;
        }
        const int64_t first = std::max<int64_t>(0, -start.x);
        const int64_t last = std::min<int64_t>(tile.x, n.x - start.x);
        for (size_t m = 0; m < prepared.images.size(); ++m) {
          if (!prepared.present[m]) {
            continue;
          }
          const float* from = prepared.images[m].data.data() + prepared.images[m].index(0, from_y, from_z);
          for (int64_t x = first; x < last; ++x) {
            row[x * kModalityCount + static_cast<int64_t>(m)] = from[start.x + x];
          }
        }
      }
    }
  });
}

LabelMap restore_region_labels(const PreparedCase& prepared, std::span<const float> probabilities,
                               float threshold) {
  return restore<uint8_t>(prepared, probabilities, kRegionCount,
                          [&](const float* p) { return label_of_regions(p[0], p[1], p[2], threshold); });
}

LabelMap restore_class_labels(const PreparedCase& prepared, std::span<const float> scores, int64_t classes) {
  check<ShapeError>(classes >= 1 && classes <= 256, "restore_class_labels: ", classes,
                    " classes, expected 1 to 256");
  return restore<uint8_t>(prepared, scores, classes, [&](const float* s) {
    return static_cast<uint8_t>(std::max_element(s, s + classes) - s);
  });
}

Image restore_probability(const PreparedCase& prepared, std::span<const float> probabilities,
                          int64_t channels, int64_t channel) {
  check<ShapeError>(channel >= 0 && channel < channels, "restore_probability: channel ", channel, " of ",
                    channels);
  return restore<float>(prepared, probabilities, channels, [&](const float* p) { return p[channel]; });
}

LabelMap restore_labels(const PreparedCase& prepared, const LabelMap& labels) {
  check<ShapeError>(labels.size() == prepared.geometry.size, "restore_labels: ", to_string(labels.size()),
                    " voxels, expected ", to_string(prepared.geometry.size));
  LabelMap on_grid = labels;
  on_grid.geometry = prepared.geometry;
  LabelMap result(prepared.original);
  paste(resample_to_grid(on_grid, prepared.cropped), prepared.box, result);
  return result;
}

}  // namespace vesal::imaging
