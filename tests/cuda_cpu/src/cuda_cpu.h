// CUDA C++ for a .cu file that is compiled by g++: what the file finds without including anything.
//
// The build includes this header first. It has the qualifiers, built-in variables and functions
// that the kernels use, with their meaning on the hardware, and the seam of kernels/device.cuh.
// What they do is behind the headers below; README.md says what the emulation is and is not.
#pragma once

#define CUDA_CPU

#include <vector_functions.h>
#include <vector_types.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "half.h"
#include "meeting.h"
#include "memory.h"
#include "registry.h"
#include "scheduler.h"

// The headers of CUDA make the other qualifiers empty; __shared__ would be silently wrong.
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "write SHARED(TYPE, name)");

#define threadIdx (cuda_cpu::current->index)
#define blockIdx (cuda_cpu::current->block_index)
#define blockDim cuda_cpu::block_shape
#define gridDim cuda_cpu::grid_shape

// A variable of the block. The key tells apart the instances of a template.
#define SHARED(TYPE, name)          \
  static const char name##_key = 0; \
  TYPE& name = *static_cast<TYPE*>( \
      cuda_cpu::current->block->shared.variable(&name##_key, sizeof(TYPE), cuda_cpu::launcher()))

// Global memory.

template <class T>
constexpr bool ONE_ACCESS = sizeof(T) == alignof(T) && sizeof(T) <= 16;

template <class T>
T read(const T* address, cuda_cpu::Location where = cuda_cpu::Location::current()) {
  static_assert(ONE_ACCESS<T>);
  cuda_cpu::before_read({address, sizeof(T), where});
  return *address;
}

template <class T>
T read_fresh(const T* address, cuda_cpu::Location where = cuda_cpu::Location::current()) {
  static_assert(ONE_ACCESS<T>);
  cuda_cpu::before_read_fresh({address, sizeof(T), where});
  return *address;
}

template <class T>
void write(T* address, T value, cuda_cpu::Location where = cuda_cpu::Location::current()) {
  static_assert(ONE_ACCESS<T>);
  cuda_cpu::before_write({address, sizeof(T), where});
  *address = value;
}

inline void __threadfence() { cuda_cpu::fence(); }

// Atomics: relaxed, as on the hardware.

namespace cuda_cpu {

// All threads share one of the operating system, so nothing comes between load and store.
template <class T, class Next>
T atomically(T* address, Next next, const Location& where) {
  static_assert(std::is_integral_v<T>);
  before_atomic({address, sizeof(T), where});
  const T old = __atomic_load_n(address, __ATOMIC_RELAXED), value = next(old);
  __atomic_store_n(address, value, __ATOMIC_RELAXED);
  if (value != old) changed();
  return old;
}

}  // namespace cuda_cpu

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value,
            cuda_cpu::Location where = cuda_cpu::Location::current()) {
  // Unsigned, so that overflow wraps as on the hardware.
  using Bits = std::make_unsigned_t<T>;
  return cuda_cpu::atomically(address, [=](T old) { return T(Bits(old) + Bits(value)); }, where);
}

template <class T>
T atomicExch(T* address, std::type_identity_t<T> value,
             cuda_cpu::Location where = cuda_cpu::Location::current()) {
  return cuda_cpu::atomically(address, [=](T) { return value; }, where);
}

template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            cuda_cpu::Location where = cuda_cpu::Location::current()) {
  return cuda_cpu::atomically(address, [=](T old) { return old == expected ? value : old; }, where);
}

inline unsigned atomicInc(unsigned* address, unsigned last,
                          cuda_cpu::Location where = cuda_cpu::Location::current()) {
  return cuda_cpu::atomically(
      address, [=](unsigned old) { return old >= last ? 0 : old + 1; }, where);
}

// Barriers and warps.

inline void __syncthreads(cuda_cpu::Location where = cuda_cpu::Location::current()) {
  cuda_cpu::barrier(where);
}

inline void __syncwarp(unsigned mask = ~0u,
                       cuda_cpu::Location where = cuda_cpu::Location::current()) {
  cuda_cpu::warp_operation(cuda_cpu::Operation::SYNCWARP, mask, 0, 0, where);
}

inline unsigned __ballot_sync(unsigned mask, int vote,
                              cuda_cpu::Location where = cuda_cpu::Location::current()) {
  return unsigned(cuda_cpu::warp_operation(cuda_cpu::Operation::BALLOT, mask, vote != 0, 0, where));
}

inline int __any_sync(unsigned mask, int vote,
                      cuda_cpu::Location where = cuda_cpu::Location::current()) {
  return int(cuda_cpu::warp_operation(cuda_cpu::Operation::ANY, mask, vote != 0, 0, where));
}

inline int __all_sync(unsigned mask, int vote,
                      cuda_cpu::Location where = cuda_cpu::Location::current()) {
  return int(cuda_cpu::warp_operation(cuda_cpu::Operation::ALL, mask, vote != 0, 0, where));
}

namespace cuda_cpu {

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const Location& where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const auto bits = std::bit_cast<Bits>(value);
  return std::bit_cast<T>(Bits(warp_operation(Operation::SHUFFLE, mask, bits, source, where)));
}

// The lanes of a segment of `width`, which divides a warp for shuffles: [first, end).
struct Segment {
  unsigned lane, first, end;
  explicit Segment(unsigned width)
      : lane(current->lane()), first(lane / width * width), end(first + width) {}
};

}  // namespace cuda_cpu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_cpu::Location where = cuda_cpu::Location::current()) {
  const cuda_cpu::Segment segment(width);
  return cuda_cpu::shuffle(mask, value, segment.first + unsigned(source) % width, where);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 cuda_cpu::Location where = cuda_cpu::Location::current()) {
  const cuda_cpu::Segment segment(width);
  const bool outside = segment.lane < segment.first + distance;
  return cuda_cpu::shuffle(mask, value, outside ? segment.lane : segment.lane - distance, where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   cuda_cpu::Location where = cuda_cpu::Location::current()) {
  const cuda_cpu::Segment segment(width);
  const bool outside = segment.lane + distance >= segment.end;
  return cuda_cpu::shuffle(mask, value, outside ? segment.lane : segment.lane + distance, where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  cuda_cpu::Location where = cuda_cpu::Location::current()) {
  const cuda_cpu::Segment segment(width);
  const unsigned source = segment.lane ^ unsigned(bits);
  return cuda_cpu::shuffle(mask, value, source < segment.end ? source : segment.lane, where);
}

// Numbers.

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }

// Of equal types only: CUDA also mixes them, by rules that are easy to misread.
template <class T>
constexpr T min(T a, T b) {
  static_assert(std::is_integral_v<T>, "fminf says what becomes of NaN");
  return b < a ? b : a;
}

template <class T>
constexpr T max(T a, T b) {
  static_assert(std::is_integral_v<T>, "fmaxf says what becomes of NaN");
  return a < b ? b : a;
}

// Graphs: the calls are recorded.

inline void cudaGraphSetConditional(unsigned long long handle, unsigned value) {
  cuda_cpu_report& report = cuda_cpu::report();
  if (report.conditionals == CUDA_CPU_MOST_CONDITIONALS)
    cuda_cpu::fail("more calls of cudaGraphSetConditional than are recorded");
  report.conditional[report.conditionals++] = {handle, value};
}
