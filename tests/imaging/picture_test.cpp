// Pixels, PNG files, the convention of the montage, and charts.
#include "imaging/picture.hpp"

#include <png.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "imaging/phantom.hpp"
#include "support.hpp"

namespace vesal::imaging {
namespace {

int64_t pixels_of(const Canvas& canvas, Color color) {
  int64_t count = 0;
  for (int y = 0; y < canvas.height(); ++y) {
    for (int x = 0; x < canvas.width(); ++x) {
      count += canvas.get(x, y) == color;
    }
  }
  return count;
}

TEST(Canvas, DrawingIsClipped) {
  Canvas canvas(20, 10, {1, 2, 3});
  canvas.fill(-5, -5, 7, 7, {9, 9, 9});
  EXPECT_EQ(pixels_of(canvas, {9, 9, 9}), 4);
  canvas.line(-100, 5, 100, 5, {200, 0, 0}, 1);
  canvas.text(15, 5, "Wide text", {0, 255, 0}, 3);
  canvas.set(20, 0, {0, 0, 0});
  canvas.set(0, -1, {0, 0, 0});
  EXPECT_EQ(canvas.get(5, 5), (Color{200, 0, 0}));
  EXPECT_EQ(canvas.get(5, 7), (Color{1, 2, 3}));
  canvas.blend(19, 0, {101, 102, 103}, 0.5f);
  EXPECT_EQ(canvas.get(19, 0), (Color{51, 52, 53}));
  expect_error<UsageError>([&] { (void)canvas.get(20, 0); }, {"pixel 20 0"});
  expect_error<UsageError>([] { Canvas(0, 5, {}); }, {"canvas of 0 x 5"});
}

TEST(Canvas, EveryGlyphIsThereAndNoTwoAreAlike) {
  std::set<std::string> glyphs;
  for (char c = 33; c < 127; ++c) {
    Canvas canvas(5, 9, {0, 0, 0});
    canvas.text(0, 0, std::string(1, c), {255, 255, 255});
    EXPECT_GT(pixels_of(canvas, {255, 255, 255}), 1) << c;
    glyphs.emplace(canvas.rgb().begin(), canvas.rgb().end());
  }
  EXPECT_EQ(glyphs.size(), 94u);
  EXPECT_EQ(Canvas::text_width("abc", 2), 34);
  EXPECT_EQ(Canvas::text_width(""), 0);
  Canvas other(6, 8, {0, 0, 0});
  other.text(0, 0, "\xc3", {255, 255, 255});
  EXPECT_EQ(pixels_of(other, {255, 255, 255}), 20) << "a box";
}

TEST(Png, ReadsBackEqual) {
  const TemporaryFolder folder;
  Canvas canvas(33, 17, {10, 20, 30});
  canvas.text(1, 1, "Dice", {250, 240, 0}, 1);
  canvas.line(0, 16, 32, 9, {255, 0, 0}, 2);
  write_png(folder / "a.png", canvas);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  ASSERT_TRUE(png_image_begin_read_from_file(&image, (folder / "a.png").c_str()));
  image.format = PNG_FORMAT_RGB;
  ASSERT_EQ(image.width, 33u);
  ASSERT_EQ(image.height, 17u);
  std::vector<uint8_t> pixels(33 * 17 * 3);
  ASSERT_TRUE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr));
  EXPECT_EQ(pixels, canvas.rgb());
  const auto first = bytes_of(folder / "a.png");
  write_png(folder / "a.png", canvas);
  EXPECT_EQ(bytes_of(folder / "a.png"), first);
  expect_error<IoError>([&] { write_png(folder / "none/a.png", canvas); }, {"cannot be created"});
  EXPECT_EQ(folder.entries(), 1u);
}

// Where a colour shows up on average, as shares of the canvas' width within [left, right) columns.
double mean_column(const Canvas& canvas, Color color, int left, int right, int top) {
  double sum = 0, count = 0;
  for (int y = top; y < canvas.height(); ++y) {
    for (int x = left; x < right; ++x) {
      const Color c = canvas.get(x, y);
      const bool alike =
          std::abs(c.r - color.r) < 12 && std::abs(c.g - color.g) < 12 && std::abs(c.b - color.b) < 12;
      sum += alike ? x : 0;
      count += alike;
    }
  }
  return count > 0 ? sum / count : -1;
}

TEST(Montage, PatientsRightIsOnTheLeft) {
  Image image(make_geometry({60, 60, 60}, {1, 1, 1}), 0.0f);
  LabelMap labels(image.geometry);
  for (int64_t z = 5; z < 55; ++z) {
    for (int64_t y = 5; y < 55; ++y) {
      for (int64_t x = 5; x < 55; ++x) {
        image.at(x, y, z) = static_cast<float>(100 + x % 3);
        // Oedema in the patient's right, x > 29.5.
        labels.at(x, y, z) = x > 38 && x < 50 && y > 20 && y < 40 && z > 20 && z < 40 ? kLabelEd : 0;
      }
    }
  }
  MontageOptions options;
  options.fill_alpha = 1;  // so that colours can be told
  const Canvas canvas = case_montage(image, &labels, nullptr, options);
  const Color green = label_color(kLabelEd);
  const int third = canvas.width() / 3;
  const double axial = mean_column(canvas, green, 0, third, 60);
  ASSERT_GT(axial, 0);
  EXPECT_LT(axial, 0.5 * third) << "axial panel: right is left";
  const double coronal = mean_column(canvas, green, third, 2 * third, 60);
  ASSERT_GT(coronal, 0);
  EXPECT_LT(coronal, 1.5 * third) << "coronal panel";
  EXPECT_GT(mean_column(canvas, green, 2 * third, canvas.width(), 60), 0)
      << "the sagittal slice goes through it";
}

TEST(Montage, TwoRowsTitlesAndNoTumour) {
  PhantomOptions phantom;
  phantom.size = {32, 32, 32};
  const Case c = make_phantom(phantom, 0);
  MontageOptions options;
  options.title = "A case with a name that is longer than its three panels are wide, surely";
  options.subtitle = "t2f";
  const Canvas one = case_montage(c.images[3], &c.labels, nullptr, options);
  const Canvas two = case_montage(c.images[3], &c.labels, &c.labels, options);
  EXPECT_GT(two.height(), one.height() + options.panel_pixels);
  EXPECT_GE(one.width(), Canvas::text_width(options.title, 3));
  EXPECT_EQ(one.rgb(), case_montage(c.images[3], &c.labels, nullptr, options).rgb());
  const LabelMap empty(c.geometry);
  EXPECT_GT(case_montage(c.images[3], &empty, &c.labels, options).height(), one.height());
  EXPECT_GT(case_montage(c.images[3], nullptr, nullptr, options).height(), 100);
  EXPECT_GT(case_montage(Image(c.geometry), &empty, nullptr, {}).height(), 100)
      << "an empty image is drawn, not divided by";
  const LabelMap other(make_geometry({5, 5, 5}, {1, 1, 1}));
  expect_error<ShapeError>([&] { case_montage(c.images[3], &other, nullptr, options); }, {"5 x 5 x 5"});
}

TEST(Charts, AnyDataDraws) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::vector<double>> series{{},
                                                {1},
                                                {2, 2, 2},
                                                {0, 0},
                                                {nan, nan},
                                                {1, nan, 3, infinity, 5},
                                                {-1e-12, 1e-12},
                                                {1e9, -1e9},
                                                {1e300, -1e300}};
  for (const auto& values : series) {
    Curve curve{"c", {}, values};
    for (size_t i = 0; i < values.size(); ++i) {
      curve.x.push_back(static_cast<double>(i));
    }
    const Canvas canvas = draw_charts({Chart{"title", "step", "loss", {curve}, false, 0, 1}}, 640, 300);
    EXPECT_EQ(canvas.height(), 300);
    EXPECT_GT(pixels_of(canvas, {40, 40, 40}), 500) << "axes";
  }
  EXPECT_EQ(draw_charts({}, 640, 300).height(), 300);
  expect_error<ShapeError>(
      [] {
        draw_charts({Chart{"t", "x", "y", {Curve{"c", {1}, {}}}, false, 0, 1}});
      },
      {"curve c"});
  expect_error<UsageError>([] { draw_charts({}, 10, 10); }, {"at least 320"});
}

TEST(Charts, CurvesLieWhereTheirValuesAre) {
  const Chart chart{"t",  "x", "y", {Curve{"low", {0, 10}, {0.2, 0.2}}, Curve{"high", {0, 10}, {0.8, 0.8}}},
                    true, 0,   1};
  const Canvas canvas = draw_charts({chart}, 640, 400);
  // Plot area: 64 below the top to 56 above the bottom, as the axes show.
  const int middle = 360;
  const auto row_of = [&](Color color) {
    double sum = 0, count = 0;
    for (int y = 60; y < 350; ++y) {
      const Color c = canvas.get(middle, y);
      const bool alike =
          std::abs(c.r - color.r) < 20 && std::abs(c.g - color.g) < 20 && std::abs(c.b - color.b) < 20;
      sum += alike ? y : 0;
      count += alike;
    }
    return sum / count;
  };
  EXPECT_NEAR(row_of({31, 119, 180}), 344 - 0.2 * 280, 1.5);
  EXPECT_NEAR(row_of({214, 39, 40}), 344 - 0.8 * 280, 1.5);
}

TEST(Montage, ShowsAnyNumberOfLabelsByName) {
  for (uint8_t a = 1; a < 40; ++a) {
    for (uint8_t b = 1; b < a; ++b) {
      EXPECT_NE(label_color(a), label_color(b)) << int{a} << " and " << int{b};
    }
  }
  Image image(make_geometry({20, 20, 20}, {1, 1, 1}), 1.0f);
  LabelMap labels(image.geometry);
  for (int64_t z = 0; z < 20; ++z) {
    for (int64_t y = 0; y < 20; ++y) {
      for (int64_t x = 4; x < 16; ++x) {
        labels.at(x, y, z) = x < 10 ? 7 : 12;
      }
    }
  }
  MontageOptions options;
  const int height = case_montage(image, nullptr, &labels, options).height();
  options.label_names = {"", "one"};
  const Canvas few = case_montage(image, nullptr, &labels, options);
  EXPECT_EQ(few.height(), height);
  options.label_names.assign(18, "a rather long name");
  const Canvas many = case_montage(image, nullptr, &labels, options);
  EXPECT_GT(many.height(), height + 100) << "the legend takes more lines";
  // Labels keep their own colours whether they have names or not: the middle of the left half of a panel.
  const auto count = [](const Canvas& canvas, Color color) {
    int found = 0;
    for (int y = 0; y < canvas.height(); ++y) {
      for (int x = 0; x < canvas.width(); ++x) {
        found += canvas.get(x, y) == color ? 1 : 0;
      }
    }
    return found;
  };
  EXPECT_GE(count(many, label_color(7)), 14 * 14);
  EXPECT_GE(count(many, label_color(12)), 14 * 14);
  EXPECT_EQ(count(few, label_color(7)), 0);
}

}  // namespace
}  // namespace vesal::imaging
