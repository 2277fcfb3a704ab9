// Overlap by counting, distances against double loops.
#include "imaging/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "support.hpp"

namespace vesal::imaging {
namespace {

LabelMap ball(const Geometry& geometry, Vector3 centre, double radius_mm) {
  LabelMap mask(geometry);
  for (int64_t z = 0; z < geometry.size.z; ++z) {
    for (int64_t y = 0; y < geometry.size.y; ++y) {
      for (int64_t x = 0; x < geometry.size.x; ++x) {
        const double r = std::hypot((double(x) - centre.x) * geometry.spacing_mm.x,
                                    (double(y) - centre.y) * geometry.spacing_mm.y,
                                    (double(z) - centre.z) * geometry.spacing_mm.z);
        mask.at(x, y, z) = r <= radius_mm ? 1 : 0;
      }
    }
  }
  return mask;
}

std::vector<Vector3> surface_points(const LabelMap& mask) {
  std::vector<Vector3> points;
  const Size3 n = mask.size();
  const auto value = [&](int64_t x, int64_t y, int64_t z) {
    return x < 0 || y < 0 || z < 0 || x >= n.x || y >= n.y || z >= n.z ? 0 : int{mask.at(x, y, z)};
  };
  for (int64_t z = 0; z < n.z; ++z) {
    for (int64_t y = 0; y < n.y; ++y) {
      for (int64_t x = 0; x < n.x; ++x) {
        if (value(x, y, z) && !(value(x - 1, y, z) && value(x + 1, y, z) && value(x, y - 1, z) &&
                                value(x, y + 1, z) && value(x, y, z - 1) && value(x, y, z + 1))) {
          const Vector3 s = mask.geometry.spacing_mm;
          points.push_back({double(x) * s.x, double(y) * s.y, double(z) * s.z});
        }
      }
    }
  }
  return points;
}

double brute_force_hd95(const LabelMap& a, const LabelMap& b) {
  const auto pa = surface_points(a);
  const auto pb = surface_points(b);
  std::vector<double> all;
  const auto collect = [&](const std::vector<Vector3>& from, const std::vector<Vector3>& to) {
    for (const Vector3& p : from) {
      double best = std::numeric_limits<double>::infinity();
      for (const Vector3& q : to) {
        best = std::min(best, std::hypot(p.x - q.x, p.y - q.y, p.z - q.z));
      }
      all.push_back(best);
    }
  };
  collect(pa, pb);
  collect(pb, pa);
  std::sort(all.begin(), all.end());
  const double at = 0.95 * static_cast<double>(all.size() - 1);
  const size_t low = static_cast<size_t>(at);
  return low + 1 < all.size() ? all[low] + (at - static_cast<double>(low)) * (all[low + 1] - all[low])
                              : all[low];
}

TEST(Metrics, CountsByHand) {
  LabelMap p(make_geometry({4, 2, 1}, {1, 2, 3}));
  LabelMap r(p.geometry);
  p.data = {1, 1, 1, 0, 0, 0, 0, 0};
  r.data = {0, 5, 5, 5, 5, 0, 0, 0};  // nonzero is inside
  const MaskMetrics m = compare_masks(p, r);
  EXPECT_EQ(m.tp, 2);
  EXPECT_EQ(m.fp, 1);
  EXPECT_EQ(m.fn, 2);
  EXPECT_EQ(m.tn, 3);
  EXPECT_DOUBLE_EQ(m.dice, 4.0 / 7.0);
  EXPECT_DOUBLE_EQ(m.iou, 2.0 / 5.0);
  EXPECT_DOUBLE_EQ(m.reference_ml, 4 * 0.006);
  EXPECT_DOUBLE_EQ(m.prediction_ml, 3 * 0.006);
  EXPECT_FALSE(m.both_empty || m.one_empty);
}

TEST(Metrics, EmptyMasksFollowTheStatedRule) {
  const Geometry g = make_geometry({4, 4, 4}, {1, 1, 1});
  const LabelMap empty(g);
  LabelMap one(g);
  one.data[7] = 1;
  const MaskMetrics both = compare_masks(empty, empty);
  EXPECT_TRUE(both.both_empty && !both.one_empty);
  EXPECT_EQ(both.dice, 1);
  EXPECT_EQ(both.iou, 1);
  EXPECT_EQ(both.hd95_mm, 0);
  for (const auto& m : {compare_masks(one, empty), compare_masks(empty, one)}) {
    EXPECT_TRUE(m.one_empty && !m.both_empty);
    EXPECT_EQ(m.dice, 0);
    EXPECT_EQ(m.iou, 0);
    EXPECT_EQ(m.hd95_mm, 373.13);
  }
  // 373.13 is that grid's diagonal.
  EXPECT_NEAR(std::hypot(240.0, 240.0, 155.0), kHd95OneEmpty, 0.01);
}

TEST(Metrics, EqualMasksAreAtDistanceZero) {
  const LabelMap b = ball(make_geometry({15, 15, 15}, {1, 1, 1}), {7, 7, 7}, 5);
  const MaskMetrics m = compare_masks(b, b);
  EXPECT_EQ(m.dice, 1);
  EXPECT_EQ(m.hd95_mm, 0);
}

TEST(Metrics, ShiftedPlanesAreAtTheirDistanceInMillimetres) {
  LabelMap a(make_geometry({5, 5, 30}, {1, 1, 2.5}));
  LabelMap b(a.geometry);
  for (int64_t y = 0; y < 5; ++y) {
    for (int64_t x = 0; x < 5; ++x) {
      a.at(x, y, 4) = 1;
      b.at(x, y, 20) = 1;
    }
  }
  EXPECT_DOUBLE_EQ(compare_masks(a, b).hd95_mm, 16 * 2.5);
}

TEST(Metrics, Hd95AgainstDoubleLoops) {
  const Vector3 spacings[] = {{1, 1, 1}, {0.45, 0.45, 5}, {2, 1.5, 0.7}};
  for (const Vector3 spacing : spacings) {
    const Geometry g = make_geometry({20, 18, 12}, spacing);
    const double radius = 4 * std::max(spacing.x, spacing.y);
    const LabelMap a = ball(g, {9, 9, 6}, radius);
    LabelMap b = ball(g, {11, 8, 5}, 1.3 * radius);
    b.at(0, 17, 0) = 1;  // a stray voxel on the border
    EXPECT_NEAR(compare_masks(a, b).hd95_mm, brute_force_hd95(a, b), 1e-9);
    EXPECT_NEAR(compare_masks(b, a).hd95_mm, brute_force_hd95(a, b), 1e-9) << "symmetric";
  }
  RandomStream random(3, 0, 0);
  for (const float share : {0.003f, 0.05f, 0.5f}) {
    LabelMap a(make_geometry({11, 10, 9}, {1, 0.8, 3}));
    LabelMap b(a.geometry);
    for (size_t i = 0; i < a.data.size(); ++i) {
      a.data[i] = random.bernoulli(share);
      b.data[i] = random.bernoulli(share);
    }
    a.data[0] = b.data[989] = 1;
    EXPECT_NEAR(compare_masks(a, b).hd95_mm, brute_force_hd95(a, b), 1e-9) << share;
  }
}

TEST(Metrics, DistanceTransformIsExact) {
  RandomStream random(4, 0, 0);
  for (const Size3 n : {Size3{9, 8, 7}, Size3{1, 12, 3}, Size3{16, 1, 1}, Size3{1, 1, 1}}) {
    for (const float share : {0.02f, 0.3f}) {
      const Vector3 s{1.25, 0.5, 3};
      std::vector<uint8_t> feature(static_cast<size_t>(n.voxels()));
      for (uint8_t& value : feature) {
        value = random.bernoulli(share);
      }
      feature[feature.size() / 2] = 1;
      const auto field = squared_distance_mm2(feature, n, s);
      for (int64_t i = 0; i < n.voxels(); ++i) {
        double best = std::numeric_limits<double>::infinity();
        for (int64_t j = 0; j < n.voxels(); ++j) {
          if (feature[static_cast<size_t>(j)]) {
            const double dx = double(i % n.x - j % n.x) * s.x;
            const double dy = double(i / n.x % n.y - j / n.x % n.y) * s.y;
            const double dz = double(i / (n.x * n.y) - j / (n.x * n.y)) * s.z;
            best = std::min(best, dx * dx + dy * dy + dz * dz);
          }
        }
        ASSERT_NEAR(field[static_cast<size_t>(i)], best, 1e-9 * (1 + best));
      }
    }
  }
  const auto none = squared_distance_mm2(std::vector<uint8_t>(8, 0), {2, 2, 2}, {1, 1, 1});
  EXPECT_TRUE(std::all_of(none.begin(), none.end(), [](double v) { return std::isinf(v); }));
}

TEST(Metrics, ThreadsDoNotMatter) {
  const Geometry g = make_geometry({30, 31, 32}, {1, 1, 1});
  const LabelMap a = ball(g, {15, 15, 15}, 9);
  const LabelMap b = ball(g, {16, 13, 15}, 10);
  const Threads one(1);
  const double first = compare_masks(a, b).hd95_mm;
  const Threads three(3);
  EXPECT_EQ(compare_masks(a, b).hd95_mm, first);
}

TEST(Metrics, Percentile) {
  EXPECT_DOUBLE_EQ(percentile({3, 1, 2}, 50), 2);
  EXPECT_DOUBLE_EQ(percentile({4, 1, 3, 2}, 50), 2.5);
  EXPECT_DOUBLE_EQ(percentile({1, 2, 3, 4, 5}, 95), 4.8);
  EXPECT_DOUBLE_EQ(percentile({5, 4, 3, 2, 1}, 0), 1);
  EXPECT_DOUBLE_EQ(percentile({5, 4, 3, 2, 1}, 100), 5);
  EXPECT_DOUBLE_EQ(percentile({7}, 95), 7);
  expect_error<UsageError>([] { percentile({}, 50); }, {"percentile"});
}

TEST(Metrics, RegionsAreComparedAsUnions) {
  LabelMap p(make_geometry({4, 1, 1}, {1, 1, 1}));
  LabelMap r(p.geometry);
  p.data = {1, 2, 3, 0};
  r.data = {3, 2, 1, 0};
  const auto m = compare_regions(p, r);
  EXPECT_EQ(m[0].dice, 1);  // WT
  EXPECT_EQ(m[1].dice, 1);  // TC
  EXPECT_EQ(m[2].dice, 0);  // ET
  EXPECT_DOUBLE_EQ(m[2].hd95_mm, 2);
  expect_error<ShapeError>(
      [&] {
        compare_masks(p, LabelMap(make_geometry({4, 1, 2}, {1, 1, 1})));
      },
      {"4 x 1 x 1", "4 x 1 x 2"});
}

}  // namespace
}  // namespace vesal::imaging
