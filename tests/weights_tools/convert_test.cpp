// What fits a model and what does not, what comes out, and what a report says; and what inspect tells of the
// same files.
#include "weights_tools/convert.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/sha256.hpp"
#include "models/catalogue.hpp"
#include "tests/base/temporary_folder.hpp"
#include "tests/weights_tools/torch_fixture.hpp"
#include "weights_tools/inspect.hpp"

namespace vesal::weights {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using layers::ParameterLayout;

constexpr const char* kModel = "fusion-micro";

// A tensor of float32 to be written: 0.25, 1.25, ...
TensorSource floats(std::string name, Shape shape, float first = 0.25f) {
  return {std::move(name), DType::f32, shape, [shape, first] {
            std::vector<std::byte> bytes(static_cast<size_t>(element_count(shape)) * sizeof(float));
            for (size_t i = 0; i < bytes.size() / sizeof(float); ++i) {
              const float value = first + static_cast<float>(i);
              std::memcpy(bytes.data() + i * sizeof(float), &value, sizeof(float));
            }
            return bytes;
          }};
}

TensorSource integers(std::string name, DType dtype, Shape shape, std::vector<std::byte> bytes) {
  return {std::move(name), dtype, std::move(shape), [bytes] { return bytes; }};
}

std::vector<std::byte> bytes_of(std::initializer_list<int64_t> values) {
  const auto bytes = std::as_bytes(std::span(values.begin(), values.size()));
  return {bytes.begin(), bytes.end()};
}

std::vector<std::string> names_of(const std::vector<LoneTensor>& list) {
  std::vector<std::string> names;
  for (const LoneTensor& lone : list) {
    names.push_back(lone.name);
  }
  return names;
}

class ConvertTest : public ::testing::Test {
 protected:
  fs::path path(const std::string& name) const { return folder_ / name; }
  size_t files() const { return folder_.entries(); }
  static std::string slurp(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  // A small network with one entry of every kind: a convolution [4, 2, 3, 3, 3] in files, a linear layer, a
  // buffer, a counter, and two constants.
  void make_small() {
    const layers::ParameterBuilder builder(context_, small_, 1);
    builder.uniform("conv.weight", {4, 3, 3, 3, 2}, 1.0f, true, ParameterLayout::convolution);
    builder.uniform("linear.weight", {4, 3}, 1.0f, true);
    builder.buffer("norm.running_mean", {4}, 0.0f);
    builder.counter("norm.num_batches_tracked");
    builder.fixed("index", DType::i64, {2}, [] { return bytes_of({7, 8}); });
    builder.fixed(
        "mask", DType::i64, {1}, [] { return bytes_of({0}); }, false);
  }
  // All that the small network needs, under its names.
  static std::vector<TensorSource> small_tensors() {
    std::vector<TensorSource> tensors;
    tensors.push_back(floats("conv.weight", {4, 2, 3, 3, 3}));
    tensors.push_back(floats("linear.weight", {4, 3}));
    tensors.push_back(floats("norm.running_mean", {4}));
    tensors.push_back(integers("norm.num_batches_tracked", DType::i64, {}, bytes_of({5})));
    return tensors;
  }
  ConversionReport match_small(std::vector<TensorSource> tensors, std::string_view rules = "[]") {
    write_safetensors(path("small"), std::move(tensors), {});
    const NameMap map(concat(R"({"models":{"small":{}},"metadata":{},"rules":)", rules, "}"), "map");
    return match(*open_weights(path("small")), map, "small", small_);
  }

  // The weights of a network of the catalogue, as one would save them elsewhere: no metadata of Vesal.
  std::unique_ptr<models::Model> write_model(const fs::path& file, const std::string& name,
                                             const Metadata& metadata = {}) {
    std::unique_ptr<models::Model> model = models::make_model(context_, name, 3);
    write_tensors(context_, file, named_parameters(model->parameters()), metadata);
    return model;
  }
  // A file with other tensors than `from` has.
  void rewrite(const fs::path& from, const fs::path& to,
               const std::function<void(std::vector<TensorSource>&)>& edit, const Metadata& metadata = {}) {
    const SafetensorsFile file(from);
    std::vector<TensorSource> tensors;
    for (const StoredTensor& stored : file.tensors()) {
      tensors.push_back({stored.name, stored.dtype == "I64" ? DType::i64 : DType::f32, stored.shape,
                         [&file, &stored] { return file.read_bytes(stored); }});
    }
    edit(tensors);
    write_safetensors(to, std::move(tensors), metadata);
  }

  ConversionRequest request(const fs::path& from) const {
    ConversionRequest request;
    request.from = from;
    request.model = kModel;
    request.out = path("out.safetensors");
    return request;
  }
  template <class E = FormatError>
  std::string refusal(const ConversionRequest& request) {
    try {
      convert(context_, request);
    } catch (const E& error) {
      const std::string what = error.what();
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
      return what;
    }
    ADD_FAILURE() << "was not refused";
    return "";
  }

  DeviceContext context_{Device{}};
  layers::ParameterStore small_;
  TemporaryFolder folder_;
};

TEST_F(ConvertTest, MatchesByNameTypeAndShape) {
  make_small();
  const ConversionReport report = match_small(small_tensors());
  EXPECT_EQ(report.model, "small");
  ASSERT_EQ(report.matched.size(), 4u);
  EXPECT_EQ(report.matched[0].model_name, "conv.weight");
  EXPECT_EQ(report.matched[0].model_shape, (Shape{4, 2, 3, 3, 3})) << "as in files, not as in memory";
  EXPECT_EQ(names_of(report.computed), (std::vector<std::string>{"index", "mask"}));
  EXPECT_TRUE(report.missing.empty());
  EXPECT_TRUE(report.unexpected.empty());
  EXPECT_EQ(report.problem(false, false), "");
  EXPECT_EQ(report.score(), 1.0);
}

TEST_F(ConvertTest, RenamesReshapesAndIgnoresByRule) {
  make_small();
  std::vector<TensorSource> tensors = small_tensors();
  tensors[0].name = "net.0.weight";
  tensors[1] = floats("net.1.weight", {4, 3, 1, 1});
  tensors.push_back(floats("optimizer.step", {1}));
  const std::string_view rules = R"([{"ignore": "optimizer.{x*}", "why": "not weights"},
    {"from": "net.0.{x}", "to": "conv.{x}"}, {"from": "net.1.{x}", "to": "linear.{x}", "reshape": "ones"}])";
  const ConversionReport report = match_small(std::move(tensors), rules);
  ASSERT_EQ(report.matched.size(), 4u) << report.problem(false, false);
  EXPECT_TRUE(report.matched[0].renamed());
  EXPECT_FALSE(report.matched[0].reshaped());
  EXPECT_TRUE(report.matched[1].renamed());
  EXPECT_TRUE(report.matched[1].reshaped());
  EXPECT_EQ(report.matched[1].file_name, "net.1.weight");
  EXPECT_FALSE(report.matched[2].renamed());
  ASSERT_EQ(report.ignored.size(), 1u);
  EXPECT_EQ(report.ignored[0].why, "not weights");
  EXPECT_EQ(report.problem(false, false), "");
  EXPECT_EQ(report.score(), 1.0) << "what is ignored does not count";
}

TEST_F(ConvertTest, OtherShapesAndTypesNameBothSides) {
  make_small();
  std::vector<TensorSource> tensors = small_tensors();
  tensors[1] = floats("linear.weight", {4, 3, 1});
  EXPECT_EQ(
      match_small(tensors).problem(true, true),
      R"(does not fit small, of which 3 of 4 entries match: 1 conflict ("linear.weight" F32 [4, 3, 1] in )"
      R"(the file, "linear.weight" F32 [4, 3] in small))")
      << "no rule allows the extent of 1";
  const std::string_view ones = R"([{"from": "{x*}", "to": "{x*}", "reshape": "ones"}])";
  EXPECT_EQ(match_small(tensors, ones).problem(false, false), "");
  tensors[1] = floats("linear.weight", {3, 4});
  EXPECT_NE(match_small(tensors, ones).problem(true, true).find("[3, 4] in the file"), std::string::npos);
  tensors[1] = integers("linear.weight", DType::i64, {1, 4, 3}, std::vector<std::byte>(96));
  EXPECT_NE(
      match_small(tensors, ones).problem(true, true).find(R"("linear.weight" I64 [1, 4, 3] in the file, )"),
      std::string::npos);
  tensors = small_tensors();
  tensors[3] = floats("norm.num_batches_tracked", {});
  EXPECT_NE(match_small(tensors).problem(true, true).find("F32 [] in the file"), std::string::npos);
  tensors = small_tensors();
  tensors.push_back(integers("index", DType::i32, {2}, std::vector<std::byte>(8)));
  EXPECT_NE(match_small(tensors).problem(true, true).find("\"index\" I32 [2] in the file"),
            std::string::npos);
}

TEST_F(ConvertTest, ConstantsThatFilesCarryForNothingMayDiffer) {
  make_small();
  std::vector<TensorSource> tensors = small_tensors();
  tensors.push_back(integers("index", DType::i64, {2}, bytes_of({7, 8})));
  tensors.push_back(integers("mask", DType::i64, {1}, bytes_of({3})));
  const ConversionReport same = match_small(tensors);
  EXPECT_EQ(same.matched.size(), 6u);
  EXPECT_TRUE(same.computed.empty());
  tensors.back() = floats("mask", {9, 9});
  const ConversionReport other = match_small(tensors);
  EXPECT_EQ(other.problem(false, false), "");
  EXPECT_EQ(other.matched.size(), 5u);
  EXPECT_EQ(other.score(), 1.0);
  EXPECT_EQ(names_of(other.computed), (std::vector<std::string>{"mask"}));
  ASSERT_EQ(names_of(other.ignored), (std::vector<std::string>{"mask"}));
  EXPECT_EQ(other.ignored[0].why, "computed by the network");
}

TEST_F(ConvertTest, TwoTensorsForOneEntryAreRefused) {
  make_small();
  std::vector<TensorSource> tensors = small_tensors();
  tensors.push_back(floats("other.weight", {4, 3}));
  const ConversionReport report =
      match_small(std::move(tensors), R"([{"from": "other.{x}", "to": "linear.{x}"}])");
  EXPECT_NE(
      report.problem(true, true)
          .find(R"("linear.weight" and "other.weight" in the file are both "linear.weight" F32 [4, 3])"),
      std::string::npos)
      << report.problem(true, true);
  EXPECT_TRUE(report.missing.empty());
  EXPECT_TRUE(report.unexpected.empty());
}

TEST_F(ConvertTest, MissingAndUnexpectedAreCountedAndNamed) {
  make_small();
  std::vector<TensorSource> tensors = small_tensors();
  tensors[1].name = "line\nbreak";
  tensors[2].name = "another";
  const ConversionReport report = match_small(std::move(tensors));
  EXPECT_EQ(names_of(report.missing), (std::vector<std::string>{"linear.weight", "norm.running_mean"}));
  EXPECT_EQ(names_of(report.unexpected), (std::vector<std::string>{"line\nbreak", "another"}));
  EXPECT_EQ(report.problem(false, false),
            R"(does not fit small, of which 2 of 4 entries match: 2 missing ("linear.weight", )"
            R"("norm.running_mean"); 2 unexpected ("line\nbreak", "another"))");
  EXPECT_NE(report.problem(true, false).find("2 unexpected"), std::string::npos);
  EXPECT_EQ(report.problem(true, false).find("missing"), std::string::npos);
  EXPECT_NE(report.problem(false, true).find("2 missing"), std::string::npos);
  EXPECT_EQ(report.problem(true, true), "");
  EXPECT_EQ(report.score(), 0.5);
}

TEST_F(ConvertTest, AFileOfWhichNothingFitsIsRefusedWhateverIsAllowed) {
  make_small();
  std::vector<TensorSource> tensors;
  tensors.push_back(floats("x", {1}));
  const ConversionReport report = match_small(std::move(tensors));
  EXPECT_NE(report.problem(true, true).find("4 missing"), std::string::npos);
  EXPECT_EQ(match_small({}).problem(true, true).find("does not fit small, of which 0 of 4"), 0u);
}

TEST_F(ConvertTest, TheResultHoldsTheSameNumbersAndSaysWhereTheyAreFrom) {
  const fs::path from = path("in.pth");
  const std::unique_ptr<models::Model> model = write_model(from, kModel);
  ConversionRequest asked = request(from);
  asked.report = path("report.json");
  size_t calls = 0;
  asked.progress = [&](size_t done, size_t total) {
    EXPECT_EQ(done, calls++);
    EXPECT_EQ(total, model->parameters().entries().size());
  };
  const Conversion conversion = convert(context_, asked);
  EXPECT_EQ(calls, model->parameters().entries().size());

  const SafetensorsFile in(from);
  const SafetensorsFile out(asked.out);
  ASSERT_EQ(out.tensors().size(), in.tensors().size());
  for (const StoredTensor& stored : in.tensors()) {
    const StoredTensor* found = out.find(stored.name);
    ASSERT_NE(found, nullptr) << stored.name;
    EXPECT_EQ(found->shape, stored.shape);
    EXPECT_EQ(out.read_bytes(*found), in.read_bytes(stored)) << stored.name;
  }
  const Metadata& metadata = out.metadata();
  for (const auto& [key, value] : model->metadata()) {
    EXPECT_EQ(metadata.at(key), value) << key;
  }
  for (const auto& [key, value] : name_map_of(kModel).metadata(kModel)) {
    EXPECT_EQ(metadata.at(key), value) << key;
  }
  EXPECT_EQ(metadata.at("vesal.source_file"), "in.pth");
  EXPECT_EQ(metadata.at("vesal.source_format"), "safetensors");
  EXPECT_EQ(metadata.at("vesal.source_dictionary"), "");
  EXPECT_EQ(metadata.at("vesal.source_sha256"), sha256_of_file(from));
  EXPECT_TRUE(metadata.contains("vesal.version"));

  const std::unique_ptr<models::Model> loaded = models::make_model(context_, metadata, std::nullopt);
  load_tensors(context_, out, named_parameters(loaded->parameters()));
  EXPECT_EQ(loaded->parameters().all().front()->value.to_host<float>(context_),
            model->parameters().all().front()->value.to_host<float>(context_));

  const Json report = Json::parse(slurp(asked.report));
  EXPECT_EQ(report["result"], "converted");
  EXPECT_EQ(report["problem"], nullptr);
  EXPECT_EQ(report["matched"].size(), in.tensors().size());
  EXPECT_EQ(report["from"]["sha256"], sha256_of_file(from));
  EXPECT_EQ(report["out_bytes"], fs::file_size(asked.out));
  const std::string text = to_text(conversion, asked);
  EXPECT_NE(text.find(concat("matched     ", in.tensors().size(), " of ", in.tensors().size())),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("missing     none"), std::string::npos) << text;
}

TEST_F(ConvertTest, WhatVesalWroteKeepsWhatItSays) {
  const fs::path plain = path("plain");
  Metadata metadata = write_model(plain, kModel)->metadata();
  metadata["neighbours"] = "5";
  metadata["vesal.version"] = "0.0.1";
  metadata["vesal.patch"] = "32 32 16";
  metadata["vesal.trainer"] = "{}";
  // As a checkpoint, with the optimizer's tensors.
  rewrite(
      plain, path("checkpoint"),
      [](std::vector<TensorSource>& tensors) {
        tensors.push_back(floats("optimizer.first_moment." + tensors.front().name, tensors.front().shape));
      },
      metadata);
  const Conversion conversion = convert(context_, request(path("checkpoint")));
  EXPECT_EQ(conversion.report.ignored.size(), 1u);
  const SafetensorsFile out(path("out.safetensors"));
  EXPECT_EQ(out.metadata().at("vesal.patch"), "32 32 16");
  EXPECT_EQ(out.metadata().at("neighbours"), "5");
  EXPECT_EQ(out.metadata().at("vesal.source_file"), "checkpoint");
  EXPECT_FALSE(out.metadata().contains("vesal.trainer"));
  EXPECT_FALSE(out.metadata().contains("vesal.spacing_mm")) << "the map's defaults are for files of others";
  EXPECT_EQ(SafetensorsFile(plain).tensors().size(), out.tensors().size());

  ConversionRequest other = request(path("checkpoint"));
  other.model = "fusion-tiny";
  other.overwrite = true;
  EXPECT_NE(refusal<UsageError>(other).find("--model: found fusion-tiny, expected \"fusion-micro\""),
            std::string::npos);
  metadata["window"] = "many";
  rewrite(
      plain, path("bad"), [](std::vector<TensorSource>&) {}, metadata);
  ConversionRequest bad = request(path("bad"));
  bad.overwrite = true;
  EXPECT_NE(refusal(bad).find(path("bad").string() + ": weights: metadata"), std::string::npos);
}

TEST_F(ConvertTest, MissingOnesStartFromTheSeed) {
  const fs::path whole = path("whole");
  write_model(whole, kModel);
  std::string lost;
  rewrite(whole, path("in"), [&](std::vector<TensorSource>& tensors) {
    // The largest is drawn, not constant.
    const auto largest =
        std::max_element(tensors.begin(), tensors.end(), [](const TensorSource& a, const TensorSource& b) {
          return element_count(a.shape) < element_count(b.shape);
        });
    lost = largest->name;
    tensors.erase(largest);
    tensors.push_back(floats("extra", {2}));
  });
  ConversionRequest asked = request(path("in"));
  asked.report = path("report.json");
  const std::string strict = refusal(asked);
  EXPECT_NE(strict.find(concat("1 missing (\"", lost, "\"); 1 unexpected (\"extra\")")), std::string::npos);
  EXPECT_FALSE(fs::exists(asked.out));
  Json report = Json::parse(slurp(asked.report));
  EXPECT_EQ(report["result"], "refused");
  EXPECT_EQ(report["problem"], strict);
  EXPECT_EQ(report["missing"][0]["name"], lost);
  EXPECT_EQ(report["unexpected"][0]["name"], "extra");
  EXPECT_EQ(files(), 3u) << "whole, in, report.json and nothing else";

  asked.overwrite = true;
  asked.allow_missing = true;
  asked.seed = 9;
  EXPECT_NE(refusal(asked).find("1 unexpected"), std::string::npos);
  asked.allow_unexpected = true;
  const Conversion conversion = convert(context_, asked);
  const std::string text = to_text(conversion, asked);
  EXPECT_NE(text.find(concat("missing     1 that start anew (\"", lost, "\"), from seed 9")),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("unexpected  1 left out (\"extra\")"), std::string::npos) << text;
  report = Json::parse(slurp(asked.report));
  EXPECT_EQ(report["seed"], 9);

  const std::unique_ptr<models::Model> seeded = models::make_model(context_, kModel, 9);
  const SafetensorsFile out(asked.out);
  const SafetensorsFile in(whole);
  for (const NamedTensor& entry : named_parameters(seeded->parameters())) {
    const std::vector<std::byte> expected =
        entry.name == lost ? entry_bytes(context_, entry) : in.read_bytes(*in.find(entry.name));
    EXPECT_EQ(out.read_bytes(*out.find(entry.name)), expected) << entry.name;
  }
  EXPECT_NE(in.read_bytes(*in.find(lost)), out.read_bytes(*out.find(lost))) << "another seed, other numbers";
}

TEST_F(ConvertTest, OtherTypesBecomeFloat32) {
  write_model(path("whole"), kModel);
  std::string name;
  rewrite(path("whole"), path("in"), [&](std::vector<TensorSource>& tensors) {
    TensorSource& first = tensors[0];
    name = first.name;
    const auto count = static_cast<size_t>(element_count(first.shape));
    first.dtype = DType::bf16;
    first.bytes = [count] {
      std::vector<bf16> values(count, bf16(1.5f));
      const auto bytes = std::as_bytes(std::span(values));
      return std::vector<std::byte>(bytes.begin(), bytes.end());
    };
  });
  const ConversionRequest asked = request(path("in"));
  const Conversion conversion = convert(context_, asked);
  EXPECT_NE(to_text(conversion, asked).find(concat("converted   1 of these (\"", name, "\" BF16 to F32)")),
            std::string::npos)
      << to_text(conversion, asked);
  const SafetensorsFile out(asked.out);
  EXPECT_EQ(out.find(name)->dtype, "F32");
  EXPECT_EQ(out.read_floats(*out.find(name)).front(), 1.5f);
}

TEST_F(ConvertTest, NumbersThatAreNoneStopTheWorkAndLeaveNothing) {
  write_model(path("whole"), kModel);
  std::string name;
  rewrite(path("whole"), path("in"), [&](std::vector<TensorSource>& tensors) {
    name = tensors.back().name;
    tensors.back() = floats(name, tensors.back().shape, std::numeric_limits<float>::quiet_NaN());
  });
  ConversionRequest asked = request(path("in"));
  asked.report = path("report.json");
  const std::string what = refusal(asked);
  EXPECT_NE(what.find("tensor " + name + ": found nan at position 0, expected finite numbers"),
            std::string::npos)
      << what;
  EXPECT_FALSE(fs::exists(asked.out));
  EXPECT_EQ(Json::parse(slurp(asked.report))["problem"], what);
  EXPECT_EQ(files(), 3u);
}

TEST_F(ConvertTest, FilesAreNeitherReplacedNorMixedUpUnasked) {
  const fs::path from = path("in");
  write_model(from, kModel);
  const std::string before = slurp(from);
  ConversionRequest asked = request(from);
  asked.out = path("./in");
  asked.overwrite = true;
  EXPECT_NE(refusal<UsageError>(asked).find("--out: found the file that --from reads"), std::string::npos);
  asked = request(from);
  asked.report = asked.out;
  EXPECT_NE(refusal<UsageError>(asked).find("--report: found the file of --from or --out"),
            std::string::npos);
  asked.report = from;
  EXPECT_NE(refusal<UsageError>(asked).find("--report: found the file of --from or --out"),
            std::string::npos);
  asked = request(from);
  asked.out = folder_.path();
  EXPECT_NE(refusal<IoError>(asked).find("found a folder"), std::string::npos);
  asked = request(from);
  std::ofstream(asked.out) << "old";
  EXPECT_NE(refusal<IoError>(asked).find("out.safetensors: found an existing file"), std::string::npos);
  EXPECT_EQ(slurp(asked.out), "old");
  asked.overwrite = true;
  asked.report = path("nowhere") / "report.json";
  EXPECT_NE(refusal<IoError>(asked).find("report.json: cannot be created"), std::string::npos);
  EXPECT_EQ(slurp(asked.out), "old");
  asked.report.clear();
  asked.model = "no-such-model";
  EXPECT_NE(refusal<UsageError>(asked).find("no-such-model"), std::string::npos);
  EXPECT_EQ(slurp(asked.out), "old");
  asked.model = kModel;
  asked.progress = [](size_t done, size_t) { check<IoError>(done < 3, "stopped"); };
  EXPECT_EQ(refusal<IoError>(asked), "stopped");
  EXPECT_EQ(slurp(asked.out), "old");
  asked.progress = {};
  convert(context_, asked);
  EXPECT_NE(slurp(asked.out), "old");
  EXPECT_EQ(slurp(from), before);
  EXPECT_EQ(files(), 2u);
}

TEST_F(ConvertTest, InspectTellsWhichNetworkItIs) {
  for (const std::string& name : models::model_names()) {
    if (name != kModel && name != "fusion-tiny") {
      continue;  // the others are large, and say nothing new
    }
    write_model(path(name), name);
    const std::unique_ptr<WeightsFile> file = open_weights(path(name));
    const Inspection inspection = inspect(context_, *file, true);
    ASSERT_FALSE(inspection.likenesses.empty());
    EXPECT_EQ(inspection.likenesses.front().model, name);
    EXPECT_EQ(inspection.likenesses.front().score, 1.0);
    for (size_t i = 1; i < inspection.likenesses.size(); ++i) {
      EXPECT_LT(inspection.likenesses[i].score, 1.0);
    }
    EXPECT_TRUE(inspection.warnings.empty());
    EXPECT_EQ(inspection.total.tensors, file->tensors().size());
    EXPECT_NE(to_text(inspection, *file, 0).find(concat("looks like  ", name, ": all ")), std::string::npos);
  }
  write_safetensors(path("other"), {floats("a\x1b[2Jb", {2, 3}), floats("c.d", {1})},
                    {{"key", "line\nbreak"}});
  const std::unique_ptr<WeightsFile> other = open_weights(path("other"));
  const Inspection inspection = inspect(context_, *other, false);
  EXPECT_TRUE(inspection.likenesses.empty());
  const std::string text = to_text(inspection, *other, 1);
  EXPECT_NE(text.find("none of the known networks"), std::string::npos) << text;
  EXPECT_NE(text.find("values were not read"), std::string::npos) << text;
  EXPECT_NE(text.find(R"("a\x1b[2Jb")"), std::string::npos) << text;
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_NE(text.find(R"("line\nbreak")"), std::string::npos) << text;
  EXPECT_NE(text.find("... and 1 more"), std::string::npos) << text;
  EXPECT_NE(to_text(inspection, *other, 5).find("c.d"), std::string::npos);
  const Json json = Json::parse(to_json(inspection, *other));
  EXPECT_EQ(json["tensors"].size(), 2u);
  EXPECT_EQ(json["tensors"][0]["shape"], Json({2, 3}));
  EXPECT_EQ(json["metadata"]["key"], "line\nbreak");
  EXPECT_EQ(json["values_read"], false);
}

TEST_F(ConvertTest, InspectWarnsOfValues) {
  const float infinite = std::numeric_limits<float>::infinity();
  const auto raw_tensor = [](std::string name, DType dtype, Shape shape, auto values) {
    const auto bytes = std::as_bytes(std::span(values));
    return integers(std::move(name), dtype, std::move(shape), {bytes.begin(), bytes.end()});
  };
  std::vector<TensorSource> tensors;
  tensors.push_back(raw_tensor("bad", DType::f32, {4}, std::vector<float>{1, NAN, -infinite, NAN}));
  tensors.push_back(raw_tensor("half", DType::f16, {2}, std::vector<f16>{f16(1.0f), f16(infinite)}));
  tensors.push_back(raw_tensor("brain", DType::bf16, {1}, std::vector<bf16>{bf16(NAN)}));
  tensors.push_back(raw_tensor("flags", DType::boolean, {3}, std::vector<uint8_t>{0, 1, 2}));
  tensors.push_back(raw_tensor("good", DType::f32, {1}, std::vector<float>{3e38f}));
  write_safetensors(path("odd"), std::move(tensors), {});
  const std::unique_ptr<WeightsFile> file = open_weights(path("odd"));
  const std::vector<std::string> warnings = inspect(context_, *file, true).warnings;
  ASSERT_EQ(warnings.size(), 4u);
  EXPECT_EQ(warnings[0], "tensor \"bad\": 2 NaN, 1 infinite of 4 numbers, the first at position 1");
  EXPECT_EQ(warnings[1], "tensor \"half\": 1 infinite of 2 numbers, the first at position 1");
  EXPECT_EQ(warnings[2], "tensor \"brain\": 1 NaN of 1 numbers, the first at position 0");
  EXPECT_EQ(warnings[3], "tensor \"flags\": found 2 at position 2, expected booleans of 0 or 1");
  EXPECT_TRUE(inspect(context_, *file, false).warnings.empty());

  const std::string header = R"({"wide":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}})";
  std::ofstream(path("wide"), std::ios::binary) << le(header.size(), 8) + header + raw<double>({1e39, 1});
  EXPECT_EQ(inspect(context_, *open_weights(path("wide")), true).warnings,
            (std::vector<std::string>{
                "tensor \"wide\": 1 too large for F32 of 2 numbers, the first at position 0"}));
}

}  // namespace
}  // namespace vesal::weights
