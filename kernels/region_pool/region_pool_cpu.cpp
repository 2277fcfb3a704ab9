// Pooling by regions on the host. The index is a counting sort, one pass over the voxels for the sizes and
// one for the numbers, limited by memory; samples side by side. Sums run over rows of channels, regions side
// by side: a region's sum is one thread's, in the order of its voxels.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/float_rows_cpu.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/region_pool/region_pool.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // numbers that are worth a thread

bool is_region(int32_t label, int64_t regions) { return label >= 0 && label < regions; }

// A grain in rows of `channels` numbers.
int64_t row_grain(int64_t channels) { return ceil_div(kGrain, channels); }

// target[region] = sum over its voxels of source, divided by their number for a mean.
template <class T>
void segment_sums(const RegionParams& p, int64_t channels, const RegionIndex& index, const T* source,
                  bool mean, T* target) {
  const int64_t voxels_per_region = std::max<int64_t>(p.voxels / p.regions, 1);
  parallel_for(p.n * p.regions, row_grain(channels * voxels_per_region), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch = float_scratch<T>(channels);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t sample = row / p.regions;
      const int32_t* offsets = index.offsets + sample * (p.regions + 1) + row % p.regions;
      const int32_t* voxels = index.voxels + sample * p.voxels;
      const Input<T> x{source + sample * p.voxels * channels};
      write_floats(target + row * channels, channels, scratch.data(), [&](float* sum) {
        std::fill_n(sum, channels, 0.0f);
        for (int64_t e = offsets[0]; e < offsets[1]; ++e) {
          const Input<T> voxel = x + voxels[e] * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) {
            sum[c] += voxel[c];
          }
        }
        if (mean && offsets[1] > offsets[0]) {
          const auto count = static_cast<float>(offsets[1] - offsets[0]);
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) {
            sum[c] /= count;
          }
        }
      });
    }
  });
}

}  // namespace

size_t region_index_workspace_bytes(Context&, const RegionParams& p) {
  return static_cast<size_t>(p.n * p.regions) * sizeof(int32_t);
}

void region_index(Context&, const RegionParams& p, const int32_t* labels, const RegionIndex& index,
                  Workspace workspace) {
  auto* cursors = static_cast<int32_t*>(workspace.data);
  parallel_for(p.n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin; sample < end; ++sample) {
      const int32_t* label = labels + sample * p.voxels;
      int32_t* next = cursors + sample * p.regions;
      std::fill_n(next, p.regions, 0);
      for (int64_t v = 0; v < p.voxels; ++v) {
        if (is_region(label[v], p.regions)) {
          ++next[label[v]];
        }
      }
      int32_t* offsets = index.offsets + sample * (p.regions + 1);
      offsets[0] = 0;
      for (int64_t m = 0; m < p.regions; ++m) {
        offsets[m + 1] = offsets[m] + next[m];
        next[m] = offsets[m];
      }
      int32_t* voxels = index.voxels + sample * p.voxels;
      for (int64_t v = 0; v < p.voxels; ++v) {
        if (is_region(label[v], p.regions)) {
          voxels[next[label[v]]++] = static_cast<int32_t>(v);
        }
      }
    }
  });
}

void region_mean_forward(Context&, const RegionParams& p, int64_t channels, const RegionIndex& index,
                         ConstData x, Data means) {
  with_storage("region_mean_forward", {x, means}, [&]<class T>(T) {
    segment_sums(p, channels, index, x.as<T>("region_mean_forward: x"), true,
                 means.as<T>("region_mean_forward: means"));
  });
}

void region_mean_backward(Context&, const RegionParams& p, int64_t channels, const int32_t* labels,
                          const RegionIndex& index, ConstData dmeans_, Data dx_) {
  with_storage("region_mean_backward", {dmeans_, dx_}, [&]<class T>(T) {
    const auto dmeans = input<T>(dmeans_, "region_mean_backward: dmeans");
    T* dx = dx_.as<T>("region_mean_backward: dx");
    parallel_for(p.n * p.voxels, row_grain(channels), [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) {
        const int64_t sample = v / p.voxels;
        if (!is_region(labels[v], p.regions)) {
          std::fill_n(dx + v * channels, channels, narrow<T>(0.0f));
          continue;
        }
        const Output<T> row{dx + v * channels};
        const int32_t* offsets = index.offsets + sample * (p.regions + 1) + labels[v];
        const auto count = static_cast<float>(offsets[1] - offsets[0]);
        const Input<T> mean = dmeans + (sample * p.regions + labels[v]) * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
          row[c] = mean[c] / count;
        }
      }
    });
  });
}

void region_gather_forward(Context&, const RegionParams& p, int64_t channels, const int32_t* labels,
                           ConstData x_, Data y_) {
  with_storage("region_gather_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("region_gather_forward: x");
    T* y = y_.as<T>("region_gather_forward: y");
    parallel_for(p.n * p.voxels, row_grain(channels), [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) {
        if (is_region(labels[v], p.regions)) {
          std::memcpy(y + v * channels, x + (v / p.voxels * p.regions + labels[v]) * channels,
                      static_cast<size_t>(channels) * sizeof(T));
        } else {
          std::fill_n(y + v * channels, channels, narrow<T>(0.0f));
        }
      }
    });
  });
}

void region_gather_backward(Context&, const RegionParams& p, int64_t channels, const RegionIndex& index,
                            ConstData dy, Data dx) {
  with_storage("region_gather_backward", {dy, dx}, [&]<class T>(T) {
    segment_sums(p, channels, index, dy.as<T>("region_gather_backward: dy"), false,
                 dx.as<T>("region_gather_backward: dx"));
  });
}

}  // namespace vesal::kernels::cpu
