// Operations on numbers and on rows: sums, products, gates, norms, softmax and reductions.

#include "../fuse.h"
#include "../recognize.h"
#include "offer.h"

namespace kernels::offer {

namespace {

// For fewer elements MLX's own loop is done before a kernel has begun.
constexpr size_t WORTH_IT = 128;

bool are_alike(const mx::array& a, const mx::array& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() && is_float(a);
}

bool is_last_axis(const mx::array& x, int axis) {
  return x.ndim() > 0 && (axis == -1 || axis == int(x.ndim()) - 1);
}

bool is_worth_a_kernel(const mx::array& x, int axis) {
  return is_last_axis(x, axis) && is_float(x) && x.size() >= WORTH_IT;
}

// What the product of a and b stands for: an operation on these inputs.
template <Operation OPERATION>
Offer product(Slots inputs, const mx::array& a, const mx::array& b, const mx::Stream& stream) {
  // Looked up for each operation, since another thread may have turned kernels off.
  Kernel<OPERATION> kernel(stream, {&a, &b});
  if (!kernel) {
    return std::nullopt;
  }
  return kernel.node(inputs, a.shape(), a.dtype());
}

// One number for each row.
template <Operation OPERATION>
Offer reduced(const mx::array& x, int axis, bool keep_dims, mx::Dtype dtype, const mx::Stream& stream) {
  Kernel<OPERATION> kernel(stream, {&x});
  if (!kernel || !is_worth_a_kernel(x, axis)) {
    return std::nullopt;
  }
  mx::Shape shape = x.shape();
  if (keep_dims) {
    shape.back() = 1;
  } else {
    shape.pop_back();
  }
  return kernel.node({&x}, std::move(shape), dtype);
}

} // namespace

Offer add(const mx::array& a, const mx::array& b, const mx::Stream& stream) {
  Kernel<Operation::add> kernel(stream, {&a, &b});
  if (!kernel || !are_alike(a, b) || a.size() == 0) {
    return std::nullopt;
  }
  return fused_sum(stream, kernel.step(), a, b);
}

Offer multiply(const mx::array& a, const mx::array& b, const mx::Stream& stream) {
  if (!Kernel<Operation::multiply>(stream, {&a, &b}) || !are_alike(a, b) || a.size() == 0) {
    return std::nullopt;
  }
  if (is_sigmoid_of(b, a)) {
    return product<Operation::silu>({&a}, a, b, stream);
  }
  if (auto gate = pending(a, Operation::silu)) {
    return product<Operation::swiglu>({&(*gate)[0], &b}, a, b, stream);
  }
  if (auto x = gelu_argument(a, b)) {
    return product<Operation::gelu>({&*x}, a, b, stream);
  }
  if (auto gate = pending(a, Operation::gelu)) {
    return product<Operation::geglu>({&(*gate)[0], &b}, a, b, stream);
  }
  if (a.size() < WORTH_IT) {
    return std::nullopt;
  }
  return product<Operation::multiply>({&a, &b}, a, b, stream);
}

Offer gated(const mx::array& gate, const mx::array& up, bool is_gelu, const mx::Stream& stream) {
  if (!are_alike(gate, up) || gate.size() == 0) {
    return std::nullopt;
  }
  return is_gelu ? product<Operation::geglu>({&gate, &up}, gate, up, stream)
                 : product<Operation::swiglu>({&gate, &up}, gate, up, stream);
}

// The kernel is called once for each row, and so takes long rows only.
Offer subtract(const mx::array& x, const mx::array& numbers, const mx::Stream& stream) {
  Kernel<Operation::subtract_from_rows> kernel(stream, {&x, &numbers});
  if (!kernel || x.ndim() == 0 || x.ndim() != numbers.ndim() || numbers.shape(-1) != 1 ||
      x.dtype() != numbers.dtype() || !is_float(x) || size_t(x.shape(-1)) < WORTH_IT || x.size() == 0 ||
      !same_start(x, 1, numbers, 1)) {
    return std::nullopt;
  }
  return kernel.node({&x, &numbers}, x.shape(), x.dtype());
}

Offer rms_norm(const mx::array& x, const mx::array* weight, float eps, const mx::Stream& stream) {
  Kernel<Operation::rms_norm> kernel(stream, {&x, weight});
  if (!kernel || x.ndim() == 0 || x.size() == 0 || !is_float(x) ||
      (weight &&
       (weight->ndim() != 1 || weight->shape(0) != x.shape(-1) || weight->dtype() != x.dtype()))) {
    return std::nullopt;
  }
  return kernel.node({&x, weight}, x.shape(), x.dtype(), {.eps = eps});
}

Offer softmax(const mx::array& x, int axis, const mx::Stream& stream) {
  Kernel<Operation::softmax> kernel(stream, {&x});
  if (!kernel || !is_worth_a_kernel(x, axis)) {
    return std::nullopt;
  }
  return kernel.node({&x}, x.shape(), x.dtype());
}

Offer logsumexp(const mx::array& x, int axis, bool keep_dims, const mx::Stream& stream) {
  return reduced<Operation::logsumexp>(x, axis, keep_dims, x.dtype(), stream);
}

Offer argmax(const mx::array& x, int axis, bool keep_dims, const mx::Stream& stream) {
  return reduced<Operation::argmax>(x, axis, keep_dims, mx::uint32, stream);
}

} // namespace kernels::offer
