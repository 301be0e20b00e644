// Where in a kernel something happens.
#pragma once

#include <cstring>
#include <source_location>
#include <string>

namespace cuda_cpu {

using Location = std::source_location;

// The column tells two barriers on one line apart.
inline bool same_place(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()));
}

// "gate.cu:40:3"
inline std::string text(const Location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line()) + ":" +
         std::to_string(where.column());
}

}  // namespace cuda_cpu
