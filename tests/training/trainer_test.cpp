// Whole training runs on tiny phantoms: the same settings give the same bytes, stopping and resuming changes
// nothing, and what cannot work is refused with one line before anything is written.
#include "training/trainer.hpp"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "kernels/elementwise/elementwise.hpp"
#include "tests/training/training_fixture.hpp"
#include "weights_tools/parameters.hpp"

namespace vesal::training {
namespace {

// Records what it is told, and stops the run after a step or within a validation.
class Recorder : public ProgressSink {
 public:
  void step(const StepRecord& record) override {
    steps.push_back(record);
    stop = stop || record.step == stop_after_step;
  }
  void validating(int64_t done, int64_t) override { stop = stop || (stop_in_validation && done == 1); }
  void validation(const ValidationRecord& record) override { validations.push_back(record); }
  void loading(int64_t, int64_t, const std::string&) override { stop = stop || stop_while_loading; }
  void message(const std::string& text) override { messages.push_back(text); }

  int64_t stop_after_step = -1;
  bool stop_in_validation = false;
  bool stop_while_loading = false;
  std::atomic<bool> stop{false};
  std::vector<StepRecord> steps;
  std::vector<ValidationRecord> validations;
  std::vector<std::string> messages;
};

class TrainerTest : public TrainingTest {
 protected:
  // fusion-micro on 32^3 phantoms; two cases to learn from, one to validate on.
  TrainSettings settings(const char* run, int64_t steps) const {
    TrainSettings s;
    s.data = folder_ / "data";
    s.out = folder_ / run;
    s.model = "fusion-micro";
    s.patch = imaging::Size3{16, 32, 16};
    s.batch = 2;
    s.seed = 5;
    s.steps = steps;
    s.validation_fraction = 0.3;
    s.validate_every = 3;
    return s;
  }
  // What a user types to go on: nothing but where, and perhaps how far.
  TrainSettings resumed(const char* run) const {
    TrainSettings s;
    s.data = folder_ / "data";
    s.out = folder_ / run;
    s.resume = true;
    return s;
  }
  TrainResult run(const TrainSettings& s) const {
    Recorder recorder;
    return train(s, recorder, &recorder.stop);
  }
  void expect_same_runs(const char* a, const char* b) const {
    for (const char* file : {"last.safetensors", "best.safetensors"}) {
      EXPECT_TRUE(slurp(folder_ / a / file) == slurp(folder_ / b / file))
          << file << " of " << a << " and " << b;
    }
  }
  // Steps and validations of a log, in order: "s1 s2 v2 ...".
  std::string events(const char* run) const {
    std::string result;
    std::ifstream in(folder_ / run / "log.jsonl");
    for (std::string text; std::getline(in, text);) {
      const auto line = nlohmann::json::parse(text);
      if (line["event"] == "step" || line["event"] == "validation") {
        result +=
            line["event"].get<std::string>().substr(0, 1) + std::to_string(line["step"].get<int64_t>()) + " ";
      }
    }
    return result;
  }
};

TEST_F(TrainerTest, TwoRunsGiveTheSameBytesAndTheirLogIsComplete) {
  phantoms(3, 32);
  TrainSettings first = settings("a", 7);
  Recorder recorder;
  const TrainResult result = train(first, recorder);
  TrainSettings second = settings("b", 7);
  second.loader_threads = 3;  // must not matter
  second.recompute = true;    // nor must this
  run(second);
  expect_same_runs("a", "b");

  EXPECT_FALSE(result.interrupted);
  EXPECT_EQ(result.step, 7);
  EXPECT_EQ(result.total_steps, 7);
  EXPECT_EQ(result.checkpoint, folder_ / "a" / "last.safetensors");
  EXPECT_EQ(listing(folder_ / "a"),
            (std::vector<std::string>{"best.safetensors", "last.safetensors", "log.jsonl", "progress.png"}));
  EXPECT_EQ(events("a"), "s1 s2 s3 v3 s4 s5 s6 v6 s7 v7 ");
  ASSERT_EQ(recorder.steps.size(), 7u);
  ASSERT_EQ(recorder.validations.size(), 3u);
  double best = -1;
  for (const ValidationRecord& validation : recorder.validations) {
    EXPECT_EQ(validation.cases.size(), 1u);
    EXPECT_EQ(validation.best, validation.mean > best);
    best = std::max(best, validation.mean);
  }
  EXPECT_EQ(result.best_score, best);
  for (const StepRecord& step : recorder.steps) {
    EXPECT_GT(step.loss, 0);
    EXPECT_NEAR(step.loss, step.segmentation + step.edge + step.deep, 1e-12);
    EXPECT_GT(step.gradient_norm, 0);
    EXPECT_GT(step.learning_rate, 0);
    EXPECT_LE(step.stall_seconds, step.seconds);
  }
  // The weights changed, and the best ones can be loaded.
  DeviceContext context{Device{}};
  const LoadedNetwork loaded = load_network(context, folder_ / "a");
  EXPECT_EQ(loaded.file.filename(), "best.safetensors");
  EXPECT_EQ(loaded.info.step, result.best_step);
  const models::Fusion fresh(context, loaded.info.network, 5);
  bool changed = false;
  for (size_t i = 0; i < fresh.parameters().all().size(); ++i) {
    changed = changed || fresh.parameters().all()[i]->value.to_host<float>(context) !=
                             loaded.network->parameters().all()[i]->value.to_host<float>(context);
  }
  EXPECT_TRUE(changed);

  TrainSettings other = settings("c", 7);
  other.seed = 6;
  run(other);
  EXPECT_FALSE(slurp(folder_ / "a" / "last.safetensors") == slurp(folder_ / "c" / "last.safetensors"));
}

TEST_F(TrainerTest, InterruptedAndResumedEqualsNeverStopped) {
  phantoms(3, 32);
  run(settings("straight", 7));
  for (const int64_t stop_at : {2, 3, 6}) {  // between, at and just before validations
    const std::string name = "stopped" + std::to_string(stop_at);
    Recorder recorder;
    recorder.stop_after_step = stop_at;
    const TrainResult part = train(settings(name.c_str(), 7), recorder, &recorder.stop);
    EXPECT_TRUE(part.interrupted);
    EXPECT_EQ(part.step, stop_at);
    TrainSettings more = resumed(name.c_str());
    more.loader_threads = 2;
    const TrainResult rest = run(more);
    EXPECT_FALSE(rest.interrupted);
    EXPECT_EQ(rest.first_step, stop_at);
    EXPECT_EQ(rest.step, 7);
    expect_same_runs("straight", name.c_str());
    EXPECT_EQ(events(name.c_str()), events("straight"));
  }
}

TEST_F(TrainerTest, HalfPrecisionResumesToTheSameBytes) {
  phantoms(3, 32);
  for (const DType precision : {DType::bf16, DType::f16}) {
    const std::string name(name_of(precision));
    const auto with = [&](const std::string& run_name) {
      TrainSettings s = settings(run_name.c_str(), 5);
      s.precision = precision;
      return s;
    };
    Recorder whole;
    train(with(name), whole);
    run(with(name + "-again"));
    expect_same_runs(name.c_str(), (name + "-again").c_str());
    Recorder recorder;
    recorder.stop_after_step = 2;
    train(with(name + "-stopped"), recorder, &recorder.stop);
    run(resumed((name + "-stopped").c_str()));
    expect_same_runs(name.c_str(), (name + "-stopped").c_str());
    const TrainerState state =
        read_trainer_state(weights::SafetensorsFile(folder_ / name / "last.safetensors"));
    EXPECT_EQ(state.config.precision, precision);
    EXPECT_EQ(state.scaler.good_steps(), precision == DType::f16 ? 5 - state.skipped_steps : 0);
    for (const StepRecord& step : whole.steps) {
      EXPECT_TRUE(std::isfinite(step.loss));
      EXPECT_EQ(step.loss_scale > 1, precision == DType::f16);
    }
    // The masters are float32: they hold what the copies cannot.
    DeviceContext context{Device{}};
    const LoadedNetwork loaded = load_network(context, folder_ / name / "last.safetensors");
    layers::Parameter* weight = loaded.network->parameters().find("head.weight");
    const Tensor copy = layers::convert(context, weight->stored(context, precision), DType::f32).value();
    EXPECT_NE(copy.to_host<float>(context), weight->value.to_host<float>(context));
    // Predicted with either precision it is nearly the same.
    const auto probabilities = [&](DType stored) {
      PredictSettings tiles;
      tiles.patch = {32, 32, 32};
      tiles.precision = stored;
      return predict_case(context, *loaded.network, prepared(1, 32).front(), tiles).values;
    };
    const std::vector<float> exact = probabilities(DType::f32), rounded = probabilities(precision);
    double difference = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      difference += std::abs(exact[i] - rounded[i]) / static_cast<double>(exact.size());
    }
    EXPECT_GT(difference, 0);
    EXPECT_LT(difference, 40 * (precision == DType::bf16 ? 0x1p-8 : 0x1p-11));  // as in fusion_test.cpp
  }
}

// A head that is far too steep and the largest scale overflow f16: steps are skipped, and nothing but the
// scale changes, until gradients are finite.
TEST_F(TrainerTest, OverflowOnlyLowersTheLossScale) {
  phantoms(2, 32);
  TrainSettings s = settings("run", 1);
  s.precision = DType::f16;
  s.validation_fraction = 0.0;
  s.schedule_steps = 100;
  run(s);
  const auto last = folder_ / "run" / "last.safetensors";
  const auto values_of = [&](const weights::SafetensorsFile& file) {
    return file.read_floats(*file.find("decoder.up4.conv.weight"));
  };
  {
    DeviceContext context{Device{}};
    const LoadedNetwork loaded = load_network(context, last);
    const weights::SafetensorsFile file(last);
    TrainerState state = read_trainer_state(file);
    const auto optimizer =
        layers::make_optimizer(context, loaded.network->parameters(), state.config.optimizer, 0.01f, 12.0f);
    restore_checkpoint(context, file, *loaded.network, *optimizer);
    const Tensor& head = loaded.network->parameters().find("head.weight")->value;
    kernels::scale_add(context.kernels(), head.count(), 4000.0f, head, 0.0f, head);
    state.scaler.restore(0x1p24f, 0);
    write_checkpoint(context, last, *loaded.network, *optimizer, loaded.info, state);
  }
  const std::vector<float> before = values_of(weights::SafetensorsFile(last));
  TrainSettings more = resumed("run");
  more.steps = 2;
  Recorder recorder;
  train(more, recorder);
  EXPECT_TRUE(recorder.steps.at(0).skipped);
  EXPECT_EQ(recorder.steps.at(0).loss_scale, 0x1p24);
  EXPECT_EQ(values_of(weights::SafetensorsFile(last)), before);
  TrainerState state = read_trainer_state(weights::SafetensorsFile(last));
  EXPECT_EQ(state.skipped_steps, 1);
  EXPECT_EQ(state.scaler.scale(), 0x1p23f);
  more.steps = 20;
  train(more, recorder);
  EXPECT_FALSE(recorder.steps.back().skipped);
  EXPECT_NE(values_of(weights::SafetensorsFile(last)), before);
  state = read_trainer_state(weights::SafetensorsFile(last));
  EXPECT_GT(state.skipped_steps, 1);
  std::ifstream log(folder_ / "run" / "log.jsonl");
  int64_t skipped = 0;
  for (std::string text; std::getline(log, text);) {
    skipped += nlohmann::json::parse(text).value("skipped", false) ? 1 : 0;
  }
  EXPECT_EQ(skipped, state.skipped_steps);
}

TEST_F(TrainerTest, EveryOptimizerResumesToTheSameBytes) {
  phantoms(2, 32);
  std::vector<std::string> results;
  for (const auto kind :
       {layers::OptimizerKind::adamw, layers::OptimizerKind::adam, layers::OptimizerKind::sgd}) {
    const std::string name(layers::name_of(kind));
    const auto with = [&](const std::string& run_name) {
      TrainSettings s = settings(run_name.c_str(), 4);
      s.optimizer = kind;
      return s;
    };
    run(with(name));
    Recorder recorder;
    recorder.stop_after_step = 2;
    train(with(name + "-stopped"), recorder, &recorder.stop);
    EXPECT_EQ(run(resumed((name + "-stopped").c_str())).first_step, 2);
    expect_same_runs(name.c_str(), (name + "-stopped").c_str());
    const weights::SafetensorsFile file(folder_ / name / "last.safetensors");
    const RunConfig config = read_trainer_state(file).config;
    EXPECT_EQ(config.optimizer, kind);
    EXPECT_EQ(config.learning_rate, layers::optimizer_defaults(kind).learning_rate);
    EXPECT_EQ(config.weight_decay, layers::optimizer_defaults(kind).weight_decay);
    EXPECT_NE(file.find("optimizer.first_moment.head.weight"), nullptr);
    EXPECT_EQ(file.find("optimizer.second_moment.head.weight") == nullptr,
              kind == layers::OptimizerKind::sgd);
    results.push_back(slurp(folder_ / name / "best.safetensors"));
  }
  EXPECT_NE(results[0], results[1]);
  EXPECT_NE(results[0], results[2]);
}

TEST_F(TrainerTest, InterruptionWithinAValidationRepeatsIt) {
  phantoms(4, 32);
  TrainSettings whole = settings("straight", 4);
  whole.validation_fraction = 0.5;  // two cases: one is done when the run stops
  run(whole);
  whole.out = folder_ / "stopped";
  Recorder recorder;
  recorder.stop_in_validation = true;
  const TrainResult part = train(whole, recorder, &recorder.stop);
  EXPECT_TRUE(part.interrupted);
  EXPECT_EQ(part.step, 3);
  EXPECT_TRUE(recorder.validations.empty());
  EXPECT_EQ(part.best_step, 0);
  run(resumed("stopped"));
  expect_same_runs("straight", "stopped");
  EXPECT_EQ(events("stopped"), events("straight"));
}

TEST_F(TrainerTest, AShorterRunWithTheLongScheduleGoesOnToTheSameBytes) {
  phantoms(3, 32);
  run(settings("straight", 6));
  TrainSettings shorter = settings("parts", 2);
  shorter.schedule_steps = 6;
  EXPECT_EQ(run(shorter).step, 2);
  TrainSettings more = resumed("parts");
  more.steps = 6;
  EXPECT_EQ(run(more).step, 6);
  expect_same_runs("straight", "parts");
  // Nothing is left to do.
  const std::string before = slurp(folder_ / "parts" / "last.safetensors");
  const TrainResult nothing = run(resumed("parts"));
  EXPECT_EQ(nothing.first_step, 6);
  EXPECT_EQ(nothing.step, 6);
  EXPECT_FALSE(nothing.interrupted);
  EXPECT_EQ(slurp(folder_ / "parts" / "last.safetensors"), before);
}

TEST_F(TrainerTest, TheScheduleIsRecordedAndKept) {
  phantoms(3, 32);
  TrainSettings first = settings("run", 2);
  first.warmup_steps = 0;
  Recorder one;
  train(first, one);
  TrainSettings more = resumed("run");
  more.steps = 4;
  Recorder two;
  train(more, two);
  ASSERT_EQ(two.steps.size(), 2u);
  // The first run's schedule ended at step 2: the rate has reached its end and stays there.
  EXPECT_GT(one.steps[1].learning_rate, 0);
  EXPECT_LT(one.steps[1].learning_rate, one.steps[0].learning_rate);
  EXPECT_EQ(two.steps[0].learning_rate, two.steps[1].learning_rate);
  EXPECT_LT(two.steps[0].learning_rate, one.steps[1].learning_rate);
  const TrainerState state =
      read_trainer_state(weights::SafetensorsFile(folder_ / "run" / "last.safetensors"));
  EXPECT_EQ(state.config.schedule_steps, 2);
  EXPECT_EQ(state.total_steps, 4);
  const auto warned = [](const Recorder& recorder) {
    return std::any_of(recorder.messages.begin(), recorder.messages.end(), [](const std::string& message) {
      return message.find("the learning rate is 0 from step 2 on") != std::string::npos;
    });
  };
  EXPECT_FALSE(warned(one));
  EXPECT_TRUE(warned(two));
  // A run does not go backwards.
  const std::string before = slurp(folder_ / "run" / "last.safetensors");
  more.steps = 3;
  EXPECT_THROW(run(more), UsageError);
  EXPECT_EQ(slurp(folder_ / "run" / "last.safetensors"), before);
}

TEST_F(TrainerTest, MinutesFixTheStepsAndEqualARunOfThatManySteps) {
  phantoms(2, 32);
  TrainSettings timed = settings("timed", 1);
  timed.steps.reset();
  timed.minutes = 0.05;
  const TrainResult result = run(timed);
  EXPECT_FALSE(result.interrupted);
  EXPECT_GE(result.step, 1);
  EXPECT_EQ(result.step, result.total_steps);
  const TrainerState state =
      read_trainer_state(weights::SafetensorsFile(folder_ / "timed" / "last.safetensors"));
  EXPECT_EQ(state.total_steps, result.step);
  EXPECT_EQ(state.config.schedule_steps, result.step);
  run(settings("counted", result.step));
  expect_same_runs("timed", "counted");
}

TEST_F(TrainerTest, TimePlan) {
  // 970 s usable, ten validations of 10 s, 1 s a step.
  TimePlan plan = plan_time(1000, 1.0, 10.0, 0);
  EXPECT_EQ(plan.steps, 870);
  EXPECT_EQ(plan.validate_every, 87);
  // Validations take 30 % at most: three of 100 s.
  plan = plan_time(1000, 1.0, 100.0, 0);
  EXPECT_EQ(plan.steps, 670);
  EXPECT_EQ(plan.validate_every, 224);
  // One in any case.
  plan = plan_time(1000, 1.0, 900.0, 0);
  EXPECT_EQ(plan.steps, 70);
  EXPECT_EQ(plan.validate_every, 70);
  plan = plan_time(1000, 1.0, 0.0, 0);
  EXPECT_EQ(plan.steps, 970);
  EXPECT_EQ(plan.validate_every, 97);
  plan = plan_time(1000, 1.0, 97.0, 97);
  EXPECT_EQ(plan.steps, 485);
  EXPECT_EQ(plan.validate_every, 97);
  // No time is left: one step.
  EXPECT_EQ(plan_time(-5, 1.0, 10.0, 0).steps, 1);
  EXPECT_EQ(plan_time(-5, 1.0, 10.0, 0).validate_every, 1);
}

TEST_F(TrainerTest, ValidationIsDueByStepAndScheduleOnly) {
  RunConfig config;
  config.validate_every = 4;
  config.schedule_steps = 10;
  std::string due;
  for (int64_t step = 0; step <= 13; ++step) {
    due += validation_due(config, step) ? 'x' : '.';
  }
  EXPECT_EQ(due, "....x...x.x.x.");
}

TEST_F(TrainerTest, RegionDice) {
  imaging::LabelMap labels(imaging::make_geometry({4, 1, 1}, {1, 1, 1}));
  labels.data = {0, 2, 1, 3};
  RegionProbabilities p{.size = {4, 1, 1}, .values = {0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1}};
  EXPECT_EQ(region_dice(p, labels), (std::array<double, 3>{1, 1, 1}));
  // WT also where nothing is; TC missing at one of two voxels; ET nowhere.
  p.values = {1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0};
  EXPECT_EQ(region_dice(p, labels), (std::array<double, 3>{2.0 * 3 / 7, 2.0 / 3, 0}));
  labels.data = {0, 0, 0, 0};
  p.values.assign(12, 0.0f);
  EXPECT_EQ(region_dice(p, labels), (std::array<double, 3>{1, 1, 1}));
  p.values.pop_back();
  EXPECT_THROW(region_dice(p, labels), ShapeError);
}

TEST_F(TrainerTest, WithoutValidationCasesThereIsNoBest) {
  phantoms(2, 32);
  TrainSettings s = settings("run", 3);
  s.validation_fraction = 0.0;
  const TrainResult result = run(s);
  EXPECT_EQ(result.best_step, 0);
  EXPECT_FALSE(result.last_validation.has_value());
  EXPECT_EQ(listing(folder_ / "run"),
            (std::vector<std::string>{"last.safetensors", "log.jsonl", "progress.png"}));
}

TEST_F(TrainerTest, ValidationCanHideModalities) {
  phantoms(3, 32);
  run(settings("all", 1));
  TrainSettings s = settings("some", 1);
  s.validation_modalities = imaging::ModalityMask{true, false, false, false};
  run(s);
  EXPECT_EQ(read_trainer_state(weights::SafetensorsFile(folder_ / "some" / "last.safetensors"))
                .config.validation_modalities,
            *s.validation_modalities);
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "data")) {
    std::filesystem::remove(entry.path() / (entry.path().filename().string() + "-t1n.nii.gz"));
  }
  s.out = folder_ / "none";
  EXPECT_TRUE(holds(message_of<UsageError>([&] { run(s); }), "none of the modalities t1n"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "none"));
}

TEST_F(TrainerTest, DefaultsFitSmallData) {
  phantoms(3, 32);
  TrainSettings s;
  s.data = folder_ / "data";
  s.out = folder_ / "run";
  s.model = "fusion-micro";
  s.steps = 1;
  run(s);
  DeviceContext context{Device{}};
  const WeightsInfo info = load_network(context, folder_ / "run").info;
  // The head's box of a 32^3 phantom is at most 32 voxels long: a patch of 64 would be padding.
  EXPECT_LE(info.patch.x, 32);
  EXPECT_EQ(info.patch.x % 16, 0);
  EXPECT_TRUE(info.network.deep_supervision);
}

TEST_F(TrainerTest, ALossThatIsNotFiniteStopsAndKeepsTheLastGoodCheckpoint) {
  phantoms(3, 32);
  run(settings("run", 2));
  const auto last = folder_ / "run" / "last.safetensors";
  // The same checkpoint with weights so large that the next step overflows.
  {
    const weights::SafetensorsFile file(last);
    std::vector<weights::TensorSource> tensors;
    for (const weights::StoredTensor& stored : file.tensors()) {
      std::vector<std::byte> bytes = file.read_bytes(stored);
      if (!stored.name.starts_with("optimizer.")) {
        for (size_t i = 0; i < bytes.size(); i += sizeof(float)) {
          float value = 0;
          std::memcpy(&value, bytes.data() + i, sizeof(value));
          value = value >= 0 ? 1e38f : -1e38f;
          std::memcpy(bytes.data() + i, &value, sizeof(value));
        }
      }
      tensors.push_back({stored.name, DType::f32, stored.shape, [bytes] { return bytes; }});
    }
    weights::write_safetensors(last, std::move(tensors), file.metadata());
  }
  const std::string before = slurp(last);
  TrainSettings more = resumed("run");
  more.steps = 5;
  const std::string line = message_of<Error>([&] { run(more); });
  EXPECT_TRUE(holds(line, "training stopped at step 3") && holds(line, "last good checkpoint")) << line;
  EXPECT_TRUE(slurp(last) == before);
}

TEST_F(TrainerTest, RunsThatExistOrDoNot) {
  phantoms(2, 32);
  EXPECT_TRUE(holds(message_of<UsageError>([&] { run(resumed("run")); }), "nothing to resume"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
  run(settings("run", 1));
  const std::string before = slurp(folder_ / "run" / "last.safetensors");
  EXPECT_TRUE(holds(message_of<UsageError>([&] { run(settings("run", 2)); }), "a run is there already"));
  EXPECT_EQ(slurp(folder_ / "run" / "last.safetensors"), before);

  std::filesystem::create_directories(folder_ / "weights");
  std::filesystem::copy(folder_ / "run" / "last.safetensors", folder_ / "weights" / "best.safetensors");
  EXPECT_TRUE(
      holds(message_of<UsageError>([&] { run(settings("weights", 2)); }), "without a checkpoint to resume"));

  // What a resumed run keeps may be repeated, not changed.
  TrainSettings same = settings("run", 1);
  same.resume = true;
  run(same);
  const auto refused = [&](auto change, const char* part) {
    TrainSettings s = resumed("run");
    change(s);
    const std::string line = message_of<UsageError>([&] { run(s); });
    EXPECT_TRUE(holds(line, part) && holds(line, "which a resumed run keeps")) << line;
  };
  refused([](TrainSettings& s) { s.model = "fusion-tiny"; }, "model: found fusion-tiny");
  refused([](TrainSettings& s) { s.patch = imaging::Size3{16, 16, 16}; }, "patch: found 16 x 16 x 16");
  refused([](TrainSettings& s) { s.precision = DType::bf16; }, "precision: found bf16");
  refused([](TrainSettings& s) { s.optimizer = layers::OptimizerKind::sgd; }, "optimizer: found sgd");
  refused([](TrainSettings& s) { s.batch = 3; }, "batch: found 3");
  refused([](TrainSettings& s) { s.learning_rate = 0.5; }, "learning rate: found 0.5");
  refused([](TrainSettings& s) { s.seed = 9; }, "seed: found 9");
  refused([](TrainSettings& s) { s.schedule_steps = 9; }, "schedule steps: found 9");
  refused([](TrainSettings& s) { s.label_scheme = imaging::LabelScheme::brats2021; },
          "label scheme: found brats2021");
  refused([](TrainSettings& s) { s.spacing_mm = imaging::Vector3{2, 2, 2}; }, "spacing");
  refused([](TrainSettings& s) { s.validation_fraction = 0.4; }, "validation fraction");
  refused(
      [](TrainSettings& s) {
        s.validation_modalities = imaging::ModalityMask{true, false, false, false};
      },
      "validation modalities: found t1n");
  refused([](TrainSettings& s) { s.drop_modalities = false; }, "modality dropout");
  spit(folder_ / "split.json", R"({"train": ["x"]})");
  refused([&](TrainSettings& s) { s.split = folder_ / "split.json"; }, "split.json");

  // Cases of the run that went away, and a file that is no checkpoint.
  TrainSettings gone = resumed("run");
  gone.data = phantoms(1, 32, "fewer");
  EXPECT_TRUE(holds(message_of<FormatError>([&] { run(gone); }), "is not among the 1 cases"));
  spit(folder_ / "run" / "last.safetensors", before.substr(0, before.size() / 2));
  EXPECT_TRUE(holds(message_of<FormatError>([&] { run(resumed("run")); }), "truncated"));
}

TEST_F(TrainerTest, SettingsThatMakeNoSense) {
  phantoms(2, 32);
  const auto refused = [&](auto change, const char* part) {
    TrainSettings s = settings("run", 2);
    change(s);
    const std::string line = message_of<UsageError>([&] { run(s); });
    EXPECT_TRUE(holds(line, part)) << line;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "run")) << part;
  };
  refused([](TrainSettings& s) { s.steps = 0; }, "steps: found 0");
  refused([](TrainSettings& s) { s.minutes = 1; }, "steps and minutes");
  refused(
      [](TrainSettings& s) {
        s.steps.reset();
        s.minutes = 0;
      },
      "minutes: found 0");
  refused([](TrainSettings& s) { s.batch = 0; }, "batch: found 0");
  refused([](TrainSettings& s) { s.patch = imaging::Size3{16, 16, 24}; }, "patch: found 16 x 16 x 24");
  refused([](TrainSettings& s) { s.patch = imaging::Size3{0, 16, 16}; }, "patch: found 0 x 16 x 16");
  refused([](TrainSettings& s) { s.spacing_mm = imaging::Vector3{1, -1, 1}; }, "spacing: found");
  refused([](TrainSettings& s) { s.learning_rate = 0; }, "learning rate: found 0");
  refused([](TrainSettings& s) { s.learning_rate = std::numeric_limits<double>::quiet_NaN(); },
          "learning rate");
  refused([](TrainSettings& s) { s.validation_fraction = 1; }, "validation fraction: found 1");
  refused([](TrainSettings& s) { s.split = "x.json"; }, "validation fraction and split");
  refused([](TrainSettings& s) { s.foreground = 1.5; }, "foreground share: found 1.5");
  refused([](TrainSettings& s) { s.validation_overlap = 1; }, "validation overlap: found 1");
  refused([](TrainSettings& s) { s.model = "unet"; }, "fusion-micro");
  refused([](TrainSettings& s) { s.validation_modalities = imaging::ModalityMask{}; },
          "validation modalities");
  refused([](TrainSettings& s) { s.loader_threads = 0; }, "loader threads: found 0");
}

TEST_F(TrainerTest, DataThatCannotBeUsedLeavesNothingBehind) {
  phantoms(2, 32);
  const auto refused = [&](auto change, const std::string& part) {
    TrainSettings s = settings("run", 2);
    change(s);
    const std::string line = message_of<Error>([&] { run(s); });
    EXPECT_TRUE(holds(line, part)) << line;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "run")) << part;
  };
  refused([&](TrainSettings& s) { s.data = folder_ / "absent"; }, "absent");
  std::filesystem::create_directories(folder_ / "empty");
  refused([&](TrainSettings& s) { s.data = folder_ / "empty"; }, "empty");
  refused([&](TrainSettings& s) { s.label_scheme = imaging::LabelScheme::brats2021; }, "seg");
  spit(folder_ / "split.json", R"({"train": ["VesalPhantom-00000"], "val": ["nobody"]})");
  refused(
      [&](TrainSettings& s) {
        s.validation_fraction.reset();
        s.split = folder_ / "split.json";
      },
      "split.json: the case nobody");
  spit(folder_ / "file", "x");
  refused([&](TrainSettings& s) { s.out = folder_ / "file" / "run"; }, "is not a folder");

  Recorder recorder;
  recorder.stop_while_loading = true;
  const TrainResult result = train(settings("run", 2), recorder, &recorder.stop);
  EXPECT_TRUE(result.interrupted);
  EXPECT_TRUE(result.checkpoint.empty());
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
}

TEST_F(TrainerTest, ASplitFileIsFollowed) {
  phantoms(3, 32);
  spit(folder_ / "split.json",
       R"([{"train": ["VesalPhantom-00002"], "val": ["VesalPhantom-00000"]}, {"train": [], "val": []}])");
  TrainSettings s = settings("run", 1);
  s.validation_fraction.reset();
  s.split = folder_ / "split.json";
  run(s);
  const TrainerState state =
      read_trainer_state(weights::SafetensorsFile(folder_ / "run" / "last.safetensors"));
  EXPECT_EQ(state.config.split, (Split{{"VesalPhantom-00002"}, {"VesalPhantom-00000"}}));
  TrainSettings more = resumed("run");
  more.split = folder_ / "split.json";
  more.steps = 2;
  EXPECT_EQ(run(more).step, 2);
}

TEST_F(TrainerTest, ALogThatWasCutOffOrRanAheadIsMended) {
  phantoms(3, 32);
  run(settings("straight", 5));
  Recorder recorder;
  recorder.stop_after_step = 2;
  train(settings("run", 5), recorder, &recorder.stop);
  // As after a crash: steps that no checkpoint holds, and half a line.
  std::ofstream(folder_ / "run" / "log.jsonl", std::ios::app) << R"({"event":"step","step":3,"loss":1})"
                                                              << "\n"
                                                              << R"({"event":"validation","step":3})"
                                                              << "\n"
                                                              << R"({"event":"step","st)";
  run(resumed("run"));
  EXPECT_EQ(events("run"), events("straight"));
  expect_same_runs("straight", "run");
}

// The same loop over the CUDA kernels' source, executed thread by thread.
TEST_F(TrainerTest, ThreeStepsOnTheEmulatorGiveTheSameBytesTwice) {
  phantoms(2, 16);
  for (const char* name : {"a", "b"}) {
    TrainSettings s = settings(name, 3);
    s.device = Device{DeviceType::simt, 0};
    s.patch = imaging::Size3{16, 16, 16};
    s.batch = 1;
    s.validation_fraction = 0.0;
    s.foreground = 1.0;
    EXPECT_EQ(run(s).step, 3);
  }
  EXPECT_TRUE(slurp(folder_ / "a" / "last.safetensors") == slurp(folder_ / "b" / "last.safetensors"));
}

}  // namespace
}  // namespace vesal::training
