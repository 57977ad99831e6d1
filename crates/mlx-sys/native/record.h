// Which operations are evaluated, and what runs them.
#pragma once

namespace kernels {

// What runs an operation.
enum class Runner : int {
  // One of our kernels.
  kernel,
  // Nothing: the result is a view of an input.
  view,
  // MLX's own code.
  mlx,
};

// Counts an operation where the calling thread records. `name` lives as long as the program.
void record(const char* name, Runner runner);

} // namespace kernels
