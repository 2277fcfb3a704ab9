// Synthetic cases: see phantom.hpp. Lengths are mm about the centre of a 192 mm cube, on canonical axes.
#include "imaging/phantom.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <vector>

#include "base/parallel.hpp"
#include "base/philox.hpp"
#include "imaging/components.hpp"
#include "imaging/metrics.hpp"
#include "imaging/nifti.hpp"
#include "imaging/resample.hpp"

namespace vesal::imaging {
namespace {

constexpr double kFieldOfView = 192.0;

// What each stream of random numbers is for.
enum Purpose : uint64_t {
  kHeadShape = 1,
  kTumourPlace,
  kTumourShape,
  kContrast,
  kNoiseFields = 64,
};
// Voxel noise draws from counters that no RandomStream reaches.
constexpr uint64_t kVoxelNoise = uint64_t{1} << 63;

// Smooth noise in [-1, 1]: random values on a lattice, smoothstep between them.
class SmoothNoise {
 public:
  SmoothNoise(uint64_t seed, uint64_t index, uint64_t purpose, double wavelength_mm)
      : wavelength_(wavelength_mm),
        cells_(static_cast<int64_t>(std::ceil(2.0 * kReach / wavelength_mm)) + 2) {
    RandomStream random(seed, index, kNoiseFields + purpose);
    lattice_.resize(static_cast<size_t>(cells_ * cells_ * cells_));
    for (float& value : lattice_) {
      value = random.uniform(-1.0f, 1.0f);
    }
  }

  double operator()(const Vector3& p) const {
    std::array<int64_t, 3> cell{};
    std::array<double, 3> t{};
    for (size_t axis = 0; axis < 3; ++axis) {
      const double at = std::clamp((p[static_cast<int>(axis)] + kReach) / wavelength_, 0.0,
                                   static_cast<double>(cells_ - 2));
      cell[axis] = std::min(static_cast<int64_t>(at), cells_ - 2);
      const double u = at - static_cast<double>(cell[axis]);
      t[axis] = u * u * (3.0 - 2.0 * u);
    }
    double sum = 0;
    for (int corner = 0; corner < 8; ++corner) {
      const int64_t dx = corner & 1;
      const int64_t dy = (corner >> 1) & 1;
      const int64_t dz = corner >> 2;
      const double weight = (dx ? t[0] : 1 - t[0]) * (dy ? t[1] : 1 - t[1]) * (dz ? t[2] : 1 - t[2]);
      sum += weight * static_cast<double>(lattice_[static_cast<size_t>(
                          ((cell[2] + dz) * cells_ + cell[1] + dy) * cells_ + cell[0] + dx)]);
    }
    return sum;
  }

 private:
  static constexpr double kReach = 110.0;
  double wavelength_;
  int64_t cells_;
  std::vector<float> lattice_;
};

// Distance of p from the centre of an ellipsoid, 1 on its surface.
double ellipsoid(const Vector3& p, const Vector3& centre, const Vector3& radii) {
  return std::hypot((p.x - centre.x) / radii.x, (p.y - centre.y) / radii.y, (p.z - centre.z) / radii.z);
}

Geometry phantom_geometry(Size3 size) {
  check<UsageError>(
      size.x >= 16 && size.y >= 16 && size.z >= 16 && size.x <= 512 && size.y <= 512 && size.z <= 512,
      "phantom size ", to_string(size), ": expected 16 to 512 voxels on each axis");
  return make_geometry(
      size, {kFieldOfView / static_cast<double>(size.x), kFieldOfView / static_cast<double>(size.y),
             kFieldOfView / static_cast<double>(size.z)});
}

// body(flat index, position in mm) for every voxel.
template <class Body>
void for_each_voxel(const Geometry& geometry, const Body& body) {
  const Size3 n = geometry.size;
  parallel_for(n.z, 1, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < n.y; ++y) {
        for (int64_t x = 0; x < n.x; ++x) {
          body((z * n.y + y) * n.x + x,
               apply(geometry.affine,
                     {static_cast<double>(x), static_cast<double>(y), static_cast<double>(z)}));
        }
      }
    }
  });
}

// The built-in head: cerebrum with folded cortex, deep grey matter, ventricles, fissure, cerebellum and brain
// stem.
LabelMap built_in_tissue(uint64_t seed, uint64_t index, const Geometry& geometry) {
  RandomStream random(seed, index, kHeadShape);
  const auto jitter = [&](double share) {
    return 1.0 + static_cast<double>(random.uniform(-1.0f, 1.0f)) * share;
  };
  const double size = jitter(0.05);
  const Vector3 cerebrum{66 * size * jitter(0.03), 82 * size * jitter(0.03), 60 * size * jitter(0.03)};
  const double underside = 44 * size;
  const double ventricle = jitter(0.25);
  const double fold_depth = 17.0 * jitter(0.1);
  const double ribbon = 3.2 * jitter(0.1);
  const double asymmetry = static_cast<double>(random.uniform(-1.5f, 1.5f));
  const SmoothNoise outline(seed, index, 1, 45);
  const SmoothNoise folds(seed, index, 2, 15);
  const SmoothNoise fine_folds(seed, index, 3, 10);
  const SmoothNoise thickness(seed, index, 4, 14);

  LabelMap tissue(geometry);
  for_each_voxel(geometry, [&](int64_t at, Vector3 p) {
    const auto set = [&](Tissue value) {
      tissue.data[static_cast<size_t>(at)] = static_cast<uint8_t>(value);
    };
    p.x -= asymmetry * p.y / 80.0;
    const Vector3 centre{0, 0, 8};
    const Vector3 radii{cerebrum.x, cerebrum.y, p.z < centre.z ? underside : cerebrum.z};
    const double r = ellipsoid(p, centre, radii) + 0.045 * outline(p);
    const double depth = (1.0 - r) * 64.0;
    const double side = std::abs(p.x);

    // Below and behind the cerebrum.
    const double cerebellum =
        ellipsoid({side - 20, p.y, p.z}, {0, -50, -38}, {27, 27, 23}) + 0.05 * outline(p);
    const double stem = ellipsoid(p, {0, -22, -52}, {12, 13, 30});
    if (depth < 0) {
      if (stem < 1) {
        set(Tissue::white);
      } else if (cerebellum < 1) {
        const double leaf = std::abs(std::sin((p.z + 0.6 * p.y) * 0.75 + 2.5 * folds(p)));
        set(cerebellum > 0.95 ? Tissue::csf : cerebellum > 0.4 && leaf < 0.62 ? Tissue::grey : Tissue::white);
      } else if (stem < 1.15 || cerebellum < 1.06) {
        set(Tissue::csf);
      }
      return;
    }

    // Ventricles: a pair of bent horns and the thin third one between.
    const double bend = 7.0 + 0.10 * std::abs(p.y - 4) + 0.0016 * p.y * p.y;
    const double horn = ellipsoid({side, p.y, p.z - 0.0035 * p.y * p.y}, {bend, -4, 14},
                                  {4.6 * ventricle, 31, 7.5 * ventricle}) +
                        0.12 * thickness(p);
    const double third = ellipsoid(p, {0, -4, 0}, {1.8 * ventricle, 12, 9});
    if (horn < 1 || third < 1) {
      return set(Tissue::csf);
    }
    const double thalamus = ellipsoid({side, p.y, p.z}, {12, -10, 4}, {8, 13, 8});
    const double striatum = ellipsoid({side, p.y, p.z}, {24, 8, 4}, {7, 18, 9}) + 0.1 * thickness(p);
    const double caudate = ellipsoid({side, p.y, p.z}, {bend + 7.5, 16, 14}, {4, 14, 7});
    if (thalamus < 1 || striatum < 1 || caudate < 1) {
      return set(Tissue::grey);
    }

    // The pial surface: the outside, the fissure between the halves, and sulci, zero levels of smooth noise
    // that reach fold_depth inwards; the halves stay joined in the middle. The distance to it decides between
    // CSF, cortex and white matter.
    const double wall = std::abs(folds(p) + 0.4 * fine_folds(p)) * 13.0;
    const double sulcus = wall + std::max(0.0, depth - fold_depth) * 0.9;
    const double bridge = ellipsoid({0, p.y, p.z}, {0, -4, 6}, {1, 44, 22}) + 0.06 * outline(p);
    const double fissure = side + std::max(0.0, 1.0 - bridge) * 40.0;
    const double surface = std::min({depth, sulcus, fissure});
    if (surface < 1.1) {
      set(Tissue::csf);
    } else if (surface < 1.1 + ribbon * (1.0 + 0.25 * thickness(p))) {
      set(Tissue::grey);
    } else {
      set(Tissue::white);
    }
  });
  return tissue;
}

// A warped ellipsoid: < 1 inside.
struct Blob {
  Vector3 centre;
  double radius = 1;
  std::array<std::array<double, 3>, 3> shape{};  // rows: direction / (relative radius)

  double operator()(const Vector3& p) const {
    double sum = 0;
    for (const auto& row : shape) {
      const double d = row[0] * (p.x - centre.x) + row[1] * (p.y - centre.y) + row[2] * (p.z - centre.z);
      sum += d * d;
    }
    return std::sqrt(sum) / radius;
  }
};

// Three random perpendicular directions with relative radii between 1 / stretch and stretch.
Blob draw_blob(RandomStream& random, Vector3 centre, double radius, double stretch) {
  const auto unit = [&] {
    Vector3 v;
    double length = 0;
    do {
      v = {static_cast<double>(random.normal()), static_cast<double>(random.normal()),
           static_cast<double>(random.normal())};
      length = std::hypot(v.x, v.y, v.z);
    } while (length < 1e-3);
    return Vector3{v.x / length, v.y / length, v.z / length};
  };
  const Vector3 a = unit();
  Vector3 b;
  double length = 0;
  do {
    const Vector3 v = unit();
    const double dot = a.x * v.x + a.y * v.y + a.z * v.z;
    b = {v.x - dot * a.x, v.y - dot * a.y, v.z - dot * a.z};
    length = std::hypot(b.x, b.y, b.z);
  } while (length < 0.1);
  b = {b.x / length, b.y / length, b.z / length};
  const Vector3 c{a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
  Blob blob{centre, radius, {}};
  const std::array<Vector3, 3> directions{a, b, c};
  for (size_t i = 0; i < 3; ++i) {
    const double relative = std::exp(static_cast<double>(random.uniform(-1.0f, 1.0f)) * std::log(stretch));
    blob.shape[i] = {directions[i].x / relative, directions[i].y / relative, directions[i].z / relative};
  }
  return blob;
}

// Necrotic core within enhancing rim within oedema.
struct Lesion {
  Blob oedema;
  Blob core;
  Blob necrosis;
  bool enhances = true;
};

// A voxel of white matter well inside the cerebrum.
Vector3 draw_place(RandomStream& random, const LabelMap& tissue) {
  std::vector<int64_t> places;
  const Size3 n = tissue.size();
  for (const bool strict : {true, false}) {
    for (int64_t i = 0; i < static_cast<int64_t>(tissue.data.size()); ++i) {
      const Vector3 p =
          apply(tissue.geometry.affine, {static_cast<double>(i % n.x), static_cast<double>(i / n.x % n.y),
                                         static_cast<double>(i / (n.x * n.y))});
      const bool white = tissue.data[static_cast<size_t>(i)] == static_cast<uint8_t>(Tissue::white);
      const bool inside =
          std::abs(p.x) > 14 && std::abs(p.x) < 50 && std::abs(p.y) < 58 && p.z > -18 && p.z < 48;
      if (white && (inside || !strict)) {
        places.push_back(i);
      }
    }
    if (!places.empty()) {
      break;
    }
  }
  check<FormatError>(!places.empty(), "phantom: the head has no white matter");
  const int64_t i = places[static_cast<size_t>(random.below(static_cast<int64_t>(places.size())))];
  return apply(tissue.geometry.affine, {static_cast<double>(i % n.x), static_cast<double>(i / n.x % n.y),
                                        static_cast<double>(i / (n.x * n.y))});
}

std::vector<Lesion> draw_lesions(const PhantomOptions& options, uint64_t index, const LabelMap& tissue) {
  RandomStream place(options.seed, index, kTumourPlace);
  RandomStream shape(options.seed, index, kTumourShape);
  const Vector3 spacing = tissue.geometry.spacing_mm;
  const double voxel = std::max({spacing.x, spacing.y, spacing.z});
  const bool enhances = !shape.bernoulli(static_cast<float>(options.no_enhancement_share));
  const int lesions = shape.bernoulli(0.18f) ? 2 : 1;
  std::vector<Lesion> result;
  for (int i = 0; i < lesions; ++i) {
    // A second focus is small and solid.
    const bool satellite = i > 0;
    const double outer = std::max(
        satellite ? static_cast<double>(shape.uniform(9, 15)) : static_cast<double>(shape.uniform(17, 35)),
        3.5 * voxel);
    const double inner = outer * static_cast<double>(shape.uniform(0.48f, 0.68f));
    const double rim = std::max({4.0, 1.4 * voxel, inner * static_cast<double>(shape.uniform(0.22f, 0.5f))});
    const Vector3 centre = draw_place(place, tissue);
    const auto shifted = [&](double reach) {
      return Vector3{centre.x + reach * static_cast<double>(shape.uniform(-1, 1)),
                     centre.y + reach * static_cast<double>(shape.uniform(-1, 1)),
                     centre.z + reach * static_cast<double>(shape.uniform(-1, 1))};
    };
    Lesion lesion;
    lesion.enhances = enhances;
    lesion.oedema = draw_blob(shape, centre, outer, 1.35);
    lesion.core = draw_blob(shape, shifted(0.14 * outer), inner, 1.2);
    lesion.necrosis = lesion.core;
    lesion.necrosis.radius = satellite ? 0.0 : std::max(0.0, inner - rim);
    result.push_back(lesion);
  }
  return result;
}

void paint_lesions(const std::vector<Lesion>& lesions, uint64_t seed, uint64_t index, const LabelMap& tissue,
                   LabelMap& labels) {
  const SmoothNoise coarse(seed, index, 10, 30);
  const SmoothNoise fine(seed, index, 11, 13);
  const SmoothNoise core_warp(seed, index, 12, 16);
  const SmoothNoise necrosis_warp(seed, index, 13, 12);
  for_each_voxel(labels.geometry, [&](int64_t at, const Vector3& p) {
    const Tissue kind = static_cast<Tissue>(tissue.data[static_cast<size_t>(at)]);
    if (kind == Tissue::outside) {
      return;
    }
    uint8_t& label = labels.data[static_cast<size_t>(at)];
    for (const Lesion& lesion : lesions) {
      const double spread = lesion.oedema(p);
      if (spread > 1.8) {
        continue;
      }
      const double core = lesion.core(p) + 0.22 * core_warp(p);
      if (core < 1) {
        const double scale = lesion.necrosis.radius;
        const bool necrotic =
            !lesion.enhances ||
            (scale > 0 && lesion.core(p) * lesion.core.radius / scale +
                                  0.22 * core_warp(p) * lesion.core.radius / scale + 0.25 * necrosis_warp(p) <
                              1);
        label = necrotic ? kLabelNcr : (label == kLabelNcr ? label : kLabelEt);
      } else if (label == 0 && kind != Tissue::csf) {
        // Fluid spreads along white matter and stops at the cortex.
        const double resistance = kind == Tissue::grey ? 1.22 : 1.0;
        label = resistance * (spread + 0.32 * coarse(p) + 0.12 * fine(p)) < 1 ? kLabelEd : uint8_t{0};
      }
    }
  });
}

// [1 2 1] / 4 along each axis inside the head: partial volume at tissue borders.
void soften(std::vector<float>& values, const LabelMap& tissue) {
  const Size3 n = tissue.size();
  const std::array<int64_t, 3> strides{1, n.x, n.x * n.y};
  std::vector<float> next(values.size());
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t stride = strides[static_cast<size_t>(axis)];
    parallel_for(n.z, 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin * n.x * n.y; at < end * n.x * n.y; ++at) {
        const int64_t position = at / stride % n[axis];
        float sum = 2.0f * values[static_cast<size_t>(at)];
        float weight = 2.0f;
        for (const int64_t step : {int64_t{-1}, int64_t{1}}) {
          const bool exists = position + step >= 0 && position + step < n[axis];
          if (exists && tissue.data[static_cast<size_t>(at + step * stride)] != 0) {
            sum += values[static_cast<size_t>(at + step * stride)];
            weight += 1.0f;
          }
        }
        next[static_cast<size_t>(at)] = sum / weight;
      }
    });
    std::swap(values, next);
  }
}

// Mean intensities of CSF, grey, white, NCR, ED, ET in each modality, before any jitter.
constexpr std::array<std::array<double, 6>, kModalityCount> kContrasts{{
    {190, 460, 640, 300, 430, 470},  // t1n: core dark, oedema darker than white matter
    {200, 480, 650, 310, 440, 960},  // t1c: the rim takes up contrast agent
    {960, 560, 410, 840, 760, 640},  // t2w: fluid bright
    {150, 530, 440, 520, 880, 700},  // t2f: free fluid suppressed, oedema brightest
}};

Image render(const PhantomOptions& options, uint64_t index, Modality modality, const LabelMap& tissue,
             const LabelMap& labels) {
  const size_t m = static_cast<size_t>(modality);
  RandomStream random(options.seed, index, kContrast + (static_cast<uint64_t>(m) << 8));
  std::array<double, 6> mean{};
  for (size_t i = 0; i < mean.size(); ++i) {
    mean[i] = kContrasts[m][i] * (1.0 + 0.05 * static_cast<double>(random.uniform(-1, 1)));
  }
  // Intensities of MR images have no unit: every case has its own scale.
  const double gain = std::exp(0.35 * static_cast<double>(random.uniform(-1, 1)));
  const double bias_depth = static_cast<double>(random.uniform(0.08f, 0.22f));
  const double sigma = static_cast<double>(random.uniform(9.0f, 24.0f));
  const SmoothNoise texture(options.seed, index, 20 + m, 7);
  const SmoothNoise lesion_texture(options.seed, index, 30 + m, 9);
  const SmoothNoise bias(options.seed, index, 40 + m, 90);

  std::vector<float> clean(tissue.data.size(), 0.0f);
  for_each_voxel(tissue.geometry, [&](int64_t at, const Vector3& p) {
    const uint8_t kind = tissue.data[static_cast<size_t>(at)];
    const uint8_t label = labels.data[static_cast<size_t>(at)];
    if (kind == 0) {
      return;
    }
    const double value = label == 0 ? mean[static_cast<size_t>(kind - 1)] * (1.0 + 0.04 * texture(p))
                                    : mean[static_cast<size_t>(label + 2)] * (1.0 + 0.10 * lesion_texture(p));
    clean[static_cast<size_t>(at)] = static_cast<float>(value);
  });
  soften(clean, tissue);

  Image image(tissue.geometry);
  for_each_voxel(tissue.geometry, [&](int64_t at, const Vector3& p) {
    if (tissue.data[static_cast<size_t>(at)] == 0) {
      return;
    }
    const Philox4 words = philox(options.seed, static_cast<uint64_t>(at), kVoxelNoise | (index << 8) | m);
    // Rician noise: the magnitude of a complex signal with Gaussian noise in both parts.
    const double radius = sigma * std::sqrt(-2.0 * std::log(static_cast<double>(uniform_from_bits(words.x))));
    const double angle = 2.0 * std::numbers::pi * static_cast<double>(uniform_from_bits(words.y));
    const double signal =
        static_cast<double>(clean[static_cast<size_t>(at)]) * std::exp(bias_depth * bias(p));
    const double magnitude = gain * std::hypot(signal + radius * std::cos(angle), radius * std::sin(angle));
    image.data[static_cast<size_t>(at)] =
        static_cast<float>(std::clamp(std::nearbyint(magnitude), 1.0, 32767.0));
  });
  return image;
}

}  // namespace

LabelMap tissue_from_anatomy(const std::filesystem::path& path, Size3 size) {
  const Geometry geometry = phantom_geometry(size);
  const NiftiImage file = read_nifti(path);
  require_finite(file.volume, path);
  require_nonzero(file.volume, path);
  const Image& image = file.volume;

  // Three-class k-means on a histogram of the head's intensities, without their extremes.
  std::vector<double> values;
  for (const float value : image.data) {
    if (value != 0) {
      values.push_back(static_cast<double>(value));
    }
  }
  const double low = percentile(values, 0.5);
  const double high = percentile(std::move(values), 99.5);
  check<FormatError>(high > low, path.string(),
                     ": all nonzero voxels have one intensity; expected a T1 volume");
  constexpr int bins = 512;
  std::vector<double> histogram(bins, 0.0);
  for (const float value : image.data) {
    if (value != 0) {
      const double at = (static_cast<double>(value) - low) / (high - low) * bins;
      ++histogram[static_cast<size_t>(std::clamp(at, 0.0, bins - 1.0))];
    }
  }
  std::array<double, 3> centre{bins / 6.0, bins / 2.0, 5.0 * bins / 6.0};
  for (int round = 0; round < 100; ++round) {
    std::array<double, 3> sum{};
    std::array<double, 3> weight{};
    for (int bin = 0; bin < bins; ++bin) {
      size_t nearest = 0;
      for (size_t k = 1; k < 3; ++k) {
        nearest = std::abs(bin - centre[k]) < std::abs(bin - centre[nearest]) ? k : nearest;
      }
      sum[nearest] += bin * histogram[static_cast<size_t>(bin)];
      weight[nearest] += histogram[static_cast<size_t>(bin)];
    }
    const std::array<double, 3> before = centre;
    for (size_t k = 0; k < 3; ++k) {
      centre[k] = weight[k] > 0 ? sum[k] / weight[k] : centre[k];
    }
    if (centre == before) {
      break;
    }
  }
  const auto to_value = [&](double bin) { return low + (bin + 0.5) / bins * (high - low); };
  const double csf_to_grey = to_value(0.5 * (centre[0] + centre[1]));
  const double grey_to_white = to_value(0.5 * (centre[1] + centre[2]));

  // Low-passed to the phantom's spacing, then read off about the head's centre.
  const Image coarse = resample_to_spacing(image, geometry.spacing_mm);
  LabelMap fine_head(image.geometry);
  for (size_t i = 0; i < fine_head.data.size(); ++i) {
    fine_head.data[i] = image.data[i] != 0 ? 1 : 0;
  }
  const LabelMap head = resample_to_grid(fine_head, coarse.geometry);
  const auto box = bounding_box(head);
  check<FormatError>(box.has_value(), path.string(), ": the head vanishes at ",
                     to_string(geometry.spacing_mm), " mm");
  LabelMap tissue(geometry);
  const Vector3 spacing = coarse.geometry.spacing_mm;
  for_each_voxel(geometry, [&](int64_t at, const Vector3& p) {
    Size3 voxel;
    for (int axis = 0; axis < 3; ++axis) {
      const double middle =
          static_cast<double>(box->start[axis]) + 0.5 * static_cast<double>(box->size[axis] - 1);
      voxel[axis] = static_cast<int64_t>(std::floor(middle + p[axis] / spacing[axis] + 0.5));
      if (voxel[axis] < 0 || voxel[axis] >= coarse.size()[axis]) {
        return;
      }
    }
    if (head.at(voxel.x, voxel.y, voxel.z) == 0) {
      return;
    }
    const double value = static_cast<double>(coarse.at(voxel.x, voxel.y, voxel.z));
    const Tissue kind = value < csf_to_grey     ? Tissue::csf
                        : value < grey_to_white ? Tissue::grey
                                                : Tissue::white;
    tissue.data[static_cast<size_t>(at)] = static_cast<uint8_t>(kind);
  });
  return tissue;
}

Case make_phantom(const PhantomOptions& options, int64_t index, const LabelMap& tissue) {
  check<UsageError>(index >= 0, "phantom index ", index, ": expected at least 0");
  check<UsageError>(options.no_enhancement_share >= 0 && options.no_enhancement_share <= 1,
                    "phantom: share without ET ", options.no_enhancement_share, ": expected 0 to 1");
  const Geometry geometry = phantom_geometry(options.size);
  check<ShapeError>(tissue.empty() || tissue.size() == options.size, "phantom: tissue has ",
                    to_string(tissue.size()), " voxels, expected ", to_string(options.size));
  const uint64_t number = static_cast<uint64_t>(index);
  LabelMap head = tissue.empty() ? built_in_tissue(options.seed, number, geometry) : tissue;
  head.geometry = geometry;
  Case result;
  result.name = phantom_name(index);
  result.geometry = geometry;
  result.present = kAllModalities;
  result.header = make_nifti_header(geometry, "LPS");
  result.labels = LabelMap(geometry);
  paint_lesions(draw_lesions(options, number, head), options.seed, number, head, result.labels);
  for (const Modality modality : kModalities) {
    result.images[static_cast<size_t>(modality)] = render(options, number, modality, head, result.labels);
  }
  return result;
}

Case make_phantom(const PhantomOptions& options, int64_t index) {
  return make_phantom(
      options, index,
      options.anatomy.empty() ? LabelMap{} : tissue_from_anatomy(options.anatomy, options.size));
}

std::string phantom_name(int64_t index) {
  std::array<char, 48> name{};
  std::snprintf(name.data(), name.size(), "VesalPhantom-%05lld", static_cast<long long>(index));
  return name.data();
}

std::filesystem::path write_phantom(const std::filesystem::path& folder, const Case& phantom) {
  const std::filesystem::path home = folder / phantom.name;
  std::error_code error;
  std::filesystem::create_directories(home, error);
  check<IoError>(!error, home.string(), ": cannot be created: ", error.message());
  for (const Modality modality : kModalities) {
    const Image& image = phantom.images[static_cast<size_t>(modality)];
    if (!image.empty()) {
      write_like(home / concat(phantom.name, "-", name_of(modality), ".nii.gz"), image, phantom.header,
                 VoxelType::int16);
    }
  }
  write_like(home / concat(phantom.name, "-seg.nii.gz"),
             labels_to_scheme(phantom.labels, LabelScheme::brats2023), phantom.header);
  return home;
}

}  // namespace vesal::imaging
