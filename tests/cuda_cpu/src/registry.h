// The kernels of a module, by name.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>

namespace cuda_cpu {

struct Entry {
  const char* name;
  void (*call)(void** arguments);
  const std::size_t* parameters;  // sizes in bytes, ended by 0
  unsigned most_threads;          // of a block: __launch_bounds__
};

void add_kernel(const Entry& entry);
const Entry* find_kernel(std::string_view name);

template <auto FUNCTION, class... Parameters>
struct Caller {
  static constexpr std::size_t sizes[] = {sizeof(Parameters)..., 0};

  static void call(void** arguments) { call(arguments, std::index_sequence_for<Parameters...>()); }

  template <std::size_t... INDEX>
  static void call(void** arguments, std::index_sequence<INDEX...>) {
    FUNCTION(*static_cast<const Parameters*>(arguments[INDEX])...);
  }
};

template <auto FUNCTION, class... Parameters>
bool add_kernel(const char* name, unsigned most_threads, void (*)(Parameters...)) {
  using Called = Caller<FUNCTION, Parameters...>;
  add_kernel({name, &Called::call, Called::sizes, most_threads});
  return true;
}

}  // namespace cuda_cpu

// The build writes one of these for each kernel, behind the .cu file.
#define CUDA_CPU_KERNEL(name, most_threads) \
  static const bool name##_added = cuda_cpu::add_kernel<&name>(#name, most_threads, &name);
