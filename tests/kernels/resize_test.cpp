// Resizing against its references, on every device, and the arithmetic of its axes by itself.
#include "kernels/resize/resize.hpp"

#include <cstdlib>
#include <fstream>
#include <limits>
#include <numeric>

#include "kernels/resize/resize_axis.hpp"
#include "kernels/resize/resize_cases.hpp"
#include "kernels/resize/resize_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

int64_t input_count(const ResizeParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const ResizeParams& p) { return p.n * p.out_d * p.out_h * p.out_w * p.c; }

// The source position of an output in double, from the formulas of resize.hpp.
double source_position(const ResizeParams& p, int64_t in, int64_t out, double scale, int o) {
  if (p.align_corners) {
    return out > 1 ? static_cast<double>(o) * static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0;
  }
  const double ratio = scale > 0 ? 1 / scale : static_cast<double>(in) / static_cast<double>(out);
  switch (p.interpolation) {
    case Interpolation::nearest:
      return o * ratio;
    case Interpolation::nearest_exact:
      return (o + 0.5) * ratio;
    default:
      return (o + 0.5) * ratio - 0.5;
  }
}

// at(), stride() and readers() of an axis against the formulas and each other.
template <class Int, int kTaps>
void expect_axis_agrees(const ResizeParams& p, int in, int out, double scale) {
  const std::string what = concat("from ", in, " to ", out, ", scale ", scale, ", interpolation ",
                                  static_cast<int>(p.interpolation), p.align_corners ? ", corners" : "");
  const auto axis = resize_axis<Int>(p, in, out, scale);
  std::vector<int> reads(static_cast<size_t>(in));  // how many outputs read an input with a weight
  auto walked = axis.at(0);
  for (int o = 0; o < out; ++o, axis.advance(walked, axis.stride())) {
    const auto at = axis.at(o);
    ASSERT_TRUE(walked.first == at.first && walked.rest == at.rest) << what << ", output " << o;
    ASSERT_NEAR(at.first + static_cast<double>(at.rest) / static_cast<double>(axis.width),
                source_position(p, in, out, scale, o), 1e-9 * in)
        << what << ", output " << o;
    const auto taps = axis.template taps<kTaps>(at);
    double sum = 0;
    std::vector<int> read;
    for (int k = 0; k < kTaps; ++k) {
      ASSERT_TRUE(0 <= taps.index[k] && taps.index[k] < in) << what << ", output " << o;
      sum += static_cast<double>(taps.weight[k]);
      if (axis.template weight<kTaps>(at, taps.index[k]) != 0.0f &&
          std::find(read.begin(), read.end(), taps.index[k]) == read.end()) {
        read.push_back(taps.index[k]);
        ++reads[static_cast<size_t>(taps.index[k])];
      }
    }
    ASSERT_NEAR(sum, 1.0, 1e-6) << what << ", output " << o;
  }
  for (int i = 0; i < in; ++i) {
    const auto range = axis.template readers<kTaps>(i);
    ASSERT_TRUE(0 <= range.begin && range.end <= out) << what << ", input " << i;
    int weighted = 0;
    for (int o = range.begin; o < range.end; ++o) {
      weighted += axis.template weight<kTaps>(axis.at(o), i) != 0.0f ? 1 : 0;
    }
    ASSERT_EQ(weighted, reads[static_cast<size_t>(i)]) << what << ", input " << i;
    if (kTaps < 4) {
      ASSERT_EQ(weighted, std::max(0, range.end - range.begin)) << what << ", input " << i;
    }
  }
}

// Every pair of extents up to 30 and some large ones, with positions from the extents and from scales.
TEST(ResizeAxis, PositionsAndReadersAgree) {
  std::vector<std::pair<int, int>> extents;
  for (int in = 1; in <= 30; ++in) {
    for (int out = 1; out <= 30; ++out) {
      extents.emplace_back(in, out);
    }
  }
  for (const auto& pair :
       {std::pair{32767, 7}, {7, 32767}, {1, 32767}, {32767, 1}, {300, 299}, {32767, 32766}}) {
    extents.push_back(pair);
  }
  for (const auto& [in, out] : extents) {
    for (const ResizeConvention& convention : kResizeConventions) {
      const ResizeParams p = with_convention({}, convention);
      with_resize_taps(p.interpolation, [&, in = in, out = out]<int kTaps>() {
        expect_axis_agrees<int, kTaps>(p, in, out, 0);
        expect_axis_agrees<int64_t, kTaps>(p, in, out, 0);
        for (const double scale : {0.7, 1.0, 3.0, 1.0 / 32767, 32767.0}) {
          expect_axis_agrees<int64_t, kTaps>(p, in, out, scale);
        }
      });
      ASSERT_FALSE(HasFailure());
    }
  }
}

struct Outcome {
  std::vector<double> y, dx;
  std::vector<float> naive_y, naive_dx;
};

Outcome reference_outcome(const ResizeParams& p, const std::vector<float>& x, const std::vector<float>& dy) {
  const std::vector<double> wide_x = widen(x), wide_dy = widen(dy);
  Outcome r{std::vector<double>(dy.size()), std::vector<double>(x.size()), std::vector<float>(dy.size()),
            std::vector<float>(x.size())};
  reference::resize_forward(p, wide_x.data(), r.y.data());
  reference::resize_forward(p, x.data(), r.naive_y.data());
  reference::resize_backward(p, wide_dy.data(), r.dx.data());
  reference::resize_backward(p, dy.data(), r.naive_dx.data());
  return r;
}

struct Found {
  std::vector<float> y, dx;
};

Found device_outcome(Device device, const ResizeParams& p, const std::vector<float>& x,
                     const std::vector<float>& dy) {
  Context context(device);
  const DeviceArray<float> in(device, x), gradient(device, dy), y(device, output_count(p)),
      dx(device, input_count(p));
  resize_forward(context, p, in.get(), y.get());
  resize_backward(context, p, gradient.get(), dx.get());
  return {y.host(), dx.host()};
}

void expect_case_matches(const std::string& name, const ResizeParams& p, bool integers) {
  const std::vector<float> x =
      integers ? random_integers(input_count(p), 1) : random_normal(input_count(p), 2);
  const std::vector<float> dy =
      integers ? random_integers(output_count(p), 3) : random_normal(output_count(p), 4);
  const Outcome exact = reference_outcome(p, x, dy);
  for (const Device device : test_devices()) {
    const std::string what = name + ", " + to_string(device);
    expect_same_bits(what, device, [&] {
      Found found = device_outcome(device, p, x, dy);
      if (integers) {
        expect_equal("y, " + what, found.y, exact.y);
        expect_equal("dx, " + what, found.dx, exact.dx);
      } else {
        expect_close("y, " + what, found.y, exact.y, exact.naive_y);
        expect_close("dx, " + what, found.dx, exact.dx, exact.naive_dx);
      }
      found.y.insert(found.y.end(), found.dx.begin(), found.dx.end());
      return found.y;
    });
  }
}

TEST(Resize, MatchesReference) {
  for (const auto* cases : {&kResizeCases, &kScaledResizeCases}) {
    for (const ResizeCase& c : *cases) {
      for (const ResizeConvention& convention : kResizeConventions) {
        const ResizeParams p = with_convention(c.params, convention);
        const std::string name = c.name + ", " + convention.name;
        expect_case_matches(name, p, false);
        const bool nearest =
            p.interpolation == Interpolation::nearest || p.interpolation == Interpolation::nearest_exact;
        if (nearest || (c.dyadic && p.interpolation == Interpolation::trilinear && !p.align_corners)) {
          expect_case_matches(name, p, true);
        }
      }
    }
  }
}

// Places aligned to one element only, where kernels do not take four channels at a time.
TEST(Resize, UnalignedIsTheSame) {
  for (const ResizeCase& c : kResizeCases) {
    for (const ResizeConvention& convention : kResizeConventions) {
      const ResizeParams p = with_convention(c.params, convention);
      if (p.c % 4 != 0) {
        continue;
      }
      std::vector<float> x = random_normal(input_count(p), 5), dy = random_normal(output_count(p), 6);
      for (const Device device : test_devices()) {
        const Found aligned = device_outcome(device, p, x, dy);
        const auto shifted = [](int64_t by, std::vector<float> values) {
          values.insert(values.begin(), static_cast<size_t>(by), 0.0f);
          return values;
        };
        const auto tail = [](int64_t by, std::vector<float> values) {
          values.erase(values.begin(), values.begin() + by);
          return values;
        };
        for (const auto& [first, last] : {std::pair{1, 0}, {0, 3}}) {
          Context context(device);
          const DeviceArray<float> in(device, shifted(first, x)), gradient(device, shifted(last, dy)),
              y(device, output_count(p) + last), dx(device, input_count(p) + first);
          resize_forward(context, p, in.get() + first, y.get() + last);
          resize_backward(context, p, gradient.get() + last, dx.get() + first);
          const std::string what = concat(c.name, ", ", convention.name, ", ", to_string(device));
          expect_equal("y, " + what, tail(last, y.host()), aligned.y);
          expect_equal("dx, " + what, tail(first, dx.host()), aligned.dx);
        }
      }
    }
  }
}

TEST(Resize, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const ResizeParams p = random_resize_params(random);
    SCOPED_TRACE(concat(p.n, " x ", p.c, " channels, ", p.d, " x ", p.h, " x ", p.w, " to ", p.out_d, " x ",
                        p.out_h, " x ", p.out_w, ", interpolation ", static_cast<int>(p.interpolation),
                        ", corners ", p.align_corners, ", scales ", p.scale[0], " ", p.scale[1], " ",
                        p.scale[2]));
    const auto seed = static_cast<uint64_t>(random.below(1 << 20));
    const std::vector<float> x = random_normal(input_count(p), seed);
    const std::vector<float> dy = random_normal(output_count(p), seed + 1);
    Outcome exact = reference_outcome(p, x, dy);
    // A handful of elements: a single float32 evaluation may be exact by luck.
    for (int trial = 0; trial < 4; ++trial) {
      const Outcome moved = reference_outcome(p, moved_by_one_ulp(x, random), moved_by_one_ulp(dy, random));
      keep_worse(exact.naive_y, moved.naive_y, exact.y);
      keep_worse(exact.naive_dx, moved.naive_dx, exact.dx);
    }
    for (const Device device : test_devices()) {
      const Found found = device_outcome(device, p, x, dy);
      expect_close("y, " + to_string(device), found.y, exact.y, exact.naive_y);
      expect_close("dx, " + to_string(device), found.dx, exact.dx, exact.naive_dx);
    }
  });
}

// Hand-checked values: 1D, from [0, 4] to 4 and from 4 to 2.
TEST(Resize, KnownValues) {
  ResizeParams grow;
  grow.w = 2;
  grow.out_w = 4;
  ResizeParams shrink;
  shrink.w = 4;
  shrink.out_w = 2;
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> x(device, std::vector<float>{0, 4}), y(device, 4);
    resize_forward(context, grow, x.get(), y.get());
    EXPECT_EQ(y.host(), (std::vector<float>{0, 1, 3, 4}));
    const DeviceArray<float> long_x(device, std::vector<float>{1, 2, 5, 8}), short_y(device, 2);
    resize_forward(context, shrink, long_x.get(), short_y.get());
    EXPECT_EQ(short_y.host(), (std::vector<float>{1.5f, 6.5f}));
    shrink.interpolation = Interpolation::nearest;
    resize_forward(context, shrink, long_x.get(), short_y.get());
    EXPECT_EQ(short_y.host(), (std::vector<float>{1, 5}));
    shrink.interpolation = Interpolation::nearest_exact;
    resize_forward(context, shrink, long_x.get(), short_y.get());
    EXPECT_EQ(short_y.host(), (std::vector<float>{2, 8}));
    shrink.interpolation = Interpolation::trilinear;
    shrink.align_corners = true;
    resize_forward(context, shrink, long_x.get(), short_y.get());
    EXPECT_EQ(short_y.host(), (std::vector<float>{1, 8}));
    // At 1/2 between the middle voxels Keys' weights are -3/32, 19/32, 19/32, -3/32.
    ResizeParams middle;
    middle.w = 4;
    middle.interpolation = Interpolation::tricubic;
    const DeviceArray<float> middle_y(device, 1);
    resize_forward(context, middle, long_x.get(), middle_y.get());
    EXPECT_EQ(middle_y.host(), (std::vector<float>{(19 * (2 + 5) - 3 * (1 + 8)) / 32.0f}));
    shrink = {.w = 4, .out_w = 2};
  }
}

// Samples and channels may be none; extents may not, as in PyTorch.
TEST(Resize, NothingToDo) {
  for (const Device device : test_devices()) {
    for (const ResizeParams& empty :
         {ResizeParams{0, 2, 3, 4, 4, 3, 2, 5}, ResizeParams{2, 2, 3, 4, 4, 3, 2, 0}}) {
      for (const ResizeConvention& convention : kResizeConventions) {
        const Found found = device_outcome(device, with_convention(empty, convention), {}, {});
        EXPECT_TRUE(found.y.empty() && found.dx.empty());
      }
    }
  }
}

// A voxel with weight zero leaves no trace: infinity and NaN stay where they are read.
TEST(Resize, UnreadVoxelsLeaveNoTrace) {
  ResizeParams p{1, 3, 3, 9, 1, 1, 3, 20};  // by three: each output is the middle voxel of its block
  std::vector<float> x = random_normal(input_count(p), 5);
  std::vector<float> expected;
  for (int64_t w = 0; w < 3; ++w) {
    const int64_t middle = ((1 * 3 + 1) * 9 + 3 * w + 1) * p.c;
    expected.insert(expected.end(), x.begin() + middle, x.begin() + middle + p.c);
  }
  for (int64_t v = 0; v < 81; ++v) {
    if (v / 27 != 1 || v / 9 % 3 != 1 || v % 3 != 1) {
      std::fill_n(
          x.begin() + v * p.c, p.c,
          v % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity());
    }
  }
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> in(device, x), y(device, output_count(p));
    resize_forward(context, p, in.get(), y.get());
    expect_equal("NaN, " + to_string(device), y.host(), expected);
  }
}

TEST(Resize, GradientIsNumeric) {
  for (const ResizeConvention& convention : kResizeConventions) {
    for (const double scale : {0.0, 1.7}) {
      const ResizeParams p = with_convention({2, 2, 3, 4, 5, 2, 7, 2, {}, false, {0, 0, scale}}, convention);
      const std::vector<double> x = widen(random_normal(input_count(p), 6)),
                                dy = widen(random_normal(output_count(p), 7));
      std::vector<double> dx(x.size());
      reference::resize_backward(p, dy.data(), dx.data());
      expect_gradient(convention.name, x, dx, [&](const std::vector<double>& at) {
        std::vector<double> y(dy.size());
        reference::resize_forward(p, at.data(), y.data());
        return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
      });
    }
  }
}

TEST(Resize, Storage) {
  for (const auto* cases : {&kResizeCases, &kScaledResizeCases}) {
    for (const ResizeCase& c : *cases) {
      for (const ResizeConvention& convention : kResizeConventions) {
        const ResizeParams p = with_convention(c.params, convention);
        if (p.align_corners || p.interpolation == Interpolation::nearest_exact || output_count(p) > 4000) {
          continue;  // the same code at other positions, or more of the same
        }
        const std::vector<float> x = random_normal(input_count(p), 10),
                                 dy = random_normal(output_count(p), 11);
        expect_rounded_float32(c.name + ", " + convention.name, [&](Call& call) {
          resize_forward(call.context(), p, call.in(x), call.out(output_count(p)));
          resize_backward(call.context(), p, call.in(dy), call.out(input_count(p)));
        });
      }
    }
  }
}

TEST(Resize, MixedStorageIsOneLine) {
  for (const Device device : test_devices()) {
    Call call(device, DType::f16, DType::f16);
    const ResizeParams p{1, 1, 1, 2, 1, 1, 2, 1};
    const Data half = call.in_out({1, 2}), wide = call.in_out_float({1, 2});
    EXPECT_EQ(shape_error([&] { resize_forward(call.context(), p, half, wide); }),
              "resize_forward: tensors are stored as f16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] { resize_backward(call.context(), p, wide, half); }),
              "resize_backward: tensors are stored as f32 and f16, expected one type");
  }
}

TEST(Resize, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(8), y(64);
  ResizeParams p{1, 2, 2, 2, 4, 4, 4, 1};
  EXPECT_NO_THROW(resize_forward(context, p, x.data(), y.data()));
  EXPECT_THROW(resize_forward(context, p, nullptr, y.data()), ShapeError);
  EXPECT_THROW(resize_backward(context, p, y.data(), Data(x.data(), DType::f16)), ShapeError);
  p.out_w = 0;
  EXPECT_THROW(resize_forward(context, p, x.data(), y.data()), ShapeError);
  p.out_w = 32768;
  EXPECT_THROW(resize_backward(context, p, y.data(), x.data()), ShapeError);
  p.out_w = 4;
  p.scale[1] = 40000;
  EXPECT_THROW(resize_forward(context, p, x.data(), y.data()), ShapeError);
  p.scale[1] = NAN;
  EXPECT_THROW(resize_forward(context, p, x.data(), y.data()), ShapeError);
  p.scale[1] = 0;
  p.align_corners = true;
  EXPECT_NO_THROW(resize_forward(context, p, x.data(), y.data()));
  p.interpolation = Interpolation::nearest_exact;
  EXPECT_THROW(resize_forward(context, p, x.data(), y.data()), ShapeError);
}

// For tests/oracle/resampling.py.
TEST(Resize, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/resize.txt");
  index.precision(17);
  int number = 0;
  const auto write = [&](const std::string& name, const ResizeParams& p, const char* convention) {
    const std::vector<float> x = random_normal(input_count(p), 8), dy = random_normal(output_count(p), 9);
    const Found found = device_outcome({DeviceType::cpu, 0}, p, x, dy);
    for (const int64_t field : {p.n, p.d, p.h, p.w, p.out_d, p.out_h, p.out_w, p.c}) {
      index << field << ' ';
    }
    for (const double scale : p.scale) {
      index << scale << ' ';
    }
    index << convention << ' ' << name << '\n';
    write_arrays(concat(folder, "/resize", number++, ".f32"), {&x, &dy, &found.y, &found.dx});
  };
  for (const ResizeConvention& convention : kResizeConventions) {
    for (const ResizeCase& c : kResizeCases) {
      ResizeParams p = with_convention(c.params, convention);
      if (p.interpolation == Interpolation::tricubic) {
        p.out_d = p.d;  // PyTorch has the bicubic of slices only
      }
      write(c.name, p, convention.name);
    }
    for (const double scale : {2.5, 1.3, 0.6}) {
      ResizeParams p = with_convention({2, 4, 5, 6, 4, 5, 6, 3}, convention);
      p.scale = {p.interpolation == Interpolation::tricubic ? 1.0 : scale, scale + 0.25, scale + 0.15};
      p.out_d = resized_extent(p.d, p.scale[0]);
      p.out_h = resized_extent(p.h, p.scale[1]);
      p.out_w = resized_extent(p.w, p.scale[2]);
      write(concat("scale_", scale), p, convention.name);
    }
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
