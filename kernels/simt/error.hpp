// What the emulator throws when a kernel does something that a GPU would not forgive.
#pragma once

#include <string>
#include <vector>

#include "base/error.hpp"

namespace vesal::kernels::simt {

enum class ErrorKind {
  launch_limit,        // grid or block beyond what CUDA accepts
  shared_limit,        // more shared memory than the limits allow
  host_pointer,        // a pointer argument outside every live device allocation
  divergent_barrier,   // threads of one block wait at different __syncthreads calls
  deadlock,            // nobody can go on: threads wait for others that wait elsewhere
  mask_mismatch,       // lanes wait for each other with different masks, or a lane is not in its own mask
  operation_mismatch,  // lanes (or threads) meet in different operations
  inactive_lane,       // a mask names a lane that does not exist, or a shuffle reads a lane outside the mask
  exited_lane,         // a mask names a lane whose thread has returned
  bad_argument,        // a shuffle width that is not a power of two up to 32
  out_of_bounds_shared,  // bytes around a shared array were overwritten
  guard_overwritten,     // bytes around a device allocation were overwritten
  kernel_exception,      // a C++ exception left the kernel
  // Builds with VESAL_RACE:
  write_write_race,    // two threads write the same memory, and nothing orders them
  read_write_race,     // one reads what the other writes
  uninitialised_read,  // of shared or device memory
  out_of_region,  // neither shared nor device memory, nor the kernel's own: host memory, or beyond an array
  misaligned_access,  // an address that is no multiple of the access's size
};

// "divergent_barrier" and so on.
const char* name_of(ErrorKind kind);

// Thrown on the host by launch() and by the memory functions, never inside a kernel.
class SimtError : public DeviceError {
 public:
  SimtError(ErrorKind kind, const std::string& message)
      : DeviceError(concat("simt: ", name_of(kind), ": ", message)), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// Things that run on today's GPUs but should not be relied on: a barrier after some threads of the block
// returned. Recorded once per launch, the newest 100 kept, in order.
std::vector<std::string> warnings();
void clear_warnings();

}  // namespace vesal::kernels::simt
