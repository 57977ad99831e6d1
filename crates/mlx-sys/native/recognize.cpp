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

const KernelNode* kernel_node(const mx::array& x) {
  return dynamic_cast<const KernelNode*>(&x.primitive());
}

// Whether x is this number, given as a constant of its own dtype or of float32 that may have been cast and
// broadcast. A constant that was rounded to another dtype before is another number.
bool is_number(mx::array x, float number) {
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
    return false;
  }
  switch (x.dtype().val()) {
    case mx::Dtype::Val::float32:
      return *x.data<float>() == number;
    case mx::Dtype::Val::float16:
      return *x.data<mx::float16_t>() == mx::float16_t(number);
    case mx::Dtype::Val::bfloat16:
      return *x.data<mx::bfloat16_t>() == mx::bfloat16_t(number);
    default:
      return false;
  }
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

// Takes a mask off the scores that it was applied to, and returns it.
std::optional<mx::array> take_mask(mx::array& scores) {
  std::optional<mx::array> mask;
  if (auto chosen = pending(scores, "Select"); chosen && is_number((*chosen)[2], lowest(scores.dtype()))) {
    mask = (*chosen)[0];
    scores = mx::array((*chosen)[1]);
  } else if (auto parts = pending(scores, "Add"); parts && parts->size() == 2) {
    int own = pending((*parts)[0], Operation::quantized_matmul) ? 0 : 1;
    mask = (*parts)[1 - own];
    scores = mx::array((*parts)[own]);
  }
  if (auto whole = mask ? pending(*mask, "Broadcast") : nullptr) {
    mask = mx::array((*whole)[0]);
  }
  return mask;
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

std::optional<QuantizedScores> quantized_scores(const mx::array& weights) {
  auto softmax = pending(weights, Operation::softmax);
  if (!softmax) {
    return std::nullopt;
  }
  mx::array scores = (*softmax)[0];
  auto mask = take_mask(scores);
  auto parts = pending(scores, Operation::quantized_matmul);
  auto product = parts ? kernel_node(scores) : nullptr;
  if (!product) {
    return std::nullopt;
  }
  auto& inputs = *parts;
  return QuantizedScores{
      .queries = inputs[0],
      .keys = inputs[1],
      .key_scales = inputs[2],
      .key_biases = inputs.size() > 3 ? std::optional(inputs[3]) : std::nullopt,
      .mask = std::move(mask),
      .settings = product->last().settings.as<QuantizedMatmulSettings>()};
}

} // namespace kernels
