// The table of kernels that Rust hands over, and the look-up of an operation's kernel.

#include "table.h"

#include <algorithm>
#include <atomic>

namespace kernels {

namespace {

std::atomic<const Table*> current{nullptr};

} // namespace

const Table* table() {
  return current.load(std::memory_order_acquire);
}

std::optional<Format> format_of(mx::Dtype dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::float32:
      return Format::F32;
    case mx::Dtype::Val::float16:
      return Format::F16;
    case mx::Dtype::Val::bfloat16:
      return Format::Bf16;
    case mx::Dtype::Val::uint8:
      return Format::U8;
    case mx::Dtype::Val::uint32:
      return Format::U32;
    case mx::Dtype::Val::int32:
      return Format::I32;
    case mx::Dtype::Val::bool_:
      return Format::Bool;
    default:
      return std::nullopt;
  }
}

Run find(Operation operation, const mx::Stream& stream, Slots arrays) {
  const Table* kernels = table();
  if (!kernels || stream.device != mx::Device::cpu) {
    return nullptr;
  }
  bool all_are_taken = std::all_of(arrays.begin(), arrays.end(), [](const mx::array* x) {
    return !x || (!x->is_tracer() && x->ndim() <= MAX_DIMS && format_of(x->dtype()));
  });
  return all_are_taken ? kernels->kernels[static_cast<int>(operation)] : nullptr;
}

} // namespace kernels

extern "C" void mlx_sys_set_kernels(const kernels::Table* table) {
  kernels::current.store(table, std::memory_order_release);
}
