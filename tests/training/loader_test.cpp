// Batches depend on seed and step, not on threads or timing; cases come evenly; modalities are dropped as
// stated.
#include "training/loader.hpp"

#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <map>
#include <set>

#include "base/error.hpp"
#include "tests/training/training_fixture.hpp"
#include "training/random_ops.hpp"

namespace vesal::training {
namespace {

using LoaderTest = TrainingTest;

LoaderSettings settings_of(int threads, uint64_t seed = 3) {
  LoaderSettings settings;
  settings.augment.patch = {16, 32, 16};
  settings.batch = 2;
  settings.seed = seed;
  settings.threads = threads;
  settings.ahead = threads + 1;
  return settings;
}

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_TRUE(a.images == b.images) << "images of step " << a.step;
  EXPECT_TRUE(a.labels == b.labels) << "labels of step " << a.step;
  EXPECT_EQ(a.masks, b.masks);
  EXPECT_EQ(a.cases, b.cases);
}

TEST_F(LoaderTest, ContentsDoNotDependOnThreadsTimingOrWhereOneStarts) {
  const auto cases = prepared(3, 32);
  Loader one(cases, settings_of(1), 0);
  Loader three(cases, settings_of(3), 0);
  Loader late(cases, settings_of(2), 4);
  for (int64_t step = 0; step < 8; ++step) {
    if (step % 3 == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    const Batch direct = make_batch(cases, {}, settings_of(1), step);
    EXPECT_EQ(direct.step, step);
    expect_equal(one.next(), direct);
    expect_equal(three.next(), direct);
    if (step >= 4) {
      expect_equal(late.next(), direct);
    }
  }
}

TEST_F(LoaderTest, ShapesAndDifferentSeedsAndSteps) {
  const auto cases = prepared(2, 32);
  const Batch batch = make_batch(cases, {}, settings_of(1), 0);
  EXPECT_EQ(batch.images.size(), 2u * 16 * 32 * 16 * 4);
  EXPECT_EQ(batch.labels.size(), 2u * 16 * 32 * 16);
  EXPECT_EQ(batch.masks.size(), 2u);
  EXPECT_NE(make_batch(cases, {}, settings_of(1), 1).images, batch.images);
  EXPECT_NE(make_batch(cases, {}, settings_of(1, 4), 0).images, batch.images);
  const size_t half = batch.images.size() / 2;
  EXPECT_FALSE(std::equal(batch.images.begin(), batch.images.begin() + static_cast<std::ptrdiff_t>(half),
                          batch.images.begin() + static_cast<std::ptrdiff_t>(half)));
}

TEST_F(LoaderTest, EveryPassShowsEveryCaseOnceInItsOwnOrder) {
  constexpr int64_t kCases = 7;
  std::set<std::vector<int64_t>> orders;
  for (int64_t pass = 0; pass < 5; ++pass) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < kCases; ++i) {
      order.push_back(case_of_sample(pass * kCases + i, kCases, 11));
    }
    EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), static_cast<size_t>(kCases));
    orders.insert(order);
  }
  EXPECT_GT(orders.size(), 3u);
  EXPECT_EQ(case_of_sample(123, 1, 5), 0);
}

TEST_F(LoaderTest, ModalityDropoutHasTheStatedFrequencies) {
  constexpr int kDraws = 20000;
  std::map<models::ModalityMask, int> counts;
  for (int i = 0; i < kDraws; ++i) {
    RandomStream random(5, static_cast<uint64_t>(i), kModalityOp);
    ++counts[draw_modalities(imaging::kAllModalities, random)];
  }
  // The full set: 1/4 + 3/4 * 1/15; each other of the 15 subsets: 3/4 * 1/15 = 0.05. Bounds are five standard
  // deviations of a binomial count.
  ASSERT_EQ(counts.size(), 15u);
  EXPECT_EQ(counts.count({0, 0, 0, 0}), 0u);
  for (const auto& [mask, count] : counts) {
    const double p = mask == models::ModalityMask{1, 1, 1, 1} ? 0.30 : 0.05;
    EXPECT_NEAR(count, kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)));
  }
}

TEST_F(LoaderTest, ModalitiesThatACaseLacksAreNeverShown) {
  std::set<models::ModalityMask> seen;
  for (int i = 0; i < 500; ++i) {
    RandomStream random(6, static_cast<uint64_t>(i), kModalityOp);
    seen.insert(draw_modalities({true, false, true, false}, random));
  }
  EXPECT_EQ(seen, (std::set<models::ModalityMask>{{1, 0, 1, 0}, {1, 0, 0, 0}, {0, 0, 1, 0}}));
  RandomStream random(6, 0, kModalityOp);
  EXPECT_THROW(draw_modalities({false, false, false, false}, random), ShapeError);
}

TEST_F(LoaderTest, WithoutDropoutEverythingPresentIsShown) {
  auto cases = prepared(1, 32);
  cases[0].present[1] = false;
  cases[0].images[1] = {};
  LoaderSettings settings = settings_of(1);
  settings.drop_modalities = false;
  for (const models::ModalityMask& mask : make_batch(cases, {}, settings, 0).masks) {
    EXPECT_EQ(mask, (models::ModalityMask{1, 0, 1, 1}));
  }
}

TEST_F(LoaderTest, AnErrorWhileMakingABatchArrivesAtItsStep) {
  auto cases = prepared(2, 32);
  cases[1].labels = {};  // no labels to learn from
  LoaderSettings settings = settings_of(2);
  settings.batch = 1;
  Loader loader(cases, settings, 0);
  const int64_t bad = case_of_sample(0, 2, settings.seed) == 1 ? 0 : 1;
  if (bad == 1) {
    loader.next();
  }
  EXPECT_THROW(loader.next(), ShapeError);
}

#if !VESAL_SANITIZED  // sanitizers reserve more addresses than any limit
TEST_F(LoaderTest, ThreadsThatCannotBeStartedAreAnErrorAndNotTheEnd) {
  const auto cases = prepared(1, 32);
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  rlimit limited = before;
  limited.rlim_cur =
      static_cast<rlim_t>(pages) * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (rlim_t{256} << 20);
  ASSERT_EQ(setrlimit(RLIMIT_AS, &limited), 0);
  const std::string message = message_of<Error>([&] { Loader(cases, settings_of(4000), 0); });
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_TRUE(holds(message, "of 4000 threads")) << message;
}
#endif

TEST_F(LoaderTest, RefusesBadSettings) {
  const std::vector<imaging::PreparedCase> none;
  EXPECT_THROW(Loader(none, settings_of(1), 0), UsageError);
  const auto cases = prepared(1, 32);
  EXPECT_THROW(Loader(cases, settings_of(0), 0), UsageError);
  LoaderSettings settings = settings_of(1);
  settings.batch = 0;
  EXPECT_THROW(Loader(cases, settings, 0), UsageError);
}

TEST_F(LoaderTest, TheShareOfHealedHeadsIsAsAsked) {
  const std::vector<imaging::PreparedCase> cases = prepared(2, 32);
  std::vector<imaging::PreparedCase> healed = cases;
  for (imaging::PreparedCase& one : healed) {
    std::fill(one.labels.data.begin(), one.labels.data.end(), uint8_t{0});
  }
  LoaderSettings settings = settings_of(1);
  settings.augment = imaging::crop_only({32, 32, 32}, 0);
  settings.batch = 1;
  settings.heal = 0.25f;
  const auto empty_batches = [&](int64_t steps) {
    int64_t empty = 0;
    for (int64_t step = 0; step < steps; ++step) {
      const Batch batch = make_batch(cases, healed, settings, step);
      empty +=
          std::all_of(batch.labels.begin(), batch.labels.end(), [](uint8_t label) { return label == 0; });
    }
    return empty;
  };
  EXPECT_NEAR(static_cast<double>(empty_batches(200)), 50, 31);  // binomial: standard deviation 6.1
  settings.heal = 0;
  EXPECT_EQ(empty_batches(20), 0);
  // The loader makes the healed heads itself.
  settings.heal = 1;
  std::vector<imaging::PreparedCase> painted;
  for (const imaging::PreparedCase& one : cases) {
    painted.push_back(imaging::without_tumour(one));
  }
  Loader loader(cases, settings, 0);
  expect_equal(loader.next(), make_batch(cases, painted, settings, 0));
}

TEST_F(LoaderTest, SamplesTellTheirSpacing) {
  std::vector<imaging::PreparedCase> cases = prepared(2, 32);
  cases[0].geometry.spacing_mm = cases[1].geometry.spacing_mm = {1, 2, 5};
  EXPECT_EQ(make_batch(cases, {}, settings_of(1), 0).spacing_mm, (std::array<float, 3>{5, 2, 1}));
}

}  // namespace
}  // namespace vesal::training
