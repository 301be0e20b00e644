#include "memory.h"

#include <cstdio>
#include <cstring>

#include "footprint.h"
#include "scheduler.h"

namespace cuda_cpu {
namespace {

Footprint footprint;

std::string text(const char* kind, const Access& access) {
  char address[32];
  std::snprintf(address, sizeof address, "%p", access.address);
  return std::string(kind) + " of " + std::to_string(access.bytes) + " bytes from " + address +
         " at " + cuda_cpu::text(access.where);
}

bool is_shared(const Access& access) { return current->block->shared.holds(access.address); }

void check_address(const char* kind, const Access& access) {
  const auto address = reinterpret_cast<std::uintptr_t>(access.address);
  if (address < 4096) fail("null pointer: " + text(kind, access));
  if (address % access.bytes) fail("misaligned: " + text(kind, access));
}

void check_global(const char* kind, const Access& access) {
  check_address(kind, access);
  if (is_shared(access)) fail("shared memory, expected global: " + text(kind, access));
  if (current->fiber.holds(access.address))
    fail("local memory, expected global: " + text(kind, access));
}

}  // namespace

void begin_accesses() { footprint.clear(); }

std::vector<Range> ranges_read() {
  return footprint.ranges(Footprint::READ | Footprint::READ_FRESH);
}

std::vector<Range> ranges_written() { return footprint.ranges(Footprint::WRITTEN); }

void before_read(const Access& access) {
  check_global("read", access);
  report().bytes_read += access.bytes;
  if (footprint.mark(access.address, access.bytes, Footprint::READ) & Footprint::WRITTEN)
    fail("constant read of memory that this launch has written: " + text("read", access));
}

void before_read_fresh(const Access& access) {
  check_global("read_fresh", access);
  report().bytes_read += access.bytes;
  footprint.mark(access.address, access.bytes, Footprint::READ_FRESH);
  looked(access.where);
  may_give_way();
}

void before_write(const Access& access) {
  check_global("write", access);
  report().bytes_written += access.bytes;
  if (footprint.mark(access.address, access.bytes, Footprint::WRITTEN) & Footprint::READ)
    fail("memory that this launch has read as constant is written: " + text("write", access));
  changed();
  may_give_way();
}

void before_atomic(const Access& access) {
  check_address("atomic", access);
  if (!is_shared(access)) {
    ++report().atomics;
    report().bytes_read += access.bytes;
    report().bytes_written += access.bytes;
    footprint.mark(access.address, access.bytes, Footprint::WRITTEN);
  }
  looked(access.where);
  may_give_way();
  // A relaxed atomic passes on what was before the fence in front of it, and shows what others
  // passed on only to what comes after the next fence.
  const ThreadClocks& clocks = current->block->clocks[current->number];
  apart(launcher(), [&] {
    acquire(access.address);
    clocks.observed.release();
  });
  apart(launcher(), [&] {
    clocks.fence.acquire();
    release(access.address);
  });
}

void fence() {
  may_give_way();
  const ThreadClocks& clocks = current->block->clocks[current->number];
  clocks.observed.acquire();
  clocks.fence.release();
}

}  // namespace cuda_cpu
