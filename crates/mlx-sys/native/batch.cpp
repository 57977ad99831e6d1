// Calls of kernels that are sent to a stream's thread together.

#include "batch.h"

#include <chrono>
#include <thread>
#include <utility>

#include "mlx/memory.h"
#include "mlx/scheduler.h"
#include "wait.h"

namespace kernels {

namespace {

// The stream's thread starts with the first calls while this one makes the next.
constexpr size_t MOST_CALLS = 24;
// A batch that writes more is sent.
constexpr size_t MOST_BYTES = 256 << 10;
// How much this thread may be ahead of the stream's: what waiting batches write is allocated, and the next token's nodes are no
// use before this token's have run.
constexpr int MOST_WAITING = 32;
constexpr size_t MOST_WAITING_BYTES = 8 << 20;

// The stream's thread looks this long for the next task before it sleeps. To wake it takes about as long as a model with small
// matrices needs for a token, and the next task often comes while the next token's graph is built.
constexpr auto LOOKS = std::chrono::microseconds(100);
// Between two looks at the clock.
constexpr int LOOKS_PER_CLOCK = 64;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local Batch* current = nullptr;

} // namespace

Batch::Batch(const mx::Stream& stream) : stream_(stream) {
  thread_local auto progress = std::make_shared<Progress>();
  progress_ = progress;
  kernels::current = this;
}

Batch::~Batch() {
  kernels::current = nullptr;
}

Batch* Batch::current() {
  return kernels::current;
}

void Batch::add(Call call) {
  if (!task_) {
    task_ = std::make_unique<Task>();
    // The last node may have several.
    task_->calls.reserve(MOST_CALLS + 8);
    task_->memory.reserve(4 * MOST_CALLS);
  }
  task_->calls.push_back(std::move(call));
}

void Batch::keep(std::shared_ptr<void> memory) {
  if (!memory) {
    return;
  }
  if (!task_) {
    task_ = std::make_unique<Task>();
  }
  task_->memory.push_back(std::move(memory));
}

void Batch::end_node(size_t bytes) {
  bytes_ += bytes;
  if (task_ && (task_->calls.size() >= MOST_CALLS || bytes_ >= MOST_BYTES)) {
    send();
  }
}

void Batch::send() {
  if (task_) {
    auto number = progress_->newest.load() + 1;
    task_->progress = progress_;
    task_->number = number;
    task_->bytes = std::exchange(bytes_, 0);
    progress_->bytes.fetch_add(task_->bytes);
    progress_->waiting.fetch_add(1);
    // Shared, since MLX copies tasks on their way.
    mx::scheduler::enqueue(stream_, [task = std::shared_ptr<Task>(std::move(task_))] { task->run(); });
    // Behind the enqueuing: the task before finds this one at once.
    progress_->newest.store(number);
  }
  auto is_far_ahead = [&](int waiting) {
    return waiting > MOST_WAITING || progress_->bytes.load() > MOST_WAITING_BYTES ||
        mx::get_active_memory() > mx::get_memory_limit();
  };
  for (int now = progress_->waiting.load(); now > 0 && is_far_ahead(now); now = progress_->waiting.load()) {
    wait_for_one(now);
  }
}

void Batch::others_were_sent() {
  if (!task_) {
    task_ = std::make_unique<Task>();
  }
  send();
}

void Batch::wait_for_one(int waiting) {
  auto& count = progress_->waiting;
  help([&] { return count.load() != waiting; });
  // Returns at once where the number is another one.
  count.wait(waiting);
}

void Batch::Task::run() {
  // At the end, also where a kernel fails.
  struct End {
    Task& task;
    ~End() {
      task.memory.clear();
      task.progress->bytes.fetch_sub(task.bytes);
      task.progress->waiting.fetch_sub(1);
      task.progress->waiting.notify_all();
    }
  };
  {
    End end{*this};
    for (auto& call : calls) {
      call();
    }
  }
  // On a single core the other thread would wait meanwhile.
  static const bool looks_pay = std::thread::hardware_concurrency() > 1;
  if (!looks_pay) {
    return;
  }
  auto until = std::chrono::steady_clock::now() + LOOKS;
  for (int looks = 1; progress->newest.load(std::memory_order_relaxed) == number; looks++) {
    pause();
    if (looks % LOOKS_PER_CLOCK == 0 && std::chrono::steady_clock::now() > until) {
      break;
    }
  }
}

} // namespace kernels
