// Crop, resample, scale, and the way back: see preprocess.hpp.
#include "imaging/preprocess.hpp"

#include <algorithm>
#include <charconv>
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
void normalise_in_mask(Image& image, const LabelMap& mask) {
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

// `low` becomes 0 and `high` 1, clipped to that range.
void normalise_range(Image& image, double low, double high) {
  const double factor = high > low ? 1.0 / (high - low) : 0.0;
  parallel_for(static_cast<int64_t>(image.data.size()), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float& value = image.data[static_cast<size_t>(i)];
      value = static_cast<float>(std::clamp((static_cast<double>(value) - low) * factor, 0.0, 1.0));
    }
  });
}

void normalise(Image& image, const LabelMap& mask, const IntensityScaling& scaling) {
  switch (scaling.kind) {
    case IntensityScaling::Kind::zscore:
      return normalise_in_mask(image, mask);
    case IntensityScaling::Kind::minmax: {
      const auto [low, high] = std::minmax_element(image.data.begin(), image.data.end());
      return normalise_range(image, static_cast<double>(*low), static_cast<double>(*high));
    }
    case IntensityScaling::Kind::quantiles: {
      const auto [low, high] = quantiles(image.data, scaling.low, scaling.high);
      return normalise_range(image, low, high);
    }
  }
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

constexpr std::string_view kQuantiles = "quantiles ";

}  // namespace

IntensityScaling parse_intensity_scaling(std::string_view text) {
  if (text == "zscore") {
    return {};
  }
  if (text == "minmax") {
    return {.kind = IntensityScaling::Kind::minmax};
  }
  IntensityScaling scaling{.kind = IntensityScaling::Kind::quantiles};
  bool good = text.starts_with(kQuantiles);
  if (good) {
    const char* next = text.data() + kQuantiles.size();
    const char* end = text.data() + text.size();
    const auto low = std::from_chars(next, end, scaling.low);
    good = low.ec == std::errc() && low.ptr != end && *low.ptr == ' ';
    if (good) {
      const auto high = std::from_chars(low.ptr + 1, end, scaling.high);
      good = high.ec == std::errc() && high.ptr == end && scaling.low >= 0 && scaling.low < scaling.high &&
             scaling.high <= 1;
    }
  }
  check<UsageError>(good, "intensity: found ", text, ", expected zscore, minmax, or quantiles like ",
                    kQuantiles, "0.02 0.98");
  return scaling;
}

std::string to_string(const IntensityScaling& scaling) {
  switch (scaling.kind) {
    case IntensityScaling::Kind::zscore:
      return "zscore";
    case IntensityScaling::Kind::minmax:
      return "minmax";
    case IntensityScaling::Kind::quantiles:
      return concat(kQuantiles, scaling.low, " ", scaling.high);
  }
  return {};
}

std::pair<double, double> quantiles(std::span<const float> values, double low, double high) {
  check<ShapeError>(!values.empty(), "quantiles: no values");
  std::vector<float> sorted(values.begin(), values.end());
  const auto at = [&](double q) {
    const double place = q * static_cast<double>(sorted.size() - 1);
    const auto index = static_cast<std::ptrdiff_t>(place);
    const auto middle = sorted.begin() + index;
    std::nth_element(sorted.begin(), middle, sorted.end());
    const double below = static_cast<double>(*middle);
    const double rest = place - static_cast<double>(index);
    // The next order statistic is the least of those behind.
    return rest == 0
               ? below
               : below + rest * (static_cast<double>(*std::min_element(middle + 1, sorted.end())) - below);
  };
  const double first = at(low);
  return {first, at(high)};
}

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
  auto box = bounding_box(head);
  check<FormatError>(box.has_value(), "case ", source.name, ": all voxels of all modalities are 0");
  if (!options.crop_to_head) {
    box = Box3{{0, 0, 0}, source.geometry.size};
    std::fill(head.data.begin(), head.data.end(), uint8_t{1});
  }
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
      normalise(prepared.images[m], prepared.mask, options.intensity);
    }
  }
  if (!source.labels.empty()) {
    prepared.labels = resample_to_grid(crop(source.labels, *box), prepared.geometry);
  }
  return prepared;
}

void extract_tile(const PreparedCase& prepared, Size3 start, Size3 tile, std::span<float> out) {
  extract_tile(prepared, start, tile, kModalities, out);
}

void extract_tile(const PreparedCase& prepared, Size3 start, Size3 tile, std::span<const Modality> channels,
                  std::span<float> out) {
  const auto count = static_cast<int64_t>(channels.size());
  check<ShapeError>(static_cast<int64_t>(out.size()) == tile.voxels() * count, "extract_tile: ", out.size(),
                    " floats for a tile of ", to_string(tile), " voxels with ", count, " modalities");
  const Size3 n = prepared.geometry.size;
  parallel_for(tile.z, 1, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < tile.y; ++y) {
        float* row = out.data() + (z * tile.y + y) * tile.x * count;
        std::fill_n(row, tile.x * count, 0.0f);
        const int64_t from_z = start.z + z;
        const int64_t from_y = start.y + y;
        if (from_z < 0 || from_z >= n.z || from_y < 0 || from_y >= n.y) {
          continue;
        }
        const int64_t first = std::max<int64_t>(0, -start.x);
        const int64_t last = std::min<int64_t>(tile.x, n.x - start.x);
        for (int64_t c = 0; c < count; ++c) {
          const auto m = static_cast<size_t>(channels[static_cast<size_t>(c)]);
          if (!prepared.present[m]) {
            continue;
          }
          const float* from = prepared.images[m].data.data() + prepared.images[m].index(0, from_y, from_z);
          for (int64_t x = first; x < last; ++x) {
            row[x * count + c] = from[start.x + x];
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
