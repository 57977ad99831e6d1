//! An instruction set and threads: what kernels run on.

use std::sync::OnceLock;

use crate::environment::{self, Settings};
use crate::pool::Pool;
use crate::{ActivationBits, Isa, Kernel};

/// An instruction set and threads: the first argument of every kernel.
pub struct Cpu {
    isa: Isa,
    activations: ActivationBits,
    pool: Pool,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu").field("isa", &self.isa).field("threads", &self.threads()).finish()
    }
}

impl Cpu {
    /// Runs kernels with the instructions of `isa` on `threads` threads, the calling one among them (0 counts as 1).
    ///
    /// # Panics
    ///
    /// If this processor does not have the instructions.
    pub fn new(isa: Isa, threads: usize) -> Self {
        assert!(isa.is_available(), "this processor has no {}", isa.name());
        Self { isa, activations: ActivationBits::default(), pool: Pool::new(threads) }
    }

    /// The same with `bits` bits of activations in products of whole numbers. [`new`](Self::new) has 16.
    #[must_use]
    pub fn with_activations(self, bits: ActivationBits) -> Self {
        Self { activations: bits, ..self }
    }

    /// The one `Cpu` that a program shares.
    ///
    /// It has the instruction set that the environment variable `MLX_CPU_ISA` names (see [`Isa::name`]), or the fastest
    /// one that is available, and as many threads as `MLX_CPU_THREADS` says, or one for each core that the process may
    /// use. `MLX_CPU_ACTIVATIONS` says how many bits of activations take part in products of whole numbers, 8 or 16 (the
    /// default). A value that cannot be used counts as no value; [`environment_warnings`](Self::environment_warnings) has
    /// it.
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Cpu> = OnceLock::new();
        GLOBAL.get_or_init(|| {
            let Settings { isa, threads, activations, .. } = environment::settings();
            Self::new(*isa, *threads).with_activations(*activations)
        })
    }

    /// The number of threads that [`global`](Self::global) has, without starting them.
    pub fn global_threads() -> usize {
        environment::settings().threads
    }

    /// What `MLX_CPU_ISA`, `MLX_CPU_THREADS` and `MLX_CPU_ACTIVATIONS` ask for and [`global`](Self::global) does not have: a sentence for each
    /// variable that names it, its value and what is used instead. Empty if there is nothing to say.
    ///
    /// This crate prints nothing: a program shows these warnings as it shows others.
    pub fn environment_warnings() -> &'static [String] {
        &environment::settings().warnings
    }

    /// The instruction set.
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// How many bits of activations take part in products of whole numbers.
    pub const fn activations(&self) -> ActivationBits {
        self.activations
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

    /// Calls `task` with 0 to `count - 1`, each once, on any of the threads, and returns when all calls have returned.
    pub fn parallel(&self, count: usize, task: impl Fn(usize) + Sync) {
        self.pool.run(count, &task);
    }

    /// Runs tasks that other threads share with [`parallel`](Self::parallel), until `until` returns true. Meant for a
    /// thread that waits for their results: no more threads than cores want to run then.
    ///
    /// Returns earlier if another thread helps or wants to, if there is only one thread, or if there was no task for
    /// about a millisecond. The caller then waits in its own way. `until` is called often. Tasks run with this thread's
    /// stack and floating-point mode, and the scratch memory that they use stays with this thread.
    pub fn help(&self, until: &dyn Fn() -> bool) {
        self.pool.help(until);
    }

    /// Cuts `out` into pieces of `size` elements (the last may be shorter), and calls `task` with the number of each
    /// piece and the piece, on any of the threads.
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

// SAFETY: code that uses the pointer touches only its own task's part of the output.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}
