// What is checked and counted at every access of a kernel to global memory.
#pragma once

#include <cstddef>
#include <vector>

#include "location.h"

namespace cuda_cpu {

struct Range;  // footprint.h

struct Access {
  const void* address;
  std::size_t bytes;  // and the alignment that the hardware asks for
  Location where;
};

void before_read(const Access& access);        // of memory that no thread writes during the launch
void before_read_fresh(const Access& access);  // of memory that other threads may write
void before_write(const Access& access);
void before_atomic(const Access& access);
void fence();

// Forget what the launch before has touched.
void begin_accesses();

// What the last launch has read, in any way, and written; atomics have written.
std::vector<Range> ranges_read();
std::vector<Range> ranges_written();

}  // namespace cuda_cpu
