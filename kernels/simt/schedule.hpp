// In which order the emulator runs what a GPU would run at once. A correct kernel gives the same bits in
// every order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vesal::kernels::simt {

// Order of the blocks of a grid and of the threads of a block between two synchronisation points.
enum class Schedule { forward, reverse, random };

// Holds for all launches of the process from now on. Until the first call: the environment variable
// VESAL_SIMT_SCHEDULE (forward, reverse, random:SEED), else forward.
void set_schedule(Schedule schedule, uint64_t seed = 0);
Schedule schedule();

// Host threads that share the blocks of a launch; each block stays on one. Until the first call: the
// environment variable VESAL_SIMT_WORKERS, else 1. Throws UsageError below 1 or above 256.
void set_workers(int workers);
int workers();

// Of a launch with more blocks than this, only so many run: the first, the last, and others at even steps between them.
// 0, the default: all. For tests on tensors too large to be worked through, whose far ends are what matters.
void set_block_sample(uint64_t blocks);
uint64_t block_sample();

// Shared memory that a block may use, in bytes. The defaults are those of compute capability 8.6 and 8.9;
// total is 163 KiB on 8.0 and 227 KiB on 9.0.
struct Limits {
  size_t static_shared = 48 * 1024;
  size_t total_shared = 99 * 1024;
};
void set_limits(const Limits& limits);
Limits limits();

}  // namespace vesal::kernels::simt
