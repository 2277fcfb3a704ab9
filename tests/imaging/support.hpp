// What the imaging tests share: temporary folders, real data, made-up volumes, and checks of errors.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "base/philox.hpp"
#include "imaging/volume.hpp"
#include "tests/base/temporary_folder.hpp"

namespace vesal::imaging {

inline std::filesystem::path data_folder() {
  const char* folder = std::getenv("VESAL_DATA");
  return folder != nullptr ? folder : VESAL_TEST_DATA;
}

// Skips the test where a real file is absent.
#define NEED_FILE(path)                                                                            \
  do {                                                                                             \
    if (!std::filesystem::exists(path)) {                                                          \
      GTEST_SKIP() << (path).string() << " is absent (set VESAL_DATA to the folder of real data)"; \
    }                                                                                              \
  } while (false)

inline std::vector<char> bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_bytes(const std::filesystem::path& path, const std::vector<char>& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline Image random_image(const Geometry& geometry, uint64_t seed, float low = -100, float high = 100) {
  Image image(geometry);
  RandomStream random(seed, 0, 0);
  for (float& value : image.data) {
    value = random.uniform(low, high);
  }
  return image;
}

// Runs `action`, which must throw E with a message of one line that holds all the parts.
template <class E, class Action>
void expect_error(const Action& action, const std::vector<std::string>& parts) {
  try {
    action();
    ADD_FAILURE() << "no error; expected one about: " << parts.front();
  } catch (const E& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in: " << text;
    }
  } catch (const std::exception& error) {
    ADD_FAILURE() << "wrong type of error: " << error.what();
  }
}

// Sets the thread count for a scope.
class Threads {
 public:
  explicit Threads(int count) : before_(thread_count()) { set_thread_count(count); }
  ~Threads() { set_thread_count(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

}  // namespace vesal::imaging
