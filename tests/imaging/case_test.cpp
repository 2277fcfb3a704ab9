// Names of modalities and files, label schemes, regions, and the checks of load_case.
#include "imaging/case.hpp"

#include <algorithm>
#include <cctype>
#include <limits>

#include "support.hpp"

namespace vesal::imaging {
namespace {

void touch(const std::filesystem::path& path) {
  std::filesystem::create_directories(path.parent_path());
  write_bytes(path, {'x'});
}

TEST(Modality, Synonyms) {
  const std::vector<std::pair<Modality, std::vector<std::string>>> table{
      {Modality::t1n, {"t1n", "t1", "T1", "t1w", "T1native"}},
      {Modality::t1c, {"t1c", "t1ce", "T1CE", "t1gd", "t1ct", "ct1"}},
      {Modality::t2w, {"t2w", "t2", "T2W"}},
      {Modality::t2f, {"t2f", "flair", "FLAIR", "fla", "t2flair"}}};
  for (const auto& [modality, names] : table) {
    for (const auto& name : names) {
      EXPECT_EQ(parse_modality(name), modality) << name;
    }
    EXPECT_EQ(parse_modality(name_of(modality)), modality);
  }
  expect_error<UsageError>([] { parse_modality("adc"); }, {"adc", "t1n", "t1ce", "t2w", "flair"});
}

TEST(Modality, Masks) {
  EXPECT_EQ(parse_modality_mask("flair, t1"), (ModalityMask{true, false, false, true}));
  EXPECT_EQ(to_string(ModalityMask{true, false, false, true}), "t1n,t2f");
  EXPECT_EQ(count(kAllModalities), 4);
  expect_error<UsageError>([] { parse_modality_mask("t1,t1n"); }, {"t1n is named twice"});
  expect_error<UsageError>([] { parse_modality_mask(""); }, {"modality \"\""});
  expect_error<UsageError>([] { parse_modality_mask("t1,"); }, {"modality \"\""});
}

TEST(FindCase, NamesOfAllYears) {
  const TemporaryFolder folder;
  const std::vector<std::vector<std::string>> layouts{
      {"BraTS-GLI-00000-000-t1n.nii.gz", "BraTS-GLI-00000-000-t1c.nii.gz", "BraTS-GLI-00000-000-t2w.nii.gz",
       "BraTS-GLI-00000-000-t2f.nii.gz", "BraTS-GLI-00000-000-seg.nii.gz"},
      {"BraTS2021_00000_t1.nii.gz", "BraTS2021_00000_t1ce.nii.gz", "BraTS2021_00000_t2.nii.gz",
       "BraTS2021_00000_flair.nii.gz", "BraTS2021_00000_seg.nii.gz"},
      {"BraTS20_Training_001_t1.nii", "BraTS20_Training_001_t1ce.nii", "BraTS20_Training_001_t2.nii",
       "BraTS20_Training_001_flair.nii", "BraTS20_Training_001_seg.nii"},
      {"T1.nii.gz", "T1Gd.nii.gz", "t2.nii", "FLAIR.nii.gz", "seg.nii.gz"}};
  for (size_t i = 0; i < layouts.size(); ++i) {
    const auto home = folder / concat("case", i);
    for (const auto& name : layouts[i]) {
      touch(home / name);
    }
    touch(home / "readme.txt");
    touch(home / "case_brainmask.nii.gz");
    touch(home / "._case_t1.nii.gz");  // what a Mac leaves on a foreign disk
    const CaseFiles files = find_case(home);
    EXPECT_EQ(files.name, concat("case", i));
    for (size_t m = 0; m < 4; ++m) {
      EXPECT_EQ(files.images[m].filename(), layouts[i][m]);
    }
    EXPECT_EQ(files.labels.filename(), layouts[i][4]);
    EXPECT_EQ(find_case(home / "").name, files.name) << "with a slash at the end";
  }
  const auto cases = list_cases(folder.path());
  ASSERT_EQ(cases.size(), layouts.size());
  EXPECT_EQ(cases[0].name, "case0");
  EXPECT_EQ(cases[3].name, "case3");
  EXPECT_EQ(list_cases(folder / "case2").size(), 1u) << "a case's own folder is a list of one";
}

TEST(FindCase, Errors) {
  const TemporaryFolder folder;
  touch(folder / "two/a_t1.nii.gz");
  touch(folder / "two/a-T1n.nii.gz");
  expect_error<FormatError>([&] { find_case(folder / "two"); }, {"a-T1n.nii.gz", "a_t1.nii.gz", "t1n"});
  touch(folder / "segs/a_t1.nii.gz");
  touch(folder / "segs/a_seg.nii.gz");
  touch(folder / "segs/b_seg.nii.gz");
  expect_error<FormatError>([&] { find_case(folder / "segs"); }, {"a_seg.nii.gz", "b_seg.nii.gz"});
  expect_error<IoError>([&] { find_case(folder / "missing"); },
                        {"missing", "no such folder", "expected files like"});
  expect_error<IoError>([&] { list_cases(folder / "missing"); }, {"missing", "no such folder"});
  expect_error<IoError>([&] { list_cases(folder / "two/a_t1.nii.gz"); }, {"is not a folder"});
  std::filesystem::create_directory(folder / "empty");
  expect_error<FormatError>([&] { find_case(folder / "empty"); },
                            {"no image of a known modality", "t1n.nii.gz"});
  expect_error<FormatError>([&] { list_cases(folder / "empty"); },
                            {"no case found among 0 subfolders", "t1n.nii.gz"});
}

// A bad case stops nobody and is not overlooked.
TEST(ListCases, TellsWhatIsWrongWithACase) {
  const TemporaryFolder folder;
  touch(folder / "a/a_t1.nii.gz");
  touch(folder / "b/b_flair.nii.gz");
  touch(folder / "b/b-t2f.nii.gz");
  touch(folder / "c/c_t1post.nii.gz");
  touch(folder / "d/d_t2.nii.gz");
  touch(folder / "notes/readme.txt");
  const auto cases = list_cases(folder.path());
  ASSERT_EQ(cases.size(), 4u) << "a folder without NIfTI files is no case";
  require_usable(cases[0]);
  expect_error<FormatError>([&] { require_usable(cases[1]); }, {"b-t2f.nii.gz", "b_flair.nii.gz", "t2f"});
  expect_error<FormatError>([&] { load_case(cases[1]); }, {"b-t2f.nii.gz"});
  expect_error<FormatError>([&] { require_usable(cases[2]); }, {"/c:", "no image of a known modality"});
  require_usable(cases[3]);
}

// Four images and labels on one grid, in different storage orders.
class CaseOnDisk : public testing::Test {
 protected:
  void SetUp() override {
    geometry_ = make_geometry({6, 7, 8}, {1, 1, 2});
    const char* orientations[] = {"LPS", "RAS", "PIR", "LIA"};
    for (size_t m = 0; m < 4; ++m) {
      images_[m] = random_image(geometry_, m, 1, 100);
      write_like(path(name_of(kModalities[m])), images_[m], make_nifti_header(geometry_, orientations[m]));
    }
    labels_ = LabelMap(geometry_);
    for (size_t i = 0; i < labels_.data.size(); ++i) {
      labels_.data[i] = static_cast<uint8_t>(i % 4);
    }
    write_like(path("seg"), labels_, make_nifti_header(geometry_, "LPS"));
  }
  std::filesystem::path path(std::string_view what) const { return folder_ / concat("c-", what, ".nii.gz"); }

  TemporaryFolder folder_;
  Geometry geometry_;
  std::array<Image, 4> images_;
  LabelMap labels_;
};

TEST_F(CaseOnDisk, AllStorageOrdersMeetOnOneGrid) {
  const Case loaded = load_case(find_case(folder_.path()));
  EXPECT_EQ(loaded.present, kAllModalities);
  for (size_t m = 0; m < 4; ++m) {
    EXPECT_EQ(loaded.images[m].data, images_[m].data) << m;
  }
  EXPECT_EQ(loaded.labels.data, labels_.data);
  EXPECT_EQ(loaded.header.orientation, "LPS");
}

TEST_F(CaseOnDisk, Subsets) {
  LoadOptions options;
  options.use = parse_modality_mask("t1c,t2f");
  options.read_labels = false;
  const Case loaded = load_case(find_case(folder_.path()), options);
  EXPECT_EQ(loaded.present, (ModalityMask{false, true, false, true}));
  EXPECT_TRUE(loaded.images[0].empty());
  EXPECT_TRUE(loaded.labels.empty());
  EXPECT_EQ(loaded.header.orientation, "RAS") << "outputs are written like the first present modality";
  std::filesystem::remove(path("t1c"));
  std::filesystem::remove(path("t2f"));
  expect_error<UsageError>([&] { load_case(find_case(folder_.path()), options); },
                           {"none of the wanted", "t1c,t2f", "found t1n,t2w"});
}

TEST_F(CaseOnDisk, GridsMustAgree) {
  const auto files = find_case(folder_.path());
  const Geometry larger = make_geometry({6, 7, 9}, {1, 1, 2});
  write_like(path("t2w"), random_image(larger, 1), make_nifti_header(larger, "LPS"));
  expect_error<FormatError>([&] { load_case(files); },
                            {"c-t2w.nii.gz", "c-t1n.nii.gz", "size 6 x 7 x 9 against 6 x 7 x 8"});
  Geometry moved = geometry_;
  moved.affine[2][3] += 3;
  write_like(path("t2w"), images_[2], make_nifti_header(moved, "LPS"));
  expect_error<FormatError>([&] { load_case(files); }, {"c-t2w.nii.gz", "c-t1n.nii.gz", "3 mm apart"});
  write_like(path("t2w"), images_[2], make_nifti_header(geometry_, "LPS"));
  write_like(path("seg"), labels_, make_nifti_header(moved, "LPS"));
  expect_error<FormatError>([&] { load_case(files); }, {"c-seg.nii.gz", "labels on the images' grid"});
}

TEST_F(CaseOnDisk, VoxelsMustMakeSense) {
  const auto files = find_case(folder_.path());
  Image broken = images_[1];
  broken.data[5] = std::numeric_limits<float>::quiet_NaN();
  write_like(path("t1c"), broken, make_nifti_header(geometry_, "LPS"));
  expect_error<FormatError>([&] { load_case(files); }, {"c-t1c.nii.gz", "NaN"});
  write_like(path("t1c"), Image(geometry_), make_nifti_header(geometry_, "LPS"));
  expect_error<FormatError>([&] { load_case(files); }, {"c-t1c.nii.gz", "all 336 voxels are 0"});
}

TEST(LabelScheme, BothWays) {
  Image values(make_geometry({2, 2, 2}, {1, 1, 1}));
  values.data = {0, 1, 2, 4, 4, 2, 1, 0};
  const LabelMap labels = labels_from_scheme(values, LabelScheme::brats2021, "s.nii");
  EXPECT_EQ(labels.data, (std::vector<uint8_t>{0, 1, 2, 3, 3, 2, 1, 0}));
  EXPECT_EQ(labels_to_scheme(labels, LabelScheme::brats2021).data,
            (std::vector<uint8_t>{0, 1, 2, 4, 4, 2, 1, 0}));
  EXPECT_EQ(labels_to_scheme(labels, LabelScheme::brats2023).data, labels.data);
  EXPECT_EQ(parse_label_scheme("brats2021"), LabelScheme::brats2021);
  EXPECT_EQ(parse_label_scheme("brats2023"), LabelScheme::brats2023);
  expect_error<UsageError>([] { parse_label_scheme("brats2024"); }, {"brats2024", "brats2021", "brats2023"});
}

TEST(LabelScheme, NothingIsGuessed) {
  Image values(make_geometry({2, 2, 2}, {1, 1, 1}));
  values.data = {0, 1, 2, 4, 4, 2, 1, 0};
  expect_error<FormatError>(
      [&] { labels_from_scheme(values, LabelScheme::brats2023, "s.nii"); },
      {"s.nii", "label 4", "2 voxels", "0, 1, 2, 3", "all labels fit scheme brats2021"});
  values.data[0] = 3;
  try {
    labels_from_scheme(values, LabelScheme::brats2023, "s.nii");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(std::string(error.what()).find("fit"), std::string::npos)
        << "3 and 4 together fit neither scheme";
  }
  values.data = {0, 0.5f, 1, 1, 1, 1, 1, 1};
  expect_error<FormatError>([&] { labels_from_scheme(values, LabelScheme::brats2023, "s.nii"); },
                            {"label 0.5", "1 voxels"});
  values.data[1] = std::numeric_limits<float>::quiet_NaN();
  expect_error<FormatError>([&] { labels_from_scheme(values, LabelScheme::brats2023, "s.nii"); }, {"NaN"});
  LabelMap bad(values.geometry, uint8_t{4});
  expect_error<FormatError>([&] { labels_to_scheme(bad, LabelScheme::brats2023); }, {"label 4"});
}

TEST(Regions, MembershipAndPainting) {
  const bool expected[4][3] = {
      {false, false, false}, {true, true, false}, {true, false, false}, {true, true, true}};
  LabelMap labels(make_geometry({4, 1, 1}, {1, 1, 1}));
  labels.data = {0, 1, 2, 3};
  for (const Region region : kRegions) {
    const LabelMap mask = region_mask(labels, region);
    for (size_t label = 0; label < 4; ++label) {
      EXPECT_EQ(mask.data[label] != 0, expected[label][static_cast<int>(region)]) << label << name_of(region);
    }
  }
  // Each label's own regions paint it back.
  std::vector<float> wt, tc, et;
  for (size_t label = 0; label < 4; ++label) {
    wt.push_back(expected[label][0]);
    tc.push_back(expected[label][1]);
    et.push_back(expected[label][2]);
  }
  std::vector<uint8_t> painted(4, 9);
  regions_to_labels(wt, tc, et, painted);
  EXPECT_EQ(painted, labels.data);
  EXPECT_EQ(label_of_regions(0.5f, 0.49f, 0.49f), kLabelEd) << "the threshold itself is inside";
  EXPECT_EQ(label_of_regions(0, 0, 1), kLabelEt) << "later regions paint over earlier ones";
  EXPECT_EQ(label_of_regions(0.6f, 0.6f, 0.6f, 0.7f), 0);
  expect_error<ShapeError>([&] { regions_to_labels(wt, tc, std::span(et).first(3), painted); },
                           {"3 probabilities"});
}

TEST(CaseRealData, Brats2021) {
  const auto folder = data_folder() / "brats2021";
  NEED_FILE(folder);
  const auto cases = list_cases(folder);
  EXPECT_EQ(cases.size(), 8u);
  EXPECT_EQ(cases[0].name, "BraTS2021_01477");
  LoadOptions options;
  options.scheme = LabelScheme::brats2021;
  options.use = parse_modality_mask("t2f");
  const Case loaded = load_case(cases[1], options);
  EXPECT_EQ(loaded.geometry.size, (Size3{240, 240, 155}));
  EXPECT_EQ(loaded.header.orientation, "LPS");
  options.scheme = LabelScheme::brats2023;
  expect_error<FormatError>([&] { load_case(cases[1], options); },
                            {"_seg.nii.gz", "label 4", "fit scheme brats2021"});
}

TEST(CaseRealData, ModalitiesOnDifferentGridsAreNamed) {
  const auto folder = data_folder() / "isles22";
  NEED_FILE(folder);
  CaseFiles files;
  files.name = "isles";
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    std::string name = entry.path().filename().string();
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (name.ends_with("flair.nii.gz")) {
      files.images[3] = entry.path();
    } else if (name.ends_with("dwi.nii.gz")) {
      files.images[2] = entry.path();
    }
  }
  ASSERT_EQ(count(files.present()), 2);
  expect_error<FormatError>([&] { load_case(files); }, {"not on the grid of", "112 x 112 x 73", "flair"});
}

}  // namespace
}  // namespace vesal::imaging
