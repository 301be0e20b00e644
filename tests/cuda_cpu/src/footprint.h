// Which bytes a launch has read as constant, and which it has written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

namespace cuda_cpu {

struct Range {
  std::uint64_t first, end;
};

#ifndef CUDA_CPU_TSAN

class Footprint {
 public:
  enum Mark : unsigned char { READ = 1, WRITTEN = 2, READ_FRESH = 4 };

  void clear() {
    if (pages_.size() > MOST_PAGES_KEPT) pages_.clear();
    ++launch_;
    last_ = nullptr;
  }

  // Mark bytes of an aligned access, which no page's end divides; return the marks they had.
  unsigned char mark(const void* address, std::size_t bytes, Mark mark) {
    const auto place = reinterpret_cast<std::uintptr_t>(address);
    unsigned char* marks = page(place / PAGE).marks + place % PAGE;
    unsigned char found = 0;
    for (std::size_t k = 0; k < bytes; ++k) {
      found |= marks[k];
      marks[k] |= mark;
    }
    return found;
  }

  // Return the ranges, in no order, of which every byte has one of the marks.
  std::vector<Range> ranges(unsigned marks) const {
    std::vector<Range> found;
    for (const auto& [number, page] : pages_) {
      if (page->launch != launch_) continue;
      for (std::size_t k = 0; k < PAGE; ++k) {
        if (!(page->marks[k] & marks)) continue;
        const std::size_t first = k;
        while (k < PAGE && page->marks[k] & marks) ++k;
        found.push_back({number * PAGE + first, number * PAGE + k});
      }
    }
    return found;
  }

 private:
  static constexpr std::size_t PAGE = 4096, MOST_PAGES_KEPT = 16 << 10;
  struct Page {
    unsigned char marks[PAGE];
    std::uint64_t launch = 0;
  };

  Page& page(std::uintptr_t number) {
    if (last_ && number == last_number_) return *last_;
    auto& page = pages_[number];
    if (!page) page = std::make_unique<Page>();
    if (page->launch != launch_) std::memset(page->marks, 0, PAGE);
    page->launch = launch_;
    last_number_ = number;
    return *(last_ = page.get());
  }

  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  std::uint64_t launch_ = 0;
  std::uintptr_t last_number_ = 0;
  Page* last_ = nullptr;
};

#else

// ThreadSanitizer would take the table's own memory for a race; races it finds by itself.
struct Footprint {
  enum Mark : unsigned char { READ = 1, WRITTEN = 2, READ_FRESH = 4 };
  void clear() {}
  unsigned char mark(const void*, std::size_t, Mark) { return 0; }
  std::vector<Range> ranges(unsigned) const { return {}; }
};

#endif

}  // namespace cuda_cpu
