// Reads the checkpoints that checkpoints.py let PyTorch write and compares every tensor, bit for bit, with
// what the script says it should be: checkpoints_oracle FOLDER.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "weights_tools/safetensors.hpp"

namespace {

using namespace vesal;
using namespace vesal::weights;

int failures = 0;

void expect(bool good, const std::string& what) {
  if (!good) {
    std::printf("%s\n", what.c_str());
    ++failures;
  }
}

void compare(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  const SafetensorsFile expected(std::filesystem::path(path).replace_extension("safetensors"));
  const std::unique_ptr<WeightsFile> file = open_weights(path);
  std::string skipped;
  for (const std::string& one : file->skipped()) {
    skipped += (skipped.empty() ? "" : ",") + one;
  }
  for (const auto& [key, found] : {std::pair<const char*, std::string>("format", file->format()),
                                   {"dictionary", file->dictionary()},
                                   {"prefix", file->prefix()},
                                   {"skipped", skipped}}) {
    expect(expected.metadata().at(key) == found,
           name + ": " + key + ": found " + found + ", expected " + expected.metadata().at(key));
  }
  expect(file->tensors().size() == expected.tensors().size(),
         concat(name, ": found ", file->tensors().size(), " tensors, expected ", expected.tensors().size()));
  for (const StoredTensor& wanted : expected.tensors()) {
    const StoredTensor* found = file->find(wanted.name);
    if (found == nullptr) {
      expect(false, name + ": " + wanted.name + " is missing");
      continue;
    }
    expect(found->dtype == wanted.dtype && found->shape == wanted.shape,
           concat(name, ": ", wanted.name, ": found ", found->dtype, " ", to_string(found->shape),
                  ", expected ", wanted.dtype, " ", to_string(wanted.shape)));
    expect(file->read_bytes(*found) == expected.read_bytes(wanted),
           name + ": " + wanted.name + ": other values");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: checkpoints_oracle FOLDER\n");
    return 2;
  }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    if (entry.path().extension() == ".pt") {
      ++files;
      try {
        compare(entry.path());
      } catch (const std::exception& error) {
        expect(false, error.what());
      }
    }
  }
  std::printf("%d files, %d differences\n", files, failures);
  return files > 0 && failures == 0 ? 0 : 1;
}
