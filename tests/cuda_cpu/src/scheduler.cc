#include "scheduler.h"

#include <cstdio>
#include <deque>
#include <memory>

#include "meeting.h"
#include "memory.h"
#include "order.h"

namespace cuda_cpu {

Thread* current;
dim3 grid_shape, block_shape;

namespace {

// Looks in a row without any change, after which none can be expected: reached in a fraction of a
// second, and far above what a kernel that makes progress needs.
constexpr std::uint64_t MOST_LOOKS = 1 << 21;
constexpr std::uint64_t LOOKS_TO_GIVE_WAY = 32;

struct Launch {
  Kernel kernel;
  void** arguments;
  const cuda_cpu_shape& shape;
  cuda_cpu_order order;
  cuda_cpu_report& report;
  Random random;
  std::vector<std::uint64_t> to_start;  // numbers of blocks, the next one last
  std::vector<std::unique_ptr<Block>> resident;
  Queue ready;
  Fiber caller = {};
  Clock end = {};
  std::uint64_t looks = 0;

  bool failed() const { return report.message[0]; }
};

Launch* launch;           // the one that runs
std::deque<Thread> pool;  // of all launches, with their stacks: grows, never shrinks

std::uint64_t product(const std::uint32_t (&shape)[3]) {
  return std::uint64_t(shape[0]) * shape[1] * shape[2];
}

uint3 position(std::uint64_t number, const std::uint32_t (&shape)[3]) {
  return {unsigned(number % shape[0]), unsigned(number / shape[0] % shape[1]),
          unsigned(number / shape[0] / shape[1])};
}

// In the following no thread (null) stands for the caller of the launch.

Fiber& fiber_of(Thread* thread) { return thread ? thread->fiber : launch->caller; }

void switch_to(Thread* next) {
  Thread* self = current;
  current = next;
  ++launch->report.switches;
  Fiber::switch_over(fiber_of(self), fiber_of(next));
}

Thread* next_ready() {
  const std::size_t count = launch->ready.size();
  if (!count) return nullptr;
  return &launch->ready.take(launch->order == CUDA_CPU_RANDOM ? launch->random.below(count) : 0);
}

void give_way() {
  release(*current);
  go_on();
}

void set_message(const std::string& message) {
  std::snprintf(launch->report.message, CUDA_CPU_MESSAGE, "%s", message.c_str());
}

std::unique_ptr<Block> start_block(std::size_t seat) {
  const std::size_t size = product(launch->shape.block);
  if (pool.size() < (seat + 1) * size) pool.resize((seat + 1) * size);
  auto block = std::make_unique<Block>(size);
  block->index = position(launch->to_start.back(), launch->shape.grid);
  launch->to_start.pop_back();
  for (unsigned number = 0; number < size; ++number) {
    Thread& thread = *(block->threads[number] = &pool[seat * size + number]);
    thread.index = position(number, launch->shape.block);
    thread.block_index = block->index;
    thread.number = number;
    thread.block = block.get();
    thread.fiber.prepare();
  }
  release(std::span(block->threads), [](const Thread&) { return true; });
  return block;
}

// Put the next block in the place of one that has ended.
void end_block(std::size_t seat) {
  auto& block = launch->resident[seat];
  const Clock& end = block->block_clocks.end;
  apart(launcher(), [&] {
    end.acquire();
    block->shared.clear();
  });
  block.reset();
  if (!launch->to_start.empty()) block = start_block(seat);
}

void run_blocks() {
  auto& resident = launch->resident;
  std::size_t in_progress = resident.size();
  for (std::size_t seat = 0; seat < resident.size(); ++seat) resident[seat] = start_block(seat);
  while (in_progress) {
    Thread* next = next_ready();
    if (!next) return set_message(deadlock(resident));
    switch_to(next);
    if (launch->failed()) return;
    for (std::size_t seat = 0; seat < resident.size(); ++seat) {
      if (!resident[seat] || resident[seat]->running) continue;
      end_block(seat);
      if (!resident[seat]) --in_progress;
    }
  }
}

}  // namespace

void run(Kernel kernel, void** arguments, const cuda_cpu_shape& shape,
         const cuda_cpu_options& options, cuda_cpu_report& report) {
  const auto order = cuda_cpu_order(options.order);
  const std::uint64_t blocks = product(shape.grid);
  const std::uint64_t seats = std::min<std::uint64_t>(options.resident_blocks, blocks);
  Random random(options.seed);
  auto to_start = block_order(blocks, order, random);
  Launch running{kernel,
                 arguments,
                 shape,
                 order,
                 report,
                 random,
                 std::move(to_start),
                 std::vector<std::unique_ptr<Block>>(seats),
                 Queue(seats * product(shape.block))};
  grid_shape = dim3(shape.grid[0], shape.grid[1], shape.grid[2]);
  block_shape = dim3(shape.block[0], shape.block[1], shape.block[2]);
  launch = &running;
  running.caller.adopt_running();
  begin_accesses();
  run_blocks();
  running.end.acquire();
  launch = nullptr;
}

// What every fiber runs.
void run_thread() {
  launch->kernel(launch->arguments);
  launch->end.release();
  current->block->block_clocks.end.release();
  leave(*current);
  switch_to(current->block->running ? next_ready() : nullptr);
  __builtin_unreachable();
}

cuda_cpu_report& report() { return launch->report; }

const Timeline& launcher() { return launch->caller.timeline(); }

void fail(const std::string& message) {
  const uint3 block = current->block_index;
  const std::string place =
      std::to_string(block.x) + "," + std::to_string(block.y) + "," + std::to_string(block.z);
  set_message(message + " [block " + place + ", thread " + std::to_string(current->number) + "]");
  switch_to(nullptr);
  __builtin_unreachable();
}

void go_on() {
  Thread* next = next_ready();
  if (next != current) switch_to(next);
}

void release(Thread& thread) {
  thread.state = State::RUNS;
  launch->ready.put(thread);
}

bool descending() { return launch->order == CUDA_CPU_DESCENDING; }

void may_give_way() {
  if (launch->order == CUDA_CPU_RANDOM && launch->random.below(4) == 0) give_way();
}

void looked(const Location& where) {
  if (++launch->looks > MOST_LOOKS)
    fail("livelock: threads only look at memory, at " + text(where));
  if (launch->looks % LOOKS_TO_GIVE_WAY == 0) give_way();
}

void changed() { launch->looks = 0; }

}  // namespace cuda_cpu
