// The C interface of a module: a .cu file built as a shared library. Kernels go by name, and their
// arguments as cuLaunchKernel takes them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum cuda_cpu_order { CUDA_CPU_ASCENDING, CUDA_CPU_DESCENDING, CUDA_CPU_RANDOM };

struct cuda_cpu_shape {
  uint32_t grid[3];   // blocks
  uint32_t block[3];  // threads of a block
};

struct cuda_cpu_options {
  uint64_t seed;             // of CUDA_CPU_RANDOM
  uint32_t order;            // cuda_cpu_order: of blocks, and of threads between two waits
  uint32_t resident_blocks;  // that run at the same time
};

enum { CUDA_CPU_MOST_CONDITIONALS = 256, CUDA_CPU_MESSAGE = 1024 };

struct cuda_cpu_conditional {
  uint64_t handle;
  uint32_t value;
};

struct cuda_cpu_report {
  uint64_t bytes_read, bytes_written;  // of global memory, as the threads asked for them
  uint64_t atomics;                    // each also counts its bytes as read and as written
  uint64_t switches;                   // from thread to thread
  uint32_t conditionals;               // calls of cudaGraphSetConditional, in order
  struct cuda_cpu_conditional conditional[CUDA_CPU_MOST_CONDITIONALS];
  char message[CUDA_CPU_MESSAGE];  // empty: the launch succeeded
};

#pragma GCC visibility push(default)

// Return the size in bytes of each parameter, ended by 0; null for a kernel that does not exist.
const size_t* cuda_cpu_parameters(const char* kernel);

// Run a kernel to its end; `arguments` has the address of each. May be called by several threads:
// they take turns.
void cuda_cpu_launch(const char* kernel, const struct cuda_cpu_shape* shape,
                     const struct cuda_cpu_options* options, void** arguments,
                     struct cuda_cpu_report* report);

// Of the launch before: bytes that were read, in any way, or else written, as ranges [first, end)
// in no order; returns how many there are, of which the first `room` are stored.
size_t cuda_cpu_touched(int written, uint64_t (*ranges)[2], size_t room);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
