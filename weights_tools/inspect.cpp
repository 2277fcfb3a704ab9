// Counting, comparing with the catalogue, and looking at values: see inspect.hpp.
#include "weights_tools/inspect.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "base/error.hpp"
#include "models/catalogue.hpp"
#include "weights_tools/convert.hpp"
#include "weights_tools/name_map.hpp"
#include "weights_tools/text.hpp"

namespace vesal::weights {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostGroups = 6;         // that are shown
constexpr size_t kMostWarnings = 20;      // that are shown
constexpr size_t kMostDictionaries = 12;  // that are shown, and names without a tensor

// A name as it is, or quoted where that would not be safe or clear.
std::string shown(const std::string& name) {
  const std::string quoted = one_line(name);
  return quoted == '"' + name + '"' && !name.empty() && name.find(' ') == std::string::npos ? name : quoted;
}

// "1.2 MB".
std::string size_text(uint64_t bytes) {
  const char* const units[] = {"bytes", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1000 && unit + 1 < std::size(units)) {
    value /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

// "129,525,884".
std::string grouped(uint64_t number) {
  std::string text = std::to_string(number);
  for (size_t place = text.size(); place > 3; place -= 3) {
    text.insert(place - 3, 1, ',');
  }
  return text;
}

void add_to(std::vector<TensorGroup>& groups, std::map<std::string, size_t>& places, const std::string& name,
            const StoredTensor& tensor) {
  const auto [place, is_new] = places.emplace(name, groups.size());
  if (is_new) {
    groups.push_back({name});
  }
  TensorGroup& group = groups[place->second];
  ++group.tensors;
  group.numbers += tensor.count;
  group.bytes += tensor.bytes;
}

struct Odd {
  size_t nan = 0;
  size_t infinite = 0;
  size_t large = 0;  // finite, infinite as float32
  size_t first = 0;  // position of the first of any kind
  bool any() const { return nan + infinite + large > 0; }
};

template <class Stored>
Odd look_at(const std::vector<std::byte>& bytes) {
  Odd odd;
  for (size_t i = 0; i < bytes.size() / sizeof(Stored); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    const auto value = static_cast<double>(
        static_cast<std::conditional_t<std::is_same_v<Stored, double>, double, float>>(stored));
    if (std::isfinite(value) && std::abs(value) <= std::numeric_limits<float>::max()) {
      continue;
    }
    odd.first = odd.any() ? odd.first : i;
    (std::isnan(value) ? odd.nan : std::isinf(value) ? odd.infinite : odd.large) += 1;
  }
  return odd;
}

Odd look_at(const std::string& dtype, const std::vector<std::byte>& bytes) {
  if (dtype == "F32" || dtype == "C64") {
    return look_at<float>(bytes);
  }
  if (dtype == "F64" || dtype == "C128") {
    return look_at<double>(bytes);
  }
  if (dtype == "F16") {
    return look_at<f16>(bytes);
  }
  return dtype == "BF16" ? look_at<bf16>(bytes) : Odd();
}

// Why a tensor's values are no good; empty: they are, or have no way not to be.
std::string value_warning(const WeightsFile& file, const StoredTensor& tensor) {
  try {
    const Odd odd = look_at(tensor.dtype, file.read_bytes(tensor));
    if (!odd.any()) {
      return "";
    }
    std::string text;
    for (const auto& [count, what] : {std::pair(odd.nan, "NaN"), std::pair(odd.infinite, "infinite"),
                                      std::pair(odd.large, "too large for F32")}) {
      if (count > 0) {
        text += concat(text.empty() ? "" : ", ", count, " ", what);
      }
    }
    return concat("tensor ", one_line(tensor.name), ": ", text, " of ", tensor.count,
                  " numbers, the first at position ", odd.first);
  } catch (const FormatError& error) {
    std::string text = error.what();
    const std::string file_name = file.path().string() + ": ";
    return text.starts_with(file_name) ? text.substr(file_name.size()) : text;
  }
}

std::vector<Likeness> likenesses_of(DeviceContext& context, const WeightsFile& file) {
  std::vector<Likeness> result;
  for (const std::string& name : models::model_names()) {
    const std::unique_ptr<models::Model> model = models::make_model(context, name, std::nullopt);
    const ConversionReport report = match(file, name_map_of(name), name, model->parameters());
    if (report.score() >= kLeastLikeness) {
      result.push_back(
          {name, report.matched.size(), report.model_entries, report.file_tensors, report.score()});
    }
  }
  std::stable_sort(result.begin(), result.end(),
                   [](const Likeness& a, const Likeness& b) { return a.score > b.score; });
  return result;
}

// The members of a JSON object that are numbers, texts or booleans, for the trainer's state.
std::string members_of(const std::string& text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return one_line(text);
  }
  std::string result;
  for (const auto& [key, value] : json.items()) {
    if (value.is_primitive()) {
      result += (result.empty() ? "" : ", ") + shown(key) + " " +
                (value.is_string() ? shown(value.get<std::string>()) : value.dump());
    }
  }
  return result;
}

}  // namespace

Inspection inspect(DeviceContext& context, const WeightsFile& file, bool read_values) {
  Inspection inspection;
  std::map<std::string, size_t> group_places;
  std::map<std::string, size_t> type_places;
  inspection.total.name = "total";
  for (const StoredTensor& tensor : file.tensors()) {
    add_to(inspection.groups, group_places, tensor.name.substr(0, tensor.name.find('.')), tensor);
    add_to(inspection.types, type_places, tensor.dtype, tensor);
    ++inspection.total.tensors;
    inspection.total.numbers += tensor.count;
    inspection.total.bytes += tensor.bytes;
  }
  inspection.likenesses = likenesses_of(context, file);
  inspection.values_read = read_values;
  if (read_values) {
    for (const StoredTensor& tensor : file.tensors()) {
      if (std::string warning = value_warning(file, tensor); !warning.empty()) {
        inspection.warnings.push_back(std::move(warning));
      }
    }
  }
  return inspection;
}

std::string to_text(const Inspection& inspection, const WeightsFile& file, size_t rows) {
  std::string text;
  const auto line = [&](std::string_view head, const std::string& rest) {
    text += concat(head, std::string(head.size() < 12 ? 12 - head.size() : 1, ' '), rest, "\n");
  };
  line("file", concat(file.path().string(), ", ", grouped(file.file_bytes()), " bytes"));
  line("format", std::string(file.format()));
  if (!file.dictionary().empty()) {
    std::string others;
    size_t count = 0;
    for (const std::string& other : file.dictionaries()) {
      if (other != file.dictionary() && ++count <= kMostDictionaries) {
        others += (others.empty() ? "" : ", ") + one_line(other);
      }
    }
    line("dictionary",
         concat(file.dictionary() == "." ? "the object itself, \".\"" : one_line(file.dictionary()),
                count == 0 ? "" : "; others: ", others, count > kMostDictionaries ? ", ..." : ""));
  }
  if (!file.prefix().empty()) {
    line("prefix", one_line(file.prefix()) + ", stripped from every name");
  }
  if (!file.skipped().empty()) {
    std::string names;
    for (size_t i = 0; i < std::min(file.skipped().size(), kMostDictionaries); ++i) {
      names += (i == 0 ? "" : ", ") + one_line(file.skipped()[i]);
    }
    line("no tensor", names + (file.skipped().size() > kMostDictionaries ? ", ..." : ""));
  }
  std::string types;
  for (const TensorGroup& type : inspection.types) {
    types += concat(types.empty() ? " (" : ", ", type.tensors, " ", type.name);
  }
  line("tensors", concat(grouped(inspection.total.tensors), types, types.empty() ? "" : ")", ", ",
                         grouped(static_cast<uint64_t>(inspection.total.numbers)), " numbers, ",
                         size_text(inspection.total.bytes)));
  if (inspection.groups.size() > 1) {
    std::vector<TensorGroup> groups = inspection.groups;
    std::stable_sort(groups.begin(), groups.end(),
                     [](const TensorGroup& a, const TensorGroup& b) { return a.bytes > b.bytes; });
    for (size_t i = 0; i < std::min(groups.size(), kMostGroups); ++i) {
      const TensorGroup& group = groups[i];
      line("", concat(shown(group.name), ": ", grouped(group.tensors), " tensors, ",
                      grouped(static_cast<uint64_t>(group.numbers)), " numbers, ", size_text(group.bytes)));
    }
    if (groups.size() > kMostGroups) {
      line("", concat("and ", grouped(groups.size() - kMostGroups), " smaller groups"));
    }
  }
  if (inspection.likenesses.empty()) {
    line("looks like", "none of the known networks");
  }
  for (const Likeness& likeness : inspection.likenesses) {
    line(&likeness == &inspection.likenesses.front() ? "looks like" : "",
         likeness.score == 1.0
             ? concat(likeness.model, ": all ", likeness.matched, " entries, no other tensors")
             : concat(likeness.model, ": ", likeness.matched, " of its ", likeness.model_entries,
                      " entries, ", likeness.matched, " of the file's ", likeness.file_tensors, " tensors"));
  }
  bool first = true;
  for (const auto& [key, value] : file.metadata()) {
    line(first ? "metadata" : "",
         concat(shown(key), ": ", key == "vesal.trainer" ? members_of(value) : one_line(value)));
    first = false;
  }
  if (!inspection.values_read) {
    line("warnings", "values were not read");
  } else if (inspection.warnings.empty()) {
    line("warnings", "none; all values were read");
  }
  for (size_t i = 0; i < std::min(inspection.warnings.size(), kMostWarnings); ++i) {
    line(i == 0 ? "warnings" : "", inspection.warnings[i]);
  }
  if (inspection.warnings.size() > kMostWarnings) {
    line("", concat("and ", inspection.warnings.size() - kMostWarnings, " more"));
  }

  // The table.
  std::vector<std::vector<std::string>> cells;
  for (size_t i = 0; i < std::min(rows, file.tensors().size()); ++i) {
    const StoredTensor& tensor = file.tensors()[i];
    cells.push_back({shown(tensor.name), tensor.dtype, to_string(tensor.shape), grouped(tensor.bytes)});
  }
  if (!cells.empty()) {
    cells.insert(cells.begin(), {"name", "dtype", "shape", "bytes"});
    std::vector<size_t> widths(4);
    for (const std::vector<std::string>& row : cells) {
      for (size_t i = 0; i < row.size(); ++i) {
        widths[i] = std::max(widths[i], row[i].size());
      }
    }
    text += "\n";
    for (const std::vector<std::string>& row : cells) {
      for (size_t i = 0; i < row.size(); ++i) {
        const std::string padding(widths[i] - row[i].size(), ' ');
        text += i == 3 ? padding + row[i] + "\n" : row[i] + padding + "  ";
      }
    }
    if (rows < file.tensors().size()) {
      text += concat("... and ", grouped(file.tensors().size() - rows), " more (--tensors all)\n");
    }
  }
  return text;
}

std::string to_json(const Inspection& inspection, const WeightsFile& file) {
  const auto groups = [](const std::vector<TensorGroup>& list) {
    Json json = Json::object();
    for (const TensorGroup& group : list) {
      json[group.name] = {{"tensors", group.tensors}, {"numbers", group.numbers}, {"bytes", group.bytes}};
    }
    return json;
  };
  Json likenesses = Json::array();
  for (const Likeness& likeness : inspection.likenesses) {
    likenesses.push_back({{"model", likeness.model},
                          {"score", likeness.score},
                          {"matched", likeness.matched},
                          {"model_entries", likeness.model_entries},
                          {"file_tensors", likeness.file_tensors}});
  }
  Json tensors = Json::array();
  for (const StoredTensor& tensor : file.tensors()) {
    tensors.push_back({{"name", tensor.name},
                       {"dtype", tensor.dtype},
                       {"shape", tensor.shape},
                       {"numbers", tensor.count},
                       {"bytes", tensor.bytes}});
  }
  const Json json{{"program", concat("vesal ", VESAL_VERSION)},
                  {"file", file.path().string()},
                  {"bytes", file.file_bytes()},
                  {"format", file.format()},
                  {"dictionary", file.dictionary()},
                  {"dictionaries", file.dictionaries()},
                  {"prefix", file.prefix()},
                  {"no_tensor", file.skipped()},
                  {"metadata", file.metadata()},
                  {"total",
                   {{"tensors", inspection.total.tensors},
                    {"numbers", inspection.total.numbers},
                    {"bytes", inspection.total.bytes}}},
                  {"types", groups(inspection.types)},
                  {"groups", groups(inspection.groups)},
                  {"looks_like", likenesses},
                  {"values_read", inspection.values_read},
                  {"warnings", inspection.warnings},
                  {"tensors", tensors}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace vesal::weights
