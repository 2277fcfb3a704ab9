// Finding, checking and reading cases; modalities, label schemes, regions: see case.hpp.
#include "imaging/case.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>

namespace vesal::imaging {
namespace {

constexpr std::string_view kKnownModalities =
    "t1n (t1, t1w, t1native), t1c (t1ce, t1gd, t1ct, ct1), t2w (t2), t2f (flair, fla, t2flair)";
constexpr std::string_view kExpectedFiles =
    "expected files like CASE-t1n.nii.gz, CASE-t1c.nii.gz, CASE-t2w.nii.gz, CASE-t2f.nii.gz (or _t1, _t1ce, "
    "_t2, _flair)";

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

// The part of "BraTS-GLI-00000-000-t1n.nii.gz" that names its content, "t1n"; "" for other files.
std::string content_name(const std::filesystem::path& path) {
  std::string name = lower(path.filename().string());
  for (const std::string_view ending : {".nii.gz", ".nii"}) {
    if (name.ends_with(ending) && !name.starts_with('.')) {
      name.resize(name.size() - ending.size());
      return name.substr(name.find_last_of("-_") + 1);
    }
  }
  return "";
}

// Claims files by name; returns how many NIfTI files the folder holds, of whatever content.
int64_t collect(const std::filesystem::path& folder, CaseFiles& files) {
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(folder, error);
       !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    if (!it->is_directory()) {
      paths.push_back(it->path());
    }
  }
  check<IoError>(!error, folder.string(), ": cannot be listed: ", error.message());
  std::sort(paths.begin(), paths.end());
  int64_t volumes = 0;
  const auto claim = [](std::filesystem::path& slot, const std::filesystem::path& path,
                        std::string_view what) {
    check<FormatError>(slot.empty(), path.parent_path().string(), ": both ", slot.filename().string(),
                       " and ", path.filename().string(), " claim to be ", what,
                       "; expected one file for it");
    slot = path;
  };
  for (const auto& path : paths) {
    const std::string content = content_name(path);
    volumes += content.empty() ? 0 : 1;
    if (content == "seg") {
      claim(files.labels, path, "the labels (seg)");
    } else if (const auto modality = find_modality(content)) {
      claim(files.images[static_cast<size_t>(*modality)], path, name_of(*modality));
    }
  }
  return volumes;
}

void require_image(const std::filesystem::path& folder, const CaseFiles& files) {
  check<FormatError>(count(files.present()) > 0, folder.string(), ": no image of a known modality; ",
                     kExpectedFiles);
}

// "data/case/" and "." still have a name.
std::string folder_name(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::path whole = std::filesystem::absolute(folder, error).lexically_normal();
  if (!whole.has_filename()) {
    whole = whole.parent_path();
  }
  return whole.filename().string();
}

void require_folder(const std::filesystem::path& folder) {
  check<IoError>(std::filesystem::exists(folder), folder.string(), ": no such folder; ", kExpectedFiles);
  check<IoError>(std::filesystem::is_directory(folder), folder.string(), ": is not a folder; ",
                 kExpectedFiles);
}

const std::array<uint8_t, 4>& scheme_values(LabelScheme scheme) {
  // Index: internal label.
  static constexpr std::array<uint8_t, 4> k2021{0, 1, 2, 4};
  static constexpr std::array<uint8_t, 4> k2023{0, 1, 2, 3};
  return scheme == LabelScheme::brats2021 ? k2021 : k2023;
}

}  // namespace

std::string_view name_of(Modality modality) {
  constexpr std::array<std::string_view, kModalityCount> names{"t1n", "t1c", "t2w", "t2f"};
  return names[static_cast<size_t>(modality)];
}

std::optional<Modality> find_modality(std::string_view name) {
  static const std::map<std::string, Modality, std::less<>> known{
      {"t1n", Modality::t1n},      {"t1", Modality::t1n},   {"t1w", Modality::t1n},
      {"t1native", Modality::t1n}, {"t1c", Modality::t1c},  {"t1ce", Modality::t1c},
      {"t1gd", Modality::t1c},     {"t1ct", Modality::t1c}, {"ct1", Modality::t1c},
      {"t2w", Modality::t2w},      {"t2", Modality::t2w},   {"t2f", Modality::t2f},
      {"flair", Modality::t2f},    {"fla", Modality::t2f},  {"t2flair", Modality::t2f}};
  const auto found = known.find(lower(name));
  return found == known.end() ? std::nullopt : std::optional(found->second);
}

Modality parse_modality(std::string_view name) {
  const auto modality = find_modality(name);
  check<UsageError>(modality.has_value(), "modality \"", name, "\" is not known; expected one of ",
                    kKnownModalities);
  return *modality;
}

ModalityMask parse_modality_mask(std::string_view comma_separated) {
  ModalityMask mask{};
  size_t begin = 0;
  while (begin <= comma_separated.size()) {
    const size_t end = std::min(comma_separated.find(',', begin), comma_separated.size());
    std::string_view item = comma_separated.substr(begin, end - begin);
    while (!item.empty() && item.front() == ' ') {
      item.remove_prefix(1);
    }
    while (!item.empty() && item.back() == ' ') {
      item.remove_suffix(1);
    }
    const Modality modality = parse_modality(item);
    bool& flag = mask[static_cast<size_t>(modality)];
    check<UsageError>(!flag, "modalities \"", comma_separated, "\": ", name_of(modality), " is named twice");
    flag = true;
    begin = end + 1;
  }
  return mask;
}

std::string to_string(const ModalityMask& mask) {
  std::string text;
  for (const Modality modality : kModalities) {
    if (mask[static_cast<size_t>(modality)]) {
      text += concat(text.empty() ? "" : ",", name_of(modality));
    }
  }
  return text;
}

int count(const ModalityMask& mask) { return static_cast<int>(std::count(mask.begin(), mask.end(), true)); }

ModalityMask CaseFiles::present() const {
  ModalityMask mask{};
  for (size_t i = 0; i < mask.size(); ++i) {
    mask[i] = !images[i].empty();
  }
  return mask;
}

CaseFiles find_case(const std::filesystem::path& folder) {
  require_folder(folder);
  CaseFiles files;
  files.name = folder_name(folder);
  collect(folder, files);
  require_image(folder, files);
  return files;
}

std::vector<CaseFiles> list_cases(const std::filesystem::path& folder) {
  require_folder(folder);
  CaseFiles own;
  own.name = folder_name(folder);
  collect(folder, own);
  if (count(own.present()) > 0) {
    return {own};
  }
  std::vector<std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_directory() && !entry.path().filename().string().starts_with('.')) {
      folders.push_back(entry.path());
    }
  }
  std::sort(folders.begin(), folders.end());
  std::vector<CaseFiles> cases;
  for (const auto& path : folders) {
    CaseFiles files;
    files.name = folder_name(path);
    try {
      if (collect(path, files) == 0) {
        continue;
      }
      require_image(path, files);
    } catch (const Error& error) {
      files.problem = error.what();
    }
    cases.push_back(std::move(files));
  }
  check<FormatError>(!cases.empty(), folder.string(), ": no case found among ", folders.size(),
                     " subfolders; expected one subfolder per case with ", kExpectedFiles.substr(9));
  return cases;
}

std::string_view name_of(LabelScheme scheme) {
  return scheme == LabelScheme::brats2021 ? "brats2021" : "brats2023";
}

LabelScheme parse_label_scheme(std::string_view name) {
  for (const LabelScheme scheme : {LabelScheme::brats2021, LabelScheme::brats2023}) {
    if (name == name_of(scheme)) {
      return scheme;
    }
  }
  throw UsageError(concat("label scheme \"", name,
                          "\": expected brats2021 (1 NCR, 2 ED, 4 ET) or brats2023 (1 NCR, 2 ED, 3 ET)"));
}

LabelMap labels_from_scheme(const Image& values, LabelScheme scheme, const std::filesystem::path& path) {
  const auto& allowed = scheme_values(scheme);
  LabelMap labels(values.geometry);
  std::map<float, int64_t> outside;
  int64_t not_finite = 0;
  for (size_t i = 0; i < values.data.size(); ++i) {
    const float value = values.data[i];
    if (value == 0.0f) {
      continue;
    }
    if (!std::isfinite(value)) {
      ++not_finite;
      continue;
    }
    const auto found = std::find_if(allowed.begin(), allowed.end(), [&](uint8_t candidate) {
      return static_cast<float>(candidate) == value;
    });
    if (found == allowed.end()) {
      ++outside[value];
    } else {
      labels.data[i] = static_cast<uint8_t>(found - allowed.begin());
    }
  }
  check<FormatError>(not_finite == 0, path.string(), ": ", not_finite,
                     " labels are NaN or infinite, expected 0, 1, 2 or ", int{allowed[3]});
  if (outside.empty()) {
    return labels;
  }
  const LabelScheme other =
      scheme == LabelScheme::brats2021 ? LabelScheme::brats2023 : LabelScheme::brats2021;
  const auto& fits = scheme_values(other);
  const bool other_fits = std::all_of(values.data.begin(), values.data.end(), [&](float value) {
    return std::any_of(fits.begin(), fits.end(), [&](uint8_t v) { return static_cast<float>(v) == value; });
  });
  const auto& [value, occurrences] = *outside.begin();
  throw FormatError(concat(path.string(), ": label ", value, " (", occurrences, " voxels",
                           outside.size() > 1 ? concat(", and ", outside.size() - 1, " more values") : "",
                           ") is not of scheme ", name_of(scheme), ", which allows 0, 1, 2, ",
                           int{allowed[3]},
                           other_fits ? concat("; all labels fit scheme ", name_of(other)) : ""));
}

LabelMap labels_to_scheme(const LabelMap& labels, LabelScheme scheme) {
  const auto& values = scheme_values(scheme);
  LabelMap result = labels;
  for (uint8_t& label : result.data) {
    check<FormatError>(label < values.size(), "label ", int{label}, " is not one of 0, 1 NCR, 2 ED, 3 ET");
    label = values[label];
  }
  return result;
}

std::string_view name_of(Region region) {
  constexpr std::array<std::string_view, kRegionCount> names{"WT", "TC", "ET"};
  return names[static_cast<size_t>(region)];
}

LabelMap region_mask(const LabelMap& labels, Region region) {
  LabelMap mask(labels.geometry);
  for (size_t i = 0; i < labels.data.size(); ++i) {
    mask.data[i] = in_region(labels.data[i], region) ? 1 : 0;
  }
  return mask;
}

void regions_to_labels(std::span<const float> wt, std::span<const float> tc, std::span<const float> et,
                       std::span<uint8_t> labels, float threshold) {
  check<ShapeError>(wt.size() == labels.size() && tc.size() == labels.size() && et.size() == labels.size(),
                    "regions_to_labels: ", wt.size(), ", ", tc.size(), ", ", et.size(), " probabilities for ",
                    labels.size(), " labels");
  for (size_t i = 0; i < labels.size(); ++i) {
    labels[i] = label_of_regions(wt[i], tc[i], et[i], threshold);
  }
}

void require_usable(const CaseFiles& files) {
  if (!files.problem.empty()) {
    throw FormatError(files.problem);
  }
}

Case load_case(const CaseFiles& files, const LoadOptions& options) {
  require_usable(files);
  Case result;
  result.name = files.name;
  std::filesystem::path first;
  for (const Modality modality : kModalities) {
    const size_t m = static_cast<size_t>(modality);
    const auto& path = files.images[m];
    if (path.empty() || !options.use[m]) {
      continue;
    }
    NiftiImage image = read_nifti(path);
    require_finite(image.volume, path);
    require_nonzero(image.volume, path);
    if (first.empty()) {
      first = path;
      result.geometry = image.header.geometry;
      result.header = std::move(image.header);
    } else {
      const std::string difference = geometry_difference(image.volume.geometry, result.geometry);
      check<FormatError>(difference.empty(), path.string(), ": not on the grid of ", first.string(), ": ",
                         difference, "; expected co-registered modalities on one grid");
      image.volume.geometry = result.geometry;
    }
    result.images[m] = std::move(image.volume);
    result.present[m] = true;
  }
  check<UsageError>(!first.empty(), "case ", files.name, ": none of the wanted modalities ",
                    to_string(options.use), " is there; found ", to_string(files.present()));
  if (options.read_labels && !files.labels.empty()) {
    const NiftiImage image = read_nifti(files.labels);
    const std::string difference = geometry_difference(image.volume.geometry, result.geometry);
    check<FormatError>(difference.empty(), files.labels.string(), ": not on the grid of ", first.string(),
                       ": ", difference, "; expected labels on the images' grid");
    result.labels = labels_from_scheme(image.volume, options.scheme, files.labels);
    result.labels.geometry = result.geometry;
  }
  return result;
}

}  // namespace vesal::imaging
