// The types that C++ and Rust exchange. Each is declared here alone: bindgen reads this file and writes the Rust
// declarations, with `///` comments and checks of every size and offset (build/bindings.rs).
#pragma once

#include <stdint.h>

namespace kernels {

/// The most dimensions of an array that a kernel takes.
constexpr int MAX_DIMS = 6;
/// The most inputs of a kernel.
constexpr int MAX_INPUTS = 8;
/// The most outputs of a kernel.
constexpr int MAX_OUTPUTS = 3;
/// `Tensor::dims` of an empty slot.
constexpr int ABSENT = -1;

/// The dtypes of arrays that kernels take.
enum class Format : int32_t { F32, F16, Bf16, U8, U32, I32, Bool };

/// An array in memory.
struct Tensor {
  void* data;
  Format format;
  /// The number of dimensions; `ABSENT` where the slot is empty.
  int32_t dims;
  int32_t shape[MAX_DIMS];
  /// In elements.
  int64_t strides[MAX_DIMS];
};

/// What a kernel reads and writes. operations.def says which array is in which slot.
struct Arrays {
  Tensor inputs[MAX_INPUTS];
  Tensor outputs[MAX_OUTPUTS];
};

// Settings: a struct for each kind of operation.

/// Of operations that need none.
struct NoSettings {};

struct RmsNormSettings {
  float eps;
};

/// The result is `alpha * (a b) + beta * c`.
struct AddmmSettings {
  float alpha;
  float beta;
};

/// Which two numbers of a head are rotated together.
enum class RopeLayout : int32_t {
  /// Number `i` and number `i + dims / 2`.
  Halves,
  /// Number `2 i` and number `2 i + 1`; MLX calls it "traditional".
  Interleaved,
};

struct RopeSettings {
  /// How many numbers of each head are rotated: the first ones.
  int32_t dims;
  RopeLayout layout;
  /// The base of the frequencies; unused where periods are given.
  float base;
  /// Positions are multiplied by it.
  float scale;
  /// The position of the first token; unused where offsets are given.
  int32_t offset;
};

struct AttentionSettings {
  /// Scores are multiplied by it.
  float scale;
  /// The cap of soft-capped scores: each score s becomes `softcap * tanh(s / softcap)`. 0 where they are not capped.
  float softcap;
  /// Whether each query sees only keys up to its own position. Then there is no mask.
  bool is_causal;
};

/// The modes of quantization, by MLX's names, and the block formats of GGUF files.
enum class QuantizationMode : int32_t {
  Affine,
  Mxfp4,
  Mxfp8,
  Nvfp4,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,
};

/// How matrices are quantized.
struct Quantization {
  QuantizationMode mode;
  /// How many numbers of a row share a scale.
  int32_t group_size;
  /// Bits of a number.
  int32_t bits;
};

struct QuantizedMatmulSettings {
  Quantization quantization;
  /// Whether x is multiplied by the transposes of the matrices.
  bool is_transposed;
};

struct QuantizedAttentionSettings {
  /// How keys and values are quantized.
  Quantization quantization;
  /// As in `AttentionSettings`.
  float softcap;
};

/// The operations that have a kernel, in the order of operations.def.
enum class Operation : int32_t {
#define KERNEL(file, operation, name, settings) operation,
#include "operations.def"
#undef KERNEL
};

/// The number of operations.
constexpr int OPERATIONS = 0
#define KERNEL(file, operation, name, settings) +1
#include "operations.def"
#undef KERNEL
    ;

/// Runs a kernel. `settings` is the struct that the operation's row names. Returns null, or an error message that
/// stays valid until the thread's next call.
using Run = const char* (*)(const Arrays* arrays, const void* settings);

/// Lets the calling thread work on kernels of other threads until `until(of)` is true, or until there is no work.
using Help = void (*)(bool (*until)(void* of), void* of);

/// The kernels.
struct Table {
  /// By `Operation`. Stock MLX runs an operation whose entry is null.
  Run kernels[OPERATIONS];
  /// May be null.
  Help help;
};

} // namespace kernels

/// Hands operations that are made from now on to these kernels; to stock MLX where `table` is null. The table must
/// live forever.
extern "C" void mlx_sys_set_kernels(const kernels::Table* table);
