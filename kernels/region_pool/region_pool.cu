// Pooling by regions.
//
// The index is a stable counting sort without an order that shows: the voxels of a sample are cut into
// chunks, a warp each. (1) the chunk's histogram, by integer atomics; (2) a region's sizes over the chunks
// become running sums, and the regions' totals too; (3) the warp goes through its chunk once more in order,
// 32 voxels a step, and
// __match_any_sync tells each lane how many before it have the same label. Sums take a warp for each region
// and tile of channels, in a fixed tree. All of it is limited by memory: labels and x once, x in rows of
// channels.
#include <algorithm>

#include "kernels/context/block_reduce.hpp"
#include "kernels/context/device_loops.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/region_pool/region_pool.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;
constexpr int kScanThreads = 1024;
constexpr int64_t kChunkVoxels = 1024;  // at least, as long as there are few chunks

// Chunks of a sample: the histograms stay within 4 MiB a sample.
int64_t chunk_count(const RegionParams& p) {
  const int64_t most = std::clamp<int64_t>((int64_t{1} << 20) / p.regions, 1, 256);
  return std::clamp<int64_t>(ceil_div(p.voxels, kChunkVoxels), 1, most);
}

VESAL_DEVICE bool is_region(int label, int regions) { return label >= 0 && label < regions; }

// The voxels [begin, end) of one warp's chunk; sample blockIdx.y.
struct Chunk {
  int64_t first;  // of the sample
  int begin, end;
  int64_t number;  // over the batch
};

VESAL_DEVICE Chunk warp_chunk(int64_t voxels, int64_t chunks) {
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int64_t sample = blockIdx.y;
  Chunk chunk;
  chunk.first = sample * voxels;
  chunk.begin = warp < chunks ? static_cast<int>(voxels * warp / chunks) : 0;
  chunk.end = warp < chunks ? static_cast<int>(voxels * (warp + 1) / chunks) : 0;
  chunk.number = sample * chunks + warp;
  return chunk;
}

VESAL_KERNEL void count_labels(int64_t voxels, int64_t chunks, int regions, const int* VESAL_RESTRICT labels,
                               int* VESAL_RESTRICT histograms) {
  const Chunk chunk = warp_chunk(voxels, chunks);
  int* histogram = histograms + chunk.number * regions;
  for (int v = chunk.begin + static_cast<int>(threadIdx.x) % 32; v < chunk.end; v += 32) {
    const int label = labels[chunk.first + v];
    if (is_region(label, regions)) {
      atomicAdd(histogram + label, 1);
    }
  }
}

// histograms [chunks, regions] of a sample to running sums over its chunks; totals into offsets[region + 1].
VESAL_KERNEL void sum_over_chunks(int64_t chunks, int regions, int* VESAL_RESTRICT histograms,
                                  int* VESAL_RESTRICT offsets) {
  const int region = static_cast<int>(blockIdx.x) * kBlock + static_cast<int>(threadIdx.x);
  if (region >= regions) {
    return;
  }
  const int64_t sample = blockIdx.y;
  int running = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    int& count = histograms[(sample * chunks + chunk) * regions + region];
    const int here = count;
    count = running;
    running += here;
  }
  offsets[sample * (regions + 1) + region + 1] = running;
}

// offsets[1 .. regions] of a sample from counts to running sums. A block a sample.
VESAL_KERNEL void scan_offsets(int regions, int* VESAL_RESTRICT all_offsets) {
  VESAL_SHARED(int, sums, [kScanThreads]);
  int* offsets = all_offsets + static_cast<int64_t>(blockIdx.x) * (regions + 1);
  const int thread = static_cast<int>(threadIdx.x);
  const int length = (regions + kScanThreads - 1) / kScanThreads;
  const int begin = min(thread * length, regions);
  const int end = min(begin + length, regions);
  int total = 0;
  for (int i = begin; i < end; ++i) {
    total += offsets[i + 1];
  }
  sums[thread] = total;
  __syncthreads();
  for (int step = 1; step < kScanThreads; step *= 2) {
    const int before = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  int running = sums[thread] - total;
  for (int i = begin; i < end; ++i) {
    running += offsets[i + 1];
    offsets[i + 1] = running;
  }
  if (thread == 0) {
    offsets[0] = 0;
  }
}

// A warp writes its chunk's voxels; the chunk's histogram says how many of each region the chunks before it
// have, and moves on with each step.
VESAL_KERNEL void scatter_voxels(int64_t voxels, int64_t chunks, int regions,
                                 const int* VESAL_RESTRICT labels, const int* VESAL_RESTRICT offsets,
                                 int* VESAL_RESTRICT histograms, int* VESAL_RESTRICT index) {
  const Chunk chunk = warp_chunk(voxels, chunks);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int* cursors = histograms + chunk.number * regions;
  const int* starts = offsets + static_cast<int64_t>(blockIdx.y) * (regions + 1);
  for (int first = chunk.begin; first < chunk.end; first += 32) {
    const int v = first + lane;
    const int label = v < chunk.end ? labels[chunk.first + v] : -1;
    const bool valid = is_region(label, regions);
    const unsigned equal = __match_any_sync(kFullWarp, valid ? label : -1);
    const int before = __popc(equal & ((1u << lane) - 1u));
    int cursor = 0;
    if (valid) {
      cursor = cursors[label];
      index[chunk.first + starts[label] + cursor + before] = v;
    }
    __syncwarp();
    if (valid && before == 0) {
      cursors[label] = cursor + __popc(equal);
    }
    __syncwarp();
  }
}

// A warp for each region of the batch and tile of `width` channels: 32 / width voxels at a time, then a fixed
// tree.
template <class T>
VESAL_KERNEL void segment_sums(int64_t rows, int64_t voxels, int regions, int64_t channels, int width,
                               int mean, const int* VESAL_RESTRICT offsets, const int* VESAL_RESTRICT index,
                               const T* VESAL_RESTRICT x_, T* VESAL_RESTRICT sums_) {
  const Input<T> x{x_};
  const Output<T> sums{sums_};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * width + (lane & (width - 1));
  const bool valid = row < rows && channel < channels;
  const int64_t first = valid ? row / regions * voxels : 0;
  const int* bounds = offsets + row / regions * (regions + 1) + row % regions;
  const int begin = valid ? bounds[0] : 0;
  const int end = valid ? bounds[1] : 0;
  float sum = 0.0f;
  for (int e = begin + lane / width; e < end; e += 32 / width) {
    sum += x[(first + index[first + e]) * channels + channel];
  }
  for (int step = 16; step >= width; step /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, step);
  }
  if (valid && lane < width) {
    sums[row * channels + channel] = mean && end > begin ? sum / static_cast<float>(end - begin) : sum;
  }
}

template <class T>
void launch_segment_sums(Context& context, const RegionParams& p, int64_t channels, const RegionIndex& index,
                         const T* x, bool mean, T* sums) {
  const int width = column_width(channels);
  const int64_t rows = p.n * p.regions;
  launch(context.stream(),
         {.grid = {ceil_div(rows * 32, kBlock), ceil_div(channels, width), 1}, .block = {kBlock, 1, 1}},
         segment_sums<T>, rows, p.voxels, static_cast<int>(p.regions), channels, width, mean ? 1 : 0,
         index.offsets, index.voxels, x, sums);
}

struct Zero {
  int* x;
  VESAL_DEVICE void operator()(int64_t i) const { x[i] = 0; }
};

// y[voxel] = x[region], divided by the region's size when there are offsets.
template <class T>
struct Gather {
  int64_t voxels;
  int regions;
  int64_t channels;
  const int* labels;
  const int* offsets;
  Input<T> x;
  Output<T> y;

  VESAL_DEVICE void operator()(int64_t i) const {
    const int64_t voxel = i / channels;
    const int label = labels[voxel];
    float value = 0.0f;
    if (is_region(label, regions)) {
      const int64_t sample = voxel / voxels;
      value = x[(sample * regions + label) * channels + (i - voxel * channels)];
      if (offsets != nullptr) {
        const int* bounds = offsets + sample * (regions + 1) + label;
        value /= static_cast<float>(bounds[1] - bounds[0]);
      }
    }
    y[i] = value;
  }
};

}  // namespace

size_t region_index_workspace_bytes(Context&, const RegionParams& p) {
  return static_cast<size_t>(p.n * chunk_count(p) * p.regions) * sizeof(int);
}

void region_index(Context& context, const RegionParams& p, const int32_t* labels, const RegionIndex& index,
                  Workspace workspace) {
  if (p.n == 0) {
    return;
  }
  auto* histograms = static_cast<int*>(workspace.data);
  const int64_t chunks = chunk_count(p);
  const auto regions = static_cast<int>(p.regions);
  const LaunchConfig by_chunk{.grid = {ceil_div(chunks * 32, kBlock), p.n, 1}, .block = {kBlock, 1, 1}};
  launch_map(context.stream(), p.n * chunks * regions, Zero{histograms});
  launch(context.stream(), by_chunk, count_labels, p.voxels, chunks, regions, labels, histograms);
  launch(context.stream(), {.grid = {ceil_div(regions, kBlock), p.n, 1}, .block = {kBlock, 1, 1}},
         sum_over_chunks, chunks, regions, histograms, index.offsets);
  launch(context.stream(), {.grid = {p.n, 1, 1}, .block = {kScanThreads, 1, 1}}, scan_offsets, regions,
         index.offsets);
  launch(context.stream(), by_chunk, scatter_voxels, p.voxels, chunks, regions, labels,
         static_cast<const int*>(index.offsets), histograms, index.voxels);
}

void region_mean_forward(Context& context, const RegionParams& p, int64_t channels, const RegionIndex& index,
                         ConstData x, Data means) {
  with_storage("region_mean_forward", {x, means}, [&]<class T>(T) {
    launch_segment_sums(context, p, channels, index, x.as<T>("region_mean_forward: x"), true,
                        means.as<T>("region_mean_forward: means"));
  });
}

void region_mean_backward(Context& context, const RegionParams& p, int64_t channels, const int32_t* labels,
                          const RegionIndex& index, ConstData dmeans, Data dx) {
  with_storage("region_mean_backward", {dmeans, dx}, [&]<class T>(T) {
    launch_map(context.stream(), p.n * p.voxels * channels,
               Gather<T>{p.voxels, static_cast<int>(p.regions), channels, labels, index.offsets,
                         input<T>(dmeans, "region_mean_backward: dmeans"),
                         output<T>(dx, "region_mean_backward: dx")});
  });
}

void region_gather_forward(Context& context, const RegionParams& p, int64_t channels, const int32_t* labels,
                           ConstData x, Data y) {
  with_storage("region_gather_forward", {x, y}, [&]<class T>(T) {
    launch_map(context.stream(), p.n * p.voxels * channels,
               Gather<T>{p.voxels, static_cast<int>(p.regions), channels, labels, nullptr,
                         input<T>(x, "region_gather_forward: x"), output<T>(y, "region_gather_forward: y")});
  });
}

void region_gather_backward(Context& context, const RegionParams& p, int64_t channels,
                            const RegionIndex& index, ConstData dy, Data dx) {
  with_storage("region_gather_backward", {dy, dx}, [&]<class T>(T) {
    launch_segment_sums(context, p, channels, index, dy.as<T>("region_gather_backward: dy"), false,
                        dx.as<T>("region_gather_backward: dx"));
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
