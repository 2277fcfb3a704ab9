// Synthetic cases: determinism, anatomy, contrasts, files.
#include "imaging/phantom.hpp"

#include <algorithm>
#include <cmath>

#include "imaging/metrics.hpp"
#include "support.hpp"

namespace vesal::imaging {
namespace {

PhantomOptions small(uint64_t seed = 0, Size3 size = {48, 48, 48}) {
  PhantomOptions options;
  options.seed = seed;
  options.size = size;
  return options;
}

TEST(Phantom, SameSeedSameBitsWhateverTheThreads) {
  const Threads one(1);
  const Case a = make_phantom(small(5), 3);
  const Threads three(3);
  const Case b = make_phantom(small(5), 3);
  for (size_t m = 0; m < 4; ++m) {
    EXPECT_EQ(a.images[m].data, b.images[m].data);
  }
  EXPECT_EQ(a.labels.data, b.labels.data);
  EXPECT_NE(make_phantom(small(5), 4).labels.data, a.labels.data);
  EXPECT_NE(make_phantom(small(6), 3).labels.data, a.labels.data);
}

TEST(Phantom, HeadAndTumourArePlausible) {
  int without_et = 0;
  double smallest = 1e9, largest = 0;
  for (int64_t index = 0; index < 24; ++index) {
    const Case c = make_phantom(small(1, {40, 40, 40}), index);
    ASSERT_EQ(c.present, kAllModalities);
    double head = 0;
    std::array<int64_t, 4> voxels{};
    for (size_t i = 0; i < c.labels.data.size(); ++i) {
      const bool inside = c.images[0].data[i] != 0;
      head += inside;
      ++voxels[c.labels.data[i]];
      for (size_t m = 0; m < 4; ++m) {
        const float value = c.images[m].data[i];
        ASSERT_EQ(value != 0, inside) << "one head in all modalities";
        ASSERT_TRUE(value >= 0 && value <= 32767 && value == std::round(value));
      }
      ASSERT_TRUE(inside || c.labels.data[i] == 0) << "no tumour outside the head";
    }
    head *= c.geometry.voxel_ml();
    EXPECT_GT(head, 800) << "mL";
    EXPECT_LT(head, 1800);
    const double tumour = static_cast<double>(voxels[1] + voxels[2] + voxels[3]) * c.geometry.voxel_ml();
    smallest = std::min(smallest, tumour);
    largest = std::max(largest, tumour);
    EXPECT_GT(tumour, 2);
    EXPECT_LT(tumour, 350);
    EXPECT_GT(voxels[2], 0) << "oedema";
    EXPECT_GT(voxels[1] + voxels[3], 0) << "core";
    without_et += voxels[3] == 0;
  }
  EXPECT_LT(3 * smallest, largest) << "sizes vary";
  // Binomial(24, 0.15): mean 3.6, standard deviation 1.7.
  EXPECT_GE(without_et, 1);
  EXPECT_LE(without_et, 10);
}

TEST(Phantom, ContrastsAreThoseOfTheModalities) {
  PhantomOptions options = small(2, {64, 64, 64});
  options.no_enhancement_share = 0;
  for (int64_t index = 0; index < 3; ++index) {
    const Case c = make_phantom(options, index);
    std::array<std::array<double, 4>, 4> mean{};
    std::array<double, 4> count{};
    std::array<std::vector<double>, 4> healthy;  // its median is brain tissue, not CSF
    for (size_t i = 0; i < c.labels.data.size(); ++i) {
      if (c.images[0].data[i] == 0) {
        continue;
      }
      const size_t label = c.labels.data[i];
      ++count[label];
      for (size_t m = 0; m < 4; ++m) {
        mean[m][label] += double(c.images[m].data[i]);
        if (label == 0) {
          healthy[m].push_back(double(c.images[m].data[i]));
        }
      }
    }
    for (auto& row : mean) {
      for (size_t label = 0; label < 4; ++label) {
        row[label] /= count[label];
      }
    }
    for (size_t m = 0; m < 4; ++m) {
      mean[m][0] = percentile(std::move(healthy[m]), 50);
    }
    ASSERT_GT(count[3], 20);
    const auto& [t1n, t1c, t2w, t2f] = mean;
    EXPECT_LT(t1n[2], t1n[0]) << "oedema dark on T1";
    EXPECT_GT(t1c[3], 1.25 * t1c[2]) << "rim bright after contrast agent";
    EXPECT_GT(t1c[3] / t1c[2], 1.2 * t1n[3] / t1n[2]) << "and more than before it";
    EXPECT_GT(t2w[2], 1.15 * t2w[0]) << "oedema bright on T2";
    EXPECT_GT(t2f[2], 1.3 * t2f[0]) << "oedema brightest on FLAIR";
    EXPECT_GT(t2f[2], t2f[1]);
  }
}

TEST(Phantom, ShareWithoutEnhancement) {
  PhantomOptions options = small(3, {32, 32, 32});
  options.no_enhancement_share = 1;
  const Case without = make_phantom(options, 0);
  EXPECT_EQ(std::count(without.labels.data.begin(), without.labels.data.end(), kLabelEt), 0);
  EXPECT_GT(std::count(without.labels.data.begin(), without.labels.data.end(), kLabelNcr), 0);
  options.no_enhancement_share = 0;
  for (int64_t index = 0; index < 8; ++index) {
    const Case c = make_phantom(options, index);
    EXPECT_GT(std::count(c.labels.data.begin(), c.labels.data.end(), kLabelEt), 0) << index;
  }
}

TEST(Phantom, OtherSizesShowTheSameHeadRoughly) {
  const auto head_ml = [](const Case& c) {
    return static_cast<double>(std::count_if(c.images[0].data.begin(), c.images[0].data.end(),
                                             [](float v) { return v != 0; })) *
           c.geometry.voxel_ml();
  };
  const double coarse = head_ml(make_phantom(small(4, {24, 32, 40}), 0));
  const double fine = head_ml(make_phantom(small(4, {64, 64, 64}), 0));
  EXPECT_NEAR(coarse / fine, 1, 0.05);
  expect_error<UsageError>([] { make_phantom(small(0, {8, 48, 48}), 0); }, {"phantom size 8 x 48 x 48"});
  expect_error<UsageError>([] { make_phantom(small(), -1); }, {"index -1"});
}

TEST(Phantom, FilesReadBackAsACase) {
  const TemporaryFolder folder;
  const Case c = make_phantom(small(7, {32, 36, 40}), 12);
  const auto home = write_phantom(folder.path(), c);
  EXPECT_EQ(home.filename(), "VesalPhantom-00012");
  for (const char* what : {"t1n", "t1c", "t2w", "t2f", "seg"}) {
    EXPECT_TRUE(std::filesystem::exists(home / concat("VesalPhantom-00012-", what, ".nii.gz")));
  }
  const Case back = load_case(list_cases(folder.path()).at(0));
  EXPECT_EQ(back.header.orientation, "LPS");
  EXPECT_NEAR(back.geometry.spacing_mm.x, 6, 1e-6);
  for (size_t m = 0; m < 4; ++m) {
    EXPECT_EQ(back.images[m].data, c.images[m].data);
  }
  EXPECT_EQ(back.labels.data, c.labels.data);
  EXPECT_EQ(geometry_difference(back.geometry, c.geometry, 1e-4), "");
  const auto first = bytes_of(home / "VesalPhantom-00012-t2f.nii.gz");
  write_phantom(folder.path(), make_phantom(small(7, {32, 36, 40}), 12));
  EXPECT_EQ(bytes_of(home / "VesalPhantom-00012-t2f.nii.gz"), first);
}

TEST(Phantom, AnatomyFromAVolume) {
  // Three grey levels in nested balls: dark shell, middle, bright inside.
  const TemporaryFolder folder;
  Image t1(make_geometry({50, 60, 50}, {3, 3, 3}));
  for (int64_t z = 0; z < 50; ++z) {
    for (int64_t y = 0; y < 60; ++y) {
      for (int64_t x = 0; x < 50; ++x) {
        const double r = std::hypot(double(x) - 24.5, 0.9 * (double(y) - 29.5), double(z) - 24.5);
        t1.at(x, y, z) = r < 15 ? 900 : r < 20 ? 600 : r < 23 ? 200 : 0;
      }
    }
  }
  write_like(folder / "t1.nii.gz", t1, make_nifti_header(t1.geometry, "LIA"));
  const LabelMap tissue = tissue_from_anatomy(folder / "t1.nii.gz", {48, 48, 48});
  EXPECT_EQ(tissue.at(24, 24, 24), static_cast<uint8_t>(Tissue::white));
  EXPECT_EQ(tissue.at(24 + 13, 24, 24), static_cast<uint8_t>(Tissue::grey));  // 54 mm
  EXPECT_EQ(tissue.at(24 + 16, 24, 24), static_cast<uint8_t>(Tissue::csf));   // 66 mm
  EXPECT_EQ(tissue.at(24 + 20, 24, 24), static_cast<uint8_t>(Tissue::outside));
  PhantomOptions options = small();
  options.anatomy = folder / "t1.nii.gz";
  const Case c = make_phantom(options, 0);
  for (size_t i = 0; i < tissue.data.size(); ++i) {
    ASSERT_EQ(tissue.data[i] != 0, c.images[1].data[i] != 0);
  }
  EXPECT_EQ(make_phantom(options, 0, tissue).images[2].data, c.images[2].data);
  expect_error<IoError>([&] { tissue_from_anatomy(folder / "none.nii", {48, 48, 48}); }, {"none.nii"});
  expect_error<ShapeError>(
      [&] {
        make_phantom(small(0, {32, 32, 32}), 0, tissue);
      },
      {"tissue has 48 x 48 x 48"});
}

}  // namespace
}  // namespace vesal::imaging
