// Runs the threads of one launch, all on one thread of the operating system.
//
// A thread runs until it waits, exits, or gives way at an access to memory; then another that can
// run goes on. The order is chosen by the launch: ascending, descending, or random from a seed.
#pragma once

#include <span>
#include <string>

#include "block.h"
#include "launch.h"

namespace cuda_cpu {

using Kernel = void (*)(void** arguments);

// Run a kernel to its end, and fill the report.
void run(Kernel kernel, void** arguments, const cuda_cpu_shape& shape,
         const cuda_cpu_options& options, cuda_cpu_report& report);

// The rest is for the thread that runs.

extern Thread* current;
extern dim3 grid_shape, block_shape;

cuda_cpu_report& report();
const Timeline& launcher();

// End the launch with a message, to which block and thread are added.
[[noreturn]] void fail(const std::string& message);

// Let others run; return when one of them has released this thread.
void go_on();
void release(Thread& thread);
bool descending();

// Release those of some threads for which `chosen` holds, in the order of the launch.
template <class Choice>
void release(std::span<Thread* const> threads, Choice chosen) {
  for (std::size_t k = 0; k < threads.size(); ++k) {
    Thread& thread = *threads[descending() ? threads.size() - 1 - k : k];
    if (chosen(thread)) release(thread);
  }
}

// In random order: let others run, now and then.
void may_give_way();

// Note an access that may look for a change by others, and one that changes memory. As long as
// threads only look they give way, in every order; when all that happens is looking, the launch has
// failed.
void looked(const Location& where);
void changed();

}  // namespace cuda_cpu
