// The dense rows that escalated rows fill: rounds of a stage's largest batch size, one after another.
#pragma once

#include "device.cuh"

// idx     i32 [rows]    rows to take, in order
// count   i32 [1]       how many of them
// bucket  i32 [rounds]  rows to fill in each round; null: always `largest`, also in empty rounds
// largest               rows from the start of a round to the start of the next
struct Dense {
  const int* idx;
  const int* count;
  const int* bucket;
  int largest;
  int rounds;
};

constexpr int NOT_WRITTEN = -1;

// Return the row that dense row `row` repeats, or NOT_WRITTEN. Padding repeats the last escalated row
// of its round, so that an engine never sees numbers that are not an image; row 0 if there is none.
__device__ __forceinline__ int source_of(const Dense& dense, int row) {
  const int round = row / dense.largest, first = round * dense.largest;
  const int place = row - first;
  const int fill = dense.bucket ? read(dense.bucket + round) : dense.largest;
  if (place >= fill) return NOT_WRITTEN;
  const int rows = min(read(dense.count) - first, dense.largest);
  if (rows <= 0) return 0;
  return read(dense.idx + first + min(place, rows - 1));
}
