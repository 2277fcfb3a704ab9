// Argument checks and dispatch of pooling by regions.
#include "kernels/region_pool/region_pool.hpp"

#include <algorithm>

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(region_index_workspace_bytes)
VESAL_DECLARE_BACKENDS(region_index)
VESAL_DECLARE_BACKENDS(region_mean_forward)
VESAL_DECLARE_BACKENDS(region_mean_backward)
VESAL_DECLARE_BACKENDS(region_gather_forward)
VESAL_DECLARE_BACKENDS(region_gather_backward)

namespace {

void check_params(const char* what, const RegionParams& p, int64_t channels) {
  check<ShapeError>(p.n >= 0 && p.n <= 65535 && p.voxels >= 1 && p.voxels <= INT32_MAX, what, ": ", p.n,
                    " samples of ", p.voxels,
                    " voxels, expected at most 65535 samples of 1 to 2^31 - 1 voxels");
  check<ShapeError>(p.regions >= 1 && p.regions <= 65536, what, ": ", p.regions,
                    " regions, expected 1 to 65536");
  check<ShapeError>(channels >= 1, what, ": ", channels, " channels, expected at least 1");
  checked_mul(checked_mul(p.n, std::max(p.voxels, p.regions + 1)), channels);
}

void check_arrays(const char* what, const RegionParams& p, bool all_there) {
  check<ShapeError>(p.n == 0 || all_there, what, ": an array is null");
}

bool is_there(const RegionIndex& index) { return index.offsets != nullptr && index.voxels != nullptr; }

}  // namespace

size_t region_index_workspace_bytes(Context& context, const RegionParams& params) {
  check_params("region_index", params, 1);
  VESAL_DISPATCH(context, region_index_workspace_bytes(context, params));
}

void region_index(Context& context, const RegionParams& params, const int32_t* labels,
                  const RegionIndex& index, Workspace workspace) {
  check_params("region_index", params, 1);
  check_arrays("region_index", params, labels != nullptr && is_there(index));
  workspace.require(region_index_workspace_bytes(context, params), "region_index");
  VESAL_DISPATCH(context, region_index(context, params, labels, index, workspace));
}

void region_mean_forward(Context& context, const RegionParams& params, int64_t channels,
                         const RegionIndex& index, ConstData x, Data means) {
  check_params("region_mean_forward", params, channels);
  check_arrays("region_mean_forward", params, is_there(index) && x && means);
  VESAL_DISPATCH(context, region_mean_forward(context, params, channels, index, x, means));
}

void region_mean_backward(Context& context, const RegionParams& params, int64_t channels,
                          const int32_t* labels, const RegionIndex& index, ConstData dmeans, Data dx) {
  check_params("region_mean_backward", params, channels);
  check_arrays("region_mean_backward", params, labels != nullptr && is_there(index) && dmeans && dx);
  VESAL_DISPATCH(context, region_mean_backward(context, params, channels, labels, index, dmeans, dx));
}

void region_gather_forward(Context& context, const RegionParams& params, int64_t channels,
                           const int32_t* labels, ConstData x, Data y) {
  check_params("region_gather_forward", params, channels);
  check_arrays("region_gather_forward", params, labels != nullptr && x && y);
  VESAL_DISPATCH(context, region_gather_forward(context, params, channels, labels, x, y));
}

void region_gather_backward(Context& context, const RegionParams& params, int64_t channels,
                            const RegionIndex& index, ConstData dy, Data dx) {
  check_params("region_gather_backward", params, channels);
  check_arrays("region_gather_backward", params, is_there(index) && dy && dx);
  VESAL_DISPATCH(context, region_gather_backward(context, params, channels, index, dy, dx));
}

}  // namespace vesal::kernels
