#include "base/determinism.hpp"

#include <atomic>

namespace vesal {
namespace {
std::atomic<bool> enabled{true};
}

bool deterministic() { return enabled.load(std::memory_order_relaxed); }
void set_deterministic(bool on) { enabled.store(on, std::memory_order_relaxed); }

}  // namespace vesal
