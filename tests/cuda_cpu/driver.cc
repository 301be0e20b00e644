// Runs launches from a file in a process of its own, for builds with a sanitizer, which cannot be
// loaded into a running Python.
//
//   driver JOB RESULT
//
// JOB, all numbers little-endian u64:
//   seed, order, resident blocks
//   buffers, and for each: its address in the job, bytes past a multiple of 256, size, content
//   launches, and for each: module (text), kernel (text), grid[3], block[3], size, arguments
// where a text is its size and its bytes. RESULT gets the contents of the buffers, one after
// another.
//
// Every buffer is an allocation of its own. Wherever an 8-byte word of a buffer or of arguments is
// an address of the job, it is replaced by the real one, and back in the result.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "launch.h"

namespace {

constexpr int REFUSED = 2;  // exit code when a launch has failed

[[noreturn]] void die(const std::string& message, int code = 1) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(code);
}

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}
  uint64_t number() {
    uint64_t value = 0;
    bytes(&value, sizeof value);
    return value;
  }
  void bytes(void* target, size_t size) {
    if (!file_.read(static_cast<char*>(target), std::streamsize(size))) die("the job is cut short");
  }
  std::string text() {
    std::string text(number(), '\0');
    bytes(text.data(), text.size());
    return text;
  }
  template <size_t COUNT>
  void numbers(uint32_t (&values)[COUNT]) {
    for (uint32_t& value : values) value = uint32_t(number());
  }

 private:
  std::ifstream file_;
};

struct Buffer {
  uint64_t address;  // in the job
  size_t size;
  char* memory;
};

Buffer read_buffer(Reader& job) {
  const uint64_t address = job.number();
  const size_t offset = job.number(), size = job.number();
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, offset + size)) die("no memory");
  Buffer buffer{address, size, static_cast<char*>(memory) + offset};
  job.bytes(buffer.memory, size);
  return buffer;
}

struct Move {
  uint64_t from, to;
  size_t size;
};

// Replace every word that is an address in a range by that in the range it has moved to.
void relocate(char* words, size_t size, const std::vector<Move>& moves) {
  for (size_t place = 0; place + 8 <= size; place += 8) {
    uint64_t word;
    std::memcpy(&word, words + place, 8);
    for (const Move& move : moves)
      if (word - move.from < move.size) {
        word += move.to - move.from;
        std::memcpy(words + place, &word, 8);
        break;
      }
  }
}

// The interface of a module, which stays loaded.
struct Module {
  decltype(&cuda_cpu_parameters) parameters;
  decltype(&cuda_cpu_launch) launch;

  explicit Module(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) die(dlerror());
    parameters = reinterpret_cast<decltype(parameters)>(dlsym(library, "cuda_cpu_parameters"));
    launch = reinterpret_cast<decltype(launch)>(dlsym(library, "cuda_cpu_launch"));
  }
};

void run_launch(Reader& job, const cuda_cpu_options& options, const std::vector<Move>& moves) {
  const Module module(job.text());
  const std::string kernel = job.text();
  cuda_cpu_shape shape;
  job.numbers(shape.grid);
  job.numbers(shape.block);
  std::string arguments = job.text();
  relocate(arguments.data(), arguments.size(), moves);
  const size_t* sizes = module.parameters(kernel.c_str());
  if (!sizes || sizes[0] != arguments.size() || sizes[1]) die(kernel + ": other arguments");
  void* parameters[] = {arguments.data()};
  cuda_cpu_report report;
  module.launch(kernel.c_str(), &shape, &options, parameters, &report);
  if (report.message[0]) die(kernel + ": " + report.message, REFUSED);
}

}  // namespace

int main(int, char** arguments) {
  Reader job(arguments[1]);
  cuda_cpu_options options;
  options.seed = job.number();
  options.order = uint32_t(job.number());
  options.resident_blocks = uint32_t(job.number());
  std::vector<Buffer> buffers(job.number());
  std::vector<Move> there, back;
  for (Buffer& buffer : buffers) {
    buffer = read_buffer(job);
    const auto memory = reinterpret_cast<uint64_t>(buffer.memory);
    there.push_back({buffer.address, memory, buffer.size});
    back.push_back({memory, buffer.address, buffer.size});
  }
  for (const Buffer& buffer : buffers) relocate(buffer.memory, buffer.size, there);
  for (uint64_t launches = job.number(); launches; --launches) run_launch(job, options, there);
  std::ofstream result(arguments[2], std::ios::binary);
  for (const Buffer& buffer : buffers) {
    relocate(buffer.memory, buffer.size, back);
    result.write(buffer.memory, std::streamsize(buffer.size));
  }
}
