// Sliding-window inference of one case and its memory plan.
#include "training/predictor.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/parallel.hpp"
#include "imaging/resample.hpp"
#include "runtime/tensor.hpp"
#include "training/window.hpp"

namespace vesal::training {
namespace {

using imaging::kModalityCount;
using imaging::kRegionCount;
using imaging::Size3;

constexpr int64_t kPatchStep = 16;  // the network halves its input four times

void require_patch(Size3 patch) {
  for (int axis = 0; axis < 3; ++axis) {
    check<ShapeError>(patch[axis] > 0 && patch[axis] % kPatchStep == 0, "patch: found ", to_string(patch),
                      ", expected positive multiples of ", kPatchStep);
  }
}

std::string readable_bytes(int64_t bytes) {
  char buffer[32];
  const double value = static_cast<double>(bytes);
  if (value < 1e9) {
    std::snprintf(buffer, sizeof buffer, "%.0f MB", std::ceil(value / 1e6));
  } else {
    std::snprintf(buffer, sizeof buffer, "%.1f GB", value / 1e9);
  }
  return buffer;
}

}  // namespace

models::ModalityMask network_mask(const imaging::ModalityMask& mask) {
  models::ModalityMask out{};
  for (size_t i = 0; i < mask.size(); ++i) {
    out[i] = mask[i] ? 1 : 0;
  }
  return out;
}

RegionProbabilities predict_case(DeviceContext& context, const models::Fusion& network,
                                 const imaging::PreparedCase& prepared, const models::ModalityMask& mask,
                                 const PredictSettings& settings) {
  require_patch(settings.patch);
  bool any = false;
  for (size_t i = 0; i < mask.size(); ++i) {
    check<UsageError>(mask[i] == 0 || prepared.present[i], prepared.name, ": found no ",
                      imaging::name_of(imaging::kModalities[i]), ", which was asked for; the case has ",
                      imaging::to_string(prepared.present));
    any = any || mask[i] != 0;
  }
  check<UsageError>(any, prepared.name, ": modalities: found none, expected at least one");

  const Size3 tile = settings.patch;
  RegionProbabilities result;
  result.size = prepared.size();
  result.values.resize(static_cast<size_t>(checked_mul(result.size.voxels(), kRegionCount)));
  const int64_t plane = result.size.x * result.size.y;
  const auto keep = [&](int64_t z_begin, int64_t, std::span<const float> values) {
    const int64_t first = z_begin * plane;
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t voxel = static_cast<size_t>(first) + i / kRegionCount;
      result.values[static_cast<size_t>(first) * kRegionCount + i] =
          prepared.mask.data[voxel] != 0 ? values[i] : 0.0f;
    }
  };

  TapeScope no_gradients(context, nullptr);
  const imaging::Vector3& spacing_mm = prepared.geometry.spacing_mm;
  const std::array<float, 3> spacing{static_cast<float>(spacing_mm.z), static_cast<float>(spacing_mm.y),
                                     static_cast<float>(spacing_mm.x)};
  // Probabilities of the three regions.
  const auto look_at = [&](const std::vector<float>& shown, std::vector<float>& probabilities) {
    const Tensor volume = Tensor::from_host(context, shown, {1, tile.z, tile.y, tile.x, kModalityCount});
    const models::FusionOutputs outputs =
        network.forward(context, volume, std::span(&mask, 1), {.precision = settings.precision}, spacing);
    outputs.segmentation.value().copy_to_host(context, probabilities.data(),
                                              probabilities.size() * sizeof(float));
    parallel_for(static_cast<int64_t>(probabilities.size()), 16384, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float& value = probabilities[static_cast<size_t>(i)];
        value = 1.0f / (1.0f + std::exp(-value));
      }
    });
  };
  const TileCount count = slide_window(prepared, imaging::kModalities, kRegionCount, settings, look_at, keep);
  result.tiles = count.all;
  result.tiles_skipped = count.skipped;
  return result;
}

RegionProbabilities predict_case(DeviceContext& context, const models::Fusion& network,
                                 const imaging::PreparedCase& prepared, const PredictSettings& settings) {
  return predict_case(context, network, prepared, network_mask(prepared.present), settings);
}

int64_t measure_network_bytes(DeviceContext& context, const models::Fusion& network, Size3 patch,
                              DType precision) {
  require_patch(patch);
  Size3 probe;
  for (int axis = 0; axis < 3; ++axis) {
    probe[axis] = std::min<int64_t>(patch[axis], 32);
  }
  TapeScope no_gradients(context, nullptr);
  context.allocator().reset_peak();
  {
    const Tensor volume = Tensor::zeros(context, {1, probe.z, probe.y, probe.x, kModalityCount});
    const models::ModalityMask all{1, 1, 1, 1};
    const models::FusionOutputs outputs =
        network.forward(context, volume, std::span(&all, 1), {.precision = precision});
    context.synchronize();
  }
  const AllocationStatistics used = context.allocator().statistics();
  context.allocator().reset_peak();
  // What stays, weights and their copies in a smaller type, does not grow with the patch.
  const int64_t lasting = static_cast<int64_t>(used.current_bytes);
  const int64_t passing = static_cast<int64_t>(used.peak_bytes) - lasting;
  const double scale = static_cast<double>(patch.voxels()) / static_cast<double>(probe.voxels());
  return lasting + static_cast<int64_t>(static_cast<double>(passing) * scale);
}

MemoryPlan plan_memory(Size3 original, Size3 prepared, int modalities, const PredictSettings& settings,
                       int64_t network_bytes) {
  require_patch(settings.patch);
  const int64_t full = original.voxels();
  const int64_t small = prepared.voxels();
  const int64_t value_bytes = static_cast<int64_t>(sizeof(float));
  MemoryPlan plan;
  plan.tiles = static_cast<int64_t>(imaging::tile_grid(prepared, settings.patch, settings.overlap).size());
  plan.volumes_bytes = (full + small) * modalities * value_bytes + small;
  plan.probabilities_bytes = small * kRegionCount * value_bytes;
  plan.blending_bytes = imaging::SlabBlender::bytes(prepared, settings.patch, kRegionCount);
  plan.network_bytes = network_bytes;
  // A byte for each voxel, twice while labels are renumbered, and eight open slices of the three regions.
  plan.labels_bytes = 2 * full + 8 * original.x * original.y * kRegionCount * value_bytes;
  return plan;
}

std::string MemoryPlan::line_for(const std::string& tile, Device device) const {
  const bool shared = device.type != DeviceType::cuda;
  return concat("memory plan: at most ", tiles, tiles == 1 ? " tile of " : " tiles of ", tile, "; volumes ",
                readable_bytes(volumes_bytes), ", probabilities ", readable_bytes(probabilities_bytes),
                ", blending ", readable_bytes(blending_bytes), ", label map ", readable_bytes(labels_bytes),
                ", network ", readable_bytes(network_bytes), shared ? "" : " on ",
                shared ? "" : to_string(device), "; ",
                readable_bytes(host_bytes() + (shared ? network_bytes : 0)), " of host memory in all");
}

}  // namespace vesal::training
