// The program as a user runs it: help, exit codes, one-line errors for every kind of bad input and nothing
// half-written, and the whole way from phantoms over a two-step training to predictions and scores.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "imaging/case.hpp"
#include "imaging/nifti.hpp"
#include "tests/base/temporary_folder.hpp"
#include "weights_tools/safetensors.hpp"

namespace vesal {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;
using imaging::Image;
using imaging::LabelMap;

std::string slurp(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void spit(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// Every file below a folder with its bytes; an absent folder has none.
std::map<std::string, std::string> tree(const fs::path& folder) {
  std::map<std::string, std::string> files;
  if (fs::exists(folder)) {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      files[fs::relative(entry.path(), folder).string()] = entry.is_regular_file() ? slurp(entry.path()) : "";
    }
  }
  return files;
}

struct Outcome {
  int code = -1;  // 128 + signal where one ended the program
  std::string out;
  std::string err;

  int64_t error_lines() const { return std::count(err.begin(), err.end(), '\n'); }
};

// A process of the program with its outputs in files.
class Process {
 public:
  // `before` runs in the child just before the program starts.
  Process(const fs::path& folder, const Arguments& arguments, const std::function<void()>& before = {})
      : out_(folder / "stdout"), err_(folder / "stderr") {
    spit(out_, "");
    spit(err_, "");
    std::vector<char*> argv{const_cast<char*>(static_cast<const char*>(VESAL_PROGRAM))};
    for (const std::string& argument : arguments) {
      argv.push_back(const_cast<char*>(argument.c_str()));
    }
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
      dup2(open(out_.c_str(), O_WRONLY | O_APPEND), STDOUT_FILENO);
      dup2(open(err_.c_str(), O_WRONLY | O_APPEND), STDERR_FILENO);
      if (before) {
        before();
      }
      execv(argv[0], argv.data());
      _exit(127);
    }
  }
  void send(int signal) const { kill(pid_, signal); }
  // Waits until the program has printed `text`; false when it did not for two minutes.
  bool prints(const std::string& text) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    while (slurp(out_).find(text) == std::string::npos) {
      if (std::chrono::steady_clock::now() > deadline) {
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }
  // For each thread of the program a set of signals as the system tells it, signal n in bit n - 1: "SigBlk"
  // are those that wait, "SigCgt" those that have a handler.
  std::vector<uint64_t> signal_sets(const std::string& name) const {
    std::vector<uint64_t> sets;
    for (const auto& thread : fs::directory_iterator("/proc/" + std::to_string(pid_) + "/task")) {
      std::ifstream status(thread.path() / "status");
      for (std::string line; std::getline(status, line);) {
        if (line.rfind(name + ":", 0) == 0) {
          sets.push_back(std::stoull(line.substr(name.size() + 1), nullptr, 16));
        }
      }
    }
    return sets;
  }
  Outcome wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), slurp(out_), slurp(err_)};
  }

 private:
  fs::path out_;
  fs::path err_;
  pid_t pid_ = -1;
};

class CliTest : public ::testing::Test {
 protected:
  static constexpr int kSide = 32;

  // Phantoms and a run of two steps, made once by the program itself.
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TemporaryFolder>();
    root_ = folder_->path();
    data_ = root_ / "data";
    run_ = root_ / "run";
    const Outcome phantoms =
        vesal({"phantom", "--out", data_, "--cases", "3", "--seed", "5", "--size", "32", "32", "32"});
    ASSERT_EQ(phantoms.code, 0) << phantoms.err;
    const Outcome training = vesal(train_arguments(data_, run_));
    ASSERT_EQ(training.code, 0) << training.err;
    ASSERT_EQ(training.err, "");
  }
  static void TearDownTestSuite() { folder_.reset(); }

  void SetUp() override {
    work_ = root_ / ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::create_directories(work_);
  }

  static Outcome vesal(const Arguments& arguments, const std::function<void()>& before = {}) {
    return Process(root_, arguments, before).wait();
  }
  static Arguments train_arguments(const fs::path& data, const fs::path& run, int64_t steps = 2,
                                   int64_t batch = 1) {
    return {"train",        "--data",  data,
            "--out",        run,       "--model",
            "fusion-micro", "--steps", std::to_string(steps),
            "--patch",      "16",      "16",
            "16",           "--batch", std::to_string(batch),
            "--device",     "cpu"};
  }
  static Outcome predict(const fs::path& input, const fs::path& out, const Arguments& more = {}) {
    Arguments arguments{"predict", "--weights", run_, "--input", input, "--out", out, "--device", "cpu"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return vesal(arguments);
  }

  // One line on stderr that begins with "vesal COMMAND: " and holds all the parts.
  static void expect_one_line(const Outcome& outcome, int code, const std::string& command,
                              const std::vector<std::string>& parts) {
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_EQ(outcome.error_lines(), 1) << outcome.err;
    EXPECT_EQ(outcome.err.rfind("vesal " + command + ": ", 0), 0u) << outcome.err;
    for (const std::string& part : parts) {
      EXPECT_NE(outcome.err.find(part), std::string::npos) << "\"" << part << "\" is not in: " << outcome.err;
    }
  }

  // A copy of the first phantom.
  fs::path copy_case(const std::string& name = "case") const {
    const fs::path target = work_ / name;
    fs::create_directories(target);
    for (const auto& entry : fs::directory_iterator(data_ / "VesalPhantom-00000")) {
      std::string file = entry.path().filename();
      file.replace(0, std::strlen("VesalPhantom-00000"), name);
      fs::copy_file(entry.path(), target / file);
    }
    return target;
  }
  // Changes one volume of a case.
  static void change(const fs::path& file, const std::function<void(Image&)>& edit) {
    imaging::NiftiImage image = imaging::read_nifti(file);
    edit(image.volume);
    imaging::write_like(file, image.volume, imaging::make_nifti_header(image.volume.geometry, "LPS"));
  }

  // Predicting `input` fails with one line that holds the parts, and leaves no trace.
  void expect_prediction_refused(const fs::path& input, const std::vector<std::string>& parts) {
    const fs::path out = work_ / "refused";
    expect_one_line(predict(input, out), 1, "predict", parts);
    EXPECT_TRUE(tree(out).empty());
    EXPECT_FALSE(fs::exists(out));
  }

  static inline std::unique_ptr<TemporaryFolder> folder_;
  static inline fs::path root_;
  static inline fs::path data_;
  static inline fs::path run_;
  fs::path work_;
};

TEST_F(CliTest, HelpIsWorthReading) {
  for (const std::string flag : {"-h", "--help"}) {
    const Outcome all = vesal({flag});
    EXPECT_EQ(all.code, 0);
    EXPECT_EQ(all.err, "");
    for (const std::string command :
         {"train", "predict", "evaluate", "phantom", "inspect", "convert", "doctor"}) {
      EXPECT_NE(all.out.find("\n  " + command), std::string::npos) << all.out;
      const Outcome one = vesal({command, flag});
      EXPECT_EQ(one.code, 0);
      EXPECT_EQ(one.err, "");
      EXPECT_NE(one.out.find("Usage: vesal " + command), std::string::npos) << one.out;
      EXPECT_NE(one.out.find("Example"), std::string::npos) << one.out;
      const bool computes = command != "inspect" && command != "convert";
      EXPECT_EQ(one.out.find("--threads") != std::string::npos, computes) << one.out;
    }
  }
  // Help wins over what is missing or wrong beside it.
  EXPECT_EQ(vesal({"predict", "--overlap", "0.3", "-h"}).code, 0);
  EXPECT_EQ(vesal({"--version"}).out.rfind("vesal ", 0), 0u);
  EXPECT_EQ(vesal({}).code, 2);
}

TEST_F(CliTest, WrongUsageIsOneLineWithAHint) {
  expect_one_line(vesal({"train", "--data", "x", "--out", "y", "--stesp", "3"}), 2, "train",
                  {"--stesp", "--steps"});
  expect_one_line(vesal({"predict", "--out", "y"}), 2, "predict", {"--weights", "found nothing"});
  expect_one_line(vesal({"phantom", "--out", "y", "--cases", "many"}), 2, "phantom",
                  {"--cases", "many", "expected"});
  expect_one_line(vesal({"train", "--data", "x", "--out", "y", "--steps", "3", "--minutes", "2"}), 2, "train",
                  {"--steps", "--minutes"});
  expect_one_line(vesal({"predict", "--weights", run_, "--out", "y"}), 2, "predict", {"--input"});
  expect_one_line(vesal({"predict", "--weights", run_, "--input", data_, "--t1n", "f", "--out", "y"}), 2,
                  "predict", {"--input", "--t1n"});
  expect_one_line(vesal({"doctor", "--device", "abacus"}), 2, "doctor", {"abacus"});
  expect_one_line(
      vesal({"evaluate", "--predictions", data_, "--labels", data_, "--label-scheme", "brats1999"}), 2,
      "evaluate", {"brats1999", "brats2021"});
  // Numbers and lists are checked in the program's own words, and what CLI11 would let pass is caught.
  expect_one_line(vesal({"phantom", "--out", "y", "--size", "64", "64"}), 2, "phantom",
                  {"--size: found 2 values, expected 3"});
  expect_one_line(vesal({"phantom", "--out", "y", "--cases"}), 2, "phantom",
                  {"--cases: found nothing, expected a value"});
  for (const std::string seed : {"-1", "18446744073709551616", "1.5"}) {
    expect_one_line(vesal({"phantom", "--out", "y", "--seed", seed}), 2, "phantom",
                    {"--seed: found " + seed + ", expected a whole number"});
  }
  expect_one_line(vesal({"train", "--data", "x", "--out", "y", "--val-fraction", "1"}), 2, "train",
                  {"--val-fraction: found 1, expected 0 to 0.95 "});
  expect_one_line(vesal({"train", "--data", "x", "--out", "y", "--lr", "0"}), 2, "train",
                  {"learning rate: found 0, expected more than 0 and at most 1"});
  expect_one_line(vesal({"train", "--data", "x", "--out", "y", "--device", "gpu"}), 2, "train",
                  {"--device: found gpu, expected auto, cpu"});
  expect_one_line(vesal({"train", "--data", "x", "--out", "y", "--precision", "f64"}), 2, "train",
                  {"precision: found f64, expected f32, bf16 or f16"});
  expect_one_line(vesal({"train", "--data", "x", "--out", "y", "--optimizer", "lamb"}), 2, "train",
                  {"optimizer: found lamb, expected adamw, adam or sgd"});
  expect_one_line(predict(data_, "y", {"--precision", "fp16"}), 2, "predict",
                  {"precision: found fp16, expected f32, bf16 or f16"});
  expect_one_line(predict(data_, "y", {"--modalities", ""}), 2, "predict", {"--modalities", "t1n"});
  expect_one_line(predict(data_, "y", {"--patch", "17", "16", "16"}), 2, "predict",
                  {"--patch: found 17, expected multiples of 16"});
  expect_one_line(predict(data_, "y.nii.gz"), 2, "predict", {"--out", "y.nii.gz", "expected a folder"});
  expect_one_line(vesal({"phantom", "--out", "y", "--anatomy", "analitic"}), 1, "phantom",
                  {"--anatomy: found analitic", "expected analytic or"});
  const Outcome typo = vesal({"predcit"});
  EXPECT_EQ(typo.code, 2);
  EXPECT_NE(typo.err.find("predict"), std::string::npos) << typo.err;
  EXPECT_EQ(typo.error_lines(), 1);
}

TEST_F(CliTest, PhantomsAreTheSameBytesWhateverTheThreads) {
  const auto make = [&](const fs::path& out, const Arguments& more) {
    Arguments arguments{"phantom", "--out", out, "--cases", "2", "--size", "24", "20", "28"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    EXPECT_EQ(vesal(arguments).code, 0);
    return tree(out);
  };
  const auto first = make(work_ / "a", {"--seed", "9", "--threads", "1"});
  EXPECT_EQ(first.size(), 2u * 6u);
  EXPECT_EQ(first, make(work_ / "b", {"--seed", "9", "--threads", "2"}));
  EXPECT_NE(first, make(work_ / "c", {"--seed", "10"}));
  // The same seed continues at --first.
  const auto later = make(work_ / "d", {"--seed", "9", "--first", "1"});
  const std::string file = "VesalPhantom-00001/VesalPhantom-00001-t2f.nii.gz";
  EXPECT_EQ(first.at(file), later.at(file));

  // Existing cases stay unless told otherwise.
  expect_one_line(vesal({"phantom", "--out", work_ / "a", "--cases", "1", "--seed", "3"}), 1, "phantom",
                  {"VesalPhantom-00000", "--overwrite"});
  EXPECT_EQ(first, tree(work_ / "a"));
}

TEST_F(CliTest, PredictsScoresAndKeepsItsWord) {
  const fs::path out = work_ / "out";
  const Outcome outcome = predict(data_, out, {"--save-probabilities"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_NE(outcome.out.find("memory plan: "), std::string::npos) << outcome.out;
  const auto files = tree(out);
  EXPECT_EQ(files.size(), 3u * 5u + 2u);
  const auto statistics = nlohmann::json::parse(files.at("statistics.json"));
  const auto report = nlohmann::json::parse(files.at("run.json"));
  EXPECT_EQ(report.at("cases").size(), 3u);
  EXPECT_EQ(report.at("precision"), "f32");
  EXPECT_EQ(report.at("weights").at("sha256").get<std::string>().size(), 64u);
  for (int i = 0; i < 3; ++i) {
    const std::string name = "VesalPhantom-0000" + std::to_string(i);
    const imaging::NiftiImage labels = imaging::read_nifti(out / (name + ".nii.gz"));
    const imaging::NiftiImage input = imaging::read_nifti(data_ / name / (name + "-t1n.nii.gz"));
    EXPECT_EQ(imaging::geometry_difference(labels.volume.geometry, input.volume.geometry, 0.0), "");
    EXPECT_EQ(labels.header.orientation, "LPS");
    const int64_t tumour = std::count_if(labels.volume.data.begin(), labels.volume.data.end(),
                                         [](float value) { return value > 0.0f; });
    EXPECT_EQ(statistics.at("cases").at(name).at("WT").at("voxels").get<int64_t>(), tumour);
    EXPECT_EQ(files.at(name + ".png").substr(1, 3), "PNG");
  }

  // Nothing is overwritten unasked; asked for, the same bytes come out.
  expect_one_line(predict(data_, out), 1, "predict", {"statistics.json", "--overwrite"});
  EXPECT_EQ(files, tree(out));
  EXPECT_EQ(predict(data_, out, {"--overwrite", "--save-probabilities"}).code, 0);
  EXPECT_EQ(files.at("VesalPhantom-00001.nii.gz"), slurp(out / "VesalPhantom-00001.nii.gz"));
  EXPECT_EQ(files.at("VesalPhantom-00001-wt-probability.nii.gz"),
            slurp(out / "VesalPhantom-00001-wt-probability.nii.gz"));

  // Single files give the same label map.
  const fs::path one = data_ / "VesalPhantom-00001" / "VesalPhantom-00001";
  const Outcome single =
      vesal({"predict", "--weights", run_ / "best.safetensors", "--t1n", one.string() + "-t1n.nii.gz",
             "--t1c", one.string() + "-t1c.nii.gz", "--t2w", one.string() + "-t2w.nii.gz", "--t2f",
             one.string() + "-t2f.nii.gz", "--out", work_ / "tumour.nii.gz", "--device", "cpu"});
  ASSERT_EQ(single.code, 0) << single.err;
  EXPECT_EQ(files.at("VesalPhantom-00001.nii.gz"), slurp(work_ / "tumour.nii.gz"));
  EXPECT_TRUE(fs::exists(work_ / "tumour.png"));
  EXPECT_TRUE(fs::exists(work_ / "tumour-run.json"));

  // And they can be scored.
  const Outcome scores =
      vesal({"evaluate", "--predictions", out, "--labels", data_, "--out", work_ / "scores"});
  ASSERT_EQ(scores.code, 0) << scores.err;
  EXPECT_NE(scores.out.find("mean of 3"), std::string::npos) << scores.out;
  const auto summary = nlohmann::json::parse(slurp(work_ / "scores" / "summary.json"));
  EXPECT_EQ(summary.at("metric_per_case").size(), 3u);
  EXPECT_TRUE(fs::exists(work_ / "scores" / "metrics.csv"));
  expect_one_line(vesal({"evaluate", "--predictions", out, "--labels", data_, "--out", work_ / "scores"}), 1,
                  "evaluate", {"summary.json", "--overwrite"});
}

TEST_F(CliTest, ThePhantomsOwnLabelsScorePerfectly) {
  fs::create_directories(work_ / "truth");
  for (int i = 0; i < 3; ++i) {
    const std::string name = "VesalPhantom-0000" + std::to_string(i);
    fs::copy_file(data_ / name / (name + "-seg.nii.gz"), work_ / "truth" / (name + ".nii.gz"));
  }
  ASSERT_EQ(
      vesal({"evaluate", "--predictions", work_ / "truth", "--labels", data_, "--out", work_ / "scores"})
          .code,
      0);
  const auto summary = nlohmann::json::parse(slurp(work_ / "scores" / "summary.json"));
  EXPECT_DOUBLE_EQ(summary.at("foreground_mean").at("Dice").get<double>(), 1.0);
  // Without one of them: named, counted, exit code 3.
  fs::remove(work_ / "truth" / "VesalPhantom-00001.nii.gz");
  const Outcome some = vesal({"evaluate", "--predictions", work_ / "truth", "--labels", data_});
  expect_one_line(some, 3, "evaluate", {"1 of 3", "VesalPhantom-00001"});
  EXPECT_NE(some.out.find("0.667"), std::string::npos) << some.out;
}

TEST_F(CliTest, MissingModalitiesAreNeverRead) {
  const fs::path input = copy_case();
  const Outcome two = predict(input, work_ / "two", {"--modalities", "t1n,t1c"});
  ASSERT_EQ(two.code, 0) << two.err;
  // The others may be broken or gone.
  spit(input / "case-t2f.nii.gz", "not a volume");
  fs::remove(input / "case-t2w.nii.gz");
  ASSERT_EQ(predict(input, work_ / "broken", {"--modalities", "t1n,t1c"}).code, 0);
  EXPECT_EQ(slurp(work_ / "two" / "case.nii.gz"), slurp(work_ / "broken" / "case.nii.gz"));
  fs::remove(input / "case-t2f.nii.gz");
  ASSERT_EQ(predict(input, work_ / "gone").code, 0);
  EXPECT_EQ(slurp(work_ / "two" / "case.nii.gz"), slurp(work_ / "gone" / "case.nii.gz"));
}

TEST_F(CliTest, MissingAndEmptyDirectories) {
  expect_prediction_refused(work_ / "nowhere", {"nowhere"});
  fs::create_directories(work_ / "empty");
  expect_prediction_refused(work_ / "empty", {"empty", "expected"});
  expect_one_line(vesal(train_arguments(work_ / "nowhere", work_ / "run")), 1, "train", {"nowhere"});
  expect_one_line(vesal(train_arguments(work_ / "empty", work_ / "run")), 1, "train", {"empty", "expected"});
  expect_one_line(vesal({"evaluate", "--predictions", work_ / "nowhere", "--labels", data_}), 1, "evaluate",
                  {"nowhere"});
  expect_one_line(vesal({"evaluate", "--predictions", work_ / "empty", "--labels", work_ / "empty"}), 1,
                  "evaluate", {"empty", "expected"});
  expect_one_line(vesal({"predict", "--weights", work_ / "empty", "--input", data_, "--out", work_ / "o"}), 1,
                  "predict", {"empty", "safetensors"});
  // A mistyped output path does not grow a tree.
  expect_one_line(predict(data_, work_ / "no" / "such" / "parent"), 1, "predict", {"parent"});
  EXPECT_FALSE(fs::exists(work_ / "no"));
  EXPECT_FALSE(fs::exists(work_ / "run"));
}

TEST_F(CliTest, NotANifti) {
  const fs::path input = copy_case();
  spit(input / "case-t1c.nii.gz", "this is not a volume at all");
  expect_prediction_refused(input, {"case-t1c.nii.gz", "not a NIfTI"});
  expect_one_line(vesal(train_arguments(input, work_ / "run")), 1, "train", {"case-t1c.nii.gz"});
  EXPECT_TRUE(tree(work_ / "run").empty());
}

TEST_F(CliTest, TruncatedGzip) {
  const fs::path input = copy_case();
  const std::string bytes = slurp(input / "case-t2w.nii.gz");
  spit(input / "case-t2w.nii.gz", bytes.substr(0, bytes.size() / 2));
  expect_prediction_refused(input, {"case-t2w.nii.gz"});
}

TEST_F(CliTest, ModalitiesOnDifferentGrids) {
  const fs::path input = copy_case();
  const Image other(imaging::make_geometry({kSide, kSide, kSide - 1}, {6, 6, 6}), 5.0f);
  imaging::write_like(input / "case-t1c.nii.gz", other, imaging::make_nifti_header(other.geometry, "LPS"));
  expect_prediction_refused(input, {"case-t1c.nii.gz", "32 x 32 x 31"});
}

TEST_F(CliTest, LabelsOutsideTheScheme) {
  const fs::path input = copy_case();
  change(input / "case-seg.nii.gz", [](Image& labels) {
    for (float& value : labels.data) {
      value = value == 3.0f ? 4.0f : value;
    }
    labels.data[0] = 4.0f;
  });
  expect_one_line(vesal(train_arguments(input, work_ / "run")), 1, "train",
                  {"case-seg.nii.gz", "4", "brats2021"});
  EXPECT_TRUE(tree(work_ / "run").empty());
}

TEST_F(CliTest, NanVoxels) {
  const fs::path input = copy_case();
  change(input / "case-t2f.nii.gz",
         [](Image& image) { image.at(16, 16, 16) = std::numeric_limits<float>::quiet_NaN(); });
  expect_prediction_refused(input, {"case-t2f.nii.gz", "1"});
}

TEST_F(CliTest, AllZeroVolume) {
  const fs::path input = copy_case();
  change(input / "case-t1n.nii.gz",
         [](Image& image) { std::fill(image.data.begin(), image.data.end(), 0.0f); });
  expect_prediction_refused(input, {"case-t1n.nii.gz"});
}

TEST_F(CliTest, TwoDimensionalFile) {
  const fs::path input = copy_case();
  // A NIfTI-1 header of a 16 x 16 image, float32.
  std::string bytes(352 + 16 * 16 * 4, '\0');
  const auto put = [&](size_t offset, const void* value, size_t count) {
    std::memcpy(&bytes[offset], value, count);
  };
  const int32_t header_size = 348;
  const int16_t dim[8] = {2, 16, 16, 1, 1, 1, 1, 1};
  const int16_t type[2] = {16, 32};
  const float spacing[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  const float offset = 352;
  put(0, &header_size, 4);
  put(40, dim, 16);
  put(70, type, 4);
  put(76, spacing, 32);
  put(108, &offset, 4);
  put(344, "n+1", 4);
  fs::remove(input / "case-t1n.nii.gz");
  spit(input / "case-t1n.nii", bytes);
  expect_prediction_refused(input, {"case-t1n.nii", "3"});
}

TEST_F(CliTest, WeightsOfAnotherModel) {
  // Files that hold no network of ours, another network's tensors, and half a file.
  const fs::path foreign = work_ / "foreign.safetensors";
  weights::write_safetensors(foreign,
                             {{"conv.weight", DType::f32, {2}, [] { return std::vector<std::byte>(8); }}},
                             {{"format", "pt"}});
  const weights::SafetensorsFile own(run_ / "best.safetensors");
  const fs::path other = work_ / "other.safetensors";
  weights::write_safetensors(
      other, {{"conv.weight", DType::f32, {2}, [] { return std::vector<std::byte>(8); }}}, own.metadata());
  const fs::path half = work_ / "half.safetensors";
  const std::string bytes = slurp(run_ / "best.safetensors");
  spit(half, bytes.substr(0, bytes.size() / 2));
  for (const fs::path& file : {foreign, other, half}) {
    expect_one_line(vesal({"predict", "--weights", file, "--input", data_, "--out", work_ / "out"}), 1,
                    "predict", {file.string()});
    EXPECT_FALSE(fs::exists(work_ / "out"));
  }
}

TEST_F(CliTest, InspectShowsWeightsAndCheckpoints) {
  const Outcome best = vesal({"inspect", run_ / "best.safetensors", "--tensors", "2"});
  ASSERT_EQ(best.code, 0) << best.err;
  EXPECT_EQ(best.err, "");
  for (const char* const part :
       {"format      safetensors", "looks like  fusion-micro: all ", "preset: \"fusion-micro\"",
        "warnings    none; all values were read", "more (--tensors all)"}) {
    EXPECT_NE(best.out.find(part), std::string::npos) << part << " is not in: " << best.out;
  }
  const Outcome last = vesal({"inspect", run_ / "last.safetensors", "--tensors", "all", "--no-values"});
  ASSERT_EQ(last.code, 0) << last.err;
  for (const char* const part :
       {"optimizer: ", "vesal.trainer: ", "optimizer adamw", "step 2", "optimizer.second_moment.",
        "looks like  fusion-micro: all ", "values were not read"}) {
    EXPECT_NE(last.out.find(part), std::string::npos) << part << " is not in: " << last.out;
  }
  EXPECT_EQ(last.out.find("more (--tensors all)"), std::string::npos);
  const Outcome json = vesal({"inspect", run_ / "last.safetensors", "--json"});
  const auto parsed = nlohmann::json::parse(json.out);
  EXPECT_EQ(parsed.at("looks_like").at(0).at("model"), "fusion-micro");
  EXPECT_EQ(parsed.at("values_read"), true);
  EXPECT_EQ(parsed.at("tensors").size(), parsed.at("total").at("tensors").get<size_t>());
  expect_one_line(vesal({"inspect", run_ / "best.safetensors", "--tensors", "some"}), 2, "inspect",
                  {"--tensors: found some, expected a number or all"});
  expect_one_line(vesal({"inspect", run_ / "best.safetensors", "--dictionary", "ema"}), 1, "inspect",
                  {"best.safetensors", "\"ema\"", "a safetensors file has none"});
}

TEST_F(CliTest, ConvertMakesWeightsThatPredictRuns) {
  // As another program would hand them on: the tensors alone, under a misleading name.
  const fs::path source = work_ / "model.pth";
  const weights::SafetensorsFile trained(run_ / "best.safetensors");
  std::vector<weights::TensorSource> tensors;
  for (const weights::StoredTensor& stored : trained.tensors()) {
    tensors.push_back({stored.name, stored.dtype == "I64" ? DType::i64 : DType::f32, stored.shape,
                       [&] { return trained.read_bytes(stored); }});
  }
  weights::write_safetensors(source, std::move(tensors), {});
  const fs::path out = work_ / "own.safetensors";
  const Arguments arguments{"convert", "--from",       source,
                            "--model", "fusion-micro", "--out",
                            out,       "--report",     work_ / "report.json"};
  const Outcome outcome = vesal(arguments);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_NE(outcome.out.find("missing     none"), std::string::npos) << outcome.out;
  EXPECT_EQ(nlohmann::json::parse(slurp(work_ / "report.json")).at("result"), "converted");
  EXPECT_EQ(weights::SafetensorsFile(out).metadata().at("vesal.source_file"), "model.pth");
  const Outcome prediction = vesal({"predict", "--weights", out, "--input", copy_case(), "--out",
                                    work_ / "maps", "--patch", "16", "16", "16", "--device", "cpu"});
  EXPECT_EQ(prediction.code, 0) << prediction.err;
  const Outcome expected = predict(work_ / "case", work_ / "expected", {"--patch", "16", "16", "16"});
  EXPECT_EQ(expected.code, 0) << expected.err;
  EXPECT_EQ(slurp(work_ / "maps" / "case.nii.gz"), slurp(work_ / "expected" / "case.nii.gz"));

  // Of a checkpoint the weights remain, with what they say of themselves.
  const fs::path weights_only = work_ / "weights.safetensors";
  const Outcome checkpoint = vesal(
      {"convert", "--from", run_ / "last.safetensors", "--model", "fusion-micro", "--to", weights_only});
  ASSERT_EQ(checkpoint.code, 0) << checkpoint.err;
  const weights::SafetensorsFile converted(weights_only);
  EXPECT_EQ(converted.tensors().size(), trained.tensors().size());
  EXPECT_EQ(converted.metadata().at("vesal.patch"), "16 16 16");
  EXPECT_FALSE(converted.metadata().contains("vesal.trainer"));
}

TEST_F(CliTest, NetworksOfClassesRunFromTheirFileAndRefuseWhatTheyCannotUse) {
  // All of the network starts from the seed but for one bias, which comes from another program's file.
  const fs::path source = work_ / "model.pth", weights_file = work_ / "gw.safetensors";
  weights::write_safetensors(
      source, {{"model.0.bias", DType::f32, {5}, [] { return std::vector<std::byte>(20); }}}, {});
  const Outcome converted = vesal({"convert", "--from", source, "--model", "meshnet-gw", "--out",
                                   weights_file, "--allow-missing", "--seed", "3"});
  ASSERT_EQ(converted.code, 0) << converted.err;
  const fs::path image = data_ / "VesalPhantom-00000" / "VesalPhantom-00000-t1n.nii.gz";
  const fs::path out = work_ / "map.nii.gz";
  const auto run = [&](const Arguments& more, const fs::path& weights) {
    Arguments arguments{"predict", "--weights", weights, "--t1n", image, "--out", out, "--device", "cpu"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return vesal(arguments);
  };
  const auto refused = [&](const Arguments& more, int code, const std::vector<std::string>& parts) {
    expect_one_line(run(more, weights_file), code, "predict", parts);
    EXPECT_FALSE(fs::exists(out));
  };
  refused({"--t1c", image}, 2, {"--t1c: found", "expected files of t1n only"});
  refused({"--spacing", "1", "1", "1"}, 2, {"--spacing: found a voxel size"});
  refused({"--modalities", "t2w"}, 2, {"--modalities: found t2w, expected t1n"});
  refused({"--label-scheme", "brats2021"}, 2, {"--label-scheme: found brats2021"});
  refused({"--mirror", "x"}, 2, {"--mirror: found x"});
  refused({"--save-probabilities"}, 2, {"--save-probabilities"});
  expect_one_line(run({}, source), 1, "predict", {"model.pth", "run vesal convert first"});

  const Outcome outcome = run({}, weights_file);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("white matter"), std::string::npos) << outcome.out;
  const auto statistics = nlohmann::json::parse(slurp(work_ / "map-statistics.json"));
  EXPECT_TRUE(statistics.at("cases").at("map").dump().find("grey matter") != std::string::npos)
      << statistics.dump();
  const auto report = nlohmann::json::parse(slurp(work_ / "map-run.json"));
  EXPECT_EQ(report.at("weights").at("converted_from"), "model.pth");
  EXPECT_EQ(imaging::read_nifti_header(out).stored_size, imaging::read_nifti_header(image).stored_size);
}

TEST_F(CliTest, ConvertRefusesInOneLineAndLeavesNothing) {
  const fs::path good = run_ / "best.safetensors";
  const fs::path out = work_ / "out.safetensors";
  const auto convert = [&](const fs::path& from, const Arguments& more = {},
                           const std::string& model = "fusion-micro") {
    Arguments arguments{"convert", "--from", from, "--model", model, "--out", out};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return vesal(arguments);
  };
  const auto refused = [&](const Outcome& outcome, const std::vector<std::string>& parts, int code = 1) {
    expect_one_line(outcome, code, "convert", parts);
    EXPECT_FALSE(fs::exists(out));
  };
  const auto file = [&](const std::string& name, const std::string& bytes) {
    spit(work_ / name, bytes);
    return work_ / name;
  };
  refused(convert(work_ / "absent"), {"absent", "No such file"});
  refused(convert(file("empty", "")), {"empty: is empty, expected weights"});
  refused(convert(file("text", "weights, honestly")),
          {"text: starts with", "expected safetensors or a PyTorch checkpoint"});
  refused(convert(file("page.pth", "<!DOCTYPE html>")), {"page.pth: is HTML or XML"});
  const std::string bytes = slurp(good);
  refused(convert(file("half.safetensors", bytes.substr(0, bytes.size() / 2))),
          {"half.safetensors: tensor", "truncated?"});
  const std::string entry = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  const std::string header = "{" + entry + "," + entry + "}";
  uint64_t length = header.size();
  refused(convert(file("twice.safetensors",
                       std::string(reinterpret_cast<const char*>(&length), 8) + header + "1234")),
          {"twice.safetensors: header: the name \"a\" occurs twice"});
  refused(convert(good, {"--dictionary", "ema"}), {"holds no dictionary \"ema\""});
  refused(convert(good, {}, "fusion-huge"), {"model: found fusion-huge, expected one of", "fusion-tiny"}, 2);
  refused(convert(good, {}, "fusion-tiny"), {"--model: found fusion-tiny, expected \"fusion-micro\""}, 2);
  refused(convert(good, {"--strict", "--allow-missing"}), {"--strict: found together with --allow-missing"},
          2);

  // Another network's tensors, and one that lacks some: named, and listed in the report.
  const fs::path other = work_ / "other";
  weights::write_safetensors(
      other, {{"conv.weight", DType::f32, {2}, [] { return std::vector<std::byte>(8); }}}, {});
  refused(convert(other, {"--allow-missing"}),
          {"other: does not fit fusion-micro, of which 0 of", "missing (", "unexpected (\"conv.weight\")"});
  const weights::SafetensorsFile trained(good);
  std::vector<weights::TensorSource> tensors;
  for (const weights::StoredTensor& stored : trained.tensors()) {
    tensors.push_back({stored.name, stored.dtype == "I64" ? DType::i64 : DType::f32, stored.shape,
                       [&] { return trained.read_bytes(stored); }});
  }
  const std::string lost = tensors.back().name;
  tensors.pop_back();
  weights::write_safetensors(work_ / "lacking", std::move(tensors), {});
  refused(convert(work_ / "lacking", {"--report", work_ / "report.json"}), {"1 missing (\"" + lost + "\")"});
  EXPECT_EQ(nlohmann::json::parse(slurp(work_ / "report.json")).at("missing").at(0).at("name"), lost);
  refused(convert(work_ / "lacking", {"--allow-missing", "--report", work_ / "report.json"}),
          {"report.json: found an existing file"});

  spit(out, "old");
  expect_one_line(convert(good), 1, "convert", {"out.safetensors: found an existing file", "--overwrite"});
  EXPECT_EQ(slurp(out), "old");
  EXPECT_EQ(convert(good, {"--overwrite"}).code, 0);
  EXPECT_NE(slurp(out), "old");
}

TEST_F(CliTest, UnknownModality) {
  expect_one_line(predict(data_, work_ / "out", {"--modalities", "t1n,dwi"}), 2, "predict", {"dwi", "t2f"});
  EXPECT_FALSE(fs::exists(work_ / "out"));
  // Known, but not there.
  const fs::path input = copy_case();
  fs::remove(input / "case-t2f.nii.gz");
  expect_one_line(predict(input, work_ / "out", {"--modalities", "t1n,flair"}), 1, "predict",
                  {"case", "t2f"});
  EXPECT_FALSE(fs::exists(work_ / "out"));
}

TEST_F(CliTest, ABadCaseDoesNotStopTheOthers) {
  const fs::path folder = work_ / "cases";
  fs::create_directories(folder);
  for (const char* const name : {"a", "b", "c"}) {
    fs::rename(copy_case(name), folder / name);
  }
  spit(folder / "b" / "b-t1n.nii.gz", "broken");
  const fs::path out = work_ / "out";
  const Outcome outcome = predict(folder, out);
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_NE(outcome.err.find("b-t1n.nii.gz"), std::string::npos) << outcome.err;
  EXPECT_TRUE(fs::exists(out / "a.nii.gz"));
  EXPECT_FALSE(fs::exists(out / "b.nii.gz"));
  EXPECT_FALSE(fs::exists(out / "b.png"));
  EXPECT_TRUE(fs::exists(out / "c.nii.gz"));
  const auto report = nlohmann::json::parse(slurp(out / "run.json"));
  EXPECT_TRUE(report.at("cases").at(1).contains("error"));
  EXPECT_FALSE(nlohmann::json::parse(slurp(out / "statistics.json")).at("cases").contains("b"));
}

TEST_F(CliTest, ACaseWhoseFilesAreUnclearDoesNotStopTheOthers) {
  const fs::path folder = work_ / "cases";
  fs::create_directories(folder);
  for (const char* const name : {"a", "b", "c"}) {
    fs::rename(copy_case(name), folder / name);
  }
  fs::copy_file(folder / "b" / "b-t2f.nii.gz", folder / "b" / "b_flair.nii.gz");
  for (const char* const name : {"c-t1n", "c-t1c", "c-t2w", "c-t2f"}) {
    fs::rename(folder / "c" / (std::string(name) + ".nii.gz"),
               folder / "c" / (std::string(name) + "x.nii.gz"));
  }
  const fs::path out = work_ / "out";
  const Outcome outcome = predict(folder, out);
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_NE(outcome.err.find("b_flair.nii.gz claim to be t2f"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("/c: no image of a known modality"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("2 of 3 cases failed"), std::string::npos) << outcome.err;
  EXPECT_TRUE(fs::exists(out / "a.nii.gz"));
  // Training goes on with no less than all.
  expect_one_line(vesal(train_arguments(folder, work_ / "run")), 1, "train", {"cases/"});
  EXPECT_FALSE(fs::exists(work_ / "run"));
}

TEST_F(CliTest, ScoresAreRefusedOrWrittenAsAWhole) {
  fs::create_directories(work_ / "empty");
  expect_one_line(vesal({"evaluate", "--predictions", work_ / "empty", "--labels", data_}), 1, "evaluate",
                  {"empty: found no label map, expected CASE.nii.gz"});
  fs::create_directories(work_ / "truth");
  for (int i = 0; i < 3; ++i) {
    const std::string name = "VesalPhantom-0000" + std::to_string(i);
    fs::copy_file(data_ / name / (name + "-seg.nii.gz"), work_ / "truth" / (name + ".nii.gz"));
  }
  spit(work_ / "file", "");
  expect_one_line(
      vesal({"evaluate", "--predictions", work_ / "truth", "--labels", data_, "--out", work_ / "file"}), 1,
      "evaluate", {"file: found a file, expected a folder"});
  // The second file cannot be written: a folder is in its place, where --overwrite makes no difference.
  const fs::path scores = work_ / "scores";
  fs::create_directories(scores / "metrics.csv");
  expect_one_line(vesal({"evaluate", "--predictions", work_ / "truth", "--labels", data_, "--out", scores,
                         "--overwrite"}),
                  1, "evaluate", {"metrics.csv"});
  EXPECT_FALSE(fs::exists(scores / "summary.json"));
}

// ps and top show a process by this name.
TEST_F(CliTest, TheProcessBearsTheProgramsName) {
  const fs::path pid = work_ / "pid";
  Process process(root_, train_arguments(data_, work_ / "run", 100000),
                  [&] { spit(pid, std::to_string(getpid())); });
  EXPECT_TRUE(process.prints("training"));
  EXPECT_EQ(slurp("/proc/" + slurp(pid) + "/comm"), "vesal\n");
  process.send(SIGTERM);
  EXPECT_EQ(process.wait().code, 130);
}

// A full disk: a tiny file system where mounting is allowed, and a limit on the size of files everywhere.
TEST_F(CliTest, NoSpaceLeftOnTheOutputDevice) {
  const auto small_files = [] {
    signal(SIGXFSZ, SIG_IGN);  // the write then fails, as on a full disk
    const rlimit limit{4096, 4096};
    setrlimit(RLIMIT_FSIZE, &limit);
  };
  const Outcome limited = vesal({"phantom", "--out", work_ / "limited", "--cases", "1"}, small_files);
  expect_one_line(limited, 1, "phantom", {"limited"});
  EXPECT_TRUE(tree(work_ / "limited").empty());
  const Outcome trained = vesal(train_arguments(data_, work_ / "run"), small_files);
  expect_one_line(trained, 1, "train", {"safetensors"});
  for (const auto& [name, bytes] : tree(work_ / "run")) {
    EXPECT_EQ(name.find("safetensors"), std::string::npos) << name;
  }
  const fs::path out = work_ / "out";
  Arguments arguments{"predict", "--weights", run_, "--input", data_ / "VesalPhantom-00000", "--out", out};
  expect_one_line(vesal(arguments, small_files), 1, "predict", {"out"});
  EXPECT_TRUE(tree(out).empty());

  const fs::path disk = work_ / "disk";
  fs::create_directories(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=16k") != 0) {
    GTEST_SKIP() << "the part with a full file system is skipped: mounting is not allowed here ("
                 << std::strerror(errno) << ")";
  }
  const Outcome full = vesal({"phantom", "--out", disk / "data", "--cases", "1", "--size", "48", "48", "48"});
  const Outcome full_prediction = predict(data_ / "VesalPhantom-00000", disk / "out");
  const Outcome full_training = vesal(train_arguments(data_, disk / "run"));
  // What fitted before the disk was full is whole.
  for (const auto& [name, bytes] : tree(disk)) {
    if (name.find(".nii") != std::string::npos) {
      EXPECT_NO_THROW(imaging::read_nifti(disk / name)) << name;
    }
    EXPECT_EQ(name.find("safetensors"), std::string::npos) << name;
    EXPECT_EQ(name.find("Phantom") != std::string::npos && name.rfind("data/", 0) == 0, false) << name;
  }
  umount(disk.c_str());
  expect_one_line(full, 1, "phantom", {"No space left"});
  expect_one_line(full_prediction, 1, "predict", {"No space left"});
  expect_one_line(full_training, 1, "train", {"No space left"});
}

TEST_F(CliTest, InterruptedTrainingKeepsACheckpoint) {
  const fs::path run = work_ / "run";
  // Enough steps that the signal arrives in the middle.
  Process process(root_, train_arguments(data_, run, 100000));
  EXPECT_TRUE(process.prints("training"));
  process.send(SIGINT);
  const Outcome outcome = process.wait();
  expect_one_line(outcome, 130, "train", {"interrupted", "--resume"});
  ASSERT_TRUE(fs::exists(run / "last.safetensors"));
  const weights::SafetensorsFile checkpoint(run / "last.safetensors");  // complete: opening checks all of it
  EXPECT_GT(checkpoint.tensors().size(), 10u);
  // What is there is not trampled on, and resuming it works.
  const auto before = tree(run);
  expect_one_line(vesal(train_arguments(data_, run)), 2, "train", {"--resume"});
  EXPECT_EQ(before, tree(run));
  Process resumed(root_, {"train", "--data", data_, "--out", run, "--resume", "--device", "cpu"});
  EXPECT_TRUE(resumed.prints("training"));
  resumed.send(SIGTERM);
  const Outcome second = resumed.wait();
  EXPECT_EQ(second.code, 130) << second.out << second.err;
}

// oneDNN computes with a stack pointer that points into the heap, so the frame of a handler on a computing
// thread would destroy what lies there, now and then (console.hpp). So there is no handler for what the user
// may send, and one thread takes it, which computes nothing.
TEST_F(CliTest, SignalsLeaveComputingThreadsAlone) {
  Process process(root_, train_arguments(data_, work_ / "run", 100000));
  EXPECT_TRUE(process.prints("training"));  // all threads are there after the first step
  constexpr uint64_t kOurs = uint64_t{1} << (SIGINT - 1) | uint64_t{1} << (SIGTERM - 1);
  const std::vector<uint64_t> handled = process.signal_sets("SigCgt");
  const std::vector<uint64_t> blocked = process.signal_sets("SigBlk");
  process.send(SIGTERM);
  EXPECT_EQ(process.wait().code, 130);
  EXPECT_GE(blocked.size(), 3u);  // the main thread, the loader's, and the one that takes signals
  for (const uint64_t set : handled) {
    EXPECT_EQ(set & kOurs, 0u);
  }
  EXPECT_EQ(
      std::count_if(blocked.begin(), blocked.end(), [](uint64_t set) { return (set & kOurs) == kOurs; }),
      static_cast<int64_t>(blocked.size()) - 1);
}

TEST_F(CliTest, ASecondSignalEndsTheProgramAtOnce) {
  // A step takes seconds, so that the program is in its first one when both signals arrive. They differ, as
  // two that wait and are the same count as one.
  Process process(root_, train_arguments(data_, work_ / "run", 2, 64));
  EXPECT_TRUE(process.prints("learning rate"));
  process.send(SIGINT);
  process.send(SIGTERM);
  const int code = process.wait().code;
  EXPECT_TRUE(code == 128 + SIGINT || code == 128 + SIGTERM) << code;
  EXPECT_FALSE(fs::exists(work_ / "run" / "last.safetensors"));
}

TEST_F(CliTest, InterruptedPredictionKeepsWhatIsDone) {
  const fs::path out = work_ / "out";
  Process process(root_, {"predict", "--weights", run_, "--input", data_, "--out", out, "--overlap", "0.9"});
  EXPECT_TRUE(process.prints("tiles  "));
  process.send(SIGINT);
  const Outcome outcome = process.wait();
  expect_one_line(outcome, 130, "predict", {"interrupted"});
  // Every label map that is there is whole.
  for (const auto& [name, bytes] : tree(out)) {
    if (name.ends_with(".nii.gz")) {
      EXPECT_NO_THROW(imaging::read_nifti(out / name)) << name;
    }
    EXPECT_EQ(name.find("tmp"), std::string::npos) << name;
  }
}

TEST_F(CliTest, DoctorFindsAllWell) {
  const Outcome outcome = vesal({"doctor", "--device", "cpu"});
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  for (const char* const part :
       {"oneDNN", "zlib", "libpng", "nifti", "threads", "conv3d", "window_attention", "all well"}) {
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << " is not in\n" << outcome.out;
  }
}

}  // namespace
}  // namespace vesal
