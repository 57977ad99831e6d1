// Patterns in MLX's graph that one kernel can compute.
//
// Models write SiLU, GELU and attention over quantized keys as several operations. MLX computes nothing until it has to,
// so the last operation of a pattern finds the others in the graph, and one kernel takes the place of all. Results that
// other operations need as well are still computed.
#pragma once

#include <optional>
#include <vector>

#include "graph.h"

namespace kernels {

// The inputs of x, where x is the result of an operation of this name (stock or kernel) that the CPU will compute; else
// null. Not for a node of several steps, whose inputs are not those of the operation.
const std::vector<mx::array>* pending(const mx::array& x, const char* name);

inline const std::vector<mx::array>* pending(const mx::array& x, Operation operation) {
  return pending(x, name_of(operation));
}

// Whether y is made from x by at most three operations in a row that have not been computed. After a look at 256 arrays the
// answer is yes.
bool depends(const mx::array& y, const mx::array& x);

// Whether y is sigmoid(x).
bool is_sigmoid_of(const mx::array& y, const mx::array& x);

// x of gelu(x) = (x * 0.5) * (tanh((x + x^3 * 0.044715) * sqrt(2 / pi)) + 1), given the two factors.
std::optional<mx::array> gelu_argument(const mx::array& half, const mx::array& share);

// Scores of attention: the product of scaled queries with quantized keys, before a mask is applied.
struct QuantizedScores {
  mx::array queries;
  mx::array keys;
  mx::array key_scales;
  std::optional<mx::array> key_biases;
  // If it is bool, scores are hidden where it is false; else it is added to them.
  std::optional<mx::array> mask;
  QuantizedMatmulSettings settings;
};

// What softmax(scores) was made of, where the scores are products with quantized keys.
std::optional<QuantizedScores> quantized_scores(const mx::array& weights);

} // namespace kernels
