// Pictures: a small RGB canvas with its own bitmap font, PNG files, overlays of a case, and line charts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "imaging/volume.hpp"

namespace vesal::imaging {

struct Color {
  uint8_t r = 0;
  uint8_t g = 0;
  uint8_t b = 0;
  friend bool operator==(const Color&, const Color&) = default;
};

// Colours of the labels 1 NCR (red), 2 ED (green), 3 ET (yellow); further labels have hues far from their
// neighbours'.
Color label_color(uint8_t label);

// Pixels from the top left. Drawing outside is clipped.
class Canvas {
 public:
  Canvas(int width, int height, Color background);

  int width() const { return width_; }
  int height() const { return height_; }
  const std::vector<uint8_t>& rgb() const { return rgb_; }  // [height, width, 3]

  Color get(int x, int y) const;
  void set(int x, int y, Color color);
  // Mixes: alpha 0 leaves the pixel, 1 replaces it.
  void blend(int x, int y, Color color, float alpha);
  void fill(int x, int y, int width, int height, Color color);
  void frame(int x, int y, int width, int height, Color color);
  // An antialiased line of the given thickness in pixels, with round ends.
  void line(double x0, double y0, double x1, double y1, Color color, double thickness = 1.0);
  // Text in a 5x7 font, enlarged `scale` times; (x, y) is its top left, letters like g
  // reach 2 rows below. Printable ASCII; others show as a box.
  void text(int x, int y, std::string_view text, Color color, int scale = 1);
  static int text_width(std::string_view text, int scale = 1);
  static int text_height(int scale = 1) { return 7 * scale; }

 private:
  int width_;
  int height_;
  std::vector<uint8_t> rgb_;
};

// Writes atomically (AtomicFile); the same canvas gives the same bytes.
void write_png(const std::filesystem::path& path, const Canvas& canvas);

struct MontageOptions {
  std::string title;     // first line: the case
  std::string subtitle;  // second line, smaller: modality, scores, ...
  std::string reference_name = "reference";
  std::string prediction_name = "prediction";
  std::vector<std::string> label_names{"", "NCR", "ED", "ET"};  // index: label; 0 is not shown
  int panel_pixels = 300;                                       // height of the tallest panel
  float fill_alpha = 0.35f;                                     // labels are outlined as well
};

// Axial, coronal and sagittal slices of `image` (any modality, canonical axes), each through the largest
// cross-section of the labels, with labels in colour. One row for each label map that is given (null or
// empty: none; without any, the plain image): reference, then prediction, at the same slices. Radiological
// convention: the patient's left is on the right of the picture; letters at the edges say so. Grey levels
// span the 1st to 99.5th percentile of the head.
Canvas case_montage(const Image& image, const LabelMap* reference, const LabelMap* prediction,
                    const MontageOptions& options);

struct Curve {
  std::string name;
  std::vector<double> x;
  std::vector<double> y;  // NaN breaks the line
};

struct Chart {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<Curve> curves;
  bool fixed_range = false;  // use y_min..y_max instead of the data's range
  double y_min = 0;
  double y_max = 1;
};

// The charts beneath each other, with axes, ticks at round numbers, a grid and a legend. Charts without data
// say so.
Canvas draw_charts(const std::vector<Chart>& charts, int width = 1000, int chart_height = 360);

}  // namespace vesal::imaging
