// Included before every source file, those of mlx-c and ours.
#pragma once

// Headers of MLX use what Apple's C++ library declares without it.
#include <cmath>

// mlx-c declares its half-precision accessors on Arm only, and mlx-rs calls them everywhere.
#if !defined(__aarch64__)
#include "mlx/types/half_types.h"
#define HAS_FLOAT16
#define HAS_BFLOAT16
using mlx::core::bfloat16_t;
using mlx::core::float16_t;
#endif

// GCC 12 has no <format>. mlx-c uses no more of it than values in plain {}.
#if __has_include(<format>)
#include <format>
#endif
#if !defined(__cpp_lib_format)
#include <sstream>
#include <string>
#include <string_view>

namespace std {

inline void format_rest(ostringstream& out, string_view text) {
  out << text;
}

template <typename First, typename... Rest>
void format_rest(
    ostringstream& out,
    string_view text,
    const First& first,
    const Rest&... rest) {
  auto hole = text.find("{}");
  if (hole == string_view::npos) {
    out << text;
    return;
  }
  out << text.substr(0, hole) << first;
  format_rest(out, text.substr(hole + 2), rest...);
}

template <typename... Values>
string format(string_view text, const Values&... values) {
  ostringstream out;
  format_rest(out, text, values...);
  return out.str();
}

} // namespace std
#endif
