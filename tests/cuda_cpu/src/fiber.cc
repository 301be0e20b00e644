#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace cuda_cpu {
namespace {

// Instrumented frames are several times as large.
#if defined(CUDA_CPU_TSAN) || defined(CUDA_CPU_ASAN)
constexpr size_t STACK = 128 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif

size_t guard() { return size_t(sysconf(_SC_PAGESIZE)); }

constexpr int MEMORY = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// A stack with a page below it that faults, so that an overflow is not silent.
char* map_stack() {
  void* memory = mmap(nullptr, guard() + STACK, PROT_READ | PROT_WRITE, MEMORY, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, guard(), PROT_NONE);
  return static_cast<char*>(memory) + guard();
}

// Make ThreadSanitizer forget what an earlier thread wrote here.
void clear_history([[maybe_unused]] char* stack) {
#ifdef CUDA_CPU_TSAN
  mmap(stack, STACK, PROT_READ | PROT_WRITE, MEMORY | MAP_FIXED, -1, 0);
#endif
}

#ifdef CUDA_CPU_ASAN
Fiber* left;  // the fiber that the last switch came from
#endif

}  // namespace

#ifndef CUDA_CPU_PORTABLE_SWITCH
// Save the registers that a call must keep on this stack, its top in *save; restore those of `to`.
extern "C" void cuda_cpu_switch_stack(void** save, void* to);
asm(R"(
.text
.type cuda_cpu_switch_stack,@function
cuda_cpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_cpu_switch_stack,.-cuda_cpu_switch_stack
)");
#endif

Fiber::~Fiber() {
  if (!stack_) return;
  timeline_.end();
  munmap(stack_ - guard(), guard() + STACK);
}

bool Fiber::holds(const void* address) const {
  const char* place = static_cast<const char*>(address);
  return stack_ && place >= stack_ && place < stack_ + STACK;
}

void Fiber::prepare() {
  if (!stack_) stack_ = map_stack();
  clear_history(stack_);
  timeline_.end();
  timeline_ = Timeline::begin();
#ifdef CUDA_CPU_ASAN
  __asan_unpoison_memory_region(stack_, STACK);
  fake_stack_ = nullptr;
  bottom_ = stack_;
  size_ = STACK;
#endif
#ifdef CUDA_CPU_PORTABLE_SWITCH
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = STACK;
  context_.uc_link = nullptr;
  makecontext(&context_, first_entry, 0);
#else
  // What cuda_cpu_switch_stack pops: six registers and a return address. At the first instruction
  // of a function the stack is 8 bytes past a multiple of 16; the null above it ends a back-trace.
  void** top = reinterpret_cast<void**>(stack_ + STACK) - 2;
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(first_entry);
  for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
  stack_pointer_ = top;
#endif
}

void Fiber::switch_over(Fiber& from, Fiber& to) {
  to.timeline_.enter();
#ifdef CUDA_CPU_ASAN
  left = &from;
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
#ifdef CUDA_CPU_PORTABLE_SWITCH
  swapcontext(&from.context_, &to.context_);
#else
  cuda_cpu_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#endif
#ifdef CUDA_CPU_ASAN
  entered(from.fake_stack_);
#endif
}

#ifdef CUDA_CPU_ASAN
// AddressSanitizer also says where the stack lies that was left, which for the caller's is not
// known here.
void Fiber::entered(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, &left->bottom_, &left->size_);
}
#endif

void Fiber::first_entry() {
#ifdef CUDA_CPU_ASAN
  entered(nullptr);
#endif
  run_thread();
}

}  // namespace cuda_cpu
