// Writing a part of an array in place, as caches do for each token.
#pragma once

#include "batch.h"
#include "mlx/array.h"

namespace kernels {

// Evaluates this node as a call of the batch, where it writes a part of an array that nothing else uses: not after
// earlier calls either, for which this waits. False where MLX has to evaluate the node.
bool write_slice(mx::array& node, Batch& batch);

} // namespace kernels
