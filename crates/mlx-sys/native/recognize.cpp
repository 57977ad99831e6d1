// Patterns in MLX's graph that one kernel can compute.

#include "recognize.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace kernels {

namespace {

bool is_pending(const mx::array& x) {
  return x.has_primitive() && x.status() == mx::array::Status::unscheduled;
}

// A number, rounded to a float dtype.
float rounded(float number, mx::Dtype dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::float16:
      return mx::float16_t(number);
    case mx::Dtype::Val::bfloat16:
      return mx::bfloat16_t(number);
    default:
      return number;
  }
}

// The number that x is, as x has it: a constant of its own dtype or of float32 that may have been cast and broadcast. A
// constant that was rounded to another dtype before is none.
std::optional<float> number_of(mx::array x) {
  auto dtype = x.dtype();
  while (true) {
    if (auto inputs = pending(x, "Broadcast")) {
      x = mx::array((*inputs)[0]);
    } else if (auto inputs = x.dtype() == dtype ? pending(x, "AsType") : nullptr) {
      x = mx::array((*inputs)[0]);
    } else {
      break;
    }
  }
  if (x.size() != 1 || !x.is_available() || (x.dtype() != mx::float32 && x.dtype() != dtype)) {
    return std::nullopt;
  }
  switch (x.dtype().val()) {
    case mx::Dtype::Val::float32:
      return rounded(*x.data<float>(), dtype);
    case mx::Dtype::Val::float16:
      return *x.data<mx::float16_t>();
    case mx::Dtype::Val::bfloat16:
      return *x.data<mx::bfloat16_t>();
    default:
      return std::nullopt;
  }
}

bool is_number(const mx::array& x, float number) {
  return number_of(x) == rounded(number, x.dtype());
}

// The other input of an operation of two inputs, one of which is `number`.
std::optional<mx::array> beside(const mx::array& x, const char* name, float number) {
  if (auto inputs = pending(x, name); inputs && inputs->size() == 2) {
    for (int i : {0, 1}) {
      if (is_number((*inputs)[1 - i], number)) {
        return (*inputs)[i];
      }
    }
  }
  return std::nullopt;
}

bool depends(const mx::array& y, const mx::array& x, int steps, int& looks) {
  if (y.id() == x.id() || looks-- == 0) {
    return true;
  }
  if (steps == 0 || !is_pending(y)) {
    return false;
  }
  return std::any_of(y.inputs().begin(), y.inputs().end(), [&](auto& input) {
    return depends(input, x, steps - 1, looks);
  });
}

// The lowest finite number of a float dtype.
float lowest(mx::Dtype dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::float16:
      return -65504.0f;
    case mx::Dtype::Val::bfloat16:
      return -0x1.fep127f;
    default:
      return std::numeric_limits<float>::lowest();
  }
}

// An array and a number that an operation of two inputs takes in this order.
struct WithNumber {
  mx::array x;
  float number;
};

std::optional<WithNumber> with_number(const mx::array& y, const char* name) {
  auto inputs = pending(y, name);
  if (!inputs || inputs->size() != 2) {
    return std::nullopt;
  }
  auto number = number_of((*inputs)[1]);
  return number ? std::optional(WithNumber{(*inputs)[0], *number}) : std::nullopt;
}

// x of tanh(x / cap) * cap, and the cap.
std::optional<WithNumber> softcapped(const mx::array& scores) {
  auto product = with_number(scores, "Multiply");
  auto tanh = product ? pending(product->x, "Tanh") : nullptr;
  auto share = tanh ? with_number((*tanh)[0], "Divide") : std::nullopt;
  return share && share->number == product->number && share->number > 0.0f ? share : std::nullopt;
}

// Scores that no mask was applied to.
std::optional<Scores> unmasked(const mx::array& scores, Operation product) {
  auto capped = softcapped(scores);
  auto& products = capped ? capped->x : scores;
  if (!pending(products, product)) {
    return std::nullopt;
  }
  return Scores{products, capped ? capped->number : 0.0f, std::nullopt};
}

} // namespace

const std::vector<mx::array>* pending(const mx::array& x, const char* name) {
  // What the caller computes on a GPU stays there.
  if (!is_pending(x) || x.is_tracer() || x.primitive().stream().device != mx::Device::cpu ||
      std::strcmp(x.primitive().name(), name) != 0) {
    return nullptr;
  }
  auto kernel = kernel_node(x);
  return !kernel || kernel->is_single() ? &x.inputs() : nullptr;
}

bool depends(const mx::array& y, const mx::array& x) {
  int looks = 256;
  return depends(y, x, 3, looks);
}

bool is_sigmoid_of(const mx::array& y, const mx::array& x) {
  auto inputs = pending(y, "Sigmoid");
  return inputs && (*inputs)[0].id() == x.id();
}

std::optional<mx::array> gelu_argument(const mx::array& half, const mx::array& share) {
  auto x = beside(half, "Multiply", 0.5f);
  auto bent = beside(share, "Add", 1.0f);
  if (!x || !bent) {
    return std::nullopt;
  }
  auto tanh = pending(*bent, "Tanh");
  if (!tanh) {
    return std::nullopt;
  }
  auto sum = beside((*tanh)[0], "Multiply", 0.7978845608028654f);
  auto parts = sum ? pending(*sum, "Add") : nullptr;
  if (!parts || (*parts)[0].id() != x->id()) {
    return std::nullopt;
  }
  auto cube = beside((*parts)[1], "Multiply", 0.044715f);
  auto power = cube ? pending(*cube, "Power") : nullptr;
  if (!power || (*power)[0].id() != x->id() || !is_number((*power)[1], 3.0f)) {
    return std::nullopt;
  }
  return x;
}

std::optional<Scores> scores_of(const mx::array& weights, Operation product) {
  auto softmax = pending(weights, Operation::softmax);
  if (!softmax) {
    return std::nullopt;
  }
  auto& whole = (*softmax)[0];
  std::optional<Scores> scores;
  if (auto chosen = pending(whole, "Select"); chosen && is_number((*chosen)[2], lowest(whole.dtype()))) {
    if ((scores = unmasked((*chosen)[1], product))) {
      scores->mask = (*chosen)[0];
    }
  } else if (auto parts = pending(whole, "Add"); parts && parts->size() == 2) {
    for (int own : {0, 1}) {
      if (!scores && (scores = unmasked((*parts)[own], product))) {
        scores->mask = (*parts)[1 - own];
      }
    }
  } else {
    scores = unmasked(whole, product);
  }
  if (auto mask = scores && scores->mask ? pending(*scores->mask, "Broadcast") : nullptr) {
    scores->mask = mx::array((*mask)[0]);
  }
  return scores;
}

std::optional<Products> products_of(const mx::array& products) {
  auto factors = pending(products, Operation::matmul);
  if (!factors) {
    return std::nullopt;
  }
  mx::array turned = (*factors)[1];
  // Keys that heads share.
  if (auto shared = pending(turned, "Broadcast")) {
    turned = mx::array((*shared)[0]);
  }
  auto keys = pending(turned, "Transpose");
  if (!keys) {
    return std::nullopt;
  }
  auto axes = static_cast<const mx::Transpose&>(turned.primitive()).state();
  auto dims = int(axes.size());
  std::swap(axes[dims - 2], axes[dims - 1]);
  if (!std::is_sorted(axes.begin(), axes.end())) {
    return std::nullopt;
  }
  auto scaled = with_number((*factors)[0], "Multiply");
  return Products{
      .queries = scaled ? scaled->x : (*factors)[0],
      .keys = (*keys)[0],
      .scale = scaled ? scaled->number : 1.0f};
}

std::optional<QuantizedProducts> quantized_products_of(const mx::array& products) {
  auto parts = pending(products, Operation::quantized_matmul);
  auto product = parts ? kernel_node(products) : nullptr;
  if (!product) {
    return std::nullopt;
  }
  auto& inputs = *parts;
  return QuantizedProducts{
      .queries = inputs[0],
      .keys = inputs[1],
      .key_scales = inputs[2],
      .key_biases = inputs.size() > 3 ? std::optional(inputs[3]) : std::nullopt,
      .settings = product->last().settings.as<QuantizedMatmulSettings>()};
}

} // namespace kernels
