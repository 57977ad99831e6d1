// Calls of kernels.

#include "call.h"

#include <algorithm>
#include <stdexcept>

namespace kernels {

Call::Call(Run run, const AnySettings& settings) : run(run), settings(settings) {
  for (auto& tensor : arrays.inputs) {
    tensor.dims = ABSENT;
  }
  for (auto& tensor : arrays.outputs) {
    tensor.dims = ABSENT;
  }
}

void Call::operator()() const {
  if (const char* error = run(&arrays, settings.data())) {
    throw std::runtime_error(error);
  }
}

Tensor tensor_of(const mx::array& x) {
  Tensor tensor;
  tensor.data = const_cast<char*>(x.data<char>());
  // `find` has checked the dtype.
  tensor.format = format_of(x.dtype()).value_or(Format::U8);
  tensor.dims = x.ndim();
  std::copy(x.shape().begin(), x.shape().end(), tensor.shape);
  std::copy(x.strides().begin(), x.strides().end(), tensor.strides);
  return tensor;
}

} // namespace kernels
