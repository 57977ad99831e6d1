//! The functions of `mlx-kernels`, which this shared library exports.

extern crate kernels as _;
