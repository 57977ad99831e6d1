// MLX's graph, evaluated with few tasks.

#include "evaluate.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "batch.h"
#include "graph.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "record.h"
#include "write_slice.h"

namespace kernels {

namespace {

using Status = mx::array::Status;

void set_status(const mx::array& x, Status status) {
  x.set_status(status);
  for (auto& sibling : x.siblings()) {
    sibling.set_status(status);
  }
}

// Nodes in the order in which they can be evaluated. While they wait, their status is already `evaluated`, which marks
// them as found.
class Tape {
 public:
  // Finds what these arrays need. False where MLX has to evaluate them.
  bool add(std::span<const mx::array> arrays) {
    return std::all_of(arrays.begin(), arrays.end(), [&](auto& x) { return visit(x) && follow(); });
  }

  Tape() = default;
  Tape(Tape&&) = default;

  // Nodes that were not evaluated are as before.
  ~Tape() {
    for (auto& [node, input] : open_) {
      set_status(*node, Status::unscheduled);
    }
    for (; next_ < nodes_.size(); next_++) {
      set_status(nodes_[next_], Status::unscheduled);
    }
  }

  bool is_at_end() const {
    return next_ == nodes_.size();
  }

  const mx::Stream& stream() const {
    return nodes_.front().primitive().stream();
  }

  // The next node. The tape keeps it no longer: what only one node needs can be overwritten.
  mx::array take() {
    return std::move(nodes_[next_++]);
  }

 private:
  // A node whose inputs are being visited, and the input that is next.
  struct Open {
    const mx::array* node;
    size_t input;
  };

  bool visit(const mx::array& x) {
    if (x.status() != Status::unscheduled) {
      // What another stream computes has to be waited for.
      return x.status() == Status::available || !x.event().valid() || !first_ ||
          x.event().stream() == first_->primitive().stream();
    }
    if (!x.has_primitive() || x.is_tracer() || x.primitive().stream().device != mx::Device::cpu) {
      return false;
    }
    if (!first_) {
      first_ = &x;
    }
    if (x.primitive().stream() != first_->primitive().stream()) {
      return false;
    }
    set_status(x, Status::evaluated);
    open_.push_back({&x, 0});
    return true;
  }

  bool follow() {
    while (!open_.empty()) {
      auto& [node, input] = open_.back();
      if (input < node->inputs().size()) {
        if (!visit(node->inputs()[input++])) {
          return false;
        }
      } else {
        nodes_.push_back(*node);
        open_.pop_back();
      }
    }
    return true;
  }

  const mx::array* first_ = nullptr;
  std::vector<Open> open_;
  std::vector<mx::array> nodes_;
  size_t next_ = 0;
};

// Whether MLX evaluates this node without a task: its output is a view of its input.
bool is_view(const mx::array& node) {
  std::string_view name = node.primitive().name();
  for (auto view : {"Transpose", "Slice", "Squeeze", "ExpandDims", "Broadcast"}) {
    if (name == view) {
      return true;
    }
  }
  return name == "Reshape" && node.inputs()[0].flags().row_contiguous;
}

// A node that stands for all of a tape, and evaluates the tape's nodes. MLX gives it an event, which is signaled when
// all of its tasks have run, and which is also that of the tape's nodes.
class Evaluation : public mx::Primitive {
 public:
  Evaluation(Tape tape, std::span<const mx::array> arrays)
      : Primitive(tape.stream()), tape_(std::move(tape)), arrays_(arrays.begin(), arrays.end()) {}

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>& outputs) override {
    auto event = outputs.at(0).event();
    if (!event.valid()) {
      throw std::logic_error("MLX gives no event to what it evaluates");
    }
    Batch batch(stream());
    while (!tape_.is_at_end()) {
      auto node = tape_.take();
      try {
        run(node, batch);
      } catch (...) {
        set_status(node, Status::unscheduled);
        finish(batch);
        throw;
      }
      node.attach_event(event);
      for (auto& sibling : node.siblings()) {
        sibling.attach_event(event);
      }
      node.detach();
    }
    finish(batch);
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("nodes for the CPU cannot run on a GPU");
  }

  const char* name() const override {
    return "Evaluation";
  }

 private:
  void run(mx::array& node, Batch& batch) {
    auto outputs = node.outputs();
    const char* name = node.primitive().name();
    if (auto kernel = kernel_node(node)) {
      kernel->record();
      node.primitive().eval_cpu(node.inputs(), outputs);
    } else if (is_view(node)) {
      record(name, Runner::view);
      node.primitive().eval_cpu(node.inputs(), outputs);
    } else if (write_slice(node, batch)) {
      record(name, Runner::kernel);
    } else {
      record(name, Runner::mlx);
      batch.send();
      node.primitive().eval_cpu(node.inputs(), outputs);
      batch.others_were_sent();
    }
    auto shares = [](const mx::array& x, const std::vector<mx::array>& others) {
      return std::any_of(others.begin(), others.end(), [&](auto& other) {
        return other.data_shared_ptr() == x.data_shared_ptr();
      });
    };
    for (auto& input : node.inputs()) {
      if (!shares(input, outputs)) {
        batch.keep(input.data_shared_ptr());
      }
    }
    // MLX may drop results that nothing uses before they are written.
    for (auto& sibling : node.siblings()) {
      batch.keep(sibling.data_shared_ptr());
    }
    size_t bytes = 0;
    for (auto& output : outputs) {
      bytes += shares(output, node.inputs()) ? 0 : output.nbytes();
    }
    auto& temporaries = mx::cpu::get_command_encoder(stream()).temporaries();
    for (auto& temporary : temporaries) {
      batch.keep(temporary.data_shared_ptr());
    }
    temporaries.clear();
    batch.end_node(bytes);
  }

  // Sends what is left.
  void finish(Batch& batch) {
    // The caller may drop them before they are written.
    for (auto& array : arrays_) {
      batch.keep(array.data_shared_ptr());
    }
    arrays_.clear();
    batch.send();
  }

  Tape tape_;
  std::vector<mx::array> arrays_;
};

} // namespace

void evaluate(std::span<const mx::array> arrays) {
  Tape tape;
  if (!tape.add(arrays) || tape.is_at_end()) {
    return;
  }
  auto stream = tape.stream();
  auto evaluation = std::make_shared<Evaluation>(std::move(tape), arrays);
  mx::async_eval({mx::array({}, mx::bool_, std::move(evaluation), {})});
  Batch(stream).others_were_sent();
}

} // namespace kernels
