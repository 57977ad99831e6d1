// Operations of MLX on the CPU, handed to kernels in Rust.
//
// The functions of mlx-c below are compiled under the name stock_NAME in mlx-c's own files (see
// build/linux.rs), and defined here under their own: each decides whether a kernel takes the
// operation, and calls the original otherwise. A kernel becomes a primitive of MLX's lazy graph like
// any other: it has inputs, an output, a stream, and runs when MLX evaluates it.
//
// Where a gradient, a vmap or a compilation is being traced, the original runs, which MLX knows how to
// transform.
//
// A thread that waits, for arrays or since MLX has too many tasks, works on kernels meanwhile: mlx-cpu has as many
// threads as there are cores, and one more would take a core from a kernel in the middle of its work.

#include "cpu_kernels.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/fast.h"
#include "mlx/c/ops.h"
#include "mlx/c/private/mlx.h"
#include "mlx/c/transforms.h"
#include "mlx/primitives.h"
#include "mlx/scheduler.h"

namespace mx = mlx::core;
using kernels::Format;
using kernels::Run;
using kernels::Settings;
using kernels::Table;
using kernels::Tensor;

extern "C" {
decltype(mlx_fast_rms_norm) stock_mlx_fast_rms_norm;
decltype(mlx_fast_rope) stock_mlx_fast_rope;
decltype(mlx_fast_rope_dynamic) stock_mlx_fast_rope_dynamic;
decltype(mlx_fast_scaled_dot_product_attention)
    stock_mlx_fast_scaled_dot_product_attention;
decltype(mlx_matmul) stock_mlx_matmul;
decltype(mlx_addmm) stock_mlx_addmm;
decltype(mlx_quantized_matmul) stock_mlx_quantized_matmul;
decltype(mlx_dequantize) stock_mlx_dequantize;
decltype(mlx_softmax_axis) stock_mlx_softmax_axis;
decltype(mlx_logsumexp_axis) stock_mlx_logsumexp_axis;
decltype(mlx_argmax_axis) stock_mlx_argmax_axis;
decltype(mlx_add) stock_mlx_add;
decltype(mlx_multiply) stock_mlx_multiply;
decltype(mlx_subtract) stock_mlx_subtract;
decltype(mlx_quantize) stock_mlx_quantize;
decltype(mlx_eval) stock_mlx_eval;
decltype(mlx_array_eval) stock_mlx_array_eval;
}

namespace {

std::atomic<const Table*> table{nullptr};

std::optional<Format> format_of(mx::Dtype dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::float32:
      return Format::f32;
    case mx::Dtype::Val::float16:
      return Format::f16;
    case mx::Dtype::Val::bfloat16:
      return Format::bf16;
    case mx::Dtype::Val::uint8:
      return Format::u8;
    case mx::Dtype::Val::uint32:
      return Format::u32;
    case mx::Dtype::Val::int32:
      return Format::i32;
    case mx::Dtype::Val::bool_:
      return Format::boolean;
    default:
      return std::nullopt;
  }
}

bool is_float(const mx::array& x) {
  return x.dtype() == mx::float32 || x.dtype() == mx::float16 ||
      x.dtype() == mx::bfloat16;
}

// An argument that mlx-c lets be null.
const mx::array* maybe(mlx_array x) {
  return static_cast<const mx::array*>(x.ctx);
}

Tensor tensor_of(const mx::array& x) {
  Tensor tensor{};
  tensor.data = const_cast<char*>(x.data<char>());
  // Checked when the primitive was made.
  tensor.format = format_of(x.dtype()).value_or(Format::u8);
  tensor.dims = x.ndim();
  std::copy(x.shape().begin(), x.shape().end(), tensor.shape);
  std::copy(x.strides().begin(), x.strides().end(), tensor.strides);
  return tensor;
}

// How outputs lie in memory.
enum class Layout {
  rows, // row by row
  heads_inside, // [B, H, L, D] as the transpose of [B, L, H, D]
};

// A kernel that a node runs.
struct Step {
  const char* name;
  Run run;
  Settings settings;
  // The node's inputs by their number from 0 on, and the results of the steps before this one: ~0 of the
  // first, ~1 of the second. None: all inputs in their order.
  std::vector<int> operands;
};

// A step whose result the node keeps to itself.
struct Inner : Step {
  mx::Shape shape;
  mx::Dtype dtype;
};

constexpr size_t MOST_TENSORS = 9;

// What a kernel is called with. A tensor that is not there has -1 dimensions.
struct Call {
  Run run;
  Settings settings;
  std::array<Tensor, MOST_TENSORS> tensors;

  Call(Run run, const Settings& settings) : run(run), settings(settings) {
    for (auto& tensor : tensors) {
      tensor.dims = -1;
    }
  }

  void operator()() const {
    if (const char* error = run(tensors.data(), &settings)) {
      throw std::runtime_error(error);
    }
  }
};

// Works on kernels until `until` answers yes or there is nothing to do.
template <typename Until>
void help(Until until) {
  const Table* kernels = table.load(std::memory_order_acquire);
  if (kernels && kernels->help) {
    kernels->help([](void* of) { return (*static_cast<Until*>(of))(); }, &until);
  }
}

// Where MLX would soon stop this thread, works with the one that runs the tasks, until fewer wait. To be stopped and
// woken some forty times for a token of a small model costs both threads more than the kernels of a layer do.
void help_with_tasks() {
  // MLX stops it where more than 10 wait.
  constexpr int MANY = 9;
  if (mx::scheduler::n_active_tasks() >= MANY) {
    help([] { return mx::scheduler::n_active_tasks() < MANY; });
  }
}

// Works with the thread that computes these arrays, until it is done or there is nothing to do for two: before a
// function of MLX in which this thread sleeps. Arrays that have not been sent off are that function's affair.
void help_with(std::span<const mx::array> arrays) {
  bool is_sent = std::all_of(arrays.begin(), arrays.end(), [](auto& x) {
    bool is_on_cpu = !x.event().valid() || x.event().stream().device == mx::Device::cpu;
    return x.status() != mx::array::Status::unscheduled && is_on_cpu;
  });
  auto is_there = [&] {
    return std::all_of(arrays.begin(), arrays.end(), [](auto& x) { return x.is_available(); });
  };
  if (!is_sent || is_there()) {
    return;
  }
  // What went wrong in a kernel; not through Rust.
  std::exception_ptr error;
  help([&] {
    try {
      return is_there();
    } catch (...) {
      error = std::current_exception();
      return true;
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

// One or more kernels as an operation of MLX's graph.
class Kernel : public mx::Primitive {
 public:
  Kernel(mx::Stream stream, Step last, Layout layout, std::vector<Inner> before = {})
      : Primitive(stream),
        last_(std::move(last)),
        layout_(layout),
        before_(std::move(before)) {}

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) {
      auto buffer = mx::allocator::malloc(out.nbytes());
      if (layout_ == Layout::heads_inside) {
        int64_t heads = out.shape(1), length = out.shape(2), width = out.shape(3);
        mx::Strides strides{length * heads * width, width, heads * width, 1};
        mx::array::Flags flags{};
        flags.contiguous = true;
        flags.row_contiguous = heads == 1 || length == 1;
        flags.col_contiguous = out.size() == 1;
        out.set_data(buffer, out.size(), strides, flags);
      } else {
        out.set_data(buffer);
      }
    }
    std::vector<mx::array> results;
    std::vector<Call> calls;
    results.reserve(before_.size());
    calls.reserve(before_.empty() ? 0 : before_.size() + 1);
    for (auto& step : before_) {
      size_t size = mx::size_of(step.dtype);
      for (auto length : step.shape) {
        size *= length;
      }
      mx::array result(mx::allocator::malloc(size), step.shape, step.dtype);
      calls.push_back(call(step, inputs, results, {&result, 1}));
      results.push_back(std::move(result));
    }
    auto last = call(last_, inputs, results, outputs);
    // Tasks are shared, since they are copied on their way. MLX keeps the inputs' memory by a task of its own
    // behind each operation.
    if (calls.empty()) {
      send([one = std::make_shared<const Call>(last)] { (*one)(); }, outputs);
      return;
    }
    calls.push_back(last);
    struct Calls {
      std::vector<Call> calls;
      std::vector<mx::array> results;
    };
    auto all = std::make_shared<const Calls>(std::move(calls), std::move(results));
    auto run = [all = std::move(all)] {
      for (auto& call : all->calls) {
        call();
      }
    };
    send(std::move(run), outputs);
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("a kernel for the CPU cannot run on a GPU");
  }

  const char* name() const override {
    return last_.name;
  }

  // Whether a node's inputs are those of the operation that it is named after.
  bool is_single() const {
    return before_.empty();
  }

  // What a node of one step runs.
  const Step& step() const {
    return last_;
  }

  // Lets one node compute this one's result itself; no other after it.
  bool take() const {
    return !is_taken_.exchange(true, std::memory_order_relaxed);
  }

 private:
  // Bytes of an output.
  static constexpr size_t SMALL = 64 << 10;

  // MLX stops the thread that builds the graph where too many tasks wait, since what they write is allocated
  // before. What is small is not counted, so that the thread is stopped half as often.
  template <typename Task>
  void send(Task task, const std::vector<mx::array>& outputs) {
    bool is_small = std::all_of(
        outputs.begin(), outputs.end(), [](auto& output) { return output.nbytes() <= SMALL; });
    if (is_small) {
      mx::scheduler::enqueue(stream(), std::move(task));
    } else {
      mx::cpu::get_command_encoder(stream()).dispatch(std::move(task));
    }
    help_with_tasks();
  }

  static Call call(
      const Step& step,
      const std::vector<mx::array>& inputs,
      const std::vector<mx::array>& results,
      std::span<const mx::array> outputs) {
    Call call(step.run, step.settings);
    size_t count = 0;
    if (step.operands.empty()) {
      for (auto& input : inputs) {
        call.tensors.at(count++) = tensor_of(input);
      }
    }
    for (int operand : step.operands) {
      call.tensors.at(count++) = tensor_of(operand < 0 ? results[~operand] : inputs[operand]);
    }
    for (auto& output : outputs) {
      call.tensors.at(count++) = tensor_of(output);
    }
    return call;
  }

  Step last_;
  Layout layout_;
  std::vector<Inner> before_;
  mutable std::atomic<bool> is_taken_{false};
};

// The kernel that `member` names, where operations on these arrays may be handed to kernels.
Run kernel(
    Run Table::* member,
    const mx::Stream& stream,
    std::initializer_list<const mx::array*> inputs) {
  const Table* kernels = table.load(std::memory_order_acquire);
  if (!kernels || stream.device != mx::Device::cpu) {
    return nullptr;
  }
  for (auto input : inputs) {
    if (input &&
        (input->is_tracer() || input->ndim() > kernels::MAX_DIMS ||
         !format_of(input->dtype()))) {
      return nullptr;
    }
  }
  return kernels->*member;
}

mx::array make(
    const char* name,
    Run run,
    const mx::Stream& stream,
    mx::Shape shape,
    mx::Dtype dtype,
    std::vector<mx::array> inputs,
    const Settings& settings = {},
    Layout layout = Layout::rows) {
  return mx::array(
      std::move(shape),
      dtype,
      std::make_shared<Kernel>(stream, Step{name, run, settings, {}}, layout),
      std::move(inputs));
}

void set(mlx_array& res, mx::array&& y) {
  mlx_array_set_(res, std::move(y));
}

void set(mlx_vector_array& res, std::vector<mx::array>&& y) {
  mlx_vector_array_set_(res, std::move(y));
}

// What a function of mlx-c does: what `attempt` makes, or where it makes nothing, the original.
template <typename Result, typename Attempt, typename Original>
int handed(Result* res, Attempt attempt, Original original) {
  try {
    if (auto y = attempt()) {
      set(*res, std::move(*y));
      return 0;
    }
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
  return original();
}

// a.shape without its last `a_last` dimensions equals b.shape without its last `b_last`.
bool same_start(const mx::array& a, int a_last, const mx::array& b, int b_last) {
  return std::equal(
      a.shape().begin(),
      a.shape().end() - a_last,
      b.shape().begin(),
      b.shape().end() - b_last);
}

// The inputs, where nothing has been computed yet and so the graph can still be written anew, of an
// operation of this name; else null.
const std::vector<mx::array>* pending(const mx::array& x, const char* name) {
  bool is = x.has_primitive() && x.status() == mx::array::Status::unscheduled &&
      !x.is_tracer() && std::strcmp(x.primitive().name(), name) == 0;
  auto kernel = is ? dynamic_cast<const Kernel*>(&x.primitive()) : nullptr;
  return is && (!kernel || kernel->is_single()) ? &x.inputs() : nullptr;
}

// Whether x is this number, given as a constant of its own dtype or of float32 that may have been cast and
// broadcast. One that was rounded to another dtype before is another number.
bool is_number(mx::array x, float number) {
  auto dtype = x.dtype();
  while (true) {
    if (auto inputs = pending(x, "Broadcast")) {
      x = mx::array((*inputs)[0]);
    } else if (auto inputs = x.dtype() == dtype ? pending(x, "AsType") : nullptr) {
      x = mx::array((*inputs)[0]);
    } else {
      break;
    }
  }
  if (x.size() != 1 || !x.is_available() || (x.dtype() != mx::float32 && x.dtype() != dtype)) {
    return false;
  }
  switch (x.dtype().val()) {
    case mx::Dtype::Val::float32:
      return *x.data<float>() == number;
    case mx::Dtype::Val::float16:
      return *x.data<mx::float16_t>() == mx::float16_t(number);
    case mx::Dtype::Val::bfloat16:
      return *x.data<mx::bfloat16_t>() == mx::bfloat16_t(number);
    default:
      return false;
  }
}

// The two inputs of a sum or a product, of which `number` is one: the other.
std::optional<mx::array>
beside(const mx::array& x, const char* name, float number) {
  if (auto inputs = pending(x, name); inputs && inputs->size() == 2) {
    for (int i : {0, 1}) {
      if (is_number((*inputs)[1 - i], number)) {
        return (*inputs)[i];
      }
    }
  }
  return std::nullopt;
}

bool is_sigmoid_of(const mx::array& y, const mx::array& x) {
  auto inputs = pending(y, "Sigmoid");
  return inputs && (*inputs)[0].id() == x.id();
}

// x of (x * 0.5) * (tanh((x + x^3 * 0.044715) * sqrt(2 / pi)) + 1), given the two factors.
std::optional<mx::array> gelu_argument(
    const mx::array& half,
    const mx::array& share) {
  auto x = beside(half, "Multiply", 0.5f);
  auto bent = beside(share, "Add", 1.0f);
  if (!x || !bent) {
    return std::nullopt;
  }
  auto tanh = pending(*bent, "Tanh");
  if (!tanh) {
    return std::nullopt;
  }
  auto sum = beside((*tanh)[0], "Multiply", 0.7978845608028654f);
  auto parts = sum ? pending(*sum, "Add") : nullptr;
  if (!parts || (*parts)[0].id() != x->id()) {
    return std::nullopt;
  }
  auto cube = beside((*parts)[1], "Multiply", 0.044715f);
  auto power = cube ? pending(*cube, "Power") : nullptr;
  if (!power || (*power)[0].id() != x->id() || !is_number((*power)[1], 3.0f)) {
    return std::nullopt;
  }
  return x;
}

// Names that are looked for.
constexpr const char* SILU = "SiLU";
constexpr const char* GELU = "GELU";
constexpr const char* SWIGLU = "SwiGLU";
constexpr const char* GEGLU = "GeGLU";
constexpr const char* RMS_NORM = "RMSNorm";
constexpr const char* MATMUL = "Matmul";
constexpr const char* QUANTIZED_MATMUL = "QuantizedMatmul";

// Below this many numbers MLX's own loop is done before a kernel has begun.
constexpr size_t WORTH_IT = 128;

// Whether y is made from x, in so many steps that nothing has computed yet; or perhaps, where that is more
// than a short look.
bool depends(const mx::array& y, const mx::array& x, int steps, int& looks) {
  if (y.id() == x.id() || looks-- == 0) {
    return true;
  }
  if (steps == 0 || !y.has_primitive() || y.status() != mx::array::Status::unscheduled) {
    return false;
  }
  return std::any_of(y.inputs().begin(), y.inputs().end(), [&](auto& input) {
    return depends(input, x, steps - 1, looks);
  });
}

bool depends(const mx::array& y, const mx::array& x) {
  int looks = 256;
  return depends(y, x, 3, looks);
}

// A sum and what it is a sum of, as one node: for few rows a node costs as much as a small kernel.
//
// Taken in are products, norms and gated units that nothing has computed yet: a block's whole feed-forward
// network behind its first norm. One that something else uses too is computed once more, for all others.
class Fused {
 public:
  explicit Fused(const mx::Stream& stream) : stream_(stream) {
    steps_.reserve(MOST_STEPS);
    inputs_.reserve(2 * MOST_STEPS);
    known_.reserve(3 * MOST_STEPS);
  }

  // What x is to the node's steps.
  int operand(const mx::array& x) {
    for (auto& [id, operand] : known_) {
      if (id == x.id()) {
        return operand;
      }
    }
    auto step = taken(x);
    if (!step) {
      return input(x);
    }
    taken_++;
    std::vector<int> operands;
    operands.reserve(x.inputs().size());
    for (auto& input : x.inputs()) {
      operands.push_back(operand(input));
    }
    steps_.push_back({{step->name, step->run, step->settings, std::move(operands)}, x.shape(), x.dtype()});
    known_.push_back({x.id(), ~int(steps_.size() - 1)});
    return known_.back().second;
  }

  // The operand that x is as an input of the node.
  int input(const mx::array& x) {
    inputs_.push_back(x);
    known_.push_back({x.id(), int(inputs_.size() - 1)});
    return known_.back().second;
  }

  mx::array made(Step last, mx::Shape shape, mx::Dtype dtype) && {
    auto kernel = std::make_shared<Kernel>(stream_, std::move(last), Layout::rows, std::move(steps_));
    return mx::array(std::move(shape), dtype, std::move(kernel), std::move(inputs_));
  }

 private:
  // Rows of more are worth nodes of their own.
  static constexpr int64_t FEW = 16;
  // A gated network between two norms has six.
  static constexpr size_t MOST_STEPS = 8;

  const Step* taken(const mx::array& x) const {
    if (taken_ == MOST_STEPS || !x.has_primitive() || x.status() != mx::array::Status::unscheduled ||
        x.is_tracer() || x.primitive().stream() != stream_) {
      return nullptr;
    }
    auto kernel = dynamic_cast<const Kernel*>(&x.primitive());
    if (!kernel || !kernel->is_single() || x.ndim() == 0 || int64_t(x.size()) > FEW * x.shape(-1)) {
      return nullptr;
    }
    auto name = kernel->name();
    bool by_weights = (name == MATMUL || name == QUANTIZED_MATMUL) && x.inputs()[1].ndim() == 2;
    bool other = name == RMS_NORM || name == SWIGLU || name == GEGLU;
    return (by_weights || other) && kernel->take() ? &kernel->step() : nullptr;
  }

  mx::Stream stream_;
  size_t taken_ = 0;
  std::vector<mx::array> inputs_;
  std::vector<Inner> steps_;
  std::vector<std::pair<std::uintptr_t, int>> known_;
};

std::optional<mx::array> sum(
    const mx::array& a,
    const mx::array& b,
    const mx::Stream& stream) {
  auto run = kernel(&Table::add, stream, {&a, &b});
  if (!run || a.shape() != b.shape() || a.dtype() != b.dtype() ||
      !is_float(a) || a.size() < WORTH_IT) {
    return std::nullopt;
  }
  // What both are made from has other uses: x + x^3 of GELU.
  Fused fused(stream);
  std::vector<int> operands{
      depends(b, a) ? fused.input(a) : fused.operand(a),
      depends(a, b) ? fused.input(b) : fused.operand(b)};
  return std::move(fused).made({"Add", run, {}, std::move(operands)}, a.shape(), a.dtype());
}

// One number is subtracted from all of a row, and rows are long: each is a call of its own.
std::optional<mx::array> difference(
    const mx::array& x,
    const mx::array& b,
    const mx::Stream& stream) {
  auto run = kernel(&Table::subtract_from_rows, stream, {&x, &b});
  if (!run || x.ndim() == 0 || x.ndim() != b.ndim() || b.shape(-1) != 1 ||
      x.dtype() != b.dtype() || !is_float(x) || size_t(x.shape(-1)) < WORTH_IT ||
      x.size() == 0 || !std::equal(x.shape().begin(), x.shape().end() - 1, b.shape().begin())) {
    return std::nullopt;
  }
  return make("Subtract", run, stream, x.shape(), x.dtype(), {x, b});
}

std::optional<mx::array> product(
    const mx::array& a,
    const mx::array& b,
    const mx::Stream& stream) {
  if (!kernel(&Table::multiply, stream, {&a, &b}) || a.shape() != b.shape() || a.dtype() != b.dtype() ||
      !is_float(a) || a.size() == 0) {
    return std::nullopt;
  }
  // Asked for one by one: kernels may be turned off meanwhile.
  auto made = [&](const char* name, Run Table::* member, std::vector<mx::array> inputs)
      -> std::optional<mx::array> {
    auto run = kernel(member, stream, {&a, &b});
    if (!run) {
      return std::nullopt;
    }
    return make(name, run, stream, a.shape(), a.dtype(), std::move(inputs));
  };
  if (is_sigmoid_of(b, a)) {
    return made(SILU, &Table::silu, {a});
  }
  if (auto gate = pending(a, SILU)) {
    return made(SWIGLU, &Table::swiglu, {(*gate)[0], b});
  }
  if (auto x = gelu_argument(a, b)) {
    return made(GELU, &Table::gelu, {*x});
  }
  if (auto gate = pending(a, GELU)) {
    return made(GEGLU, &Table::geglu, {(*gate)[0], b});
  }
  if (a.size() < WORTH_IT) {
    return std::nullopt;
  }
  return made("Multiply", &Table::multiply, {a, b});
}

std::optional<mx::array> rms_norm(
    const mx::array& x,
    const mx::array* weight,
    float eps,
    const mx::Stream& stream) {
  auto run = kernel(&Table::rms_norm, stream, {&x, weight});
  if (!run || x.ndim() == 0 || x.size() == 0 || !is_float(x) ||
      (weight &&
       (weight->ndim() != 1 || weight->shape(0) != x.shape(-1) ||
        weight->dtype() != x.dtype()))) {
    return std::nullopt;
  }
  std::vector<mx::array> inputs{x};
  if (weight) {
    inputs.push_back(*weight);
  }
  Settings settings{.a = eps, .i = weight != nullptr};
  return make(
      RMS_NORM, run, stream, x.shape(), x.dtype(), std::move(inputs), settings);
}

std::optional<mx::array> rope(
    const mx::array& x,
    int dims,
    bool traditional,
    mlx_optional_float base,
    float scale,
    int offset,
    const mx::array* offsets,
    const mx::array* freqs,
    const mx::Stream& stream) {
  auto run = kernel(&Table::rope, stream, {&x, offsets, freqs});
  if (!run || x.ndim() != 4 || x.size() == 0 || !is_float(x) || dims <= 0 ||
      dims % 2 != 0 || dims > x.shape(-1) || base.has_value == (freqs != nullptr)) {
    return std::nullopt;
  }
  if (offsets &&
      (offsets->dtype() != mx::int32 || offsets->ndim() > 1 ||
       (offsets->size() != 1 && int(offsets->size()) != x.shape(0)))) {
    return std::nullopt;
  }
  if (freqs &&
      (freqs->dtype() != mx::float32 || freqs->ndim() != 1 ||
       freqs->shape(0) != dims / 2)) {
    return std::nullopt;
  }
  std::vector<mx::array> inputs{x};
  for (auto input : {offsets, freqs}) {
    if (input) {
      inputs.push_back(*input);
    }
  }
  int given = (offsets ? 1 : 0) | (freqs ? 2 : 0) | (traditional ? 4 : 0);
  Settings settings{
      .a = base.value, .b = scale, .i = dims, .j = offset, .k = given};
  return make(
      "RoPE", run, stream, x.shape(), x.dtype(), std::move(inputs), settings);
}

std::optional<mx::array> attention(
    const mx::array& queries,
    const mx::array& keys,
    const mx::array& values,
    float scale,
    const std::string& mask_mode,
    const mx::array* mask,
    const mx::array* sinks,
    const mx::Stream& stream) {
  auto run = kernel(&Table::attention, stream, {&queries, &keys, &values, mask, sinks});
  if (!run || !is_float(queries)) {
    return std::nullopt;
  }
  for (auto x : {&queries, &keys, &values}) {
    if (x->ndim() != 4 || x->size() == 0 || x->dtype() != queries.dtype() ||
        x->shape(0) != queries.shape(0)) {
      return std::nullopt;
    }
  }
  if (keys.shape(1) != values.shape(1) || keys.shape(2) != values.shape(2) ||
      keys.shape(3) != queries.shape(3) ||
      queries.shape(1) % keys.shape(1) != 0) {
    return std::nullopt;
  }
  bool causal = mask_mode == "causal";
  // mlx-rs gives a mask with either mode.
  bool named = mask_mode == "array";
  if (causal ? mask != nullptr
             : (!named && mask_mode != "") || (named && !mask)) {
    return std::nullopt;
  }
  mx::Shape scores{
      queries.shape(0), queries.shape(1), queries.shape(2), keys.shape(2)};
  if (mask) {
    if (mask->ndim() > 4 ||
        (mask->dtype() != mx::bool_ && mask->dtype() != queries.dtype())) {
      return std::nullopt;
    }
    for (int i = 1; i <= int(mask->ndim()); i++) {
      if (mask->shape(-i) != 1 && mask->shape(-i) != scores[4 - i]) {
        return std::nullopt;
      }
    }
  }
  if (sinks &&
      (sinks->ndim() != 1 || sinks->shape(0) != queries.shape(1) ||
       sinks->dtype() != queries.dtype())) {
    return std::nullopt;
  }
  std::vector<mx::array> inputs{queries, keys, values};
  for (auto input : {mask, sinks}) {
    if (input) {
      inputs.push_back(*input);
    }
  }
  int given = (mask ? 1 : 0) | (sinks ? 2 : 0) | (causal ? 4 : 0);
  mx::Shape shape = queries.shape();
  shape.back() = values.shape(-1);
  return make(
      "Attention",
      run,
      stream,
      std::move(shape),
      queries.dtype(),
      std::move(inputs),
      {.a = scale, .k = given},
      Layout::heads_inside);
}

// The shape of a b, where a kernel takes it: b a matrix, or as many matrices as a.
std::optional<mx::Shape> product_shape(const mx::array& a, const mx::array& b) {
  if (a.ndim() < 2 || b.ndim() < 2 || a.dtype() != b.dtype() || !is_float(a) ||
      a.size() == 0 || b.size() == 0 || a.shape(-1) != b.shape(-2) ||
      (b.ndim() != 2 && !same_start(a, 2, b, 2))) {
    return std::nullopt;
  }
  mx::Shape shape = a.shape();
  shape.back() = b.shape(-1);
  return shape;
}

std::optional<mx::array>
matmul(const mx::array& a, const mx::array& b, const mx::Stream& stream) {
  auto run = kernel(&Table::matmul, stream, {&a, &b});
  auto shape = run ? product_shape(a, b) : std::nullopt;
  if (!shape) {
    return std::nullopt;
  }
  return make(MATMUL, run, stream, std::move(*shape), a.dtype(), {a, b});
}

std::optional<mx::array> addmm(
    const mx::array& c,
    const mx::array& a,
    const mx::array& b,
    float alpha,
    float beta,
    const mx::Stream& stream) {
  auto run = kernel(&Table::addmm, stream, {&a, &b, &c});
  auto shape = run ? product_shape(a, b) : std::nullopt;
  // A number, a row, or a matrix that is added to a matrix.
  bool takes = shape && c.dtype() == a.dtype() &&
      ((c.size() == 1 && c.ndim() <= shape->size()) ||
       (c.ndim() == 1 && c.shape(0) == shape->back()) ||
       (a.ndim() == 2 && b.ndim() == 2 && c.shape() == *shape));
  if (!takes) {
    return std::nullopt;
  }
  return make(
      "AddMM", run, stream, std::move(*shape), a.dtype(), {a, b, c}, {.a = alpha, .b = beta});
}

// How weights are quantized; the numbers are those of `Mode` in Rust.
struct Quantization {
  int mode;
  int group_size;
  int bits;
};

std::optional<Quantization> quantization(
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const std::string& mode,
    const mx::array& w,
    const mx::array& scales,
    const mx::array* biases) {
  struct Known {
    const char* name;
    Quantization usual;
  };
  for (const Known& known :
       {Known{"affine", {0, 64, 4}},
        Known{"mxfp4", {1, 32, 4}},
        Known{"mxfp8", {2, 32, 8}},
        Known{"nvfp4", {3, 16, 4}}}) {
    if (mode != known.name) {
      continue;
    }
    Quantization q = known.usual;
    q.group_size = group_size.has_value ? group_size.value : q.group_size;
    q.bits = bits.has_value ? bits.value : q.bits;
    bool affine = q.mode == 0;
    if (affine
            ? !biases || biases->shape() != scales.shape() ||
                biases->dtype() != scales.dtype() || !is_float(scales) ||
                q.bits < 2 || q.bits > 8 || q.bits == 7 ||
                (q.group_size != 32 && q.group_size != 64 && q.group_size != 128)
            : biases || scales.dtype() != mx::uint8 ||
                q.group_size != known.usual.group_size ||
                q.bits != known.usual.bits) {
      return std::nullopt;
    }
    int64_t columns = int64_t(scales.shape(-1)) * q.group_size;
    if (w.dtype() != mx::uint32 || w.ndim() < 2 || w.ndim() != scales.ndim() ||
        w.size() == 0 || !same_start(w, 1, scales, 1) ||
        int64_t(w.shape(-1)) * 32 != columns * q.bits) {
      return std::nullopt;
    }
    return q;
  }
  return std::nullopt;
}

float lowest(mx::Dtype dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::float16:
      return -65504.0f;
    case mx::Dtype::Val::bfloat16:
      return -0x1.fep127f;
    default:
      return std::numeric_limits<float>::lowest();
  }
}

// Attention, given the product of the weights with the values: of softmax over the products of scaled queries with
// the keys, of which a mask hides some, or to which it is added. [B, H, L, _], or [B, H, G, L, _] with one head of
// keys and values for G of queries. Settings: how keys and values are quantized, and whether there is a mask.
std::optional<mx::array> quantized_attention(
    const mx::array& weights,
    const mx::array& values,
    const mx::array& scales,
    const mx::array* biases,
    const Quantization& q,
    const mx::Shape& shape,
    const mx::Stream& stream) {
  auto softmax = pending(weights, "Softmax");
  if (!softmax || weights.ndim() < 4 || weights.ndim() > 5) {
    return std::nullopt;
  }
  mx::array scores = (*softmax)[0];
  std::optional<mx::array> mask;
  if (auto chosen = pending(scores, "Select"); chosen && is_number((*chosen)[2], lowest(scores.dtype()))) {
    mask = (*chosen)[0];
    scores = mx::array((*chosen)[1]);
  } else if (auto parts = pending(scores, "Add"); parts && parts->size() == 2) {
    int own = pending((*parts)[0], QUANTIZED_MATMUL) ? 0 : 1;
    mask = (*parts)[1 - own];
    scores = mx::array((*parts)[own]);
  }
  if (auto whole = mask ? pending(*mask, "Broadcast") : nullptr) {
    mask = mx::array((*whole)[0]);
  }
  auto parts = pending(scores, QUANTIZED_MATMUL);
  auto product = parts ? dynamic_cast<const Kernel*>(&scores.primitive()) : nullptr;
  if (!product) {
    return std::nullopt;
  }
  auto& of_keys = product->step().settings;
  auto &queries = (*parts)[0], &keys = (*parts)[1];
  auto dims = queries.ndim();
  if (!of_keys.l || of_keys.i != q.mode || of_keys.j != q.group_size || of_keys.k != q.bits ||
      keys.ndim() != dims || values.ndim() != dims || !same_start(keys, 1, values, 1) ||
      keys.shape(0) != queries.shape(0) || (keys.shape(1) != queries.shape(1) && (dims == 5 || keys.shape(1) != 1)) ||
      (dims == 5 && keys.shape(2) != 1)) {
    return std::nullopt;
  }
  auto run = kernel(
      &Table::quantized_attention, stream, {&queries, &keys, &values, &scales, mask ? &*mask : nullptr});
  if (!run) {
    return std::nullopt;
  }
  std::vector<mx::array> inputs = *parts;
  inputs.insert(inputs.end(), {values, scales});
  if (biases) {
    inputs.push_back(*biases);
  }
  if (mask) {
    inputs.push_back(*mask);
  }
  return make(
      "QuantizedAttention",
      run,
      stream,
      shape,
      queries.dtype(),
      std::move(inputs),
      {.i = q.mode, .j = q.group_size, .k = q.bits, .l = mask.has_value()});
}

std::optional<mx::array> quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const mx::array* biases,
    bool transpose,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const char* mode,
    const mx::Stream& stream) {
  auto run = kernel(&Table::quantized_matmul, stream, {&x, &w, &scales, biases});
  if (!run || x.ndim() < 2 || x.size() == 0 || !is_float(x) ||
      (w.ndim() != 2 && w.ndim() != x.ndim())) {
    return std::nullopt;
  }
  // A stack of matrices: one for each matrix of x, or one for all along a dimension.
  for (int i = 0; i < int(w.ndim()) - 2; i++) {
    if (w.shape(i) != x.shape(i) && w.shape(i) != 1) {
      return std::nullopt;
    }
  }
  auto q = quantization(group_size, bits, mode, w, scales, biases);
  if (!q || (biases && scales.dtype() != x.dtype())) {
    return std::nullopt;
  }
  int columns = scales.shape(-1) * q->group_size;
  int rows = w.shape(-2);
  if (x.shape(-1) != (transpose ? columns : rows)) {
    return std::nullopt;
  }
  mx::Shape shape = x.shape();
  shape.back() = transpose ? rows : columns;
  if (auto whole = transpose ? std::nullopt
                             : quantized_attention(x, w, scales, biases, *q, shape, stream)) {
    return whole;
  }
  std::vector<mx::array> inputs{x, w, scales};
  if (biases) {
    inputs.push_back(*biases);
  }
  return make(
      QUANTIZED_MATMUL,
      run,
      stream,
      std::move(shape),
      x.dtype(),
      std::move(inputs),
      {.i = q->mode, .j = q->group_size, .k = q->bits, .l = transpose});
}

std::optional<std::vector<mx::array>> quantize(
    const mx::array& w,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const std::string& mode,
    const mx::array* global_scale,
    const mx::Stream& stream) {
  auto run = kernel(&Table::quantize, stream, {&w});
  int group = group_size.has_value ? group_size.value : 64;
  int width = bits.has_value ? bits.value : 4;
  if (!run || mode != "affine" || global_scale || w.ndim() < 2 || w.size() == 0 ||
      !is_float(w) || (group != 32 && group != 64 && group != 128) || width < 2 ||
      width > 8 || width == 7 || w.shape(-1) % group != 0) {
    return std::nullopt;
  }
  auto packed = w.shape();
  packed.back() = w.shape(-1) / 32 * width;
  auto groups = w.shape();
  groups.back() = w.shape(-1) / group;
  return mx::array::make_arrays(
      {packed, groups, groups},
      {mx::uint32, w.dtype(), w.dtype()},
      std::make_shared<Kernel>(
          stream, Step{"Quantize", run, {.j = group, .k = width}, {}}, Layout::rows),
      {w});
}

std::optional<mx::array> dequantize(
    const mx::array& w,
    const mx::array& scales,
    const mx::array* biases,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const char* mode,
    mlx_optional_dtype dtype,
    const mx::Stream& stream) {
  auto run = kernel(&Table::dequantize, stream, {&w, &scales, biases});
  if (!run || dtype.has_value) {
    return std::nullopt;
  }
  auto q = quantization(group_size, bits, mode, w, scales, biases);
  if (!q || !biases) {
    return std::nullopt;
  }
  mx::Shape shape = w.shape();
  shape.back() = scales.shape(-1) * q->group_size;
  return make(
      "Dequantize",
      run,
      stream,
      std::move(shape),
      scales.dtype(),
      {w, scales, *biases},
      {.i = q->mode, .j = q->group_size, .k = q->bits});
}

// An operation on the last axis, of a length worth a kernel.
Run on_rows(
    Run Table::* member,
    const mx::array& x,
    int axis,
    const mx::Stream& stream) {
  auto run = kernel(member, stream, {&x});
  bool last = x.ndim() > 0 && (axis == -1 || axis == int(x.ndim()) - 1);
  return last && is_float(x) && x.size() >= WORTH_IT ? run : nullptr;
}

std::optional<mx::array> softmax(
    const mx::array& x,
    int axis,
    bool precise,
    const mx::Stream& stream) {
  auto run = on_rows(&Table::softmax, x, axis, stream);
  if (!run) {
    return std::nullopt;
  }
  return make("Softmax", run, stream, x.shape(), x.dtype(), {x}, {.i = precise});
}

std::optional<mx::array> reduced(
    const char* name,
    Run Table::* member,
    const mx::array& x,
    int axis,
    bool keep,
    mx::Dtype dtype,
    const mx::Stream& stream) {
  auto run = on_rows(member, x, axis, stream);
  if (!run) {
    return std::nullopt;
  }
  mx::Shape shape = x.shape();
  if (keep) {
    shape.back() = 1;
  } else {
    shape.pop_back();
  }
  return make(name, run, stream, std::move(shape), dtype, {x});
}

// What a function of mlx-c does that waits for arrays. mlx-rs calls one of them before it looks at numbers.
template <typename Arrays, typename Original>
int waited(Arrays arrays, Original original) {
  try {
    if (table.load(std::memory_order_acquire)) {
      help_with(arrays());
    }
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
  return original();
}

} // namespace

extern "C" {

void mlx_sys_set_kernels(const Table* kernels) {
  table.store(kernels, std::memory_order_release);
}

int mlx_add(mlx_array* res, const mlx_array a, const mlx_array b, const mlx_stream s) {
  return handed(
      res,
      [&] { return sum(mlx_array_get_(a), mlx_array_get_(b), mlx_stream_get_(s)); },
      [&] { return stock_mlx_add(res, a, b, s); });
}

int mlx_multiply(mlx_array* res, const mlx_array a, const mlx_array b, const mlx_stream s) {
  return handed(
      res,
      [&] { return product(mlx_array_get_(a), mlx_array_get_(b), mlx_stream_get_(s)); },
      [&] { return stock_mlx_multiply(res, a, b, s); });
}

int mlx_subtract(mlx_array* res, const mlx_array a, const mlx_array b, const mlx_stream s) {
  return handed(
      res,
      [&] { return difference(mlx_array_get_(a), mlx_array_get_(b), mlx_stream_get_(s)); },
      [&] { return stock_mlx_subtract(res, a, b, s); });
}

int mlx_fast_rms_norm(
    mlx_array* res,
    const mlx_array x,
    const mlx_array weight,
    float eps,
    const mlx_stream s) {
  return handed(
      res,
      [&] { return rms_norm(mlx_array_get_(x), maybe(weight), eps, mlx_stream_get_(s)); },
      [&] { return stock_mlx_fast_rms_norm(res, x, weight, eps, s); });
}

int mlx_fast_rope(
    mlx_array* res,
    const mlx_array x,
    int dims,
    bool traditional,
    mlx_optional_float base,
    float scale,
    int offset,
    const mlx_array freqs,
    const mlx_stream s) {
  return handed(
      res,
      [&] {
        return rope(
            mlx_array_get_(x), dims, traditional, base, scale, offset, nullptr, maybe(freqs), mlx_stream_get_(s));
      },
      [&] { return stock_mlx_fast_rope(res, x, dims, traditional, base, scale, offset, freqs, s); });
}

int mlx_fast_rope_dynamic(
    mlx_array* res,
    const mlx_array x,
    int dims,
    bool traditional,
    mlx_optional_float base,
    float scale,
    const mlx_array offset,
    const mlx_array freqs,
    const mlx_stream s) {
  return handed(
      res,
      [&] {
        return rope(
            mlx_array_get_(x), dims, traditional, base, scale, 0, &mlx_array_get_(offset), maybe(freqs), mlx_stream_get_(s));
      },
      [&] { return stock_mlx_fast_rope_dynamic(res, x, dims, traditional, base, scale, offset, freqs, s); });
}

int mlx_fast_scaled_dot_product_attention(
    mlx_array* res,
    const mlx_array queries,
    const mlx_array keys,
    const mlx_array values,
    float scale,
    const char* mask_mode,
    const mlx_array mask,
    const mlx_array sinks,
    bool force_fused,
    const mlx_stream s) {
  return handed(
      res,
      [&] {
        return attention(
            mlx_array_get_(queries),
            mlx_array_get_(keys),
            mlx_array_get_(values),
            scale,
            mask_mode ? mask_mode : "",
            maybe(mask),
            maybe(sinks),
            mlx_stream_get_(s));
      },
      [&] {
        return stock_mlx_fast_scaled_dot_product_attention(
            res, queries, keys, values, scale, mask_mode, mask, sinks, force_fused, s);
      });
}

int mlx_matmul(mlx_array* res, const mlx_array a, const mlx_array b, const mlx_stream s) {
  return handed(
      res,
      [&] { return matmul(mlx_array_get_(a), mlx_array_get_(b), mlx_stream_get_(s)); },
      [&] { return stock_mlx_matmul(res, a, b, s); });
}

int mlx_addmm(
    mlx_array* res,
    const mlx_array c,
    const mlx_array a,
    const mlx_array b,
    float alpha,
    float beta,
    const mlx_stream s) {
  return handed(
      res,
      [&] {
        return addmm(
            mlx_array_get_(c), mlx_array_get_(a), mlx_array_get_(b), alpha, beta, mlx_stream_get_(s));
      },
      [&] { return stock_mlx_addmm(res, c, a, b, alpha, beta, s); });
}

int mlx_eval(const mlx_vector_array outputs) {
  return waited(
      [&] { return std::span<const mx::array>(mlx_vector_array_get_(outputs)); },
      [&] { return stock_mlx_eval(outputs); });
}

int mlx_array_eval(mlx_array arr) {
  return waited(
      [&] { return std::span<const mx::array>(&mlx_array_get_(arr), 1); },
      [&] { return stock_mlx_array_eval(arr); });
}

int mlx_quantize(
    mlx_vector_array* res,
    const mlx_array w,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const char* mode,
    const mlx_array global_scale,
    const mlx_stream s) {
  return handed(
      res,
      [&] {
        return quantize(
            mlx_array_get_(w), group_size, bits, mode, maybe(global_scale), mlx_stream_get_(s));
      },
      [&] { return stock_mlx_quantize(res, w, group_size, bits, mode, global_scale, s); });
}

int mlx_quantized_matmul(
    mlx_array* res,
    const mlx_array x,
    const mlx_array w,
    const mlx_array scales,
    const mlx_array biases,
    bool transpose,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const char* mode,
    const mlx_stream s) {
  return handed(
      res,
      [&] {
        return quantized_matmul(
            mlx_array_get_(x),
            mlx_array_get_(w),
            mlx_array_get_(scales),
            maybe(biases),
            transpose,
            group_size,
            bits,
            mode,
            mlx_stream_get_(s));
      },
      [&] {
        return stock_mlx_quantized_matmul(
            res, x, w, scales, biases, transpose, group_size, bits, mode, s);
      });
}

int mlx_dequantize(
    mlx_array* res,
    const mlx_array w,
    const mlx_array scales,
    const mlx_array biases,
    mlx_optional_int group_size,
    mlx_optional_int bits,
    const char* mode,
    const mlx_array global_scale,
    mlx_optional_dtype dtype,
    const mlx_stream s) {
  return handed(
      res,
      [&]() -> std::optional<mx::array> {
        if (maybe(global_scale)) {
          return std::nullopt;
        }
        return dequantize(
            mlx_array_get_(w), mlx_array_get_(scales), maybe(biases), group_size, bits, mode, dtype, mlx_stream_get_(s));
      },
      [&] {
        return stock_mlx_dequantize(
            res, w, scales, biases, group_size, bits, mode, global_scale, dtype, s);
      });
}

int mlx_softmax_axis(
    mlx_array* res,
    const mlx_array a,
    int axis,
    bool precise,
    const mlx_stream s) {
  return handed(
      res,
      [&] { return softmax(mlx_array_get_(a), axis, precise, mlx_stream_get_(s)); },
      [&] { return stock_mlx_softmax_axis(res, a, axis, precise, s); });
}

int mlx_logsumexp_axis(
    mlx_array* res,
    const mlx_array a,
    int axis,
    bool keepdims,
    const mlx_stream s) {
  return handed(
      res,
      [&] {
        auto& x = mlx_array_get_(a);
        return reduced("LogSumExp", &Table::logsumexp, x, axis, keepdims, x.dtype(), mlx_stream_get_(s));
      },
      [&] { return stock_mlx_logsumexp_axis(res, a, axis, keepdims, s); });
}

int mlx_argmax_axis(
    mlx_array* res,
    const mlx_array a,
    int axis,
    bool keepdims,
    const mlx_stream s) {
  return handed(
      res,
      [&] {
        return reduced(
            "ArgMax", &Table::argmax, mlx_array_get_(a), axis, keepdims, mx::uint32, mlx_stream_get_(s));
      },
      [&] { return stock_mlx_argmax_axis(res, a, axis, keepdims, s); });
}

} // extern "C"
