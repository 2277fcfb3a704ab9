// Layouts between memory and file, and loading: every difference named, nothing changed by a file that does
// not fit.
#include "weights_tools/parameters.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.hpp"
#include "layers/modules.hpp"

namespace vesal::weights {
namespace {

namespace fs = std::filesystem;
using layers::ParameterLayout;

class ParametersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = fs::temp_directory_path() / ("vesal_parameters_" + std::to_string(::getpid()) + ".safetensors");
  }
  void TearDown() override { fs::remove(file_); }

  Tensor counting(Shape shape, float first = 0) {
    std::vector<float> values(static_cast<size_t>(element_count(shape)));
    std::iota(values.begin(), values.end(), first);
    return Tensor::from_host(context_, values, std::move(shape));
  }

  std::string refusal(const std::vector<NamedTensor>& tensors,
                      std::span<const std::string_view> ignored = {}) {
    try {
      load_tensors(context_, SafetensorsFile(file_), tensors, ignored);
      return "";
    } catch (const FormatError& error) {
      return error.what();
    }
  }

  DeviceContext context_{Device{}};
  fs::path file_;
};

TEST_F(ParametersTest, ConvolutionLayoutMatchesItsDefinition) {
  const Shape memory_shape{2, 3, 1, 2, 5};  // [O, kd, kh, kw, I]
  EXPECT_EQ(file_shape(memory_shape, ParameterLayout::convolution), (Shape{2, 5, 3, 1, 2}));
  EXPECT_EQ(file_shape(memory_shape, ParameterLayout::plain), memory_shape);
  std::vector<float> memory(60);
  std::iota(memory.begin(), memory.end(), 0.0f);
  const std::vector<float> file = to_file_order(memory, memory_shape, ParameterLayout::convolution);
  for (int64_t o = 0; o < 2; ++o) {
    for (int64_t d = 0; d < 3; ++d) {
      for (int64_t w = 0; w < 2; ++w) {
        for (int64_t i = 0; i < 5; ++i) {
          EXPECT_EQ(file[static_cast<size_t>(((o * 5 + i) * 3 + d) * 2 + w)],
                    memory[static_cast<size_t>(((o * 3 + d) * 2 + w) * 5 + i)]);
        }
      }
    }
  }
  EXPECT_EQ(to_memory_order(file, memory_shape, ParameterLayout::convolution), memory);
  EXPECT_EQ(to_file_order(memory, memory_shape, ParameterLayout::plain), memory);
  EXPECT_THROW(file_shape({2, 3}, ParameterLayout::convolution), ShapeError);
  EXPECT_THROW(to_memory_order(file, {2, 3, 1, 2, 4}, ParameterLayout::convolution), ShapeError);
}

TEST_F(ParametersTest, RoundTripThroughAFile) {
  const std::vector<NamedTensor> written{
      {"conv.weight", counting({4, 3, 3, 3, 2}), ParameterLayout::convolution},
      {"norm.bias", counting({7}, 100)}};
  write_tensors(context_, file_, written, {{"k", "v"}});
  const SafetensorsFile file(file_);
  EXPECT_EQ(file.find("conv.weight")->shape, (Shape{4, 2, 3, 3, 3}));
  EXPECT_EQ(file.metadata(), (Metadata{{"k", "v"}}));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<NamedTensor> read{
      {"norm.bias", Tensor::from_host(context_, std::vector<float>(7, nan), {7})},
      {"conv.weight", Tensor::from_host(context_, std::vector<float>(216, nan), {4, 3, 3, 3, 2}),
       ParameterLayout::convolution}};
  load_tensors(context_, file, read);
  EXPECT_EQ(read[0].tensor.to_host<float>(context_), written[1].tensor.to_host<float>(context_));
  EXPECT_EQ(read[1].tensor.to_host<float>(context_), written[0].tensor.to_host<float>(context_));
}

TEST_F(ParametersTest, BuffersAndCountersTravelUnderPyTorchsNames) {
  const auto build = [&](layers::ParameterStore& store) {
    return layers::BatchNorm(layers::ParameterBuilder(context_, store, 3).scope("norm"), 3);
  };
  layers::ParameterStore trained, fresh;
  const layers::BatchNorm norm = build(trained);
  build(fresh);
  norm(context_, counting({2, 2, 1, 1, 3}), true);
  norm(context_, counting({2, 2, 1, 1, 3}, 5), true);
  write_tensors(context_, file_, named_parameters(trained), {});
  const SafetensorsFile file(file_);
  for (const char* name : {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}) {
    ASSERT_NE(file.find(name), nullptr) << name;
    EXPECT_EQ(file.find(name)->shape, (Shape{3})) << name;
  }
  ASSERT_NE(file.find("norm.num_batches_tracked"), nullptr);
  EXPECT_EQ(file.find("norm.num_batches_tracked")->dtype, "I64");
  EXPECT_EQ(file.find("norm.num_batches_tracked")->shape, Shape{});
  EXPECT_EQ(file.tensors().size(), 5u);

  load_tensors(context_, file, named_parameters(fresh));
  EXPECT_EQ(fresh.counters()[0]->value, 2);
  for (size_t i = 0; i < 2; ++i) {
    const std::vector<float> values = trained.buffers()[i]->value.to_host<float>(context_);
    EXPECT_EQ(fresh.buffers()[i]->value.to_host<float>(context_), values);
    EXPECT_NE(values, std::vector<float>(3, i == 0 ? 0.0f : 1.0f));
  }
}

TEST_F(ParametersTest, EntriesKeepTheOrderInWhichModulesMakeThem) {
  layers::ParameterStore store;
  const layers::ParameterBuilder builder(context_, store, 1);
  const layers::Linear first(builder.scope("first"), 2, 2);
  const layers::BatchNorm norm(builder.scope("norm"), 2);
  builder.fixed("index", DType::i64, {1}, [] { return std::vector<std::byte>(8); });
  const layers::Linear last(builder.scope("last"), 2, 1, false);
  std::vector<std::string> names;
  for (const NamedTensor& named : named_parameters(store)) {
    names.push_back(named.name);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"first.weight", "first.bias", "norm.weight", "norm.bias",
                                             "norm.running_mean", "norm.running_var",
                                             "norm.num_batches_tracked", "index", "last.weight"}));
  EXPECT_EQ(store.count(), 4 + 2 + 2 + 2 + 2);
  EXPECT_THROW(builder.counter("index"), ShapeError);
}

TEST_F(ParametersTest, KernelsOf2dNetworksHaveNoDepthInFiles) {
  const Shape memory_shape{2, 1, 3, 2, 4};
  EXPECT_EQ(file_shape(memory_shape, ParameterLayout::convolution2d), (Shape{2, 4, 3, 2}));
  std::vector<float> memory(48);
  std::iota(memory.begin(), memory.end(), 0.0f);
  const std::vector<float> file = to_file_order(memory, memory_shape, ParameterLayout::convolution2d);
  for (size_t o = 0; o < 2; ++o) {
    for (size_t tap = 0; tap < 6; ++tap) {
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(file[(o * 4 + i) * 6 + tap], memory[(o * 6 + tap) * 4 + i]);
      }
    }
  }
  EXPECT_EQ(to_memory_order(file, memory_shape, ParameterLayout::convolution2d), memory);
  EXPECT_THROW(file_shape({2, 3, 3, 2, 4}, ParameterLayout::convolution2d), ShapeError);
  EXPECT_THROW(file_shape({2, 3, 4}, ParameterLayout::convolution2d), ShapeError);
}

TEST_F(ParametersTest, ConstantsAreWrittenAndComparedButNeverRead) {
  const auto constant = [](int64_t value, bool compared) {
    return layers::Constant{"index",
                            DType::i64,
                            {1},
                            [value] {
                              const auto bytes = std::as_bytes(std::span(&value, 1));
                              return std::vector<std::byte>(bytes.begin(), bytes.end());
                            },
                            compared};
  };
  const auto named = [](const layers::Constant& c) {
    return NamedTensor{.name = c.name, .tensor = {}, .constant = &c};
  };
  const layers::Constant written = constant(7, true), same = constant(7, true), other = constant(8, true),
                         any = constant(8, false);
  layers::Constant another_type = constant(7, true), another_shape = constant(7, true);
  another_type.dtype = DType::f32;
  another_shape.shape = {1, 1};
  write_tensors(context_, file_, {named(written)}, {});
  const SafetensorsFile file(file_);
  EXPECT_EQ(file.find("index")->dtype, "I64");
  EXPECT_EQ(refusal({named(same)}), "");
  EXPECT_EQ(refusal({named(any)}), "");
  EXPECT_NE(refusal({named(other)}).find("tensor index: found other numbers than those of the network"),
            std::string::npos);
  EXPECT_NE(refusal({named(another_type)}).find("found I64, expected F32"), std::string::npos);
  EXPECT_NE(refusal({named(another_shape)}).find("index: found [1], expected [1, 1]"), std::string::npos);
  EXPECT_NE(refusal({}).find("1 unexpected (\"index\")"), std::string::npos);
}

TEST_F(ParametersTest, CountersThatMakeNoSenseAreRefusedAndNothingChanges) {
  int64_t counter = 4;
  const NamedTensor wanted{"n", Tensor(), ParameterLayout::plain, &counter};
  const Tensor a = counting({3});
  int64_t negative = -1;
  write_tensors(context_, file_,
                {{"a", counting({3}, 7)}, {"n", Tensor(), ParameterLayout::plain, &negative}}, {});
  std::string line = refusal({{"a", a}, wanted});
  EXPECT_NE(line.find("tensor n: found -1"), std::string::npos) << line;
  write_tensors(context_, file_, {{"a", counting({3}, 7)}, {"n", counting({1}).reshape({})}}, {});
  line = refusal({{"a", a}, wanted});
  EXPECT_NE(line.find("tensor n: found F32, expected I64"), std::string::npos) << line;
  write_tensors(context_, file_, {{"a", counting({3}, 7)}, {"n", counting({1})}}, {});
  line = refusal({{"a", a}, wanted});
  EXPECT_NE(line.find("n: found [1], expected []"), std::string::npos) << line;
  EXPECT_EQ(counter, 4);
  EXPECT_EQ(a.to_host<float>(context_), (std::vector<float>{0, 1, 2}));
}

TEST_F(ParametersTest, NarrowTypesAreWidened) {
  write_safetensors(file_,
                    {{"x",
                      DType::bf16,
                      {2},
                      [] {
                        const bf16 values[2] = {bf16(1.5f), bf16(-8.0f)};
                        const auto* bytes = reinterpret_cast<const std::byte*>(values);
                        return std::vector<std::byte>(bytes, bytes + sizeof(values));
                      }}},
                    {});
  const Tensor x = counting({2});
  load_tensors(context_, SafetensorsFile(file_), {{{"x", x}}});
  EXPECT_EQ(x.to_host<float>(context_), (std::vector<float>{1.5f, -8.0f}));
}

// Larger than the parts that files are read in, which end within rows of taps.
TEST_F(ParametersTest, LargeConvolutionsOnEveryDevice) {
  const Shape shape{5, 3, 3, 3, 701};
  const Tensor weight = counting(shape, -1000);
  const std::vector<float> expected = weight.to_host<float>(context_);
  std::vector<float> in_file;
  for (int64_t o = 0; o < 5; ++o) {
    for (int64_t i = 0; i < 701; ++i) {
      for (int64_t tap = 0; tap < 27; ++tap) {
        in_file.push_back(expected[static_cast<size_t>((o * 27 + tap) * 701 + i)]);
      }
    }
  }
  EXPECT_TRUE(to_file_order(expected, shape, ParameterLayout::convolution) == in_file);
  EXPECT_TRUE(to_memory_order(in_file, shape, ParameterLayout::convolution) == expected);
  const auto bytes_of = [&](auto convert) {
    std::vector<decltype(convert(0.0f))> values(in_file.size());
    std::transform(in_file.begin(), in_file.end(), values.begin(), convert);
    const auto bytes = std::as_bytes(std::span(values));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  for (const bool narrow : {false, true}) {
    write_safetensors(
        file_,
        {{"w", narrow ? DType::bf16 : DType::f32, file_shape(shape, ParameterLayout::convolution),
          [&] {
            return narrow ? bytes_of([](float x) { return bf16(x); }) : bytes_of([](float x) { return x; });
          }}},
        {});
    for (const DeviceType device : {DeviceType::cpu, DeviceType::simt}) {
      DeviceContext context{Device{device}};
      const Tensor read = Tensor::from_host(context, std::vector<float>(expected.size(), NAN), shape);
      load_tensors(context, SafetensorsFile(file_), {{{"w", read, ParameterLayout::convolution}}});
      const std::vector<float> found = read.to_host<float>(context);
      int64_t wrong = 0;
      for (size_t i = 0; i < found.size(); ++i) {
        wrong += found[i] == (narrow ? static_cast<float>(bf16(expected[i])) : expected[i]) ? 0 : 1;
      }
      EXPECT_EQ(wrong, 0) << narrow << " " << to_string(context.device());
    }
  }
}

TEST_F(ParametersTest, EveryDifferenceIsCountedInOneLineAndNothingChanges) {
  write_tensors(context_, file_,
                {{"same", counting({3}, 50)},
                 {"shape", counting({4})},
                 {"extra\n1", counting({1})},
                 {"optimizer.extra", counting({1})}},
                {});
  const Tensor same = counting({3});
  const std::vector<NamedTensor> wanted{{"same", same},        {"shape", counting({2, 2})},
                                        {"m1", counting({1})}, {"m2", counting({1})},
                                        {"m3", counting({1})}, {"m4", counting({1})}};
  const std::string_view ignored[] = {"optimizer."};
  const std::string line = refusal(wanted, ignored);
  EXPECT_NE(line.find("weights of another model"), std::string::npos) << line;
  EXPECT_NE(line.find("4 tensors missing (m1, m2, m3, ...)"), std::string::npos) << line;
  EXPECT_NE(line.find("1 unexpected (\"extra\\n1\")"), std::string::npos) << line;
  EXPECT_NE(line.find("1 of another shape (shape: found [4], expected [2, 2])"), std::string::npos) << line;
  EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  EXPECT_NE(refusal(wanted).find("2 unexpected"), std::string::npos);
  EXPECT_EQ(same.to_host<float>(context_), (std::vector<float>{0, 1, 2}));
}

TEST_F(ParametersTest, NumbersThatAreNotFiniteAreRefusedAndNothingChanges) {
  write_tensors(context_, file_,
                {{"a", counting({3}, 7)},
                 {"b", Tensor::from_host(
                           context_, std::vector<float>{1, std::numeric_limits<float>::infinity()}, {2})}},
                {});
  const Tensor a = counting({3});
  const std::string line = refusal({{"a", a}, {"b", counting({2})}});
  EXPECT_NE(line.find("tensor b: found inf at position 1"), std::string::npos) << line;
  EXPECT_EQ(a.to_host<float>(context_), (std::vector<float>{0, 1, 2}));
  // In several parts: the first is named, whatever thread reads it.
  std::vector<float> many(200'000, 1.0f);
  many[150'000] = -std::numeric_limits<float>::infinity();
  many[99'999] = std::numeric_limits<float>::quiet_NaN();
  many[100'001] = std::numeric_limits<float>::infinity();
  write_tensors(context_, file_, {{"a", Tensor::from_host(context_, many, {200'000})}}, {});
  const std::string of_many = refusal({{"a", Tensor::empty(context_, {200'000})}});
  EXPECT_NE(of_many.find("tensor a: found nan at position 99999"), std::string::npos) << of_many;
}

}  // namespace
}  // namespace vesal::weights
