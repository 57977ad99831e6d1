// Operations that take mlx-c several calls, as the node of one kernel. For a small model, to make nodes takes longer than to
// compute them.

#include <exception>

#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"
#include "offer/offer.h"

namespace mx = mlx::core;
namespace offer = kernels::offer;

namespace {

enum Answer { MADE, FAILED, NO_KERNEL };

template <typename Make>
int made(mlx_array* res, Make make) {
  try {
    offer::Offer y = make();
    if (!y) {
      return NO_KERNEL;
    }
    mlx_array_set_(*res, std::move(*y));
    return MADE;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return FAILED;
  }
}

} // namespace

// silu(gate) * up, or gelu(gate) * up.
extern "C" int mlx_sys_gated(mlx_array* res, mlx_array gate, mlx_array up, bool is_gelu, mlx_stream s) {
  return made(res, [&] {
    return offer::gated(mlx_array_get_(gate), mlx_array_get_(up), is_gelu, mlx_stream_get_(s));
  });
}

// x times the transpose of the matrix w.
extern "C" int mlx_sys_linear(mlx_array* res, mlx_array x, mlx_array w, mlx_stream s) {
  return made(res, [&]() -> offer::Offer {
    auto& stream = mlx_stream_get_(s);
    auto turned = offer::transpose(mlx_array_get_(w), stream);
    return turned ? offer::matmul(mlx_array_get_(x), *turned, stream) : std::nullopt;
  });
}
