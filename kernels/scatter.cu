// Writes the answers of a last stage to the samples they belong to.
//
//   logits       fp16|f32 [rows, classes]  dense rows of the stage; padding is never written
//   other        null, or fp16|f32 [*, classes] logits of an earlier stage (scatter_*_combined)
//   other_rows   i32 [rows]     null, or the row of `other` of each dense row; null: its sample
//   weight       f32 [1]        of `other`: answers come from logits + weight * other
//   temperature  f32 [1]
//   idx, count   i32 [rows], i32 [1]  the sample of each dense row, and how many rows hold samples
//   label, confidence, stage  i32, f32, i8 [samples]
//
// A warp or a block per row, by the number of classes. Judge: kernels/reference.py, scatter.
#include "softmax.cuh"

struct ScatterArgs {
  const void* logits;
  const void* other;
  const int* other_rows;
  const float* weight;
  const float* temperature;
  const int* idx;
  const int* count;
  int* label;
  float* confidence;
  signed char* stage;
  int rows, classes, stage_number;
};

struct Settings {
  float scale, weight;
  int count;
};

struct Shared {
  Settings settings;
  Row parts[THREADS / WARP];
};

// Return this thread's part of the row logits + weight * other.
template <class T, int LANES>
__device__ __forceinline__ Row scan_combined(const ScatterArgs& args, const Logits<T>& row,
                                             const Slice<T, LANES>& slice, int lane,
                                             const Settings& settings, int dense_row) {
  const int* other_rows = args.other_rows ? args.other_rows : args.idx;
  const T* other =
      static_cast<const T*>(args.other) + u64(read(other_rows + dense_row)) * args.classes;
  Row facts = empty_row();
  visit(row, slice, lane, [&](const auto& logits, int first) {
    constexpr int COUNT = sizeof(logits) / sizeof(float);
    float sum[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
      sum[k] = fmaf(settings.weight, to_float(read(other + first + k)), logits[k]);
    add<MAX_SOFTMAX>(facts, sum, first, settings.scale);
  });
  return facts;
}

template <class T, int LANES, bool COMBINED>
__device__ __forceinline__ void scatter(const ScatterArgs& args, Shared& shared) {
  constexpr int BLOCK_ROWS = THREADS / LANES;
  const int lane = threadIdx.x % LANES;
  const int row = int(blockIdx.x) * BLOCK_ROWS + int(threadIdx.x) / LANES;
  if (threadIdx.x == 0)
    shared.settings = {exponent_scale(read(args.temperature)), COMBINED ? read(args.weight) : 0.0f,
                       min(read(args.count), args.rows)};
  __syncthreads();
  const Settings settings = shared.settings;
  if (int(blockIdx.x) * BLOCK_ROWS >= settings.count) return;
  const bool counts = row < settings.count;
  const Logits<T> logits(static_cast<const T*>(args.logits) + u64(counts ? row : 0) * args.classes,
                         counts ? args.classes : 0);
  Slice<T, LANES> slice;
  slice.load(logits, lane);
  Row facts = empty_row();
  if constexpr (!COMBINED)
    facts = scan<MAX_SOFTMAX>(logits, slice, lane, settings.scale);
  else if (counts)
    facts = scan_combined(args, logits, slice, lane, settings, row);
  merge_group<MAX_SOFTMAX, LANES>(facts, settings.scale, shared.parts);
  if (!counts || lane != 0) return;
  const int sample = read(args.idx + row);
  write(args.label + sample, facts.answer());
  write(args.confidence + sample, facts.valid() ? 1.0f / facts.total : 0.0f);
  write(args.stage + sample, (signed char)args.stage_number);
}

#define SCATTER(TYPE, LANES, COMBINED, name)                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) name(const ScatterArgs args) {    \
    SHARED(Shared, shared);                                                               \
    scatter<TYPE, LANES, COMBINED>(args, shared);                                         \
  }

SCATTER(fp16, 32, false, scatter_fp16_x32)
SCATTER(fp16, 256, false, scatter_fp16_x256)
SCATTER(float, 32, false, scatter_fp32_x32)
SCATTER(float, 256, false, scatter_fp32_x256)
SCATTER(fp16, 32, true, scatter_combined_fp16_x32)
SCATTER(fp16, 256, true, scatter_combined_fp16_x256)
SCATTER(float, 32, true, scatter_combined_fp32_x32)
SCATTER(float, 256, true, scatter_combined_fp32_x256)
