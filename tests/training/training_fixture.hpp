// A folder that goes away with the test, tiny phantoms, and files compared byte by byte.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "imaging/case.hpp"
#include "imaging/phantom.hpp"
#include "imaging/preprocess.hpp"

namespace vesal::training {

class TrainingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() /
              ("vesal_training_" + std::to_string(::getpid()) + "_" + info->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // `cases` phantoms of `extent` voxels a side under folder_/NAME.
  std::filesystem::path phantoms(int64_t cases, int64_t extent, const char* name = "data") const {
    imaging::PhantomOptions options;
    options.size = {extent, extent, extent};
    const std::filesystem::path data = folder_ / name;
    std::filesystem::create_directories(data);
    for (int64_t i = 0; i < cases; ++i) {
      imaging::write_phantom(data, imaging::make_phantom(options, i));
    }
    return data;
  }

  static std::vector<imaging::PreparedCase> prepared(int64_t cases, int64_t extent) {
    imaging::PhantomOptions options;
    options.size = {extent, extent, extent};
    std::vector<imaging::PreparedCase> result;
    for (int64_t i = 0; i < cases; ++i) {
      result.push_back(imaging::prepare_case(imaging::make_phantom(options, i)));
    }
    return result;
  }

  static std::string slurp(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    EXPECT_TRUE(in.is_open()) << file;
    return {std::istreambuf_iterator<char>(in), {}};
  }

  static void spit(const std::filesystem::path& file, const std::string& text) {
    std::ofstream(file, std::ios::binary) << text;
  }

  // Names in a folder, sorted.
  static std::vector<std::string> listing(const std::filesystem::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  // The message of the E that `action` throws; it is one line.
  template <class E, class Action>
  static std::string message_of(Action&& action) {
    try {
      action();
    } catch (const E& error) {
      const std::string what = error.what();
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
      return what;
    } catch (const std::exception& error) {
      ADD_FAILURE() << "another exception: " << error.what();
      return "";
    }
    ADD_FAILURE() << "nothing was thrown";
    return "";
  }

  static bool holds(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }

  std::filesystem::path folder_;
};

}  // namespace vesal::training
