// Pooling by regions.
//
// The index is a stable counting sort without an order that shows: the voxels of a sample are cut into
// chunks, a warp each. (1) the chunk's histogram, by integer atomics; (2) a region's sizes over the chunks
// become running sums, and the regions' totals too; (3) the warp goes through its chunk once more in order,
// 32 voxels a step, and
// __match_any_sync tells each lane how many before it have the same label.
//
// Sums take a block for each region and tile of channels: its threads share the voxels of the region, and
// their sums are added in a fixed tree. How large a block is and how wide a tile depends on sizes only, so
// that the bits do too: a thread has about sixteen voxels of an average region, and few regions are cut into
// more tiles, down to a sector of memory, to occupy more of the GPU. All of it is limited by memory: labels
// and x once, x in rows of channels, four of them an access. A voxel's number has to arrive before its
// channels can be asked for: threads ask for the next four numbers together with the channels of four voxels.
#include <algorithm>

#include "kernels/context/block_reduce.hpp"
#include "kernels/context/device_loops.hpp"
#include "kernels/context/packs.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/region_pool/region_pool.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;
constexpr int kScanThreads = 1024;
constexpr int kSumThreads = 1024;       // of a block, at most
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

// Where the channels of a voxel go: 2^shift lanes side by side, kWidth channels each.
constexpr int kMostChannels = 32;  // of a tile
constexpr int kVoxelsAtATime = 4;

template <int kWidth>
int tile_shift(int64_t channels) {
  int shift = 0;
  while ((kWidth << shift) < kMostChannels && (kWidth << shift) < channels) {
    ++shift;
  }
  return shift;
}

// kWidth channels at a place that is aligned to all of them together if `packed`.
template <int kWidth, class T>
VESAL_DEVICE Floats<kWidth> load_channels(const T* x, bool packed) {
  if (packed) {
    return load_floats<kWidth>(x);
  }
  Floats<kWidth> values;
  VESAL_UNROLL
  for (int k = 0; k < kWidth; ++k) {
    values[k] = widen(x[k]);
  }
  return values;
}

// Block (region, tile of channels, sample). Thread t takes every (threads / 2^shift)-th voxel.
template <class T, int kWidth>
VESAL_KERNEL void VESAL_LAUNCH_BOUNDS(kSumThreads)
    segment_sums(int64_t voxels, int64_t channels, int shift, bool packed, bool mean,
                 const int* VESAL_RESTRICT offsets, const int* VESAL_RESTRICT index,
                 const T* VESAL_RESTRICT x, T* VESAL_RESTRICT sums) {
  VESAL_SHARED(float, scratch, [kSumThreads / 32 * kMostChannels]);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread & ((1 << shift) - 1);
  const int step = static_cast<int>(blockDim.x) >> shift;
  const int tile_channels = kWidth << shift;
  const int64_t tile = static_cast<int64_t>(blockIdx.y) * tile_channels;
  const int64_t sample = blockIdx.z;
  const int* bounds = offsets + sample * (static_cast<int64_t>(gridDim.x) + 1) + blockIdx.x;
  const int size = bounds[1] - bounds[0];
  const T* column = x + sample * voxels * channels + tile + lane * kWidth;
  const int* next = index + sample * voxels + bounds[0] + (thread >> shift);
  // Voxels from this thread's next on; none where the tile reaches beyond the channels.
  int left = tile + lane * kWidth < channels ? size - (thread >> shift) : 0;
  int numbers[kVoxelsAtATime];
  const auto ask_for_numbers = [&] {
    VESAL_UNROLL
    for (int e = 0; e < kVoxelsAtATime; ++e) {
      numbers[e] = e * step < left ? next[e * step] : -1;
    }
  };
  ask_for_numbers();
  Floats<kWidth> sum = {};
  while (left > 0) {
    Floats<kWidth> values[kVoxelsAtATime] = {};
    VESAL_UNROLL
    for (int e = 0; e < kVoxelsAtATime; ++e) {
      if (numbers[e] >= 0) {
        values[e] = load_channels<kWidth>(column + numbers[e] * channels, packed);
      }
    }
    next += kVoxelsAtATime * step;
    left -= kVoxelsAtATime * step;
    ask_for_numbers();
    VESAL_UNROLL
    for (int e = 0; e < kVoxelsAtATime; ++e) {
      VESAL_UNROLL
      for (int k = 0; k < kWidth; ++k) {
        sum[k] += values[e][k];
      }
    }
  }
  VESAL_UNROLL
  for (int k = 0; k < kWidth; ++k) {
    for (int distance = 16; distance >> shift > 0; distance /= 2) {
      sum[k] += __shfl_xor_sync(kFullWarp, sum[k], distance);
    }
    if (thread % 32 == lane) {
      scratch[thread / 32 * tile_channels + lane * kWidth + k] = sum[k];
    }
  }
  __syncthreads();
  if (thread < tile_channels && tile + thread < channels) {
    float total = 0.0f;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
      total += scratch[warp * tile_channels + thread];
    }
    sums[(sample * gridDim.x + blockIdx.x) * channels + tile + thread] =
        narrow<T>(mean && size > 0 ? total / static_cast<float>(size) : total);
  }
}

template <class T>
void launch_segment_sums(Context& context, const RegionParams& p, int64_t channels, const RegionIndex& index,
                         const T* x, bool mean, T* sums) {
  constexpr int64_t kFewBlocks = 128;  // about the multiprocessors of a large GPU, but the same for all
  constexpr int kLeastChannels = 8;    // a sector of float32
  constexpr int64_t kVoxelsOfAThread = 16;
  const auto run = [&]<int kWidth>() {
    int shift = tile_shift<kWidth>(channels);
    while ((kWidth << shift) > kLeastChannels &&
           p.n * p.regions * ceil_div(channels, kWidth << shift) < kFewBlocks) {
      --shift;
    }
    const int64_t lanes = ceil_div(p.voxels, p.regions) << shift;
    int threads = 32;
    while (threads < kSumThreads && threads * kVoxelsOfAThread < lanes) {
      threads *= 2;
    }
    launch(context.stream(),
           {.grid = {p.regions, ceil_div(channels, kWidth << shift), p.n}, .block = {threads, 1, 1}},
           segment_sums<T, kWidth>, p.voxels, channels, shift, can_pack(x), mean,
           static_cast<const int*>(index.offsets), static_cast<const int*>(index.voxels), x, sums);
  };
  if (channels % kPack == 0) {
    run.template operator()<kPack>();
  } else {
    run.template operator()<1>();
  }
}

struct Zero {
  int* x;
  VESAL_DEVICE void operator()(int64_t i) const { x[i] = 0; }
};

// y[voxel] = x[region], divided by the region's size when there are offsets. Block (voxels, tile of channels,
// sample).
template <class T, int kWidth>
VESAL_KERNEL void gather_regions(int64_t voxels, int regions, int64_t channels, int shift, bool packed,
                                 const int* VESAL_RESTRICT labels, const int* VESAL_RESTRICT offsets,
                                 const T* VESAL_RESTRICT x, T* VESAL_RESTRICT y) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t channel =
      ((static_cast<int64_t>(blockIdx.y) << shift) + (thread & ((1 << shift) - 1))) * kWidth;
  if (channel >= channels) {
    return;
  }
  const int64_t sample = blockIdx.z;
  const int step = kBlock >> shift;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (step * kVoxelsAtATime) + (thread >> shift);
  const T* column = x + sample * regions * channels + channel;
  T* target = y + (sample * voxels + first) * channels + channel;
  int found[kVoxelsAtATime];
  VESAL_UNROLL
  for (int e = 0; e < kVoxelsAtATime; ++e) {
    const int label = first + e * step < voxels ? labels[sample * voxels + first + e * step] : -1;
    found[e] = is_region(label, regions) ? label : -1;
  }
  Floats<kWidth> values[kVoxelsAtATime] = {};
  VESAL_UNROLL
  for (int e = 0; e < kVoxelsAtATime; ++e) {
    if (found[e] >= 0) {
      values[e] = load_channels<kWidth>(column + found[e] * channels, packed);
      if (offsets != nullptr) {
        const int* bounds = offsets + sample * (regions + 1) + found[e];
        const auto size = static_cast<float>(bounds[1] - bounds[0]);
        VESAL_UNROLL
        for (int k = 0; k < kWidth; ++k) {
          values[e][k] /= size;
        }
      }
    }
  }
  VESAL_UNROLL
  for (int e = 0; e < kVoxelsAtATime; ++e) {
    if (first + e * step < voxels) {
      store_floats<kWidth>(target + e * step * channels, values[e]);
    }
  }
}

template <class T>
void launch_gather(Context& context, const RegionParams& p, int64_t channels, const int* labels,
                   const int* offsets, const T* x, T* y) {
  const auto run = [&]<int kWidth>() {
    const int shift = tile_shift<kWidth>(channels);
    launch(context.stream(),
           {.grid = {ceil_div(p.voxels, (kBlock >> shift) * kVoxelsAtATime),
                     ceil_div(channels, kWidth << shift), p.n},
            .block = {kBlock, 1, 1}},
           gather_regions<T, kWidth>, p.voxels, static_cast<int>(p.regions), channels, shift, can_pack(x),
           labels, offsets, x, y);
  };
  if (channels % kPack == 0 && can_pack(y)) {
    run.template operator()<kPack>();
  } else {
    run.template operator()<1>();
  }
}

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
    launch_gather(context, p, channels, labels, index.offsets, dmeans.as<T>("region_mean_backward: dmeans"),
                  dx.as<T>("region_mean_backward: dx"));
  });
}

void region_gather_forward(Context& context, const RegionParams& p, int64_t channels, const int32_t* labels,
                           ConstData x, Data y) {
  with_storage("region_gather_forward", {x, y}, [&]<class T>(T) {
    launch_gather(context, p, channels, labels, nullptr, x.as<T>("region_gather_forward: x"),
                  y.as<T>("region_gather_forward: y"));
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
