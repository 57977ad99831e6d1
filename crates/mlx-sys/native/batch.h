// Calls of kernels that are sent to a stream's thread together.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "call.h"
#include "mlx/stream.h"

namespace kernels {

// Collects calls of kernels, and sends them to the thread of a stream as one task. To send a task costs more than a kernel of
// a small model takes.
class Batch {
 public:
  // From here on the nodes that this thread evaluates add their calls to the batch.
  explicit Batch(const mx::Stream& stream);
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // The batch of this thread, or null.
  static Batch* current();

  void add(Call call);

  // Keeps memory until all calls so far have run.
  void keep(std::shared_ptr<void> memory);

  // Called behind each node, with the size of what it writes: sends the calls where they are many, or write much.
  void end_node(size_t bytes);

  // Sends the calls. Waits where too many tasks of this thread have not run.
  void send();

  // Called when MLX has sent tasks of its own: the stream's thread runs them, and looks for more before it sleeps.
  void others_were_sent();

  // Sends the calls, and waits until `is_enough()`, or until all have run.
  template <typename Enough>
  void finish_until(Enough is_enough);

 private:
  // How far the tasks of a thread are.
  struct Progress {
    // How many batches have not run.
    std::atomic<int> waiting{0};
    // What they write.
    std::atomic<size_t> bytes{0};
    // The number of the newest task, whether a batch or not.
    std::atomic<uint64_t> newest{0};
  };

  // What the stream's thread gets.
  struct Task {
    std::vector<Call> calls;
    std::vector<std::shared_ptr<void>> memory;
    std::shared_ptr<Progress> progress;
    size_t bytes = 0;
    uint64_t number = 0;

    void run();
  };

  // Works on kernels, or sleeps, until a batch has run.
  void wait_for_one(int waiting);

  mx::Stream stream_;
  std::shared_ptr<Progress> progress_;
  std::unique_ptr<Task> task_;
  size_t bytes_ = 0;
};

template <typename Enough>
void Batch::finish_until(Enough is_enough) {
  send();
  while (!is_enough()) {
    int waiting = progress_->waiting.load();
    if (waiting == 0) {
      return;
    }
    wait_for_one(waiting);
  }
}

} // namespace kernels
