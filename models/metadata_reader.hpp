// Configurations out of the string maps that weights carry. Errors are FormatError, and name the field.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "models/model.hpp"

namespace vesal::models {

class MetadataReader {
 public:
  // `where` begins messages; `expected` ends the one about a field that is missing.
  explicit MetadataReader(const ModelMetadata& metadata, std::string where = "weights: metadata field ",
                          std::string expected = "")
      : metadata_(metadata), where_(std::move(where)), expected_(std::move(expected)) {}

  bool has(const std::string& key) const { return metadata_.contains(key); }

  const std::string& text(const std::string& key) const {
    const auto found = metadata_.find(key);
    check<FormatError>(found != metadata_.end(), where_, key, " is missing",
                       expected_.empty() ? "" : ", expected ", expected_);
    return found->second;
  }
  template <class T>
  T number(const std::string& key, T least = std::numeric_limits<T>::lowest(),
           T most = std::numeric_limits<T>::max()) const {
    return parse<T>(key, text(key), least, most);
  }
  // Separated by commas, at least one.
  std::vector<int> list(const std::string& key, size_t longest, int least, int most) const {
    std::vector<int> values;
    for (std::string_view rest = text(key);;) {
      const size_t comma = rest.find(',');
      values.push_back(parse<int>(key, rest.substr(0, comma), least, most));
      check<FormatError>(values.size() <= longest, where_, key, " holds more than ", longest, " numbers");
      if (comma == std::string_view::npos) {
        return values;
      }
      rest = rest.substr(comma + 1);
    }
  }
  std::array<int, 4> four(const std::string& key) const {
    const std::vector<int> values =
        list(key, 4, std::numeric_limits<int>::lowest(), std::numeric_limits<int>::max());
    check<FormatError>(values.size() == 4, where_, key, " is \"", text(key), "\", expected four numbers");
    return {values[0], values[1], values[2], values[3]};
  }
  // The place of a field among the names that it may have.
  template <class Enum, size_t count>
  Enum choice(const std::string& key, const std::array<std::string_view, count>& names) const {
    const auto found = std::find(names.begin(), names.end(), text(key));
    std::string known;
    for (const std::string_view name : names) {
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
    check<FormatError>(found != names.end(), where_, key, " is \"", text(key), "\", expected one of ", known);
    return static_cast<Enum>(found - names.begin());
  }

 private:
  template <class T>
  T parse(const std::string& key, std::string_view value, T least, T most) const {
    T result{};
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    check<FormatError>(error == std::errc() && end == value.data() + value.size(), where_, key, " is \"",
                       text(key), "\", expected a number");
    check<FormatError>(result >= least && result <= most, where_, key, " is \"", text(key),
                       "\", expected numbers from ", least, " to ", most);
    return result;
  }

  const ModelMetadata& metadata_;
  std::string where_;
  std::string expected_;
};

}  // namespace vesal::models
