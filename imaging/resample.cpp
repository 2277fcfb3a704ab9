// Separable resampling: see resample.hpp.
#include "imaging/resample.hpp"

#include <algorithm>
#include <cmath>

#include "base/parallel.hpp"

namespace vesal::imaging {
namespace {

constexpr double kLowPassFrom = 1.5;  // scale from which weights widen

void require_same_box(const Geometry& source, const Geometry& target) {
  // Outer corners of both grids, half a voxel beyond the first and last centres.
  double worst = 0;
  double allowed = 0;
  for (int axis = 0; axis < 3; ++axis) {
    allowed = std::max({allowed, 0.5 * source.spacing_mm[axis], 0.5 * target.spacing_mm[axis]});
  }
  for (int corner = 0; corner < 8; ++corner) {
    Vector3 p;
    Vector3 q;
    for (int axis = 0; axis < 3; ++axis) {
      const bool far = (corner >> axis) & 1;
      p[axis] = far ? static_cast<double>(source.size[axis]) - 0.5 : -0.5;
      q[axis] = far ? static_cast<double>(target.size[axis]) - 0.5 : -0.5;
    }
    const Vector3 a = apply(source.affine, p);
    const Vector3 b = apply(target.affine, q);
    worst = std::max(worst, std::hypot(a.x - b.x, a.y - b.y, a.z - b.z));
  }
  check<ShapeError>(worst <= allowed, "resample: the grids ", to_string(source.size), " at ",
                    to_string(source.spacing_mm), " mm and ", to_string(target.size), " at ",
                    to_string(target.spacing_mm), " mm do not cover the same box: corners are ", worst,
                    " mm apart");
}

}  // namespace

Geometry geometry_for_spacing(const Geometry& geometry, Vector3 spacing_mm) {
  Geometry result = geometry;
  Vector3 corner{-0.5, -0.5, -0.5};
  for (int axis = 0; axis < 3; ++axis) {
    check<UsageError>(std::isfinite(spacing_mm[axis]) && spacing_mm[axis] > 0, "spacing ",
                      to_string(spacing_mm), " mm: expected three positive numbers");
    const double extent = static_cast<double>(geometry.size[axis]) * geometry.spacing_mm[axis];
    const int64_t n = std::max<int64_t>(1, std::llround(extent / spacing_mm[axis]));
    if (n == geometry.size[axis]) {
      continue;
    }
    const double scale = static_cast<double>(geometry.size[axis]) / static_cast<double>(n);
    result.size[axis] = n;
    result.spacing_mm[axis] = extent / static_cast<double>(n);
    for (size_t row = 0; row < 3; ++row) {
      result.affine[row][static_cast<size_t>(axis)] *= scale;
    }
    corner[axis] = 0.5 * scale - 0.5;  // the first target voxel, in source voxels
  }
  if (result.size != geometry.size) {
    for (int axis = 0; axis < 3; ++axis) {
      corner[axis] = result.size[axis] == geometry.size[axis] ? 0.0 : corner[axis];
    }
    const Vector3 first = apply(geometry.affine, corner);
    for (int axis = 0; axis < 3; ++axis) {
      result.affine[static_cast<size_t>(axis)][3] = first[axis];
    }
  }
  return result;
}

SliceResampler::Axis SliceResampler::make_axis(int64_t source, int64_t target) {
  Axis axis;
  axis.offset.push_back(0);
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  const double half_width = scale >= kLowPassFrom ? scale : 1.0;
  for (int64_t t = 0; t < target; ++t) {
    const double centre = (static_cast<double>(t) + 0.5) * scale - 0.5;
    const int64_t low = static_cast<int64_t>(std::floor(centre - half_width)) + 1;
    const int64_t high = static_cast<int64_t>(std::ceil(centre + half_width)) - 1;
    const int64_t first = std::clamp<int64_t>(low, 0, source - 1);
    const int64_t last = std::clamp<int64_t>(high, 0, source - 1);
    std::vector<double> weights(static_cast<size_t>(last - first + 1), 0.0);
    double total = 0;
    for (int64_t s = low; s <= high; ++s) {
      const double weight = 1.0 - std::abs(static_cast<double>(s) - centre) / half_width;
      // A low-pass is cut off at the faces; two linear weights go on with the nearest voxel.
      const bool inside = s >= 0 && s < source;
      if (half_width > 1.0 && !inside) {
        continue;
      }
      weights[static_cast<size_t>(std::clamp<int64_t>(s, first, last) - first)] += weight;
      total += weight;
    }
    axis.first.push_back(first);
    for (const double weight : weights) {
      axis.weight.push_back(static_cast<float>(weight / total));
    }
    axis.offset.push_back(static_cast<int64_t>(axis.weight.size()));
  }
  return axis;
}

SliceResampler::SliceResampler(Size3 source, Size3 target, int64_t channels)
    : source_(source), target_(target), channels_(channels) {
  for (int axis = 0; axis < 3; ++axis) {
    check<ShapeError>(source[axis] >= 1 && target[axis] >= 1 && channels >= 1,
                      "resample: ", to_string(source), " to ", to_string(target), " voxels with ", channels,
                      " channels: expected at least 1 of each");
    axes_[static_cast<size_t>(axis)] = make_axis(source[axis], target[axis]);
  }
}

void SliceResampler::run(std::span<const float> source, int64_t z_begin, int64_t z_end,
                         std::span<float> out) const {
  const int64_t slices = z_end - z_begin;
  check<ShapeError>(static_cast<int64_t>(source.size()) == checked_mul(source_.voxels(), channels_) &&
                        z_begin >= 0 && slices >= 0 && z_end <= target_.z &&
                        static_cast<int64_t>(out.size()) == slices * target_.y * target_.x * channels_,
                    "resample: slices [", z_begin, ", ", z_end, ") of ", to_string(target_), " from ",
                    to_string(source_), " with ", channels_, " channels: spans of ", source.size(), " and ",
                    out.size(), " floats do not fit");
  const int64_t source_row = source_.x * channels_;
  const int64_t source_plane = source_.y * source_row;
  const int64_t target_row = target_.x * channels_;
  const auto& [ax, ay, az] = axes_;
  parallel_for(slices, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> plane(static_cast<size_t>(source_plane));
    std::vector<float> row(static_cast<size_t>(source_row));
    // sum of weight * lines, `length` floats each, `stride` apart; a single weight of 1 is a copy.
    const auto blend = [](const Axis& axis, int64_t position, const float* lines, int64_t stride,
                          int64_t length, float* to) {
      const int64_t from = axis.offset[static_cast<size_t>(position)];
      const int64_t taps = axis.offset[static_cast<size_t>(position) + 1] - from;
      const float* line = lines + axis.first[static_cast<size_t>(position)] * stride;
      const float* weight = axis.weight.data() + from;
      for (int64_t i = 0; i < length; ++i) {
        to[i] = weight[0] * line[i];
      }
      for (int64_t tap = 1; tap < taps; ++tap) {
        const float w = weight[tap];
        if (w == 0.0f) {
          continue;
        }
        const float* next = line + tap * stride;
        for (int64_t i = 0; i < length; ++i) {
          to[i] += w * next[i];
        }
      }
    };
    for (int64_t slice = begin; slice < end; ++slice) {
      blend(az, z_begin + slice, source.data(), source_plane, source_plane, plane.data());
      for (int64_t y = 0; y < target_.y; ++y) {
        blend(ay, y, plane.data(), source_row, source_row, row.data());
        float* to = out.data() + (slice * target_.y + y) * target_row;
        for (int64_t x = 0; x < target_.x; ++x) {
          blend(ax, x, row.data(), channels_, channels_, to + x * channels_);
        }
      }
    }
  });
}

Image resample_to_grid(const Image& image, const Geometry& target) {
  require_same_box(image.geometry, target);
  if (image.size() == target.size) {
    Image copy = image;
    copy.geometry = target;
    return copy;
  }
  Image result(target);
  SliceResampler(image.size(), target.size, 1).run(image.data, 0, target.size.z, result.data);
  return result;
}

Image resample_to_spacing(const Image& image, Vector3 spacing_mm) {
  return resample_to_grid(image, geometry_for_spacing(image.geometry, spacing_mm));
}

LabelMap resample_to_grid(const LabelMap& labels, const Geometry& target) {
  require_same_box(labels.geometry, target);
  if (labels.size() == target.size) {
    LabelMap copy = labels;
    copy.geometry = target;
    return copy;
  }
  std::array<bool, 256> occurs{};
  for (const uint8_t label : labels.data) {
    occurs[label] = true;
  }
  // One label at a time, so that memory stays at two float volumes whatever the number of labels.
  LabelMap result(target);
  std::vector<float> best(result.data.size(), -1.0f);
  std::vector<float> share(result.data.size());
  std::vector<float> one_hot(labels.data.size());
  const SliceResampler resampler(labels.size(), target.size, 1);
  for (int label = 0; label < 256; ++label) {
    if (!occurs[static_cast<size_t>(label)]) {
      continue;
    }
    for (size_t i = 0; i < one_hot.size(); ++i) {
      one_hot[i] = labels.data[i] == label ? 1.0f : 0.0f;
    }
    resampler.run(one_hot, 0, target.size.z, share);
    for (size_t i = 0; i < share.size(); ++i) {
      if (share[i] > best[i]) {
        best[i] = share[i];
        result.data[i] = static_cast<uint8_t>(label);
      }
    }
  }
  return result;
}

LabelMap resample_to_spacing(const LabelMap& labels, Vector3 spacing_mm) {
  return resample_to_grid(labels, geometry_for_spacing(labels.geometry, spacing_mm));
}

LabelMap resample_nearest(const LabelMap& labels, const Geometry& target) {
  require_same_box(labels.geometry, target);
  LabelMap result(target);
  const auto nearest = [&](int axis, int64_t t) {
    // floor((t + 0.5) * n_source / n_target) in whole numbers: the voxel that holds the target's centre.
    return (2 * t + 1) * labels.size()[axis] / (2 * target.size[axis]);
  };
  parallel_for(target.size.z, 1, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < target.size.y; ++y) {
        for (int64_t x = 0; x < target.size.x; ++x) {
          result.at(x, y, z) = labels.at(nearest(0, x), nearest(1, y), nearest(2, z));
        }
      }
    }
  });
  return result;
}

}  // namespace vesal::imaging
