// Where threads wait for each other: barriers of a block, and operations of a warp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "block.h"

namespace cuda_cpu {

// Wait for all threads of the block that have not exited, at the same place in the source.
void barrier(const Location& where);

// Wait for all lanes of `mask` with the same operation, mask and place; return what it gives this
// lane.
std::uint64_t warp_operation(Operation operation, unsigned mask, std::uint64_t value,
                             unsigned source, const Location& where);

// Take a thread out of its block, which may be what others wait for.
void leave(Thread& thread);

// Say why no thread can run.
std::string deadlock(const std::vector<std::unique_ptr<Block>>& resident);

}  // namespace cuda_cpu
