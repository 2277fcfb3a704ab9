// Volumes in the order that a network was trained on, against what lies in a file.
#include "imaging/layout.hpp"

#include "tests/imaging/support.hpp"

namespace vesal::imaging {
namespace {

// The floats of a .nii in their own order: i fastest.
std::vector<float> stored_voxels(const std::filesystem::path& path, int64_t count) {
  const std::vector<char> bytes = bytes_of(path);
  std::vector<float> values(static_cast<size_t>(count));
  const size_t size = values.size() * sizeof(float);
  std::memcpy(values.data(), bytes.data() + bytes.size() - size, size);
  return values;
}

TEST(Layout, StoredIsTheOrderOfTheFile) {
  const TemporaryFolder folder;
  const Geometry geometry = make_geometry({3, 4, 5}, {1, 2, 3});
  const Image image = random_image(geometry, 3);
  for (const char* orientation : {"RAS", "LPS", "LIA", "ASR", "IPL", "SRP", "PIR"}) {
    const auto path = folder / (std::string(orientation) + ".nii");
    write_like(path, image, make_nifti_header(geometry, orientation));
    const NiftiImage read = read_nifti(path);
    const std::vector<float> stored = stored_voxels(path, 60);
    const Size3 n = read.header.stored_size;

    const Layout kji = layout_for({"stored", "kji"}, read.header);
    EXPECT_EQ(to_layout(read.volume, kji).data, stored) << orientation;
    // A rule that names the file's own letters says the same.
    EXPECT_EQ(layout_for({orientation, "kji"}, read.header), kji) << orientation;

    const Layout ijk = layout_for({"stored", "ijk"}, read.header);
    const Image volume = to_layout(read.volume, ijk);
    EXPECT_EQ(volume.size(), (Size3{n.z, n.y, n.x})) << orientation;
    for (int64_t i = 0; i < n.x; ++i) {
      for (int64_t j = 0; j < n.y; ++j) {
        for (int64_t k = 0; k < n.z; ++k) {
          ASSERT_EQ(volume.at(k, j, i), stored[static_cast<size_t>((k * n.y + j) * n.x + i)]) << orientation;
        }
      }
    }
  }
}

TEST(Layout, VoxelsKeepTheirPlaceInMillimetresAndComeBack) {
  const Geometry geometry = make_geometry({3, 4, 5}, {1, 2, 3});
  const Image image = random_image(geometry, 4);
  for (const char* orientation : {"RAS", "LIA", "SRP", "IPL"}) {
    for (const char* axes : {"kji", "ijk"}) {
      const Layout layout = layout_for({orientation, axes}, {});
      const Image volume = to_layout(image, layout);
      for (int64_t z = 0; z < 5; ++z) {
        for (int64_t y = 0; y < 4; ++y) {
          for (int64_t x = 0; x < 3; ++x) {
            const Size3 canonical{x, y, z};
            Size3 here;
            for (int axis = 0; axis < 3; ++axis) {
              const int from = layout.axis[static_cast<size_t>(axis)];
              here[axis] = layout.flipped[static_cast<size_t>(axis)]
                               ? geometry.size[from] - 1 - canonical[from]
                               : canonical[from];
            }
            ASSERT_EQ(volume.at(here.x, here.y, here.z), image.at(x, y, z));
            const auto point = [](Size3 index) {
              return Vector3{static_cast<double>(index.x), static_cast<double>(index.y),
                             static_cast<double>(index.z)};
            };
            const Vector3 there = apply(geometry.affine, point(canonical));
            const Vector3 moved = apply(volume.geometry.affine, point(here));
            for (int axis = 0; axis < 3; ++axis) {
              ASSERT_NEAR(moved[axis], there[axis], 1e-12) << orientation << axes;
            }
          }
        }
      }
      EXPECT_EQ(spacing_of(volume.geometry.affine), volume.geometry.spacing_mm);
      const Image back = from_layout(volume, layout, geometry);
      EXPECT_EQ(back.data, image.data) << orientation << axes;
      EXPECT_EQ(geometry_difference(back.geometry, geometry), "");
    }
  }
  LabelMap small(make_geometry({3, 4, 5}, {1, 1, 1}));
  const Layout turned = layout_for({"RAS", "ijk"}, {});
  expect_error<ShapeError>([&] { from_layout(small, turned, small.geometry); }, {"3 x 4 x 5"});
}

TEST(Layout, CanonicalIsTheIdentity) {
  EXPECT_EQ(layout_for({}, {}), Layout{});
  EXPECT_EQ(from_ijk({}, Size3{1, 2, 3}), (Size3{1, 2, 3}));
  EXPECT_EQ(from_ijk({"RAS", "ijk"}, Size3{1, 2, 3}), (Size3{3, 2, 1}));
}

TEST(Layout, RefusesRulesThatMakeNoSense) {
  for (const char* axes : {"", "kij", "IJK", "jki"}) {
    expect_error<UsageError>([&] { check_rule({"RAS", axes}); }, {"axes", "kji or ijk"});
  }
  for (const char* orientation : {"", "RA", "RAX", "RRS", "RLS", "ras", "RASS", "Stored"}) {
    expect_error<UsageError>([&] { check_rule({orientation, "kji"}); }, {"orientation", "stored or three"});
  }
}

}  // namespace
}  // namespace vesal::imaging
