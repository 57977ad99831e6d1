// Which operations are evaluated, and what runs them.

#include "record.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

namespace kernels {

namespace {

using Record = std::map<std::pair<std::string_view, Runner>, uint64_t>;

thread_local std::optional<Record> current;

} // namespace

void record(const char* name, Runner runner) {
  if (current) {
    (*current)[{name, runner}]++;
  }
}

} // namespace kernels

// Begins a record of what the calling thread evaluates.
extern "C" void mlx_sys_record() {
  kernels::current.emplace();
}

// Ends it, and calls `visit` for each operation: its name, the length of the name, the runner, how many there were, and the
// caller's own pointer.
extern "C" void mlx_sys_recorded(
    void (*visit)(const char* name, size_t length, int runner, uint64_t count, void* own),
    void* own) {
  if (auto record = std::exchange(kernels::current, std::nullopt)) {
    for (auto& [operation, count] : *record) {
      auto& [name, runner] = operation;
      visit(name.data(), name.size(), static_cast<int>(runner), count, own);
    }
  }
}
