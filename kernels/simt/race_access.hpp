// What a kernel's loads and stores would cost a GPU's memory, counted from the race lane's hooks: conflicts
// of shared-memory banks, and sectors of device memory. Not time, but it shows when a kernel loses its
// padding or its coalescing. Builds with VESAL_RACE only.
//
// The k-th execution of an instruction by the lanes of a warp since the last block barrier counts as one
// request. Atomics are left out: what they cost depends on who updates the same word.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace vesal::kernels::simt {

// Of many requests: how many times the ideal each took.
struct AccessCost {
  uint64_t requests = 0;
  double sum = 0;
  double worst = 1;
  uint32_t worst_code = 0;  // the instruction

  double mean() const { return requests == 0 ? 1.0 : sum / static_cast<double>(requests); }
  void add(double factor, uint32_t code);
};

// Shared memory has 32 banks of 4 bytes; a request is served in as many passes as the busiest bank holds
// different words. Accesses of 8 bytes go by half warps, of 16 by quarters. 1 is free of conflicts, 32 the
// worst.
//
// Device memory moves in sectors of 32 bytes. The ideal is that of the active lanes side by side, from a
// sector's start; a request that several lanes share counts as ideal, not as better.
struct KernelAccesses {
  std::string kernel;
  AccessCost conflicts;
  AccessCost sectors;
  std::string worst_conflict;  // places in the source, empty where nothing is worse than ideal
  std::string worst_sectors;
};

// Counting starts anew, or ends. It is on from the start, and written to a file at the program's end, if the
// environment variable VESAL_ACCESS_REPORT names one: a line for each kernel is added to the file.
void count_accesses(bool on);
// What has been counted since, by kernel, in order of the names.
std::vector<KernelAccesses> counted_accesses();

// The counts of one block after another, kept by the race detector.
class AccessCounter {
 public:
  // Null unless VESAL_ACCESS_REPORT asks for one.
  static std::unique_ptr<AccessCounter> from_environment();

  void begin_launch(const void* kernel, int threads);
  void begin_block();
  // All threads of the block have met, or returned.
  void end_phase();
  // `space` numbers the shared array, 0 for device memory, where `address` is the whole address and not the
  // offset in an array.
  void add(int thread, uint32_t space, uintptr_t address, size_t bytes, bool natural, uint32_t code) {
    log_[static_cast<size_t>(thread)].push_back({.address = address,
                                                 .code = code,
                                                 .space = space,
                                                 .bytes = static_cast<uint32_t>(bytes),
                                                 .natural = natural});
  }
  std::vector<KernelAccesses> summary() const;

 private:
  struct Access {
    uintptr_t address;
    uint32_t code;
    uint32_t space;
    uint32_t bytes;
    bool natural;
  };
  // One instruction, executed by the lanes of a warp: the k-th request is the k-th mask and 32 addresses.
  struct Site {
    uint32_t code = 0;
    bool shared = false;
    size_t bytes = 0;
    std::vector<uint32_t> masks;
    std::vector<std::array<uintptr_t, 32>> addresses;
    size_t executions = 0;  // by the lane that is being read, whose number is
    uint64_t reader = 0;
  };
  struct Recent {
    uint64_t key = 0;
    size_t site = 0;
  };
  struct Kernel {
    AccessCost conflicts;
    AccessCost sectors;
    std::vector<Site> sites;
    std::unordered_map<uint64_t, size_t> site_index;
    std::array<Recent, 256> recent{};
  };

  Site& site_of(const Access& access, size_t bytes);
  void add_request(size_t lane, const Access& access, uintptr_t address, size_t bytes);
  void judge_warp();

  std::unordered_map<const void*, Kernel> kernels_;
  Kernel* kernel_ = nullptr;  // of the launch
  std::vector<std::vector<Access>> log_;
  uint64_t reader_ = 0;
};

}  // namespace vesal::kernels::simt
