// Connected components by union-find over rows, boxes and statistics: see components.hpp.
#include "imaging/components.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

namespace vesal::imaging {
namespace {

// A stretch of nonzero voxels along x: [begin, end) of row (y, z).
struct Run {
  int64_t begin;
  int64_t end;
};

// Disjoint sets whose representative is the smallest member, so that numbering follows the first voxel.
class DisjointSets {
 public:
  int32_t add() {
    parent_.push_back(static_cast<int32_t>(parent_.size()));
    return parent_.back();
  }
  int32_t find(int32_t item) {
    while (parent_[static_cast<size_t>(item)] != item) {
      int32_t& up = parent_[static_cast<size_t>(item)];
      up = parent_[static_cast<size_t>(up)];
      item = up;
    }
    return item;
  }
  void join(int32_t a, int32_t b) {
    a = find(a);
    b = find(b);
    parent_[static_cast<size_t>(std::max(a, b))] = std::min(a, b);
  }

 private:
  std::vector<int32_t> parent_;
};

}  // namespace

Components connected_components(const LabelMap& mask) {
  const Size3 n = mask.size();
  std::vector<Run> runs;
  std::vector<int64_t> first_run(static_cast<size_t>(n.y * n.z + 1), 0);  // of each row
  DisjointSets sets;
  for (int64_t z = 0; z < n.z; ++z) {
    for (int64_t y = 0; y < n.y; ++y) {
      const int64_t row = z * n.y + y;
      const uint8_t* line = mask.data.data() + row * n.x;
      for (int64_t x = 0; x < n.x;) {
        if (line[x] == 0) {
          ++x;
          continue;
        }
        const int64_t begin = x;
        while (x < n.x && line[x] != 0) {
          ++x;
        }
        check<ShapeError>(runs.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max()),
                          "connected_components: more than 2^31 runs");
        runs.push_back({begin, x});
        sets.add();
      }
      first_run[static_cast<size_t>(row + 1)] = static_cast<int64_t>(runs.size());
      // Join with the runs that touch, also by a corner, in the rows already seen.
      const auto join_row = [&](int64_t other_y, int64_t other_z) {
        if (other_y < 0 || other_y >= n.y || other_z < 0) {
          return;
        }
        const int64_t other = other_z * n.y + other_y;
        int64_t a = first_run[static_cast<size_t>(row)];
        int64_t b = first_run[static_cast<size_t>(other)];
        const int64_t a_end = first_run[static_cast<size_t>(row + 1)];
        const int64_t b_end = first_run[static_cast<size_t>(other + 1)];
        while (a < a_end && b < b_end) {
          const Run& p = runs[static_cast<size_t>(a)];
          const Run& q = runs[static_cast<size_t>(b)];
          if (p.begin <= q.end && q.begin <= p.end) {
            sets.join(static_cast<int32_t>(a), static_cast<int32_t>(b));
          }
          (p.end < q.end ? a : b) += 1;
        }
      };
      join_row(y - 1, z);
      join_row(y - 1, z - 1);
      join_row(y, z - 1);
      join_row(y + 1, z - 1);
    }
  }

  Components result;
  result.labels.assign(mask.data.size(), 0);
  std::vector<int32_t> number(runs.size(), 0);
  for (int64_t row = 0; row < n.y * n.z; ++row) {
    for (int64_t r = first_run[static_cast<size_t>(row)]; r < first_run[static_cast<size_t>(row + 1)]; ++r) {
      int32_t& label = number[static_cast<size_t>(sets.find(static_cast<int32_t>(r)))];
      if (label == 0) {
        result.voxels.push_back(0);
        label = static_cast<int32_t>(result.voxels.size());
      }
      const Run& run = runs[static_cast<size_t>(r)];
      result.voxels[static_cast<size_t>(label - 1)] += run.end - run.begin;
      std::fill(result.labels.begin() + row * n.x + run.begin, result.labels.begin() + row * n.x + run.end,
                label);
    }
  }
  return result;
}

int64_t remove_small_components(LabelMap& labels, int64_t min_voxels) {
  const Components components = connected_components(labels);
  for (size_t i = 0; i < labels.data.size(); ++i) {
    const int32_t label = components.labels[i];
    if (label > 0 && components.voxels[static_cast<size_t>(label - 1)] < min_voxels) {
      labels.data[i] = 0;
    }
  }
  return std::count_if(components.voxels.begin(), components.voxels.end(),
                       [&](int64_t voxels) { return voxels < min_voxels; });
}

void keep_largest_component(LabelMap& labels) {
  const Components components = connected_components(labels);
  if (components.voxels.empty()) {
    return;
  }
  const auto largest = std::max_element(components.voxels.begin(), components.voxels.end());
  const int32_t keep = static_cast<int32_t>(largest - components.voxels.begin()) + 1;
  for (size_t i = 0; i < labels.data.size(); ++i) {
    if (components.labels[i] != keep) {
      labels.data[i] = 0;
    }
  }
}

std::optional<Box3> bounding_box(const LabelMap& mask) {
  const Size3 n = mask.size();
  Size3 low{n.x, n.y, n.z};
  Size3 high{-1, -1, -1};
  for (int64_t z = 0; z < n.z; ++z) {
    for (int64_t y = 0; y < n.y; ++y) {
      const uint8_t* row = mask.data.data() + mask.index(0, y, z);
      const uint8_t* end = row + n.x;
      const uint8_t* first = std::find_if(row, end, [](uint8_t v) { return v != 0; });
      if (first == end) {
        continue;
      }
      const uint8_t* last = end - 1;
      while (*last == 0) {
        --last;
      }
      low = {std::min(low.x, first - row), std::min(low.y, y), std::min(low.z, z)};
      high = {std::max(high.x, last - row), std::max(high.y, y), std::max(high.z, z)};
    }
  }
  if (high.x < 0) {
    return std::nullopt;
  }
  return Box3{low, {high.x - low.x + 1, high.y - low.y + 1, high.z - low.z + 1}};
}

RegionStatistics region_statistics(const LabelMap& mask) {
  RegionStatistics statistics;
  const auto box = bounding_box(mask);
  if (!box) {
    return statistics;
  }
  statistics.box = *box;
  // Sums of indices are whole numbers, so the centroid does not depend on any order.
  int64_t sum_x = 0;
  int64_t sum_y = 0;
  int64_t sum_z = 0;
  const Box3& b = *box;
  for (int64_t z = b.start.z; z < b.start.z + b.size.z; ++z) {
    for (int64_t y = b.start.y; y < b.start.y + b.size.y; ++y) {
      for (int64_t x = b.start.x; x < b.start.x + b.size.x; ++x) {
        if (mask.at(x, y, z) != 0) {
          ++statistics.voxels;
          sum_x += x;
          sum_y += y;
          sum_z += z;
        }
      }
    }
  }
  const double voxels = static_cast<double>(statistics.voxels);
  statistics.volume_ml = voxels * mask.geometry.voxel_ml();
  statistics.centroid_mm =
      apply(mask.geometry.affine, {static_cast<double>(sum_x) / voxels, static_cast<double>(sum_y) / voxels,
                                   static_cast<double>(sum_z) / voxels});
  const Components components = connected_components(crop(mask, b));
  statistics.components = static_cast<int64_t>(components.voxels.size());
  statistics.largest_component_ml =
      static_cast<double>(*std::max_element(components.voxels.begin(), components.voxels.end())) *
      mask.geometry.voxel_ml();
  return statistics;
}

}  // namespace vesal::imaging
