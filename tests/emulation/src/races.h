// Who touched which byte last: accesses of different threads that nothing orders are a race.
//
// Two accesses of one block are ordered by a __syncthreads between them, or by a __syncwarp between them if both are by lanes
// of one warp. Accesses of two blocks are ordered by nothing. Memory is looked at in halfwords, each with which of its two
// bytes was touched: exact for elements of two bytes and more; of threads that touch single bytes of one halfword only
// the last is remembered.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <unordered_map>
#include <vector>

namespace emulation {

enum class Access { read, write, atomic, copy_start, copy_end };

// When is counted in syncs of the block.
struct Clock {
  uint32_t now;
  // Everything before it is ordered by the last __syncthreads, by the last __syncwarp of the accessing thread's warp.
  uint32_t block_sync;
  uint32_t warp_sync;
};

// The first thread of the running block among all threads of the grid, and how many it has.
struct Block {
  uint32_t first;
  uint32_t threads;
};

struct Race {
  uintptr_t address;
  // Of the earlier access.
  uint32_t thread;
  Access access;
};

// Memory, halfword by halfword.
class Shadow {
 public:
  // `base` is where the memory of the block begins; global memory begins at 0. `size` is 0 for global memory.
  Shadow(uintptr_t base, size_t size) : base_(base), cells_(size ? size / 2 + 1 : 0) {}
  ~Shadow() {
    for (auto& page : pages_) free(page.second);
  }
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  // Notes an access of `thread`, counted over the grid. True, and `race` filled in, if it races with an earlier one.
  bool note(const Block& block, uint32_t thread, const Clock& clock, uintptr_t address, size_t size, Access access,
            Race& race) {
    const uintptr_t begin = address - base_, end = begin + size;
    for (uintptr_t half = begin / 2; half * 2 < end; ++half) {
      const uint32_t mask = (half * 2 >= begin ? 1u : 0u) | (half * 2 + 1 < end ? 2u : 0u);
      if (note_half(cell(half), block, thread, clock, mask, access, race)) {
        race.address = base_ + (half * 2 >= begin ? half * 2 : begin);
        return true;
      }
    }
    return false;
  }

 private:
  // A thread and when it was; no bytes if nobody was there.
  struct Stamp {
    uint32_t thread;
    uint32_t bytes : 2, is_pending : 1, time : 29;
  };
  struct Cell {
    Stamp write;
    // Of two warps, if threads of two warps read since the last __syncthreads: whoever writes next races with one of
    // them if with anyone.
    Stamp reads[2];
    Stamp atomic;
  };
  static constexpr size_t cells_per_page = 2048;

  Cell& cell(uintptr_t half) {
    if (!cells_.empty()) return cells_[half];
    const uintptr_t number = half / cells_per_page;
    Recent& recent = recent_[number % (sizeof recent_ / sizeof *recent_)];
    if (!recent.page || recent.number != number) {
      Cell*& page = pages_[number];
      if (!page) page = static_cast<Cell*>(calloc(cells_per_page, sizeof(Cell)));
      if (!page) abort();
      recent = {number, page};
    }
    return recent.page[half % cells_per_page];
  }

  // Blocks are whole warps, so that numbers of the grid tell warps apart too.
  static bool is_same_warp(const Stamp& stamp, uint32_t thread) { return stamp.thread / 32 == thread / 32; }

  bool is_of_block(const Block& block, const Stamp& stamp) const {
    return stamp.thread - block.first < block.threads;
  }

  bool is_unordered(const Stamp& stamp, const Block& block, uint32_t thread, const Clock& clock, uint32_t mask) const {
    if (!(stamp.bytes & mask)) return false;
    // What another block left in shared memory is no more; in global memory nothing orders it.
    if (!is_of_block(block, stamp)) return cells_.empty();
    if (stamp.is_pending) return true;
    if (stamp.thread == thread || stamp.time < clock.block_sync) return false;
    return !is_same_warp(stamp, thread) || stamp.time >= clock.warp_sync;
  }

  bool note_half(Cell& cell, const Block& block, uint32_t thread, const Clock& clock, uint32_t mask, Access access,
                 Race& race) {
    // The end of a copy is the end of what its own start announced.
    if (access == Access::copy_end && cell.write.thread == thread) cell.write.is_pending = 0;
    if (is_unordered(cell.write, block, thread, clock, mask)) {
      race = {0, cell.write.thread, cell.write.is_pending ? Access::copy_start : Access::write};
      return true;
    }
    if (access != Access::atomic && is_unordered(cell.atomic, block, thread, clock, mask)) {
      race = {0, cell.atomic.thread, Access::atomic};
      return true;
    }
    if (access != Access::read) {
      for (const Stamp& read : cell.reads) {
        if (is_unordered(read, block, thread, clock, mask)) {
          race = {0, read.thread, Access::read};
          return true;
        }
      }
    }
    const Stamp stamp = {thread, mask, access == Access::copy_start, clock.now & 0x1fffffffu};
    switch (access) {
      case Access::read:
        remember_read(cell, block, stamp, clock);
        break;
      case Access::atomic:
        cell.atomic = stamp;
        break;
      default:
        cell.write = merged(cell.write, stamp);
    }
    return false;
  }

  static Stamp merged(const Stamp& earlier, Stamp stamp) {
    if (earlier.thread == stamp.thread && earlier.time == stamp.time) stamp.bytes |= earlier.bytes;
    return stamp;
  }

  // Room is where the thread itself was, where nobody was, and where whoever is not ordered after the old read would not be
  // ordered after the new one either.
  void remember_read(Cell& cell, const Block& block, const Stamp& stamp, const Clock& clock) {
    Stamp* place = nullptr;
    for (Stamp& read : cell.reads) {
      const bool is_settled = is_of_block(block, read) ? read.time < clock.block_sync : !cells_.empty();
      const bool is_outdone = is_same_warp(read, stamp.thread) && read.time < clock.warp_sync;
      if (!read.bytes || is_settled || is_outdone) place = &read;
    }
    for (Stamp& read : cell.reads) {
      if (read.bytes && read.thread == stamp.thread) place = &read;
    }
    // Two reads of one warp say less than two of different warps.
    if (!place && is_same_warp(cell.reads[0], cell.reads[1].thread)) place = &cell.reads[1];
    if (place) *place = merged(*place, stamp);
  }

  struct Recent {
    uintptr_t number;
    Cell* page;
  };

  uintptr_t base_;
  std::vector<Cell> cells_;
  std::unordered_map<uintptr_t, Cell*> pages_;
  Recent recent_[64] = {};
};

}  // namespace emulation
