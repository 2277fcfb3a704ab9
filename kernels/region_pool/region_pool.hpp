// Between voxels and regions (supervoxels): every voxel has a label that says which region it belongs to, a
// region's vector is the mean over its voxels, and goes back to them as it is. Segment mean and gather, as in
// every graph network that pools by assignment (for supervoxels: GNN-Tumor-Seg, Saueressig et al. 2021).
//
// A label outside 0 .. regions - 1 (-1, say) puts a voxel into no region: it is never read by a mean or a
// sum, and gets 0 from a gather. A region without voxels has mean 0, and its row is never read by a gather.
// x, means, y and their gradients are stored as float32, bf16 or f16 (kernels/context/storage.hpp); sums are
// float32, rounded once.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct RegionParams {
  int64_t n = 1;        // samples, at most 65535
  int64_t voxels = 1;   // of one sample, 1 to 2^31 - 1, in any order
  int64_t regions = 1;  // of one sample, 1 to 65536; labels count within the sample

  int64_t index_offsets() const { return n * (regions + 1); }
};

// The voxels of each region, in compressed rows: region m of sample s owns voxels
// index[s][offsets[s][m]] .. index[s][offsets[s][m + 1] - 1], in ascending order.
struct RegionIndex {
  int32_t* offsets = nullptr;  // [n, regions + 1], from 0 for each sample
  int32_t* voxels =
      nullptr;  // [n, voxels], numbers within the sample; entries behind the last are left as they are
};

size_t region_index_workspace_bytes(Context& context, const RegionParams& params);
// labels [n, voxels]. A counting sort: the same index whatever the number of threads.
void region_index(Context& context, const RegionParams& params, const int32_t* labels,
                  const RegionIndex& index, Workspace workspace);

// means [n, regions, channels] of x [n, voxels, channels], each summed in the order of its voxels.
void region_mean_forward(Context& context, const RegionParams& params, int64_t channels,
                         const RegionIndex& index, ConstData x, Data means);
// dx[voxel] = dmeans[its region] / voxels of the region, overwritten; 0 for voxels of no region.
void region_mean_backward(Context& context, const RegionParams& params, int64_t channels,
                          const int32_t* labels, const RegionIndex& index, ConstData dmeans, Data dx);

// y [n, voxels, channels]: y[voxel] = x[its region], x [n, regions, channels].
void region_gather_forward(Context& context, const RegionParams& params, int64_t channels,
                           const int32_t* labels, ConstData x, Data y);
// dx[region] = the sum of dy over its voxels in their order, overwritten; 0 for a region without voxels.
void region_gather_backward(Context& context, const RegionParams& params, int64_t channels,
                            const RegionIndex& index, ConstData dy, Data dx);

}  // namespace vesal::kernels
