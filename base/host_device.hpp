// Marks functions that host and device code share, without needing a CUDA header.
#pragma once

#ifdef __CUDACC__
#define VESAL_HOST_DEVICE __host__ __device__
#else
#define VESAL_HOST_DEVICE
#endif
