// Resampling against a plain reference, and what must hold whatever the numbers: identity, constants, no
// aliasing.
#include "imaging/resample.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "support.hpp"

namespace vesal::imaging {
namespace {

Geometry target_of(const Geometry& source, Size3 size) {
  const Vector3 fov = source.field_of_view_mm();
  const Geometry target =
      geometry_for_spacing(source, {fov.x / static_cast<double>(size.x), fov.y / static_cast<double>(size.y),
                                    fov.z / static_cast<double>(size.z)});
  EXPECT_EQ(target.size, size);
  return target;
}

// The weight of source voxel s for a target position, written from the header's description.
double weight(int64_t n_source, int64_t n_target, int64_t t, int64_t s) {
  const double scale = static_cast<double>(n_source) / static_cast<double>(n_target);
  const double centre = (static_cast<double>(t) + 0.5) * scale - 0.5;
  if (scale >= 1.5) {
    const auto triangle = [&](int64_t i) {
      return std::max(0.0, 1.0 - std::abs(static_cast<double>(i) - centre) / scale);
    };
    double total = 0;
    for (int64_t i = 0; i < n_source; ++i) {
      total += triangle(i);
    }
    return triangle(s) / total;
  }
  const double clamped = std::clamp(centre, 0.0, static_cast<double>(n_source - 1));
  return std::max(0.0, 1.0 - std::abs(static_cast<double>(s) - clamped));
}

TEST(Resample, MatchesTheReference) {
  const Size3 sources[] = {{7, 5, 6}, {8, 9, 4}, {1, 6, 3}};
  const Size3 targets[] = {{7, 5, 6}, {10, 11, 13}, {3, 2, 2}, {4, 8, 6}, {1, 1, 1}, {14, 3, 5}};
  for (const Size3 from : sources) {
    const Image image = random_image(make_geometry(from, {1, 1.5, 2}), 1);
    for (const Size3 to : targets) {
      Image result = resample_to_grid(image, target_of(image.geometry, to));
      ASSERT_EQ(result.size(), to);
      double worst = 0;
      for (int64_t z = 0; z < to.z; ++z) {
        for (int64_t y = 0; y < to.y; ++y) {
          for (int64_t x = 0; x < to.x; ++x) {
            double sum = 0;
            for (int64_t k = 0; k < from.z; ++k) {
              for (int64_t j = 0; j < from.y; ++j) {
                for (int64_t i = 0; i < from.x; ++i) {
                  sum += weight(from.x, to.x, x, i) * weight(from.y, to.y, y, j) *
                         weight(from.z, to.z, z, k) * static_cast<double>(image.at(i, j, k));
                }
              }
            }
            worst = std::max(worst, std::abs(sum - static_cast<double>(result.at(x, y, z))));
          }
        }
      }
      // Values up to 100, three passes of at most 14 float products each: 100 * 42 * 2^-24 = 2.5e-4.
      EXPECT_LT(worst, 2.5e-4) << to_string(from) << " to " << to_string(to);
    }
  }
}

TEST(Resample, EqualGridsAreCopiedBitForBit) {
  const Image image = random_image(make_geometry({9, 8, 7}, {1, 1, 1.3}), 2);
  EXPECT_EQ(resample_to_spacing(image, {1, 1, 1.3}).data, image.data);
  EXPECT_EQ(resample_to_grid(image, image.geometry).data, image.data);
  // Axes that stay as they are lose nothing either.
  std::vector<float> out(image.data.size(), std::numeric_limits<float>::quiet_NaN());
  SliceResampler(image.size(), image.size(), 1).run(image.data, 0, 7, out);
  EXPECT_EQ(out, image.data);
}

TEST(Resample, ConstantsAndRampsSurvive) {
  Image ramp(make_geometry({12, 10, 8}, {1, 1, 1}));
  Image constant(ramp.geometry, 3.25f);
  for (int64_t z = 0; z < 8; ++z) {
    for (int64_t y = 0; y < 10; ++y) {
      for (int64_t x = 0; x < 12; ++x) {
        const Vector3 p = apply(ramp.geometry.affine, {double(x), double(y), double(z)});
        ramp.at(x, y, z) = static_cast<float>(2 * p.x - p.y + 0.5 * p.z);
      }
    }
  }
  for (const Vector3 spacing : {Vector3{0.5, 0.7, 0.9}, Vector3{2, 2, 2}, Vector3{1.3, 0.6, 3}}) {
    for (const float value : resample_to_spacing(constant, spacing).data) {
      EXPECT_NEAR(value, 3.25f, 1e-5f);
    }
    // Away from the faces a linear function is met at the new voxel's own place in mm.
    const Image fine = resample_to_spacing(ramp, spacing);
    const Size3 n = fine.size();
    const Vector3 p = apply(fine.geometry.affine, {double(n.x / 2), double(n.y / 2), double(n.z / 2)});
    EXPECT_NEAR(fine.at(n.x / 2, n.y / 2, n.z / 2), 2 * p.x - p.y + 0.5 * p.z, 1e-4);
  }
}

TEST(Resample, HalvingDoesNotAlias) {
  // The finest pattern there is must vanish; two linear weights alone would keep it at full strength at some
  // phases.
  Image stripes(make_geometry({33, 4, 4}, {1, 1, 1}));
  for (int64_t i = 0; i < static_cast<int64_t>(stripes.data.size()); ++i) {
    stripes.data[static_cast<size_t>(i)] = i % 33 % 2 ? 1.0f : -1.0f;
  }
  const Image half = resample_to_spacing(stripes, {2, 1, 1});
  for (int64_t x = 1; x + 1 < half.size().x; ++x) {
    EXPECT_LT(std::abs(half.at(x, 1, 1)), 0.1f) << x;
  }
}

TEST(Resample, GeometryCoversTheSameBox) {
  Geometry source = make_geometry({155, 240, 17}, {1, 0.5, 5});
  source.affine[0][1] = 0.01;  // slightly oblique
  const Geometry target = geometry_for_spacing(source, {2, 2, 2});
  EXPECT_EQ(target.size, (Size3{78, 60, 43}));
  const Vector3 a = source.field_of_view_mm();
  const Vector3 b = target.field_of_view_mm();
  EXPECT_NEAR(a.x, b.x, 1e-9);
  EXPECT_NEAR(a.z, b.z, 1e-9);
  const Vector3 p = apply(source.affine, {-0.5, -0.5, -0.5});
  const Vector3 q = apply(target.affine, {-0.5, -0.5, -0.5});
  EXPECT_NEAR(p.x, q.x, 1e-9);
  EXPECT_NEAR(p.y, q.y, 1e-9);
  EXPECT_NEAR(p.z, q.z, 1e-9);
  EXPECT_EQ(geometry_for_spacing(source, {1000, 1000, 1000}).size, (Size3{1, 1, 1}));
  for (const Vector3 bad : {Vector3{0, 1, 1}, Vector3{1, -1, 1}, Vector3{1, 1, std::nan("")}}) {
    expect_error<UsageError>([&] { geometry_for_spacing(source, bad); }, {"positive"});
  }
  const Image image(source);
  expect_error<ShapeError>(
      [&] {
        resample_to_grid(image, make_geometry({10, 10, 10}, {1, 1, 1}));
      },
      {"same box"});
}

TEST(Resample, SlicesEqualTheWholeAndThreadsDoNotMatter) {
  const Image image = random_image(make_geometry({11, 9, 10}, {1, 1, 1}), 4);
  const Size3 to{17, 5, 23};
  const SliceResampler resampler(image.size(), to, 1);
  std::vector<float> whole(static_cast<size_t>(to.voxels()));
  {
    const Threads one(1);
    resampler.run(image.data, 0, to.z, whole);
  }
  const Threads three(3);
  std::vector<float> parts(whole.size(), std::numeric_limits<float>::quiet_NaN());
  const size_t plane = static_cast<size_t>(to.x * to.y);
  for (int64_t z = 0; z < to.z; z += 7) {
    const int64_t end = std::min<int64_t>(z + 7, to.z);
    resampler.run(
        image.data, z, end,
        std::span(parts).subspan(static_cast<size_t>(z) * plane, static_cast<size_t>(end - z) * plane));
  }
  EXPECT_EQ(parts, whole);
  expect_error<ShapeError>([&] { resampler.run(image.data, 0, 2, whole); }, {"do not fit"});
}

TEST(Resample, ChannelsDoNotMix) {
  const Size3 from{5, 4, 3};
  const Size3 to{7, 9, 2};
  const Image a = random_image(make_geometry(from, {1, 1, 1}), 5);
  const Image b = random_image(make_geometry(from, {1, 1, 1}), 6);
  std::vector<float> both;
  for (size_t i = 0; i < a.data.size(); ++i) {
    both.push_back(a.data[i]);
    both.push_back(b.data[i]);
  }
  std::vector<float> out(static_cast<size_t>(2 * to.voxels()));
  SliceResampler(from, to, 2).run(both, 0, to.z, out);
  const Image ra = resample_to_grid(a, target_of(a.geometry, to));
  const Image rb = resample_to_grid(b, target_of(b.geometry, to));
  for (size_t i = 0; i < ra.data.size(); ++i) {
    ASSERT_EQ(out[2 * i], ra.data[i]);
    ASSERT_EQ(out[2 * i + 1], rb.data[i]);
  }
}

TEST(Resample, LabelsStayLabels) {
  LabelMap labels(make_geometry({20, 20, 20}, {1, 1, 1}));
  for (int64_t z = 0; z < 20; ++z) {
    for (int64_t y = 0; y < 20; ++y) {
      for (int64_t x = 0; x < 20; ++x) {
        const double r = std::hypot(double(x) - 9.5, double(y) - 9.5, double(z) - 9.5);
        labels.at(x, y, z) = r < 4 ? 200 : r < 8 ? 7 : 0;
      }
    }
  }
  EXPECT_EQ(resample_to_spacing(labels, {1, 1, 1}).data, labels.data);
  for (const Vector3 spacing : {Vector3{0.5, 0.5, 0.5}, Vector3{2, 2, 2}, Vector3{0.8, 1.7, 1}}) {
    const LabelMap out = resample_to_spacing(labels, spacing);
    double volume = 0;
    for (const uint8_t label : out.data) {
      ASSERT_TRUE(label == 0 || label == 7 || label == 200);
      volume += label == 200 ? out.geometry.voxel_ml() * 1000 : 0;
    }
    const double expected = 4.0 / 3.0 * std::numbers::pi * 64;
    EXPECT_NEAR(volume, expected, 0.25 * expected);
  }
  const LabelMap fine = resample_nearest(labels, geometry_for_spacing(labels.geometry, {0.5, 0.5, 0.5}));
  for (int64_t i = 0; i < 40; ++i) {
    ASSERT_EQ(fine.at(i, 20, 20), labels.at(i / 2, 10, 10));
  }
  const LabelMap same = resample_nearest(fine, labels.geometry);
  EXPECT_EQ(same.data, labels.data);
}

}  // namespace
}  // namespace vesal::imaging
