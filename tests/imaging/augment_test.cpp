// Random patches: where they lie, what may change and what must not.
#include "imaging/augment.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "imaging/phantom.hpp"
#include "support.hpp"

namespace vesal::imaging {
namespace {

const PreparedCase& phantom() {
  static const PreparedCase prepared = [] {
    PhantomOptions options;
    options.size = {40, 44, 48};
    return prepare_case(make_phantom(options, 1));
  }();
  return prepared;
}

// A volume whose voxels tell where they are: image m holds 1 + x + 100 y + 10000 z (+ m / 4).
PreparedCase ruler(Size3 size) {
  PreparedCase prepared;
  prepared.present = kAllModalities;
  prepared.geometry = prepared.original = prepared.cropped = make_geometry(size, {1, 1, 1});
  prepared.mask = LabelMap(prepared.geometry, uint8_t{1});
  prepared.labels = LabelMap(prepared.geometry);
  for (size_t m = 0; m < 4; ++m) {
    prepared.images[m] = Image(prepared.geometry);
    for (int64_t z = 0; z < size.z; ++z) {
      for (int64_t y = 0; y < size.y; ++y) {
        for (int64_t x = 0; x < size.x; ++x) {
          prepared.images[m].at(x, y, z) =
              static_cast<float>(1 + x + 100 * y + 10000 * z) + 0.25f * static_cast<float>(m);
        }
      }
    }
  }
  return prepared;
}

TEST(Augment, CropOnlyIsACopyOfAPlaceInTheVolume) {
  const PreparedCase source = ruler({20, 21, 22});
  const AugmentOptions options = crop_only({8, 7, 6}, 0);
  std::set<float> starts;
  for (uint64_t step = 0; step < 40; ++step) {
    RandomStream random(1, step, 0);
    const Sample sample = draw_sample(source, options, random);
    const float first = sample.image[0];
    starts.insert(first);
    const int64_t at = static_cast<int64_t>(first) - 1;
    const Size3 start{at % 100, at / 100 % 100, at / 10000};
    std::vector<float> expected(sample.image.size());
    extract_tile(source, start, options.patch, expected);
    ASSERT_EQ(sample.image, expected);
  }
  EXPECT_GT(starts.size(), 30u) << "places differ";
}

TEST(Augment, SameStreamSameSampleWhateverTheThreads) {
  AugmentOptions options;
  options.patch = {24, 20, 28};
  options.spatial_probability = 1;
  options.noise_probability = options.blur_probability = options.gamma_probability = 0.8f;
  const Threads one(1);
  RandomStream a(5, 6, 7);
  const Sample first = draw_sample(phantom(), options, a);
  const Threads three(3);
  RandomStream b(5, 6, 7);
  const Sample second = draw_sample(phantom(), options, b);
  EXPECT_EQ(first.image, second.image);
  EXPECT_EQ(first.labels, second.labels);
  EXPECT_EQ(a.next_bits(), b.next_bits()) << "equally many numbers were drawn";
  RandomStream c(5, 7, 7);
  EXPECT_NE(draw_sample(phantom(), options, c).image, first.image);
}

TEST(Augment, ForegroundIsAtTheCentreAndClassesTakeTurns) {
  PreparedCase source = ruler({30, 30, 30});
  for (int64_t i = 5; i < 25; ++i) {  // a large label and a single voxel of another
    for (int64_t j = 5; j < 25; ++j) {
      source.labels.at(i, j, 12) = 2;
    }
  }
  source.labels.at(15, 15, 20) = 3;
  const AugmentOptions options = crop_only({9, 9, 9}, 1);
  int large = 0, rare = 0;
  for (uint64_t step = 0; step < 200; ++step) {
    RandomStream random(2, step, 0);
    const Sample sample = draw_sample(source, options, random);
    const uint8_t centre = sample.labels[static_cast<size_t>((4 * 9 + 4) * 9 + 4)];
    ASSERT_NE(centre, 0);
    (centre == 2 ? large : rare) += 1;
  }
  // Binomial(200, 1/2): mean 100, standard deviation 7; five of them either side.
  EXPECT_NEAR(large, 100, 36);
  EXPECT_EQ(large + rare, 200);
}

TEST(Augment, ForegroundShareIsAsAsked) {
  PreparedCase source = ruler({64, 64, 64});
  source.labels.at(32, 32, 32) = 1;  // by chance a 4^3 patch holds it in 1 of 3500 cases
  int hits = 0;
  for (uint64_t step = 0; step < 400; ++step) {
    RandomStream random(3, step, 0);
    const Sample sample = draw_sample(source, crop_only({4, 4, 4}, 0.25f), random);
    hits += std::count(sample.labels.begin(), sample.labels.end(), 1) > 0;
  }
  EXPECT_NEAR(hits, 100, 45);  // standard deviation 8.7
}

TEST(Augment, SmallVolumesAreCentredAndPadded) {
  const PreparedCase source = ruler({5, 6, 20});
  for (const Size3 patch : {Size3{8, 6, 10}, Size3{5, 7, 20}, Size3{9, 9, 30}}) {
    RandomStream random(4, 0, 0);
    const Sample sample = draw_sample(source, crop_only(patch, 0.5f), random);
    int64_t filled = 0;
    for (size_t i = 0; i < sample.image.size(); i += 4) {
      filled += sample.image[i] != 0;
    }
    EXPECT_EQ(filled, 5 * 6 * std::min<int64_t>(20, patch.z));
    const int64_t margin = (patch.x - 5) / 2;
    const int64_t z = std::max<int64_t>(0, (patch.z - 20) / 2);
    const int64_t y = (patch.y - 6) / 2;
    const auto value = [&](int64_t x) {
      return sample.image[static_cast<size_t>(((z * patch.y + y) * patch.x + x) * 4)];
    };
    EXPECT_NE(value(margin), 0);
    if (margin > 0) {
      EXPECT_EQ(value(margin - 1), 0);
    }
  }
}

TEST(Augment, FlipsMirrorImageAndLabelsTogether) {
  PreparedCase source = ruler({6, 7, 8});
  for (size_t i = 0; i < source.labels.data.size(); ++i) {
    source.labels.data[i] = static_cast<uint8_t>(i % 4);
  }
  for (int axis = 0; axis < 3; ++axis) {
    AugmentOptions options = crop_only({6, 7, 8}, 0);
    options.flip_probability[static_cast<size_t>(axis)] = 1;
    RandomStream random(5, 0, 0);
    const Sample sample = draw_sample(source, options, random);
    for (int64_t z = 0; z < 8; ++z) {
      for (int64_t y = 0; y < 7; ++y) {
        for (int64_t x = 0; x < 6; ++x) {
          Size3 p{x, y, z};
          p[axis] = source.size()[axis] - 1 - p[axis];
          const size_t at = static_cast<size_t>((z * 7 + y) * 6 + x);
          ASSERT_EQ(sample.image[at * 4 + 1], source.images[1].at(p.x, p.y, p.z));
          ASSERT_EQ(sample.labels[at], source.labels.at(p.x, p.y, p.z));
        }
      }
    }
  }
}

TEST(Augment, TurningByNothingIsACropAndTurningShowsNoBorder) {
  const PreparedCase source = ruler({40, 40, 40});
  AugmentOptions options = crop_only({16, 16, 16}, 0);
  options.spatial_probability = 1;
  options.max_rotation_degrees = 0;
  options.min_zoom = options.max_zoom = 1;
  RandomStream a(6, 0, 0);
  RandomStream b(6, 0, 0);
  const Sample turned = draw_sample(source, options, a);
  const Sample plain = draw_sample(source, crop_only({16, 16, 16}, 0), b);
  for (size_t i = 0; i < plain.image.size(); ++i) {
    ASSERT_NEAR(turned.image[i], plain.image[i], 0.1f);  // values to 400000 in float
  }
  // A crop that lies 12 voxels inside reaches at most 16 * sqrt(3) / 2 * 1 / 0.85 = 16.3 voxels from its
  // centre, so with a patch of the volume's middle no padding may show at any angle.
  options.max_rotation_degrees = 45;
  options.min_zoom = 0.9f;
  options.max_zoom = 1.2f;
  PreparedCase middle = ruler({40, 40, 40});
  middle.labels.at(20, 20, 20) = 1;
  options.foreground_probability = 1;
  for (uint64_t step = 0; step < 20; ++step) {
    RandomStream random(7, step, 0);
    const Sample sample = draw_sample(middle, options, random);
    for (const float value : sample.image) {
      ASSERT_GE(value, 1.0f);
    }
  }
}

TEST(Augment, RotationIsRigidInMillimetres) {
  // With voxels of 1 x 1 x 4 mm a distance field stays one: |p - c| in mm is the same in patch and volume.
  PreparedCase source = ruler({60, 60, 16});
  source.geometry = make_geometry({60, 60, 16}, {1, 1, 4});
  for (int64_t z = 0; z < 16; ++z) {
    for (int64_t y = 0; y < 60; ++y) {
      for (int64_t x = 0; x < 60; ++x) {
        const double r = std::hypot(double(x) - 29.5, double(y) - 29.5, 4 * (double(z) - 7.5));
        source.images[0].at(x, y, z) = static_cast<float>(100 - r);
      }
    }
  }
  AugmentOptions options = crop_only({60, 60, 16}, 0);
  options.spatial_probability = 1;
  options.max_rotation_degrees = 30;
  options.min_zoom = options.max_zoom = 1;
  RandomStream random(8, 0, 0);
  const Sample sample = draw_sample(source, options, random);
  double worst = 0;
  for (int64_t z = 5; z < 11; ++z) {
    for (int64_t y = 20; y < 40; ++y) {
      for (int64_t x = 20; x < 40; ++x) {
        const double r = std::hypot(double(x) - 29.5, double(y) - 29.5, 4 * (double(z) - 7.5));
        if (r > 5) {
          worst = std::max(
              worst,
              std::abs(100 - r - double(sample.image[static_cast<size_t>(((z * 60 + y) * 60 + x) * 4)])));
        }
      }
    }
  }
  // Linear interpolation of |p| over 4 mm, at least 5 mm from its kink: 4^2 / (8 * 5) = 0.4 and two thin
  // axes.
  EXPECT_LT(worst, 0.6);
}

TEST(Augment, IntensitiesChangeInsideTheHeadOnly) {
  AugmentOptions options = crop_only({40, 44, 48}, 0);
  options.scale_probability = options.shift_probability = options.gamma_probability = 1;
  options.noise_probability = options.blur_probability = 1;
  RandomStream random(9, 0, 0);
  const Sample sample = draw_sample(phantom(), options, random);
  RandomStream again(9, 0, 0);
  const Sample plain = draw_sample(phantom(), crop_only(options.patch, 0), again);
  EXPECT_EQ(sample.labels, plain.labels);
  int64_t changed = 0;
  for (size_t i = 0; i < sample.image.size(); ++i) {
    ASSERT_TRUE(std::isfinite(sample.image[i]));
    if (plain.image[i] == 0) {
      ASSERT_EQ(sample.image[i], 0);
    } else {
      changed += sample.image[i] != plain.image[i];
    }
  }
  EXPECT_GT(changed, 10000);
}

TEST(Augment, EachIntensityChangeDoesWhatItSays) {
  const auto changed = [](auto set) {
    AugmentOptions options = crop_only({40, 44, 48}, 0);
    set(options);
    RandomStream random(10, 0, 0);
    return draw_sample(phantom(), options, random);
  };
  const Sample plain = changed([](AugmentOptions&) {});
  const auto moments = [&](const Sample& s) {
    double sum = 0, squares = 0, n = 0;
    for (size_t i = 0; i < s.image.size(); i += 4) {
      if (plain.image[i] != 0) {
        sum += double(s.image[i]);
        squares += double(s.image[i]) * double(s.image[i]);
        n += 1;
      }
    }
    return std::pair(sum / n, std::sqrt(squares / n - sum / n * sum / n));
  };
  const auto [mean, deviation] = moments(plain);
  const auto scaled = moments(changed([](AugmentOptions& o) { o.scale_probability = 1; }));
  EXPECT_GT(std::abs(scaled.second - deviation), 1e-4);
  EXPECT_LT(std::abs(scaled.second / deviation - 1), 0.2501);
  const auto shifted = moments(changed([](AugmentOptions& o) { o.shift_probability = 1; }));
  EXPECT_NEAR(shifted.second, deviation, 1e-4);
  EXPECT_GT(std::abs(shifted.first - mean), 1e-4);
  EXPECT_LT(std::abs(shifted.first - mean), 0.2501);
  const auto noisy = moments(changed([](AugmentOptions& o) {
    o.noise_probability = 1;
    o.max_noise = 1;
  }));
  EXPECT_GT(noisy.second, deviation);
  const auto blurred = moments(changed([](AugmentOptions& o) { o.blur_probability = 1; }));
  EXPECT_LT(blurred.second, deviation);
  const Sample gamma = changed([](AugmentOptions& o) { o.gamma_probability = 1; });
  const auto range = [&](const Sample& s) {
    float low = 1e9f, high = -1e9f;
    for (size_t i = 0; i < s.image.size(); i += 4) {
      if (plain.image[i] != 0) {
        low = std::min(low, s.image[i]);
        high = std::max(high, s.image[i]);
      }
    }
    return std::pair(low, high);
  };
  EXPECT_NEAR(range(gamma).first, range(plain).first, 1e-4);
  EXPECT_NEAR(range(gamma).second, range(plain).second, 1e-4);
  EXPECT_NE(gamma.image, plain.image);
}

TEST(Augment, AbsentModalitiesAreZeroAndLabelsMayBeMissing) {
  PreparedCase source = phantom();
  source.present = {true, false, true, false};
  source.images[1] = source.images[3] = Image{};
  source.labels = LabelMap{};
  AugmentOptions options;
  options.patch = {16, 16, 16};
  options.spatial_probability = options.noise_probability = options.shift_probability = 1;
  RandomStream random(11, 0, 0);
  const Sample sample = draw_sample(source, options, random);
  EXPECT_EQ(sample.present, source.present);
  EXPECT_TRUE(sample.labels.empty());
  bool any = false;
  for (size_t i = 0; i < sample.image.size(); i += 4) {
    ASSERT_EQ(sample.image[i + 1], 0);
    ASSERT_EQ(sample.image[i + 3], 0);
    any = any || sample.image[i] != 0;
  }
  EXPECT_TRUE(any);
  options.patch = {0, 16, 16};
  expect_error<UsageError>([&] { draw_sample(source, options, random); }, {"patch 0 x 16 x 16"});
}

// A case without a tumour, and a donor whose tumour is a bright cube: what arrives is the donor's, labels and
// intensities together, and nothing else changes.
TEST(Augment, TransplantBringsTheTumourAndLeavesTheRest) {
  const Size3 size{32, 32, 32};
  PreparedCase source = ruler(size);
  PreparedCase donor = ruler(size);
  for (Image& image : donor.images) {
    std::fill(image.data.begin(), image.data.end(), -7.0f);
  }
  for (int64_t z = 10; z < 22; ++z) {
    for (int64_t y = 10; y < 22; ++y) {
      for (int64_t x = 10; x < 22; ++x) {
        donor.labels.at(x, y, z) = 2;
      }
    }
  }
  AugmentOptions options = crop_only(size, 0);
  options.transplant_probability = 1;
  std::vector<float> untouched(static_cast<size_t>(size.voxels()) * 4);
  extract_tile(source, {0, 0, 0}, size, untouched);
  std::set<int64_t> sizes;
  for (uint64_t step = 0; step < 20; ++step) {
    RandomStream random(8, step, 0);
    const Sample sample = draw_sample(source, options, random, &donor);
    int64_t tumour = 0, shell = 0;
    for (size_t i = 0; i < sample.labels.size(); ++i) {
      const float before = untouched[4 * i], after = sample.image[4 * i];
      if (sample.labels[i] != 0) {
        ASSERT_EQ(sample.labels[i], 2);
        ASSERT_EQ(after, -7.0f);
        ++tumour;
      } else if (after != before) {
        ASSERT_NEAR(after, 0.5f * (before - 7.0f), 1e-6f * before) << "only the shell is mixed";
        ++shell;
      }
    }
    EXPECT_GT(tumour, 0);
    EXPECT_LT(shell, 6 * tumour);
    sizes.insert(tumour);
  }
  EXPECT_GT(sizes.size(), 10u) << "sizes differ";
  EXPECT_LT(*sizes.begin(), 12 * 12 * 12 / 4) << "some are much smaller than the donor's";
  // Never outside the head, never from a donor that lacks a modality, never without a donor.
  PreparedCase half = source;
  for (int64_t i = 0; i < size.voxels() / 2; ++i) {
    half.mask.data[static_cast<size_t>(i)] = 0;
  }
  PreparedCase poor = donor;
  poor.present[2] = false;
  poor.images[2] = {};
  for (uint64_t step = 0; step < 20; ++step) {
    RandomStream a(8, step, 0), b(8, step, 0), c(8, step, 0);
    const Sample inside = draw_sample(half, options, a, &donor);
    EXPECT_EQ(std::count_if(inside.labels.begin(), inside.labels.begin() + size.voxels() / 2,
                            [](uint8_t label) { return label != 0; }),
              0);
    EXPECT_EQ(draw_sample(source, options, b, &poor).image, untouched);
    EXPECT_EQ(draw_sample(source, options, c).image, untouched);
  }
}

TEST(Augment, StrengthScalesWhatChangesAndNothingElse) {
  const AugmentOptions plain;
  const AugmentOptions twice = with_strength(plain, 2);
  EXPECT_FLOAT_EQ(twice.spatial_probability, 0.4f);
  EXPECT_FLOAT_EQ(twice.max_rotation_degrees, 30.0f);
  EXPECT_FLOAT_EQ(twice.min_zoom, 0.85f * 0.85f);
  EXPECT_FLOAT_EQ(twice.max_gamma, 2.25f);
  EXPECT_FLOAT_EQ(twice.max_shift, 0.5f);
  EXPECT_FLOAT_EQ(twice.foreground_probability, plain.foreground_probability);
  EXPECT_EQ(twice.flip_probability, plain.flip_probability);
  EXPECT_FLOAT_EQ(with_strength(plain, 4).max_scale, 0.9f);
  EXPECT_FLOAT_EQ(with_strength(plain, 4).spatial_probability, 0.8f);
  // 1 changes no sample; 0 leaves the crop and the flips.
  for (uint64_t step = 0; step < 5; ++step) {
    RandomStream a(9, step, 0), b(9, step, 0);
    EXPECT_EQ(draw_sample(phantom(), plain, a).image,
              draw_sample(phantom(), with_strength(plain, 1), b).image);
  }
  AugmentOptions none = with_strength(plain, 0);
  none.patch = {16, 16, 16};
  none.flip_probability = {0, 0, 0};
  for (uint64_t step = 0; step < 20; ++step) {
    RandomStream a(9, step, 0), b(9, step, 0);
    EXPECT_EQ(draw_sample(phantom(), none, a).labels,
              draw_sample(phantom(), crop_only({16, 16, 16}, none.foreground_probability), b).labels);
  }
  EXPECT_THROW(with_strength(plain, -0.1f), UsageError);
  EXPECT_THROW(with_strength(plain, 4.1f), UsageError);
}

TEST(Augment, WithoutTumourTheOtherHalfShowsThere) {
  PreparedCase source = ruler({20, 10, 10});
  for (int64_t z = 3; z < 6; ++z) {
    for (int64_t y = 3; y < 6; ++y) {
      for (int64_t x = 2; x < 12; ++x) {  // it crosses the middle, 9 | 10, by two voxels
        source.labels.at(x, y, z) = 1;
      }
    }
  }
  source.mask.at(16, 4, 4) = 0;  // opposite of x = 3
  source.present[1] = false;
  source.images[1] = {};
  const PreparedCase healed = without_tumour(source);
  for (int64_t z = 0; z < 10; ++z) {
    for (int64_t y = 0; y < 10; ++y) {
      for (int64_t x = 0; x < 20; ++x) {
        const bool near = x < 14 && y >= 1 && y < 8 && z >= 1 && z < 8;
        const bool labelled = source.labels.at(x, y, z) != 0;
        const int64_t other = 19 - x;
        const bool replaced = near && source.mask.at(x, y, z) != 0 && source.mask.at(other, y, z) != 0 &&
                              source.labels.at(other, y, z) == 0;
        ASSERT_EQ(healed.labels.at(x, y, z), labelled && !replaced ? 1 : 0) << x << ' ' << y << ' ' << z;
        ASSERT_EQ(healed.images[3].at(x, y, z), source.images[3].at(replaced ? other : x, y, z));
      }
    }
  }
  EXPECT_EQ(healed.labels.at(3, 4, 4), 1) << "nothing is known of the other side";
  EXPECT_EQ(healed.labels.at(9, 4, 4), 1) << "tumour on both sides";
  EXPECT_EQ(healed.labels.at(4, 4, 4), 0);
  EXPECT_TRUE(healed.images[1].data.empty());
}

}  // namespace
}  // namespace vesal::imaging
