// Which kernels there are, and what the rows of operations.def say about them.
#pragma once

#include "abi.h"

#include <initializer_list>
#include <optional>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace kernels {

namespace mx = mlx::core;

// The name of an operation in MLX's graph.
constexpr const char* name_of(Operation operation) {
  constexpr const char* NAMES[] = {
#define KERNEL(file, operation, name, settings) name,
#include "operations.def"
#undef KERNEL
  };
  return NAMES[static_cast<int>(operation)];
}

template <Operation OPERATION>
struct Row;

#define KERNEL(file, operation, name, settings) \
  template <>                                   \
  struct Row<Operation::operation> {            \
    using Settings = settings;                  \
  };
#include "operations.def"
#undef KERNEL

// The settings of an operation.
template <Operation OPERATION>
using SettingsOf = typename Row<OPERATION>::Settings;

// The kernels; null where stock MLX runs.
const Table* table();

// The format of arrays of this dtype, if kernels take them.
std::optional<Format> format_of(mx::Dtype dtype);

// Arrays by slot; null for an empty one.
using Slots = std::initializer_list<const mx::array*>;

// The kernel of an operation on these arrays, or null where stock MLX has to run it: where there is no kernel, on
// another device, where MLX traces an array for a gradient or a compilation, or for arrays that kernels do not take.
Run find(Operation operation, const mx::Stream& stream, Slots arrays);

} // namespace kernels
