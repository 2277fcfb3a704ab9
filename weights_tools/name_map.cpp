// Patterns, rules, and their JSON: see name_map.hpp.
#include "weights_tools/name_map.hpp"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.hpp"
#include "weights_tools/name_map_data.hpp"
#include "weights_tools/text.hpp"

namespace vesal::weights {
namespace {

using Json = nlohmann::ordered_json;

std::vector<std::string_view> split_at_dots(std::string_view text) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('.', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

const Json& object_at(const Json& json, const char* key, const std::string& where) {
  check<FormatError>(json.contains(key) && json[key].is_object(), where, ": ", key, ": expected an object");
  return json[key];
}

std::string text_at(const Json& json, const char* key, const std::string& where) {
  check<FormatError>(json.contains(key) && json[key].is_string(), where, ": ", key, ": expected a text");
  return json[key].get<std::string>();
}

void check_keys(const Json& json, std::initializer_list<std::string_view> known, const std::string& where) {
  check<FormatError>(json.is_object(), where, ": expected an object");
  for (const auto& item : json.items()) {
    check<FormatError>(std::find(known.begin(), known.end(), item.key()) != known.end(), where, ": ",
                       one_line(item.key()), " is unknown");
  }
}

Metadata metadata_of(const Json& json, const std::string& where) {
  check<FormatError>(json.is_object(), where, ": expected an object");
  Metadata metadata;
  for (const auto& [key, value] : json.items()) {
    const bool list = value.is_array() && std::all_of(value.begin(), value.end(),
                                                      [](const Json& one) { return one.is_string(); });
    check<FormatError>(value.is_string() || list, where, ": ", one_line(key),
                       ": expected a text or a list of texts");
    metadata[key] = list ? value.dump() : value.get<std::string>();
  }
  return metadata;
}

}  // namespace

NamePattern::NamePattern(std::string_view text) {
  const std::string shown = one_line(text);
  std::set<std::string_view> names;
  const std::vector<std::string_view> parts = split_at_dots(text);
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string_view part = parts[i];
    check<FormatError>(!part.empty(), "pattern ", shown, ": a part between dots is empty");
    const size_t open = part.find('{');
    const size_t close = part.find('}');
    if (open == std::string_view::npos && close == std::string_view::npos) {
      parts_.push_back({std::string(part), "", "", false});
      continue;
    }
    check<FormatError>(open < close && close != std::string_view::npos &&
                           part.find('{', open + 1) == std::string_view::npos &&
                           part.find('}', close + 1) == std::string_view::npos,
                       "pattern ", shown, ": expected at most one {placeholder} between two dots");
    std::string_view name = part.substr(open + 1, close - open - 1);
    const bool rest = name.ends_with('*');
    name.remove_suffix(rest ? 1 : 0);
    check<FormatError>(!name.empty() && names.insert(name).second, "pattern ", shown,
                       ": expected placeholders with names, each once");
    check<FormatError>(!rest || (i + 1 == parts.size() && open == 0 && close + 1 == part.size()), "pattern ",
                       shown, ": expected {", name, "*} alone behind the last dot");
    parts_.push_back(
        {std::string(part.substr(0, open)), std::string(name), std::string(part.substr(close + 1)), rest});
  }
}

std::optional<NamePattern::Values> NamePattern::match(std::string_view name) const {
  const std::vector<std::string_view> found = split_at_dots(name);
  if (found.size() < parts_.size() || (found.size() > parts_.size() && !parts_.back().rest)) {
    return std::nullopt;
  }
  Values values;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    const std::string_view text = part.rest ? name.substr(found[i].data() - name.data()) : found[i];
    if (part.placeholder.empty()) {
      if (text != part.before) {
        return std::nullopt;
      }
      continue;
    }
    if (text.size() <= part.before.size() + part.after.size() || !text.starts_with(part.before) ||
        !text.ends_with(part.after)) {
      return std::nullopt;
    }
    values[part.placeholder] =
        text.substr(part.before.size(), text.size() - part.before.size() - part.after.size());
  }
  return values;
}

std::string NamePattern::fill(const Values& values) const {
  std::string name;
  for (const Part& part : parts_) {
    name += (name.empty() ? "" : ".") + part.before +
            (part.placeholder.empty() ? "" : values.at(part.placeholder)) + part.after;
  }
  return name;
}

bool NamePattern::has_all_of(const NamePattern& other) const {
  return std::all_of(other.parts_.begin(), other.parts_.end(), [&](const Part& theirs) {
    return theirs.placeholder.empty() || std::any_of(parts_.begin(), parts_.end(), [&](const Part& own) {
             return own.placeholder == theirs.placeholder && own.rest == theirs.rest;
           });
  });
}

NameMap::NameMap(std::string_view text, const std::string& where) {
  const Json json = Json::parse(text, nullptr, false);
  check<FormatError>(!json.is_discarded(), where, ": is not valid JSON");
  check_keys(json, {"models", "metadata", "rules"}, where);
  const Metadata common = metadata_of(object_at(json, "metadata", where), where + ": metadata");
  for (const auto& [model, own] : object_at(json, "models", where).items()) {
    models_.push_back(model);
    Metadata& metadata = metadata_[model];
    metadata = metadata_of(own, concat(where, ": models: ", one_line(model)));
    metadata.insert(common.begin(), common.end());  // its own stay
  }
  check<FormatError>(!models_.empty(), where, ": models: expected one at least");
  check<FormatError>(json.contains("rules") && json["rules"].is_array(), where, ": rules: expected a list");
  for (const Json& rule : json["rules"]) {
    const std::string place = concat(where, ": rule ", rules_.size() + 1);
    try {
      if (rule.is_object() && rule.contains("ignore")) {
        check_keys(rule, {"ignore", "why"}, place);
        rules_.push_back(
            {NamePattern(text_at(rule, "ignore", place)), std::nullopt, text_at(rule, "why", place), false});
        continue;
      }
      check_keys(rule, {"from", "to", "reshape"}, place);
      const NamePattern from(text_at(rule, "from", place));
      const NamePattern to(text_at(rule, "to", place));
      check<FormatError>(from.has_all_of(to), place, ": \"to\" has a placeholder that \"from\" lacks");
      const bool reshape = rule.contains("reshape");
      check<FormatError>(!reshape || rule["reshape"] == "ones", place, ": reshape: expected \"ones\"");
      rules_.push_back({from, to, "", reshape});
    } catch (const FormatError& error) {
      const std::string what = error.what();
      throw FormatError(what.starts_with(where) ? what : concat(place, ": ", what));
    }
  }
}

MappedName NameMap::apply(std::string_view file_name) const {
  for (const Rule& rule : rules_) {
    if (const std::optional<NamePattern::Values> values = rule.from.match(file_name)) {
      if (!rule.to) {
        return {.ignored = true, .name = {}, .why = rule.why};
      }
      return {.name = rule.to->fill(*values), .why = {}, .reshape = rule.reshape};
    }
  }
  return {.name = std::string(file_name), .why = {}};
}

Metadata NameMap::metadata(std::string_view model) const {
  const auto found = metadata_.find(model);
  return found == metadata_.end() ? Metadata() : found->second;
}

const std::vector<NameMap>& name_maps() {
  static const std::vector<NameMap> maps = [] {
    std::vector<NameMap> result;
    for (const NameMapData& data : name_map_data()) {
      result.emplace_back(data.json, concat("networks/", data.file));
    }
    return result;
  }();
  return maps;
}

const NameMap& name_map_of(std::string_view model) {
  std::string known;
  for (const NameMap& map : name_maps()) {
    for (const std::string& name : map.models()) {
      if (name == model) {
        return map;
      }
      known += (known.empty() ? "" : ", ") + name;
    }
  }
  throw UsageError(concat("model: found ", model, ", expected one of ", known));
}

}  // namespace vesal::weights
