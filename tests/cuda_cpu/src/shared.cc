#include "shared.h"

#include <cstdlib>
#include <cstring>

#include "scheduler.h"

namespace cuda_cpu {

void* SharedMemory::variable(const void* key, std::size_t bytes, const Timeline& launcher) {
  std::size_t place = 0;
  while (place < count_ && variables_[place].key != key) ++place;
  const Variable& found = place < count_ ? variables_[place] : make(key, bytes, launcher);
  found.made.acquire();
  return found.memory;
}

SharedMemory::Variable& SharedMemory::make(const void* key, std::size_t bytes,
                                           const Timeline& launcher) {
  total_bytes_ += bytes;
  if (total_bytes_ > MOST_BYTES)
    fail("shared memory: " + std::to_string(total_bytes_) + " bytes, more than the " +
         std::to_string(MOST_BYTES) + " that a block may have");
  if (count_ == MOST_VARIABLES) fail("shared memory: more variables than the emulation keeps");
  Variable& made = variables_[count_++];
  made.key = key;
  made.bytes = bytes;
  apart(launcher, [&] {
    made.memory = static_cast<char*>(std::malloc(bytes));
    std::memset(made.memory, PATTERN, bytes);
    made.made.release();
  });
  return made;
}

bool SharedMemory::holds(const void* address) const {
  const char* place = static_cast<const char*>(address);
  for (std::size_t k = 0; k < count_; ++k)
    if (place >= variables_[k].memory && place < variables_[k].memory + variables_[k].bytes)
      return true;
  return false;
}

void SharedMemory::clear() {
  for (std::size_t k = 0; k < count_; ++k) std::free(variables_[k].memory);
  count_ = total_bytes_ = 0;
}

}  // namespace cuda_cpu
