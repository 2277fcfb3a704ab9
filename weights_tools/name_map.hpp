// Name maps: what the tensors of other programs' files are called here, as data, one file a network in
// weights_tools/networks/, which the program carries within it. docs/weights.md describes the format; in
// short
//
//   {"models": {"NAME": {METADATA}, ...},   the catalogue's names, each with metadata of its own
//    "metadata": {METADATA},                what all of them get: "KEY": "TEXT", or a list of texts
//    "rules": [{"ignore": PATTERN, "why": TEXT},
//              {"from": PATTERN, "to": PATTERN, "reshape": "ones"}, ...]}
//
// The first rule whose pattern fits a name decides; a name that no rule fits stays as it is. A pattern is a
// name in whose parts, between dots, one {placeholder} may stand for any characters but dots; {placeholder*}
// alone, at the end, stands for one part or more. "reshape": "ones" lets extents of 1 be added or left out.
// Everything else in the JSON is a FormatError that names file and place.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weights_tools/weights_file.hpp"

namespace vesal::weights {

class NamePattern {
 public:
  using Values = std::map<std::string, std::string, std::less<>>;

  // FormatError says what is wrong with `text`.
  explicit NamePattern(std::string_view text);

  // What the placeholders stand for; nothing where the name does not fit.
  std::optional<Values> match(std::string_view name) const;
  // The name with these values in place of the placeholders, which must all be there.
  std::string fill(const Values& values) const;
  bool has_all_of(const NamePattern& other) const;  // whether its placeholders are all among these

 private:
  struct Part {
    std::string before;
    std::string placeholder;  // empty: `before` is the whole part
    std::string after;
    bool rest = false;
  };
  std::vector<Part> parts_;
};

// What a map says about one name of a file.
struct MappedName {
  bool ignored = false;
  std::string name;      // in the model
  std::string why;       // it is ignored
  bool reshape = false;  // extents of 1 may differ
};

class NameMap {
 public:
  // `where` begins messages.
  NameMap(std::string_view json, const std::string& where);

  // In the order of the file.
  const std::vector<std::string>& models() const { return models_; }
  MappedName apply(std::string_view file_name) const;
  // What an imported file says about how it is used; nothing for a model of another map.
  Metadata metadata(std::string_view model) const;

 private:
  struct Rule {
    NamePattern from;
    std::optional<NamePattern> to;  // absent: ignored
    std::string why;
    bool reshape = false;
  };
  std::vector<std::string> models_;
  std::map<std::string, Metadata, std::less<>> metadata_;
  std::vector<Rule> rules_;
};

// The maps that the program carries, in the order of their files' names.
const std::vector<NameMap>& name_maps();
// The one for a model of the catalogue; UsageError lists the models where there is none.
const NameMap& name_map_of(std::string_view model);

}  // namespace vesal::weights
