// What C++ and Rust say to each other about kernels: src/cpu_kernels/ has the same declarations.
#pragma once

#include <cstdint>

namespace kernels {

constexpr int MAX_DIMS = 6;

// The formats that kernels know, in the order of `Format` in Rust.
enum class Format : int32_t { f32, f16, bf16, u8, u32, i32, boolean };

// An array in memory. Strides are in elements. An array that is not there has no data and -1 dimensions.
struct Tensor {
  void* data;
  Format format;
  int32_t dims;
  int32_t shape[MAX_DIMS];
  int64_t strides[MAX_DIMS];
};

// What else an operation needs to know; each uses some of them.
struct Settings {
  float a;
  float b;
  int32_t i;
  int32_t j;
  int32_t k;
  int32_t l;
};

// Returns null, or what went wrong, which the caller does not free and reads before the thread's next call.
// The tensors are the inputs, then the output.
using Run = const char* (*)(const Tensor* tensors, const Settings* settings);

// Lets the calling thread work on kernels that other threads run, until `until` answers yes. Returns earlier where
// there is nothing to do.
using Help = void (*)(bool (*until)(void* of), void* of);

struct Table {
  Run rms_norm;
  Run rope;
  Run attention;
  Run matmul;
  Run addmm;
  Run quantized_matmul;
  Run quantized_attention;
  Run dequantize;
  Run quantize;
  Run softmax;
  Run logsumexp;
  Run argmax;
  Run add;
  Run multiply;
  Run subtract_from_rows;
  Run silu;
  Run swiglu;
  Run gelu;
  Run geglu;
  Help help;
};

} // namespace kernels

// Gives the kernels to MLX; without them, or with null, stock MLX runs. Kernels that are null are not there.
extern "C" void mlx_sys_set_kernels(const kernels::Table* table);
