// Batches and the threads that make them: see loader.hpp.
#include "training/loader.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <system_error>
#include <utility>

#include "base/error.hpp"
#include "base/thread_limit.hpp"
#include "training/random_ops.hpp"

namespace vesal::training {

models::ModalityMask draw_modalities(const imaging::ModalityMask& present, RandomStream& random) {
  check<ShapeError>(imaging::count(present) > 0, "a training sample has no modality");
  models::ModalityMask mask{};
  if (random.below(4) == 0) {
    for (size_t m = 0; m < mask.size(); ++m) {
      mask[m] = present[m] ? 1 : 0;
    }
    return mask;
  }
  do {
    for (size_t m = 0; m < mask.size(); ++m) {
      mask[m] = random.bernoulli(0.5f) && present[m] ? 1 : 0;
    }
  } while (std::none_of(mask.begin(), mask.end(), [](uint8_t keep) { return keep != 0; }));
  return mask;
}

int64_t case_of_sample(int64_t sample, int64_t cases, uint64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(cases));
  std::iota(order.begin(), order.end(), int64_t{0});
  RandomStream random(seed, static_cast<uint64_t>(sample / cases), kOrderOp);
  for (int64_t i = cases - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(random.below(i + 1))]);
  }
  return order[static_cast<size_t>(sample % cases)];
}

Batch make_batch(const std::vector<imaging::PreparedCase>& cases,
                 const std::vector<imaging::PreparedCase>& healed, const LoaderSettings& settings,
                 int64_t step) {
  const int64_t voxels = settings.augment.patch.voxels();
  Batch batch;
  batch.step = step;
  batch.images.reserve(static_cast<size_t>(settings.batch * voxels * imaging::kModalityCount));
  batch.labels.reserve(static_cast<size_t>(settings.batch * voxels));
  for (int64_t i = 0; i < settings.batch; ++i) {
    const int64_t index =
        case_of_sample(step * settings.batch + i, static_cast<int64_t>(cases.size()), settings.seed);
    const imaging::PreparedCase& source = cases[static_cast<size_t>(index)];
    const auto op = static_cast<uint64_t>(i);
    RandomStream random(settings.seed, static_cast<uint64_t>(step), kSampleOp + op);
    RandomStream fate(settings.seed, static_cast<uint64_t>(step), kTumourOp + op);
    const bool heal = fate.bernoulli(settings.heal) && !healed.empty();
    const imaging::PreparedCase* donor = nullptr;
    if (cases.size() > 1) {
      const int64_t other = fate.below(static_cast<int64_t>(cases.size()) - 1);
      donor = &cases[static_cast<size_t>(other < index ? other : other + 1)];
    }
    const imaging::Sample sample = imaging::draw_sample(heal ? healed[static_cast<size_t>(index)] : source,
                                                        settings.augment, random, donor);
    check<ShapeError>(static_cast<int64_t>(sample.labels.size()) == voxels, source.name, ": a sample has ",
                      sample.labels.size(), " labels, expected ", voxels);
    RandomStream modalities(settings.seed, static_cast<uint64_t>(step), kModalityOp + op);
    models::ModalityMask mask{};
    if (settings.drop_modalities) {
      mask = draw_modalities(sample.present, modalities);
    } else {
      std::copy(sample.present.begin(), sample.present.end(), mask.begin());
    }
    batch.images.insert(batch.images.end(), sample.image.begin(), sample.image.end());
    batch.labels.insert(batch.labels.end(), sample.labels.begin(), sample.labels.end());
    batch.masks.push_back(mask);
    batch.cases.push_back(index);
    for (int axis = 0; axis < 3; ++axis) {
      batch.spacing_mm[static_cast<size_t>(2 - axis)] +=
          static_cast<float>(source.geometry.spacing_mm[axis] / static_cast<double>(settings.batch));
    }
  }
  return batch;
}

Loader::Loader(const std::vector<imaging::PreparedCase>& cases, LoaderSettings settings, int64_t first_step)
    : cases_(cases), settings_(std::move(settings)), claimed_(first_step), consumed_(first_step) {
  check<UsageError>(!cases_.empty(), "loader: there is no case to learn from");
  check<UsageError>(settings_.batch >= 1 && settings_.threads >= 1 && settings_.ahead >= 1, "loader: batch ",
                    settings_.batch, ", threads ", settings_.threads, ", ahead ", settings_.ahead,
                    ": each must be at least 1");
  slots_.resize(static_cast<size_t>(settings_.ahead));
  if (settings_.heal > 0) {
    for (const imaging::PreparedCase& prepared : cases_) {
      healed_.push_back(imaging::without_tumour(prepared));
    }
  }
  try {
    for (int i = 0; i < settings_.threads; ++i) {
      threads_.emplace_back([this] { work(); });
    }
    const std::lock_guard lock(mutex_);
    started_ = true;
  } catch (const std::system_error& error) {
    const size_t started = threads_.size();
    close();
    throw Error(concat("loader: only ", started, " of ", settings_.threads,
                       " threads could be started: ", error.code().message()));
  } catch (...) {
    close();
    throw;
  }
  changed_.notify_all();
}

Loader::~Loader() { close(); }

void Loader::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void Loader::work() {
  const ThreadLimit one(1);  // the other processors are busy with the network
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock,
                  [this] { return closing_ || (started_ && claimed_ < consumed_ + settings_.ahead); });
    if (closing_) {
      return;
    }
    const int64_t step = claimed_++;
    lock.unlock();
    Slot made;
    try {
      made.batch = make_batch(cases_, healed_, settings_, step);
    } catch (...) {
      made.error = std::current_exception();
    }
    made.ready = true;
    lock.lock();
    slots_[static_cast<size_t>(step % settings_.ahead)] = std::move(made);
    changed_.notify_all();
  }
}

Batch Loader::next() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  Slot& slot = slots_[static_cast<size_t>(consumed_ % settings_.ahead)];
  changed_.wait(lock, [&] { return slot.ready; });
  last_stall_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Slot taken = std::exchange(slot, {});
  ++consumed_;
  lock.unlock();
  changed_.notify_all();
  if (taken.error) {
    std::rethrow_exception(taken.error);
  }
  return std::move(taken.batch);
}

}  // namespace vesal::training
