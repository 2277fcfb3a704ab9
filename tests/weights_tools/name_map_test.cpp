// Patterns and rules, what a map may hold, and the maps that the program carries.
#include "weights_tools/name_map.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/error.hpp"
#include "models/catalogue.hpp"

namespace vesal::weights {
namespace {

// The name that `pattern` makes of `name` in the form `to`; "-" where it does not fit.
std::string renamed(std::string_view pattern, std::string_view name, std::string_view to) {
  const auto values = NamePattern(pattern).match(name);
  return values ? NamePattern(to).fill(*values) : "-";
}

template <class Action>
std::string refusal(const Action& action) {
  try {
    action();
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

std::string map_refusal(std::string_view rules,
                        std::string_view rest = R"("models":{"m":{}},"metadata":{})") {
  return refusal([&] { NameMap(concat("{", rest, R"(,"rules":)", rules, "}"), "x.json"); });
}

TEST(NamePattern, FitsWholePartsOnly) {
  EXPECT_EQ(renamed("conv.weight", "conv.weight", "w"), "w");
  EXPECT_EQ(renamed("conv.weight", "conv.weights", "w"), "-");
  EXPECT_EQ(renamed("conv.weight", "conv", "w"), "-");
  EXPECT_EQ(renamed("conv.weight", "conv.weight.x", "w"), "-");
  EXPECT_EQ(renamed("layers.{i}.weight", "layers.12.weight", "stage{i}.w"), "stage12.w");
  EXPECT_EQ(renamed("layers.{i}.weight", "layers..weight", "x{i}"), "-");
  EXPECT_EQ(renamed("layers.{i}.weight", "layers.1.2.weight", "x{i}"), "-");
  EXPECT_EQ(renamed("down{i}x.{k}", "down3x.bias", "{k}.{i}"), "bias.3");
  EXPECT_EQ(renamed("down{i}x.{k}", "downx.bias", "{k}.{i}"), "-");
  EXPECT_EQ(renamed("aba{i}aba", "ababa", "{i}"), "-") << "what stands before and behind may not overlap";
}

TEST(NamePattern, ARestIsOnePartOrMore) {
  EXPECT_EQ(renamed("net.{rest*}", "net.a", "{rest*}"), "a");
  EXPECT_EQ(renamed("net.{rest*}", "net.a.b.c", "x.{rest*}"), "x.a.b.c");
  EXPECT_EQ(renamed("net.{rest*}", "net", "{rest*}"), "-");
  EXPECT_EQ(renamed("net.{rest*}", "net.", "{rest*}"), "-");
  EXPECT_EQ(renamed("{all*}", "a.b", "{all*}"), "a.b");
}

TEST(NamePattern, SaysWhatIsWrong) {
  const auto problem = [](std::string_view text) { return refusal([&] { NamePattern pattern(text); }); };
  EXPECT_NE(problem("").find("is empty"), std::string::npos);
  EXPECT_NE(problem("a..b").find("is empty"), std::string::npos);
  EXPECT_NE(problem("a.{i}{j}").find("at most one {placeholder}"), std::string::npos);
  EXPECT_NE(problem("a.{i").find("at most one {placeholder}"), std::string::npos);
  EXPECT_NE(problem("a.}i{").find("at most one {placeholder}"), std::string::npos);
  EXPECT_NE(problem("a.i}").find("at most one {placeholder}"), std::string::npos);
  EXPECT_NE(problem("a.{}").find("with names, each once"), std::string::npos);
  EXPECT_NE(problem("{i}.{i}").find("with names, each once"), std::string::npos);
  EXPECT_NE(problem("{rest*}.a").find("alone behind the last dot"), std::string::npos);
  EXPECT_NE(problem("a.x{rest*}").find("alone behind the last dot"), std::string::npos);
}

TEST(NameMap, TheFirstRuleThatFitsDecides) {
  const NameMap map(
      R"({"models": {"one": {"b": "own"}, "two": {"c": ["x", "y\"z"]}}, "metadata": {"a": "1", "b": "2"},
    "rules": [{"ignore": "a.{i}.mask", "why": "not read"},
              {"from": "a.{i}.{rest*}", "to": "b.{rest*}", "reshape": "ones"},
              {"from": "a.0.bias", "to": "never"}]})",
      "x.json");
  EXPECT_EQ(map.models(), (std::vector<std::string>{"one", "two"}));
  const MappedName ignored = map.apply("a.3.mask");
  EXPECT_TRUE(ignored.ignored);
  EXPECT_EQ(ignored.why, "not read");
  const MappedName moved = map.apply("a.0.bias");
  EXPECT_FALSE(moved.ignored);
  EXPECT_EQ(moved.name, "b.bias");
  EXPECT_TRUE(moved.reshape);
  const MappedName same = map.apply("head.bias");
  EXPECT_FALSE(same.ignored);
  EXPECT_EQ(same.name, "head.bias");
  EXPECT_FALSE(same.reshape);
  EXPECT_EQ(map.metadata("one"), (Metadata{{"a", "1"}, {"b", "own"}}));
  EXPECT_EQ(map.metadata("two"), (Metadata{{"a", "1"}, {"b", "2"}, {"c", R"(["x","y\"z"])"}}));
  EXPECT_TRUE(map.metadata("three").empty());
}

TEST(NameMap, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(map_refusal("[]"), "");
  EXPECT_EQ(map_refusal("[}"), "x.json: is not valid JSON");
  EXPECT_EQ(map_refusal("{}"), "x.json: rules: expected a list");
  EXPECT_EQ(map_refusal("[1]"), "x.json: rule 1: expected an object");
  EXPECT_EQ(map_refusal(R"([{"ignore": "a"}])"), "x.json: rule 1: why: expected a text");
  EXPECT_EQ(map_refusal(R"([{"ignore": "a", "why": "b", "to": "c"}])"), "x.json: rule 1: \"to\" is unknown");
  EXPECT_EQ(map_refusal(R"([{"ignore": "a", "why": "b"}, {"from": "a"}])"),
            "x.json: rule 2: to: expected a text");
  EXPECT_EQ(map_refusal(R"([{"from": "a.{i}", "to": "{j}"}])"),
            "x.json: rule 1: \"to\" has a placeholder that \"from\" lacks");
  EXPECT_EQ(map_refusal(R"([{"from": "a.{i}", "to": "{i*}"}])"),
            "x.json: rule 1: \"to\" has a placeholder that \"from\" lacks");
  EXPECT_EQ(map_refusal(R"([{"from": "a", "to": "b", "reshape": true}])"),
            "x.json: rule 1: reshape: expected \"ones\"");
  EXPECT_EQ(map_refusal(R"([{"from": "a..b", "to": "b"}])"),
            "x.json: rule 1: pattern \"a..b\": a part between dots is empty");
  EXPECT_EQ(map_refusal("[]", R"("models":{},"metadata":{})"), "x.json: models: expected one at least");
  EXPECT_EQ(map_refusal("[]", R"("models":{"m":1},"metadata":{})"),
            "x.json: models: \"m\": expected an object");
  EXPECT_EQ(map_refusal("[]", R"("models":{"m":{"k":[1]}},"metadata":{})"),
            "x.json: models: \"m\": \"k\": expected a text or a list of texts");
  EXPECT_EQ(map_refusal("[]", R"("models":{"m":{}})"), "x.json: metadata: expected an object");
  EXPECT_EQ(map_refusal("[]", R"("models":{"m":{}},"metadata":{},"more":1)"), "x.json: \"more\" is unknown");
}

TEST(NameMap, TheProgramCarriesOneForEveryModel) {
  std::set<std::string> names;
  for (const NameMap& map : name_maps()) {
    for (const std::string& model : map.models()) {
      EXPECT_TRUE(names.insert(model).second) << model << " is in two maps";
      const Metadata metadata = map.metadata(model);
      EXPECT_TRUE(metadata.contains("vesal.task")) << model;
      if (const auto labels = metadata.find("vesal.labels"); labels != metadata.end()) {
        EXPECT_TRUE(nlohmann::json::parse(labels->second).is_array()) << model;
      }
    }
  }
  for (const std::string& model : models::model_names()) {
    EXPECT_TRUE(names.contains(model)) << model << " has no name map";
    EXPECT_FALSE(name_map_of(model).metadata(model).empty()) << model;
  }
  EXPECT_THROW(name_map_of("no-such-model"), UsageError);
}

}  // namespace
}  // namespace vesal::weights
