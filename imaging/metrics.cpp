// Overlap and surface distance: see metrics.hpp.
#include "imaging/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.hpp"
#include "imaging/components.hpp"

namespace vesal::imaging {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Scratch of one line of the distance transform.
struct Line {
  explicit Line(int64_t n)
      : values(static_cast<size_t>(n)), site(static_cast<size_t>(n)), bound(static_cast<size_t>(n) + 1) {}
  std::vector<double> values;
  std::vector<int64_t> site;  // parabolas of the lower envelope
  std::vector<double> bound;  // where each takes over, in steps
};

// out[q] = min over p of f[p] + (step * (q - p))^2, in place on n values `stride` apart.
void transform_line(double* f, int64_t n, int64_t stride, double step, Line& line) {
  int64_t used = 0;
  const double square = step * step;
  for (int64_t q = 0; q < n; ++q) {
    const double fq = f[q * stride];
    line.values[static_cast<size_t>(q)] = fq;
    if (fq == kInfinity) {
      continue;
    }
    double cross = -kInfinity;
    while (used > 0) {
      const int64_t p = line.site[static_cast<size_t>(used - 1)];
      const double fp = line.values[static_cast<size_t>(p)];
      cross = ((fq - fp) / square + static_cast<double>(q * q - p * p)) / (2.0 * static_cast<double>(q - p));
      if (cross > line.bound[static_cast<size_t>(used - 1)]) {
        break;
      }
      --used;
      cross = -kInfinity;
    }
    line.site[static_cast<size_t>(used)] = q;
    line.bound[static_cast<size_t>(used)] = cross;
    ++used;
  }
  if (used == 0) {
    return;
  }
  int64_t k = 0;
  for (int64_t q = 0; q < n; ++q) {
    while (k + 1 < used && line.bound[static_cast<size_t>(k + 1)] < static_cast<double>(q)) {
      ++k;
    }
    const int64_t p = line.site[static_cast<size_t>(k)];
    const double distance = step * static_cast<double>(q - p);
    f[q * stride] = distance * distance + line.values[static_cast<size_t>(p)];
  }
}

// Voxels of the mask with a face neighbour outside it.
std::vector<uint8_t> surface_of(const LabelMap& mask) {
  const Size3 n = mask.size();
  std::vector<uint8_t> surface(mask.data.size(), 0);
  const auto inside = [&](int64_t x, int64_t y, int64_t z) {
    return x >= 0 && x < n.x && y >= 0 && y < n.y && z >= 0 && z < n.z && mask.at(x, y, z) != 0;
  };
  parallel_for(n.z, 4, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < n.y; ++y) {
        for (int64_t x = 0; x < n.x; ++x) {
          if (mask.at(x, y, z) == 0) {
            continue;
          }
          const bool enclosed = inside(x - 1, y, z) && inside(x + 1, y, z) && inside(x, y - 1, z) &&
                                inside(x, y + 1, z) && inside(x, y, z - 1) && inside(x, y, z + 1);
          surface[static_cast<size_t>(mask.index(x, y, z))] = enclosed ? 0 : 1;
        }
      }
    }
  });
  return surface;
}

double hd95(const LabelMap& prediction, const LabelMap& reference) {
  // Both surfaces lie within the box around both masks, and so do all distances between them.
  LabelMap both(reference.geometry);
  for (size_t i = 0; i < both.data.size(); ++i) {
    both.data[i] = (prediction.data[i] != 0 || reference.data[i] != 0) ? 1 : 0;
  }
  const Box3 box = *bounding_box(both);
  const std::vector<uint8_t> a = surface_of(crop(prediction, box));
  const std::vector<uint8_t> b = surface_of(crop(reference, box));
  std::vector<double> distances;
  const auto collect = [&](const std::vector<uint8_t>& from, const std::vector<uint8_t>& to) {
    const std::vector<double> squares = squared_distance_mm2(to, box.size, reference.geometry.spacing_mm);
    for (size_t i = 0; i < from.size(); ++i) {
      if (from[i] != 0) {
        distances.push_back(std::sqrt(squares[i]));
      }
    }
  };
  collect(a, b);
  collect(b, a);
  return percentile(std::move(distances), 95.0);
}

}  // namespace

std::vector<double> squared_distance_mm2(std::span<const uint8_t> feature, Size3 size, Vector3 spacing_mm) {
  check<ShapeError>(static_cast<int64_t>(feature.size()) == size.voxels(),
                    "squared_distance_mm2: ", feature.size(), " voxels, expected ", to_string(size));
  std::vector<double> field(feature.size());
  for (size_t i = 0; i < feature.size(); ++i) {
    field[i] = feature[i] != 0 ? 0.0 : kInfinity;
  }
  const int64_t plane = size.x * size.y;
  parallel_for(size.z, 1, [&](int64_t begin, int64_t end) {
    Line line(std::max(size.x, size.y));
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < size.y; ++y) {
        transform_line(field.data() + z * plane + y * size.x, size.x, 1, spacing_mm.x, line);
      }
      for (int64_t x = 0; x < size.x; ++x) {
        transform_line(field.data() + z * plane + x, size.y, size.x, spacing_mm.y, line);
      }
    }
  });
  parallel_for(size.y, 1, [&](int64_t begin, int64_t end) {
    Line line(size.z);
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t x = 0; x < size.x; ++x) {
        transform_line(field.data() + y * size.x + x, size.z, plane, spacing_mm.z, line);
      }
    }
  });
  return field;
}

double percentile(std::vector<double> values, double q) {
  check<UsageError>(!values.empty() && q >= 0 && q <= 100, "percentile: ", q, " of ", values.size(),
                    " values");
  const double position = q / 100.0 * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(position);
  const auto low = values.begin() + static_cast<std::ptrdiff_t>(below);
  std::nth_element(values.begin(), low, values.end());
  const double fraction = position - static_cast<double>(below);
  if (fraction == 0 || below + 1 == values.size()) {
    return *low;
  }
  return *low + fraction * (*std::min_element(low + 1, values.end()) - *low);
}

MaskMetrics compare_masks(const LabelMap& prediction, const LabelMap& reference) {
  check<ShapeError>(prediction.size() == reference.size(), "compare_masks: prediction has ",
                    to_string(prediction.size()), " voxels, reference ", to_string(reference.size()));
  MaskMetrics m;
  for (size_t i = 0; i < reference.data.size(); ++i) {
    const bool p = prediction.data[i] != 0;
    const bool r = reference.data[i] != 0;
    m.tp += p && r;
    m.fp += p && !r;
    m.fn += !p && r;
  }
  m.tn = static_cast<int64_t>(reference.data.size()) - m.tp - m.fp - m.fn;
  m.reference_ml = static_cast<double>(m.reference_voxels()) * reference.geometry.voxel_ml();
  m.prediction_ml = static_cast<double>(m.prediction_voxels()) * reference.geometry.voxel_ml();
  m.both_empty = m.reference_voxels() == 0 && m.prediction_voxels() == 0;
  m.one_empty = !m.both_empty && (m.reference_voxels() == 0 || m.prediction_voxels() == 0);
  if (m.both_empty) {
    m.dice = 1;
    m.iou = 1;
    m.hd95_mm = 0;
  } else if (m.one_empty) {
    m.hd95_mm = kHd95OneEmpty;
  } else {
    m.dice = 2.0 * static_cast<double>(m.tp) / static_cast<double>(2 * m.tp + m.fp + m.fn);
    m.iou = static_cast<double>(m.tp) / static_cast<double>(m.tp + m.fp + m.fn);
    m.hd95_mm = hd95(prediction, reference);
  }
  return m;
}

std::array<MaskMetrics, kRegionCount> compare_regions(const LabelMap& prediction, const LabelMap& reference) {
  std::array<MaskMetrics, kRegionCount> result;
  for (const Region region : kRegions) {
    result[static_cast<size_t>(region)] =
        compare_masks(region_mask(prediction, region), region_mask(reference, region));
  }
  return result;
}

}  // namespace vesal::imaging
