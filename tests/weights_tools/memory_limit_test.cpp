// What a hostile file can make of its bytes: each is opened and read in a process of its own, whose memory is
// measured. The limits are those of docs/weights.md.
#include <sys/resource.h>
#include <sys/wait.h>

#include <functional>

#include "tests/weights_tools/torch_fixture.hpp"

namespace vesal::weights {
namespace {

#ifndef VESAL_SANITIZED

constexpr double kFixedMb = 192;
constexpr double kMostMb = 3072;
constexpr double kTimesFile = 128;

std::string many(std::string_view code, size_t times) {
  std::string result;
  result.reserve(code.size() * times);
  for (size_t i = 0; i < times; ++i) {
    result += code;
  }
  return result;
}

// {"all": a tuple of what the opcodes leave on the stack}
std::string pickle_of(const std::string& opcodes) {
  return zip_of(PickleBuilder().op("}").text("all").op("(").op(opcodes).op("ts").stop());
}

class MemoryLimitTest : public FileTest {
 protected:
  // Megabytes that opening the file and reading its first tensors took beyond those of an empty process.
  double megabytes(const std::filesystem::path& path) const {
    const double base = child([] {});
    return child([&] {
             try {
               const std::unique_ptr<WeightsFile> file = open_weights(path);
               for (size_t i = 0; i < std::min<size_t>(file->tensors().size(), 4); ++i) {
                 file->read_bytes(file->tensors()[i]);
               }
             } catch (const FormatError&) {
             }
           }) -
           base;
  }

  void expect_small(const char* what, const std::string& bytes) const {
    const std::filesystem::path path = write(bytes);
    const double used = megabytes(path);
    const double size = static_cast<double>(bytes.size()) * 1e-6;
    std::printf("%-44s file %7.2f MB, memory %7.1f MB\n", what, size, used);
    EXPECT_LT(used, std::min(kFixedMb + kTimesFile * size, kMostMb)) << what;
  }

 private:
  static double child(const std::function<void()>& use) {
    const pid_t process = ::fork();
    if (process == 0) {
      use();
      ::_exit(0);
    }
    int status = 0;
    struct rusage usage {};
    EXPECT_EQ(::wait4(process, &status, 0, &usage), process);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    return static_cast<double>(usage.ru_maxrss) / 1024.0;
  }
};

TEST_F(MemoryLimitTest, Pickles) {
  expect_small("lists", pickle_of(many("]", 2'000'000)));
  expect_small("memoised", pickle_of(many("N\x94", 2'000'000)));
  expect_small("tuples of one another",
               pickle_of(")q\1" + many("h\1\x85q\1", 250) + many("h\1\x85", 1'000'000)));
  expect_small("sets made from one list",
               pickle_of("](" + many("N", 1'000'000) + "eq\1" + many("c__builtin__\nset\nh\1\x85R", 30)));
  expect_small("globals", pickle_of(many("cx\ny\n", 1'000'000)));
  expect_small("storages", pickle_of(many("(U\7storagectorch\nFloatStorage\nU\1xU\3cpuK\1tQ", 100'000)));
  expect_small("a string that is not there", pickle_of("X" + le(0xfffffff0, 4)));
}

TEST_F(MemoryLimitTest, Checkpoints) {
  std::string names;
  for (int i = 0; i < 300'000; ++i) {
    names += concat("X", le(6, 4), 100'000 + i, "h\1");
  }
  expect_small("names of one tensor",
               zip_of(PickleBuilder().op("}(").text("w").vector("0", 3).op("q\1").op(names).op("u").stop()));
  expect_small("an expanded tensor",
               zip_of(PickleBuilder().op("}").text("w").tensor("0", 3, 0, {16 << 20}, {0}).op("s").stop()));
  // A module that holds a dictionary of names which others hold too, over and over.
  PickleBuilder b;
  b.op("}(").text("all").op("(}(").text("w").vector("0", 3).op("q\1").op(names).op("uq\2");
  b.global("my", "Net").op(")\x81}(").text("_parameters").op("h\2").text("_modules").op("}ubq\3t").text("m");
  b.global("my", "Net").op(")\x81}(").text("_parameters").op("}").text("_modules").op("}(");
  for (int i = 0; i < 40; ++i) {
    b.text(std::to_string(i)).op("h\3");
  }
  expect_small("a dictionary in forty modules", zip_of(b.op("uubu").stop()));
}

TEST_F(MemoryLimitTest, Archives) {
  ZipBuilder zip(ZipBuilder::Style::plain);
  for (int i = 0; i < 60'000; ++i) {
    zip.add(concat("a/", i), "");
  }
  expect_small("empty entries", zip.finish());
}

TEST_F(MemoryLimitTest, Safetensors) {
  const auto file_of = [](const std::string& header) { return le(header.size(), 8) + header; };
  expect_small("a length that is not there", le(90'000'000, 8) + "{");
  std::string names = "{";
  for (int i = 0; i < 1'000'000; ++i) {
    names += std::string(i == 0 ? "\"" : ",\"") + std::to_string(i) +
             R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  expect_small("a million tensors", file_of(names + "}"));
  names = R"({"__metadata__":{)";
  for (int i = 0; i < 999'999; ++i) {
    names += std::string(i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":"")";
  }
  expect_small("a million lines of metadata", file_of(names + "}}"));
  expect_small("nested lists", file_of("{\"a\":" + many("[", 5'000'000)));
}

#endif

}  // namespace
}  // namespace vesal::weights
