// Patterns in MLX's graph that one kernel can compute.
//
// Models write SiLU, GELU, soft-capped attention and attention over quantized keys as several operations. MLX computes nothing until it has to,
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

// What softmax(scores) was made of, where the scores are those of attention: products of scaled queries and keys, which may
// be soft-capped, and to which a mask may be applied.
struct Scores {
  // The products, still in the graph.
  mx::array products;
  // The cap c of c * tanh(products / c); 0 where scores are not soft-capped.
  float softcap;
  // If it is bool, scores are hidden where it is false; else it is added to them.
  std::optional<mx::array> mask;
};

// The scores that softmax made these weights of, where their products are the result of an operation of this name.
std::optional<Scores> scores_of(const mx::array& weights, Operation product);

// Products of scaled queries with keys.
struct Products {
  mx::array queries;
  mx::array keys;
  // What queries are multiplied by, as the products have it.
  float scale;
};

// What `queries @ keys.swapaxes(-1, -2)` was made of.
std::optional<Products> products_of(const mx::array& products);

// Products of scaled queries with quantized keys.
struct QuantizedProducts {
  mx::array queries;
  mx::array keys;
  mx::array key_scales;
  std::optional<mx::array> key_biases;
  QuantizedMatmulSettings settings;
};

// What a kernel's quantized product was made of.
std::optional<QuantizedProducts> quantized_products_of(const mx::array& products);

} // namespace kernels
