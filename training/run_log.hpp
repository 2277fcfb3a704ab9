// RUN/log.jsonl, one JSON object a line, and RUN/progress.png, the curves drawn from it.
//
// Lines: {"event": "start"|"resume", ...}, {"event": "step", "step", "loss", "segmentation", "edge", "deep",
// "lr", "gradient_norm", "seconds", "stall_seconds", with loss scaling "loss_scale" and "skipped"}, {"event":
// "validation", "step", "dice": {"WT", "TC", "ET"}, "mean", "best", "seconds", "cases": [...]}, {"event":
// "end", ...}. Steps count from 1: "step": 1 is the first one done.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "imaging/case.hpp"

namespace vesal::training {

struct StepRecord {
  int64_t step = 0;
  int64_t total_steps = 0;
  double loss = 0;          // the sum below
  double segmentation = 0;  // at full resolution
  double edge = 0;          // with its weight
  double deep = 0;          // with their weights
  double learning_rate = 0;
  double gradient_norm = 0;  // before clipping
  double loss_scale = 1;     // logged where it is not 1, layers/loss_scaler.hpp
  bool skipped = false;      // the gradient was not finite at this scale, nothing was changed
  double seconds = 0;        // of this step, waiting for data included
  double stall_seconds = 0;  // of them, waiting for data
  double seconds_left = 0;   // estimated, validations included; not logged
};

struct CaseDice {
  std::string name;
  std::array<double, imaging::kRegionCount> dice{};  // WT, TC, ET; 1 when both are empty, 0 when one is
};

struct ValidationRecord {
  int64_t step = 0;
  std::array<double, imaging::kRegionCount> dice{};  // means over the cases
  double mean = 0;                                   // of the three
  bool best = false;                                 // better than every earlier one
  double seconds = 0;
  std::vector<CaseDice> cases;
};

class RunLog {
 public:
  // Starts an empty log, or continues the one that is there: lines of steps after `step`, of validations
  // after `validated_step`, and a last line that was cut off are dropped. IoError when the file cannot be
  // written.
  static RunLog create(const std::filesystem::path& path);
  static RunLog resume(const std::filesystem::path& path, int64_t step, int64_t validated_step);
  ~RunLog();
  RunLog(RunLog&& other) noexcept;
  RunLog& operator=(RunLog&&) = delete;

  void add(const StepRecord& record);
  void add(const ValidationRecord& record);
  // Any other line; `json_object` is the text of one JSON object. On a full disk all of these throw IoError
  // and leave whole lines only.
  void add_line(const std::string& json_object);

  // Loss, Dice and learning rate over the steps, those before a resume included.
  void draw(const std::filesystem::path& png, const std::string& title) const;

 private:
  explicit RunLog(std::filesystem::path path);

  struct StepPoint {
    int64_t step;
    double loss, segmentation, learning_rate;
  };
  struct ValidationPoint {
    int64_t step;
    std::array<double, imaging::kRegionCount> dice;
    double mean;
  };

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::vector<StepPoint> steps_;
  std::vector<ValidationPoint> validations_;
};

}  // namespace vesal::training
