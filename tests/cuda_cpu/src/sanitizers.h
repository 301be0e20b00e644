// What ThreadSanitizer and AddressSanitizer must be told: which stack runs, and what comes before
// what.
//
// ThreadSanitizer sees every CUDA thread as a thread of its own and knows only the order in time
// that is given here; so it reports a race whatever order the threads happened to run in. The
// runtime itself is never instrumented (its own data would look like races): build.py defines
// CUDA_CPU_TSAN or CUDA_CPU_ASAN instead. In other builds everything here is empty.
#pragma once

#include <cstddef>

#ifdef CUDA_CPU_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

#ifdef CUDA_CPU_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#endif

namespace cuda_cpu {

#ifdef CUDA_CPU_TSAN

constexpr unsigned NO_ORDER = 1;  // switching says nothing about what happened before

inline void release(const void* place) { __tsan_release(const_cast<void*>(place)); }
inline void acquire(const void* place) { __tsan_acquire(const_cast<void*>(place)); }

// ThreadSanitizer's view of one thread.
class Timeline {
 public:
  static Timeline running() { return Timeline(__tsan_get_current_fiber()); }

  // Begins after everything that the caller has seen.
  static Timeline begin() { return Timeline(__tsan_create_fiber(0)); }

  Timeline() = default;
  void end() {
    if (fiber_) __tsan_destroy_fiber(fiber_);
    fiber_ = nullptr;
  }
  void enter() const { __tsan_switch_to_fiber(fiber_, NO_ORDER); }

 private:
  explicit Timeline(void* fiber) : fiber_(fiber) {}
  void* fiber_ = nullptr;
};

#else

inline void release(const void*) {}
inline void acquire(const void*) {}

struct Timeline {
  static Timeline running() { return {}; }
  static Timeline begin() { return {}; }
  void end() {}
  void enter() const {}
};

#endif

// A place that carries knowledge of what happened: `release` adds what the running thread has seen,
// `acquire` takes it over. ThreadSanitizer tells places apart by multiples of 8 bytes.
class alignas(8) Clock {
 public:
  void release() const { cuda_cpu::release(this); }
  void acquire() const { cuda_cpu::acquire(this); }
};

// Do `work` as someone who has seen nothing but what `launcher` had, then go on as before.
template <class Work>
void apart(const Timeline& launcher, Work work) {
  const Timeline self = Timeline::running();
  launcher.enter();
  Timeline courier = Timeline::begin();
  courier.enter();
  work();
  self.enter();
  courier.end();
}

}  // namespace cuda_cpu
