// Which fault of the kernels is real (tests/faults.py), by the environment of the program.
#pragma once

#include <cstdlib>

namespace native {

/// Its number, or 0 for none.
inline const int fault = [] {
  const char* const number = std::getenv("NATIVE_FAULT");
  return number ? std::atoi(number) : 0;
}();

}  // namespace native
