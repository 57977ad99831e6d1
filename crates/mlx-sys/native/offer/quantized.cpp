// Operations on quantized matrices.

#include "../recognize.h"
#include "offer.h"

namespace kernels::offer {

namespace {

struct Mode {
  const char* name;
  // MLX's settings where the caller names none.
  Quantization usual;
  // For block formats: elements of a block, and bytes of its scales. Stock MLX does not have these modes.
  int block = 0;
  int scale_bytes = 0;
};

constexpr Mode MODES[] = {
    {"affine", {QuantizationMode::Affine, 64, 4}},
    {"mxfp4", {QuantizationMode::Mxfp4, 32, 4}},
    {"mxfp8", {QuantizationMode::Mxfp8, 32, 8}},
    {"nvfp4", {QuantizationMode::Nvfp4, 16, 4}},
    {"Q4_0", {QuantizationMode::Q4_0, 32, 4}, 32, 2},
    {"Q4_1", {QuantizationMode::Q4_1, 32, 4}, 32, 4},
    {"Q5_0", {QuantizationMode::Q5_0, 32, 5}, 32, 2},
    {"Q5_1", {QuantizationMode::Q5_1, 32, 5}, 32, 4},
    {"Q8_0", {QuantizationMode::Q8_0, 32, 8}, 32, 2},
    {"Q2_K", {QuantizationMode::Q2_K, 16, 2}, 256, 20},
    {"Q3_K", {QuantizationMode::Q3_K, 16, 3}, 256, 14},
    {"Q4_K", {QuantizationMode::Q4_K, 32, 4}, 256, 16},
    {"Q5_K", {QuantizationMode::Q5_K, 32, 5}, 256, 16},
    {"Q6_K", {QuantizationMode::Q6_K, 16, 6}, 256, 18},
};

// By `QuantizationMode`, since the rows have its order.
const Mode& mode_of(const Quantization& q) {
  return MODES[static_cast<int>(q.mode)];
}

bool is_blocks(const Quantization& q) {
  return mode_of(q).block != 0;
}

// The length of a row whose scales have this shape; nothing where they are not the scales of whole blocks.
std::optional<int> columns_of(const Quantization& q, const mx::array& scales) {
  if (!is_blocks(q)) {
    return scales.shape(-1) * q.group_size;
  }
  auto& mode = mode_of(q);
  return scales.shape(-1) % mode.scale_bytes == 0
      ? std::optional(scales.shape(-1) / mode.scale_bytes * mode.block)
      : std::nullopt;
}

bool is_affine(const Quantization& q) {
  bool has_group_size = q.group_size == 32 || q.group_size == 64 || q.group_size == 128;
  return has_group_size && q.bits >= 2 && q.bits <= 8 && q.bits != 7;
}

// What the caller asks for, where MLX has such a mode. In other modes than affine, sizes other than the usual ones are
// MLX's to refuse.
std::optional<Quantization> asked_for(const QuantizationArguments& arguments) {
  for (auto& mode : MODES) {
    if (arguments.mode != mode.name) {
      continue;
    }
    auto& usual = mode.usual;
    Quantization q = usual;
    q.group_size = arguments.group_size.has_value ? arguments.group_size.value : usual.group_size;
    q.bits = arguments.bits.has_value ? arguments.bits.value : usual.bits;
    bool is_known = q.mode == QuantizationMode::Affine
        ? is_affine(q)
        : q.group_size == usual.group_size && q.bits == usual.bits;
    return is_known ? std::optional(q) : std::nullopt;
  }
  return std::nullopt;
}

// How these matrices are quantized, where kernels take them.
std::optional<Quantization> quantization(
    const QuantizationArguments& arguments,
    const mx::array& w,
    const mx::array& scales,
    const mx::array* biases) {
  auto q = asked_for(arguments);
  if (!q) {
    return std::nullopt;
  }
  bool are_parts = q->mode == QuantizationMode::Affine
      ? biases && biases->shape() == scales.shape() && biases->dtype() == scales.dtype() && is_float(scales)
      : !biases && scales.dtype() == mx::uint8;
  if (!are_parts || w.dtype() != mx::uint32 || w.ndim() < 2 || w.ndim() != scales.ndim() || w.size() == 0 ||
      !same_start(w, 1, scales, 1)) {
    return std::nullopt;
  }
  auto columns = columns_of(*q, scales);
  return columns && int64_t(w.shape(-1)) * 32 == int64_t(*columns) * q->bits ? q : std::nullopt;
}

bool operator==(const Quantization& a, const Quantization& b) {
  return a.mode == b.mode && a.group_size == b.group_size && a.bits == b.bits;
}

// Attention, given softmax's weights and the quantized values that they are multiplied with: where the weights come
// from products with keys that are quantized like the values. Shapes are [B, H, L, _], or [B, H, G, L, _] with one head
// of keys and values for G heads of queries.
Offer quantized_attention(
    const mx::array& weights,
    const mx::array& values,
    const mx::array& scales,
    const mx::array* biases,
    const Quantization& quantization,
    const mx::Shape& shape,
    const mx::Stream& stream) {
  if (weights.ndim() < 4 || weights.ndim() > 5) {
    return std::nullopt;
  }
  auto scores = scores_of(weights, Operation::quantized_matmul);
  auto products = scores ? quantized_products_of(scores->products) : std::nullopt;
  if (!products || !products->settings.is_transposed ||
      !(products->settings.quantization == quantization)) {
    return std::nullopt;
  }
  auto &queries = products->queries, &keys = products->keys;
  auto dims = queries.ndim();
  bool are_heads = keys.ndim() == dims && values.ndim() == dims && same_start(keys, 1, values, 1) &&
      keys.shape(0) == queries.shape(0) &&
      (keys.shape(1) == queries.shape(1) || (dims != 5 && keys.shape(1) == 1)) &&
      (dims != 5 || keys.shape(2) == 1);
  if (!are_heads) {
    return std::nullopt;
  }
  auto* mask = scores->mask ? &*scores->mask : nullptr;
  Kernel<Operation::quantized_attention> kernel(stream, {&queries, &keys, &values, &scales, mask});
  if (!kernel) {
    return std::nullopt;
  }
  auto* key_biases = products->key_biases ? &*products->key_biases : nullptr;
  return kernel.node(
      {&queries, &keys, &products->key_scales, key_biases, &values, &scales, biases, mask},
      shape,
      queries.dtype(),
      {.quantization = quantization, .softcap = scores->softcap});
}

} // namespace

Offer quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const mx::array* biases,
    bool transpose,
    const QuantizationArguments& arguments,
    const mx::Stream& stream) {
  auto q = quantization(arguments, w, scales, biases);
  // The node of a product with blocks has a gradient of its own, so x may be traced.
  Kernel<Operation::quantized_matmul> kernel =
      q && is_blocks(*q) ? Kernel<Operation::quantized_matmul>(stream, {&w, &scales})
                         : Kernel<Operation::quantized_matmul>(stream, {&x, &w, &scales, biases});
  if (!kernel || !q || x.ndim() < 2 || int(x.ndim()) > MAX_DIMS || x.size() == 0 || !is_float(x) || (w.ndim() != 2 && w.ndim() != x.ndim())) {
    return std::nullopt;
  }
  // A stack of matrices: one for each matrix of x, or one for all along a dimension.
  for (int i = 0; i < int(w.ndim()) - 2; i++) {
    if (w.shape(i) != x.shape(i) && w.shape(i) != 1) {
      return std::nullopt;
    }
  }
  if (biases && scales.dtype() != x.dtype()) {
    return std::nullopt;
  }
  int columns = *columns_of(*q, scales);
  int rows = w.shape(-2);
  if (x.shape(-1) != (transpose ? columns : rows)) {
    return std::nullopt;
  }
  mx::Shape shape = x.shape();
  shape.back() = transpose ? rows : columns;
  if (!transpose && !is_blocks(*q)) {
    if (auto attention = quantized_attention(x, w, scales, biases, *q, shape, stream)) {
      return attention;
    }
  }
  return kernel.node(
      {&x, &w, &scales, biases},
      std::move(shape),
      x.dtype(),
      {.quantization = *q, .is_transposed = transpose});
}

Offer dequantize(
    const mx::array& w,
    const mx::array& scales,
    const mx::array* biases,
    const QuantizationArguments& arguments,
    std::optional<mx::Dtype> dtype,
    const mx::Stream& stream) {
  Kernel<Operation::dequantize> kernel(stream, {&w, &scales, biases});
  auto q = kernel ? quantization(arguments, w, scales, biases) : std::nullopt;
  // Stock MLX decodes the modes of small floats, and converts to other dtypes than that of the scales.
  if (!q || (!is_blocks(*q) && (!biases || dtype))) {
    return std::nullopt;
  }
  auto result = is_blocks(*q) ? dtype.value_or(mx::bfloat16) : scales.dtype();
  if (!is_float(result)) {
    return std::nullopt;
  }
  mx::Shape shape = w.shape();
  shape.back() = *columns_of(*q, scales);
  return kernel.node({&w, &scales, biases}, std::move(shape), result, *q);
}

std::optional<std::vector<mx::array>>
quantize(const mx::array& w, const QuantizationArguments& arguments, const mx::Stream& stream) {
  Kernel<Operation::quantize> kernel(stream, {&w});
  auto q = asked_for(arguments);
  if (!kernel || !q || q->mode != QuantizationMode::Affine || w.ndim() < 2 || w.size() == 0 ||
      !is_float(w) || w.shape(-1) % q->group_size != 0) {
    return std::nullopt;
  }
  auto packed = w.shape();
  packed.back() = w.shape(-1) / 32 * q->bits;
  auto groups = w.shape();
  groups.back() = w.shape(-1) / q->group_size;
  return kernel.nodes({&w}, {packed, groups, groups}, {mx::uint32, w.dtype(), w.dtype()}, *q);
}

} // namespace kernels::offer
