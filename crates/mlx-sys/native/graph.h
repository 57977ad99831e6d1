// Kernels as nodes of MLX's lazy graph.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "call.h"
#include "mlx/primitives.h"

namespace kernels {

// Where a step finds what goes into one of its slots.
struct Operand {
  enum class Source : uint8_t { nothing, input, step };

  Source source = Source::nothing;
  // Which of the node's inputs, or which of its steps, from 0 on.
  uint8_t number = 0;
};

using Operands = std::array<Operand, MAX_INPUTS>;

// One kernel that a node runs.
struct Step {
  Operation operation;
  Run run;
  AnySettings settings;
  Operands operands{};
};

// A step whose result only later steps of the same node read.
struct InnerStep {
  Step step;
  mx::Shape shape;
  mx::Dtype dtype;
};

// How an output lies in memory.
enum class Layout {
  // Row by row.
  rows,
  // [B, H, L, D] as the transpose of [B, L, H, D], so that the model's own transpose costs nothing. H may be two dimensions.
  heads_inside,
};

// One or more kernels as an operation of MLX's graph. The last step writes the node's outputs.
class KernelNode final : public mx::Primitive {
 public:
  KernelNode(mx::Stream stream, Step last, Layout layout, std::vector<InnerStep> before = {});

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  // Only of products with quantized matrices, with respect to x: offers of other operations take no traced array.
  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;
  std::vector<mx::array> jvp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& tangents,
      const std::vector<int>& argnums) override;

  const char* name() const override {
    return name_of(last_.operation);
  }

  // Whether the node has one step, so that its inputs are those of the operation that it is named after.
  bool is_single() const {
    return before_.empty();
  }

  const Step& last() const {
    return last_;
  }

  // Counts the node's operations where the thread records.
  void record() const;

  // True for the first caller, which may compute this node's result as a step of its own; false for all others.
  bool take() const {
    return !is_taken_.exchange(true, std::memory_order_relaxed);
  }

 private:
  // The product of x and the matrix of this node, a product with a quantized matrix, transposed or not.
  mx::array product(
      const mx::array& x,
      const std::vector<mx::array>& primals,
      const std::vector<int>& argnums,
      bool is_transposed,
      int columns);

  Step last_;
  Layout layout_;
  std::vector<InnerStep> before_;
  mutable std::atomic<bool> is_taken_{false};
};

// The node of a kernel that computes x, which has not been computed; null where none does.
const KernelNode* kernel_node(const mx::array& x);

// Puts arrays into a step's slots, as inputs of a node of its own. Returns the node's inputs.
std::vector<mx::array> fill(Operands& operands, Slots slots);

// The kernel of one operation on some arrays. False where stock MLX has to run the operation (see `find`).
template <Operation OPERATION>
class Kernel {
 public:
  Kernel(const mx::Stream& stream, Slots arrays)
      : stream_(stream), run_(find(OPERATION, stream, arrays)) {}

  explicit operator bool() const {
    return run_ != nullptr;
  }

  Step step(const SettingsOf<OPERATION>& settings = {}) const {
    return {OPERATION, run_, AnySettings(settings)};
  }

  // The operation as a node of MLX's graph.
  mx::array node(
      Slots slots,
      mx::Shape shape,
      mx::Dtype dtype,
      const SettingsOf<OPERATION>& settings = {},
      Layout layout = Layout::rows) const {
    Step step = this->step(settings);
    auto inputs = fill(step.operands, slots);
    auto node = std::make_shared<KernelNode>(stream_, std::move(step), layout);
    return mx::array(std::move(shape), dtype, std::move(node), std::move(inputs));
  }

  // The same for an operation of several outputs.
  std::vector<mx::array> nodes(
      Slots slots,
      std::vector<mx::Shape> shapes,
      const std::vector<mx::Dtype>& dtypes,
      const SettingsOf<OPERATION>& settings = {}) const {
    Step step = this->step(settings);
    auto inputs = fill(step.operands, slots);
    auto node = std::make_shared<KernelNode>(stream_, std::move(step), Layout::rows);
    return mx::array::make_arrays(std::move(shapes), dtypes, std::move(node), inputs);
  }

 private:
  mx::Stream stream_;
  Run run_;
};

} // namespace kernels
