// Small kernels for the tests of the emulation itself: what works, and what must be refused.
//
// Lines that a message must name end with a mark in capitals.
#include "../../kernels/device.cuh"

constexpr int WARP = 32;
constexpr int MOST = 1024;

struct ToyArgs {
  const u32* in;
  u32* out;
  u64* wide;
  u32 n;
};

#define TOY(name) \
  extern "C" __global__ void __launch_bounds__(MOST) name([[maybe_unused]] const ToyArgs args)

__device__ __forceinline__ u32 global_thread() {
  const u32 block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  return block * blockDim.x + threadIdx.x;
}

TOY(number_threads) { write(args.out + global_thread(), global_thread() + 1); }

// What works.

TOY(reverse_block) {
  using Row = u32[MOST];
  SHARED(Row, row);
  row[threadIdx.x] = read(args.in + global_thread());
  __syncthreads();
  write(args.out + global_thread(), row[blockDim.x - 1 - threadIdx.x]);
}

TOY(uninitialised_shared) {
  SHARED(u32, word);
  write(args.out + global_thread(), word);
}

TOY(shuffles) {
  const u32 value = read(args.in + threadIdx.x), lane = threadIdx.x % WARP;
  const u32 results[] = {
      __shfl_sync(ALL_LANES, value, lane + 3), __shfl_sync(ALL_LANES, value, 1, 8),
      __shfl_up_sync(ALL_LANES, value, 5),     __shfl_up_sync(ALL_LANES, value, 1, 4),
      __shfl_down_sync(ALL_LANES, value, 5),   __shfl_down_sync(ALL_LANES, value, 1, 4),
      __shfl_xor_sync(ALL_LANES, value, 16),   __shfl_xor_sync(ALL_LANES, value, 5, 4),
  };
  for (int k = 0; k < 8; ++k) write(args.out + k * blockDim.x + threadIdx.x, results[k]);
}

// Odd and even lanes vote apart, each half with its own mask.
TOY(votes_of_halves) {
  const u32 value = read(args.in + threadIdx.x);
  const u32 mask = threadIdx.x % 2 ? 0xaaaaaaaau : 0x55555555u;
  u32 ballot, any, all;
  if (threadIdx.x % 2) {
    ballot = __ballot_sync(mask, value);
    any = __any_sync(mask, value);
    all = __all_sync(mask, value);
  } else {
    ballot = __ballot_sync(mask, value);
    any = __any_sync(mask, value);
    all = __all_sync(mask, value);
  }
  write(args.out + 3 * threadIdx.x, ballot);
  write(args.out + 3 * threadIdx.x + 1, any);
  write(args.out + 3 * threadIdx.x + 2, all);
}

TOY(atomics) {
  atomicAdd(args.wide, u64(1) << 33);
  atomicInc(args.out, 6);
  atomicAdd(args.out + 1, 0xffffffffu);
  const u32 before = atomicExch(args.out + 2, global_thread() + 1);
  if (before) atomicAdd(args.out + 3, before);
  atomicCAS(args.out + 4, 0u, global_thread() + 1);
}

TOY(order_of_arrival) { write(args.out + 1 + atomicInc(args.out, ~0u), global_thread()); }

TOY(many_atomics) {
  for (u32 k = 0; k < args.n; ++k) atomicAdd(args.out, 1u);
}

TOY(many_looks_and_writes) {
  for (u32 k = 0; k < args.n; ++k) write(args.out, read_fresh(args.out) + 1);
}

// One thread writes two words, the other may look in between.
TOY(two_writes) {
  if (threadIdx.x == 0) {
    write(args.out, 1u);
    write(args.out + 1, 1u);
  } else {
    write(args.out + 2, 1 + read_fresh(args.out) - read_fresh(args.out + 1));
  }
}

// The last block to finish sums what all have written.
TOY(last_block_sums) {
  SHARED(bool, is_last);
  if (threadIdx.x == 0) {
    write(args.out + 2 + blockIdx.x, read(args.in + blockIdx.x));
    __threadfence();
    is_last = atomicInc(args.out, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last || threadIdx.x) return;
  u32 sum = 0;
  for (u32 block = 0; block < gridDim.x; ++block) sum += read_fresh(args.out + 2 + block);
  write(args.out + 1, sum);
}

// Each block waits for the one after it: all must be resident.
TOY(wait_for_next_block) {
  if (blockIdx.x + 1 < gridDim.x)
    while (!read_fresh(args.out + blockIdx.x + 1)) {  // SPIN
    }
  __threadfence();
  write(args.out + blockIdx.x, 1u);
}

TOY(halves_to_floats) {
  const float value = to_float(fp16(global_thread()));
  write(reinterpret_cast<float*>(args.out) + global_thread(), value);
}

TOY(floats_to_halves) {
  const float value = read(reinterpret_cast<const float*>(args.in) + global_thread());
  write(reinterpret_cast<fp16*>(args.out) + global_thread(), to_fp16(value));
}

TOY(intrinsics) {
  const u32 value = read(args.in + threadIdx.x);
  u32* out = args.out + 4 * threadIdx.x;
  write(out, u32(__popc(value)));
  write(out + 1, u32(__popcll(u64(value) << 32 | value)));
  write(out + 2, u32(__ffs(int(value))));
  write(out + 3, u32(min(int(value), max(-5, 7))));
}

TOY(traffic) {
  const uint4 words = read(reinterpret_cast<const uint4*>(args.in) + threadIdx.x);
  write(args.out + threadIdx.x, words.x + words.w);
  if (threadIdx.x == 0) atomicAdd(args.wide, u64(1));
  SHARED(u32, counter);
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  atomicAdd(&counter, 1u);
}

TOY(set_conditionals) {
  for (u32 k = 0; k < args.n; ++k) cudaGraphSetConditional(1000 + k, 2 * k);
}

// What must be refused.

TOY(divergent_barrier) {
  if (threadIdx.x < 7)
    __syncthreads();  // SEVEN WAIT HERE
  else
    __syncthreads();  // OTHERS HERE
}

TOY(divergent_ballot) {
  if (threadIdx.x < 7) __ballot_sync(ALL_LANES, 1);  // BALLOT OF SEVEN
  __syncthreads();                                    // BARRIER OF OTHERS
}

TOY(different_operations) {
  if (threadIdx.x < 7)
    __syncwarp();  // SYNCWARP OF SEVEN
  else
    __any_sync(ALL_LANES, 1);  // ANY OF OTHERS
}

TOY(different_masks) {
  __ballot_sync(threadIdx.x < 2 ? ALL_LANES : 0xfffffffeu, 1);  // TWO OF ALL
}

TOY(lane_has_exited) {
  if (threadIdx.x == 9) return;
  __syncwarp();  // NINE HAS LEFT
}

TOY(lane_exits_later) {
  if (threadIdx.x == 31) {
    write(args.out, 1u);
    return;
  }
  __all_sync(ALL_LANES, 1);  // WITHOUT THE LAST
}

TOY(lane_not_in_its_mask) { __ballot_sync(0xfffffffeu, 1); }  // ZERO IS NOT NAMED

TOY(shuffle_from_outside_the_mask) {
  if (threadIdx.x < 16) __shfl_xor_sync(0xffffu, threadIdx.x, 16);  // READS LANE 16
}

TOY(full_mask) { __syncwarp(); }  // FULL MASK

TOY(misaligned) {
  read(reinterpret_cast<const uint4*>(args.in + 1));  // ODD ADDRESS
}

TOY(null_pointer) {
  u32* nothing = args.out - args.n;
  write(nothing, 1u);  // TO NOTHING
}

TOY(reads_what_it_wrote) {
  write(args.out, 1u);
  write(args.out + 1, read(args.out));  // NOT CONSTANT
}

TOY(writes_what_it_read) { write(args.out, read(args.out) + 1); }  // OVERWRITES

TOY(reads_shared_as_global) {
  SHARED(u32, word);
  word = 1;
  read(&word);  // SHARED
}

TOY(reads_local_as_global) {
  u32 word = args.n;
  read(&word);  // LOCAL
}

TOY(too_much_shared) {
  using Much = u32[13 << 10];
  SHARED(Much, much);
  much[0] = 1;
}

TOY(too_many_conditionals) {
  for (u32 k = 0; k < 300; ++k) cudaGraphSetConditional(k, 0);
}

// What ThreadSanitizer must see.

TOY(race_between_barriers) {
  SHARED(u32, word);
  __syncthreads();
  if (threadIdx.x == 0) word = 1;       // AFTER ONE BARRIER
  write(args.out + global_thread(), word);  // BEFORE THE NEXT
  __syncthreads();
}

TOY(race_between_syncwarps) {
  SHARED(u32, word);
  __syncwarp();
  if (threadIdx.x == 0) word = 1;       // AFTER ONE SYNCWARP
  write(args.out + global_thread(), word);  // BEFORE THE NEXT SYNCWARP
  __syncwarp();
}

TOY(race_in_spite_of_ballot) {
  using Row = u32[WARP];
  SHARED(Row, row);
  row[threadIdx.x] = threadIdx.x;
  __ballot_sync(ALL_LANES, 1);
  write(args.out + global_thread(), row[threadIdx.x ^ 1]);  // A BALLOT ORDERS NOTHING
}

TOY(race_of_blocks) {
  if (threadIdx.x == 0) write(args.out, blockIdx.x);  // BY EVERY BLOCK
}

TOY(write_behind_the_fence) {
  SHARED(bool, is_last);
  if (threadIdx.x == 0) {
    __threadfence();
    write(args.out + 2 + blockIdx.x, 1u);  // TOO LATE FOR THE FENCE
    is_last = atomicInc(args.out, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (is_last && threadIdx.x < gridDim.x)
    write(args.out + 1, read_fresh(args.out + 2 + threadIdx.x));  // BY THE LAST BLOCK
}

// What it must not report.

TOY(ordered_by_syncwarp) {
  using Row = u32[WARP];
  SHARED(Row, row);
  for (u32 round = 0; round < 3; ++round) {
    row[threadIdx.x] = threadIdx.x + round;
    __syncwarp();
    write(args.out + global_thread(), row[threadIdx.x ^ 1]);
    __syncwarp();
  }
}

// What AddressSanitizer must see.

TOY(past_shared) {
  using Row = u32[WARP];
  SHARED(Row, row);
  u32* place = row;
  place[threadIdx.x + 1] = 1;  // PAST THE ROW
}

TOY(before_global) {
  write(args.out, read(args.in - 1 + threadIdx.x));  // BEFORE IN
}

TOY(past_local) {
  u32 local[4] = {};
  local[args.n] = 1;  // PAST FOUR
  write(args.out, local[args.n / 2]);
}

TOY(overflow) { write(args.out, u32(int(args.n) + 1)); }  // PAST THE LARGEST INT

// What the driver must survive to tell.

TOY(crash) { *reinterpret_cast<volatile u32*>(u64(args.n)) = 1; }

TOY(endless) {
  volatile u32 word = 0;
  while (!word) {
  }
}
