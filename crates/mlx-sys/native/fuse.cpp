// A sum, and the operations that its terms are made of, as one node.

#include "fuse.h"

#include <utility>
#include <vector>

#include "recognize.h"

namespace kernels {

namespace {

// Nodes of more rows stay nodes of their own.
constexpr int64_t FEW_ROWS = 16;
// A gated network between two norms has six.
constexpr size_t MOST_STEPS = 8;

// Whether a sum takes in this step, which made x.
bool is_fusible(const Step& step, const mx::array& x) {
  switch (step.operation) {
    case Operation::matmul:
    case Operation::quantized_matmul:
      // By one matrix: weights.
      return x.inputs()[1].ndim() == 2;
    case Operation::rms_norm:
    case Operation::swiglu:
    case Operation::geglu:
      return true;
    default:
      return false;
  }
}

// The inputs and steps of a node that is being put together.
class Fusion {
 public:
  explicit Fusion(const mx::Stream& stream) : stream_(stream) {
    steps_.reserve(MOST_STEPS);
    inputs_.reserve(2 * MOST_STEPS);
    known_.reserve(3 * MOST_STEPS);
  }

  // Where the node's steps find x: the step that makes it becomes one of the node's where that pays, else x is an
  // input.
  Operand operand(const mx::array& x) {
    for (auto& [id, operand] : known_) {
      if (id == x.id()) {
        return operand;
      }
    }
    auto taken = take(x);
    if (!taken) {
      return input(x);
    }
    taken_++;
    Step step = *taken;
    for (auto& slot : step.operands) {
      if (slot.source != Operand::Source::nothing) {
        slot = operand(x.inputs()[slot.number]);
      }
    }
    auto number = steps_.size();
    steps_.push_back({std::move(step), x.shape(), x.dtype()});
    return remember(x, {Operand::Source::step, static_cast<uint8_t>(number)});
  }

  // x as an input of the node.
  Operand input(const mx::array& x) {
    auto number = inputs_.size();
    inputs_.push_back(x);
    return remember(x, {Operand::Source::input, static_cast<uint8_t>(number)});
  }

  mx::array node(Step last, mx::Shape shape, mx::Dtype dtype) && {
    auto node = std::make_shared<KernelNode>(stream_, std::move(last), Layout::rows, std::move(steps_));
    return mx::array(std::move(shape), dtype, std::move(node), std::move(inputs_));
  }

 private:
  Operand remember(const mx::array& x, Operand operand) {
    known_.push_back({x.id(), operand});
    return operand;
  }

  // The step that makes x, if the node may run it itself.
  const Step* take(const mx::array& x) const {
    if (taken_ == MOST_STEPS || !x.has_primitive() || x.status() != mx::array::Status::unscheduled ||
        x.is_tracer() || x.primitive().stream() != stream_) {
      return nullptr;
    }
    auto node = kernel_node(x);
    if (!node || !node->is_single() || x.ndim() == 0 || int64_t(x.size()) > FEW_ROWS * x.shape(-1)) {
      return nullptr;
    }
    return is_fusible(node->last(), x) && node->take() ? &node->last() : nullptr;
  }

  mx::Stream stream_;
  size_t taken_ = 0;
  std::vector<mx::array> inputs_;
  std::vector<InnerStep> steps_;
  std::vector<std::pair<std::uintptr_t, Operand>> known_;
};

} // namespace

mx::array fused_sum(const mx::Stream& stream, Step sum, const mx::array& a, const mx::array& b) {
  Fusion fusion(stream);
  // Where one term is made from the other, as x + x^3 of GELU, the other has more uses than this sum.
  sum.operands[0] = depends(b, a) ? fusion.input(a) : fusion.operand(a);
  sum.operands[1] = depends(a, b) ? fusion.input(b) : fusion.operand(b);
  return std::move(fusion).node(std::move(sum), a.shape(), a.dtype());
}

} // namespace kernels
