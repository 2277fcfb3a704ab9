// Canvas, PNG, overlays, charts: see picture.hpp.
#include "imaging/picture.hpp"

#include <png.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>

#include "base/atomic_file.hpp"
#include "imaging/components.hpp"
#include "imaging/font.hpp"
#include "imaging/metrics.hpp"

namespace vesal::imaging {
namespace {

constexpr Color kBackground{18, 20, 24};
constexpr Color kText{235, 235, 235};
constexpr Color kDimText{160, 165, 172};

std::string format(const char* pattern, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), pattern, value);
  return text.data();
}

// One of the three planes: which canonical axes run to the right and down, and in which direction.
struct Plane {
  const char* name;
  int across;  // axis to the right, always against its direction: x falls to the right (radiological), y
               // falls too
  int down;    // axis downwards, against its direction: the top is anterior or superior
  int through;
  const char* letters;  // left, right, top, bottom
  const char* axis_name;
};
constexpr std::array<Plane, 3> kPlanes{
    {{"axial", 0, 1, 2, "RLAP", "z"}, {"coronal", 0, 2, 1, "RLSI", "y"}, {"sagittal", 1, 2, 0, "APSI", "x"}}};

// Grey levels between the 1st and the 99.5th percentile of the nonzero voxels.
struct Window {
  float low = 0;
  float high = 1;
};
Window window_of(const Image& image) {
  std::vector<double> values;
  // A million voxels tell the percentiles well enough.
  const size_t stride = std::max<size_t>(1, image.data.size() / 1000000);
  for (size_t i = 0; i < image.data.size(); i += stride) {
    if (image.data[i] != 0 && std::isfinite(image.data[i])) {
      values.push_back(static_cast<double>(image.data[i]));
    }
  }
  if (values.empty()) {
    return {};
  }
  Window window{static_cast<float>(percentile(values, 1.0)), static_cast<float>(percentile(values, 99.5))};
  if (!(window.high > window.low)) {
    window.high = window.low + 1;
  }
  return window;
}

// The box that the panels show: the head with a small margin.
Box3 shown_box(const Image& image) {
  LabelMap head(image.geometry);
  for (size_t i = 0; i < head.data.size(); ++i) {
    head.data[i] = image.data[i] != 0 ? 1 : 0;
  }
  const Size3 n = image.size();
  Box3 box = bounding_box(head).value_or(Box3{{0, 0, 0}, n});
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t margin = std::max<int64_t>(1, box.size[axis] / 24);
    const int64_t low = std::max<int64_t>(0, box.start[axis] - margin);
    const int64_t high = std::min(n[axis], box.start[axis] + box.size[axis] + margin);
    box.start[axis] = low;
    box.size[axis] = high - low;
  }
  return box;
}

// For each axis the slice with the most labelled voxels; the middle of `box` without any.
std::array<int64_t, 3> slices_of(const LabelMap* labels, const Box3& box) {
  std::array<int64_t, 3> slice{};
  for (int axis = 0; axis < 3; ++axis) {
    slice[static_cast<size_t>(axis)] = box.start[axis] + box.size[axis] / 2;
  }
  if (labels == nullptr) {
    return slice;
  }
  const Size3 n = labels->size();
  std::array<std::vector<int64_t>, 3> voxels;
  for (int axis = 0; axis < 3; ++axis) {
    voxels[static_cast<size_t>(axis)].assign(static_cast<size_t>(n[axis]), 0);
  }
  for (int64_t z = 0; z < n.z; ++z) {
    for (int64_t y = 0; y < n.y; ++y) {
      for (int64_t x = 0; x < n.x; ++x) {
        if (labels->at(x, y, z) != 0) {
          ++voxels[0][static_cast<size_t>(x)];
          ++voxels[1][static_cast<size_t>(y)];
          ++voxels[2][static_cast<size_t>(z)];
        }
      }
    }
  }
  for (size_t axis = 0; axis < 3; ++axis) {
    const auto largest = std::max_element(voxels[axis].begin(), voxels[axis].end());
    if (*largest > 0) {
      slice[axis] = largest - voxels[axis].begin();
    }
  }
  return slice;
}

// Weights of the four voxels around an in-plane position, for grey levels and for one-hot labels alike.
struct InPlane {
  std::array<Size3, 4> voxel;
  std::array<float, 4> weight;
};
InPlane in_plane(const Plane& plane, Size3 n, int64_t slice, double across, double down) {
  InPlane result{};
  const double a = std::clamp(across, 0.0, static_cast<double>(n[plane.across] - 1));
  const double d = std::clamp(down, 0.0, static_cast<double>(n[plane.down] - 1));
  const int64_t a0 = static_cast<int64_t>(a);
  const int64_t d0 = static_cast<int64_t>(d);
  const float ta = static_cast<float>(a - static_cast<double>(a0));
  const float td = static_cast<float>(d - static_cast<double>(d0));
  for (size_t i = 0; i < 4; ++i) {
    Size3& voxel = result.voxel[i];
    voxel[plane.through] = slice;
    voxel[plane.across] = std::min(a0 + static_cast<int64_t>(i & 1), n[plane.across] - 1);
    voxel[plane.down] = std::min(d0 + static_cast<int64_t>(i >> 1), n[plane.down] - 1);
    result.weight[i] = (i & 1 ? ta : 1 - ta) * (i >> 1 ? td : 1 - td);
  }
  return result;
}

// The label with most of the weight, the least one on a tie.
uint8_t heaviest(const std::array<uint8_t, 4>& label, const std::array<float, 4>& weight) {
  uint8_t best = 0;
  float most = -1;
  for (size_t i = 0; i < 4; ++i) {
    float sum = 0;
    for (size_t j = 0; j < 4; ++j) {
      sum += label[j] == label[i] ? weight[j] : 0.0f;
    }
    if (sum > most || (sum == most && label[i] < best)) {
      most = sum;
      best = label[i];
    }
  }
  return best;
}

void draw_panel(Canvas& canvas, int left, int top, int width, int height, const Plane& plane, int64_t slice,
                const Box3& box, const Window& window, const Image& image, const LabelMap* labels,
                float alpha) {
  const Size3 n = image.size();
  std::vector<uint8_t> shown(static_cast<size_t>(width) * static_cast<size_t>(height), 0);
  for (int v = 0; v < height; ++v) {
    for (int u = 0; u < width; ++u) {
      // Pixel centres to voxel coordinates; both axes run against the canonical direction.
      const double across = static_cast<double>(box.start[plane.across]) - 0.5 +
                            (1.0 - (u + 0.5) / width) * static_cast<double>(box.size[plane.across]);
      const double down = static_cast<double>(box.start[plane.down]) - 0.5 +
                          (1.0 - (v + 0.5) / height) * static_cast<double>(box.size[plane.down]);
      const InPlane around = in_plane(plane, n, slice, across, down);
      float grey = 0;
      std::array<uint8_t, 4> label{};
      for (size_t i = 0; i < 4; ++i) {
        const Size3 p = around.voxel[i];
        // Outside the head is black also where intensities may be negative.
        const float value = image.at(p.x, p.y, p.z);
        grey +=
            around.weight[i] *
            (value == 0 ? 0.0f : std::clamp((value - window.low) / (window.high - window.low), 0.0f, 1.0f));
        if (labels != nullptr) {
          label[i] = labels->at(p.x, p.y, p.z);
        }
      }
      const uint8_t level = static_cast<uint8_t>(std::lround(255.0f * std::clamp(grey, 0.0f, 1.0f)));
      canvas.set(left + u, top + v, {level, level, level});
      shown[static_cast<size_t>(v) * static_cast<size_t>(width) + static_cast<size_t>(u)] =
          heaviest(label, around.weight);
    }
  }
  if (labels == nullptr) {
    return;
  }
  const auto label_at = [&](int u, int v) {
    return u < 0 || v < 0 || u >= width || v >= height
               ? uint8_t{0}
               : shown[static_cast<size_t>(v) * static_cast<size_t>(width) + static_cast<size_t>(u)];
  };
  for (int v = 0; v < height; ++v) {
    for (int u = 0; u < width; ++u) {
      const uint8_t label = label_at(u, v);
      if (label == 0) {
        continue;
      }
      const bool border = label_at(u - 1, v) != label || label_at(u + 1, v) != label ||
                          label_at(u, v - 1) != label || label_at(u, v + 1) != label;
      canvas.blend(left + u, top + v, label_color(label), border ? 0.95f : alpha);
    }
  }
}

void shadowed_text(Canvas& canvas, int x, int y, std::string_view text, Color color, int scale) {
  canvas.text(x + 1, y + 1, text, {0, 0, 0}, scale);
  canvas.text(x, y, text, color, scale);
}

// 1, 2 or 5 times a power of ten, so that about `wanted` steps cover `range`.
double round_step(double range, int wanted) {
  const double raw = range / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power * (1 + 1e-9)) {
      return factor * power;
    }
  }
  return 10.0 * power;
}

std::string tick_text(double value, double step) {
  if (std::abs(value) < 1e-9 * step) {
    return "0";
  }
  if (std::abs(value) >= 1e6 || step < 1e-4) {
    return format("%.3g", value);
  }
  const int digits = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void take(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return !(low <= high); }
};

void draw_chart(Canvas& canvas, int top, int height, const Chart& chart) {
  constexpr std::array<Color, 8> palette{{{31, 119, 180},
                                          {214, 39, 40},
                                          {44, 160, 44},
                                          {255, 127, 14},
                                          {148, 103, 189},
                                          {23, 160, 180},
                                          {140, 86, 75},
                                          {90, 90, 90}}};
  constexpr Color ink{40, 40, 40};
  constexpr Color grid{225, 228, 232};
  const int left = 96;
  const int right = canvas.width() - 28;
  const int upper = top + 64;
  const int lower = top + height - 56;
  canvas.text(left, top + 12, chart.title, ink, 2);
  canvas.text(left, upper - 24, chart.y_label, {110, 110, 110}, 2);
  canvas.text(right - Canvas::text_width(chart.x_label, 2), lower + 32, chart.x_label, {110, 110, 110}, 2);

  Range xs;
  Range ys;
  for (const Curve& curve : chart.curves) {
    check<ShapeError>(curve.x.size() == curve.y.size(), "chart \"", chart.title, "\": curve ", curve.name,
                      " has ", curve.x.size(), " x and ", curve.y.size(), " y values");
    for (size_t i = 0; i < curve.x.size(); ++i) {
      if (std::isfinite(curve.x[i]) && std::isfinite(curve.y[i])) {
        xs.take(curve.x[i]);
        ys.take(curve.y[i]);
      }
    }
  }
  const bool has_data = !xs.empty();
  if (!has_data) {
    xs = {0, 1};
    ys = {0, 1};
  }
  if (chart.fixed_range) {
    ys = {chart.y_min, chart.y_max};
  } else {
    const double margin =
        ys.high > ys.low ? 0.05 * (ys.high - ys.low) : std::max(0.5 * std::abs(ys.high), 0.5);
    // A quantity that is never negative keeps its axis there.
    ys = {ys.low >= 0 && ys.low - margin < 0 ? 0.0 : ys.low - margin, ys.high + margin};
  }
  if (!(xs.high > xs.low)) {
    xs = {xs.low - 1, xs.high + 1};
  }
  const auto to_x = [&](double x) { return left + (x - xs.low) / (xs.high - xs.low) * (right - left); };
  const auto to_y = [&](double y) { return lower - (y - ys.low) / (ys.high - ys.low) * (lower - upper); };

  const double y_step = round_step(ys.high - ys.low, std::max(2, (lower - upper) / 48));
  for (double k = std::ceil(ys.low / y_step - 1e-9); k * y_step <= ys.high + 1e-9 * y_step; ++k) {
    const int y = static_cast<int>(std::lround(to_y(k * y_step)));
    canvas.fill(left, y, right - left, 1, grid);
    canvas.fill(left - 6, y, 6, 1, ink);
    const std::string text = tick_text(k * y_step, y_step);
    canvas.text(left - 12 - Canvas::text_width(text, 2), y - 7, text, ink, 2);
  }
  const double x_step = round_step(xs.high - xs.low, std::max(2, (right - left) / 130));
  for (double k = std::ceil(xs.low / x_step - 1e-9); k * x_step <= xs.high + 1e-9 * x_step; ++k) {
    const int x = static_cast<int>(std::lround(to_x(k * x_step)));
    canvas.fill(x, upper, 1, lower - upper, grid);
    canvas.fill(x, lower, 1, 6, ink);
    const std::string text = tick_text(k * x_step, x_step);
    const int width = Canvas::text_width(text, 2);
    canvas.text(std::clamp(x - width / 2, 0, canvas.width() - width), lower + 12, text, ink, 2);
  }

  for (size_t c = 0; c < chart.curves.size(); ++c) {
    const Curve& curve = chart.curves[c];
    const Color color = palette[c % palette.size()];
    for (size_t i = 0; i < curve.x.size(); ++i) {
      const auto drawable = [&](size_t k) { return std::isfinite(curve.x[k]) && std::isfinite(curve.y[k]); };
      if (!drawable(i)) {
        continue;
      }
      // What leaves a fixed range runs along its edge.
      const double x = to_x(curve.x[i]);
      const double y = std::clamp(to_y(curve.y[i]), static_cast<double>(upper), static_cast<double>(lower));
      const bool follows = i > 0 && drawable(i - 1);
      const bool leads = i + 1 < curve.x.size() && drawable(i + 1);
      if (follows) {
        const double y_before =
            std::clamp(to_y(curve.y[i - 1]), static_cast<double>(upper), static_cast<double>(lower));
        canvas.line(to_x(curve.x[i - 1]), y_before, x, y, color, 2.0);
      }
      if ((!follows && !leads) || curve.x.size() <= 25) {
        canvas.line(x, y, x, y, color, 6.0);
      }
    }
  }
  canvas.fill(left, upper, 1, lower - upper + 1, ink);
  canvas.fill(left, lower, right - left + 1, 1, ink);
  if (!has_data) {
    const std::string_view text = "no data yet";
    canvas.text((left + right - Canvas::text_width(text, 2)) / 2, (upper + lower) / 2 - 7, text,
                {140, 140, 140}, 2);
  }

  // The legend stands on the title's line, from the right.
  int x = right;
  for (size_t c = chart.curves.size(); c-- > 0;) {
    x -= Canvas::text_width(chart.curves[c].name, 2);
    canvas.text(x, top + 12, chart.curves[c].name, ink, 2);
    canvas.line(x - 32, top + 19, x - 10, top + 19, palette[c % palette.size()], 4.0);
    x -= 56;
  }
}

}  // namespace

Color label_color(uint8_t label) {
  switch (label) {
    case 1:
      return {230, 50, 50};
    case 2:
      return {60, 200, 90};
    case 3:
      return {255, 210, 40};
    default:
      break;
  }
  // Multiples of the golden angle, 137.5 degrees, in saturated colours of two brightnesses.
  const double hue = std::fmod(137.508 * (label - 4) + 290.0, 360.0) / 60.0;
  const double bright = label % 2 == 0 ? 220 : 150;
  const double part = 1 - std::abs(std::fmod(hue, 2.0) - 1);
  const std::array<double, 3> rgb = hue < 1   ? std::array{1.0, part, 0.0}
                                    : hue < 2 ? std::array{part, 1.0, 0.0}
                                    : hue < 3 ? std::array{0.0, 1.0, part}
                                    : hue < 4 ? std::array{0.0, part, 1.0}
                                    : hue < 5 ? std::array{part, 0.0, 1.0}
                                              : std::array{1.0, 0.0, part};
  const auto level = [&](double share) {
    return static_cast<uint8_t>(std::lround(bright * (0.3 + 0.7 * share)));
  };
  return {level(rgb[0]), level(rgb[1]), level(rgb[2])};
}

Canvas::Canvas(int width, int height, Color background) : width_(width), height_(height) {
  check<UsageError>(width >= 1 && height >= 1 && width <= 32768 && height <= 32768, "canvas of ", width,
                    " x ", height, " pixels: expected 1 to 32768");
  rgb_.resize(3 * static_cast<size_t>(width) * static_cast<size_t>(height));
  fill(0, 0, width, height, background);
}

Color Canvas::get(int x, int y) const {
  check<UsageError>(x >= 0 && y >= 0 && x < width_ && y < height_, "canvas: pixel ", x, " ", y, " of ",
                    width_, " x ", height_);
  const size_t at = 3 * (static_cast<size_t>(y) * static_cast<size_t>(width_) + static_cast<size_t>(x));
  return {rgb_[at], rgb_[at + 1], rgb_[at + 2]};
}

void Canvas::set(int x, int y, Color color) {
  if (x < 0 || y < 0 || x >= width_ || y >= height_) {
    return;
  }
  const size_t at = 3 * (static_cast<size_t>(y) * static_cast<size_t>(width_) + static_cast<size_t>(x));
  rgb_[at] = color.r;
  rgb_[at + 1] = color.g;
  rgb_[at + 2] = color.b;
}

void Canvas::blend(int x, int y, Color color, float alpha) {
  if (x < 0 || y < 0 || x >= width_ || y >= height_) {
    return;
  }
  const Color old = get(x, y);
  const auto mix = [&](uint8_t a, uint8_t b) {
    return static_cast<uint8_t>(
        std::lround(static_cast<float>(a) + alpha * (static_cast<float>(b) - static_cast<float>(a))));
  };
  set(x, y, {mix(old.r, color.r), mix(old.g, color.g), mix(old.b, color.b)});
}

void Canvas::fill(int x, int y, int width, int height, Color color) {
  for (int v = std::max(y, 0); v < std::min(y + height, height_); ++v) {
    for (int u = std::max(x, 0); u < std::min(x + width, width_); ++u) {
      set(u, v, color);
    }
  }
}

void Canvas::frame(int x, int y, int width, int height, Color color) {
  fill(x, y, width, 1, color);
  fill(x, y + height - 1, width, 1, color);
  fill(x, y, 1, height, color);
  fill(x + width - 1, y, 1, height, color);
}

void Canvas::line(double x0, double y0, double x1, double y1, Color color, double thickness) {
  const double radius = 0.5 * thickness;
  const double reach = radius + 1;
  const auto clip = [](double value, int limit) {
    return static_cast<int>(std::clamp(value, 0.0, static_cast<double>(limit)));
  };
  const int left = clip(std::floor(std::min(x0, x1) - reach), width_);
  const int right = clip(std::ceil(std::max(x0, x1) + reach) + 1, width_);
  const int top = clip(std::floor(std::min(y0, y1) - reach), height_);
  const int bottom = clip(std::ceil(std::max(y0, y1) + reach) + 1, height_);
  const double dx = x1 - x0;
  const double dy = y1 - y0;
  const double length2 = dx * dx + dy * dy;
  for (int y = top; y < bottom; ++y) {
    for (int x = left; x < right; ++x) {
      const double t = length2 > 0 ? std::clamp(((x - x0) * dx + (y - y0) * dy) / length2, 0.0, 1.0) : 0.0;
      const double distance = std::hypot(x - (x0 + t * dx), y - (y0 + t * dy));
      const double coverage = std::clamp(radius + 0.5 - distance, 0.0, 1.0);
      if (coverage > 0) {
        blend(x, y, color, static_cast<float>(coverage));
      }
    }
  }
}

void Canvas::text(int x, int y, std::string_view text, Color color, int scale) {
  for (const char character : text) {
    const Glyph& glyph = glyph_of(character);
    const int top = y + drop_of(character) * scale;
    for (int row = 0; row < 7; ++row) {
      for (int column = 0; column < 5; ++column) {
        if ((glyph[static_cast<size_t>(row)] >> (4 - column)) & 1) {
          fill(x + column * scale, top + row * scale, scale, scale, color);
        }
      }
    }
    x += 6 * scale;
  }
}

int Canvas::text_width(std::string_view text, int scale) {
  return text.empty() ? 0 : (6 * static_cast<int>(text.size()) - 1) * scale;
}

void write_png(const std::filesystem::path& path, const Canvas& canvas) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(canvas.width());
  image.height = static_cast<png_uint_32>(canvas.height());
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::vector<uint8_t> file(bytes);
  const int done = png_image_write_to_memory(&image, file.data(), &bytes, 0, canvas.rgb().data(),
                                             3 * canvas.width(), nullptr);
  check<IoError>(done != 0, path.string(), ": PNG encoding failed: ", image.message);
  AtomicFile out(path);
  out.write(file.data(), bytes);
  out.commit();
}

Canvas case_montage(const Image& image, const LabelMap* reference, const LabelMap* prediction,
                    const MontageOptions& options) {
  check<ShapeError>(!image.empty(), "case_montage: no image");
  const auto usable = [&](const LabelMap* labels) {
    if (labels == nullptr || labels->empty()) {
      return static_cast<const LabelMap*>(nullptr);
    }
    check<ShapeError>(labels->size() == image.size(), "case_montage: labels have ", to_string(labels->size()),
                      " voxels, the image ", to_string(image.size()));
    return labels;
  };
  struct Row {
    std::string name;
    const LabelMap* labels;
  };
  std::vector<Row> rows;
  if (const LabelMap* labels = usable(reference)) {
    rows.push_back({options.reference_name, labels});
  }
  if (const LabelMap* labels = usable(prediction)) {
    rows.push_back({options.prediction_name, labels});
  }
  if (rows.empty()) {
    rows.push_back({"", nullptr});
  }
  const Box3 box = shown_box(image);
  const Window window = window_of(image);
  // Slices follow the first map that holds a tumour.
  const LabelMap* guide = nullptr;
  for (const Row& row : rows) {
    if (guide == nullptr && row.labels != nullptr &&
        std::any_of(row.labels->data.begin(), row.labels->data.end(), [](uint8_t v) { return v != 0; })) {
      guide = row.labels;
    }
  }
  const std::array<int64_t, 3> slices = slices_of(guide, box);

  // One scale in pixels per mm for all planes.
  const Vector3 spacing = image.geometry.spacing_mm;
  std::array<double, 3> extent_mm{};
  for (int axis = 0; axis < 3; ++axis) {
    extent_mm[static_cast<size_t>(axis)] = static_cast<double>(box.size[axis]) * spacing[axis];
  }
  const double scale = options.panel_pixels / std::max(extent_mm[1], extent_mm[2]);
  const auto pixels = [&](int axis) {
    return std::clamp(static_cast<int>(std::lround(extent_mm[static_cast<size_t>(axis)] * scale)), 8, 4096);
  };
  constexpr int margin = 16;
  constexpr int row_header = 26;
  constexpr int row_footer = 30;
  const int header = (options.title.empty() ? 0 : 34) + (options.subtitle.empty() ? 0 : 24) + margin;
  int width = margin;
  int panel_height = 0;
  for (const Plane& plane : kPlanes) {
    width += pixels(plane.across) + margin;
    panel_height = std::max(panel_height, pixels(plane.down));
  }
  const int needed =
      std::max(Canvas::text_width(options.title, 3), Canvas::text_width(options.subtitle, 2)) + 2 * margin;
  const int panels_width = width;
  width = std::max({width, std::min(needed, 2 * width), 640});
  const int shift = (width - panels_width) / 2;
  // Names and volumes of the labels beside the row's name, on as many lines as they take.
  struct Entry {
    int x = 0;
    int line = 0;
    uint8_t label = 0;
    std::string text;
  };
  std::vector<std::vector<Entry>> legends;
  int lines = 1;
  for (const Row& row : rows) {
    std::vector<Entry>& legend = legends.emplace_back();
    if (row.labels == nullptr) {
      continue;
    }
    const size_t known = std::min<size_t>(options.label_names.size(), 256);
    std::vector<int64_t> voxels(256, 0);
    for (const uint8_t label : row.labels->data) {
      ++voxels[label];
    }
    int x = margin + (row.name.empty() ? 0 : Canvas::text_width(row.name, 2) + 28);
    int line = 0;
    for (size_t label = 1; label < known; ++label) {
      const std::string text =
          concat(options.label_names[label],
                 format(" %.1f mL", static_cast<double>(voxels[label]) * image.geometry.voxel_ml()));
      const int needs = 20 + Canvas::text_width(text, 2);
      if (x + needs > width - margin && x > margin) {
        x = margin;
        ++line;
      }
      legend.push_back({x, line, static_cast<uint8_t>(label), text});
      x += needs + 22;
    }
    lines = std::max(lines, line + 1);
  }
  constexpr int line_height = 22;
  const int row_top = row_header + (lines - 1) * line_height;
  const int row_height = row_top + panel_height + row_footer;
  Canvas canvas(width, header + static_cast<int>(rows.size()) * row_height + margin / 2, kBackground);
  int y = margin;
  if (!options.title.empty()) {
    canvas.text(margin, y, options.title, kText, 3);
    y += 34;
  }
  if (!options.subtitle.empty()) {
    canvas.text(margin, y, options.subtitle, kDimText, 2);
    y += 24;
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    canvas.text(margin, y + 4, row.name, kText, 2);
    for (const Entry& entry : legends[r]) {
      const int top = y + 4 + entry.line * line_height;
      canvas.fill(entry.x, top, 14, 14, label_color(entry.label));
      canvas.text(entry.x + 20, top, entry.text, kDimText, 2);
    }
    int x = margin + shift;
    const int top = y + row_top;
    for (const Plane& plane : kPlanes) {
      const int w = pixels(plane.across);
      const int h = pixels(plane.down);
      const int panel_top = top + (panel_height - h) / 2;
      const int64_t slice = slices[static_cast<size_t>(plane.through)];
      canvas.fill(x, top, w, panel_height, {0, 0, 0});
      draw_panel(canvas, x, panel_top, w, h, plane, slice, box, window, image, row.labels,
                 options.fill_alpha);
      constexpr Color letter{120, 200, 255};
      const std::string_view letters = plane.letters;
      shadowed_text(canvas, x + 4, top + panel_height / 2 - 7, letters.substr(0, 1), letter, 2);
      shadowed_text(canvas, x + w - 14, top + panel_height / 2 - 7, letters.substr(1, 1), letter, 2);
      shadowed_text(canvas, x + w / 2 - 5, top + 3, letters.substr(2, 1), letter, 2);
      shadowed_text(canvas, x + w / 2 - 5, top + panel_height - 17, letters.substr(3, 1), letter, 2);
      Vector3 index;
      for (int axis = 0; axis < 3; ++axis) {
        index[axis] = static_cast<double>(slices[static_cast<size_t>(axis)]);
      }
      const double mm = apply(image.geometry.affine, index)[plane.through];
      canvas.text(x, top + panel_height + 5,
                  concat(plane.name, "  ", plane.axis_name, " = ", format("%.0f", mm + 0.0), " mm"), kDimText,
                  2);
      x += w + margin;
    }
    y += row_height;
  }
  return canvas;
}

Canvas draw_charts(const std::vector<Chart>& charts, int width, int chart_height) {
  check<UsageError>(width >= 320 && chart_height >= 200, "charts of ", width, " x ", chart_height,
                    " pixels: expected at least 320 x 200");
  const int count = std::max<int>(1, static_cast<int>(charts.size()));
  Canvas canvas(width, count * chart_height, {255, 255, 255});
  for (size_t i = 0; i < charts.size(); ++i) {
    draw_chart(canvas, static_cast<int>(i) * chart_height, chart_height, charts[i]);
  }
  return canvas;
}

}  // namespace vesal::imaging
