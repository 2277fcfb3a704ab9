// Entries of a weights file's metadata, which is as little to be trusted as any input.
#pragma once

#include <charconv>
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.hpp"
#include "models/metadata_reader.hpp"
#include "weights_tools/safetensors.hpp"

namespace vesal::training {

class MetadataReader : public models::MetadataReader {
 public:
  // `expected` ends the message about an entry that is missing: "weights written by vesal train".
  MetadataReader(const weights::Metadata& metadata, const std::string& file, const char* expected)
      : models::MetadataReader(metadata, file + ": metadata: ", expected), file_(file) {}

  std::string text_or(const char* key, const char* otherwise) const {
    return has(key) ? text(key) : otherwise;
  }

  // Exactly `count` numbers separated by single spaces.
  template <class T>
  std::vector<T> numbers(const char* key, size_t count) const {
    const std::string& source = text(key);
    const char* next = source.data();
    const char* end = next + source.size();
    std::vector<T> values;
    for (size_t i = 0; i < count; ++i) {
      T value{};
      const auto [rest, error] = std::from_chars(next, end, value);
      const bool last = i + 1 == count;
      require(error == std::errc() && (last ? rest == end : rest != end && *rest == ' '), key);
      if constexpr (std::is_floating_point_v<T>) {
        require(std::isfinite(value), key);
      }
      values.push_back(value);
      next = last ? rest : rest + 1;
    }
    return values;
  }

  void require(bool good, const char* key) const {
    check<FormatError>(good, file_, ": metadata: ", key, ": found ", weights::one_line(text(key)),
                       ", which makes no sense");
  }

 private:
  const std::string& file_;
};

}  // namespace vesal::training
