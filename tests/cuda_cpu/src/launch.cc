#include "launch.h"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <vector>

#include "footprint.h"
#include "memory.h"
#include "registry.h"
#include "scheduler.h"

namespace cuda_cpu {
namespace {

constexpr std::uint64_t MOST_BLOCKS = 1 << 26;

std::mutex one_launch;  // at a time

std::vector<Entry>& kernels() {
  static std::vector<Entry> all;
  return all;
}

std::string refusal(const Entry* kernel, const char* name, const cuda_cpu_shape& shape) {
  if (!kernel) return "no kernel is called " + std::string(name);
  std::uint64_t threads = 1;
  for (const std::uint32_t length : shape.block) threads *= length;
  if (!threads || threads > kernel->most_threads)
    return std::string(name) + ": " + std::to_string(threads) + " threads a block, expected 1 to " +
           std::to_string(kernel->most_threads);
  const auto [x, y, z] = shape.grid;
  if (!x || !y || !z || x > 0x7fffffff || y > 65535 || z > 65535)
    return std::string(name) + ": a grid that no GPU takes";
  if (std::uint64_t(x) * y * z > MOST_BLOCKS)
    return std::string(name) + ": more blocks than the emulation can run in a reasonable time";
  return "";
}

}  // namespace

void add_kernel(const Entry& entry) { kernels().push_back(entry); }

const Entry* find_kernel(std::string_view name) {
  for (const Entry& entry : kernels())
    if (name == entry.name) return &entry;
  return nullptr;
}

}  // namespace cuda_cpu

const size_t* cuda_cpu_parameters(const char* kernel) {
  const cuda_cpu::Entry* entry = cuda_cpu::find_kernel(kernel);
  return entry ? entry->parameters : nullptr;
}

void cuda_cpu_launch(const char* kernel, const cuda_cpu_shape* shape,
                     const cuda_cpu_options* options, void** arguments, cuda_cpu_report* report) {
  *report = {};
  const cuda_cpu::Entry* entry = cuda_cpu::find_kernel(kernel);
  const std::string problem = cuda_cpu::refusal(entry, kernel, *shape);
  std::snprintf(report->message, sizeof report->message, "%s", problem.c_str());
  if (!problem.empty()) return;
  const std::lock_guard lock(cuda_cpu::one_launch);
  cuda_cpu::run(entry->call, arguments, *shape, *options, *report);
}

size_t cuda_cpu_touched(int written, uint64_t (*ranges)[2], size_t room) {
  const std::lock_guard lock(cuda_cpu::one_launch);
  const auto found = written ? cuda_cpu::ranges_written() : cuda_cpu::ranges_read();
  for (size_t k = 0; k < std::min(room, found.size()); ++k) {
    ranges[k][0] = found[k].first;
    ranges[k][1] = found[k].end;
  }
  return found.size();
}
