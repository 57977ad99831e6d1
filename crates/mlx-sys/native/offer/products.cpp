// Products of matrices.

#include "offer.h"

namespace kernels::offer {

namespace {

// The shape of a b, where a kernel takes it: b is one matrix, or there are as many as in a.
std::optional<mx::Shape> product_shape(const mx::array& a, const mx::array& b) {
  if (a.ndim() < 2 || b.ndim() < 2 || a.dtype() != b.dtype() || !is_float(a) || a.size() == 0 ||
      b.size() == 0 || a.shape(-1) != b.shape(-2) || (b.ndim() != 2 && !same_start(a, 2, b, 2))) {
    return std::nullopt;
  }
  mx::Shape shape = a.shape();
  shape.back() = b.shape(-1);
  return shape;
}

} // namespace

Offer transpose(const mx::array& x, const mx::Stream& stream) {
  if (!table() || stream.device != mx::Device::cpu || x.ndim() != 2 || x.is_tracer() || !x.is_available()) {
    return std::nullopt;
  }
  mx::array y({x.shape(1), x.shape(0)}, x.dtype(), nullptr, {});
  auto flags = x.flags();
  flags.row_contiguous = x.flags().col_contiguous;
  flags.col_contiguous = x.flags().row_contiguous;
  y.copy_shared_buffer(x, {x.strides(1), x.strides(0)}, flags, x.data_size());
  y.set_status(mx::array::Status::available);
  return y;
}

Offer matmul(const mx::array& a, const mx::array& b, const mx::Stream& stream) {
  if (auto attention = softcapped_attention(a, b, stream)) {
    return attention;
  }
  Kernel<Operation::matmul> kernel(stream, {&a, &b});
  auto shape = kernel ? product_shape(a, b) : std::nullopt;
  if (!shape) {
    return std::nullopt;
  }
  return kernel.node({&a, &b}, std::move(*shape), a.dtype());
}

Offer addmm(
    const mx::array& c,
    const mx::array& a,
    const mx::array& b,
    float alpha,
    float beta,
    const mx::Stream& stream) {
  Kernel<Operation::addmm> kernel(stream, {&a, &b, &c});
  auto shape = kernel ? product_shape(a, b) : std::nullopt;
  if (!shape || c.dtype() != a.dtype()) {
    return std::nullopt;
  }
  bool is_number = c.size() == 1 && c.ndim() <= shape->size();
  bool is_row = c.ndim() == 1 && c.shape(0) == shape->back();
  bool is_matrix = a.ndim() == 2 && b.ndim() == 2 && c.shape() == *shape;
  if (!is_number && !is_row && !is_matrix) {
    return std::nullopt;
  }
  return kernel.node({&a, &b, &c}, std::move(*shape), a.dtype(), {.alpha = alpha, .beta = beta});
}

} // namespace kernels::offer
