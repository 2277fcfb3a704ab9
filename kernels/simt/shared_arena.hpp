// The shared memory of one running block: its dynamic part and a slot for each static variable that it
// reaches, every one between red zones.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/simt/emulator.hpp"

namespace vesal::kernels::simt {

class SharedArena {
 public:
  SharedArena() = default;
  ~SharedArena();
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;

  // For the blocks of one launch. Slots keep their places from block to block.
  void begin_launch(size_t dynamic_bytes, const Limits& limits);
  // New values (kPoison) for a new block.
  void begin_block();
  // The slot of `site`, new if this block reaches it first. Null if that passes the limits: then `problem`
  // says how.
  void* find(const engine::SharedSite& site, std::string& problem);
  void* dynamic() { return dynamic_; }
  // All of it, red zones included.
  const void* memory() const { return memory_.get(); }
  size_t capacity() const { return capacity_; }
  // Which red zone was overwritten, empty if none.
  std::string damage() const;

 private:
  struct Slot {
    const engine::SharedSite* site;
    unsigned char* start;
    bool live;  // reached by the running block
  };
  struct Free {
    void operator()(unsigned char* memory) const;
  };

  unsigned char* place(size_t bytes, size_t alignment, size_t shift);

  std::unique_ptr<unsigned char, Free> memory_;
  size_t capacity_ = 0;
  size_t used_ = 0;
  Limits limits_;
  unsigned char* dynamic_ = nullptr;
  size_t dynamic_bytes_ = 0;
  size_t static_bytes_ = 0;
  std::vector<Slot> slots_;
};

}  // namespace vesal::kernels::simt
