// What a thread does while it waits for MLX: it works on kernels.

#include "wait.h"

#include <algorithm>
#include <exception>

#include "mlx/event.h"
#include "mlx/scheduler.h"

namespace kernels {

namespace {

bool is_scheduled_on_cpu(const mx::array& x) {
  bool is_on_cpu = !x.event().valid() || x.event().stream().device == mx::Device::cpu;
  return x.status() != mx::array::Status::unscheduled && is_on_cpu;
}

} // namespace

// To be stopped and woken some forty times for a token of a small model costs both threads more than the kernels of a
// layer do.
void help_with_tasks() {
  // MLX stops the thread where more than 10 tasks wait.
  constexpr int MANY = 9;
  if (mx::scheduler::n_active_tasks() >= MANY) {
    help([] { return mx::scheduler::n_active_tasks() < MANY; });
  }
}

void help_with(std::span<const mx::array> arrays) {
  auto are_computed = [&] {
    return std::all_of(arrays.begin(), arrays.end(), [](auto& x) { return x.is_available(); });
  };
  if (!std::all_of(arrays.begin(), arrays.end(), is_scheduled_on_cpu) || are_computed()) {
    return;
  }
  // An exception must not pass through the Rust code that calls back.
  std::exception_ptr error;
  help([&] {
    try {
      return are_computed();
    } catch (...) {
      error = std::current_exception();
      return true;
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

} // namespace kernels
