// Kernels as nodes of MLX's lazy graph: a node has inputs, outputs and a stream, and runs when MLX evaluates it.

#include "graph.h"

#include <algorithm>
#include <memory>
#include <new>
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

// `inputs` are those of the node, `results` those of the steps before.
Call call_of(
    const Step& step,
    const std::vector<mx::array>& inputs,
    const std::vector<Tensor>& results,
    std::span<const Tensor> outputs) {
  Call call(step.run, step.settings);
  for (size_t slot = 0; slot < step.operands.size(); slot++) {
    auto [source, number] = step.operands[slot];
    if (source == Operand::Source::input) {
      call.arrays.inputs[slot] = tensor_of(inputs.at(number));
    } else if (source == Operand::Source::step) {
      call.arrays.inputs[slot] = results.at(number);
    }
  }
  if (outputs.size() > MAX_OUTPUTS) {
    throw std::length_error("a kernel has more outputs than abi.h has slots for");
  }
  std::copy(outputs.begin(), outputs.end(), call.arrays.outputs);
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

// The results of inner steps, row by row in one block of memory.
struct Results {
  std::vector<Tensor> tensors;
  std::shared_ptr<void> memory;

  explicit Results(const std::vector<InnerStep>& steps) {
    // A cache line.
    constexpr size_t ALIGNMENT = 64;
    std::vector<size_t> starts;
    size_t size = 0;
    for (auto& step : steps) {
      starts.push_back(size);
      size_t bytes = mx::size_of(step.dtype);
      for (auto length : step.shape) {
        bytes *= length;
      }
      size += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    if (size == 0) {
      return;
    }
    auto* block = static_cast<std::byte*>(::operator new(size, std::align_val_t(ALIGNMENT)));
    memory = std::shared_ptr<void>(block, [](void* of) { ::operator delete(of, std::align_val_t(ALIGNMENT)); });
    for (size_t i = 0; i < steps.size(); i++) {
      tensors.push_back(rows(steps[i], block + starts[i]));
    }
  }

 private:
  static Tensor rows(const InnerStep& step, void* data) {
    Tensor tensor;
    tensor.data = data;
    tensor.format = format_of(step.dtype).value_or(Format::U8);
    tensor.dims = step.shape.size();
    int64_t stride = 1;
    for (int i = tensor.dims - 1; i >= 0; i--) {
      tensor.shape[i] = step.shape[i];
      tensor.strides[i] = stride;
      stride *= step.shape[i];
    }
    return tensor;
  }
};

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
  Results results(before_);
  std::vector<Tensor> written;
  for (auto& out : outputs) {
    written.push_back(tensor_of(out));
  }
  auto* batch = Batch::current();
  std::vector<Call> calls;
  calls.reserve(batch ? 0 : before_.size() + 1);
  auto add = [&](Call call) {
    if (batch) {
      batch->add(std::move(call));
    } else {
      calls.push_back(std::move(call));
    }
  };
  for (size_t i = 0; i < before_.size(); i++) {
    add(call_of(before_[i].step, inputs, results.tensors, {&results.tensors[i], 1}));
  }
  add(call_of(last_, inputs, results.tensors, written));
  if (batch) {
    batch->keep(std::move(results.memory));
    return;
  }
  // Shared, since MLX copies tasks on their way. The inputs' memory is kept by a task that MLX adds behind each operation.
  struct Task {
    std::vector<Call> calls;
    std::shared_ptr<void> memory;
  };
  auto task = std::make_shared<const Task>(Task{std::move(calls), std::move(results.memory)});
  auto run = [task = std::move(task)] {
    for (auto& call : task->calls) {
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
