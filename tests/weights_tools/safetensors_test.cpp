// The safetensors reader against hand-made files, good and bad, and the writer against the format read by
// hand.
#include "weights_tools/safetensors.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>

#include "base/error.hpp"

namespace vesal::weights {
namespace {

namespace fs = std::filesystem;

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("vesal_safetensors_" + std::to_string(::getpid()) + "_" +
                                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path path(const char* name = "a.safetensors") const { return folder_ / name; }

  // A file with this header, whatever it says, and `data` bytes behind it.
  fs::path raw(const std::string& header, size_t data_bytes, int64_t header_length = -1) const {
    std::ofstream out(path("raw.safetensors"), std::ios::binary);
    const uint64_t length = header_length < 0 ? header.size() : static_cast<uint64_t>(header_length);
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << header << std::string(data_bytes, '\1');
    return path("raw.safetensors");
  }

  // The one line with which a file is refused; "" when it is accepted.
  static std::string refusal(const fs::path& file) {
    try {
      const SafetensorsFile opened(file);
      return "";
    } catch (const FormatError& error) {
      return error.what();
    }
  }

  void expect_refused(const std::string& header, size_t data_bytes, const std::string& part) const {
    const std::string line = refusal(raw(header, data_bytes));
    EXPECT_NE(line.find(part), std::string::npos) << "header " << header << " gave: " << line;
    EXPECT_NE(line.find("raw.safetensors"), std::string::npos) << line;
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  }

  static std::string slurp(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  size_t files_in_folder() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  template <class T>
  static TensorSource source(std::string name, Shape shape, std::vector<T> values) {
    return {std::move(name), dtype_of<T>::value, std::move(shape), [values] {
              const auto bytes = std::as_bytes(std::span(values));
              return std::vector<std::byte>(bytes.begin(), bytes.end());
            }};
  }

  fs::path folder_;
};

TEST_F(SafetensorsTest, RoundTripOfEveryTypeInTheOrderOfElementSize) {
  const std::vector<float> floats{1.5f, -2.0f, 0.1f, 3e38f, -0.0f, 1e-45f};
  write_safetensors(
      path(),
      {source<uint8_t>("labels", {5}, {0, 1, 2, 3, 255}), source<float>("weight", {2, 3}, floats),
       source<int64_t>("count", {}, {int64_t{1} << 60}), source<bf16>("half", {2}, {bf16(1.0f), bf16(-2.5f)}),
       source<f16>("ieee", {1}, {f16(0.25f)}), source<int32_t>("index", {2}, {-7, 8}),
       source<float>("nothing", {3, 0}, {})},
      {{"key", "value \"quoted\"\nline"}, {"empty", ""}});
  const SafetensorsFile file(path());
  std::vector<std::string> names;
  for (const StoredTensor& tensor : file.tensors()) {
    names.push_back(tensor.name);
    if (tensor.bytes > 0) {
      EXPECT_EQ(tensor.offset % (tensor.bytes / static_cast<uint64_t>(tensor.count)), 0u) << tensor.name;
    }
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"count", "weight", "index", "nothing", "half", "ieee", "labels"}));
  EXPECT_EQ(file.metadata(), (Metadata{{"key", "value \"quoted\"\nline"}, {"empty", ""}}));

  const StoredTensor* weight = file.find("weight");
  ASSERT_NE(weight, nullptr);
  EXPECT_EQ(weight->dtype, "F32");
  EXPECT_EQ(weight->shape, (Shape{2, 3}));
  const std::vector<float> back = file.read_floats(*weight);
  ASSERT_EQ(back.size(), floats.size());
  EXPECT_EQ(std::memcmp(back.data(), floats.data(), floats.size() * sizeof(float)), 0);
  EXPECT_EQ(file.read_floats(*file.find("half")), (std::vector<float>{1.0f, -2.5f}));
  EXPECT_EQ(file.read_floats(*file.find("ieee")), (std::vector<float>{0.25f}));
  EXPECT_EQ(file.find("nothing")->count, 0);
  EXPECT_TRUE(file.read_floats(*file.find("nothing")).empty());
  EXPECT_EQ(file.find("count")->shape, Shape{});
  const std::vector<std::byte> count = file.read_bytes(*file.find("count"));
  int64_t value = 0;
  ASSERT_EQ(count.size(), sizeof(value));
  std::memcpy(&value, count.data(), sizeof(value));
  EXPECT_EQ(value, int64_t{1} << 60);
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_THROW(file.read_floats(*file.find("labels")), FormatError);
}

// The format as its documentation states it, read without the reader under test.
TEST_F(SafetensorsTest, WrittenBytesFollowTheFormat) {
  write_safetensors(path(), {source<float>("b", {2}, {1.0f, 2.0f}), source<float>("a", {1}, {3.0f})},
                    {{"k", "v"}});
  const std::string bytes = slurp(path());
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  ASSERT_EQ(length % 8, 0u);
  ASSERT_EQ(bytes.size(), 8 + length + 12);
  EXPECT_EQ(bytes[8], '{');
  const auto header = nlohmann::json::parse(bytes.substr(8, length));
  EXPECT_EQ(header, nlohmann::json::parse(R"({"__metadata__":{"k":"v"},
    "b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})"));
  float values[3];
  std::memcpy(values, bytes.data() + 8 + length, sizeof(values));
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[1], 2.0f);
  EXPECT_EQ(values[2], 3.0f);
}

TEST_F(SafetensorsTest, SameInputSameBytesAndReplacesAnExistingFile) {
  write_safetensors(path("one"), {source<float>("x", {1}, {1.0f})}, {{"b", "2"}, {"a", "1"}});
  write_safetensors(path("two"), {source<float>("y", {1}, {9.0f})}, {});
  write_safetensors(path("two"), {source<float>("x", {1}, {1.0f})}, {{"a", "1"}, {"b", "2"}});
  EXPECT_EQ(slurp(path("one")), slurp(path("two")));
  EXPECT_EQ(files_in_folder(), 2u);
}

TEST_F(SafetensorsTest, SaysWhatItHoldsWithoutItsFormatBeingKnown) {
  write_safetensors(path(), {source<float>("x", {1}, {1.0f})}, {{"key", "value"}});
  const std::unique_ptr<WeightsFile> file = open_weights(path());
  EXPECT_EQ(file->metadata(), (Metadata{{"key", "value"}}));
  EXPECT_EQ(file->dictionary(), "");
  EXPECT_TRUE(file->dictionaries().empty());
  EXPECT_EQ(file->prefix(), "");
  EXPECT_TRUE(file->skipped().empty());
}

TEST_F(SafetensorsTest, WrappersAreStrippedFromNames) {
  write_safetensors(path(),
                    {source<float>("module.a", {1}, {1.0f}), source<float>("module.b.c", {1}, {2.0f})}, {});
  const SafetensorsFile wrapped(path());
  EXPECT_EQ(wrapped.prefix(), "module.");
  ASSERT_NE(wrapped.find("b.c"), nullptr);
  EXPECT_EQ(wrapped.read_floats(*wrapped.find("b.c")), std::vector<float>{2.0f});
  write_safetensors(path(), {source<float>("module.a", {1}, {1.0f}), source<float>("b", {1}, {2.0f})}, {});
  EXPECT_EQ(SafetensorsFile(path()).prefix(), "");
  EXPECT_NE(SafetensorsFile(path()).find("module.a"), nullptr);

  // Of a megabyte of wrappers a few are looked at.
  std::string long_name;
  while (long_name.size() < 1'000'000) {
    long_name += "module.";
  }
  write_safetensors(path(), {source<float>(long_name + "a", {1}, {1.0f})}, {});
  EXPECT_LT(SafetensorsFile(path()).prefix().size(), 100u);
}

TEST_F(SafetensorsTest, AFileWithoutTensorsIsFine) {
  write_safetensors(path(), {}, {});
  const SafetensorsFile file(path());
  EXPECT_TRUE(file.tensors().empty());
  EXPECT_TRUE(file.metadata().empty());
}

TEST_F(SafetensorsTest, AcceptsWhatOtherProgramsWrite) {
  // Names out of the order of their bytes, spaces, a double, an eight-bit float.
  raw("{ \"b\" : {\"shape\":[1],\"data_offsets\":[8, 9],\"dtype\":\"F8_E4M3\"},"
      "\"a\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}   ",
      9);
  const SafetensorsFile file(path("raw.safetensors"));
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  double one = 0;
  const std::string ones(8, '\1');
  std::memcpy(&one, ones.data(), 8);
  EXPECT_EQ(file.read_floats(file.tensors()[0]), std::vector<float>{static_cast<float>(one)});
}

TEST_F(SafetensorsTest, RefusesBadLengths) {
  std::ofstream(path("short"), std::ios::binary) << "abc";
  EXPECT_NE(refusal(path("short")).find("holds 3 bytes"), std::string::npos);
  std::ofstream(path("empty"), std::ios::binary);
  EXPECT_NE(refusal(path("empty")).find("holds 0 bytes"), std::string::npos);
  EXPECT_NE(refusal(raw("{}", 0, 3)).find("header length 3 passes the file's 10 bytes"), std::string::npos);
  EXPECT_EQ(refusal(raw("{}", 0, 2)), "");
  EXPECT_NE(refusal(raw("{}", 1, 2)).find("1 bytes follow the last tensor"), std::string::npos);
  EXPECT_NE(refusal(raw("{}", 0, SafetensorsFile::kMaxHeaderBytes + 1)).find("expected at most"),
            std::string::npos);
  EXPECT_NE(refusal(raw("{}", 0, std::numeric_limits<int64_t>::max())).find("expected at most"),
            std::string::npos);
  EXPECT_NE(refusal(raw("", 0, 0)).find("does not start with '{'"), std::string::npos);
  std::ofstream(path("zip"), std::ios::binary) << "PK\3\4 and the rest of a .pt file";
  EXPECT_NE(refusal(path("zip")).find("PyTorch"), std::string::npos);
}

TEST_F(SafetensorsTest, RefusesBadJson) {
  expect_refused(" {}", 0, "does not start with '{'");
  expect_refused("{", 0, "not valid JSON");
  expect_refused("{} {}", 0, "not valid JSON");
  expect_refused("{\"a\":}", 0, "not valid JSON");
  expect_refused("{\"\xff\":1}", 0, "not valid JSON");
  expect_refused("{\"a\":1}", 0, "found a number, expected an object that describes a tensor");
  expect_refused("{\"a\":[]}", 0, "found a list");
  expect_refused("{\"a\":null}", 0, "found null");
  expect_refused("{\"a\":{}}", 0, "0 of the three fields");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "2 of the three fields");
  expect_refused("{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "expected a type name");
  expect_refused("{\"a\":{\"dtype\":[\"F32\"],\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "found a list");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":\"1\",\"data_offsets\":[0,4]}}", 4, "found a string");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
                 "found a negative number");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "not whole");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[[1]],\"data_offsets\":[0,4]}}", 4, "found a list");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,4]}}", 4, "found an object");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"more\":1}}", 4,
                 "is unknown");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
                 "occurs twice");
  expect_refused("{\"__metadata__\":{\"k\":1}}", 0, "expected a string");
  expect_refused("{\"__metadata__\":{\"k\":{}}}", 0, "found an object");
  expect_refused("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "occurs twice");
  expect_refused("{\"__metadata__\":\"text\"}", 0, "found a string");
}

TEST_F(SafetensorsTest, RefusesDeepNestingWithoutRecursion) {
  expect_refused("{\"a\":" + std::string(1'000'000, '[') + "}", 0, "found a list");
}

// A million names at most, of tensors and in the metadata together.
TEST_F(SafetensorsTest, TheNumberOfNamesIsLimited) {
  std::string metadata = "{\"__metadata__\":{";
  std::string tensors = "{";
  for (int i = 0; i < 1'000'000; ++i) {
    metadata += std::string(i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"\"";
  }
  for (int i = 0; i < 1'000'001; ++i) {
    tensors += std::string(i == 0 ? "\"" : ",\"") + std::to_string(i) +
               R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  expect_refused(metadata + "}}", 0, "more than 1000000 names");
  expect_refused(tensors + "}", 0, "more than 1000000 names");
}

TEST_F(SafetensorsTest, RefusesBadRanges) {
  const auto one = [](const char* shape, const char* range, const char* dtype = "F32") {
    return std::string("{\"a\":{\"dtype\":\"") + dtype + "\",\"shape\":" + shape +
           ",\"data_offsets\":" + range + "}}";
  };
  EXPECT_EQ(refusal(raw(one("[2]", "[0,8]"), 8)), "");
  expect_refused(one("[2]", "[0,8]"), 7, "lie outside the file's 7 bytes");
  expect_refused(one("[2]", "[0,8]"), 9, "1 bytes follow the last tensor");
  expect_refused(one("[2]", "[8,0]"), 8, "lie outside");
  expect_refused(one("[2]", "[0]"), 8, "holds 1 numbers");
  expect_refused(one("[2]", "[0,8,9]"), 8, "holds 3 numbers");
  expect_refused(one("[3]", "[0,8]"), 8, "needs 12");
  expect_refused(one("[2]", "[4,12]"), 12, "there is a hole");
  expect_refused(one("[2]", "[0,8]", "F4"), 8, "type \"F4\" is not supported");
  expect_refused(one("[2]", "[0,8]", "f32"), 8, "is not supported");
  expect_refused(one("[4294967296,4294967296]", "[0,8]"), 8, "passes 2^63");
  expect_refused(one("[9223372036854775807,2]", "[0,8]"), 8, "passes 2^63");
  expect_refused(one("[18446744073709551615]", "[0,8]"), 8, "passes 2^63");
  expect_refused(one("[2]", "[18446744073709551608,0]"), 8, "lie outside");
  EXPECT_EQ(refusal(raw(one("[1,1,1,1,1,1,1,1]", "[0,4]"), 4)), "");
  expect_refused(one("[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "more than 8 numbers");
  const auto two = [](const char* first, const char* second) {
    return std::string("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":") + first +
           "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + second + "}}";
  };
  EXPECT_EQ(refusal(raw(two("[4,8]", "[0,4]"), 8)), "");
  expect_refused(two("[0,4]", "[0,4]"), 4, "overlap");
  expect_refused(two("[0,4]", "[3,7]"), 7, "overlap");
  expect_refused(two("[0,4]", "[5,9]"), 9, "hole");
  expect_refused(
      "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
      "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
      2, "occurs twice");
}

TEST_F(SafetensorsTest, NamesFromTheFileCannotBreakTheLine) {
  const std::string name = "x\\n\\u001b[31m" + std::string(500, 'y');
  const std::string line =
      refusal(raw("{\"" + name + "\":{\"dtype\":\"?\",\"shape\":[],\"data_offsets\":[0,1]}}", 1));
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line.find('\x1b'), std::string::npos);
  EXPECT_LT(line.size(), folder_.string().size() + 250);
}

// Every truncation of a good file is refused, whatever byte it ends at.
TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  write_safetensors(path(), {source<float>("w", {3}, {1, 2, 3}), source<uint8_t>("m", {2}, {1, 2})},
                    {{"k", "v"}});
  const std::string whole = slurp(path());
  for (size_t length = 0; length < whole.size(); ++length) {
    std::ofstream(path("cut"), std::ios::binary) << whole.substr(0, length);
    EXPECT_NE(refusal(path("cut")), "") << length << " of " << whole.size() << " bytes";
  }
}

TEST_F(SafetensorsTest, UnreadableFilesAreIoErrors) {
  EXPECT_THROW(SafetensorsFile(path("absent")), IoError);
  EXPECT_THROW(SafetensorsFile{folder_}, IoError);
}

TEST_F(SafetensorsTest, WriterRefusesBadNamesAndSizes) {
  EXPECT_THROW(write_safetensors(path(), {source<float>("x", {1}, {1}), source<float>("x", {1}, {1})}, {}),
               UsageError);
  EXPECT_THROW(write_safetensors(path(), {source<float>("__metadata__", {1}, {1})}, {}), UsageError);
  EXPECT_THROW(write_safetensors(path(), {source<float>("\xff", {1}, {1})}, {}), UsageError);
  EXPECT_THROW(write_safetensors(path(), {source<float>("x", {1}, {1})}, {{"k", "\xff"}}), UsageError);
  EXPECT_THROW(write_safetensors(path(), {source<float>("x", {2}, {1})}, {}), ShapeError);
  EXPECT_EQ(files_in_folder(), 0u);
}

TEST_F(SafetensorsTest, AFailedWriteLeavesTheOldFileAndNothingElse) {
  write_safetensors(path(), {source<float>("x", {1}, {1.0f})}, {});
  const std::string before = slurp(path());
  // A limit on file sizes fails like a full disk: in the middle of writing.
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small { 100'000, old.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  try {
    write_safetensors(path(), {source<float>("x", {100'000}, std::vector<float>(100'000, 2.0f))}, {});
  } catch (const IoError& error) {
    message = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(message.find("a.safetensors"), std::string::npos) << message;
  EXPECT_EQ(slurp(path()), before);
  EXPECT_EQ(files_in_folder(), 1u);
}

TEST_F(SafetensorsTest, AMissingFolderIsAnIoError) {
  EXPECT_THROW(write_safetensors(folder_ / "none" / "x.safetensors", {}, {}), IoError);
}

}  // namespace
}  // namespace vesal::weights
