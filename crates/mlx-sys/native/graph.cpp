// Kernels as nodes of MLX's lazy graph: a node has inputs, outputs and a stream, and runs when MLX evaluates it.

#include "graph.h"

#include <algorithm>
#include <memory>
#include <span>
#include <stdexcept>
#include <typeinfo>
#include <utility>

#include "batch.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/scheduler.h"
#include "record.h"
#include "wait.h"

namespace kernels {

namespace {

Call call_of(
    const Step& step,
    const std::vector<mx::array>& inputs,
    const std::vector<mx::array>& results,
    std::span<const mx::array> outputs) {
  Call call(step.run, step.settings);
  for (size_t slot = 0; slot < step.operands.size(); slot++) {
    auto [source, number] = step.operands[slot];
    if (source != Operand::Source::nothing) {
      auto& sources = source == Operand::Source::input ? inputs : results;
      call.arrays.inputs[slot] = tensor_of(sources.at(number));
    }
  }
  if (outputs.size() > MAX_OUTPUTS) {
    throw std::length_error("a kernel has more outputs than abi.h has slots for");
  }
  Tensor* slot = call.arrays.outputs;
  for (auto& output : outputs) {
    *slot++ = tensor_of(output);
  }
  return call;
}

void allocate(mx::array& out, Layout layout) {
  auto buffer = mx::allocator::malloc(out.nbytes());
  if (layout == Layout::rows) {
    out.set_data(buffer);
    return;
  }
  int dims = out.ndim();
  int64_t length = out.shape(-2), width = out.shape(-1), heads = 1;
  mx::Strides strides(dims, 1);
  for (int i = dims - 3; i > 0; i--) {
    strides[i] = heads * width;
    heads *= out.shape(i);
  }
  strides[dims - 2] = heads * width;
  strides[0] = length * heads * width;
  mx::array::Flags flags{};
  flags.contiguous = true;
  flags.row_contiguous = heads == 1 || length == 1;
  flags.col_contiguous = out.size() == 1;
  out.set_data(buffer, out.size(), strides, flags);
}

mx::array allocated(const InnerStep& step) {
  size_t size = mx::size_of(step.dtype);
  for (auto length : step.shape) {
    size *= length;
  }
  return mx::array(mx::allocator::malloc(size), step.shape, step.dtype);
}

constexpr size_t SMALL_BYTES = 64 << 10;

// Sends a task to the stream's thread.
//
// MLX stops the thread that builds the graph where too many tasks wait, since what they write is already allocated.
// A task with small outputs is not counted, so that the thread is stopped half as often.
template <typename Task>
void send(const mx::Stream& stream, Task task, const std::vector<mx::array>& outputs) {
  bool is_small = std::all_of(
      outputs.begin(), outputs.end(), [](auto& output) { return output.nbytes() <= SMALL_BYTES; });
  if (is_small) {
    mx::scheduler::enqueue(stream, std::move(task));
  } else {
    mx::cpu::get_command_encoder(stream).dispatch(std::move(task));
  }
  help_with_tasks();
}

} // namespace

KernelNode::KernelNode(mx::Stream stream, Step last, Layout layout, std::vector<InnerStep> before)
    : Primitive(stream), last_(std::move(last)), layout_(layout), before_(std::move(before)) {}

void KernelNode::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  for (auto& out : outputs) {
    allocate(out, layout_);
  }
  if (auto batch = Batch::current()) {
    std::vector<mx::array> results;
    results.reserve(before_.size());
    for (auto& inner : before_) {
      auto result = allocated(inner);
      batch->add(call_of(inner.step, inputs, results, {&result, 1}));
      batch->keep(result.data_shared_ptr());
      results.push_back(std::move(result));
    }
    batch->add(call_of(last_, inputs, results, outputs));
    return;
  }
  // Tasks are shared, since MLX copies them on their way. The inputs' memory is kept by a task that MLX adds behind
  // each operation.
  if (is_single()) {
    auto only = std::make_shared<const Call>(call_of(last_, inputs, {}, outputs));
    send(stream(), [only = std::move(only)] { (*only)(); }, outputs);
    return;
  }
  struct Calls {
    std::vector<Call> calls;
    // Holds the memory of the inner steps' results.
    std::vector<mx::array> results;
  };
  auto all = std::make_shared<Calls>();
  all->results.reserve(before_.size());
  all->calls.reserve(before_.size() + 1);
  for (auto& inner : before_) {
    auto result = allocated(inner);
    all->calls.push_back(call_of(inner.step, inputs, all->results, {&result, 1}));
    all->results.push_back(std::move(result));
  }
  all->calls.push_back(call_of(last_, inputs, all->results, outputs));
  auto run = [all = std::shared_ptr<const Calls>(std::move(all))] {
    for (auto& call : all->calls) {
      call();
    }
  };
  send(stream(), std::move(run), outputs);
}

mx::array KernelNode::product(
    const mx::array& x,
    const std::vector<mx::array>& primals,
    const std::vector<int>& argnums,
    bool is_transposed,
    int columns) {
  if (last_.operation != Operation::quantized_matmul || !is_single() || argnums != std::vector<int>{0}) {
    throw std::invalid_argument(std::string(name()) + " of a CPU kernel has no gradient for this input");
  }
  Step step = last_;
  auto settings = step.settings.as<QuantizedMatmulSettings>();
  settings.is_transposed = is_transposed;
  step.settings = AnySettings(settings);
  auto inputs = primals;
  inputs[0] = x;
  auto shape = x.shape();
  shape.back() = columns;
  auto node = std::make_shared<KernelNode>(stream(), std::move(step), Layout::rows);
  return mx::array(std::move(shape), x.dtype(), std::move(node), std::move(inputs));
}

std::vector<mx::array> KernelNode::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  bool is_transposed = last_.settings.as<QuantizedMatmulSettings>().is_transposed;
  return {product(cotangents.at(0), primals, argnums, !is_transposed, primals.at(0).shape(-1))};
}

std::vector<mx::array> KernelNode::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  auto settings = last_.settings.as<QuantizedMatmulSettings>();
  auto& w = primals.at(1);
  int columns = settings.is_transposed ? w.shape(-2) : w.shape(-1) * 32 / settings.quantization.bits;
  return {product(tangents.at(0), primals, argnums, settings.is_transposed, columns)};
}

void KernelNode::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  throw std::runtime_error("a kernel for the CPU cannot run on a GPU");
}

void KernelNode::record() const {
  for (auto& inner : before_) {
    kernels::record(name_of(inner.step.operation), Runner::kernel);
  }
  kernels::record(name(), Runner::kernel);
}

const KernelNode* kernel_node(const mx::array& x) {
  auto& primitive = x.primitive();
  return typeid(primitive) == typeid(KernelNode) ? static_cast<const KernelNode*>(&primitive) : nullptr;
}

std::vector<mx::array> fill(Operands& operands, Slots slots) {
  std::vector<mx::array> inputs;
  inputs.reserve(slots.size());
  size_t slot = 0;
  for (auto array : slots) {
    auto& operand = operands.at(slot++);
    if (array) {
      operand = {Operand::Source::input, static_cast<uint8_t>(inputs.size())};
      inputs.push_back(*array);
    }
  }
  return inputs;
}

} // namespace kernels
