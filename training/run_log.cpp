// The log of a run and its curves: see run_log.hpp.
#include "training/run_log.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/atomic_file.hpp"
#include "base/error.hpp"
#include "imaging/picture.hpp"

namespace vesal::training {
namespace {

using Json = nlohmann::ordered_json;

// A number of a line; NaN where the log holds null, as JSON has no NaN.
double number_of(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>()
                                                   : std::numeric_limits<double>::quiet_NaN();
}

Json region_object(const std::array<double, imaging::kRegionCount>& values) {
  Json object;
  for (const imaging::Region region : imaging::kRegions) {
    object[std::string(imaging::name_of(region))] = values[static_cast<size_t>(region)];
  }
  return object;
}

}  // namespace

RunLog::RunLog(std::filesystem::path path) : path_(std::move(path)) {}

RunLog::RunLog(RunLog&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      steps_(std::move(other.steps_)),
      validations_(std::move(other.validations_)) {}

RunLog::~RunLog() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
}

RunLog RunLog::create(const std::filesystem::path& path) {
  RunLog log(path);
  log.descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
  check<IoError>(log.descriptor_ >= 0, path.string(), ": cannot be written: ", std::strerror(errno));
  return log;
}

RunLog RunLog::resume(const std::filesystem::path& path, int64_t step, int64_t validated_step) {
  RunLog log(path);
  {
    AtomicFile kept(path);
    std::ifstream in(path);
    for (std::string text; std::getline(in, text);) {
      const nlohmann::json line = nlohmann::json::parse(text, nullptr, false);
      if (!line.is_object()) {
        continue;  // cut off when the program or the machine stopped
      }
      const std::string event = line.value("event", "");
      const auto at = static_cast<int64_t>(
          line.contains("step") && line["step"].is_number_integer() ? line["step"].get<int64_t>() : 0);
      if ((event == "step" && at > step) || (event == "validation" && at > validated_step)) {
        continue;
      }
      if (event == "step") {
        log.steps_.push_back(
            {at, number_of(line, "loss"), number_of(line, "segmentation"), number_of(line, "lr")});
      } else if (event == "validation" && line.contains("dice")) {
        ValidationPoint point{at, {}, number_of(line, "mean")};
        for (const imaging::Region region : imaging::kRegions) {
          point.dice[static_cast<size_t>(region)] =
              number_of(line["dice"], std::string(imaging::name_of(region)).c_str());
        }
        log.validations_.push_back(point);
      }
      kept.write(text + "\n");
    }
    kept.commit();
  }
  log.descriptor_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  check<IoError>(log.descriptor_ >= 0, path.string(), ": cannot be written: ", std::strerror(errno));
  return log;
}

void RunLog::add_line(const std::string& json_object) {
  const std::string line = json_object + "\n";
  const off_t before = ::lseek(descriptor_, 0, SEEK_END);
  const ssize_t written = ::write(descriptor_, line.data(), line.size());
  if (written == static_cast<ssize_t>(line.size())) {
    return;
  }
  const int error = written < 0 ? errno : ENOSPC;
  std::string also;
  if (written > 0 && ::ftruncate(descriptor_, before) != 0) {
    also = "; half a line is left at its end";
  }
  throw IoError(concat(path_.string(), ": writing failed: ", std::strerror(error), also));
}

void RunLog::add(const StepRecord& record) {
  Json line{{"event", "step"},
            {"step", record.step},
            {"loss", record.loss},
            {"segmentation", record.segmentation},
            {"edge", record.edge},
            {"deep", record.deep},
            {"lr", record.learning_rate},
            {"gradient_norm", record.gradient_norm},
            {"seconds", record.seconds},
            {"stall_seconds", record.stall_seconds}};
  if (record.loss_scale != 1) {
    line["loss_scale"] = record.loss_scale;
    line["skipped"] = record.skipped;
  }
  add_line(line.dump());
  steps_.push_back({record.step, record.loss, record.segmentation, record.learning_rate});
}

void RunLog::add(const ValidationRecord& record) {
  Json cases = Json::array();
  for (const CaseDice& one : record.cases) {
    cases.push_back(Json{{"case", one.name}, {"dice", region_object(one.dice)}});
  }
  const Json line{{"event", "validation"},    {"step", record.step}, {"dice", region_object(record.dice)},
                  {"mean", record.mean},      {"best", record.best}, {"seconds", record.seconds},
                  {"cases", std::move(cases)}};
  add_line(line.dump(-1, ' ', false, Json::error_handler_t::replace));
  validations_.push_back({record.step, record.dice, record.mean});
}

void RunLog::draw(const std::filesystem::path& png, const std::string& title) const {
  // Single steps are noisy: a point is the mean over at most 1/200 of the run.
  const size_t group = std::max<size_t>(1, (steps_.size() + 199) / 200);
  const std::string steps_name = group == 1 ? "" : concat(" (mean of ", group, ")");
  imaging::Curve loss{"loss" + steps_name, {}, {}};
  imaging::Curve segmentation{"at full resolution", {}, {}};
  imaging::Curve rate{"learning rate", {}, {}};
  for (size_t begin = 0; begin < steps_.size(); begin += group) {
    const size_t end = std::min(steps_.size(), begin + group);
    double loss_sum = 0, segmentation_sum = 0;
    for (size_t i = begin; i < end; ++i) {
      loss_sum += steps_[i].loss;
      segmentation_sum += steps_[i].segmentation;
    }
    const auto x = static_cast<double>(steps_[end - 1].step);
    const auto n = static_cast<double>(end - begin);
    loss.x.push_back(x);
    loss.y.push_back(loss_sum / n);
    segmentation.x.push_back(x);
    segmentation.y.push_back(segmentation_sum / n);
    rate.x.push_back(x);
    rate.y.push_back(steps_[end - 1].learning_rate);
  }
  std::vector<imaging::Curve> dice;
  for (const imaging::Region region : imaging::kRegions) {
    dice.push_back({std::string(imaging::name_of(region)), {}, {}});
  }
  dice.push_back({"mean", {}, {}});
  for (const ValidationPoint& point : validations_) {
    for (size_t r = 0; r < dice.size(); ++r) {
      dice[r].x.push_back(static_cast<double>(point.step));
      dice[r].y.push_back(r < point.dice.size() ? point.dice[r] : point.mean);
    }
  }
  imaging::Chart loss_chart{
      .title = title, .x_label = "step", .y_label = "training loss", .curves = {loss, segmentation}};
  imaging::Chart dice_chart{.title = "",
                            .x_label = "step",
                            .y_label = "validation Dice",
                            .curves = std::move(dice),
                            .fixed_range = true,
                            .y_min = 0,
                            .y_max = 1};
  imaging::Chart rate_chart{.title = "", .x_label = "step", .y_label = "learning rate", .curves = {rate}};
  imaging::write_png(png, imaging::draw_charts({loss_chart, dice_chart, rate_chart}));
}

}  // namespace vesal::training
