/* Read by bindgen before every header of mlx-c on Linux: the two half-precision types as the bits
 * that they are, which is how mlx-rs takes them. HAS_* makes mlx-c declare their accessors, and
 * MLX_HALF_H keeps its own definitions out. */
#ifndef MLX_SYS_FORCED_H
#define MLX_SYS_FORCED_H

#include <stdint.h>

#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16
typedef uint16_t float16_t;
typedef uint16_t bfloat16_t;

#endif
