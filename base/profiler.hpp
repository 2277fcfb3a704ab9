// Named ranges on a profiler's timeline (NVTX). Without a profiler attached a range costs a null-pointer test inside
// NVTX; in a build without CUDA's headers it is nothing at all.
#pragma once

#if VESAL_WITH_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

namespace vesal {

class ProfilerRange {
 public:
#if VESAL_WITH_NVTX
  explicit ProfilerRange(const char* name) { nvtxRangePushA(name); }
  ~ProfilerRange() { nvtxRangePop(); }
#else
  explicit ProfilerRange(const char*) {}
#endif
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

}  // namespace vesal

#define VESAL_CONCAT_INNER(a, b) a##b
#define VESAL_CONCAT(a, b) VESAL_CONCAT_INNER(a, b)
// Marks the rest of the enclosing scope: VESAL_RANGE("conv3d_forward");
#define VESAL_RANGE(name) const ::vesal::ProfilerRange VESAL_CONCAT(profiler_range_, __LINE__)(name)
