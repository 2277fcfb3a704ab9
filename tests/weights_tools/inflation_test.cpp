// A 3D layer with inflated weights against the 2D layer that they come from, block by block: exact, up to the
// rounding of a few hundred terms of order 1, where inflation.hpp says so.
#include "weights_tools/inflation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/philox.hpp"
#include "layers/swin.hpp"
#include "weights_tools/parameters.hpp"

namespace vesal::weights {
namespace {

using layers::ParameterLayout;
using layers::ParameterStore;

constexpr float kRounding = 1e-5f;

class Inflation : public testing::Test {
 protected:
  layers::ParameterBuilder flat_builder() { return {context_, flat_, 3}; }
  layers::ParameterBuilder deep_builder() { return {context_, deep_, 4}; }

  // Also what starts as zeros and ones.
  void randomize() {
    RandomStream random(1, 0, 0);
    for (const auto& parameter : flat_.all()) {
      std::vector<float> values = parameter->value.to_host<float>(context_);
      for (float& value : values) {
        value += 0.3f * random.normal();
      }
      parameter->value.copy_from_host(context_, values.data(), values.size() * sizeof(float));
    }
  }

  // The 2D parameter as a file holds it.
  std::vector<float> from(const char* name) {
    const layers::Parameter* p = flat_.find(name);
    return to_file_order(p->value.to_host<float>(context_), p->value.shape(), p->layout);
  }
  Shape shape_of(const char* name) {
    const layers::Parameter* p = flat_.find(name);
    return file_shape(p->value.shape(), p->layout);
  }
  // Into the 3D parameter of that name.
  void into(const char* name, const std::vector<float>& values) {
    const layers::Parameter* p = deep_.find(name);
    const std::vector<float> memory = to_memory_order(values, p->value.shape(), p->layout);
    p->value.copy_from_host(context_, memory.data(), memory.size() * sizeof(float));
  }
  // Every other parameter stays as it is.
  void copy_the_rest(const std::vector<std::string>& inflated) {
    for (const auto& parameter : flat_.all()) {
      if (std::find(inflated.begin(), inflated.end(), parameter->name) == inflated.end()) {
        into(parameter->name.c_str(), from(parameter->name.c_str()));
      }
    }
  }

  Tensor random_volume(Shape shape) {
    RandomStream random(7, 0, 0);
    std::vector<float> values(static_cast<size_t>(element_count(shape)));
    for (float& value : values) {
      value = random.normal();
    }
    return Tensor::from_host(context_, values, std::move(shape));
  }
  // [N, 1, H, W, C] to [N, depth, H, W, C] with equal slices.
  Tensor deepened(const Tensor& image, int64_t depth) {
    const std::vector<float> slices = image.to_host<float>(context_);
    Shape shape = image.shape();
    const size_t slice = slices.size() / static_cast<size_t>(shape[0]);
    std::vector<float> values;
    for (int64_t n = 0; n < shape[0]; ++n) {
      for (int64_t z = 0; z < depth; ++z) {
        const auto begin = slices.begin() + n * static_cast<int64_t>(slice);
        values.insert(values.end(), begin, begin + static_cast<int64_t>(slice));
      }
    }
    shape[1] = depth;
    return Tensor::from_host(context_, values, shape);
  }
  // Slices [begin, end) of every sample of `deep` against the one slice of `image`.
  void expect_slices(const Tensor& deep, int64_t begin, int64_t end, const Tensor& image) {
    const Shape& shape = deep.shape();
    ASSERT_EQ(image.shape(), (Shape{shape[0], 1, shape[2], shape[3], shape[4]}));
    ASSERT_LT(begin, end);
    const std::vector<float> found = deep.to_host<float>(context_), expected = image.to_host<float>(context_);
    const int64_t slice = shape[2] * shape[3] * shape[4];
    for (int64_t n = 0; n < shape[0]; ++n) {
      for (int64_t z = begin; z < end; ++z) {
        for (int64_t i = 0; i < slice; ++i) {
          const float want = expected[static_cast<size_t>(n * slice + i)];
          ASSERT_NEAR(found[static_cast<size_t>((n * shape[1] + z) * slice + i)], want,
                      kRounding * (1.0f + std::abs(want)))
              << "slice " << z;
        }
      }
    }
  }

  DeviceContext context_{Device{DeviceType::cpu, 0}};
  ParameterStore flat_, deep_;
};

TEST_F(Inflation, ConvolutionInItsCentreIsExactSliceBySlice) {
  const layers::Conv3d flat(flat_builder(), 5, 6, layers::planar_geometry(3), ParameterLayout::convolution2d);
  const layers::Conv3d deep(deep_builder(), 5, 6, 3);
  randomize();
  into("weight", inflate_convolution(from("weight"), shape_of("weight"), 3, KernelInflation::centre));
  copy_the_rest({"weight"});
  // The planar convolution of a volume is that of its slices.
  const Tensor x = random_volume({2, 4, 6, 7, 5});
  const std::vector<float> expected = flat(context_, x).value().to_host<float>(context_);
  const std::vector<float> found = deep(context_, x).value().to_host<float>(context_);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], expected[i], kRounding * (1.0f + std::abs(expected[i])));
  }
}

TEST_F(Inflation, RepeatedConvolutionIsExactOnEqualSlices) {
  const layers::Conv3d flat(flat_builder(), 5, 6, layers::planar_geometry(3), ParameterLayout::convolution2d);
  const layers::Conv3d deep(deep_builder(), 5, 6, 3);
  randomize();
  into("weight", inflate_convolution(from("weight"), shape_of("weight"), 3, KernelInflation::repeat));
  copy_the_rest({"weight"});
  const Tensor x = random_volume({2, 1, 6, 7, 5});
  const Tensor y = deep(context_, deepened(x, 5)).value();
  expect_slices(y, 1, 4, flat(context_, x).value());
}

TEST_F(Inflation, TransposedConvolutionIsExactOnEqualSlices) {
  const layers::UpConv3d flat(flat_builder(), 5, 3, layers::kPlanarDoubling, ParameterLayout::convolution2d);
  const layers::UpConv3d deep(deep_builder(), 5, 3);
  randomize();
  into("weight", inflate_transposed_convolution(from("weight"), shape_of("weight"), 4, 2));
  copy_the_rest({"weight"});
  const Tensor x = random_volume({2, 1, 4, 5, 5});
  const Tensor y = deep(context_, deepened(x, 4)).value();
  ASSERT_EQ(y.size(1), 8);
  expect_slices(y, 1, 7, flat(context_, x).value());
}

TEST_F(Inflation, ShiftedPatchesAreExactOnEqualSlices) {
  const layers::ShiftedPatch flat(flat_builder(), 1, 3, 10, kernels::ShiftSet::diagonal4, false, {1, 2, 2},
                                  {0, 1, 1});
  const layers::ShiftedPatch deep(deep_builder(), 1, 3, 10, kernels::ShiftSet::tetra4, false);
  randomize();
  for (const char* name : {"norm.weight", "norm.bias"}) {
    into(name, inflate_patch_norm(from(name), 2));
  }
  into("projection.weight", inflate_patch_projection(from("projection.weight"), 10, 2));
  copy_the_rest({"norm.weight", "norm.bias", "projection.weight"});
  const Tensor x = random_volume({2, 1, 6, 8, 3});
  const Tensor y = deep(context_, deepened(x, 8)).value();
  ASSERT_EQ(y.size(1), 4);
  expect_slices(y, 1, 3, flat(context_, x).value());
}

TEST_F(Inflation, SwinBlocksAreExactOnEqualSlices) {
  for (const bool shifted : {false, true}) {
    flat_ = ParameterStore();
    deep_ = ParameterStore();
    layers::SwinSettings settings{
        .channels = 12, .heads = 3, .window = {1, 3, 3}, .padding = kernels::PaddingMode::attend};
    const layers::SwinBlock flat(flat_builder(), settings, shifted, 0.0f);
    settings.window = {2, 3, 3};
    const layers::SwinBlock deep(deep_builder(), settings, shifted, 0.0f);
    randomize();
    const char* table = "attn.relative_position_bias_table";
    into(table, inflate_bias_table(from(table), settings.window, 3));
    copy_the_rest({table});
    // 7 x 5 tokens are padded to 9 x 6; the depth is two windows.
    const Tensor x = random_volume({2, 1, 7, 5, 12});
    const Tensor y = deep(context_, deepened(x, 4), false).value();
    expect_slices(y, 0, 4, flat(context_, x, false).value());
  }
}

TEST_F(Inflation, RefusesWhatDoesNotFit) {
  const std::vector<float> values(36, 1.0f);
  EXPECT_THROW(inflate_convolution(values, {2, 2, 9}, 3, KernelInflation::repeat), ShapeError);
  EXPECT_THROW(inflate_convolution(values, {2, 3, 3, 3}, 3, KernelInflation::repeat), ShapeError);
  EXPECT_THROW(inflate_convolution(values, {2, 2, 3, 3}, 0, KernelInflation::repeat), ShapeError);
  EXPECT_THROW(inflate_convolution(values, {2, 2, 3, 3}, 4, KernelInflation::centre), ShapeError);
  EXPECT_THROW(inflate_transposed_convolution(values, {2, 2, 3, 3}, 3, 2), ShapeError);
  EXPECT_THROW(inflate_bias_table(values, {2, 3, 3}, 3), ShapeError);
  EXPECT_THROW(inflate_patch_norm(values, 0), ShapeError);
  EXPECT_THROW(inflate_patch_projection(values, 5, 2), ShapeError);
}

}  // namespace
}  // namespace vesal::weights
