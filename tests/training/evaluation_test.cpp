// Evaluation: pairing of files, scores of hand-made label maps, the rules for empty regions and failures, and
// the form of what is written.
#include "training/evaluation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>
#include <sstream>

#include "imaging/nifti.hpp"
#include "training/interrupted.hpp"
#include "training_fixture.hpp"

namespace vesal::training {
namespace {

namespace fs = std::filesystem;
using imaging::LabelMap;
using imaging::Region;
using Json = nlohmann::ordered_json;

// A 10 x 8 x 6 map at 2 x 1 x 1.5 mm whose first `count` voxels along x of row (0, 0), (0, 1), ... have
// `label`.
LabelMap make_map(uint8_t label, int64_t begin, int64_t end) {
  LabelMap map(imaging::make_geometry({10, 8, 6}, {2, 1, 1.5}));
  for (int64_t i = begin; i < end; ++i) {
    map.data[static_cast<size_t>(i)] = label;
  }
  return map;
}

void write_map(const fs::path& path, const LabelMap& map) {
  fs::create_directories(path.parent_path());
  imaging::write_like(path, map, imaging::make_nifti_header(map.geometry, "LPS"));
}

class EvaluationTest : public TrainingTest {
 protected:
  void SetUp() override {
    TrainingTest::SetUp();
    labels_ = folder_ / "labels";
    predictions_ = folder_ / "predictions";
  }
  fs::path labels_;
  fs::path predictions_;
};

TEST_F(EvaluationTest, FindsLabelsInFoldersAndFiles) {
  const LabelMap map = make_map(1, 0, 4);
  write_map(labels_ / "b" / "b-seg.nii.gz", map);
  write_map(labels_ / "b" / "b-t1n.nii.gz", map);
  write_map(labels_ / "a" / "BraTS_a_seg.nii", map);
  write_map(labels_ / "c.nii.gz", map);
  const std::vector<NamedFile> found = find_label_files(labels_);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].name, "a");
  EXPECT_EQ(found[1].name, "b");
  EXPECT_EQ(found[1].path.filename(), "b-seg.nii.gz");
  EXPECT_EQ(found[2].name, "c");
  // One case's own folder: images beside the seg file are no labels.
  const std::vector<NamedFile> single = find_label_files(labels_ / "b");
  ASSERT_EQ(single.size(), 1u);
  EXPECT_EQ(single[0].name, "b");
  // A plain seg.nii.gz is named after its folder.
  write_map(labels_ / "d" / "seg.nii.gz", map);
  EXPECT_EQ(find_label_files(labels_ / "d").front().name, "d");
}

TEST_F(EvaluationTest, RefusesMissingEmptyAndDoubleLabels) {
  EXPECT_THROW(find_label_files(labels_), IoError);
  fs::create_directories(labels_);
  EXPECT_THROW(find_label_files(labels_), FormatError);
  write_map(labels_ / "a.nii.gz", make_map(1, 0, 4));
  write_map(labels_ / "a.nii", make_map(1, 0, 4));
  EXPECT_THROW(find_label_files(labels_), FormatError);
  EXPECT_THROW(find_prediction_files(folder_ / "none"), IoError);
}

TEST_F(EvaluationTest, ScoresKnownOverlap) {
  // ET: reference voxels 0..7, prediction 4..11: 4 common, Dice 2 * 4 / 16.
  write_map(labels_ / "a.nii.gz", make_map(3, 0, 8));
  write_map(predictions_ / "a.nii.gz", make_map(3, 4, 12));
  const Evaluation evaluation = evaluate(predictions_, labels_, {});
  ASSERT_EQ(evaluation.cases.size(), 1u);
  for (const Region region : imaging::kRegions) {
    const imaging::MaskMetrics& m = evaluation.cases[0].regions[static_cast<size_t>(region)];
    EXPECT_DOUBLE_EQ(m.dice, 0.5);
    EXPECT_DOUBLE_EQ(m.iou, 4.0 / 12.0);
    EXPECT_EQ(m.tp, 4);
    EXPECT_EQ(m.fp, 4);
    EXPECT_EQ(m.fn, 4);
    EXPECT_EQ(m.tn, 480 - 12);
    EXPECT_NEAR(m.reference_ml, 8 * 3.0 / 1000.0, 1e-6);
  }
  EXPECT_EQ(evaluation.failures(), 0);
}

// NCR in the reference, ET in the prediction: TC and WT agree, ET is empty in the reference only.
TEST_F(EvaluationTest, EmptyRegionsFollowTheStatedRule) {
  write_map(labels_ / "one.nii.gz", make_map(1, 0, 8));
  write_map(predictions_ / "one.nii.gz", make_map(3, 0, 8));
  write_map(labels_ / "both.nii.gz", make_map(2, 0, 8));
  write_map(predictions_ / "both.nii.gz", make_map(2, 0, 8));
  const Evaluation evaluation = evaluate(predictions_, labels_, {});
  ASSERT_EQ(evaluation.cases.size(), 2u);
  EXPECT_DOUBLE_EQ(evaluation.mean(Region::wt).dice, 1.0);
  EXPECT_DOUBLE_EQ(evaluation.mean(Region::tc).dice, 1.0);  // both empty in "both"
  EXPECT_DOUBLE_EQ(evaluation.mean(Region::et).dice, 0.5);
  EXPECT_DOUBLE_EQ(evaluation.mean(Region::et).hd95_mm, imaging::kHd95OneEmpty / 2);
  EXPECT_EQ(evaluation.mean(Region::et).both_empty, 1);
  EXPECT_EQ(evaluation.mean(Region::et).one_empty, 1);
  std::ostringstream table;
  print_table(table, evaluation);
  EXPECT_NE(table.str().find("="), std::string::npos);
  EXPECT_NE(table.str().find("!"), std::string::npos);
  // Dice, IoU and HD95 of each region, then volumes.
  EXPECT_NE(table.str().find("one              1.000  1.000  0.000!  1.000  1.000  0.000!"),
            std::string::npos)
      << table.str();
}

TEST_F(EvaluationTest, FailuresAreNamedAndCount) {
  write_map(labels_ / "good.nii.gz", make_map(3, 0, 8));
  write_map(predictions_ / "good.nii.gz", make_map(3, 0, 8));
  write_map(labels_ / "missing.nii.gz", make_map(3, 0, 8));
  write_map(labels_ / "grid.nii.gz", make_map(3, 0, 8));
  write_map(predictions_ / "grid.nii.gz", LabelMap(imaging::make_geometry({10, 8, 5}, {2, 1, 1.5})));
  write_map(labels_ / "scheme.nii.gz", make_map(3, 0, 8));
  write_map(predictions_ / "scheme.nii.gz", make_map(9, 0, 8));
  write_map(predictions_ / "extra.nii.gz", make_map(3, 0, 8));
  const Evaluation evaluation = evaluate(predictions_, labels_, {});
  ASSERT_EQ(evaluation.cases.size(), 4u);
  EXPECT_EQ(evaluation.failures(), 3);
  EXPECT_DOUBLE_EQ(evaluation.mean(Region::wt).dice, 0.25);
  EXPECT_DOUBLE_EQ(evaluation.mean(Region::wt).hd95_mm, imaging::kHd95OneEmpty * 3 / 4);
  EXPECT_DOUBLE_EQ(evaluation.mean_of_scored(Region::wt).dice, 1.0);
  ASSERT_EQ(evaluation.without_label.size(), 1u);
  EXPECT_EQ(evaluation.without_label[0], "extra");
  for (const CaseScore& score : evaluation.cases) {
    EXPECT_EQ(score.failed(), score.name != "good") << score.name;
    EXPECT_EQ(score.failure.find('\n'), std::string::npos);
    if (score.failed()) {
      EXPECT_NE(score.failure.find(score.name), std::string::npos) << score.failure;
    }
  }
  std::ostringstream table;
  print_table(table, evaluation);
  EXPECT_NE(table.str().find("missing.nii.gz"), std::string::npos);
  EXPECT_NE(table.str().find("extra"), std::string::npos);

  const Json summary = Json::parse(summary_json(evaluation));
  EXPECT_EQ(summary.at("metric_per_case").size(), 4u);
  EXPECT_EQ(summary.at("vesal").at("failures").size(), 3u);
  EXPECT_DOUBLE_EQ(summary.at("mean").at("(1, 2, 3)").at("Dice").get<double>(), 0.25);
  EXPECT_DOUBLE_EQ(summary.at("foreground_mean").at("Dice").get<double>(), 0.25);

  // With none scored there is no mean of the scored, least of all a distance of 0.
  fs::remove(labels_ / "good.nii.gz");
  const Evaluation none = evaluate(predictions_, labels_, {});
  std::ostringstream bare;
  print_table(bare, none);
  EXPECT_NE(bare.str().find("mean of 3"), std::string::npos) << bare.str();
  EXPECT_EQ(bare.str().find("scored only"), std::string::npos) << bare.str();
  const Json failed = Json::parse(summary_json(none));
  EXPECT_TRUE(failed.at("vesal").at("mean_of_scored").is_null());
  EXPECT_TRUE(failed.at("mean").at("3").at("TP").is_null());
  EXPECT_TRUE(failed.at("foreground_mean").at("TP").is_null());
  EXPECT_DOUBLE_EQ(failed.at("foreground_mean").at("Dice").get<double>(), 0.0);
  write_map(labels_ / "good.nii.gz", make_map(3, 0, 8));

  EvaluationSettings predicted_only;
  predicted_only.only_predicted = true;
  const Evaluation some = evaluate(predictions_, labels_, predicted_only);
  EXPECT_EQ(some.cases.size(), 3u);
  EXPECT_EQ(some.left_out, 1);
}

TEST_F(EvaluationTest, SummaryHasTheFormOfNnunet) {
  write_map(labels_ / "a.nii.gz", make_map(4, 0, 8));  // ET of 2021
  write_map(predictions_ / "a.nii.gz", make_map(4, 2, 10));
  EvaluationSettings settings;
  settings.label_scheme = settings.prediction_scheme = imaging::LabelScheme::brats2021;
  const Json summary = Json::parse(summary_json(evaluate(predictions_, labels_, settings)));
  ASSERT_TRUE(summary.contains("mean") && summary.contains("foreground_mean"));
  const Json& one = summary.at("metric_per_case").at(0);
  EXPECT_EQ(fs::path(one.at("reference_file").get<std::string>()).filename(), "a.nii.gz");
  for (const char* const region : {"(1, 2, 4)", "(1, 4)", "4"}) {
    const Json& metrics = one.at("metrics").at(region);
    EXPECT_DOUBLE_EQ(metrics.at("Dice").get<double>(), 0.75);
    EXPECT_EQ(metrics.at("TP").get<int>() + metrics.at("FN").get<int>(), metrics.at("n_ref").get<int>());
    EXPECT_EQ(metrics.at("n_pred").get<int>(), 8);
    EXPECT_DOUBLE_EQ(summary.at("mean").at(region).at("IoU").get<double>(), 0.6);
  }
  EXPECT_NE(summary.at("vesal").at("rule_for_empty_regions").get<std::string>().find("373.13"),
            std::string::npos);
}

TEST_F(EvaluationTest, TableOfValuesHasALineForEachCaseAndRegion) {
  write_map(labels_ / "a,b.nii.gz", make_map(3, 0, 8));
  write_map(predictions_ / "a,b.nii.gz", make_map(3, 4, 12));
  write_map(labels_ / "c.nii.gz", make_map(3, 0, 8));
  std::istringstream csv(metrics_csv(evaluate(predictions_, labels_, {})));
  std::vector<std::string> lines;
  for (std::string line; std::getline(csv, line);) {
    lines.push_back(line);
  }
  ASSERT_EQ(lines.size(), 7u);
  EXPECT_EQ(lines[1].rfind("\"a,b\",WT,0.5,", 0), 0u) << lines[1];
  EXPECT_EQ(lines[4].rfind("c,WT,0,0,373.13,", 0), 0u) << lines[4];
  // As many fields as the header has, the last one quoted because it holds a comma.
  const auto quote = lines[4].find('"');
  ASSERT_NE(quote, std::string::npos);
  EXPECT_EQ(std::count(lines[4].begin(), lines[4].begin() + static_cast<std::ptrdiff_t>(quote), ','),
            std::count(lines[0].begin(), lines[0].end(), ','));
}

TEST_F(EvaluationTest, ComparesFolders) {
  write_map(labels_ / "a.nii.gz", make_map(3, 0, 8));
  write_map(folder_ / "all" / "a.nii.gz", make_map(3, 0, 8));
  write_map(folder_ / "some" / "a.nii.gz", make_map(3, 4, 12));
  std::ostringstream out;
  print_comparison(out, {evaluate(folder_ / "all", labels_, {}), evaluate(folder_ / "some", labels_, {})});
  EXPECT_NE(out.str().find("1.000"), std::string::npos) << out.str();
  EXPECT_NE(out.str().find("0.500"), std::string::npos) << out.str();
  EXPECT_NE(out.str().find("mean of 1"), std::string::npos) << out.str();
}

TEST_F(EvaluationTest, NothingToScoreAndInterruptionAreErrors) {
  write_map(labels_ / "a.nii.gz", make_map(3, 0, 8));
  fs::create_directories(predictions_);
  EXPECT_TRUE(holds(message_of<FormatError>([&] { evaluate(predictions_, labels_, {}); }),
                    predictions_.string() + ": found no label map, expected CASE.nii.gz"));
  write_map(predictions_ / "b.nii.gz", make_map(3, 0, 8));
  EvaluationSettings predicted_only;
  predicted_only.only_predicted = true;
  EXPECT_THROW(evaluate(predictions_, labels_, predicted_only), FormatError);
  const std::atomic<bool> stop{true};
  EvaluationSettings stopped;
  stopped.stop = &stop;
  EXPECT_THROW(evaluate(predictions_, labels_, stopped), InterruptedError);
}

TEST_F(EvaluationTest, TextFilesAreWrittenWholeAndNotTwice) {
  const fs::path path = folder_ / "text";
  write_text_file(path, "first", false);
  EXPECT_THROW(write_text_file(path, "second", false), IoError);
  EXPECT_EQ(slurp(path), "first");
  write_text_file(path, "second", true);
  EXPECT_EQ(slurp(path), "second");
}

}  // namespace
}  // namespace vesal::training
