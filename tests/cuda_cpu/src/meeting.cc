#include "meeting.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <span>

#include "scheduler.h"

namespace cuda_cpu {
namespace {

Warp& warp_of(const Thread& thread) { return thread.block->warps[thread.number / WARP]; }

// Return the threads of its warp.
std::span<Thread* const> lanes(const Thread& thread) {
  const std::span all(thread.block->threads);
  const std::size_t first = thread.number / WARP * WARP;
  return all.subspan(first, std::min<std::size_t>(WARP, all.size() - first));
}

// Return the clocks of the lowest lane that takes part in what this thread waits for.
ThreadClocks& lowest_clocks(const Thread& thread) {
  return thread.block->clocks[thread.number / WARP * WARP + std::countr_zero(thread.arrival.mask)];
}

unsigned bit(unsigned lane) { return 1u << lane; }

template <class Visit>
void for_lanes(unsigned mask, Visit visit) {
  for (; mask; mask &= mask - 1) visit(unsigned(std::countr_zero(mask)));
}

const char* name(Operation operation) {
  static const char* const names[] = {"__syncwarp", "shuffle", "ballot", "any", "all"};
  return names[int(operation)];
}

std::string text(const Arrival& arrival) {
  char mask[16];
  std::snprintf(mask, sizeof mask, "%#x", arrival.mask);
  return std::string(name(arrival.operation)) + " at " + cuda_cpu::text(arrival.where) +
         " with mask " + mask;
}

bool same(const Arrival& a, const Arrival& b) {
  return a.operation == b.operation && a.mask == b.mask && same_place(a.where, b.where);
}

// Return the lanes that have come to what this thread waits for.
unsigned lanes_here(const Thread& thread) {
  unsigned here = 0;
  for_lanes(thread.arrival.mask & warp_of(thread).waits, [&](unsigned lane) {
    if (same(lanes(thread)[lane]->arrival, thread.arrival)) here |= bit(lane);
  });
  return here;
}

void check_mask(const Thread& thread) {
  const Arrival& arrival = thread.arrival;
  const Warp& warp = warp_of(thread);
  if (!(arrival.mask & bit(thread.lane())))
    fail(text(arrival) + " does not name its own lane " + std::to_string(thread.lane()));
  if (arrival.mask & ~warp.exists) fail(text(arrival) + " names lanes that do not exist");
  if (arrival.mask & warp.exited) fail(text(arrival) + " names lanes that have exited");
  if (arrival.operation == Operation::SHUFFLE && !(arrival.mask & bit(arrival.source)))
    fail(text(arrival) + " reads lane " + std::to_string(arrival.source) + ", not in the mask");
}

// Return what each lane takes away, from the values that all have brought.
std::uint64_t outcome(const Arrival& arrival, const std::uint64_t (&values)[WARP], unsigned votes) {
  switch (arrival.operation) {
    case Operation::SHUFFLE: return values[arrival.source];
    case Operation::BALLOT: return votes;
    case Operation::ANY: return votes != 0;
    case Operation::ALL: return votes == arrival.mask;
    case Operation::SYNCWARP: break;
  }
  return 0;
}

void meet(Thread& last) {
  const unsigned mask = last.arrival.mask;
  std::uint64_t values[WARP];
  unsigned votes = 0;
  for_lanes(mask, [&](unsigned lane) {
    values[lane] = lanes(last)[lane]->arrival.value;
    if (values[lane]) votes |= bit(lane);
  });
  for_lanes(mask, [&](unsigned lane) {
    Arrival& arrival = lanes(last)[lane]->arrival;
    arrival.value = outcome(arrival, values, votes);
  });
  warp_of(last).waits &= ~mask;
  ++lowest_clocks(last).meetings;
  release(lanes(last), [&](const Thread& thread) { return mask & bit(thread.lane()); });
}

// Two lanes that each wait for the other, at different places, will do so for ever.
void check_conflict(const Thread& self) {
  for_lanes(self.arrival.mask & warp_of(self).waits, [&](unsigned lane) {
    const Arrival& other = lanes(self)[lane]->arrival;
    if ((other.mask & bit(self.lane())) && !same(other, self.arrival))
      fail("divergent warp: lane " + std::to_string(self.lane()) + " waits in " +
           text(self.arrival) + ", lane " + std::to_string(lane) + " in " + text(other));
  });
}

// Say which lane a thread waits for in vain.
std::string missing(const Thread& thread) {
  const unsigned lane = std::countr_zero(thread.arrival.mask & ~lanes_here(thread));
  const Thread& other = *lanes(thread)[lane];
  return "deadlock: lane " + std::to_string(thread.lane()) + " waits in " + text(thread.arrival) +
         ", lane " + std::to_string(lane) + " in " +
         (other.state == State::AT_BARRIER
              ? "__syncthreads at " + cuda_cpu::text(thread.block->barrier)
              : text(other.arrival));
}

void open_barrier(Block& block) {
  block.at_barrier = 0;
  ++block.block_clocks.barriers;
  release(std::span(block.threads),
          [](const Thread& thread) { return thread.state == State::AT_BARRIER; });
}

}  // namespace

void barrier(const Location& where) {
  Block& block = *current->block;
  if (block.at_barrier && !same_place(block.barrier, where))
    fail("divergent __syncthreads: others wait at " + text(block.barrier) + ", this thread at " +
         text(where));
  block.barrier = where;
  const Clock& clock = block.block_clocks.barrier[block.block_clocks.barriers % 2];
  clock.release();
  current->state = State::AT_BARRIER;
  if (++block.at_barrier == block.running) open_barrier(block);
  go_on();
  clock.acquire();
}

std::uint64_t warp_operation(Operation operation, unsigned mask, std::uint64_t value,
                             unsigned source, const Location& where) {
  Thread& self = *current;
  self.arrival = {operation, mask, source, value, where};
  check_mask(self);
  // Only __syncwarp orders memory; the others do not promise it.
  const bool orders = operation == Operation::SYNCWARP;
  const ThreadClocks& clocks = lowest_clocks(self);
  const Clock& clock = clocks.meeting[clocks.meetings % 2];
  if (orders) clock.release();
  self.state = State::AT_WARP_OPERATION;
  Warp& warp = warp_of(self);
  warp.waits |= bit(self.lane());
  if ((warp.waits & mask) == mask) {
    if (lanes_here(self) == mask)
      meet(self);
    else
      check_conflict(self);
  }
  go_on();
  if (orders) clock.acquire();
  return self.arrival.value;
}

void leave(Thread& thread) {
  Block& block = *thread.block;
  Warp& warp = warp_of(thread);
  thread.state = State::EXITED;
  warp.exited |= bit(thread.lane());
  for_lanes(warp.waits, [&](unsigned lane) {
    const Arrival& other = lanes(thread)[lane]->arrival;
    if (other.mask & bit(thread.lane()))
      fail(text(other) + " waits for lane " + std::to_string(thread.lane()) + ", which has exited");
  });
  if (--block.running && block.at_barrier == block.running) open_barrier(block);
}

std::string deadlock(const std::vector<std::unique_ptr<Block>>& resident) {
  for (const auto& block : resident) {
    if (!block) continue;
    for (const Thread* thread : block->threads)
      if (thread->state == State::AT_WARP_OPERATION) return missing(*thread);
  }
  return "deadlock: no thread can run";
}

}  // namespace cuda_cpu
