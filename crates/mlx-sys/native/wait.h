// What a thread does while it waits for MLX: it works on kernels.
//
// mlx-cpu has as many threads as there are cores. One busy thread more would take a core from a kernel in the middle of its
// work, so a waiting thread takes the part of one of them.
#pragma once

#include <span>

#include "mlx/array.h"
#include "table.h"

namespace kernels {

// Works on kernels until `until` is true, or until there is no work.
template <typename Until>
void help(Until until) {
  const Table* kernels = table();
  if (kernels && kernels->help) {
    kernels->help([](void* of) { return (*static_cast<Until*>(of))(); }, &until);
  }
}

// Called after a task is queued. Where MLX would soon stop this thread because too many tasks wait, helps with kernels
// until fewer do.
void help_with_tasks();

// Called before a function of MLX in which this thread sleeps until `arrays` are computed. Helps with kernels until
// they are, or until there is no work. Does nothing for arrays that have not been scheduled or are on another device.
// Throws what a kernel threw.
void help_with(std::span<const mlx::core::array> arrays);

} // namespace kernels
