// A sum, and the operations that its terms are made of, as one node.
#pragma once

#include "graph.h"

namespace kernels {

// a + b as a node that runs the kernel `sum`, and before it the kernels of what a and b are made of.
//
// For few rows a node costs as much as a small kernel. The node takes in products with weights, norms and gated units
// that have not been computed: a block's whole feed-forward network behind its first norm. A result that another
// operation needs too is computed once more, for all of those.
mx::array fused_sum(const mx::Stream& stream, Step sum, const mx::array& a, const mx::array& b);

} // namespace kernels
