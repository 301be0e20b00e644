// The blocks and threads of a launch, as they stand at one moment.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fiber.h"
#include "location.h"
#include "sanitizers.h"
#include "shared.h"

namespace cuda_cpu {

constexpr unsigned WARP = 32;

enum class Operation : unsigned char { SYNCWARP, SHUFFLE, BALLOT, ANY, ALL };

// What a thread brings to a warp operation, and the value it takes away.
struct Arrival {
  Operation operation;
  unsigned mask;    // the lanes that must come
  unsigned source;  // SHUFFLE: the lane to read
  std::uint64_t value;
  Location where;
};

enum class State : unsigned char { RUNS, AT_BARRIER, AT_WARP_OPERATION, EXITED };

struct Block;

// Lives from launch to launch, with its stack.
struct Thread {
  uint3 index, block_index;
  unsigned number;  // in its block
  State state;
  Block* block;
  Arrival arrival;
  Fiber fiber;

  unsigned lane() const { return number % WARP; }
};

// Masks of lanes.
struct Warp {
  unsigned exists = 0, waits = 0, exited = 0;
};

// What threads learn from each other, for ThreadSanitizer. A pair of clocks is used in turn, or a
// thread that is slow to leave one barrier would also learn what fast ones did after it.
struct ThreadClocks {
  Clock fence;            // what the thread had seen at its last fence
  Clock observed;         // what atomics have shown it, which its next fence makes it see
  Clock meeting[2];       // of the __syncwarp whose lowest lane it is
  unsigned meetings = 0;  // warp operations that have ended, of which it was the lowest lane
};

struct BlockClocks {
  Clock barrier[2];
  unsigned barriers = 0;  // that have opened
  Clock end;              // of all threads
};

// Made anew for each block, so that a block does not learn from the one whose place it takes.
struct Block {
  explicit Block(unsigned size) : threads(size), warps((size + WARP - 1) / WARP), clocks(size) {
    for (unsigned number = 0; number < size; ++number)
      warps[number / WARP].exists |= 1u << number % WARP;
  }

  uint3 index = {};
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  std::vector<ThreadClocks> clocks;  // of each thread
  BlockClocks block_clocks;
  unsigned running = unsigned(threads.size());  // that have not exited
  unsigned at_barrier = 0;
  Location barrier;  // where they wait
  SharedMemory shared;
};

}  // namespace cuda_cpu
