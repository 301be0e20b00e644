// In which order threads that can run do so, and blocks start.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "block.h"
#include "launch.h"

namespace cuda_cpu {

// splitmix64 (Steele, Lea and Flood, OOPSLA 2014): the same numbers on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t bound) {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (z ^ z >> 31) % bound;
  }

 private:
  std::uint64_t state_;
};

// A queue of threads of fixed capacity, whose first may be exchanged for another.
class Queue {
 public:
  explicit Queue(std::size_t capacity) : places_(std::bit_ceil(capacity)) {}
  std::size_t size() const { return last_ - first_; }
  void put(Thread& thread) { at(last_++) = &thread; }
  Thread& take(std::size_t place = 0) {
    std::swap(at(first_), at(first_ + place));
    return *at(first_++);
  }

 private:
  Thread*& at(std::size_t index) { return places_[index & (places_.size() - 1)]; }
  std::vector<Thread*> places_;
  std::size_t first_ = 0, last_ = 0;
};

// Return the numbers of blocks, the first to start last. The hardware promises no order.
inline std::vector<std::uint64_t> block_order(std::uint64_t blocks, cuda_cpu_order order,
                                              Random& random) {
  std::vector<std::uint64_t> numbers(blocks);
  std::iota(numbers.begin(), numbers.end(), 0);
  if (order == CUDA_CPU_ASCENDING) std::reverse(numbers.begin(), numbers.end());
  if (order == CUDA_CPU_RANDOM)
    for (std::uint64_t k = blocks; k > 1; --k) std::swap(numbers[k - 1], numbers[random.below(k)]);
  return numbers;
}

}  // namespace cuda_cpu
