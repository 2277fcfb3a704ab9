// Random patches: see augment.hpp.
#include "imaging/augment.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/parallel.hpp"

namespace vesal::imaging {
namespace {

using Matrix3 = std::array<std::array<double, 3>, 3>;

Matrix3 product(const Matrix3& a, const Matrix3& b) {
  Matrix3 c{};
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < 3; ++j) {
      c[i][j] = a[i][0] * b[0][j] + a[i][1] * b[1][j] + a[i][2] * b[2][j];
    }
  }
  return c;
}

// Rotation by three angles about x, then y, then z.
Matrix3 rotation(const std::array<double, 3>& radians) {
  const auto [a, b, c] = radians;
  const Matrix3 x{{{1, 0, 0}, {0, std::cos(a), -std::sin(a)}, {0, std::sin(a), std::cos(a)}}};
  const Matrix3 y{{{std::cos(b), 0, std::sin(b)}, {0, 1, 0}, {-std::sin(b), 0, std::cos(b)}}};
  const Matrix3 z{{{std::cos(c), -std::sin(c), 0}, {std::sin(c), std::cos(c), 0}, {0, 0, 1}}};
  return product(z, product(y, x));
}

// Voxel of the volume = offset + matrix * voxel of the patch.
struct PatchMap {
  Matrix3 matrix{};
  Vector3 offset;
  bool whole = true;  // a crop with flips: whole-numbered, no interpolation
};

// A voxel of a label that was drawn evenly among those present; false where there is no foreground.
bool draw_foreground(const LabelMap& labels, RandomStream& random, Size3& voxel) {
  std::array<int64_t, 256> occurrences{};
  for (const uint8_t label : labels.data) {
    ++occurrences[label];
  }
  const int64_t kinds =
      std::count_if(occurrences.begin() + 1, occurrences.end(), [](int64_t n) { return n > 0; });
  if (kinds == 0) {
    return false;
  }
  int64_t pick = random.below(kinds);
  size_t label = 1;
  while (occurrences[label] == 0 || pick-- > 0) {
    ++label;
  }
  int64_t left = random.below(occurrences[label]);
  int64_t index = 0;
  while (labels.data[static_cast<size_t>(index)] != label || left-- > 0) {
    ++index;
  }
  const Size3 n = labels.size();
  voxel = {index % n.x, index / n.x % n.y, index / (n.x * n.y)};
  return true;
}

// First voxel of the crop on each axis; inside the volume, or centred about it where it is smaller.
Size3 draw_start(const PreparedCase& source, const AugmentOptions& options, RandomStream& random) {
  const Size3 n = source.size();
  const bool wants_foreground = random.bernoulli(options.foreground_probability);
  Size3 centre;
  const bool centred =
      wants_foreground && !source.labels.empty() && draw_foreground(source.labels, random, centre);
  Size3 start;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t room = n[axis] - options.patch[axis];
    if (room <= 0) {
      start[axis] = -(-room / 2);
    } else if (centred) {
      start[axis] = std::clamp<int64_t>(centre[axis] - options.patch[axis] / 2, 0, room);
    } else {
      start[axis] = random.below(room + 1);
    }
  }
  return start;
}

// A random rotation and zoom, from steps in the patch to steps in the volume, both in voxels.
Matrix3 draw_turn(const PreparedCase& source, float max_degrees, float min_zoom, float max_zoom,
                  RandomStream& random) {
  std::array<double, 3> radians{};
  for (double& angle : radians) {
    angle = static_cast<double>(random.uniform(-max_degrees, max_degrees)) * std::numbers::pi / 180.0;
  }
  const double zoom = static_cast<double>(random.uniform(min_zoom, max_zoom));
  // Rotation happens in mm, so that it stays one where voxels are not cubes.
  const Vector3 spacing = source.geometry.spacing_mm;
  Matrix3 turn = rotation(radians);
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 3; ++column) {
      turn[static_cast<size_t>(row)][static_cast<size_t>(column)] *= spacing[column] / spacing[row] / zoom;
    }
  }
  return turn;
}

void flip_at_random(Matrix3& turn, const AugmentOptions& options, RandomStream& random) {
  for (size_t axis = 0; axis < 3; ++axis) {
    const double sign = random.bernoulli(options.flip_probability[axis]) ? -1.0 : 1.0;
    for (auto& row : turn) {
      row[axis] *= sign;
    }
  }
}

PatchMap draw_map(const PreparedCase& source, const AugmentOptions& options, RandomStream& random) {
  const Size3 start = draw_start(source, options, random);
  PatchMap map;
  Matrix3 turn{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
  if (random.bernoulli(options.spatial_probability)) {
    map.whole = false;
    turn = draw_turn(source, options.max_rotation_degrees, options.min_zoom, options.max_zoom, random);
  }
  flip_at_random(turn, options, random);
  map.matrix = turn;
  // The patch's centre lands on the crop's centre.
  Vector3 half;
  for (int axis = 0; axis < 3; ++axis) {
    half[axis] = 0.5 * static_cast<double>(options.patch[axis] - 1);
  }
  for (int axis = 0; axis < 3; ++axis) {
    const auto& row = turn[static_cast<size_t>(axis)];
    map.offset[axis] =
        static_cast<double>(start[axis]) + half[axis] - (row[0] * half.x + row[1] * half.y + row[2] * half.z);
  }
  return map;
}

void sample_patch(const PreparedCase& source, const PatchMap& map, Sample& sample,
                  std::vector<uint8_t>& head) {
  const Size3 n = source.size();
  const Size3 patch = sample.size;
  const bool labelled = !source.labels.empty();
  parallel_for(patch.z, 1, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < patch.y; ++y) {
        for (int64_t x = 0; x < patch.x; ++x) {
          std::array<double, 3> p{};
          for (size_t axis = 0; axis < 3; ++axis) {
            const auto& row = map.matrix[axis];
            p[axis] = map.offset[static_cast<int>(axis)] + row[0] * static_cast<double>(x) +
                      row[1] * static_cast<double>(y) + row[2] * static_cast<double>(z);
          }
          const int64_t i = static_cast<int64_t>(std::floor(p[0] + 0.5));
          const int64_t j = static_cast<int64_t>(std::floor(p[1] + 0.5));
          const int64_t k = static_cast<int64_t>(std::floor(p[2] + 0.5));
          const size_t to = static_cast<size_t>((z * patch.y + y) * patch.x + x);
          if (i < 0 || i >= n.x || j < 0 || j >= n.y || k < 0 || k >= n.z) {
            continue;  // stays 0, as everything outside the head is
          }
          const size_t nearest = static_cast<size_t>((k * n.y + j) * n.x + i);
          if (labelled) {
            sample.labels[to] = source.labels.data[nearest];
          }
          if (source.mask.data[nearest] == 0) {
            continue;
          }
          head[to] = 1;
          float* out = sample.image.data() + to * kModalityCount;
          if (map.whole) {
            for (size_t m = 0; m < source.images.size(); ++m) {
              out[m] = source.present[m] ? source.images[m].data[nearest] : 0.0f;
            }
            continue;
          }
          std::array<int64_t, 3> low{};
          std::array<int64_t, 3> high{};
          std::array<float, 3> t{};
          for (size_t axis = 0; axis < 3; ++axis) {
            const int64_t last = n[static_cast<int>(axis)] - 1;
            const double clamped = std::clamp(p[axis], 0.0, static_cast<double>(last));
            low[axis] = static_cast<int64_t>(clamped);
            high[axis] = std::min(low[axis] + 1, last);
            t[axis] = static_cast<float>(clamped - static_cast<double>(low[axis]));
          }
          for (size_t m = 0; m < source.images.size(); ++m) {
            if (!source.present[m]) {
              continue;
            }
            const Image& image = source.images[m];
            const auto along_x = [&](int64_t yy, int64_t zz) {
              const float a = image.at(low[0], yy, zz);
              return a + t[0] * (image.at(high[0], yy, zz) - a);
            };
            const auto along_y = [&](int64_t zz) {
              const float a = along_x(low[1], zz);
              return a + t[1] * (along_x(high[1], zz) - a);
            };
            const float a = along_y(low[2]);
            out[m] = a + t[2] * (along_y(high[2]) - a);
          }
        }
      }
    }
  });
}

// Sets a tumour of the donor into the sample: a random voxel of it lands at a random place in the patch.
void transplant(const PreparedCase& donor, const AugmentOptions& options, RandomStream& random,
                Sample& sample, const std::vector<uint8_t>& head) {
  Size3 centre;
  if (donor.labels.empty() || !draw_foreground(donor.labels, random, centre)) {
    return;
  }
  PatchMap map;
  map.whole = false;
  map.matrix = draw_turn(donor, options.max_rotation_degrees, options.min_transplant_zoom,
                         options.max_transplant_zoom, random);
  flip_at_random(map.matrix, options, random);
  Vector3 place;
  for (int axis = 0; axis < 3; ++axis) {
    place[axis] = static_cast<double>(random.below(sample.size[axis]));
  }
  for (int axis = 0; axis < 3; ++axis) {
    const auto& row = map.matrix[static_cast<size_t>(axis)];
    map.offset[axis] =
        static_cast<double>(centre[axis]) - (row[0] * place.x + row[1] * place.y + row[2] * place.z);
  }
  Sample given;
  given.size = sample.size;
  given.present = donor.present;
  given.image.assign(sample.image.size(), 0.0f);
  given.labels.assign(sample.labels.size(), 0);
  std::vector<uint8_t> donor_head(head.size(), 0);
  sample_patch(donor, map, given, donor_head);

  const Size3 n = sample.size;
  for (int64_t z = 0; z < n.z; ++z) {
    for (int64_t y = 0; y < n.y; ++y) {
      for (int64_t x = 0; x < n.x; ++x) {
        const auto tumour = [&](int64_t xx, int64_t yy, int64_t zz) {
          return xx >= 0 && xx < n.x && yy >= 0 && yy < n.y && zz >= 0 && zz < n.z &&
                 given.labels[static_cast<size_t>((zz * n.y + yy) * n.x + xx)] != 0;
        };
        const size_t at = static_cast<size_t>((z * n.y + y) * n.x + x);
        if (head[at] == 0 || donor_head[at] == 0) {
          continue;
        }
        // The shell of voxels around the tumour is mixed half and half, so that no cut edge gives it away.
        const bool inside = tumour(x, y, z);
        if (!inside && !tumour(x - 1, y, z) && !tumour(x + 1, y, z) && !tumour(x, y - 1, z) &&
            !tumour(x, y + 1, z) && !tumour(x, y, z - 1) && !tumour(x, y, z + 1)) {
          continue;
        }
        const float share = inside ? 1.0f : 0.5f;
        for (size_t m = 0; m < kModalityCount; ++m) {
          if (sample.present[m]) {
            float& value = sample.image[at * kModalityCount + m];
            value += share * (given.image[at * kModalityCount + m] - value);
          }
        }
        if (inside) {
          sample.labels[at] = given.labels[at];
        }
      }
    }
  }
}

// Gaussian blur of one channel, separable, cut at 3 sigma; edges go on with the nearest voxel.
void blur_channel(Sample& sample, size_t channel, float sigma) {
  const int64_t radius = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(3.0f * sigma)));
  std::vector<float> weights;
  double total = 0;
  for (int64_t i = -radius; i <= radius; ++i) {
    total += std::exp(-0.5 * static_cast<double>(i * i) /
                      (static_cast<double>(sigma) * static_cast<double>(sigma)));
  }
  for (int64_t i = -radius; i <= radius; ++i) {
    weights.push_back(static_cast<float>(std::exp(-0.5 * static_cast<double>(i * i) /
                                                  (static_cast<double>(sigma) * static_cast<double>(sigma))) /
                                         total));
  }
  const Size3 n = sample.size;
  std::vector<float> from(static_cast<size_t>(n.voxels()));
  std::vector<float> to(from.size());
  for (size_t i = 0; i < from.size(); ++i) {
    from[i] = sample.image[i * kModalityCount + channel];
  }
  const std::array<int64_t, 3> strides{1, n.x, n.x * n.y};
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t stride = strides[static_cast<size_t>(axis)];
    parallel_for(n.z, 1, [&](int64_t begin, int64_t end) {
      for (int64_t z = begin; z < end; ++z) {
        for (int64_t y = 0; y < n.y; ++y) {
          for (int64_t x = 0; x < n.x; ++x) {
            const int64_t at = (z * n.y + y) * n.x + x;
            const int64_t position = axis == 0 ? x : axis == 1 ? y : z;
            float sum = 0;
            for (int64_t i = -radius; i <= radius; ++i) {
              const int64_t other = std::clamp<int64_t>(position + i, 0, n[axis] - 1);
              sum += weights[static_cast<size_t>(i + radius)] *
                     from[static_cast<size_t>(at + (other - position) * stride)];
            }
            to[static_cast<size_t>(at)] = sum;
          }
        }
      }
    });
    std::swap(from, to);
  }
  for (size_t i = 0; i < from.size(); ++i) {
    sample.image[i * kModalityCount + channel] = from[i];
  }
}

void alter_intensities(Sample& sample, size_t channel, const std::vector<uint8_t>& head,
                       const AugmentOptions& options, RandomStream& random) {
  const auto for_head = [&](const auto& change) {
    for (size_t i = 0; i < head.size(); ++i) {
      if (head[i] != 0) {
        change(sample.image[i * kModalityCount + channel]);
      }
    }
  };
  if (random.bernoulli(options.noise_probability)) {
    const float sigma = random.uniform(0.0f, options.max_noise);
    for_head([&](float& v) { v += sigma * random.normal(); });
  }
  if (random.bernoulli(options.blur_probability)) {
    blur_channel(sample, channel, random.uniform(options.min_blur_voxels, options.max_blur_voxels));
    for (size_t i = 0; i < head.size(); ++i) {
      float& value = sample.image[i * kModalityCount + channel];
      value = head[i] != 0 ? value : 0.0f;
    }
  }
  if (random.bernoulli(options.scale_probability)) {
    const float factor = random.uniform(1.0f - options.max_scale, 1.0f + options.max_scale);
    for_head([&](float& v) { v *= factor; });
  }
  if (random.bernoulli(options.shift_probability)) {
    const float offset = random.uniform(-options.max_shift, options.max_shift);
    for_head([&](float& v) { v += offset; });
  }
  if (random.bernoulli(options.gamma_probability)) {
    // On intensities brought to 0..1 over the patch's range, and back to that range.
    const float gamma = random.uniform(options.min_gamma, options.max_gamma);
    float low = std::numeric_limits<float>::infinity();
    float high = -low;
    for_head([&](float& v) {
      low = std::min(low, v);
      high = std::max(high, v);
    });
    const float range = high - low;
    if (range > 1e-6f) {
      for_head(
          [&](float& v) { v = low + range * std::pow(std::clamp((v - low) / range, 0.0f, 1.0f), gamma); });
    }
  }
}

}  // namespace

AugmentOptions crop_only(Size3 patch, float foreground_probability) {
  AugmentOptions options;
  options.patch = patch;
  options.foreground_probability = foreground_probability;
  options.flip_probability = {0, 0, 0};
  options.spatial_probability = 0;
  options.scale_probability = 0;
  options.shift_probability = 0;
  options.gamma_probability = 0;
  options.noise_probability = 0;
  options.blur_probability = 0;
  return options;
}

AugmentOptions with_strength(AugmentOptions options, float strength) {
  check<UsageError>(strength >= 0.0f && strength <= 4.0f, "augmentation strength: found ", strength,
                    ", expected 0 to 4");
  for (float* probability :
       {&options.spatial_probability, &options.scale_probability, &options.shift_probability,
        &options.gamma_probability, &options.noise_probability, &options.blur_probability}) {
    *probability = std::min(1.0f, *probability * strength);
  }
  for (float* range :
       {&options.max_rotation_degrees, &options.max_scale, &options.max_shift, &options.max_noise}) {
    *range *= strength;
  }
  options.max_scale = std::min(options.max_scale, 0.9f);  // a factor of 0 or less would wipe out or invert
  for (float* factor : {&options.min_zoom, &options.max_zoom, &options.min_gamma, &options.max_gamma}) {
    *factor = std::pow(*factor, strength);
  }
  return options;
}

PreparedCase without_tumour(const PreparedCase& source) {
  PreparedCase healed = source;
  if (source.labels.empty()) {
    return healed;
  }
  constexpr int64_t kMargin = 2;
  const Size3 n = source.size();
  // Distance to the nearest labelled voxel as far as it matters, by dilating one axis after the other.
  std::vector<uint8_t> near(source.labels.data.size());
  for (size_t i = 0; i < near.size(); ++i) {
    near[i] = source.labels.data[i] != 0;
  }
  const std::array<int64_t, 3> strides{1, n.x, n.x * n.y};
  for (int axis = 0; axis < 3; ++axis) {
    const std::vector<uint8_t> before = near;
    const int64_t stride = strides[static_cast<size_t>(axis)];
    for (int64_t i = 0; i < n.voxels(); ++i) {
      const int64_t position = i / stride % n[axis];
      for (int64_t step = -kMargin; step <= kMargin; ++step) {
        if (position + step >= 0 && position + step < n[axis]) {
          near[static_cast<size_t>(i)] |= before[static_cast<size_t>(i + step * stride)];
        }
      }
    }
  }
  for (int64_t z = 0; z < n.z; ++z) {
    for (int64_t y = 0; y < n.y; ++y) {
      for (int64_t x = 0; x < n.x; ++x) {
        const auto at = static_cast<size_t>((z * n.y + y) * n.x + x);
        const auto other = static_cast<size_t>((z * n.y + y) * n.x + n.x - 1 - x);
        if (near[at] == 0 || source.mask.data[at] == 0 || source.mask.data[other] == 0 ||
            source.labels.data[other] != 0) {
          continue;
        }
        healed.labels.data[at] = 0;
        for (size_t m = 0; m < source.images.size(); ++m) {
          if (source.present[m]) {
            healed.images[m].data[at] = source.images[m].data[other];
          }
        }
      }
    }
  }
  return healed;
}

Sample draw_sample(const PreparedCase& source, const AugmentOptions& options, RandomStream& random,
                   const PreparedCase* donor) {
  check<UsageError>(options.patch.x >= 1 && options.patch.y >= 1 && options.patch.z >= 1, "patch ",
                    to_string(options.patch), ": expected at least 1 voxel on each axis");
  Sample sample;
  sample.size = options.patch;
  sample.present = source.present;
  const size_t voxels = static_cast<size_t>(options.patch.voxels());
  sample.image.assign(voxels * kModalityCount, 0.0f);
  if (!source.labels.empty()) {
    sample.labels.assign(voxels, 0);
  }
  std::vector<uint8_t> head(voxels, 0);
  sample_patch(source, draw_map(source, options, random), sample, head);
  const bool given = random.bernoulli(options.transplant_probability);
  if (given && donor != nullptr && !source.labels.empty()) {
    bool fits = true;
    for (size_t m = 0; m < source.present.size(); ++m) {
      fits = fits && (donor->present[m] || !source.present[m]);
    }
    if (fits) {
      transplant(*donor, options, random, sample, head);
    }
  }
  for (size_t m = 0; m < source.present.size(); ++m) {
    if (source.present[m]) {
      alter_intensities(sample, m, head, options, random);
    }
  }
  return sample;
}

}  // namespace vesal::imaging
