// Splits by fraction and by file, and reading cases with an error for each that cannot be used.
#include "training/data_set.hpp"

#include <set>

#include "base/error.hpp"
#include "tests/training/training_fixture.hpp"
#include "training/interrupted.hpp"

namespace vesal::training {
namespace {

std::vector<std::string> names(int count) {
  std::vector<std::string> result;
  for (int i = 0; i < count; ++i) {
    result.push_back("case" + std::to_string(100 + i));
  }
  return result;
}

using DataSetTest = TrainingTest;

TEST_F(DataSetTest, SplitSizes) {
  const auto validation = [](int count, double fraction) {
    return split_by_fraction(names(count), fraction, 1).validation.size();
  };
  EXPECT_EQ(validation(10, 0.0), 0u);
  EXPECT_EQ(validation(10, 0.2), 2u);
  EXPECT_EQ(validation(10, 0.25), 3u);  // rounded half up
  EXPECT_EQ(validation(10, 0.24), 2u);
  EXPECT_EQ(validation(10, 0.001), 1u);  // at least one
  EXPECT_EQ(validation(10, 0.999), 9u);  // never all
  EXPECT_EQ(validation(2, 0.1), 1u);
  EXPECT_EQ(validation(2, 0.9), 1u);
  EXPECT_EQ(validation(1, 0.5), 0u);
  EXPECT_THROW(split_by_fraction(names(3), 1.0, 0), UsageError);
  EXPECT_THROW(split_by_fraction(names(3), -0.1, 0), UsageError);
}

TEST_F(DataSetTest, SplitIsAPartitionThatDependsOnNamesAndSeedOnly) {
  const std::vector<std::string> all = names(20);
  const Split split = split_by_fraction(all, 0.3, 7);
  std::set<std::string> seen(split.train.begin(), split.train.end());
  seen.insert(split.validation.begin(), split.validation.end());
  EXPECT_EQ(split.train.size() + split.validation.size(), 20u);
  EXPECT_EQ(seen, std::set<std::string>(all.begin(), all.end()));
  std::vector<std::string> reversed(all.rbegin(), all.rend());
  EXPECT_EQ(split_by_fraction(reversed, 0.3, 7), split);
  EXPECT_NE(split_by_fraction(all, 0.3, 8), split);
}

TEST_F(DataSetTest, SplitFiles) {
  const auto file = folder_ / "split.json";
  spit(file, R"({"train": ["a", "b"], "val": ["c"]})");
  EXPECT_EQ(read_split_file(file), (Split{{"a", "b"}, {"c"}}));
  spit(file, R"([{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}])");
  EXPECT_EQ(read_split_file(file), (Split{{"a"}, {"b"}}));
  spit(file, R"({"train": ["a"], "validation": ["b"]})");
  EXPECT_EQ(read_split_file(file), (Split{{"a"}, {"b"}}));
  spit(file, R"({"train": ["a"]})");
  EXPECT_EQ(read_split_file(file), (Split{{"a"}, {}}));
}

TEST_F(DataSetTest, BadSplitFilesAreNamed) {
  const auto file = folder_ / "split.json";
  for (const auto& [text, part] : std::vector<std::pair<std::string, std::string>>{
           {"{", "not valid JSON"},
           {"", "not valid JSON"},
           {"[]", "list of folds is empty"},
           {"3", "expected {\"train\""},
           {R"({"val": []})", "expected {\"train\""},
           {R"({"train": "a"})", "not a list"},
           {R"({"train": [1]})", "holds number"},
           {R"({"train": ["a", "a"]})", "the case a is listed twice"},
           {R"({"train": ["a"], "val": ["a"]})", "the case a is listed twice"}}) {
    spit(file, text);
    const std::string line = message_of<FormatError>([&] { read_split_file(file); });
    EXPECT_TRUE(holds(line, part) && holds(line, "split.json")) << text << " gave " << line;
  }
  message_of<IoError>([&] { read_split_file(folder_ / "absent.json"); });
}

TEST_F(DataSetTest, CasesMustExist) {
  require_cases({{"a"}, {"b"}}, {"a", "b", "c"}, "split.json");
  EXPECT_TRUE(holds(message_of<FormatError>([] {
                      require_cases({{"a"}, {"z"}}, {"a", "b"}, "split.json");
                    }),
                    "split.json: the case z is not among the 2 cases"));
  EXPECT_TRUE(holds(message_of<FormatError>([] {
                      require_cases({{}, {"a"}}, {"a"}, "data");
                    }),
                    "no case is left"));
}

TEST_F(DataSetTest, ReadsTheSplitsCasesInItsOrder) {
  const auto data = phantoms(3, 32);
  const auto cases = imaging::list_cases(data);
  ASSERT_EQ(cases.size(), 3u);
  std::vector<std::string> read;
  const DataSet set = load_data_set(
      cases, {{cases[2].name, cases[0].name}, {cases[1].name}},
      {.spacing_mm = {6, 6, 6}, .progress = [&](int64_t done, int64_t total, const std::string& name) {
         EXPECT_EQ(done, static_cast<int64_t>(read.size()) + 1);
         EXPECT_EQ(total, 3);
         read.push_back(name);
       }});
  EXPECT_EQ(read, (std::vector<std::string>{cases[2].name, cases[0].name, cases[1].name}));
  ASSERT_EQ(set.train.size(), 2u);
  EXPECT_EQ(set.train[0].name, cases[2].name);
  ASSERT_EQ(set.validation.size(), 1u);
  EXPECT_EQ(set.modalities(), imaging::kAllModalities);
  int64_t voxels = 0;
  for (const auto* list : {&set.train, &set.validation}) {
    for (const auto& prepared : *list) {
      EXPECT_EQ(prepared.labels.size(), prepared.size());
      voxels += prepared.size().voxels();
    }
  }
  EXPECT_EQ(set.bytes(), voxels * (4 * 4 + 2));
}

TEST_F(DataSetTest, ACaseThatCannotBeUsedStopsEverythingByName) {
  const auto data = phantoms(2, 32);
  const auto cases = imaging::list_cases(data);
  const Split split{{cases[0].name, cases[1].name}, {}};
  const auto labels = cases[1].labels;

  const std::string whole = slurp(cases[1].images[0]);
  spit(cases[1].images[0], whole.substr(0, whole.size() / 2));
  EXPECT_TRUE(holds(message_of<Error>([&] { load_data_set(cases, split, {}); }), cases[1].name));
  spit(cases[1].images[0], whole);

  EXPECT_TRUE(holds(message_of<FormatError>(
                        [&] { load_data_set(cases, split, {.scheme = imaging::LabelScheme::brats2021}); }),
                    cases[0].name));

  const std::filesystem::path second = cases[1].images[0].parent_path() / "again_t1.nii.gz";
  spit(second, whole);
  EXPECT_TRUE(holds(message_of<FormatError>([&] { load_data_set(imaging::list_cases(data), split, {}); }),
                    "again_t1.nii.gz"));
  std::filesystem::remove(second);

  std::filesystem::remove(labels);
  EXPECT_TRUE(holds(message_of<FormatError>([&] { load_data_set(imaging::list_cases(data), split, {}); }),
                    cases[1].name + ": has no label file"));
}

TEST_F(DataSetTest, StopsWhenAsked) {
  const auto data = phantoms(1, 32);
  const auto cases = imaging::list_cases(data);
  const std::atomic<bool> stop{true};
  message_of<InterruptedError>([&] { load_data_set(cases, {{cases[0].name}, {}}, {.stop = &stop}); });
}

}  // namespace
}  // namespace vesal::training
