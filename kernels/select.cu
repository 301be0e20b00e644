// Tells a CUDA graph which body to run: the bucket that a gate has chosen, without the host.
//
//   bucket_index  i32 [1]  of one round, from gate.cu
//   handles       of conditional nodes: one SWITCH (CUDA 12.8), or an IF for each bucket (CUDA 12.4)
//
// One thread, since setting a handle from two is undefined. The module stands alone: the driver resolves
// cudaGraphSetConditional when it loads, and one that lacks the symbol refuses the module.
#include "device.cuh"

constexpr int MOST_HANDLES = 32;

struct SelectArgs {
  const int* bucket_index;
  u64 handles[MOST_HANDLES];
  int handle_count, is_switch;
};

#ifndef CUDA_CPU
extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(u64 handle, u32 value);
#endif

extern "C" __global__ void __launch_bounds__(1) select_bucket(const SelectArgs args) {
  const int index = read(args.bucket_index);
  if (args.is_switch) {
    cudaGraphSetConditional(args.handles[0], index);
    return;
  }
  for (int k = 0; k < args.handle_count; ++k) cudaGraphSetConditional(args.handles[k], index == k);
}
