// What is checked and counted at every access of a kernel to global memory.
#pragma once

#include <cstddef>

#include "location.h"

namespace cuda_cpu {

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

}  // namespace cuda_cpu
