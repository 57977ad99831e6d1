// MLX's graph, evaluated with few tasks.
#pragma once

#include <span>

#include "mlx/array.h"

namespace kernels {

// Starts the stream's thread on everything that these arrays need, as `async_eval` of MLX does, and in the same order.
//
// MLX sends two tasks for each node, and wakes the thread for each. Here the kernels of many nodes are one task, views of
// other arrays are none, and what a cache gets is written by such a task too.
//
// Does nothing where MLX has to evaluate: for nodes on a GPU or on several streams, and while a transformation is traced.
void evaluate(std::span<const mlx::core::array> arrays);

} // namespace kernels
