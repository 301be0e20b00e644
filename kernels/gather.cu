// Copies the rows that a gate sends on into the next stage's dense batch, of one tensor or several.
//
//   tensors  MOST_TENSORS of source [*, units], target [rounds * largest, units]; a row is `units` words
//   dense    which rows, and how far each round is filled (dense.cuh)
//
// gather_16, gather_4, gather_1: the word is 16, 4 or 1 bytes. A block copies up to 4 words a thread of
// one row: all 4 loads are under way before the first store. The grid is fixed by the most rows there
// can be (x: parts of a row, y: dense rows, z: tensors); blocks past the count, which only the device
// knows, end at once.
// Judge: kernels/reference.py, gather.
#include "dense.cuh"

constexpr int THREADS = 256;
constexpr int WORDS = 4;         // of a thread
constexpr int MOST_TENSORS = 8;

struct Tensor {
  const void* source;
  void* target;
  long long units;
};

struct GatherArgs {
  Tensor tensors[MOST_TENSORS];
  Dense dense;
};

template <class Word>
__device__ __forceinline__ void copy_part(const Word* source, Word* target, long long units) {
  const long long first = (long long)blockIdx.x * (THREADS * WORDS) + threadIdx.x;
  Word words[WORDS];
#pragma unroll
  for (int k = 0; k < WORDS; ++k)
    if (first + k * THREADS < units) words[k] = read(source + first + k * THREADS);
#pragma unroll
  for (int k = 0; k < WORDS; ++k)
    if (first + k * THREADS < units) write(target + first + k * THREADS, words[k]);
}

template <class Word>
__device__ __forceinline__ void gather(const GatherArgs& args, int& shared_source) {
  const Tensor& tensor = args.tensors[blockIdx.z];
  const int rows = args.dense.rounds * args.dense.largest;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    if (threadIdx.x == 0) shared_source = source_of(args.dense, row);
    __syncthreads();
    const int source = shared_source;
    __syncthreads();
    if (source == NOT_WRITTEN) continue;
    copy_part(static_cast<const Word*>(tensor.source) + source * tensor.units,
              static_cast<Word*>(tensor.target) + row * tensor.units, tensor.units);
  }
}

#define GATHER(TYPE, name)                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS) name(const GatherArgs args) {   \
    SHARED(int, source);                                                                \
    gather<TYPE>(args, source);                                                         \
  }

GATHER(uint4, gather_16)
GATHER(u32, gather_4)
GATHER(u8, gather_1)
