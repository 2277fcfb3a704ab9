// Opens a file of weights and reads all of it, once, and says how long it took and how much memory was
// resident at most. bench/weights runs it beside torch.load.
//   load_weights FILE read     every tensor into host memory of its own, as torch.load does
//   load_weights FILE load     into the parameters of a model, initialised before: float32, convolutions in
//   memory layout
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "weights_tools/parameters.hpp"

namespace {

using namespace vesal;

double processor_seconds() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double resident_mb() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

// Of all bytes as 16-bit numbers: the same tensors give the same sum wherever they were read.
int64_t sum_of(const std::vector<Tensor>& tensors) {
  int64_t sum = 0;
  for (const Tensor& tensor : tensors) {
    const auto* bytes = static_cast<const std::byte*>(tensor.data());
    const size_t count = tensor.bytes() / 2;
    for (size_t i = 0; i < count; ++i) {
      int16_t value;
      std::memcpy(&value, bytes + 2 * i, sizeof(value));
      sum += value;
    }
  }
  return sum;
}

// Parameters for the tensors of a file, initialised as a model's are: everything of rank 5 is a convolution.
std::vector<weights::NamedTensor> parameters_for(DeviceContext& context, const weights::WeightsFile& file) {
  std::vector<weights::NamedTensor> parameters;
  for (const weights::StoredTensor& stored : file.tensors()) {
    const auto& s = stored.shape;
    const bool convolution = s.size() == 5;
    parameters.push_back(
        {.name = stored.name,
         .tensor = Tensor::zeros(context, convolution ? Shape{s[0], s[2], s[3], s[4], s[1]} : s),
         .layout = convolution ? layers::ParameterLayout::convolution : layers::ParameterLayout::plain});
  }
  return parameters;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    check<UsageError>(argc == 3, "usage: load_weights FILE read|load");
    const std::string_view mode = argv[2];
    check<UsageError>(mode == "read" || mode == "load", mode, ": expected read or load");
    DeviceContext context{Device{}};
    std::vector<weights::NamedTensor> parameters;
    if (mode == "load") {
      parameters = parameters_for(context, *weights::open_weights(argv[1]));
    }
    const double before = resident_mb();
    const double processor_before = processor_seconds();
    const auto start = std::chrono::steady_clock::now();
    const std::unique_ptr<weights::WeightsFile> file = weights::open_weights(argv[1]);
    std::vector<Tensor> tensors;
    if (mode == "load") {
      weights::load_tensors(context, *file, parameters);
    } else {
      for (const weights::StoredTensor& stored : file->tensors()) {
        tensors.push_back(Tensor::empty(context, {static_cast<int64_t>(stored.bytes)}, DType::u8));
        file->read(stored, {static_cast<std::byte*>(tensors.back().data()), stored.bytes});
      }
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double processor = processor_seconds() - processor_before;
    std::printf(
        "{\"seconds\": %.4f, \"cpu_seconds\": %.4f, \"before_mb\": %.1f, \"peak_mb\": %.1f, \"sum\": %lld}\n",
        seconds.count(), processor, before, resident_mb(), static_cast<long long>(sum_of(tensors)));
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "load_weights: %s\n", error.what());
    return 1;
  }
}
