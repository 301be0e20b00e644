// The __shared__ variables of a block.
#pragma once

#include <cstddef>

#include "sanitizers.h"

namespace cuda_cpu {

// On the heap, each by itself, so that AddressSanitizer knows its ends; filled with a pattern,
// since the hardware does not clear shared memory.
class SharedMemory {
 public:
  static constexpr std::size_t MOST_VARIABLES = 16;
  static constexpr std::size_t MOST_BYTES = 48 << 10;  // of static shared memory, on all GPUs
  static constexpr unsigned char PATTERN = 0xCB;

  // Return the variable known by `key`, which the first thread to ask makes: in the name of the
  // launcher, so that its other threads learn nothing from it.
  void* variable(const void* key, std::size_t bytes, const Timeline& launcher);

  bool holds(const void* address) const;
  void clear();

 private:
  struct Variable {
    const void* key;
    char* memory;
    std::size_t bytes;
    Clock made;
  };
  Variable& make(const void* key, std::size_t bytes, const Timeline& launcher);

  Variable variables_[MOST_VARIABLES];
  std::size_t count_ = 0, total_bytes_ = 0;
};

}  // namespace cuda_cpu
