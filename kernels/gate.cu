// The gate between two stages, in one launch: how sure is each row, keep it or send it on, and which
// rows go on, in order.
//
//   logits       fp16|f32 [rows, classes]  of the stage; only the first `valid` rows count
//   scores       f32 [rows]     score tensor of a learned gate, for gate_*_tensor
//   valid        i32 [1]        rows that hold samples
//   thresholds   f32 [1], or [classes] by predicted class where per_class is set
//   temperature  f32 [1]
//   force        u8 [samples]   null, or non-zero sends a sample on whatever its score
//   row_map      i32 [rows]     null, or the sample of each row
//   buckets      i32 [bucket_sizes]  ascending batch sizes of the next stage
//   label, confidence, stage    i32, f32, i8 [samples]: written where a row is kept
//   idx, count   i32 [rows], i32 [1]  samples that go on, in order; past count unspecified
//   idx_rows     i32 [rows]     null, or the same as rows of this stage
//   bucket, bucket_index  i32 [rounds]  batch size of each round, and its index; for an empty round 0
//                               and bucket_sizes, which selects no body of a SWITCH node
//   masks        u64 [blocks]   scratch: rows of each block that go on, a bit each
//   ticket       u32 [1]        zero before the first launch, and again after each
//
// LANES threads share a row: 4 for few classes, a warp, or the whole block for many. Each block that has
// valid rows writes one mask; the last of them to finish turns the masks into idx. So the order is the
// rows' own, no block waits for another, and 36 bytes a block move beside logits and outputs. Decoupled
// look-back would spread the last step over all blocks, which pays only above some 100,000 rows.
// Judge: kernels/reference.py, gate and score.
#include "softmax.cuh"

struct GateArgs {
  const void* logits;
  const float* scores;
  const int* valid;
  const float* thresholds;
  const float* temperature;
  const u8* force;
  const int* row_map;
  const int* buckets;
  int* label;
  float* confidence;
  signed char* stage;
  int* idx;
  int* idx_rows;
  int* count;
  int* bucket;
  int* bucket_index;
  u64* masks;
  u32* ticket;
  int rows, classes, rounds, bucket_sizes, per_class, stage_number;
  float p;
};

struct Settings {
  float scale, threshold;
  int valid;
};

struct Shared {
  Settings settings;
  Row parts[THREADS / WARP];
  float sums[THREADS / WARP];
  u8 goes_on[THREADS];
  bool is_last;
  // Of compaction.
  u64 masks[THREADS];
  int offsets[THREADS];
  int totals[THREADS / WARP];
};

// Return the sum over LANES threads, to all of them; `sums` is used for a whole block.
template <int LANES>
__device__ __forceinline__ float group_sum(float value, float (&sums)[THREADS / WARP]) {
  constexpr int WIDTH = WHOLE_BLOCK<LANES> ? WARP : LANES;
#pragma unroll
  for (int step = WIDTH / 2; step; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
  if constexpr (!WHOLE_BLOCK<LANES>) return value;
  if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < THREADS / WARP; ++warp) total += sums[warp];
  return total;
}

// Return max(c) / ||c||_p with c = z - mean(z) over the finite logits (arXiv 2305.15508); relative to
// the greatest |c|, so that no power overflows.
template <class T, int LANES>
__device__ __forceinline__ float p_norm(const Row& facts, const Logits<T>& row,
                                        const Slice<T, LANES>& slice, int lane, float p,
                                        float (&sums)[THREADS / WARP]) {
  const float mean = facts.sum / float(facts.finite);
  const float reach = fmaxf(facts.largest - mean, mean - facts.smallest);
  float powers = 0.0f;
  visit(row, slice, lane, [&](const auto& logits, int) {
    constexpr int COUNT = sizeof(logits) / sizeof(float);
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
      if (logits[k] != negative_infinity()) powers += powf(fabsf(logits[k] - mean) / reach, p);
  });
  powers = group_sum<LANES>(powers, sums);
  return reach > 0.0f ? (facts.largest - mean) / (reach * powf(powers, 1.0f / p)) : 0.0f;
}

// Return the score of a valid row in [0, 1]; max-softmax is 1 / total.
template <int SCORE>
__device__ __forceinline__ float softmax_score(const Row& row, int classes, float scale) {
  float value = 1.0f / row.total;
  if constexpr (SCORE == MARGIN) value *= 1.0f - exp2f((row.second - row.largest) * scale);
  if constexpr (SCORE == ENTROPY)
    value = 1.0f - (log2f(row.total) - row.moment / row.total) / log2f(float(classes));
  return fminf(fmaxf(value, 0.0f), 1.0f);
}

// The rule of kernels.reference.accept: total * threshold < 1, its sign exact by the fused product.
template <int SCORE>
__device__ __forceinline__ bool accept(const Row& row, float score, float threshold) {
  if (!row.valid()) return false;
  if constexpr (SCORE == MAX_SOFTMAX) return fmaf(row.total, threshold, -1.0f) < 0.0f;
  return score > threshold && score <= LARGEST_FLOAT;
}

// Return whether the row goes on; where it does not, write its answer.
template <int SCORE>
__device__ __forceinline__ bool decide(const GateArgs& args, const Settings& settings, int row,
                                       const Row& facts, float score) {
  const int label = facts.answer();
  const int sample = args.row_map ? read(args.row_map + row) : row;
  const float threshold = args.per_class ? read(args.thresholds + label) : settings.threshold;
  const bool forced = args.force && read(args.force + sample) != 0;
  if (forced || !accept<SCORE>(facts, score, threshold)) return true;
  write(args.label + sample, label);
  write(args.confidence + sample, score);
  write(args.stage + sample, (signed char)args.stage_number);
  return false;
}

// Return the sum of the values of threads before this one; `total` becomes that of all.
__device__ __forceinline__ int sum_before(int value, int& total, int (&totals)[THREADS / WARP]) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  int up_to = value;
#pragma unroll
  for (int step = 1; step < WARP; step *= 2) {
    const int below = __shfl_up_sync(ALL_LANES, up_to, step);
    up_to += lane >= step ? below : 0;
  }
  if (lane == WARP - 1) totals[warp] = up_to;
  __syncthreads();
  int before = up_to - value;
  total = 0;
  for (int other = 0; other < THREADS / WARP; ++other) {
    before += other < warp ? totals[other] : 0;
    total += totals[other];
  }
  return before;
}

// Write idx from the masks of all blocks; return the count.
template <int BLOCK_ROWS>
__device__ __forceinline__ int compact(const GateArgs& args, Shared& shared, int valid) {
  const int blocks = (valid + BLOCK_ROWS - 1) / BLOCK_ROWS;
  int count = 0;
  for (int first = 0; first < blocks; first += THREADS) {
    const int block = first + threadIdx.x;
    const u64 mask = block < blocks ? read_fresh(args.masks + block) : 0;
    int total;
    const int before = sum_before(__popcll(mask), total, shared.totals);
    shared.masks[threadIdx.x] = mask;
    shared.offsets[threadIdx.x] = count + before;
    __syncthreads();
    const int rows = min(THREADS * BLOCK_ROWS, valid - first * BLOCK_ROWS);
    for (int place = threadIdx.x; place < rows; place += THREADS) {
      const u64 bits = shared.masks[place / BLOCK_ROWS], bit = 1ull << place % BLOCK_ROWS;
      if (!(bits & bit)) continue;
      const int target = shared.offsets[place / BLOCK_ROWS] + __popcll(bits & (bit - 1));
      const int row = first * BLOCK_ROWS + place;
      write(args.idx + target, args.row_map ? read(args.row_map + row) : row);
      if (args.idx_rows) write(args.idx_rows + target, row);
    }
    count += total;
    __syncthreads();
  }
  return count;
}

__device__ __forceinline__ void write_rounds(const GateArgs& args, int count) {
  if (threadIdx.x == 0) write(args.count, count);
  for (int round = threadIdx.x; round < args.rounds; round += THREADS) {
    const int largest = read(args.buckets + args.bucket_sizes - 1);
    const int rows = max(0, min(count - round * largest, largest));
    int index = 0, size = 0;
    while (index < args.bucket_sizes && (size = read(args.buckets + index)) < rows) ++index;
    write(args.bucket + round, rows ? size : 0);
    write(args.bucket_index + round, rows ? index : args.bucket_sizes);
  }
}

// Publish this block's mask; return, to all threads, whether all `blocks` have now published theirs.
__device__ __forceinline__ bool publish(const GateArgs& args, Shared& shared, int rows, u32 blocks) {
  if (threadIdx.x < WARP) {
    const int lane = threadIdx.x;
    const u32 low = __ballot_sync(ALL_LANES, lane < rows && shared.goes_on[lane]);
    const u32 high = __ballot_sync(ALL_LANES, lane + WARP < rows && shared.goes_on[lane + WARP]);
    if (lane == 0) {
      write(args.masks + blockIdx.x, u64(high) << WARP | low);
      __threadfence();
      shared.is_last = atomicInc(args.ticket, blocks - 1) == blocks - 1;
      __threadfence();
    }
  }
  __syncthreads();
  return shared.is_last;
}

template <class T, int LANES, int SCORE>
__device__ __forceinline__ void gate(const GateArgs& args, Shared& shared) {
  constexpr int BLOCK_ROWS = THREADS / LANES;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int row = int(blockIdx.x) * BLOCK_ROWS + group;
  const bool exists = row < args.rows;
  const Logits<T> logits(static_cast<const T*>(args.logits) + u64(exists ? row : 0) * args.classes,
                         exists ? args.classes : 0);
  Slice<T, LANES> slice;
  slice.load(logits, lane);
  if (threadIdx.x == 0)
    shared.settings = {exponent_scale(read(args.temperature)),
                       args.per_class ? 0.0f : read(args.thresholds),
                       max(0, min(read(args.valid), args.rows))};
  __syncthreads();
  const Settings settings = shared.settings;
  const u32 blocks = max(1, (settings.valid + BLOCK_ROWS - 1) / BLOCK_ROWS);
  if (blockIdx.x >= blocks) return;
  Row facts = scan<SCORE>(logits, slice, lane, settings.scale);
  merge_group<SCORE, LANES>(facts, settings.scale, shared.parts);
  float score = 0.0f;
  if constexpr (SCORE == P_NORM)
    score = p_norm(facts, logits, slice, lane, args.p, shared.sums);
  else if constexpr (SCORE != TENSOR)
    score = softmax_score<SCORE>(facts, args.classes, settings.scale);
  else if (lane == 0 && row < settings.valid)
    score = read(args.scores + row);
  if (lane == 0)
    shared.goes_on[group] =
        row < settings.valid && decide<SCORE>(args, settings, row, facts, score);
  __syncthreads();
  if (!publish(args, shared, BLOCK_ROWS, blocks)) return;
  write_rounds(args, compact<BLOCK_ROWS>(args, shared, settings.valid));
}

#define GATE(TYPE, LANES, SCORE, name)                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) name(const GateArgs args) {        \
    SHARED(Shared, shared);                                                                \
    gate<TYPE, LANES, SCORE>(args, shared);                                                \
  }
#define GATES(TYPE, LANES, suffix)                           \
  GATE(TYPE, LANES, MAX_SOFTMAX, gate_max_softmax_##suffix)  \
  GATE(TYPE, LANES, MARGIN, gate_margin_##suffix)            \
  GATE(TYPE, LANES, ENTROPY, gate_entropy_##suffix)          \
  GATE(TYPE, LANES, P_NORM, gate_p_norm_##suffix)            \
  GATE(TYPE, LANES, TENSOR, gate_tensor_##suffix)

GATES(fp16, 4, fp16_x4)
GATES(fp16, 32, fp16_x32)
GATES(fp16, 256, fp16_x256)
GATES(float, 4, fp32_x4)
GATES(float, 32, fp32_x32)
GATES(float, 256, fp32_x256)
