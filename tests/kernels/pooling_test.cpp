// Pooling against its references, on every device.
#include "kernels/pooling/pooling.hpp"

#include <cstdlib>
#include <fstream>
#include <limits>
#include <numeric>

#include "kernels/pooling/pooling_cases.hpp"
#include "kernels/pooling/pooling_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

int64_t input_count(const PoolParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const PoolParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w() * p.c; }

std::string on(Device device, const std::string& name) {
  return concat(name, ", device ", static_cast<int>(device.type));
}

// PyTorch's rule, as in its documentation: floor or ceil of (extent - kernel) / stride + 1, where a window
// that would begin outside the volume is dropped.
TEST(PoolParams, CountsWindowsAsPyTorchDoes) {
  for (int kernel = 1; kernel <= 5; ++kernel) {
    for (int stride = 1; stride <= 6; ++stride) {
      for (int64_t extent = 1; extent <= 20; ++extent) {
        PoolParams p;
        p.kernel = {kernel, kernel, kernel};
        p.stride = {stride, stride, stride};
        int64_t full = 0, begun = 0;
        for (int64_t first = 0; first < extent; first += stride) {
          full += first + kernel <= extent ? 1 : 0;
          // A window belongs if the one before it left voxels over.
          begun += first == 0 || first - stride + kernel < extent ? 1 : 0;
        }
        EXPECT_EQ(p.out(extent, 0), full) << extent << " " << kernel << " " << stride;
        p.ceil_mode = true;
        EXPECT_EQ(p.out(extent, 0), begun) << extent << " " << kernel << " " << stride;
      }
    }
  }
}

// Winners on a device, in the type that the parameters ask for.
class IndexArray {
 public:
  IndexArray(Device device, const PoolParams& p, int64_t count)
      : bytes_(device, p.index_type() == DType::u8 ? count : 0),
        words_(device, p.index_type() == DType::u8 ? 0 : count),
        type_(p.index_type()) {}
  IndexArray(Device device, const PoolParams& p, const std::vector<int32_t>& values)
      : bytes_(device, p.index_type() == DType::u8 ? std::vector<uint8_t>(values.begin(), values.end())
                                                   : std::vector<uint8_t>()),
        words_(device, p.index_type() == DType::u8 ? std::vector<int32_t>() : values),
        type_(p.index_type()) {}
  Data data() const { return type_ == DType::u8 ? Data(bytes_.get()) : Data(words_.get()); }
  std::vector<int32_t> host() const {
    const std::vector<uint8_t> bytes = bytes_.host();
    return type_ == DType::u8 ? std::vector<int32_t>(bytes.begin(), bytes.end()) : words_.host();
  }

 private:
  DeviceArray<uint8_t> bytes_;
  DeviceArray<int32_t> words_;
  DType type_;
};

struct MaxResult {
  std::vector<float> y;
  std::vector<int32_t> index;
};

MaxResult max_forward_on(Device device, const PoolParams& p, const std::vector<float>& x) {
  Context context(device);
  const DeviceArray<float> in(device, x), y(device, output_count(p));
  const IndexArray index(device, p, output_count(p));
  max_pool3d_forward(context, p, in.get(), y.get(), index.data());
  const DeviceArray<float> without(device, output_count(p));
  max_pool3d_forward(context, p, in.get(), without.get(), nullptr);
  expect_equal("maximum without index", without.host(), y.host());
  return {y.host(), index.host()};
}

std::vector<float> max_backward_on(Device device, const PoolParams& p, const std::vector<float>& dy,
                                   const std::vector<int32_t>& index) {
  Context context(device);
  const DeviceArray<float> gradient(device, dy), dx(device, input_count(p));
  const IndexArray winners(device, p, index);
  max_pool3d_backward(context, p, gradient.get(), winners.data(), dx.get());
  return dx.host();
}

struct AverageResult {
  std::vector<float> y, dx;
};

AverageResult average_on(Device device, const PoolParams& p, const std::vector<float>& x,
                         const std::vector<float>& dy) {
  Context context(device);
  const DeviceArray<float> in(device, x), gradient(device, dy), y(device, output_count(p)),
      dx(device, input_count(p));
  avg_pool3d_forward(context, p, in.get(), y.get());
  avg_pool3d_backward(context, p, gradient.get(), dx.get());
  return {y.host(), dx.host()};
}

TEST(MaxPool, ForwardIsExact) {
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    ASSERT_GT(output_count(p), 0) << c.name;
    // Integers from a small range: most windows have several equal maxima.
    for (const std::vector<float>& x :
         {random_normal(input_count(p), 1), random_integers(input_count(p), 2, -1, 1)}) {
      std::vector<float> y(static_cast<size_t>(output_count(p)));
      std::vector<int32_t> index(y.size());
      reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
      for (const Device device : test_devices()) {
        SCOPED_TRACE(on(device, c.name));
        const MaxResult actual = max_forward_on(device, p, x);
        expect_equal("maximum", actual.y, y);
        EXPECT_EQ(actual.index, index);
      }
    }
  }
}

TEST(MaxPool, TheFirstNanWins) {
  for (const PoolCase& c : {kPoolCases[1], kPoolCases[8], kPoolCases[13]}) {
    const PoolParams& p = c.params;
    std::vector<float> x = random_normal(input_count(p), 3);
    for (size_t i = 0; i < x.size(); i += 5) {
      x[i] = std::numeric_limits<float>::quiet_NaN();
    }
    for (size_t i = 1; i < x.size(); i += 5) {
      x[i] = -std::numeric_limits<float>::infinity();
    }
    std::vector<float> y(static_cast<size_t>(output_count(p)));
    std::vector<int32_t> index(y.size());
    reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
    for (const Device device : test_devices()) {
      SCOPED_TRACE(on(device, c.name));
      const MaxResult actual = max_forward_on(device, p, x);
      EXPECT_EQ(actual.index, index);
      for (size_t i = 0; i < y.size(); ++i) {
        EXPECT_TRUE(actual.y[i] == y[i] || (std::isnan(actual.y[i]) && std::isnan(y[i]))) << i;
      }
    }
  }
}

TEST(MaxPool, AllMinusInfinityHasAWinner) {
  const PoolParams p{1, 2, 2, 2, 20, {2, 2, 2}, {2, 2, 2}, false};
  const float low = -std::numeric_limits<float>::infinity();
  for (const Device device : test_devices()) {
    const MaxResult actual = max_forward_on(device, p, std::vector<float>(160, low));
    EXPECT_EQ(actual.y, std::vector<float>(20, low));
    EXPECT_EQ(actual.index, std::vector<int32_t>(20, 0));
  }
}

TEST(MaxPool, BackwardMatchesReference) {
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    const std::vector<float> x = random_normal(input_count(p), 4);
    std::vector<float> y(static_cast<size_t>(output_count(p)));
    std::vector<int32_t> index(y.size());
    reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
    for (const bool integers : {true, false}) {
      const std::vector<float> dy =
          integers ? random_integers(output_count(p), 5) : random_normal(output_count(p), 6);
      std::vector<double> exact(x.size());
      std::vector<float> naive(x.size());
      const std::vector<double> wide = widen(dy);
      reference::max_pool3d_backward(p, wide.data(), index.data(), exact.data());
      reference::max_pool3d_backward(p, dy.data(), index.data(), naive.data());
      for (const Device device : test_devices()) {
        expect_same_bits(on(device, c.name), device, [&] {
          const std::vector<float> actual = max_backward_on(device, p, dy, index);
          if (integers) {
            expect_equal("dx, " + on(device, c.name), actual, exact);
          } else {
            expect_close("dx, " + on(device, c.name), actual, exact, naive);
          }
          return actual;
        });
      }
    }
  }
}

struct AverageReference {
  std::vector<double> y, dx;
  std::vector<float> naive_y, naive_dx;
};

AverageReference average_reference(const PoolParams& p, const std::vector<float>& x,
                                   const std::vector<float>& dy) {
  const std::vector<double> wide_x = widen(x), wide_dy = widen(dy);
  AverageReference r{std::vector<double>(dy.size()), std::vector<double>(x.size()),
                     std::vector<float>(dy.size()), std::vector<float>(x.size())};
  reference::avg_pool3d_forward(p, wide_x.data(), r.y.data());
  reference::avg_pool3d_forward(p, x.data(), r.naive_y.data());
  reference::avg_pool3d_backward(p, wide_dy.data(), r.dx.data());
  reference::avg_pool3d_backward(p, dy.data(), r.naive_dx.data());
  return r;
}

TEST(AvgPool, MatchesReference) {
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    const std::vector<float> x = random_normal(input_count(p), 7), dy = random_normal(output_count(p), 8);
    const AverageReference exact = average_reference(p, x, dy);
    for (const Device device : test_devices()) {
      const std::string what = on(device, c.name);
      expect_same_bits(what, device, [&] {
        AverageResult found = average_on(device, p, x, dy);
        expect_close("y, " + what, found.y, exact.y, exact.naive_y);
        expect_close("dx, " + what, found.dx, exact.dx, exact.naive_dx);
        found.y.insert(found.y.end(), found.dx.begin(), found.dx.end());
        return found.y;
      });
    }
  }
}

TEST(Pooling, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const PoolParams p = random_pool_params(random);
    SCOPED_TRACE(describe(p));
    ASSERT_GT(output_count(p), 0);
    const auto seed = static_cast<uint64_t>(random.below(1 << 20));
    // Few different values: most windows have several equal maxima.
    const std::vector<float> x = random.bernoulli(0.5f) ? random_integers(input_count(p), seed, -1, 1)
                                                        : random_normal(input_count(p), seed);
    const std::vector<float> dy = random_normal(output_count(p), seed + 1);
    std::vector<float> y(dy.size());
    std::vector<int32_t> index(dy.size());
    reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
    std::vector<double> max_dx(x.size());
    std::vector<float> naive_max_dx(x.size());
    const std::vector<double> wide_dy = widen(dy);
    reference::max_pool3d_backward(p, wide_dy.data(), index.data(), max_dx.data());
    reference::max_pool3d_backward(p, dy.data(), index.data(), naive_max_dx.data());
    AverageReference exact = average_reference(p, x, dy);
    // A handful of elements: a single float32 evaluation may be exact by luck.
    for (int trial = 0; trial < 4; ++trial) {
      const AverageReference moved =
          average_reference(p, moved_by_one_ulp(x, random), moved_by_one_ulp(dy, random));
      keep_worse(exact.naive_y, moved.naive_y, exact.y);
      keep_worse(exact.naive_dx, moved.naive_dx, exact.dx);
    }
    for (const Device device : test_devices()) {
      const MaxResult largest = max_forward_on(device, p, x);
      expect_equal("maximum, " + to_string(device), largest.y, y);
      EXPECT_EQ(largest.index, index) << to_string(device);
      expect_close("dx of the maximum, " + to_string(device), max_backward_on(device, p, dy, index), max_dx,
                   naive_max_dx);
      const AverageResult average = average_on(device, p, x, dy);
      expect_close("average, " + to_string(device), average.y, exact.y, exact.naive_y);
      expect_close("dx of the average, " + to_string(device), average.dx, exact.dx, exact.naive_dx);
    }
  });
}

// Places aligned to one element only, where kernels do not take four channels at a time.
TEST(Pooling, UnalignedIsTheSame) {
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    if (p.c % 4 != 0) {
      continue;
    }
    const int64_t inputs = input_count(p), outputs = output_count(p);
    for (const Device device : test_devices()) {
      Context context(device);
      const auto run = [&](int64_t first, int64_t last) {
        const auto after = [](int64_t offset, std::vector<float> values) {
          values.insert(values.begin(), static_cast<size_t>(offset), 0.0f);
          return values;
        };
        const DeviceArray<float> x(device, after(first, random_normal(inputs, 18))),
            dy(device, after(last, random_normal(outputs, 19))), y(device, outputs + last),
            dx(device, inputs + first);
        const IndexArray index(device, p, outputs);
        std::vector<float> all;
        const auto keep = [&](const DeviceArray<float>& array, int64_t offset) {
          const std::vector<float> values = array.host();
          all.insert(all.end(), values.begin() + offset, values.end());
        };
        max_pool3d_forward(context, p, x.get() + first, y.get() + last, index.data());
        keep(y, last);
        const std::vector<int32_t> winners = index.host();
        all.insert(all.end(), winners.begin(), winners.end());
        max_pool3d_backward(context, p, dy.get() + last, index.data(), dx.get() + first);
        keep(dx, first);
        avg_pool3d_forward(context, p, x.get() + first, y.get() + last);
        keep(y, last);
        avg_pool3d_backward(context, p, dy.get() + last, dx.get() + first);
        keep(dx, first);
        return all;
      };
      const std::vector<float> aligned = run(0, 0);
      expect_equal(on(device, c.name) + " input", run(1, 0), aligned);
      expect_equal(on(device, c.name) + " output", run(0, 3), aligned);
    }
  }
}

// Windows of 2, 4 or 8 voxels divide integers without rounding.
TEST(AvgPool, IsExactForIntegersInWindowsOfEight) {
  const PoolParams p{2, 4, 6, 8, 19, {2, 2, 2}, {2, 2, 2}, false};
  const std::vector<float> x = random_integers(input_count(p), 9), dy = random_integers(output_count(p), 10);
  const std::vector<double> wide_x = widen(x), wide_dy = widen(dy);
  std::vector<double> y(dy.size()), dx(x.size());
  reference::avg_pool3d_forward(p, wide_x.data(), y.data());
  reference::avg_pool3d_backward(p, wide_dy.data(), dx.data());
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> in(device, x), gradient(device, dy), out(device, output_count(p)),
        din(device, input_count(p));
    avg_pool3d_forward(context, p, in.get(), out.get());
    avg_pool3d_backward(context, p, gradient.get(), din.get());
    expect_equal(on(device, "y"), out.host(), y);
    expect_equal(on(device, "dx"), din.host(), dx);
  }
}

TEST(Pooling, GradientsAreNumeric) {
  for (const PoolParams& p : {PoolParams{1, 3, 4, 5, 2, {2, 3, 2}, {1, 2, 2}, true},
                              PoolParams{1, 3, 4, 5, 2, {2, 3, 5}, {1, 2, 2}, true, {1, 1, 2}, true},
                              PoolParams{1, 3, 4, 5, 2, {}, {}, false, {}, false, {2, 3, 7}}}) {
    const std::vector<double> x = widen(random_normal(input_count(p), 11)),
                              dy = widen(random_normal(output_count(p), 12));
    std::vector<double> y(dy.size()), dmax(x.size()), davg(x.size());
    std::vector<int32_t> index(dy.size());
    reference::max_pool3d_forward(p, x.data(), y.data(), index.data());
    reference::max_pool3d_backward(p, dy.data(), index.data(), dmax.data());
    reference::avg_pool3d_backward(p, dy.data(), davg.data());
    expect_gradient("max", x, dmax, [&](const std::vector<double>& at) {
      std::vector<double> out(dy.size());
      std::vector<int32_t> winners(dy.size());
      reference::max_pool3d_forward(p, at.data(), out.data(), winners.data());
      return std::inner_product(out.begin(), out.end(), dy.begin(), 0.0);
    });
    expect_gradient("avg", x, davg, [&](const std::vector<double>& at) {
      std::vector<double> out(dy.size());
      reference::avg_pool3d_forward(p, at.data(), out.data());
      return std::inner_product(out.begin(), out.end(), dy.begin(), 0.0);
    });
  }
}

// A volume smaller than the window has no outputs, and nothing flows back to it.
TEST(Pooling, NoWindowFits) {
  const PoolParams p{2, 1, 4, 4, 3, {2, 2, 2}, {2, 2, 2}, false};
  ASSERT_EQ(output_count(p), 0);
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> x(device, random_normal(input_count(p), 13)), y(device, 1),
        dx(device, input_count(p));
    const DeviceArray<uint8_t> index(device, 1);
    max_pool3d_forward(context, p, x.get(), y.get(), index.get());
    avg_pool3d_forward(context, p, x.get(), y.get());
    EXPECT_TRUE(std::isnan(y.host()[0])) << "an output was written";
    EXPECT_NO_THROW(avg_pool3d_forward(context, p, x.get(), nullptr));
    max_pool3d_backward(context, p, y.get(), index.get(), dx.get());
    EXPECT_EQ(dx.host(), std::vector<float>(96, 0.0f));
    const DeviceArray<float> again(device, input_count(p));
    avg_pool3d_backward(context, p, y.get(), again.get());
    EXPECT_EQ(again.host(), std::vector<float>(96, 0.0f));
  }
}

// No samples or no channels, and volumes of one voxel.
TEST(Pooling, NothingOrOneVoxel) {
  for (const Device device : test_devices()) {
    for (PoolParams p : {PoolParams{0, 4, 4, 4, 3}, PoolParams{2, 4, 4, 4, 0}, PoolParams{2, 0, 4, 4, 3},
                         PoolParams{0, 4, 4, 4, 3, {7, 7, 7}, {1, 1, 1}, false, {3, 3, 3}, true}}) {
      for (const bool adaptive : {false, true}) {
        p.adaptive = adaptive ? std::array<int64_t, 3>{2, 2, 2} : std::array<int64_t, 3>{};
        ASSERT_EQ(output_count(p), 0);
        EXPECT_TRUE(max_forward_on(device, p, {}).y.empty());
        EXPECT_TRUE(max_backward_on(device, p, {}, {}).empty());
        EXPECT_TRUE(average_on(device, p, {}, {}).dx.empty());
      }
    }
    const PoolParams one{1, 1, 1, 1, 1, {3, 3, 3}, {1, 1, 1}, false, {1, 1, 1}, true};
    EXPECT_EQ(max_forward_on(device, one, {-5}).y, std::vector<float>{-5});
    EXPECT_EQ(average_on(device, one, {54}, {27}).y, std::vector<float>{2});
    EXPECT_EQ(average_on(device, one, {54}, {27}).dx, std::vector<float>{1});
  }
}

// The index is of its own type; a wrong one would show in dx.
TEST(Pooling, Storage) {
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    const std::vector<float> x = random_normal(input_count(p), 16), dy = random_normal(output_count(p), 17);
    expect_rounded_float32(c.name, [&](Call& call) {
      const IndexArray index(call.context().device(), p, output_count(p));
      max_pool3d_forward(call.context(), p, call.in(x), call.out(output_count(p)), nullptr);
      max_pool3d_forward(call.context(), p, call.in(x), call.out(output_count(p)), index.data());
      max_pool3d_backward(call.context(), p, call.in(dy), index.data(), call.out(input_count(p)));
      avg_pool3d_forward(call.context(), p, call.in(x), call.out(output_count(p)));
      avg_pool3d_backward(call.context(), p, call.in(dy), call.out(input_count(p)));
    });
  }
}

TEST(Pooling, MixedStorageIsOneLine) {
  for (const Device device : test_devices()) {
    Call call(device, DType::bf16, DType::bf16);
    const PoolParams p{1, 2, 2, 2, 1};
    const Data small = call.in_out_float({1}), large = call.in(std::vector<float>(8, 1.0f));
    const DeviceArray<uint8_t> index(device, 1);
    const std::string mixed = ": tensors are stored as f32 and bf16, expected one type";
    EXPECT_EQ(shape_error([&] { max_pool3d_forward(call.context(), p, small, large, index.get()); }),
              "max_pool3d_forward" + mixed);
    EXPECT_EQ(shape_error([&] { max_pool3d_backward(call.context(), p, small, index.get(), large); }),
              "max_pool3d_backward" + mixed);
    EXPECT_EQ(shape_error([&] { avg_pool3d_forward(call.context(), p, small, large); }),
              "avg_pool3d_forward" + mixed);
    EXPECT_EQ(shape_error([&] { avg_pool3d_backward(call.context(), p, small, large); }),
              "avg_pool3d_backward" + mixed);
  }
}

TEST(Pooling, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(64), y(8);
  std::vector<uint8_t> index(8);
  PoolParams p{1, 4, 4, 4, 1, {2, 2, 2}, {2, 2, 2}, false};
  EXPECT_NO_THROW(max_pool3d_forward(context, p, x.data(), y.data(), index.data()));
  EXPECT_THROW(max_pool3d_forward(context, p, nullptr, y.data(), index.data()), ShapeError);
  EXPECT_THROW(max_pool3d_backward(context, p, y.data(), nullptr, x.data()), ShapeError);
  EXPECT_THROW(avg_pool3d_forward(context, p, ConstData(x.data(), DType::bf16), y.data()), ShapeError);
  p.stride[1] = 0;
  EXPECT_THROW(avg_pool3d_forward(context, p, x.data(), y.data()), ShapeError);
  p.stride[1] = 2;
  p.kernel = {4, 8, 8};  // 256 voxels, whose numbers a byte does not hold
  EXPECT_THROW(max_pool3d_forward(context, p, x.data(), y.data(), index.data()), ShapeError);
  p.kernel = {2, 2, 2};
  p.padding = {1, 2, 1};
  EXPECT_THROW(avg_pool3d_forward(context, p, x.data(), y.data()), ShapeError);
  p.padding = {};
  p.adaptive = {1, 0, 1};
  EXPECT_THROW(avg_pool3d_forward(context, p, x.data(), y.data()), ShapeError);
  p.adaptive = {};
  p.n = -1;
  EXPECT_THROW(avg_pool3d_backward(context, p, y.data(), x.data()), ShapeError);
}

// For tests/oracle/resampling.py.
TEST(Pooling, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/pooling.txt");
  int number = 0;
  for (const PoolCase& c : kPoolCases) {
    const PoolParams& p = c.params;
    const std::vector<float> x = random_normal(input_count(p), 14), dy = random_normal(output_count(p), 15);
    const Device device{DeviceType::cpu, 0};
    const MaxResult largest = max_forward_on(device, p, x);
    const std::vector<float> max_dx = max_backward_on(device, p, dy, largest.index);
    const AverageResult average = average_on(device, p, x, dy);
    for (const int64_t field : {p.n, p.d, p.h, p.w, p.c, p.out_d(), p.out_h(), p.out_w()}) {
      index << field << ' ';
    }
    for (const auto& triple : {p.kernel, p.stride, p.padding}) {
      index << triple[0] << ' ' << triple[1] << ' ' << triple[2] << ' ';
    }
    index << p.ceil_mode << ' ' << p.count_include_pad << ' ' << p.is_adaptive() << ' ' << c.name << '\n';
    write_arrays(concat(folder, "/pooling", number++, ".f32"),
                 {&x, &dy, &largest.y, &max_dx, &average.y, &average.dx});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
