// Op numbers of the random streams that training draws from beside the network. The network's ops count from
// 0 within a step (DeviceContext::next_random_op); these start at 2^31, so no two purposes ever share a
// number. A stream's op has 32 bits (base/philox.hpp).
#pragma once

#include <cstdint>

namespace vesal::training {

inline constexpr uint64_t kSampleOp = 0x8000'0000u;    // + sample of the batch: its patch
inline constexpr uint64_t kModalityOp = 0xC000'0000u;  // + sample of the batch: which modalities it keeps
inline constexpr uint64_t kTumourOp = 0xE000'0000u;    // + sample of the batch: what becomes of its tumour
inline constexpr uint64_t kOrderOp = 0xF000'0000u;  // order of the cases; the step is the pass over the data
inline constexpr uint64_t kSplitOp = 0xF000'0001u;  // training or validation

}  // namespace vesal::training
