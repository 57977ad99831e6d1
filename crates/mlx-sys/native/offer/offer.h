// Offers: each makes the node of a kernel, or nothing where stock MLX has to run the operation.
//
// An offer checks everything that its kernel relies on: shapes, dtypes and settings.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "../graph.h"
#include "mlx/c/mlx.h"

namespace kernels::offer {

using Offer = std::optional<mx::array>;

// rows.cpp

Offer add(const mx::array& a, const mx::array& b, const mx::Stream& stream);
// Also the last operation of SiLU, SwiGLU, GELU and GeGLU.
Offer multiply(const mx::array& a, const mx::array& b, const mx::Stream& stream);
// silu(gate) * up, or gelu(gate) * up.
Offer gated(const mx::array& gate, const mx::array& up, bool is_gelu, const mx::Stream& stream);
Offer subtract(const mx::array& x, const mx::array& numbers, const mx::Stream& stream);
Offer rms_norm(const mx::array& x, const mx::array* weight, float eps, const mx::Stream& stream);
Offer softmax(const mx::array& x, int axis, const mx::Stream& stream);
Offer logsumexp(const mx::array& x, int axis, bool keep_dims, const mx::Stream& stream);
Offer argmax(const mx::array& x, int axis, bool keep_dims, const mx::Stream& stream);

// products.cpp

// The transpose of a matrix that is computed, at once: a view of it, and no node. Layers transpose their weights each time.
Offer transpose(const mx::array& x, const mx::Stream& stream);
// Also the last operation of soft-capped attention.
Offer matmul(const mx::array& a, const mx::array& b, const mx::Stream& stream);
Offer addmm(
    const mx::array& c,
    const mx::array& a,
    const mx::array& b,
    float alpha,
    float beta,
    const mx::Stream& stream);

// attention.cpp

// `offset` is the position of the first token, where `offsets` is null.
Offer rope(
    const mx::array& x,
    int dims,
    bool traditional,
    mlx_optional_float base,
    float scale,
    int offset,
    const mx::array* offsets,
    const mx::array* periods,
    const mx::Stream& stream);
Offer attention(
    const mx::array& queries,
    const mx::array& keys,
    const mx::array& values,
    float scale,
    const std::string& mask_mode,
    const mx::array* mask,
    const mx::array* sinks,
    const mx::Stream& stream);
// Attention with soft-capped scores, given softmax's weights and the values that they are multiplied with. Nothing where
// the weights are others.
Offer softcapped_attention(const mx::array& weights, const mx::array& values, const mx::Stream& stream);

// quantized.cpp

// How the caller says that a matrix is quantized.
struct QuantizationArguments {
  mlx_optional_int group_size;
  mlx_optional_int bits;
  std::string mode;
};

// Also the last operation of attention over quantized keys and values. The mode may be a block format of GGUF files.
Offer quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const mx::array* biases,
    bool transpose,
    const QuantizationArguments& arguments,
    const mx::Stream& stream);
// Block formats give bfloat16 where the caller names no dtype.
Offer dequantize(
    const mx::array& w,
    const mx::array& scales,
    const mx::array* biases,
    const QuantizationArguments& arguments,
    std::optional<mx::Dtype> dtype,
    const mx::Stream& stream);
std::optional<std::vector<mx::array>>
quantize(const mx::array& w, const QuantizationArguments& arguments, const mx::Stream& stream);

// For all of them.

inline bool is_float(mx::Dtype dtype) {
  return dtype == mx::float32 || dtype == mx::float16 || dtype == mx::bfloat16;
}

inline bool is_float(const mx::array& x) {
  return is_float(x.dtype());
}

// Whether a.shape without its last `a_last` dimensions equals b.shape without its last `b_last`.
inline bool same_start(const mx::array& a, int a_last, const mx::array& b, int b_last) {
  return std::equal(
      a.shape().begin(), a.shape().end() - a_last, b.shape().begin(), b.shape().end() - b_last);
}

} // namespace kernels::offer
