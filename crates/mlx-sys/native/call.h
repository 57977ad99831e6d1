// Calls of kernels.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "mlx/array.h"
#include "table.h"

namespace kernels {

// The settings of any operation.
class AnySettings {
 public:
  template <typename Settings>
  explicit AnySettings(const Settings& settings) {
    static_assert(std::is_trivially_copyable_v<Settings>);
    static_assert(sizeof(Settings) <= SIZE && alignof(Settings) <= alignof(std::max_align_t));
    std::memcpy(bytes_, &settings, sizeof(Settings));
  }

  template <typename Settings>
  Settings as() const {
    Settings settings;
    std::memcpy(&settings, bytes_, sizeof(Settings));
    return settings;
  }

  const void* data() const {
    return bytes_;
  }

 private:
  static constexpr size_t SIZE = 32;
  alignas(std::max_align_t) std::byte bytes_[SIZE]{};
};

// One call of a kernel. It does not keep the memory of its arrays.
struct Call {
  Run run;
  AnySettings settings;
  Arrays arrays;

  // A call without arrays.
  Call(Run run, const AnySettings& settings);

  void operator()() const;
};

Tensor tensor_of(const mx::array& x);

} // namespace kernels
