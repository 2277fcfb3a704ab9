// Pooling by regions on every device against references that read the labels only.
#include "kernels/region_pool/region_pool.hpp"

#include <cmath>
#include <limits>
#include <numeric>

#include "base/parallel.hpp"
#include "kernels/region_pool/region_pool_cases.hpp"
#include "kernels/region_pool/region_pool_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

template <class T>
struct Result {
  std::vector<T> means, dx, y, dregions;
};

struct Inputs {
  RegionCase c;
  std::vector<int32_t> labels;
  std::vector<float> voxels, regions;  // [n, voxels, channels] and [n, regions, channels]

  explicit Inputs(const RegionCase& of, uint64_t seed = 1)
      : c(of),
        labels(random_labels(of.params, seed)),
        voxels(random_normal(of.params.n * of.params.voxels * of.channels, seed + 1)),
        regions(random_normal(of.params.n * of.params.regions * of.channels, seed + 2)) {}
};

template <class T>
Result<T> reference_result(const Inputs& in) {
  const RegionParams& p = in.c.params;
  const std::vector<T> voxels(in.voxels.begin(), in.voxels.end()),
      regions(in.regions.begin(), in.regions.end());
  Result<T> r{std::vector<T>(regions.size()), std::vector<T>(voxels.size()), std::vector<T>(voxels.size()),
              std::vector<T>(regions.size())};
  reference::region_mean_forward(p, in.c.channels, in.labels.data(), voxels.data(), r.means.data());
  reference::region_mean_backward(p, in.c.channels, in.labels.data(), regions.data(), r.dx.data());
  reference::region_gather_forward(p, in.c.channels, in.labels.data(), regions.data(), r.y.data());
  reference::region_gather_backward(p, in.c.channels, in.labels.data(), voxels.data(), r.dregions.data());
  return r;
}

struct DeviceIndex {
  DeviceArray<int32_t> offsets, voxels;

  DeviceIndex(Device device, const RegionParams& p)
      : offsets(device, p.index_offsets()), voxels(device, p.n * p.voxels) {}
  RegionIndex get() const { return {offsets, voxels}; }
};

// All features and means begin `offset` elements behind a place that is aligned.
Result<float> device_result(Device device, const Inputs& in, int64_t offset = 0) {
  const RegionParams& p = in.c.params;
  Context context(device);
  const DeviceArray<int32_t> labels(device, in.labels);
  const DeviceIndex index(device, p);
  {
    const DeviceWorkspace workspace(device, region_index_workspace_bytes(context, p));
    region_index(context, p, labels, index.get(), workspace);
  }
  const auto behind = [&](std::vector<float> values) {
    values.insert(values.begin(), static_cast<size_t>(offset), 0.0f);
    return values;
  };
  const DeviceArray<float> voxels(device, behind(in.voxels)), regions(device, behind(in.regions));
  const DeviceArray<float> means(device, regions.size()), dx(device, voxels.size()), y(device, voxels.size()),
      dregions(device, regions.size());
  const int64_t channels = in.c.channels;
  region_mean_forward(context, p, channels, index.get(), voxels.get() + offset, means.get() + offset);
  region_mean_backward(context, p, channels, labels, index.get(), regions.get() + offset, dx.get() + offset);
  region_gather_forward(context, p, channels, labels, regions.get() + offset, y.get() + offset);
  region_gather_backward(context, p, channels, index.get(), voxels.get() + offset, dregions.get() + offset);
  const auto values = [&](const DeviceArray<float>& array) {
    std::vector<float> all = array.host();
    all.erase(all.begin(), all.begin() + offset);
    return all;
  };
  return {values(means), values(dx), values(y), values(dregions)};
}

void expect_result(const std::string& what, const Result<float>& found, const Result<double>& exact,
                   const Result<float>& naive) {
  expect_close(what + ", means", found.means, exact.means, naive.means);
  expect_close(what + ", dx of the mean", found.dx, exact.dx, naive.dx);
  expect_equal(what + ", gather", found.y, exact.y);
  expect_close(what + ", dx of the gather", found.dregions, exact.dregions, naive.dregions);
}

std::vector<float> joined(const Result<float>& r) {
  std::vector<float> all = r.means;
  for (const std::vector<float>* part : {&r.dx, &r.y, &r.dregions}) {
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

TEST(RegionPool, IndexListsEveryVoxelInOrder) {
  for (const RegionCase& c : kRegionCases) {
    const RegionParams& p = c.params;
    const std::vector<int32_t> labels = random_labels(p, 5);
    for (const Device device : test_devices()) {
      SCOPED_TRACE(c.name + " on " + to_string(device));
      Context context(device);
      const DeviceArray<int32_t> on_device(device, labels);
      const DeviceIndex index(device, p);
      const DeviceWorkspace workspace(device, region_index_workspace_bytes(context, p));
      region_index(context, p, on_device, index.get(), workspace);
      const std::vector<int32_t> offsets = index.offsets.host(), voxels = index.voxels.host();
      const int32_t poison = DeviceArray<int32_t>(device, 1).host()[0];
      for (int64_t s = 0; s < p.n; ++s) {
        int64_t entry = 0;
        for (int64_t m = 0; m < p.regions; ++m) {
          ASSERT_EQ(offsets[s * (p.regions + 1) + m], entry) << "sample " << s << ", region " << m;
          for (int64_t v = 0; v < p.voxels; ++v) {
            if (labels[s * p.voxels + v] == m) {
              ASSERT_EQ(voxels[s * p.voxels + entry], v) << "sample " << s << ", entry " << entry;
              ++entry;
            }
          }
        }
        ASSERT_EQ(offsets[s * (p.regions + 1) + p.regions], entry);
        for (; entry < p.voxels; ++entry) {
          ASSERT_EQ(voxels[s * p.voxels + entry], poison)
              << "entry " << entry << " behind the last was written";
        }
      }
    }
  }
}

TEST(RegionPool, MatchesTheReference) {
  for (const RegionCase& c : kRegionCases) {
    const Inputs in(c);
    const Result<double> exact = reference_result<double>(in);
    const Result<float> naive = reference_result<float>(in);
    for (const Device device : test_devices()) {
      const std::string what = c.name + " on " + to_string(device);
      expect_same_bits(what, device, [&] {
        const Result<float> found = device_result(device, in);
        expect_result(what, found, exact, naive);
        return joined(found);
      });
    }
  }
}

TEST(RegionPool, UnalignedIsTheSame) {
  for (const RegionCase& c : kRegionCases) {
    const Inputs in(c);
    for (const Device device : test_devices()) {
      expect_equal(c.name + " on " + to_string(device), joined(device_result(device, in, 1)),
                   joined(device_result(device, in)));
    }
  }
}

TEST(RegionPool, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const RegionCase c{"random",
                       {1 + random.below(3), 1 + random.below(random.below(4) == 0 ? 1500 : 90),
                        1 + random.below(random.below(4) == 0 ? 1200 : 20)},
                       1 + random.below(random.below(3) == 0 ? 70 : 9)};
    SCOPED_TRACE(concat("n ", c.params.n, ", voxels ", c.params.voxels, ", regions ", c.params.regions,
                        ", channels ", c.channels));
    const Inputs in(c, 10 + static_cast<uint64_t>(random.below(1 << 20)));
    const Result<double> exact = reference_result<double>(in);
    Result<float> naive = reference_result<float>(in);
    // A sum of a few numbers may be exact in one evaluation by luck.
    for (int trial = 0; trial < 4; ++trial) {
      Inputs moved = in;
      moved.voxels = moved_by_one_ulp(in.voxels, random);
      const Result<float> other = reference_result<float>(moved);
      keep_worse(naive.means, other.means, exact.means);
      keep_worse(naive.dregions, other.dregions, exact.dregions);
    }
    for (const Device device : test_devices()) {
      expect_result(to_string(device), device_result(device, in), exact, naive);
    }
  });
}

// Voxels of no region are not read, and regions without voxels neither.
TEST(RegionPool, WhatBelongsToNobodyIsNeverRead) {
  Inputs in({"nobody", {2, 200, 20}, 5});
  const std::vector<float> plain = joined(device_result({DeviceType::cpu, 0}, in));
  const RegionParams& p = in.c.params;
  const std::vector<int64_t> sizes = reference::region_sizes(p, in.labels.data());
  ASSERT_EQ(std::count(sizes.begin(), sizes.end(), 0) > 4, true);
  int64_t outside = 0;
  for (size_t v = 0; v < in.labels.size(); ++v) {
    if (in.labels[v] < 0 || in.labels[v] >= p.regions) {
      ++outside;
      std::fill_n(in.voxels.begin() + static_cast<int64_t>(v) * 5, 5,
                  std::numeric_limits<float>::quiet_NaN());
    }
  }
  ASSERT_GT(outside, 10);
  for (size_t m = 0; m < sizes.size(); ++m) {
    if (sizes[m] == 0) {
      std::fill_n(in.regions.begin() + static_cast<int64_t>(m) * 5, 5,
                  std::numeric_limits<float>::quiet_NaN());
    }
  }
  for (const Device device : test_devices()) {
    const Result<float> found = device_result(device, in);
    if (device.type == DeviceType::cpu) {
      expect_equal("NaN outside, " + to_string(device), joined(found), plain);
    }
    for (size_t m = 0; m < sizes.size(); ++m) {
      for (int64_t c = 0; c < 5; ++c) {
        const size_t i = m * 5 + static_cast<size_t>(c);
        EXPECT_EQ(found.means[i] == 0.0f && found.dregions[i] == 0.0f, sizes[m] == 0)
            << to_string(device) << " " << m;
      }
    }
    const std::vector<float> all = joined(found);
    EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](float x) { return std::isfinite(x); }))
        << to_string(device);
  }
}

TEST(RegionPool, IndependentOfTheThreadCount) {
  const Inputs in({"threads", {3, 5000, 40}, 16});
  const std::vector<float> expected = joined(device_result({DeviceType::cpu, 0}, in));
  const int threads = thread_count();
  for (const int count : {1, 3, 5}) {
    set_thread_count(count);
    expect_equal("threads", joined(device_result({DeviceType::cpu, 0}, in)), expected);
  }
  set_thread_count(threads);
}

TEST(RegionPool, ReferenceGradients) {
  const RegionParams p{2, 9, 4};
  const int64_t channels = 2;
  const std::vector<int32_t> labels = {0, 0, 1, -1, 1, 3, 3, 3, 4, 2, 2, 0, 0, 0, -7, 3, 2, 2};
  const std::vector<double> voxels = widen(random_normal(p.n * p.voxels * channels, 1));
  const std::vector<double> regions = widen(random_normal(p.n * p.regions * channels, 2));
  std::vector<double> dvoxels(voxels.size()), dregions(regions.size());
  reference::region_mean_backward(p, channels, labels.data(), regions.data(), dvoxels.data());
  expect_gradient("mean", voxels, dvoxels, [&](const std::vector<double>& x) {
    std::vector<double> means(regions.size());
    reference::region_mean_forward(p, channels, labels.data(), x.data(), means.data());
    return std::inner_product(means.begin(), means.end(), regions.begin(), 0.0);
  });
  reference::region_gather_backward(p, channels, labels.data(), voxels.data(), dregions.data());
  expect_gradient("gather", regions, dregions, [&](const std::vector<double>& x) {
    std::vector<double> y(voxels.size());
    reference::region_gather_forward(p, channels, labels.data(), x.data(), y.data());
    return std::inner_product(y.begin(), y.end(), voxels.begin(), 0.0);
  });
}

TEST(RegionPool, Storage) {
  for (const RegionCase& c : kRegionCases) {
    const Inputs in(c);
    const RegionParams& p = c.params;
    if (p.regions > 1000) {
      continue;  // tiles of the index, which is of whole numbers
    }
    const auto voxels = static_cast<int64_t>(in.voxels.size()),
               regions = static_cast<int64_t>(in.regions.size());
    expect_rounded_float32(c.name, [&](Call& call) {
      const DeviceIndex index(call.context().device(), p);
      const int32_t* labels = call.indices(in.labels);
      region_index(call.context(), p, labels, index.get(),
                   call.workspace(region_index_workspace_bytes(call.context(), p)));
      region_mean_forward(call.context(), p, c.channels, index.get(), call.in(in.voxels), call.out(regions));
      region_mean_backward(call.context(), p, c.channels, labels, index.get(), call.in(in.regions),
                           call.out(voxels));
      region_gather_forward(call.context(), p, c.channels, labels, call.in(in.regions), call.out(voxels));
      region_gather_backward(call.context(), p, c.channels, index.get(), call.in(in.voxels),
                             call.out(regions));
    });
  }
}

TEST(RegionPool, MixedStorageIsOneLine) {
  for (const Device device : test_devices()) {
    Call call(device, DType::f16, DType::f16);
    Context& context = call.context();
    const RegionParams p{1, 2, 1};
    const DeviceArray<int32_t> labels(device, std::vector<int32_t>{0, 0}),
        offsets(device, std::vector<int32_t>{0, 2}), voxels(device, std::vector<int32_t>{0, 1});
    const RegionIndex index{offsets, voxels};
    const Data half = call.in_out({1, 2}), wide = call.in_out_float({1, 2});
    const std::string mixed = ": tensors are stored as f16 and f32, expected one type";
    EXPECT_EQ(shape_error([&] { region_mean_forward(context, p, 1, index, half, wide); }),
              "region_mean_forward" + mixed);
    EXPECT_EQ(shape_error([&] { region_mean_backward(context, p, 1, labels, index, half, wide); }),
              "region_mean_backward" + mixed);
    EXPECT_EQ(shape_error([&] { region_gather_forward(context, p, 1, labels, half, wide); }),
              "region_gather_forward" + mixed);
    EXPECT_EQ(shape_error([&] { region_gather_backward(context, p, 1, index, half, wide); }),
              "region_gather_backward" + mixed);
  }
}

TEST(RegionPool, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  EXPECT_THROW(region_index_workspace_bytes(context, {1, 0, 1}), ShapeError);
  EXPECT_THROW(region_index_workspace_bytes(context, {1, 10, 0}), ShapeError);
  EXPECT_THROW(region_index_workspace_bytes(context, {1, 10, 65537}), ShapeError);
  EXPECT_THROW(region_index_workspace_bytes(context, {70000, 10, 1}), ShapeError);
  EXPECT_NO_THROW(region_index_workspace_bytes(context, {1, 10, 65536}));
  std::vector<int32_t> numbers(64, 0);
  std::vector<float> x(64);
  int32_t* i = numbers.data();
  const RegionParams p{1, 4, 3};
  EXPECT_THROW(region_index(context, p, i, {i, i}, {}), ShapeError);
  EXPECT_THROW(region_index(context, p, nullptr, {i, i}, {x.data(), 256}), ShapeError);
  EXPECT_THROW(region_mean_forward(context, p, 0, {i, i}, x.data(), x.data()), ShapeError);
  EXPECT_THROW(region_mean_forward(context, p, 2, {i, nullptr}, x.data(), x.data()), ShapeError);
  EXPECT_THROW(region_gather_forward(context, p, 2, i, i, x.data()), ShapeError);  // i32 features
  EXPECT_THROW(region_gather_backward(context, p, 2, {i, i}, x.data(), nullptr), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
