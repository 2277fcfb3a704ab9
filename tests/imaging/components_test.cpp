// Components against a flood fill, boxes and statistics by hand.
#include "imaging/components.hpp"

#include <algorithm>

#include "support.hpp"

namespace vesal::imaging {
namespace {

// Plain flood fill in scan order: the same numbering by definition.
Components flood(const LabelMap& mask) {
  Components result;
  result.labels.assign(mask.data.size(), 0);
  const Size3 n = mask.size();
  for (int64_t i = 0; i < n.voxels(); ++i) {
    if (mask.data[static_cast<size_t>(i)] == 0 || result.labels[static_cast<size_t>(i)] != 0) {
      continue;
    }
    result.voxels.push_back(0);
    const auto number = static_cast<int32_t>(result.voxels.size());
    std::vector<int64_t> open{i};
    result.labels[static_cast<size_t>(i)] = number;
    while (!open.empty()) {
      const int64_t at = open.back();
      open.pop_back();
      ++result.voxels.back();
      for (int64_t dz = -1; dz <= 1; ++dz) {
        for (int64_t dy = -1; dy <= 1; ++dy) {
          for (int64_t dx = -1; dx <= 1; ++dx) {
            const int64_t x = at % n.x + dx, y = at / n.x % n.y + dy, z = at / (n.x * n.y) + dz;
            if (x < 0 || y < 0 || z < 0 || x >= n.x || y >= n.y || z >= n.z || mask.at(x, y, z) == 0) {
              continue;
            }
            int32_t& label = result.labels[static_cast<size_t>(mask.index(x, y, z))];
            if (label == 0) {
              label = number;
              open.push_back(mask.index(x, y, z));
            }
          }
        }
      }
    }
  }
  return result;
}

TEST(Components, EqualAFloodFill) {
  RandomStream random(1, 0, 0);
  for (const Size3 n : {Size3{12, 11, 10}, Size3{1, 20, 3}, Size3{40, 1, 1}, Size3{5, 5, 30}}) {
    for (const float share : {0.02f, 0.08f, 0.15f, 0.3f, 0.9f}) {
      LabelMap mask(make_geometry(n, {1, 1, 1}));
      for (uint8_t& value : mask.data) {
        value = random.bernoulli(share) ? static_cast<uint8_t>(1 + random.below(3)) : 0;
      }
      const Components a = connected_components(mask);
      const Components b = flood(mask);
      ASSERT_EQ(a.labels, b.labels);
      ASSERT_EQ(a.voxels, b.voxels);
    }
  }
}

TEST(Components, CornersTouch) {
  LabelMap mask(make_geometry({3, 3, 3}, {1, 1, 1}));
  mask.at(0, 0, 0) = mask.at(1, 1, 1) = mask.at(2, 2, 2) = 1;
  EXPECT_EQ(connected_components(mask).voxels, (std::vector<int64_t>{3}));
  mask.at(1, 1, 1) = 0;
  EXPECT_EQ(connected_components(mask).voxels, (std::vector<int64_t>{1, 1}));
  EXPECT_TRUE(connected_components(LabelMap(mask.geometry)).voxels.empty());
}

TEST(Components, SizeFilters) {
  LabelMap labels(make_geometry({10, 3, 1}, {1, 1, 1}));
  labels.data = {1, 2, 0, 3, 0, 1, 1, 1, 0, 2,  //
                 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  //
                 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  LabelMap filtered = labels;
  EXPECT_EQ(remove_small_components(filtered, 2), 2);
  EXPECT_EQ(std::vector<uint8_t>(filtered.data.begin(), filtered.data.begin() + 10),
            (std::vector<uint8_t>{1, 2, 0, 0, 0, 1, 1, 1, 0, 0}));
  filtered = labels;
  EXPECT_EQ(remove_small_components(filtered, 1), 0);
  EXPECT_EQ(filtered.data, labels.data);
  keep_largest_component(filtered);
  EXPECT_EQ(std::count(filtered.data.begin(), filtered.data.end(), 0), 27);
  EXPECT_EQ(filtered.data[6], 1);
}

TEST(Components, BoxAndStatistics) {
  LabelMap mask(make_geometry({10, 12, 14}, {1, 2, 3}));
  EXPECT_FALSE(bounding_box(mask).has_value());
  EXPECT_EQ(region_statistics(mask).voxels, 0);
  mask.at(2, 3, 4) = 1;
  mask.at(3, 3, 4) = 2;
  mask.at(7, 3, 8) = 1;
  EXPECT_EQ(*bounding_box(mask), (Box3{{2, 3, 4}, {6, 1, 5}}));
  const RegionStatistics s = region_statistics(mask);
  EXPECT_EQ(s.voxels, 3);
  EXPECT_DOUBLE_EQ(s.volume_ml, 0.018);
  EXPECT_EQ(s.components, 2);
  EXPECT_DOUBLE_EQ(s.largest_component_ml, 0.012);
  const Vector3 expected = apply(mask.geometry.affine, {4, 3, 16.0 / 3.0});
  EXPECT_NEAR(s.centroid_mm.x, expected.x, 1e-9);
  EXPECT_NEAR(s.centroid_mm.y, expected.y, 1e-9);
  EXPECT_NEAR(s.centroid_mm.z, expected.z, 1e-9);
  mask.at(0, 0, 0) = mask.at(9, 11, 13) = 1;
  EXPECT_EQ(*bounding_box(mask), (Box3{{0, 0, 0}, {10, 12, 14}}));
}

}  // namespace
}  // namespace vesal::imaging
