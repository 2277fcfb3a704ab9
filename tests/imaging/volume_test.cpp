// Sizes, affines, crop and paste, and the comparison of grids.
#include "imaging/volume.hpp"

#include "support.hpp"

namespace vesal::imaging {
namespace {

TEST(Volume, XIsFastest) {
  Volume<float> volume(make_geometry({3, 4, 5}, {1, 1, 1}));
  EXPECT_EQ(volume.data.size(), 60u);
  EXPECT_EQ(volume.index(1, 0, 0), 1);
  EXPECT_EQ(volume.index(0, 1, 0), 3);
  EXPECT_EQ(volume.index(0, 0, 1), 12);
}

TEST(Volume, SizesAreChecked) {
  expect_error<ShapeError>([] { (Size3{int64_t{1} << 40, int64_t{1} << 40, 2}).voxels(); }, {"passes 2^63"});
  expect_error<ShapeError>([] { (Size3{-1, 2, 3}).voxels(); }, {"negative"});
}

TEST(Volume, GeometryIsCentred) {
  const Geometry g = make_geometry({4, 5, 6}, {2, 1, 0.5});
  const Vector3 a = apply(g.affine, {0, 0, 0});
  const Vector3 b = apply(g.affine, {3, 4, 5});
  EXPECT_DOUBLE_EQ(a.x + b.x, 0);
  EXPECT_DOUBLE_EQ(a.y + b.y, 0);
  EXPECT_DOUBLE_EQ(a.z + b.z, 0);
  EXPECT_DOUBLE_EQ(b.x - a.x, 6);
  EXPECT_EQ(spacing_of(g.affine), (Vector3{2, 1, 0.5}));
  EXPECT_DOUBLE_EQ(g.voxel_ml(), 0.001);
}

TEST(Volume, CropAndPasteAreInverse) {
  const Image image = random_image(make_geometry({7, 6, 5}, {1, 2, 3}), 1);
  const Box3 box{{2, 1, 3}, {4, 5, 2}};
  const Image part = crop(image, box);
  EXPECT_EQ(part.size(), box.size);
  EXPECT_EQ(part.at(0, 0, 0), image.at(2, 1, 3));
  EXPECT_EQ(part.at(3, 4, 1), image.at(5, 5, 4));
  const Vector3 in_part = apply(part.geometry.affine, {1, 1, 1});
  const Vector3 in_whole = apply(image.geometry.affine, {3, 2, 4});
  EXPECT_EQ(in_part, in_whole);
  Image copy(image.geometry, -1.0f);
  paste(part, box, copy);
  EXPECT_EQ(copy.at(2, 1, 3), image.at(2, 1, 3));
  EXPECT_EQ(copy.at(1, 1, 3), -1.0f);
  EXPECT_EQ(copy.at(6, 1, 3), -1.0f);
  expect_error<ShapeError>(
      [&] {
        crop(image, {{4, 0, 0}, {4, 1, 1}});
      },
      {"does not lie within", "7 x 6 x 5"});
  expect_error<ShapeError>([&] { crop(image, {{-1, 0, 0}, {4, 1, 1}}); }, {"does not lie within"});
  expect_error<ShapeError>([&] { paste(part, {{0, 0, 0}, {1, 1, 1}}, copy); }, {"part has 4 x 5 x 2"});
}

TEST(Volume, GeometryDifferenceNamesWhatDiffers) {
  const Geometry a = make_geometry({10, 10, 10}, {1, 1, 1});
  EXPECT_EQ(geometry_difference(a, a), "");
  Geometry b = a;
  b.size.z = 11;
  EXPECT_NE(geometry_difference(a, b).find("size 10 x 10 x 10 against 10 x 10 x 11"), std::string::npos);
  b = a;
  b.spacing_mm.x = 1.2;
  EXPECT_NE(geometry_difference(a, b).find("spacing"), std::string::npos);
  b = a;
  b.affine[1][3] += 0.05;  // below the tolerance of 0.1 mm
  EXPECT_EQ(geometry_difference(a, b), "");
  b.affine[1][3] += 1;
  EXPECT_NE(geometry_difference(a, b).find("position"), std::string::npos);
  b = a;
  b.affine[0][0] = -1;  // mirrored: equal sizes and spacings
  EXPECT_NE(geometry_difference(a, b).find("position"), std::string::npos);
}

}  // namespace
}  // namespace vesal::imaging
