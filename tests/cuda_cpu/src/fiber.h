// A call stack that can be left and entered again; each CUDA thread has one.
#pragma once

#include <cstddef>

#include "sanitizers.h"

#if !defined(__x86_64__) || defined(CUDA_CPU_UCONTEXT)
#define CUDA_CPU_PORTABLE_SWITCH
#include <ucontext.h>
#endif

namespace cuda_cpu {

// What a fiber runs when it is entered for the first time (scheduler.cc).
[[noreturn]] void run_thread();

class Fiber {
 public:
  Fiber() = default;  // stands for the stack of the caller until it is prepared
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Make the next switch here call run_thread. Takes a stack on first use; what ran on it before is
  // forgotten.
  void prepare();

  // Take the running thread's place in ThreadSanitizer's eyes.
  void adopt_running() { timeline_ = Timeline::running(); }
  const Timeline& timeline() const { return timeline_; }

  bool holds(const void* address) const;

  // Leave `from`, which runs now, and go on in `to`.
  static void switch_over(Fiber& from, Fiber& to);

 private:
  static void first_entry();
  static void entered(void* fake_stack);

  char* stack_ = nullptr;  // lowest address
  Timeline timeline_;
#ifdef CUDA_CPU_PORTABLE_SWITCH
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
#ifdef CUDA_CPU_ASAN
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#endif
};

}  // namespace cuda_cpu
