//! What the kernels run on.

use std::sync::OnceLock;

use crate::pool::{Pool, default_threads};
use crate::{Isa, Kernel};

/// An instruction set and threads: the first argument of every kernel.
pub struct Cpu {
    isa: Isa,
    pool: Pool,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu").field("isa", &self.isa).field("threads", &self.threads()).finish()
    }
}

impl Cpu {
    /// Kernels of `isa` on `threads` threads, the calling one among them; none means one.
    ///
    /// # Panics
    ///
    /// Where this processor does not have the instructions.
    pub fn new(isa: Isa, threads: usize) -> Self {
        assert!(isa.is_available(), "this processor has no {}", isa.name());
        Self { isa, pool: Pool::new(threads) }
    }

    /// The one that a program shares: the fastest instruction set, or the one that the environment
    /// variable `MLX_CPU_ISA` names (see [`Isa::name`]) where it is available, and a
    /// thread for every core that the process may use, or `MLX_CPU_THREADS`.
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Cpu> = OnceLock::new();
        GLOBAL.get_or_init(|| {
            let named = std::env::var("MLX_CPU_ISA").unwrap_or_default();
            let isa = match Isa::available().find(|isa| isa.name() == named.trim()) {
                Some(isa) => isa,
                None => {
                    if !named.trim().is_empty() {
                        let here: Vec<_> = Isa::available().map(Isa::name).collect();
                        eprintln!("MLX_CPU_ISA={named} is not there: this processor has {}", here.join(", "));
                    }
                    Isa::best()
                }
            };
            Self::new(isa, default_threads())
        })
    }

    /// The instruction set.
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs a kernel on this thread.
    #[inline]
    pub fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.isa.run(kernel)
    }

    /// Calls `task` with 0 to `count - 1`, shared among the threads.
    pub fn parallel(&self, count: usize, task: impl Fn(usize) + Sync) {
        self.pool.run(count, &task);
    }

    /// Takes part in what other threads run with [`parallel`](Self::parallel), until `until` answers yes: for a thread
    /// that waits for them anyway, so that no more threads want to run than there are.
    ///
    /// Returns earlier where another thread does so already or wants to, there is only one thread, or nothing was to be
    /// done for about a millisecond. The caller then waits in its own way. `until` is called often. Tasks get this
    /// thread's stack and floating-point mode, and its scratch memory stays with it.
    pub fn help(&self, until: &dyn Fn() -> bool) {
        self.pool.help(until);
    }

    /// Calls `task` for each piece of `size` elements of `out` (the last may be shorter) with its
    /// number, shared among the threads.
    pub fn parallel_pieces<T: Send>(
        &self,
        out: &mut [T],
        size: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let (length, size) = (out.len(), size.max(1));
        let start = Shared(out.as_mut_ptr());
        self.parallel(length.div_ceil(size), |index| {
            let from = index * size;
            // SAFETY: within `out`, which is borrowed for the whole call; each index is called once, and
            // the pieces of different indices do not overlap.
            let piece =
                unsafe { std::slice::from_raw_parts_mut(start.get().add(from), size.min(length - from)) };
            task(index, piece);
        });
    }
}

/// A pointer into an output whose parts belong to different tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

impl<T> Shared<T> {
    /// The pointer. A method, so that closures capture the wrapper.
    pub(crate) const fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: whoever uses the pointer keeps to parts that no other task touches.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}
