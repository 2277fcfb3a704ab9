// The emulator's device memory: separate blocks with guards, so that an overrun hits nothing else and is
// found.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vesal::kernels::simt {

// What uninitialised device memory, shared memory and inactive lanes hold: a signalling NaN as a float.
inline constexpr uint32_t kPoison = 0x7fa00000u;

// A block of its own, aligned to 256 bytes as cudaMalloc's are and filled with kPoison, with at least 64
// guard bytes on both sides. Guards are compared with their pattern when the block is freed, after every
// launch and by check_guards(); under AddressSanitizer touching them traps at once. Zero bytes give a valid
// block without usable bytes. Host code may read and write the block directly. Safe to call from several host
// threads.
void* allocate(size_t bytes);

// A block of zeros that costs memory only where it is touched, between pages that may not be: for tensors larger than
// the machine. Not in the race lane, which keeps books of every byte.
void* allocate_sparse(size_t bytes);

// Frees a block of either kind; null is ignored. Throws SimtError(guard_overwritten), after freeing, if a guard was damaged,
// and SimtError(host_pointer) for a pointer that allocate() did not return.
void deallocate(void* pointer);

// Throws SimtError(guard_overwritten) that names the first damaged block.
void check_guards();

// True if `pointer` lies within a live block, its end included (where an empty view at the end points).
bool is_device_pointer(const void* pointer);

// Sum of the sizes asked for, and number of blocks, now alive.
size_t allocated_bytes();
size_t live_allocations();

}  // namespace vesal::kernels::simt
