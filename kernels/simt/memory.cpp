// Guarded blocks and their registry: see memory.hpp.
#include "kernels/simt/memory.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "kernels/simt/error.hpp"
#include "kernels/simt/race.hpp"
#include "kernels/simt/sanitizer.hpp"

namespace vesal::kernels::simt {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kGuardBytes = 256;                        // in front, to keep the alignment, and behind
constexpr uint64_t kGuardPattern = 0x7fafa5a57fafa5a5ull;  // NaNs too, for kernels that only read it

constexpr size_t kPage = 4096;

struct Block {
  size_t bytes;
  void* mapping = nullptr;  // of a sparse block, which has no guard bytes but pages without access
  size_t mapped_bytes = 0;
};

struct Registry {
  std::mutex mutex;
  std::map<uintptr_t, Block> blocks;  // by start
  size_t bytes = 0;
};

// Never destroyed: blocks in static objects may be freed after the end of main.
Registry& registry() {
  static Registry* const instance = new Registry;
  return *instance;
}

unsigned char* start_of(uintptr_t address) { return reinterpret_cast<unsigned char*>(address); }

// Eight guard bytes; the guard behind a block starts at any address.
struct [[gnu::packed, gnu::may_alias]] Word {
  uint64_t bits;
};
constexpr size_t kGuardWords = kGuardBytes / sizeof(Word);

void fill_guard(unsigned char* guard) {
  auto* words = reinterpret_cast<Word*>(guard);
  for (size_t i = 0; i < kGuardWords; ++i) {
    words[i].bits = kGuardPattern;
  }
}

// Offset of the first damaged byte, or kGuardBytes. The guards are poisoned under AddressSanitizer: hence
// unchecked. Every launch looks at every guard, so the usual case is one pass without a branch.
VESAL_SIMT_NO_ASAN size_t first_damage(const unsigned char* guard) {
  const auto* words = reinterpret_cast<const Word*>(guard);
  uint64_t differences = 0;
  for (size_t i = 0; i < kGuardWords; ++i) {
    differences |= words[i].bits ^ kGuardPattern;
  }
  if (differences == 0) {
    return kGuardBytes;
  }
  size_t byte = 0;
  while (guard[byte] == static_cast<unsigned char>(kGuardPattern >> (byte % sizeof(Word) * 8))) {
    ++byte;
  }
  return byte;
}

// An empty string if both guards are whole.
std::string damage(unsigned char* start, size_t bytes) {
  if (const size_t at = first_damage(start - kGuardBytes); at < kGuardBytes) {
    return concat("a device block of ", bytes, " bytes was overwritten ", kGuardBytes - at,
                  " bytes before its start");
  }
  if (const size_t at = first_damage(start + bytes); at < kGuardBytes) {
    return concat("a device block of ", bytes, " bytes was overwritten ", at, " bytes past its end");
  }
  return {};
}

}  // namespace

void* allocate(size_t bytes) {
  check<DeviceError>(bytes <= size_t{1} << 46, "simt: allocate: found ", bytes,
                     " bytes, expected at most 2^46");
  const size_t whole = (bytes + 2 * kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* block = static_cast<unsigned char*>(std::aligned_alloc(kAlignment, whole));
  check<DeviceError>(block != nullptr, "simt: out of memory: ", bytes, " bytes asked for");
  unsigned char* start = block + kGuardBytes;
  fill_guard(block);
  poison_fill(start, bytes);
  fill_guard(start + bytes);
  asan_poison(block, kGuardBytes);
  asan_poison(start + bytes, kGuardBytes);
  try {
    if constexpr (kRace) {
      const std::lock_guard lock(RaceDetector::instance().mutex());
      RaceDetector::instance().allocated(start, bytes);
    }
    Registry& r = registry();
    const std::lock_guard lock(r.mutex);
    r.blocks.emplace(reinterpret_cast<uintptr_t>(start), Block{bytes});
    r.bytes += bytes;
  } catch (...) {  // no memory for the books
    if constexpr (kRace) {
      const std::lock_guard lock(RaceDetector::instance().mutex());
      RaceDetector::instance().freed(start);
    }
    asan_unpoison(block, bytes + 2 * kGuardBytes);
    std::free(block);
    throw;
  }
  return start;
}

void* allocate_sparse(size_t bytes) {
  check<DeviceError>(!kRace, "simt: sparse memory is not for the race lane");
  const size_t inner = (bytes + kPage - 1) / kPage * kPage;
  const size_t whole = inner + 2 * kPage;
  void* mapping = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check<DeviceError>(mapping != MAP_FAILED, "simt: no room in the address space: ", bytes,
                     " bytes asked for");
  unsigned char* first = static_cast<unsigned char*>(mapping) + kPage;
  // As near to the end of its last page as the alignment allows, so that what lies past it traps.
  unsigned char* start = first + (inner - bytes) / kAlignment * kAlignment;
  if (mprotect(first, inner, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, whole);
    throw DeviceError(concat("simt: out of memory: ", bytes, " sparse bytes asked for"));
  }
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  r.blocks.emplace(reinterpret_cast<uintptr_t>(start), Block{bytes, mapping, whole});
  r.bytes += bytes;
  return start;
}

void deallocate(void* pointer) {
  if (pointer == nullptr) {
    return;
  }
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  Block block{};
  {
    Registry& r = registry();
    const std::lock_guard lock(r.mutex);
    const auto found = r.blocks.find(address);
    if (found == r.blocks.end()) {
      throw SimtError(ErrorKind::host_pointer,
                      concat("deallocate: ", pointer, " is not a live device block"));
    }
    block = found->second;
    r.blocks.erase(found);
    r.bytes -= block.bytes;
  }
  if (block.mapping != nullptr) {
    munmap(block.mapping, block.mapped_bytes);
    return;
  }
  const size_t bytes = block.bytes;
  if constexpr (kRace) {
    const std::lock_guard lock(RaceDetector::instance().mutex());
    RaceDetector::instance().freed(pointer);
  }
  unsigned char* start = start_of(address);
  const std::string message = damage(start, bytes);
  asan_unpoison(start - kGuardBytes, bytes + 2 * kGuardBytes);
  std::free(start - kGuardBytes);
  if (!message.empty()) {
    throw SimtError(ErrorKind::guard_overwritten, message);
  }
}

void check_guards() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  for (const auto& [address, block] : r.blocks) {
    if (block.mapping != nullptr) {
      continue;
    }
    const std::string message = damage(start_of(address), block.bytes);
    if (!message.empty()) {
      throw SimtError(ErrorKind::guard_overwritten, message);
    }
  }
}

bool is_device_pointer(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  auto next = r.blocks.upper_bound(address);
  if (next == r.blocks.begin()) {
    return false;
  }
  --next;
  return address <= next->first + next->second.bytes;
}

size_t allocated_bytes() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return r.bytes;
}

size_t live_allocations() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return r.blocks.size();
}

}  // namespace vesal::kernels::simt
