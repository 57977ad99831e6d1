// Operations on heads: rotation and attention.

#include "../recognize.h"
#include "offer.h"

namespace kernels::offer {

namespace {

bool are_heads(const mx::array& queries, const mx::array& keys, const mx::array& values) {
  for (auto x : {&queries, &keys, &values}) {
    if (x->ndim() != 4 || x->size() == 0 || x->dtype() != queries.dtype() ||
        x->shape(0) != queries.shape(0)) {
      return false;
    }
  }
  return keys.shape(1) == values.shape(1) && keys.shape(2) == values.shape(2) &&
      keys.shape(3) == queries.shape(3) && queries.shape(1) % keys.shape(1) == 0;
}

// The same where heads that share keys and values may be a dimension of their own: [B, H, G, L, D] for queries,
// [B, H, 1, S, D] for keys and values.
bool are_grouped_heads(const mx::array& queries, const mx::array& keys, const mx::array& values) {
  if (queries.ndim() == 4) {
    return are_heads(queries, keys, values) &&
        (keys.shape(1) == queries.shape(1) || keys.shape(1) == 1);
  }
  for (auto x : {&queries, &keys, &values}) {
    if (x->ndim() != 5 || x->size() == 0 || x->dtype() != queries.dtype() ||
        !std::equal(x->shape().begin(), x->shape().begin() + 2, queries.shape().begin())) {
      return false;
    }
  }
  return keys.shape(2) == 1 && values.shape(2) == 1 && keys.shape(3) == values.shape(3) &&
      keys.shape(4) == queries.shape(4);
}

// Whether the mask can be broadcast to the shape of the scores.
bool is_mask(const mx::array& mask, const mx::Shape& scores, mx::Dtype dtype) {
  if (mask.ndim() > scores.size() || (mask.dtype() != mx::bool_ && mask.dtype() != dtype)) {
    return false;
  }
  for (int i = 1; i <= int(mask.ndim()); i++) {
    if (mask.shape(-i) != 1 && mask.shape(-i) != scores[scores.size() - i]) {
      return false;
    }
  }
  return true;
}

// Whether MLX takes this mode with or without a mask. With a mask mlx-rs names the mode "array" or none.
bool is_mask_mode(const std::string& mode, bool has_mask) {
  if (mode == "causal") {
    return !has_mask;
  }
  return mode == "array" ? has_mask : mode.empty();
}

} // namespace

Offer rope(
    const mx::array& x,
    int dims,
    bool traditional,
    mlx_optional_float base,
    float scale,
    int offset,
    const mx::array* offsets,
    const mx::array* periods,
    const mx::Stream& stream) {
  Kernel<Operation::rope> kernel(stream, {&x, offsets, periods});
  if (!kernel || x.ndim() != 4 || x.size() == 0 || !is_float(x) || dims <= 0 || dims % 2 != 0 ||
      dims > x.shape(-1) || base.has_value == (periods != nullptr)) {
    return std::nullopt;
  }
  if (offsets &&
      (offsets->dtype() != mx::int32 || offsets->ndim() > 1 ||
       (offsets->size() != 1 && int(offsets->size()) != x.shape(0)))) {
    return std::nullopt;
  }
  if (periods &&
      (periods->dtype() != mx::float32 || periods->ndim() != 1 || periods->shape(0) != dims / 2)) {
    return std::nullopt;
  }
  RopeSettings settings{
      .dims = dims,
      .layout = traditional ? RopeLayout::Interleaved : RopeLayout::Halves,
      .base = base.value,
      .scale = scale,
      .offset = offset};
  return kernel.node({&x, offsets, periods}, x.shape(), x.dtype(), settings);
}

Offer attention(
    const mx::array& queries,
    const mx::array& keys,
    const mx::array& values,
    float scale,
    const std::string& mask_mode,
    const mx::array* mask,
    const mx::array* sinks,
    const mx::Stream& stream) {
  Kernel<Operation::attention> kernel(stream, {&queries, &keys, &values, mask, sinks});
  if (!kernel || !is_float(queries) || !are_heads(queries, keys, values) ||
      !is_mask_mode(mask_mode, mask != nullptr)) {
    return std::nullopt;
  }
  mx::Shape scores{queries.shape(0), queries.shape(1), queries.shape(2), keys.shape(2)};
  if (mask && !is_mask(*mask, scores, queries.dtype())) {
    return std::nullopt;
  }
  if (sinks &&
      (sinks->ndim() != 1 || sinks->shape(0) != queries.shape(1) || sinks->dtype() != queries.dtype())) {
    return std::nullopt;
  }
  mx::Shape shape = queries.shape();
  shape.back() = values.shape(-1);
  return kernel.node(
      {&queries, &keys, &values, mask, sinks},
      std::move(shape),
      queries.dtype(),
      {.scale = scale, .softcap = 0.0f, .is_causal = mask_mode == "causal"},
      Layout::heads_inside);
}

Offer softcapped_attention(const mx::array& weights, const mx::array& values, const mx::Stream& stream) {
  if (weights.ndim() < 4) {
    return std::nullopt;
  }
  auto scores = scores_of(weights, Operation::matmul);
  auto products = scores && scores->softcap > 0.0f ? products_of(scores->products) : std::nullopt;
  if (!products || !are_grouped_heads(products->queries, products->keys, values)) {
    return std::nullopt;
  }
  auto &queries = products->queries, &keys = products->keys;
  auto* mask = scores->mask ? &*scores->mask : nullptr;
  Kernel<Operation::attention> kernel(stream, {&queries, &keys, &values, mask});
  if (!kernel || !is_float(queries) || (mask && !is_mask(*mask, weights.shape(), queries.dtype()))) {
    return std::nullopt;
  }
  mx::Shape shape = queries.shape();
  shape.back() = values.shape(-1);
  return kernel.node(
      {&queries, &keys, &values, mask, nullptr},
      std::move(shape),
      queries.dtype(),
      {.scale = products->scale, .softcap = scores->softcap},
      Layout::heads_inside);
}

} // namespace kernels::offer
