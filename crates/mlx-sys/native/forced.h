/* Read before every header of mlx-c when bindgen writes the Rust declarations on Linux. It declares the two
 * half-precision types by their bits, as mlx-rs takes them. HAS_* makes mlx-c declare their accessors, and MLX_HALF_H
 * keeps mlx-c's own definitions out. */
#ifndef MLX_SYS_FORCED_H
#define MLX_SYS_FORCED_H

#include <stdint.h>

#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16
typedef uint16_t float16_t;
typedef uint16_t bfloat16_t;

#endif
