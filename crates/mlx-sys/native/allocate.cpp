// Arrays that Rust fills.

#include <exception>

#include "mlx/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"

namespace mx = mlx::core;

// Makes an array whose elements have any value, for the caller to write before anything else uses it.
extern "C" int mlx_sys_allocate(mlx_array* res, const int* shape, int dims, mlx_dtype dtype) {
  try {
    mx::Shape sizes(shape, shape + dims);
    auto type = mlx_dtype_to_cpp(dtype);
    size_t bytes = mx::size_of(type);
    for (auto size : sizes) {
      bytes *= size;
    }
    mlx_array_set_(*res, mx::array(mx::allocator::malloc(bytes), std::move(sizes), type));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
