// The functions of mlx-c that are replaced (replaced.def): each makes the node of a kernel where there is an offer, and
// calls the original otherwise.
//
// The functions that wait for arrays help with kernels first.

#include <exception>
#include <optional>
#include <span>
#include <vector>

#include "mlx/c/error.h"
#include "mlx/c/mlx.h"
#include "mlx/c/private/mlx.h"
#include "evaluate.h"
#include "offer/offer.h"
#include "wait.h"

namespace mx = mlx::core;
namespace offer = kernels::offer;

extern "C" {
#define REPLACED(function) decltype(function) stock_##function;
#include "replaced.def"
#undef REPLACED
}

namespace {

// An argument that mlx-c lets be null.
const mx::array* maybe(mlx_array x) {
  return static_cast<const mx::array*>(x.ctx);
}

void set(mlx_array& res, mx::array&& y) {
  mlx_array_set_(res, std::move(y));
}

void set(mlx_vector_array& res, std::vector<mx::array>&& y) {
  mlx_vector_array_set_(res, std::move(y));
}

// Gives the caller what `offer` makes; calls the original where it makes nothing.
template <typename Result, typename Offer, typename Original>
int offered(Result* res, Offer offer, Original original) {
  try {
    if (auto y = offer()) {
      set(*res, std::move(*y));
      return 0;
    }
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
  return original();
}

// Evaluates the arrays in our way where that is possible, then calls the original, which does the rest. `helps` says whether
// the original waits for the arrays: then this thread works on kernels until they are computed.
template <typename Arrays, typename Original>
int evaluated(Arrays arrays, bool helps, Original original) {
  try {
    if (kernels::table()) {
      std::span<const mx::array> all = arrays();
      kernels::evaluate(all);
      if (helps) {
        kernels::help_with(all);
      }
    }
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
  return original();
}

} // namespace

extern "C" {

int mlx_async_eval(const mlx_vector_array outputs) {
  return evaluated(
      [&] { return std::span<const mx::array>(mlx_vector_array_get_(outputs)); },
      false,
      [&] { return stock_mlx_async_eval(outputs); });
}

// mlx-rs calls one of these two before it looks at numbers.

int mlx_eval(const mlx_vector_array outputs) {
  return evaluated(
      [&] { return std::span<const mx::array>(mlx_vector_array_get_(outputs)); },
      true,
      [&] { return stock_mlx_eval(outputs); });
}

int mlx_array_eval(mlx_array arr) {
  return evaluated(
      [&] { return std::span<const mx::array>(&mlx_array_get_(arr), 1); },
      true,
      [&] { return stock_mlx_array_eval(arr); });
}

int mlx_add(mlx_array* res, const mlx_array a, const mlx_array b, const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::add(mlx_array_get_(a), mlx_array_get_(b), mlx_stream_get_(s)); },
      [&] { return stock_mlx_add(res, a, b, s); });
}

int mlx_multiply(mlx_array* res, const mlx_array a, const mlx_array b, const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::multiply(mlx_array_get_(a), mlx_array_get_(b), mlx_stream_get_(s)); },
      [&] { return stock_mlx_multiply(res, a, b, s); });
}

int mlx_subtract(mlx_array* res, const mlx_array a, const mlx_array b, const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::subtract(mlx_array_get_(a), mlx_array_get_(b), mlx_stream_get_(s)); },
      [&] { return stock_mlx_subtract(res, a, b, s); });
}

int mlx_fast_rms_norm(
    mlx_array* res,
    const mlx_array x,
    const mlx_array weight,
    float eps,
    const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::rms_norm(mlx_array_get_(x), maybe(weight), eps, mlx_stream_get_(s)); },
      [&] { return stock_mlx_fast_rms_norm(res, x, weight, eps, s); });
}

// The kernel computes in float32 either way, which is what `precise` asks for.
int mlx_softmax_axis(mlx_array* res, const mlx_array a, int axis, bool precise, const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::softmax(mlx_array_get_(a), axis, mlx_stream_get_(s)); },
      [&] { return stock_mlx_softmax_axis(res, a, axis, precise, s); });
}

int mlx_logsumexp_axis(mlx_array* res, const mlx_array a, int axis, bool keepdims, const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::logsumexp(mlx_array_get_(a), axis, keepdims, mlx_stream_get_(s)); },
      [&] { return stock_mlx_logsumexp_axis(res, a, axis, keepdims, s); });
}

int mlx_argmax_axis(mlx_array* res, const mlx_array a, int axis, bool keepdims, const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::argmax(mlx_array_get_(a), axis, keepdims, mlx_stream_get_(s)); },
      [&] { return stock_mlx_argmax_axis(res, a, axis, keepdims, s); });
}

int mlx_transpose(mlx_array* res, const mlx_array a, const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::transpose(mlx_array_get_(a), mlx_stream_get_(s)); },
      [&] { return stock_mlx_transpose(res, a, s); });
}

int mlx_matmul(mlx_array* res, const mlx_array a, const mlx_array b, const mlx_stream s) {
  return offered(
      res,
      [&] { return offer::matmul(mlx_array_get_(a), mlx_array_get_(b), mlx_stream_get_(s)); },
      [&] { return stock_mlx_matmul(res, a, b, s); });
}

int mlx_addmm(
    mlx_array* res,
    const mlx_array c,
    const mlx_array a,
    const mlx_array b,
    float alpha,
    float beta,
    const mlx_stream s) {
  return offered(
      res,
      [&] {
        return offer::addmm(
            mlx_array_get_(c), mlx_array_get_(a), mlx_array_get_(b), alpha, beta, mlx_stream_get_(s));
      },
      [&] { return stock_mlx_addmm(res, c, a, b, alpha, beta, s); });
}

int mlx_fast_rope(
    mlx_array* res,
    const mlx_array x,
    int dims,
    bool traditional,
    mlx_optional_float base,
    float scale,
    int offset,
    const mlx_array freqs,
    const mlx_stream s) {
  return offered(
      res,
      [&] {
        return offer::rope(
            mlx_array_get_(x),
            dims,
            traditional,
            base,
            scale,
            offset,
            nullptr,
            maybe(freqs),
            mlx_stream_get_(s));
      },
      [&] { return stock_mlx_fast_rope(res, x, dims, traditional, base, scale, offset, freqs, s); });
}

int mlx_fast_rope_dynamic(
    mlx_array* res,
    const mlx_array x,
    int dims,
    bool traditional,
    mlx_optional_float base,
    float scale,
    const mlx_array offset,
    const mlx_array freqs,
    const mlx_stream s) {
  return offered(
      res,
      [&] {
        return offer::rope(
            mlx_array_get_(x),
            dims,
            traditional,
            base,
            scale,
            0,
            &mlx_array_get_(offset),
            maybe(freqs),
            mlx_stream_get_(s));
      },
      [&] { return stock_mlx_fast_rope_dynamic(res, x, dims, traditional, base, scale, offset, freqs, s); });
}

int mlx_fast_scaled_dot_product_attention(
    mlx_array* res,
    const mlx_array queries,
    const mlx_array keys,
    const mlx_array values,
    float scale,
    const char* mask_mode,
    const mlx_array mask,
    const mlx_array sinks,
    bool force_fused,
    const mlx_stream s) {
  return offered(
      res,
      [&] {
        return offer::attention(
            mlx_array_get_(queries),
            mlx_array_get_(keys),
            mlx_array_get_(values),
            scale,
            mask_mode ? mask_mode : "",
            maybe(mask),
            maybe(sinks),
            mlx_stream_get_(s));
      },
      [&] {
        return stock_mlx_fast_scaled_dot_product_attention(
            res, queries, keys, values, scale, mask_mode, mask, sinks, force_fused, s);
      });
}

int mlx_quantized_matmul(
    mlx_array* res,
    const mlx_array x,
    const mlx_array w,
    const mlx_array scales,
    const mlx_array biases,
    bool transpose,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const char* mode,
    const mlx_stream s) {
  return offered(
      res,
      [&] {
        return offer::quantized_matmul(
            mlx_array_get_(x),
            mlx_array_get_(w),
            mlx_array_get_(scales),
            maybe(biases),
            transpose,
            {group_size, bits, mode},
            mlx_stream_get_(s));
      },
      [&] {
        return stock_mlx_quantized_matmul(res, x, w, scales, biases, transpose, group_size, bits, mode, s);
      });
}

int mlx_dequantize(
    mlx_array* res,
    const mlx_array w,
    const mlx_array scales,
    const mlx_array biases,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const char* mode,
    const mlx_array global_scale,
    mlx_optional_dtype dtype,
    const mlx_stream s) {
  return offered(
      res,
      [&]() -> offer::Offer {
        if (maybe(global_scale)) {
          return std::nullopt;
        }
        return offer::dequantize(
            mlx_array_get_(w),
            mlx_array_get_(scales),
            maybe(biases),
            {group_size, bits, mode},
            dtype.has_value ? std::optional(mlx_dtype_to_cpp(dtype.value)) : std::nullopt,
            mlx_stream_get_(s));
      },
      [&] {
        return stock_mlx_dequantize(res, w, scales, biases, group_size, bits, mode, global_scale, dtype, s);
      });
}

int mlx_quantize(
    mlx_vector_array* res,
    const mlx_array w,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const char* mode,
    const mlx_array global_scale,
    const mlx_stream s) {
  return offered(
      res,
      [&]() -> std::optional<std::vector<mx::array>> {
        if (maybe(global_scale)) {
          return std::nullopt;
        }
        return offer::quantize(mlx_array_get_(w), {group_size, bits, mode}, mlx_stream_get_(s));
      },
      [&] { return stock_mlx_quantize(res, w, group_size, bits, mode, global_scale, s); });
}

} // extern "C"
