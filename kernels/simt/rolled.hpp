// VESAL_ROLLED, before a loop of a kernel that nvcc shall not unroll: its body already holds enough
// independent work, and copies of it would need more registers than there are.
#pragma once

#ifdef __CUDACC__
#define VESAL_ROLLED _Pragma("unroll 1")
#else
#define VESAL_ROLLED
#endif
