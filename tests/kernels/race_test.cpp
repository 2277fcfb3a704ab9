// The race lane: every kind of report is planted and found under every schedule, and what CUDA orders stays
// silent; bank conflicts and scattered accesses are counted. Built with VESAL_RACE only.
#define VESAL_BACKEND simt
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/simt/device.hpp"
#include "kernels/simt/race_access.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr unsigned kFull = 0xffffffffu;
constexpr StreamHandle kStream{};
constexpr Device kDevice{DeviceType::simt, 0};

template <class T>
using Array = testing::DeviceArray<T>;

VESAL_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }

// ---- Races in shared memory ----

VESAL_KERNEL void write_one_cell(int* y) {
  VESAL_SHARED(int, cell, [4]);
  cell[2] = thread_index();
  __syncthreads();
  y[thread_index()] = cell[2];
}

// The second phase overwrites what slower threads still read of the first.
VESAL_KERNEL void forget_barrier(int* y) {
  VESAL_SHARED(int, ring, [64]);
  const int i = thread_index();
  ring[i] = i;
  __syncthreads();
  const int next = ring[(i + 33) % 64];
  ring[i] = next;
  __syncthreads();
  y[i] = ring[i];
}

VESAL_KERNEL void forget_barrier_in_dynamic(int* y) {
  VESAL_DYN_SHARED(int, ring);
  const int i = thread_index();
  ring[i] = i;
  __syncthreads();
  ring[i] = ring[(i + 33) % 64];
  __syncthreads();
  y[i] = ring[i];
}

// Neighbouring lanes exchange through shared memory: in order only with a __syncwarp between.
enum class Meet { not_at_all, in_shuffle, in_vote, in_half_warps, in_warp };

VESAL_DEVICE void meet(Meet how) {
  switch (how) {
    case Meet::not_at_all:
      return;
    case Meet::in_shuffle:
      __shfl_xor_sync(kFull, 1, 1);
      return;
    case Meet::in_vote:
      __ballot_sync(kFull, 1);
      return;
    case Meet::in_half_warps:
      __syncwarp(thread_index() % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
      return;
    case Meet::in_warp:
      __syncwarp();
      return;
  }
}

VESAL_KERNEL void exchange_in_warp(int* y, Meet how, int distance) {
  VESAL_SHARED(int, buffer, [64]);
  const int i = thread_index();
  buffer[i] = -1;
  __syncthreads();
  buffer[i] = i;
  meet(how);
  y[i] = buffer[i ^ distance];
}

// ---- Races in device memory ----

VESAL_KERNEL void write_first(int* y) { y[0] = static_cast<int>(blockIdx.x) + thread_index(); }

VESAL_KERNEL void read_neighbour(int* x, int* y) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x) + thread_index();
  const int n = static_cast<int>(gridDim.x * blockDim.x);
  x[i] = i;
  y[i] = x[(i + 1) % n];
}

VESAL_KERNEL void count_and_look(int* counter, int* y) {
  atomicAdd(counter, 1);
  y[thread_index()] = *counter;
}

VESAL_KERNEL void write_bytes(unsigned char* y, int stride) {
  const int i = thread_index();
  y[i / stride] = static_cast<unsigned char>(i);
}

VESAL_KERNEL void read_vector_written_piecewise(float* x, float4* y) {
  const int i = thread_index();
  x[i] = 1.0f;
  y[i] = reinterpret_cast<const float4*>(x)[i / 4];
}

struct Large {
  int values[12];
};
VESAL_KERNEL void copy_large(const Large* x, Large* y, int stride) {
  y[thread_index() / stride] = x[thread_index()];
}

// Each block sums its part; the one that takes the last ticket adds the parts up.
enum class Fence { none, of_block, by_first_thread, by_all_threads };

VESAL_KERNEL void sum_in_last_block(const int* x, int* parts, unsigned* ticket, int* total, Fence fence) {
  VESAL_SHARED(int, values, [64]);
  VESAL_SHARED(unsigned, last, );
  const int i = thread_index();
  values[i] = x[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  for (int half = 32; half > 0; half /= 2) {
    if (i < half) {
      values[i] += values[i + half];
    }
    __syncthreads();
  }
  if (i < 2) {  // two threads write the block's parts
    parts[blockIdx.x * 2 + threadIdx.x] = i == 0 ? values[0] : 1;
  }
  if (fence == Fence::by_all_threads) {
    __threadfence();
  }
  __syncthreads();
  if (i == 0) {
    if (fence == Fence::by_first_thread) {
      __threadfence();
    } else if (fence == Fence::of_block) {
      __threadfence_block();
    }
    last = atomicAdd(ticket, 1u) == gridDim.x - 1 ? 1u : 0u;
  }
  __syncthreads();
  if (last != 0 && i == 1) {
    int sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) {
      sum += parts[block * 2] * parts[block * 2 + 1];
    }
    *total = sum;
  }
}

// A thread tells another warp of its block by a flag.
VESAL_KERNEL void hand_over(int* flag, int* data, int* y, Fence fence) {
  if (threadIdx.x == 40) {
    *data = 7;
    if (fence == Fence::of_block) {
      __threadfence_block();
    } else if (fence == Fence::by_all_threads) {
      __threadfence();
    }
    atomicExch(flag, 1);
  } else if (threadIdx.x == 0) {
    while (atomicAdd(flag, 0) == 0) {
      __nanosleep(20);
    }
    *y = *data;
  }
}

// ---- Reading what nobody wrote ----

VESAL_KERNEL void read_unwritten_shared(int* y, int written) {
  VESAL_SHARED(int, table, [32]);
  if (thread_index() < written) {
    table[thread_index()] = 1;
  }
  __syncthreads();
  y[blockIdx.x * 32 + threadIdx.x] = table[thread_index()];
}

VESAL_KERNEL void read_unwritten_dynamic(float* y) {
  VESAL_DYN_SHARED(float, buffer);
  y[thread_index()] = buffer[thread_index()];
}

// Shared memory does not outlive its block.
VESAL_KERNEL void read_last_blocks_shared(int* y) {
  VESAL_SHARED(int, value, );
  if (blockIdx.x == 0) {
    value = 1;
  }
  y[blockIdx.x] = value;
}

VESAL_KERNEL void copy_all(const float* x, float* y) { y[thread_index()] = x[thread_index()]; }

// ---- Memory that is not the kernel's ----

struct View {
  const float* data;
  int64_t first;
};
VESAL_KERNEL void read_view(View x, float* y) { y[0] = x.data[x.first]; }
VESAL_KERNEL void write_view(View x) { const_cast<float*>(x.data)[x.first] = 1.0f; }

VESAL_KERNEL void read_past_shared(float* y, int index) {
  VESAL_SHARED(float, first, [8]);
  VESAL_SHARED(float, second, [8]);
  first[thread_index()] = second[thread_index()] = 1.0f;
  __syncthreads();
  const float* p = first;
  y[0] = p[index];
}

int mutable_of_host = 3;
VESAL_KERNEL void read_host_variable(int* y) { y[0] = mutable_of_host; }

VESAL_KERNEL void copy_vector_at(const float* x, float* y, int offset) {
  *reinterpret_cast<float4*>(y) = *reinterpret_cast<const float4*>(x + offset);
}
VESAL_KERNEL void copy_vector_from_shared(float4* y, int offset) {
  VESAL_SHARED(float4, buffer, [2]);
  auto* numbers = reinterpret_cast<float*>(buffer);
  for (int i = 0; i < 8; ++i) {
    numbers[i] = 1.0f;
  }
  *y = *reinterpret_cast<const float4*>(numbers + offset);
}

// ---- What is in order ----

VESAL_KERNEL void scan_in_phases(const int* x, int* y) {
  VESAL_SHARED(int, values, [2][64]);
  const int i = thread_index();
  int from = 0;
  values[0][i] = x[i];
  __syncthreads();
  for (int step = 1; step < 64; step *= 2) {
    values[1 - from][i] = values[from][i] + (i >= step ? values[from][i - step] : 0);
    from = 1 - from;
    __syncthreads();
  }
  y[i] = values[from][i];
}

// The buffer is filled anew in every round, by other threads.
VESAL_KERNEL void reuse_buffer(int* y, int rounds) {
  VESAL_SHARED(int, buffer, [64]);
  const int i = thread_index();
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    buffer[(i + round) % 64] = i;
    __syncthreads();
    sum += buffer[(i * 5 + round) % 64];
    __syncthreads();
  }
  y[i] = sum;
}

// A sum in each warp: halves through shared memory and __syncwarp, the end by shuffles.
VESAL_KERNEL void sum_in_warps(const int* x, int* y) {
  VESAL_SHARED(int, values, [64]);
  const int i = thread_index();
  const int lane = i % 32;
  values[i] = x[i];
  __syncwarp();
  if (lane < 16) {
    values[i] += values[i + 16];
  }
  __syncwarp();
  int sum = lane < 8 ? values[i] + values[i + 8] : 0;
  for (unsigned offset = 4; offset > 0; offset /= 2) {
    sum += __shfl_down_sync(kFull, sum, offset);
  }
  if (lane == 0) {
    y[i / 32] = sum;
  }
}

// Lanes that meet only by way of a third: 0 with 1, then 1 with 2.
VESAL_KERNEL void pass_through_lanes(int* y) {
  VESAL_SHARED(int, value, );
  const int lane = thread_index();
  if (lane == 0) {
    value = 5;
  }
  if (lane < 2) {
    __syncwarp(0x3u);
  }
  if (lane == 1 || lane == 2) {
    __syncwarp(0x6u);
  }
  if (lane == 2) {
    *y = value;
  }
}

VESAL_KERNEL void histogram(const int* x, int* counts, float* weight, unsigned long long* wide) {
  VESAL_SHARED(int, bins, [8]);
  const int i = thread_index();
  if (i < 8) {
    bins[i] = 0;
  }
  __syncthreads();
  atomicAdd(&bins[x[i] % 8], 1);
  atomicMax(counts + 8, x[i]);
  atomicAdd(weight, 0.5f);
  atomicCAS(wide, 0ull, 1ull);
  __syncthreads();
  if (i < 8) {
    atomicAdd(&counts[i], bins[i]);
  }
}

VESAL_KERNEL void exit_early(const int* x, int* y, int n) {
  VESAL_SHARED(int, buffer, [64]);
  const int i = thread_index();
  buffer[i] = x[i];
  if (i >= n) {
    return;
  }
  __syncthreads();
  y[i] = buffer[63 - i];
}

constexpr int kWeights[4] = {1, 3, 3, 1};
struct Filter {
  const int* x;
  int64_t count;
  int scale[4];
};
// Constants, a struct of arguments, a local array: none of it is shared or device memory.
VESAL_KERNEL void filter(Filter p, int* y) {
  int taps[4];
  for (int i = 0; i < 4; ++i) {
    taps[i] = p.x[(thread_index() + i) % p.count] * p.scale[i];
  }
  int sum = 0;
  for (int i = 0; i < 4; ++i) {
    sum += kWeights[(i + thread_index()) % 4] * taps[(i + thread_index()) % 4];
  }
  y[thread_index()] = sum;
}

// ---- What accesses cost ----

// Writes by rows, reads by columns, 32 requests each.
template <int kWidth>
VESAL_KERNEL void read_columns(float* y) {
  VESAL_SHARED(float, tile, [32][kWidth]);
  const int i = thread_index();
  for (int row = 0; row < 32; ++row) {
    tile[row][i] = 1.0f;
  }
  __syncthreads();
  float sum = 0.0f;
  for (int column = 0; column < 32; ++column) {
    sum += tile[i][column];
  }
  y[i] = sum;
}

// One request of T's width that writes shared memory, one that reads it, each lane's element `stride`
// elements and a group of `lanes_together` lanes at the same one.
template <class T>
VESAL_KERNEL void through_shared(T* y, int stride, int lanes_together) {
  VESAL_SHARED(T, values, [32 * 32]);
  const int i = thread_index();
  if (i % lanes_together == 0) {
    values[i / lanes_together * stride] = T{};
  }
  __syncwarp();
  y[i] = values[i / lanes_together * stride];
}

template <class T>
VESAL_KERNEL void gather(const T* x, T* y, int stride, int offset, int lanes) {
  const int i = thread_index();
  if (i < lanes) {
    y[i] = x[i * stride + offset];
  }
}

// Lane i makes i + 1 rounds.
VESAL_KERNEL void rounds_of_different_number(float* y) {
  const int i = thread_index();
  for (int round = 0; round <= i; ++round) {
    y[(round * 32 + i) * 8] = 1.0f;
  }
}

VESAL_KERNEL void copy_structs(const Large* x, Large* y) { y[thread_index()] = x[thread_index()]; }

VESAL_KERNEL void count_in_one_bin(int* counter) {
  VESAL_SHARED(int, bins, [32 * 32]);
  bins[thread_index() * 32] = 0;
  atomicAdd(&bins[thread_index() * 32], 1);
  atomicAdd(counter, 1);
}

// ---- The fixture ----

class RaceTest : public ::testing::TestWithParam<std::pair<Schedule, uint64_t>> {
 protected:
  void SetUp() override { set_schedule(GetParam().first, GetParam().second); }
  void TearDown() override {
    set_schedule(Schedule::forward);
    const Array<int> y(kDevice, 64);  // whatever a test did, the emulator works afterwards
    launch(kStream, {.block = 64}, reuse_buffer, y, 3);
  }

  // VESAL_RACE_PRINT shows the reports that are expected.
  static void expect_report(ErrorKind kind, const std::vector<std::string>& parts,
                            const std::function<void()>& run) {
    try {
      run();
      ADD_FAILURE() << "expected " << name_of(kind) << ", nothing was thrown";
    } catch (const SimtError& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      for (const std::string& part : parts) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << "expected \"" << part << "\" in: " << error.what();
      }
      if (std::getenv("VESAL_RACE_PRINT") != nullptr) {
        std::cout << error.what() << "\n";
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Orders, RaceTest,
                         ::testing::Values(std::pair(Schedule::forward, uint64_t{0}),
                                           std::pair(Schedule::reverse, uint64_t{0}),
                                           std::pair(Schedule::random, uint64_t{7})),
                         [](const auto& info) {
                           return std::string(info.param.first == Schedule::forward   ? "forward"
                                              : info.param.first == Schedule::reverse ? "reverse"
                                                                                      : "random");
                         });

// ---- Planted mistakes ----

TEST_P(RaceTest, TwoThreadsWriteOneCell) {
  const Array<int> y(kDevice, 64);
  expect_report(ErrorKind::write_write_race,
                {"launched by operator() (race_test.cpp:", "block (0, 0, 0), thread (",
                 "writes 4 bytes at the shared memory cell", "at offset 8 (race_test.cpp:", "which thread (",
                 "of the same block wrote (race_test.cpp:"},
                [&] { launch(kStream, {.block = 64}, write_one_cell, y); });
}

TEST_P(RaceTest, MissingBarrier) {
  const Array<int> y(kDevice, 64);
  expect_report(ErrorKind::read_write_race,
                {"the shared memory ring (256 bytes)", "race_test.cpp:", "no barrier"},
                [&] { launch(kStream, {.block = 64}, forget_barrier, y); });
  expect_report(ErrorKind::read_write_race, {"the shared memory of dynamic size", "no barrier"},
                [&] { launch(kStream, {.block = 64, .shared_bytes = 256}, forget_barrier_in_dynamic, y); });
}

TEST_P(RaceTest, LanesThatDoNotMeet) {
  const Array<int> y(kDevice, 64);
  for (const Meet how : {Meet::not_at_all, Meet::in_shuffle, Meet::in_vote}) {
    expect_report(ErrorKind::read_write_race, {"the shared memory buffer", "[warp "},
                  [&] { launch(kStream, {.block = 64}, exchange_in_warp, y, how, 1); });
  }
  launch(kStream, {.block = 64}, exchange_in_warp, y, Meet::in_warp, 1);
  launch(kStream, {.block = 64}, exchange_in_warp, y, Meet::in_warp, 16);
  launch(kStream, {.block = 64}, exchange_in_warp, y, Meet::in_half_warps, 1);
  expect_report(ErrorKind::read_write_race, {"the shared memory buffer"},
                [&] { launch(kStream, {.block = 64}, exchange_in_warp, y, Meet::in_half_warps, 16); });
  expect_report(ErrorKind::read_write_race, {"[warp 0", "[warp 1"},
                [&] { launch(kStream, {.block = 64}, exchange_in_warp, y, Meet::in_warp, 32); });
}

TEST_P(RaceTest, ThreadsWriteOneElement) {
  const Array<int> y(kDevice, 1);
  expect_report(ErrorKind::write_write_race,
                {"a device block of 4 bytes at offset 0", "of the same block wrote"},
                [&] { launch(kStream, {.block = 2}, write_first, y); });
  expect_report(ErrorKind::write_write_race,
                {"which block (", "in the same launch, with no fence and atomic"},
                [&] { launch(kStream, {.grid = 2, .block = 1}, write_first, y); });
}

TEST_P(RaceTest, BlocksReadWhatOthersWrite) {
  const Array<int> x(kDevice, std::vector<int>(64, 0));
  const Array<int> y(kDevice, 64);
  expect_report(ErrorKind::read_write_race, {"a device block of 256 bytes", "of the same block"},
                [&] { launch(kStream, {.grid = 2, .block = 32}, read_neighbour, x, y); });
  expect_report(ErrorKind::read_write_race, {"a device block of 256 bytes", "which block ("},
                [&] { launch(kStream, {.grid = 64, .block = 1}, read_neighbour, x, y); });
}

TEST_P(RaceTest, PlainReadBesideAtomics) {
  const Array<int> counter(kDevice, std::vector<int>{0});
  const Array<int> y(kDevice, 32);
  expect_report(ErrorKind::read_write_race, {"a device block of 4 bytes"},
                [&] { launch(kStream, {.block = 32}, count_and_look, counter, y); });
}

TEST_P(RaceTest, BytesVectorsAndStructs) {
  const Array<unsigned char> bytes(kDevice, 33);
  launch(kStream, {.block = 33}, write_bytes, bytes, 1);
  expect_report(ErrorKind::write_write_race, {"writes 1 bytes at a device block of 33 bytes"},
                [&] { launch(kStream, {.block = 33}, write_bytes, bytes, 2); });
  const Array<float> x(kDevice, std::vector<float>(32, 0.0f));
  const Array<float4> vectors(kDevice, 32);
  expect_report(ErrorKind::read_write_race, {"a device block of 128 bytes"},
                [&] { launch(kStream, {.block = 32}, read_vector_written_piecewise, x, vectors); });
  const Array<Large> large(kDevice, std::vector<Large>(8));
  const Array<Large> copies(kDevice, 8);
  launch(kStream, {.block = 8}, copy_large, large, copies, 1);
  expect_report(ErrorKind::write_write_race, {"48 bytes at a device block of 384 bytes"},
                [&] { launch(kStream, {.block = 8}, copy_large, large, copies, 2); });
}

TEST_P(RaceTest, FencesBetweenBlocks) {
  std::vector<int> values(5 * 64);
  std::iota(values.begin(), values.end(), 0);
  const Array<int> x(kDevice, values);
  const auto sum = [&](Fence fence) {
    const Array<int> parts(kDevice, 10);
    const Array<unsigned> ticket(kDevice, std::vector<unsigned>{0});
    const Array<int> total(kDevice, 1);
    launch(kStream, {.grid = 5, .block = 64}, sum_in_last_block, x, parts, ticket, total, fence);
    return total.host()[0];
  };
  EXPECT_EQ(sum(Fence::by_first_thread), 320 * 319 / 2);
  EXPECT_EQ(sum(Fence::by_all_threads), 320 * 319 / 2);
  for (const Fence fence : {Fence::none, Fence::of_block}) {
    expect_report(ErrorKind::read_write_race, {"which block (", "no fence and atomic to order them"},
                  [&] { sum(fence); });
  }
}

TEST_P(RaceTest, FencesBetweenWarps) {
  const auto hand = [&](Fence fence) {
    const Array<int> flag(kDevice, std::vector<int>{0});
    const Array<int> data(kDevice, std::vector<int>{0});
    const Array<int> y(kDevice, 1);
    launch(kStream, {.block = 64}, hand_over, flag, data, y, fence);
    return y.host()[0];
  };
  EXPECT_EQ(hand(Fence::of_block), 7);
  EXPECT_EQ(hand(Fence::by_all_threads), 7);
  expect_report(ErrorKind::read_write_race, {"thread (0, 0, 0)", "thread (40, 0, 0)"},
                [&] { hand(Fence::none); });
}

TEST_P(RaceTest, UninitialisedReads) {
  const Array<int> y(kDevice, 128);
  launch(kStream, {.grid = 4, .block = 32}, read_unwritten_shared, y, 32);
  expect_report(ErrorKind::uninitialised_read,
                {"reads 4 bytes at the shared memory table", "nobody has written"},
                [&] { launch(kStream, {.grid = 4, .block = 32}, read_unwritten_shared, y, 31); });
  const Array<float> z(kDevice, 32);
  expect_report(ErrorKind::uninitialised_read, {"of dynamic size"},
                [&] { launch(kStream, {.block = 32, .shared_bytes = 128}, read_unwritten_dynamic, z); });
  expect_report(ErrorKind::uninitialised_read, {"block (1, 0, 0)", "the shared memory value"},
                [&] { launch(kStream, {.grid = 2, .block = 1}, read_last_blocks_shared, y); });
  const Array<float> unwritten(kDevice, 32);
  expect_report(ErrorKind::uninitialised_read, {"a device block of 128 bytes"},
                [&] { launch(kStream, {.block = 32}, copy_all, unwritten, z); });
}

TEST_P(RaceTest, MemoryOfTheHost) {
  const Array<float> y(kDevice, std::vector<float>(4, 0.0f));
  float on_host[4] = {};
  const auto on_heap = std::make_unique<float[]>(4);
  for (float* const data : {on_host, on_heap.get(), static_cast<float*>(nullptr)}) {
    expect_report(ErrorKind::out_of_region, {"reads 4 bytes at 0x", "no memory of the device"}, [&] {
      launch(kStream, {}, read_view, View{data, 1}, y);
    });
    expect_report(ErrorKind::out_of_region, {"writes 4 bytes at 0x"}, [&] {
      launch(kStream, {}, write_view, View{data, 1});
    });
  }
  auto* freed = static_cast<float*>(allocate(16));
  deallocate(freed);
  expect_report(ErrorKind::out_of_region, {"reads 4 bytes"}, [&] {
    launch(kStream, {}, read_view, View{freed, 0}, y);
  });
  const Array<int> z(kDevice, 1);
  ++mutable_of_host;
  expect_report(ErrorKind::out_of_region, {"no memory of the device"},
                [&] { launch(kStream, {}, read_host_variable, z); });
}

TEST_P(RaceTest, BeyondAnArray) {
  const Array<float> y(kDevice, std::vector<float>(4, 0.0f));
  expect_report(ErrorKind::out_of_region,
                {"reads 4 bytes at 8 bytes past the end of a device block of 16 bytes"}, [&] {
                  launch(kStream, {}, read_view, View{y, 6}, y);
                });
  expect_report(ErrorKind::out_of_region,
                {"writes 4 bytes at 4 bytes before the start of a device block of 16 bytes"}, [&] {
                  launch(kStream, {}, write_view, View{y, -1});
                });
  for (const int index : {8, 9, -1}) {
    expect_report(ErrorKind::out_of_region, {"the shared memory first (32 bytes)"},
                  [&] { launch(kStream, {.block = 8}, read_past_shared, y, index); });
  }
}

TEST_P(RaceTest, MisalignedVectors) {
  const Array<float> x(kDevice, std::vector<float>(8, 1.0f));
  const Array<float> y(kDevice, 4);
  launch(kStream, {}, copy_vector_at, x, y, 4);
  const Array<float4> z(kDevice, 1);
  launch(kStream, {}, copy_vector_from_shared, z, 4);
  for (const int offset : {1, 2, 3}) {
    expect_report(ErrorKind::misaligned_access, {"reads 16 bytes at a device block", "not aligned to 16"},
                  [&] { launch(kStream, {}, copy_vector_at, x, y, offset); });
    expect_report(ErrorKind::misaligned_access, {"the shared memory buffer", "not aligned to 16"},
                  [&] { launch(kStream, {}, copy_vector_from_shared, z, offset); });
  }
}

// ---- What is in order ----

TEST_P(RaceTest, PhasesBetweenBarriers) {
  const Array<int> x(kDevice, std::vector<int>(64, 1));
  const Array<int> y(kDevice, 64);
  launch(kStream, {.grid = 1, .block = 64}, scan_in_phases, x, y);
  std::vector<int> expected(64);
  std::iota(expected.begin(), expected.end(), 1);
  EXPECT_EQ(y.host(), expected);
  launch(kStream, {.block = 64}, reuse_buffer, y, 9);
}

TEST_P(RaceTest, LanesThatMeet) {
  const Array<int> x(kDevice, std::vector<int>(64, 3));
  const Array<int> y(kDevice, 2);
  launch(kStream, {.block = 64}, sum_in_warps, x, y);
  EXPECT_EQ(y.host(), (std::vector<int>{96, 96}));
  launch(kStream, {.block = 32}, pass_through_lanes, y);
  EXPECT_EQ(y.host()[0], 5);
}

TEST_P(RaceTest, Atomics) {
  std::vector<int> values(100);
  std::iota(values.begin(), values.end(), 0);
  const Array<int> x(kDevice, values);
  const Array<int> counts(kDevice, std::vector<int>(9, 0));
  const Array<float> weight(kDevice, std::vector<float>{0.0f});
  const Array<unsigned long long> wide(kDevice, std::vector<unsigned long long>{0});
  launch(kStream, {.grid = 3, .block = 100}, histogram, x, counts, weight, wide);
  EXPECT_EQ(counts.host(), (std::vector<int>{39, 39, 39, 39, 36, 36, 36, 36, 99}));
  EXPECT_EQ(weight.host()[0], 150.0f);
}

TEST_P(RaceTest, EarlyExit) {
  const Array<int> x(kDevice, std::vector<int>(64, 2));
  const Array<int> y(kDevice, 64);
  launch(kStream, {.block = 64}, exit_early, x, y, 50);
  clear_warnings();
}

TEST_P(RaceTest, LaterLaunchesReadEarlierOnes) {
  const Array<float> x(kDevice, std::vector<float>(32, 2.0f));
  const Array<float> y(kDevice, 32);
  const Array<float> z(kDevice, 32);
  launch(kStream, {.block = 32}, copy_all, x, y);
  launch(kStream, {.block = 32}, copy_all, y, z);
  launch(kStream, {.block = 32}, copy_all, z, y);
  EXPECT_EQ(y.host(), x.host());
}

TEST_P(RaceTest, ConstantsArgumentsAndLocals) {
  const Array<int> x(kDevice, std::vector<int>(10, 2));
  const Array<int> y(kDevice, 32);
  launch(kStream, {.block = 32}, filter, Filter{x, 10, {1, 1, 1, 1}}, y);
  EXPECT_EQ(y.host(), std::vector<int>(32, 16));
}

// ---- What accesses cost ----

class AccessTest : public RaceTest {
 protected:
  void SetUp() override {
    RaceTest::SetUp();
    count_accesses(true);
  }
  void TearDown() override {
    count_accesses(false);
    RaceTest::TearDown();
  }

  // Of the one kernel that run() launches.
  static KernelAccesses counts_of(const std::function<void()>& run) {
    count_accesses(true);
    run();
    const std::vector<KernelAccesses> all = counted_accesses();
    EXPECT_EQ(all.size(), 1u);
    if (all.empty()) {
      return {};
    }
    if (std::getenv("VESAL_RACE_PRINT") != nullptr) {
      const auto print = [](const char* what, const AccessCost& cost, const std::string& place) {
        if (cost.requests > 0) {
          std::cout << "; " << what << ' ' << cost.mean() << " times the ideal in " << cost.requests
                    << " requests";
          if (!place.empty()) {
            std::cout << ", at worst " << cost.worst << " (" << place << ")";
          }
        }
      };
      std::cout << "accesses: " << all.front().kernel;
      print("shared memory", all.front().conflicts, all.front().worst_conflict);
      print("device memory", all.front().sectors, all.front().worst_sectors);
      std::cout << "\n";
    }
    return all.front();
  }
  static void expect_cost(const AccessCost& cost, uint64_t requests, double mean, double worst) {
    EXPECT_EQ(cost.requests, requests);
    EXPECT_DOUBLE_EQ(cost.mean(), mean);
    EXPECT_DOUBLE_EQ(cost.worst, worst);
  }
};

INSTANTIATE_TEST_SUITE_P(Orders, AccessTest,
                         ::testing::Values(std::pair(Schedule::forward, uint64_t{0}),
                                           std::pair(Schedule::random, uint64_t{7})),
                         [](const auto& info) {
                           return std::string(info.param.first == Schedule::forward ? "forward" : "random");
                         });

TEST_P(AccessTest, ColumnsOfATile) {
  const Array<float> y(kDevice, 32);
  const KernelAccesses plain = counts_of([&] { launch(kStream, {.block = 32}, read_columns<32>, y); });
  EXPECT_EQ(plain.kernel, "read_columns<32>");
  expect_cost(plain.conflicts, 64, 16.5, 32);
  EXPECT_EQ(plain.worst_conflict.rfind("race_test.cpp:", 0), 0u) << plain.worst_conflict;
  expect_cost(plain.sectors, 1, 1, 1);
  EXPECT_EQ(plain.worst_sectors, "");
  const KernelAccesses padded = counts_of([&] { launch(kStream, {.block = 32}, read_columns<33>, y); });
  EXPECT_EQ(padded.kernel, "read_columns<33>");
  expect_cost(padded.conflicts, 64, 1, 1);
}

// Warps and blocks are requests of their own.
TEST_P(AccessTest, EveryWarpOfEveryBlock) {
  const Array<float> x(kDevice, std::vector<float>(96, 1.0f));
  const KernelAccesses found = counts_of([&] {
    const Array<float> y(kDevice, 96);
    launch(kStream, {.block = 96}, gather<float>, x, y, 1, 0, 96);
    launch(kStream, {.block = 48}, gather<float>, x, y, 2, 0, 48);
  });
  // Reads and writes of three warps; then of one and a half, the reads twice as wide as they need be.
  expect_cost(found.sectors, 6 + 4, (8 * 1.0 + 2 * 2.0) / 10, 2);
}

TEST_P(AccessTest, BanksAndBroadcasts) {
  const Array<float> y(kDevice, 32);
  const auto cost = [&](int stride, int lanes_together) {
    return counts_of(
               [&] { launch(kStream, {.block = 32}, through_shared<float>, y, stride, lanes_together); })
        .conflicts;
  };
  expect_cost(cost(1, 1), 2, 1, 1);
  expect_cost(cost(2, 1), 2, 2, 2);
  expect_cost(cost(3, 1), 2, 1, 1);
  expect_cost(cost(32, 1), 2, 32, 32);
  // All lanes at one word, and eight groups at eight: a broadcast is free, unless the words share a bank.
  expect_cost(cost(1, 32), 2, 1, 1);
  expect_cost(cost(1, 4), 2, 1, 1);
  expect_cost(cost(32, 4), 2, 8, 8);
  const Array<unsigned char> bytes(kDevice, 32);
  expect_cost(counts_of([&] {
                launch(kStream, {.block = 32}, through_shared<unsigned char>, bytes, 1, 1);
              }).conflicts,
              2, 1, 1);
}

TEST_P(AccessTest, VectorsInSharedMemory) {
  const Array<float2> pairs(kDevice, 32);
  const Array<float4> quads(kDevice, 32);
  const auto pair_cost = [&](int stride) {
    return counts_of([&] { launch(kStream, {.block = 32}, through_shared<float2>, pairs, stride, 1); });
  };
  const auto quad_cost = [&](int stride) {
    return counts_of([&] { launch(kStream, {.block = 32}, through_shared<float4>, quads, stride, 1); });
  };
  expect_cost(pair_cost(1).conflicts, 2, 1, 1);
  expect_cost(pair_cost(2).conflicts, 2, 2, 2);
  expect_cost(pair_cost(16).conflicts, 2, 16, 16);
  expect_cost(quad_cost(1).conflicts, 2, 1, 1);
  expect_cost(quad_cost(2).conflicts, 2, 2, 2);
  expect_cost(quad_cost(8).conflicts, 2, 8, 8);
  // Padding to an odd number of vectors.
  expect_cost(quad_cost(9).conflicts, 2, 1, 1);
}

TEST_P(AccessTest, SectorsOfARequest) {
  const Array<float> x(kDevice, std::vector<float>(32 * 32, 1.0f));
  const Array<float> y(kDevice, 32);
  const auto cost = [&](int stride, int offset, int lanes) {
    return counts_of([&] { launch(kStream, {.block = 32}, gather<float>, x, y, stride, offset, lanes); })
        .sectors;
  };
  expect_cost(cost(1, 0, 32), 2, 1, 1);
  expect_cost(cost(1, 1, 32), 2, (1 + 1.25) / 2, 1.25);  // five sectors instead of four
  expect_cost(cost(2, 0, 32), 2, 1.5, 2);
  expect_cost(cost(8, 0, 32), 2, 4.5, 8);
  expect_cost(cost(32, 0, 32), 2, 4.5, 8);
  expect_cost(cost(0, 3, 32), 2, 1, 1);  // a broadcast
  expect_cost(cost(1, 0, 5), 2, 1, 1);
  expect_cost(cost(1, 6, 5), 2, 1.5, 2);  // across a sector's end
  expect_cost(cost(32, 0, 5), 2, 3, 5);
}

TEST_P(AccessTest, WidthsOfDeviceAccesses) {
  const Array<float4> quads(kDevice, std::vector<float4>(64));
  const Array<float4> out(kDevice, 32);
  const auto quad_cost = [&](int stride) {
    return counts_of([&] { launch(kStream, {.block = 32}, gather<float4>, quads, out, stride, 0, 32); });
  };
  expect_cost(quad_cost(1).sectors, 2, 1, 1);
  expect_cost(quad_cost(2).sectors, 2, 1.5, 2);
  const Array<unsigned char> bytes(kDevice, std::vector<unsigned char>(128, 1));
  const Array<unsigned char> few(kDevice, 32);
  const auto byte_cost = [&](int stride) {
    return counts_of(
        [&] { launch(kStream, {.block = 32}, gather<unsigned char>, bytes, few, stride, 0, 32); });
  };
  expect_cost(byte_cost(1).sectors, 2, 1, 1);
  expect_cost(byte_cost(4).sectors, 2, 2.5, 4);
  // A struct without alignment moves word by word: twelve requests, 48 bytes from lane to lane.
  const Array<Large> large(kDevice, std::vector<Large>(32));
  const Array<Large> copies(kDevice, 32);
  expect_cost(counts_of([&] { launch(kStream, {.block = 32}, copy_structs, large, copies); }).sectors, 24, 8,
              8);
}

TEST_P(AccessTest, ActiveLanesOnly) {
  const Array<float> y(kDevice, 32 * 32 * 8);
  double sum = 0;
  for (int lanes = 1; lanes <= 32; ++lanes) {  // each lane in a sector of its own
    sum += lanes / std::ceil(lanes / 8.0);
  }
  const KernelAccesses found =
      counts_of([&] { launch(kStream, {.block = 32}, rounds_of_different_number, y); });
  expect_cost(found.sectors, 32, sum / 32, 8);
}

TEST_P(AccessTest, AtomicsAreLeftOut) {
  const Array<int> counter(kDevice, std::vector<int>{0});
  const KernelAccesses found = counts_of([&] { launch(kStream, {.block = 32}, count_in_one_bin, counter); });
  expect_cost(found.conflicts, 1, 32, 32);
  expect_cost(found.sectors, 0, 1, 1);
}

TEST_P(AccessTest, BlocksThatFailAreNotCounted) {
  const Array<int> y(kDevice, 64);
  const KernelAccesses found =
      counts_of([&] { EXPECT_THROW(launch(kStream, {.block = 64}, write_one_cell, y), SimtError); });
  expect_cost(found.conflicts, 0, 1, 1);
  expect_cost(found.sectors, 0, 1, 1);
}

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
