// One row of logits, read once by a group of threads: its maximum, the class of it, the sum of its
// exponentials, and what the other scores need.
//
// Online softmax (Milakov and Gimelshein, arXiv 1805.02867): a thread keeps the largest logit so far
// and the sum relative to it, and rescales the sum when a larger one comes.
#pragma once

#include "device.cuh"

enum Score { MAX_SOFTMAX, MARGIN, ENTROPY, P_NORM, TENSOR };

constexpr int THREADS = 256;
constexpr int BLOCKS = 4;  // on a multiprocessor, at least: up to 64 registers, enough for any score
constexpr int WARP = 32;
constexpr int NO_CLASS = 0x7fffffff;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LARGEST_FLOAT = 3.402823466e38f;

// total     sum of exp((z - largest) / T). A NaN or +inf makes it NaN, no finite logit leaves it 0, and
//           else the largest alone adds 1: so a row is valid exactly when total >= 1
// label     lowest class of the largest logit that is not NaN
// second    MARGIN: the second largest logit
// moment    ENTROPY: sum of e * log2(e) over the terms e of total
// sum, finite, smallest   P_NORM: of the finite logits
struct Row {
  float largest, total;
  int label;
  float second, moment, sum, smallest;
  int finite;

  __device__ __forceinline__ bool valid() const { return total >= 1.0f; }
  __device__ __forceinline__ int answer() const { return label == NO_CLASS ? 0 : label; }
};

__device__ __forceinline__ Row empty_row() {
  return {negative_infinity(), 0.0f, NO_CLASS, negative_infinity(), 0.0f, 0.0f, LARGEST_FLOAT, 0};
}

// Return log2(e) / T, by which differences of logits become exponents of 2. Kept finite, so that the
// largest logit's difference of 0 stays 0 for a T that is denormal.
__device__ __forceinline__ float exponent_scale(float temperature) {
  return fminf(LOG2_E / temperature, LARGEST_FLOAT);
}

// Make the terms of `row` relative to a larger maximum.
template <int SCORE>
__device__ __forceinline__ void rescale(Row& row, float largest, float scale) {
  // Before the first number total is 0 or NaN, and stays so; -inf - -inf would make it NaN.
  if (row.largest == largest || row.largest == negative_infinity()) return;
  const float exponent = (row.largest - largest) * scale, factor = exp2f(exponent);
  if constexpr (SCORE == ENTROPY)
    row.moment = factor > 0.0f ? factor * fmaf(row.total, exponent, row.moment) : 0.0f;
  row.total *= factor;
}

// Add logits of ascending classes from `first` on.
template <int SCORE, int COUNT>
__device__ __forceinline__ void add(Row& row, const float (&logits)[COUNT], int first, float scale) {
  float largest = row.largest;
#pragma unroll
  for (int k = 0; k < COUNT; ++k) {
    const float z = logits[k];
    const bool better = z > largest || (row.label == NO_CLASS && z == z);
    if constexpr (SCORE == MARGIN) row.second = fmaxf(row.second, better ? largest : z);
    largest = better ? z : largest;
    row.label = better ? first + k : row.label;
  }
  rescale<SCORE>(row, largest, scale);
  row.largest = largest;
#pragma unroll
  for (int k = 0; k < COUNT; ++k) {
    const float z = logits[k];
    if (z == negative_infinity()) continue;  // adds 0; beside a maximum of -inf it would add NaN
    const float exponent = (z - largest) * scale, term = exp2f(exponent);
    row.total += term;
    if constexpr (SCORE == ENTROPY) row.moment += term > 0.0f ? term * exponent : 0.0f;
    if constexpr (SCORE == P_NORM) {
      row.sum += z;
      row.smallest = fminf(row.smallest, z);
      ++row.finite;
    }
  }
}

template <int SCORE>
__device__ __forceinline__ void merge(Row& row, Row other, float scale) {
  const float largest = fmaxf(row.largest, other.largest);
  const bool better = other.largest > row.largest ||
                      (other.largest == row.largest && other.label < row.label);
  if constexpr (SCORE == MARGIN)
    row.second = fmaxf(fminf(row.largest, other.largest), fmaxf(row.second, other.second));
  rescale<SCORE>(row, largest, scale);
  rescale<SCORE>(other, largest, scale);
  row.label = better ? other.label : row.label;
  row.largest = largest;
  row.total += other.total;
  if constexpr (SCORE == ENTROPY) row.moment += other.moment;
  if constexpr (SCORE == P_NORM) {
    row.sum += other.sum;
    row.smallest = fminf(row.smallest, other.smallest);
    row.finite += other.finite;
  }
}

// Merge the rows of LANES neighbouring threads of a warp; all lanes of the warp must call.
template <int SCORE, int LANES>
__device__ __forceinline__ void merge_lanes(Row& row, float scale) {
#pragma unroll
  for (int step = LANES / 2; step; step /= 2) {
    Row other = empty_row();
    other.largest = __shfl_xor_sync(ALL_LANES, row.largest, step);
    other.total = __shfl_xor_sync(ALL_LANES, row.total, step);
    other.label = __shfl_xor_sync(ALL_LANES, row.label, step);
    if constexpr (SCORE == MARGIN) other.second = __shfl_xor_sync(ALL_LANES, row.second, step);
    if constexpr (SCORE == ENTROPY) other.moment = __shfl_xor_sync(ALL_LANES, row.moment, step);
    if constexpr (SCORE == P_NORM) {
      other.sum = __shfl_xor_sync(ALL_LANES, row.sum, step);
      other.smallest = __shfl_xor_sync(ALL_LANES, row.smallest, step);
      other.finite = __shfl_xor_sync(ALL_LANES, row.finite, step);
    }
    merge<SCORE>(row, other, scale);
  }
}

template <int LANES>
constexpr bool WHOLE_BLOCK = LANES > WARP;

// Merge the rows of LANES threads: of neighbours in a warp, or of the whole block through `parts`.
// The first thread of the group has the result; for a whole block all threads have.
template <int SCORE, int LANES>
__device__ __forceinline__ void merge_group(Row& row, float scale, Row (&parts)[THREADS / WARP]) {
  merge_lanes<SCORE, WHOLE_BLOCK<LANES> ? WARP : LANES>(row, scale);
  if constexpr (WHOLE_BLOCK<LANES>) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) parts[warp] = row;
    __syncthreads();
    row = lane < THREADS / WARP ? parts[lane] : empty_row();
    merge_lanes<SCORE, WARP>(row, scale);
  }
}

// A row of logits in memory: up to WIDTH - 1 before the first 16-byte boundary, 16-byte vectors, rest.
template <class T>
struct Logits {
  static constexpr int WIDTH = 16 / sizeof(T);
  const T* start;
  int classes, head, vectors;

  __device__ __forceinline__ Logits(const T* start, int classes) : start(start), classes(classes) {
    head = min(int(-(u64)start / sizeof(T) % WIDTH), classes);
    vectors = (classes - head) / WIDTH;
  }
  __device__ __forceinline__ int tail() const { return head + vectors * WIDTH; }
  __device__ __forceinline__ uint4 vector(int index) const {
    return read(reinterpret_cast<const uint4*>(start + head) + index);
  }
};

// What one of LANES threads reads of a row first, so that the loads are under way before they are
// needed: its part of head and tail, and its first vector. A row with no more than that stays in
// registers, and a second pass over it reads nothing.
template <class T, int LANES>
struct Slice {
  static constexpr int EDGE = (Logits<T>::WIDTH - 1 + LANES - 1) / LANES;
  T head[EDGE], tail[EDGE];
  uint4 body;

  __device__ __forceinline__ void load(const Logits<T>& row, int lane) {
#pragma unroll
    for (int k = 0; k < EDGE; ++k) {
      const int place = lane + k * LANES, last = row.tail() + place;
      head[k] = place < row.head ? read(row.start + place) : T(0);
      tail[k] = last < row.classes ? read(row.start + last) : T(0);
    }
    body = lane < row.vectors ? row.vector(lane) : uint4{0, 0, 0, 0};
  }
};

template <class T>
__device__ __forceinline__ void unpack(uint4 vector, float (&logits)[Logits<T>::WIDTH]) {
  const u32 words[4] = {vector.x, vector.y, vector.z, vector.w};
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) logits[k] = __int_as_float(int(words[k]));
  } else {
#pragma unroll
    for (int k = 0; k < 8; ++k) logits[k] = to_float(fp16(words[k / 2] >> 16 * (k % 2)));
  }
}

// Call visit(float (&)[n], first class) for every part of the row that falls to this thread, in order.
template <class T, int LANES, class Visit>
__device__ __forceinline__ void visit(const Logits<T>& row, const Slice<T, LANES>& slice, int lane,
                                      Visit part) {
#pragma unroll
  for (int k = 0; k < slice.EDGE; ++k) {
    const int place = lane + k * LANES;
    const float logits[1] = {to_float(slice.head[k])};
    if (place < row.head) part(logits, place);
  }
  uint4 vector = slice.body;
  for (int index = lane; index < row.vectors; index += LANES) {
    float logits[Logits<T>::WIDTH];
    unpack<T>(vector, logits);
    part(logits, row.head + index * Logits<T>::WIDTH);
    if (index + LANES < row.vectors) vector = row.vector(index + LANES);
  }
#pragma unroll
  for (int k = 0; k < slice.EDGE; ++k) {
    const int place = row.tail() + lane + k * LANES;
    const float logits[1] = {to_float(slice.tail[k])};
    if (place < row.classes) part(logits, place);
  }
}

// Return this thread's part of the row.
template <int SCORE, class T, int LANES>
__device__ __forceinline__ Row scan(const Logits<T>& row, const Slice<T, LANES>& slice, int lane,
                                    float scale) {
  Row facts = empty_row();
  visit(row, slice, lane,
        [&](const auto& logits, int first) { add<SCORE>(facts, logits, first, scale); });
  return facts;
}
