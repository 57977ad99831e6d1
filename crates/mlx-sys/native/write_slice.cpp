// Writing a part of an array in place, as caches do for each token.

#include "write_slice.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "mlx/primitives.h"

namespace kernels {

namespace {

// Copies an array to one of the same shape, from the axis `axis` on.
void copy(const char* from, const Tensor& x, char* to, const Tensor& y, size_t element, int axis) {
  if (axis == x.dims) {
    std::memcpy(to, from, element);
    return;
  }
  bool is_row = axis == x.dims - 1 && x.strides[axis] == 1 && y.strides[axis] == 1;
  if (is_row) {
    std::memcpy(to, from, element * x.shape[axis]);
    return;
  }
  for (int i = 0; i < x.shape[axis]; i++) {
    copy(from, x, to, y, element, axis + 1);
    from += x.strides[axis] * int64_t(element);
    to += y.strides[axis] * int64_t(element);
  }
}

struct CopySettings {
  size_t element;
};

const char* run(const Arrays* arrays, const void* settings) {
  auto &x = arrays->inputs[0], &y = arrays->outputs[0];
  auto element = static_cast<const CopySettings*>(settings)->element;
  copy(static_cast<const char*>(x.data), x, static_cast<char*>(y.data), y, element, 0);
  return nullptr;
}

} // namespace

bool write_slice(mx::array& node, Batch& batch) {
  if (std::string_view(node.primitive().name()) != "SliceUpdate") {
    return false;
  }
  auto &whole = node.inputs()[0], &part = node.inputs()[1];
  if (part.size() == 0 || int(whole.ndim()) > MAX_DIMS || part.ndim() != whole.ndim() ||
      part.dtype() != whole.dtype() || !whole.flags().contiguous || whole.size() != whole.data_size()) {
    return false;
  }
  if (!whole.is_donatable()) {
    batch.finish_until([&] { return whole.is_donatable(); });
  }
  if (!whole.is_donatable()) {
    return false;
  }
  node.copy_shared_buffer(whole);
  auto [reduction, start, end, steps] = static_cast<const mx::SliceUpdate&>(node.primitive()).state();
  CopySettings settings{mx::size_of(part.dtype())};
  Call call(run, AnySettings(settings));
  call.arrays.inputs[0] = tensor_of(part);
  auto& written = call.arrays.outputs[0];
  written = tensor_of(node);
  int64_t offset = 0;
  for (int i = 0; i < written.dims; i++) {
    offset += start[i] * written.strides[i];
    written.shape[i] = part.shape(i);
    written.strides[i] *= steps[i];
  }
  written.data = static_cast<char*>(written.data) + offset * int64_t(settings.element);
  batch.add(std::move(call));
  return true;
}

} // namespace kernels
