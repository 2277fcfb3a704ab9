// Matching, streaming, and the two forms of the report: see convert.hpp.
#include "weights_tools/convert.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/atomic_file.hpp"
#include "base/error.hpp"
#include "base/sha256.hpp"
#include "models/catalogue.hpp"
#include "weights_tools/text.hpp"

namespace vesal::weights {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kShown = 3;  // of a list, in text

std::string described(std::string_view name, std::string_view dtype, const Shape& shape) {
  return concat(one_line(name), " ", dtype, " ", to_string(shape));
}

// "2 missing (a, b)", of which the first few are shown.
template <class List, class Text>
std::string counted(const List& list, const char* what, const Text& text) {
  std::string names;
  for (size_t i = 0; i < std::min(list.size(), kShown); ++i) {
    names += (i == 0 ? "" : ", ") + text(list[i]);
  }
  return concat(list.size(), " ", what, " (", names, list.size() > kShown ? ", ..." : "", ")");
}

// The same extents in the same order but for extents of 1.
bool same_but_for_ones(Shape a, Shape b) {
  std::erase(a, 1);
  std::erase(b, 1);
  return a == b;
}

bool convertible(std::string_view dtype, const NamedTensor& entry) {
  if (entry.counter != nullptr || entry.constant != nullptr) {
    return dtype == stored_name(file_dtype(entry));
  }
  return dtype == "F64" || dtype == "F32" || dtype == "F16" || dtype == "BF16";
}

// Written by Vesal: it knows its model, and how its input is prepared.
bool is_own(const Metadata& metadata) {
  return metadata.contains("vesal.version") && metadata.contains("model") && metadata.contains("preset");
}

// The model's entries in the order of the report, filled from the file or from themselves.
std::vector<TensorSource> sources_of(DeviceContext& context, const WeightsFile& file,
                                     const ConversionReport& report, const ConversionRequest& request,
                                     const std::vector<NamedTensor>& entries) {
  std::map<std::string_view, std::string_view> file_names;
  for (const MatchedTensor& matched : report.matched) {
    file_names[matched.model_name] = matched.file_name;
  }
  std::vector<TensorSource> sources;
  const auto done = std::make_shared<size_t>(0);
  for (const NamedTensor& entry : entries) {
    const auto found = file_names.find(entry.name);
    const StoredTensor* stored = found == file_names.end() ? nullptr : file.find(found->second);
    sources.push_back({entry.name, file_dtype(entry), file_shape(entry), [&, stored, done] {
                         if (request.progress) {
                           request.progress((*done)++, entries.size());
                         }
                         return stored != nullptr ? read_entry(file, *stored, entry)
                                                  : entry_bytes(context, entry);
                       }});
  }
  return sources;
}

Metadata metadata_of(const WeightsFile& file, const models::Model& model, const NameMap& map,
                     const std::string& name, const std::string& sha256) {
  Metadata metadata;
  if (is_own(file.metadata())) {
    metadata = file.metadata();
    metadata.erase("vesal.trainer");
  } else {
    metadata = map.metadata(name);
  }
  for (const auto& [key, value] : model.metadata()) {
    metadata[key] = value;
  }
  const std::string file_name = file.path().filename().string();
  metadata["format"] = "vesal";
  metadata["vesal.version"] = VESAL_VERSION;
  metadata["vesal.source_file"] = is_utf8(file_name) ? file_name : one_line(file_name);
  metadata["vesal.source_format"] = file.format();
  metadata["vesal.source_dictionary"] = file.dictionary();
  metadata["vesal.source_sha256"] = sha256;
  return metadata;
}

void check_paths(const ConversionRequest& request) {
  const auto same = [](const fs::path& a, const fs::path& b) {
    std::error_code error;
    return fs::weakly_canonical(a, error) == fs::weakly_canonical(b, error) || fs::equivalent(a, b, error);
  };
  check<UsageError>(!same(request.out, request.from), "--out: found the file that --from reads, ",
                    request.from.string(), ", expected another");
  check<UsageError>(
      request.report.empty() || (!same(request.report, request.from) && !same(request.report, request.out)),
      "--report: found the file of --from or --out, ", request.report.string(), ", expected another");
  for (const fs::path& path : {request.out, request.report}) {
    std::error_code error;
    check<IoError>(path.empty() || !fs::is_directory(path, error), path.string(),
                   ": found a folder, expected a file's name");
    check<IoError>(path.empty() || request.overwrite || !fs::exists(path, error), path.string(),
                   ": found an existing file, expected none (--overwrite replaces it)");
  }
}

std::unique_ptr<models::Model> model_for(DeviceContext& context, const WeightsFile& file,
                                         const ConversionRequest& request) {
  const std::optional<uint64_t> seed =
      request.allow_missing ? std::optional(request.seed) : std::optional<uint64_t>();
  if (!is_own(file.metadata())) {
    return models::make_model(context, request.model, seed);
  }
  const std::string& preset = file.metadata().at("preset");
  check<UsageError>(preset == request.model, "--model: found ", request.model, ", expected ",
                    one_line(preset), ", which ", file.path().string(), " says that it is of");
  try {
    return models::make_model(context, file.metadata(), seed);
  } catch (const FormatError& error) {
    throw FormatError(concat(file.path().string(), ": ", error.what()));
  }
}

Json as_json(const std::vector<LoneTensor>& list) {
  Json json = Json::array();
  for (const LoneTensor& lone : list) {
    Json one{{"name", lone.name}, {"dtype", lone.dtype}, {"shape", lone.shape}};
    if (!lone.why.empty()) {
      one["why"] = lone.why;
    }
    json.push_back(one);
  }
  return json;
}

}  // namespace

std::string ConversionReport::problem(bool allow_missing, bool allow_unexpected) const {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : "; ") + part; };
  const auto name = [](const LoneTensor& lone) { return one_line(lone.name); };
  if (!conflicts.empty()) {
    add(counted(conflicts, conflicts.size() == 1 ? "conflict" : "conflicts",
                [](const std::string& conflict) { return conflict; }));
  }
  if (!missing.empty() && (!allow_missing || matched.empty())) {
    add(counted(missing, "missing", name));
  }
  if (!unexpected.empty() && (!allow_unexpected || matched.empty())) {
    add(counted(unexpected, "unexpected", name));
  }
  if (text.empty()) {
    return matched.empty() ? concat("holds nothing for ", model) : "";
  }
  if (score() < kLeastLikeness) {
    text += "; vesal inspect says which network it looks like";
  } else if (conflicts.empty() && (unexpected.empty() || allow_unexpected)) {
    text += "; --allow-missing lets them start anew";
  }
  return concat("does not fit ", model, ", of which ", matched.size(), " of ", model_entries,
                " entries match: ", text);
}

double ConversionReport::score() const {
  const size_t larger = std::max(file_tensors, model_entries);
  return larger == 0 ? 0.0 : static_cast<double>(matched.size()) / static_cast<double>(larger);
}

ConversionReport match(const WeightsFile& file, const NameMap& map, std::string_view model,
                       const layers::ParameterStore& store) {
  ConversionReport report;
  report.model = model;
  struct Candidate {
    const StoredTensor* stored;
    bool reshape;
  };
  const std::vector<NamedTensor> entries = named_parameters(store);
  std::map<std::string_view, std::vector<Candidate>> candidates;
  for (const NamedTensor& entry : entries) {
    candidates[entry.name];
  }
  for (const StoredTensor& stored : file.tensors()) {
    const MappedName mapped = map.apply(stored.name);
    if (mapped.ignored) {
      report.ignored.push_back({stored.name, stored.dtype, stored.shape, mapped.why});
    } else if (const auto found = candidates.find(mapped.name); found != candidates.end()) {
      found->second.push_back({&stored, mapped.reshape});
    } else {
      report.unexpected.push_back({stored.name, stored.dtype, stored.shape, ""});
    }
  }
  for (const NamedTensor& entry : entries) {
    const std::vector<Candidate>& found = candidates.at(entry.name);
    const std::string dtype(stored_name(file_dtype(entry)));
    const Shape shape = file_shape(entry);
    if (found.empty()) {
      (entry.constant != nullptr ? report.computed : report.missing)
          .push_back({entry.name, dtype, shape, ""});
      continue;
    }
    const StoredTensor& stored = *found.front().stored;
    const std::string there = described(entry.name, dtype, shape) + " in " + report.model;
    if (entry.constant != nullptr && !entry.constant->compared && found.size() == 1 &&
        (stored.shape != shape || stored.dtype != dtype)) {
      report.ignored.push_back({stored.name, stored.dtype, stored.shape, "computed by the network"});
      report.computed.push_back({entry.name, dtype, shape, ""});
    } else if (found.size() > 1) {
      report.conflicts.push_back(concat(one_line(stored.name), " and ", one_line(found[1].stored->name),
                                        " in the file are both ", there));
    } else if ((stored.shape != shape &&
                !(found.front().reshape && same_but_for_ones(stored.shape, shape))) ||
               !convertible(stored.dtype, entry)) {
      report.conflicts.push_back(
          concat(described(stored.name, stored.dtype, stored.shape), " in the file, ", there));
    } else {
      report.matched.push_back({stored.name, entry.name, stored.dtype, dtype, stored.shape, shape});
    }
  }
  report.file_tensors = file.tensors().size() - report.ignored.size();
  report.model_entries = entries.size() - report.computed.size();
  return report;
}

Conversion convert(DeviceContext& context, const ConversionRequest& request) {
  check_paths(request);
  const NameMap& map = name_map_of(request.model);
  const std::unique_ptr<WeightsFile> file = open_weights(request.from, request.dictionary);
  const std::unique_ptr<models::Model> model = model_for(context, *file, request);

  Conversion conversion;
  conversion.format = file->format();
  conversion.dictionary = file->dictionary();
  conversion.prefix = file->prefix();
  conversion.skipped = file->skipped();
  conversion.source_bytes = file->file_bytes();
  conversion.report = match(*file, map, request.model, model->parameters());
  // Both outputs are begun before either is made, so that a folder that cannot be written is found at once.
  std::optional<AtomicFile> report_file;
  if (!request.report.empty()) {
    report_file.emplace(request.report);
  }
  const auto write_report = [&] {
    if (report_file) {
      report_file->write(to_json(conversion, request));
      report_file->commit();
    }
  };
  try {
    const std::string problem = conversion.report.problem(request.allow_missing, request.allow_unexpected);
    check<FormatError>(problem.empty(), request.from.string(), ": ", problem);
    conversion.source_sha256 = sha256_of_file(request.from);
    conversion.metadata = metadata_of(*file, *model, map, request.model, conversion.source_sha256);
    const std::vector<NamedTensor> entries = named_parameters(model->parameters());
    write_safetensors(request.out, sources_of(context, *file, conversion.report, request, entries),
                      conversion.metadata);
    conversion.out_bytes = fs::file_size(request.out);
  } catch (const FormatError& error) {
    conversion.problem = error.what();
    write_report();
    throw;
  }
  write_report();
  return conversion;
}

std::string to_text(const Conversion& conversion, const ConversionRequest& request) {
  const ConversionReport& report = conversion.report;
  std::string text;
  const auto line = [&](std::string_view head, const std::string& rest) {
    text += concat(head, std::string(head.size() < 12 ? 12 - head.size() : 1, ' '), rest, "\n");
  };
  const auto name = [](const LoneTensor& lone) { return one_line(lone.name); };
  std::string from = concat(request.from.string(), ": ", conversion.format);
  if (!conversion.dictionary.empty() && conversion.dictionary != ".") {
    from += ", dictionary " + one_line(conversion.dictionary);
  }
  if (!conversion.prefix.empty()) {
    from += concat(", ", one_line(conversion.prefix), " stripped from every name");
  }
  line("from", from);
  line("model", report.model);
  line("matched", concat(report.matched.size(), " of ", report.model_entries, " entries of the model, ",
                         report.matched.size(), " of ", report.file_tensors, " tensors of the file"));
  std::vector<const MatchedTensor*> renamed, reshaped, converted;
  for (const MatchedTensor& matched : report.matched) {
    if (matched.renamed()) {
      renamed.push_back(&matched);
    }
    if (matched.reshaped()) {
      reshaped.push_back(&matched);
    }
    if (matched.converted()) {
      converted.push_back(&matched);
    }
  }
  if (!renamed.empty()) {
    line("renamed", counted(renamed, "of these", [](const MatchedTensor* m) {
           return concat(one_line(m->file_name), " to ", one_line(m->model_name));
         }));
  }
  if (!reshaped.empty()) {
    line("reshaped", counted(reshaped, "of these", [](const MatchedTensor* m) {
           return concat(one_line(m->file_name), " ", to_string(m->file_shape), " to ",
                         to_string(m->model_shape));
         }));
  }
  if (!converted.empty()) {
    line("converted", counted(converted, "of these", [](const MatchedTensor* m) {
           return concat(one_line(m->file_name), " ", m->file_dtype, " to ", m->model_dtype);
         }));
  }
  if (!report.computed.empty()) {
    line("computed", counted(report.computed, "by the model, which the file lacks", name));
  }
  if (report.missing.empty()) {
    line("missing", "none");
  } else {
    line("missing", concat(counted(report.missing, "that start anew", name), ", from seed ", request.seed));
  }
  line("unexpected", report.unexpected.empty() ? "none" : counted(report.unexpected, "left out", name));
  if (!report.ignored.empty()) {
    line("ignored", counted(report.ignored, "by the name map", [](const LoneTensor& lone) {
           return concat(one_line(lone.name), ": ", lone.why);
         }));
  }
  if (!conversion.skipped.empty()) {
    line("no tensor", counted(conversion.skipped, "in the dictionary",
                              [](const std::string& skipped) { return one_line(skipped); }));
  }
  line("source", concat(conversion.source_bytes, " bytes, SHA-256 ", conversion.source_sha256));
  line("wrote", concat(request.out.string(), ", ", conversion.out_bytes, " bytes"));
  if (!request.report.empty()) {
    line("", request.report.string());
  }
  return text;
}

std::string to_json(const Conversion& conversion, const ConversionRequest& request) {
  const ConversionReport& report = conversion.report;
  Json matched = Json::array();
  for (const MatchedTensor& one : report.matched) {
    matched.push_back(
        {{"file", {{"name", one.file_name}, {"dtype", one.file_dtype}, {"shape", one.file_shape}}},
         {"model", {{"name", one.model_name}, {"dtype", one.model_dtype}, {"shape", one.model_shape}}},
         {"renamed", one.renamed()},
         {"reshaped", one.reshaped()},
         {"converted", one.converted()}});
  }
  const Json json{{"program", concat("vesal ", VESAL_VERSION)},
                  {"result", conversion.problem.empty() ? "converted" : "refused"},
                  {"problem", conversion.problem.empty() ? Json(nullptr) : Json(conversion.problem)},
                  {"from",
                   {{"file", request.from.string()},
                    {"format", conversion.format},
                    {"dictionary", conversion.dictionary},
                    {"prefix", conversion.prefix},
                    {"no_tensor", conversion.skipped},
                    {"bytes", conversion.source_bytes},
                    {"sha256", conversion.source_sha256}}},
                  {"model", report.model},
                  {"out", request.out.string()},
                  {"out_bytes", conversion.out_bytes},
                  {"seed", report.missing.empty() ? Json(nullptr) : Json(request.seed)},
                  {"metadata", conversion.metadata},
                  {"conflicts", report.conflicts},
                  {"missing", as_json(report.missing)},
                  {"unexpected", as_json(report.unexpected)},
                  {"computed", as_json(report.computed)},
                  {"ignored", as_json(report.ignored)},
                  {"matched", matched}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace vesal::weights
