// Batches of augmented patches, made ahead by background threads. What a batch holds depends on (seed, step)
// and the settings only, never on timing or on how many threads make it.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/philox.hpp"
#include "imaging/augment.hpp"
#include "imaging/preprocess.hpp"
#include "models/fusion.hpp"

namespace vesal::training {

struct LoaderSettings {
  imaging::AugmentOptions augment;
  int64_t batch = 2;
  uint64_t seed = 0;
  bool drop_modalities = true;
  float heal = 0;  // share of samples cut from imaging::without_tumour of their case
  int threads = 1;
  int64_t ahead = 3;  // batches that may be ready or in the making
};

struct Batch {
  int64_t step = 0;
  std::vector<float> images;                // [N, D, H, W, 4]
  std::vector<uint8_t> labels;              // [N, D, H, W], internal labels
  std::vector<models::ModalityMask> masks;  // N
  std::vector<int64_t> cases;               // N: which case each sample comes from
  // D, H, W; the mean of the samples, which differ only where cases keep their own spacing.
  std::array<float, 3> spacing_mm{};
};

// The modalities a training sample keeps: all that it has in one of four draws, else each with probability
// 1/2, drawn again while none is left (RFNet, Ding et al., ICCV 2021, with the full set forced now and then).
models::ModalityMask draw_modalities(const imaging::ModalityMask& present, RandomStream& random);

// The case of a sample, counted over the whole training: every pass over the data has its own order, and each
// case comes once in a pass.
int64_t case_of_sample(int64_t sample, int64_t cases, uint64_t seed);

// The batch of a step, made on the calling thread. `healed` holds the cases without their tumours, or nothing
// where settings.heal is 0.
Batch make_batch(const std::vector<imaging::PreparedCase>& cases,
                 const std::vector<imaging::PreparedCase>& healed, const LoaderSettings& settings,
                 int64_t step);

class Loader {
 public:
  // Keeps a reference to `cases`. Throws UsageError without cases or for settings below 1, and Error where
  // the system does not let it start that many threads.
  Loader(const std::vector<imaging::PreparedCase>& cases, LoaderSettings settings, int64_t first_step);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The batches of first_step, first_step + 1, ...; waits for them and throws what making one threw.
  Batch next();
  // Seconds that the last call of next() waited.
  double last_stall_seconds() const { return last_stall_seconds_; }

 private:
  struct Slot {
    Batch batch;
    std::exception_ptr error;
    bool ready = false;
  };
  void work();
  // Ends the threads and waits for them.
  void close();

  const std::vector<imaging::PreparedCase>& cases_;
  std::vector<imaging::PreparedCase> healed_;
  const LoaderSettings settings_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool started_ = false;  // all threads are there; none makes a batch before
  bool closing_ = false;
  int64_t claimed_;          // next step that a thread will make
  int64_t consumed_;         // next step that next() will hand out
  std::vector<Slot> slots_;  // step % ahead: there is room for all that is claimed and not handed out
  double last_stall_seconds_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace vesal::training
