// One case from files to files.
#include "training/prediction_files.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "imaging/nifti.hpp"

namespace vesal::training {
namespace fs = std::filesystem;
using imaging::kModalities;
using imaging::kRegionCount;
using imaging::kRegions;
using imaging::LabelMap;
using imaging::Size3;
using Json = nlohmann::ordered_json;

namespace {

// Seconds since the last lap.
class StopWatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Removes the files it was told of unless all went well; those that were there before are not touched.
class NewFiles {
 public:
  ~NewFiles() {
    std::error_code ignored;
    for (const fs::path& path : paths_) {
      fs::remove(path, ignored);
    }
  }
  void before_writing(const fs::path& path) {
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
      paths_.push_back(path);
    }
  }
  void keep() { paths_.clear(); }

 private:
  std::vector<fs::path> paths_;
};

// The modality on which a tumour shows best.
imaging::Modality background_of(const imaging::Case& source) {
  for (const imaging::Modality modality :
       {imaging::Modality::t2f, imaging::Modality::t1c, imaging::Modality::t2w, imaging::Modality::t1n}) {
    if (source.present[static_cast<size_t>(modality)]) {
      return modality;
    }
  }
  throw UsageError(concat(source.name, ": found no modality"));
}

void write_picture(const fs::path& path, const imaging::Case& source, imaging::Modality background,
                   const LabelMap& labels, const imaging::MontageOptions& options, NewFiles& written) {
  const imaging::Canvas canvas =
      imaging::case_montage(source.images[static_cast<size_t>(background)], nullptr, &labels, options);
  written.before_writing(path);
  imaging::write_png(path, canvas);
}

double rounded(double value, double steps) { return std::round(value * steps) / steps; }

}  // namespace

imaging::Box3 box_in_file(const imaging::Box3& canonical, const imaging::NiftiHeader& header) {
  imaging::Box3 box;
  for (int stored = 0; stored < 3; ++stored) {
    const int axis = header.axis[static_cast<size_t>(stored)];
    box.size[stored] = canonical.size[axis];
    box.start[stored] = header.flipped[static_cast<size_t>(stored)]
                            ? header.stored_size[stored] - canonical.start[axis] - canonical.size[axis]
                            : canonical.start[axis];
  }
  return box;
}

namespace {

// What statistics.json says of the nonzero voxels of `mask`, which lies on the grid of the images; `source`
// has them all on one grid of which `box` is this part.
Json mask_statistics(const LabelMap& mask, const imaging::Box3& box, const imaging::Case& source) {
  imaging::RegionStatistics statistics = imaging::region_statistics(mask);
  Json entry{{"voxels", statistics.voxels},
             {"volume_mm3", rounded(statistics.volume_ml * 1000.0, 1e3)},
             {"volume_mL", rounded(statistics.volume_ml, 1e6)},
             {"components", statistics.components},
             {"largest_component_mL", rounded(statistics.largest_component_ml, 1e6)}};
  if (statistics.voxels == 0) {
    entry["bounding_box_voxels"] = nullptr;
    entry["centroid_mm"] = nullptr;
    entry["intensity"] = nullptr;
    return entry;
  }
  for (int axis = 0; axis < 3; ++axis) {
    statistics.box.start[axis] += box.start[axis];
  }
  const imaging::Box3 stored = box_in_file(statistics.box, source.header);
  entry["bounding_box_voxels"] = {{"start", {stored.start.x, stored.start.y, stored.start.z}},
                                  {"size", {stored.size.x, stored.size.y, stored.size.z}}};
  entry["centroid_mm"] = {rounded(statistics.centroid_mm.x, 1e3), rounded(statistics.centroid_mm.y, 1e3),
                          rounded(statistics.centroid_mm.z, 1e3)};
  // The values of `image` inside the mask, in order.
  const auto sum_of = [&](const imaging::Image& image, const auto& value) {
    double sum = 0;
    for (int64_t z = 0; z < box.size.z; ++z) {
      for (int64_t y = 0; y < box.size.y; ++y) {
        const uint8_t* inside = mask.data.data() + mask.index(0, y, z);
        const float* row = image.data.data() + image.index(box.start.x, box.start.y + y, box.start.z + z);
        for (int64_t x = 0; x < box.size.x; ++x) {
          sum += inside[x] != 0 ? value(static_cast<double>(row[x])) : 0.0;
        }
      }
    }
    return sum;
  };
  Json intensity;
  for (const imaging::Modality modality : kModalities) {
    if (!source.present[static_cast<size_t>(modality)]) {
      continue;
    }
    const imaging::Image& image = source.images[static_cast<size_t>(modality)];
    const auto voxels = static_cast<double>(statistics.voxels);
    const double mean = sum_of(image, [](double value) { return value; }) / voxels;
    const double squares = sum_of(image, [&](double value) { return (value - mean) * (value - mean); });
    intensity[std::string(imaging::name_of(modality))] = {{"mean", mean},
                                                          {"std", std::sqrt(squares / voxels)}};
  }
  entry["intensity"] = intensity;
  return entry;
}

}  // namespace

std::string region_statistics_json(const LabelMap& labels, const imaging::Case& source) {
  Json out;
  const imaging::Box3 all{{0, 0, 0}, labels.size()};
  for (const imaging::Region region : kRegions) {
    out[std::string(imaging::name_of(region))] =
        mask_statistics(imaging::region_mask(labels, region), all, source);
  }
  return out.dump();
}

std::string class_statistics_json(const LabelMap& labels, const std::vector<std::string>& names,
                                  const imaging::Case& source) {
  const Size3 n = labels.size();
  // Each class is looked at within its own box: most are small.
  std::vector<Size3> first(256, n), last(256, Size3{-1, -1, -1});
  for (int64_t z = 0; z < n.z; ++z) {
    for (int64_t y = 0; y < n.y; ++y) {
      for (int64_t x = 0; x < n.x; ++x) {
        const uint8_t label = labels.at(x, y, z);
        const Size3 here{x, y, z};
        for (int axis = 0; axis < 3; ++axis) {
          first[label][axis] = std::min(first[label][axis], here[axis]);
          last[label][axis] = std::max(last[label][axis], here[axis]);
        }
      }
    }
  }
  Json out = Json::object();
  for (size_t label = 1; label < names.size(); ++label) {
    imaging::Box3 box{first[label], {}};
    if (last[label].x < 0) {
      box = {{0, 0, 0}, {1, 1, 1}};  // any voxel: the class has none
    } else {
      for (int axis = 0; axis < 3; ++axis) {
        box.size[axis] = last[label][axis] - first[label][axis] + 1;
      }
    }
    LabelMap mask = imaging::crop(labels, box);
    for (uint8_t& voxel : mask.data) {
      voxel = voxel == label ? 1 : 0;
    }
    out[names[label]] = mask_statistics(mask, box, source);
  }
  return out.dump();
}

PredictionPaths prediction_paths(const fs::path& label_map, bool probabilities) {
  const std::string text = label_map.string();
  size_t ending = 0;
  for (const char* const known : {".nii.gz", ".nii"}) {
    const std::string suffix = known;
    if (ending == 0 && label_map.filename().string().size() > suffix.size() && text.ends_with(suffix)) {
      ending = suffix.size();
    }
  }
  check<UsageError>(ending > 0, text,
                    ": name of the label map: found no ending .nii.gz or .nii, expected one");
  const std::string stem = text.substr(0, text.size() - ending);
  PredictionPaths paths{.label_map = label_map, .picture = stem + ".png", .probabilities = {}};
  if (probabilities) {
    paths.probabilities = {stem + "-wt-probability.nii.gz", stem + "-tc-probability.nii.gz",
                           stem + "-et-probability.nii.gz"};
  }
  return paths;
}

PredictedCase predict_files(DeviceContext& context, const models::Fusion& network,
                            const imaging::CaseFiles& files, const PredictionOptions& options,
                            const PredictionPaths& paths) {
  PredictedCase result;
  result.name = files.name;
  StopWatch watch;
  const imaging::Case source =
      imaging::load_case(files, {.use = options.use, .read_labels = false, .scheme = options.scheme});
  result.used = source.present;
  result.seconds.read = watch.lap();

  const imaging::PreparedCase prepared = imaging::prepare_case(source, {.spacing_mm = options.spacing_mm});
  result.prepared_size = prepared.size();
  result.seconds.prepare = watch.lap();

  const RegionProbabilities probabilities = predict_case(context, network, prepared, options.tiles);
  result.tiles = probabilities.tiles;
  result.tiles_skipped = probabilities.tiles_skipped;
  result.seconds.network = watch.lap();

  const LabelMap labels = imaging::restore_region_labels(prepared, probabilities.values);
  for (const imaging::Region region : kRegions) {
    result.regions[static_cast<size_t>(region)] =
        imaging::region_statistics(imaging::region_mask(labels, region));
    result.volumes_ml.emplace_back(imaging::name_of(region),
                                   result.regions[static_cast<size_t>(region)].volume_ml);
  }
  result.statistics = region_statistics_json(labels, source);
  result.seconds.restore = watch.lap();

  NewFiles written;
  written.before_writing(paths.label_map);
  imaging::write_like(paths.label_map, imaging::labels_to_scheme(labels, options.scheme), source.header);
  for (int region = 0; region < kRegionCount; ++region) {
    const fs::path& path = paths.probabilities[static_cast<size_t>(region)];
    if (!path.empty()) {
      written.before_writing(path);
      imaging::write_like(path,
                          imaging::restore_probability(prepared, probabilities.values, kRegionCount, region),
                          source.header);
    }
  }
  const imaging::Modality background = background_of(source);
  imaging::MontageOptions montage;
  montage.title = files.name;
  montage.subtitle =
      concat("on ", imaging::name_of(background), ", from ", imaging::to_string(source.present));
  write_picture(paths.picture, source, background, labels, montage, written);
  written.keep();
  result.seconds.write = watch.lap();
  return result;
}

PredictedCase predict_files(DeviceContext& context, const LoadedSegmenter& segmenter,
                            const imaging::CaseFiles& files, const PredictSettings& settings,
                            const PredictionPaths& paths) {
  const SegmenterInfo& info = segmenter.info;
  PredictedCase result;
  result.name = files.name;
  StopWatch watch;
  const imaging::Case source = imaging::load_case(files, {.use = info.mask(), .read_labels = false});
  result.used = source.present;
  result.seconds.read = watch.lap();

  LabelMap labels;
  {
    const PreparedForSegmenter prepared = prepare_for_segmenter(source, info);
    result.prepared_size = imaging::from_ijk(info.layout, prepared.volume.size());
    result.seconds.prepare = watch.lap();
    SegmentedCase segmented = segment_case(context, *segmenter.network, info, source, prepared, settings);
    result.tiles = segmented.tiles;
    result.tiles_skipped = segmented.tiles_skipped;
    labels = std::move(segmented.labels);
    result.seconds.network = watch.lap();
  }

  result.statistics = class_statistics_json(labels, info.labels, source);
  std::vector<int64_t> voxels(256, 0);
  for (const uint8_t label : labels.data) {
    ++voxels[label];
  }
  for (size_t label = 1; label < info.labels.size(); ++label) {
    result.volumes_ml.emplace_back(info.labels[label],
                                   static_cast<double>(voxels[label]) * source.geometry.voxel_ml());
  }
  result.seconds.restore = watch.lap();

  NewFiles written;
  written.before_writing(paths.label_map);
  imaging::write_like(paths.label_map, labels, source.header);
  const imaging::Modality background = background_of(source);
  imaging::MontageOptions montage;
  montage.title = files.name;
  montage.subtitle = concat(info.preset, " on ", imaging::name_of(background));
  montage.label_names = info.labels;
  write_picture(paths.picture, source, background, labels, montage, written);
  written.keep();
  result.seconds.write = watch.lap();
  return result;
}

}  // namespace vesal::training
