//! Threads that share the tasks of one job at a time.
//!
//! Each thread has a part of the tasks and takes them in order, so that it reads neighbouring memory as one stream. A
//! thread whose part is empty takes the last task of another part. A call therefore never waits for a sleeping worker:
//! it starts with the workers that are awake, and wakes the others.
//!
//! A thread that waits for the result of other threads can *help*: it takes the place of the first worker, which sleeps
//! meanwhile. There are then never more running threads than cores, and the system interrupts no thread in the middle
//! of a task.
//!
//! # Memory orderings
//!
//! - `state` publishes all data. [`Pool::run`] writes the job and the parts, then opens the job by storing `state`
//!   (Release). A worker joins with a compare-exchange (Acquire) that succeeds only while the same job is open. It reads
//!   that store, or a later read-modify-write of `state`, which belongs to the store's release sequence; so it sees the
//!   job and the parts.
//! - A worker leaves with `fetch_sub` (Release), and the caller loads `state` (Acquire) until no worker is in the job.
//!   So the caller sees all that the tasks wrote, and no worker reads the job any more when the next call writes it.
//!   With several workers the caller reads the last `fetch_sub` only, but that continues the release sequences of the
//!   earlier ones.
//! - `state` and `sleeps` together lose no wake-up. The caller stores `state` and then loads `sleeps`; a worker stores
//!   `sleeps` and then loads `state`. All four are SeqCst, so at least one of the two threads sees the other's store:
//!   either the worker does not park, or the caller unparks it. Acquire and Release would allow both to miss it.
//! - A part is one atomic number, and all its operations are Relaxed. Each task is taken once, because a compare-exchange
//!   reads the latest value whatever its ordering. Nothing is published through a part: `state` has published it before.
//! - `stop` needs no ordering of its own: [`Pool::drop`] unparks every worker after the store, and `park` sees what was
//!   written before `unpark`.
//! - `helped`, `another_waits` and `reserved_until` are hints about who should run. An old value costs time, never a
//!   result: the caller runs every task that nobody else takes. Only the exchange of `helped` must be atomic, so that
//!   one thread at a time is in the first worker's place.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

/// How often a worker looks for a job before it sleeps. That takes about 130 microseconds: longer than the time between
/// two products of a decoding model, and too short to burn a core while a program is idle. Sleeping and waking cost
/// both threads time, above all on a virtual machine.
/// Few for Miri, so that workers sleep and are woken there too.
const LOOKS_BEFORE_SLEEP: u32 = if cfg!(miri) { 8 } else { 2000 };
/// A thread that looks for a job yields its core at every fourth look. The thread that builds the next step's graph may
/// need the core, or the caller, if it was woken on the same core.
const LOOKS_PER_YIELD: u32 = 4;
/// The same for the caller, which waits for the last tasks to end.
const WAITS_PER_YIELD: u32 = 64;

/// How often a helper looks for a job before it leaves. That takes about a millisecond: longer than what a model does
/// on one thread between two jobs.
const LOOKS_BEFORE_LEAVING: u32 = if cfg!(miri) { 8 } else { 10_000 };
/// How long the first worker's place stays reserved after a helper has left, in microseconds. The helper builds the
/// next part of a graph in that time, and the first worker would take its core.
const RESERVED: u64 = 2000;

/// A bit of `state`: workers may join the job.
const OPEN: u64 = 1 << 31;
/// The bits of `state` that count the workers in the job.
const JOINED: u64 = OPEN - 1;

/// Worker threads, beside the thread that calls [`run`](Self::run).
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held while a job runs. A call that finds it held runs all of its tasks on its own thread.
    busy: Mutex<()>,
}

struct Worker {
    /// Its place among the workers that should have been started.
    index: usize,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

/// What all threads share. The module's documentation has the argument for the orderings.
struct Shared {
    /// The number of the job (upper 32 bits), [`OPEN`], and how many workers are in the job ([`JOINED`]).
    state: AtomicU64,
    /// The tasks that nobody has taken: a part for each thread, the caller's first.
    parts: Vec<Part>,
    /// Written while no job is open and no worker is in one.
    job: UnsafeCell<Option<Task>>,
    /// The payload of a task that panicked.
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    /// For each worker, whether it sleeps or is about to.
    sleeps: Vec<AtomicBool>,
    /// Whether a helper is in the first worker's place.
    helped: AtomicBool,
    /// Whether another thread waits for its turn to help.
    another_waits: AtomicBool,
    /// Until when the first worker's place is reserved for a helper, in microseconds since `start`.
    reserved_until: AtomicU64,
    start: Instant,
    /// Whether the workers should end.
    stop: AtomicBool,
}

/// What the tasks of a job call with their numbers.
type Task = *const (dyn Fn(usize) + Sync);

// SAFETY: a worker reads `job` only between joining an open job and leaving it, and the caller writes it only when no
// job is open and all workers have left; `state` orders the two. The task is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is not used outside of a job.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads`, the calling one among them. Starts the others.
    pub fn new(threads: usize) -> Self {
        let count = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            parts: (0..=count).map(|_| Part::default()).collect(),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleeps: (0..count).map(|_| AtomicBool::new(false)).collect(),
            helped: AtomicBool::new(false),
            another_waits: AtomicBool::new(false),
            reserved_until: AtomicU64::new(0),
            start: Instant::now(),
            stop: AtomicBool::new(false),
        });
        let workers = (0..count)
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                let handle = thread::Builder::new()
                    .name(format!("mlx-cpu-{}", index + 1))
                    .spawn(move || shared.work(index))
                    // If the system grants no more threads, fewer share the tasks.
                    .ok()?;
                Some(Worker { index, thread: handle.thread().clone(), handle: Some(handle) })
            })
            .collect();
        Self { shared, workers, busy: Mutex::new(()) }
    }

    /// The number of threads, the calling one among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with 0 to `count - 1`, each once, on any of the threads, and returns when all
    /// have returned. If a task panics, this panics after the others are done.
    pub fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = || (0..count).for_each(task);
        if count <= 1 || self.workers.is_empty() {
            return alone();
        }
        // A part holds its numbers in 32 bits each.
        let Ok(tasks) = u32::try_from(count) else {
            return alone();
        };
        // It may be held by another thread, or by this one further up, if a task starts tasks.
        let Ok(_busy) = self.busy.try_lock() else {
            return alone();
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No worker is in a job after this function returns, so
        // none uses the task later.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(task)
        };
        // SAFETY: no job is open and no worker is in one: the previous call has waited for that.
        unsafe { *shared.job.get() = Some(task) };
        shared.share_out(tasks);
        // Relaxed: only this function changes the number, and `busy` orders its calls.
        let number = (shared.state.load(Ordering::Relaxed) >> 32) + 1;
        // Release for `join`. SeqCst for `sleep`: the loads of `sleeps` in `wake` must not move before it.
        shared.state.store(number << 32 | OPEN, Ordering::SeqCst);
        let needed = self.workers.iter().take(count - 1);
        needed.filter(|worker| worker.index > 0).for_each(|worker| shared.wake(worker));
        // Asked again before each task: the helper may not have come back in time.
        shared.take_tasks(task, 0, || {
            if let Some(first) = self.workers.first().filter(|worker| worker.index == 0)
                && !shared.is_reserved()
            {
                shared.wake(first);
            }
        });
        // From here on `join` fails. The loads below do the ordering, so Relaxed would be enough.
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0_u32;
        // Acquire: pairs with the `fetch_sub` with which workers leave.
        while shared.state.load(Ordering::Acquire) & JOINED != 0 {
            pause(&mut looks, WAITS_PER_YIELD);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            drop(_busy);
            resume_unwind(panic);
        }
    }

    /// Runs tasks of other threads' jobs, in the first worker's place, until `until` returns true. Returns earlier if
    /// there is no such place, another thread is in it or waits for it, or there has been no job for a while.
    pub fn help(&self, until: &dyn Fn() -> bool) {
        /// The first worker's place.
        struct Place<'a>(&'a Shared);

        impl Drop for Place<'_> {
            fn drop(&mut self) {
                self.0.helped.store(false, Ordering::SeqCst);
            }
        }

        let shared = &*self.shared;
        if self.workers.is_empty() {
            return;
        }
        // The exchange lets one helper in. No data goes with it, so its ordering does not matter.
        if shared.helped.swap(true, Ordering::SeqCst) {
            // Two threads that wait take turns. Otherwise one could keep the other from going on.
            return shared.another_waits.store(true, Ordering::Relaxed);
        }
        let _place = Place(shared);
        shared.another_waits.store(false, Ordering::Relaxed);
        shared.help(until);
    }
}

impl Shared {
    /// Wakes a worker if it sleeps.
    fn wake(&self, worker: &Worker) {
        // SeqCst, after the SeqCst store of `state` in `run`: the other side of `sleep`.
        if self.sleeps[worker.index].load(Ordering::SeqCst) {
            worker.thread.unpark();
        }
    }

    /// Whether the first worker's place belongs to a helper, one that is there or one that will be back soon.
    fn is_reserved(&self) -> bool {
        let until = self.reserved_until.load(Ordering::Relaxed);
        self.helped.load(Ordering::SeqCst) || until > 0 && until > self.now()
    }

    /// Microseconds since the start.
    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Runs tasks of the job that `state` says is open. Returns false if that job is closed or its state has changed.
    fn join(&self, state: u64, index: usize) -> bool {
        // Acquire: pairs with the store of `state` in `run`, so that the job and the parts are visible. If it fails,
        // nothing is read, so Relaxed is enough.
        if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // SAFETY: this worker is in an open job, which is not written until it has left.
        if let Some(task) = unsafe { *self.job.get() } {
            self.take_tasks(task, index + 1, || ());
        }
        // Release: pairs with the Acquire load in `run`, which waits for this.
        self.state.fetch_sub(1, Ordering::AcqRel);
        true
    }

    /// The loop of a helper.
    fn help(&self, until: &dyn Fn() -> bool) {
        let (mut last, mut looks) = (0, 0);
        while !until() {
            let state = self.state.load(Ordering::SeqCst);
            if is_new(state, last) {
                if self.join(state, 0) {
                    last = state >> 32;
                    looks = 0;
                }
            } else if looks < LOOKS_BEFORE_LEAVING && !self.another_waits.load(Ordering::Relaxed) {
                pause(&mut looks, LOOKS_PER_YIELD);
            } else {
                // It may sleep elsewhere now, so nothing is reserved for it.
                return self.reserved_until.store(0, Ordering::Relaxed);
            }
        }
        self.reserved_until.store(self.now() + RESERVED, Ordering::Relaxed);
    }

    /// The loop of a worker.
    fn work(&self, index: usize) {
        let mut last = 0;
        loop {
            let mut looks = 0;
            let state = loop {
                let state = self.state.load(Ordering::SeqCst);
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                if is_new(state, last) {
                    break state;
                }
                let is_replaced = index == 0 && self.helped.load(Ordering::Relaxed);
                if looks < LOOKS_BEFORE_SLEEP && !is_replaced {
                    pause(&mut looks, LOOKS_PER_YIELD);
                } else {
                    self.sleep(index, last);
                    looks = 0;
                }
            };
            if self.join(state, index) {
                last = state >> 32;
            }
        }
    }

    /// Sleeps until another thread wakes this worker, unless a job has been opened since the worker looked.
    fn sleep(&self, index: usize, last: u64) {
        // SeqCst for both: the load of `state` must not move before the store of `sleeps`. In `run` and `wake` it is
        // the other way round.
        self.sleeps[index].store(true, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        if !is_new(state, last) && !self.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        // If `wake` still reads true, its `unpark` lets the next `park` return at once, and the worker looks again.
        self.sleeps[index].store(false, Ordering::SeqCst);
    }

    /// Gives each thread its part of the tasks.
    fn share_out(&self, tasks: u32) {
        let threads = self.parts.len().min(tasks as usize) as u64;
        for (part, index) in self.parts.iter().zip(0..) {
            let border = |index: u64| (u64::from(tasks) * index.min(threads) / threads) as u32;
            part.set(border(index), border(index + 1));
        }
    }

    /// Runs the tasks of part `own`, then those that are left in the other parts. Calls `before` before each task.
    fn take_tasks(&self, task: Task, own: usize, before: impl Fn()) {
        let (earlier, from) = self.parts.split_at(own);
        let own = std::iter::from_fn(|| from.first().and_then(Part::take_first));
        let others = from.iter().skip(1).chain(earlier);
        let left = others.flat_map(|part| std::iter::from_fn(|| part.take_last()));
        for index in own.chain(left) {
            before();
            // SAFETY: the task outlives the job, which this thread is in.
            let task = unsafe { &*task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index as usize))) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
    }
}

/// Whether `state` says that a job is open, and it is not the job with number `last`.
fn is_new(state: u64, last: u64) -> bool {
    state & OPEN != 0 && state >> 32 != last
}

/// Waits between two looks. Every `per_yield`-th time other threads may have the core.
fn pause(looks: &mut u32, per_yield: u32) {
    *looks += 1;
    if looks.is_multiple_of(per_yield) {
        thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// A range of tasks: the first in the upper 32 bits, the end in the lower ones. In a cache line of its own.
///
/// All operations are Relaxed; the module's documentation says why.
#[derive(Default)]
#[repr(align(128))]
struct Part(AtomicU64);

impl Part {
    /// Sets the range. No thread may take tasks meanwhile.
    fn set(&self, first: u32, end: u32) {
        self.0.store(u64::from(first) << 32 | u64::from(end), Ordering::Relaxed);
    }

    /// Takes the first task of the range.
    fn take_first(&self) -> Option<u32> {
        self.take(|first, end| (first, first + 1, end))
    }

    /// Takes the last task of the range.
    fn take_last(&self) -> Option<u32> {
        self.take(|first, end| (end - 1, first, end - 1))
    }

    /// Takes a task of a range that is not empty: `which` returns the task, and the first and the end of what is left.
    fn take(&self, which: impl Fn(u32, u32) -> (u32, u32, u32)) -> Option<u32> {
        let mut part = self.0.load(Ordering::Relaxed);
        loop {
            let (first, end) = ((part >> 32) as u32, part as u32);
            if first >= end {
                return None;
            }
            let (task, first, end) = which(first, end);
            let left = u64::from(first) << 32 | u64::from(end);
            // A range only shrinks while a job runs, so an equal value means that nobody has taken a task.
            match self.0.compare_exchange_weak(part, left, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(task),
                Err(other) => part = other,
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // Panics of tasks were caught, so there is no result to look at.
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_part_is_taken_from_both_ends() {
        let part = Part::default();
        assert_eq!((part.take_first(), part.take_last()), (None, None));
        part.set(3, 7);
        assert_eq!((part.take_first(), part.take_last(), part.take_first()), (Some(3), Some(6), Some(4)));
        assert_eq!((part.take_last(), part.take_last(), part.take_first()), (Some(5), None, None));
    }

    #[test]
    fn a_thread_alone_takes_its_own_tasks_in_order_and_then_the_others() {
        static RAN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
        let pool = Pool::new(3);
        for (tasks, expected) in [(7, vec![0, 1, 3, 2, 6, 5, 4]), (2, vec![0, 1]), (1, vec![0])] {
            pool.shared.share_out(tasks);
            // No other thread takes any: no job is open.
            pool.shared.take_tasks(&|index| RAN.lock().unwrap().push(index), 0, || ());
            assert_eq!(std::mem::take(&mut *RAN.lock().unwrap()), expected);
        }
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for count in [0, 1, 2, 7, 100] {
                for _ in 0..if cfg!(miri) { 5 } else { 50 } {
                    let ran: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(count, &|index| {
                        ran[index].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(ran.iter().all(|ran| ran.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn jobs_from_several_threads_and_from_within_a_task() {
        let pool = Pool::new(3);
        let (sum, times) = (AtomicUsize::new(0), if cfg!(miri) { 10 } else { 100 });
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..times {
                        pool.run(4, &|_| {
                            pool.run(3, &|index| {
                                sum.fetch_add(index, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * times * 4 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        let ran = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, &|index| {
                ran.fetch_add(1, Ordering::Relaxed);
                assert!(index != 3, "task three");
            });
        }));
        let message = result.unwrap_err();
        assert!(message.downcast_ref::<&str>().is_some_and(|message| message.contains("task three")));
        assert_eq!(ran.load(Ordering::Relaxed), 10);
        pool.run(5, &|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 15);
    }

    /// Runs jobs until a task has run on a thread for which `is_it` returns true.
    fn run_until(pool: &Pool, is_it: impl Fn(thread::ThreadId) -> bool + Sync) {
        let seen = AtomicBool::new(false);
        while !seen.load(Ordering::Relaxed) {
            pool.run(4, &|_| {
                if is_it(thread::current().id()) {
                    seen.store(true, Ordering::Relaxed);
                }
                thread::yield_now();
            });
        }
    }

    #[test]
    fn a_helper_works_in_the_first_workers_place_and_gives_it_back() {
        let (pool, done) = (Pool::new(2), AtomicBool::new(false));
        let (caller, worker) = (thread::current().id(), pool.workers[0].thread.id());
        run_until(&pool, |id| id == worker);
        thread::scope(|scope| {
            let helper = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    pool.help(&|| done.load(Ordering::Relaxed));
                }
            });
            run_until(&pool, |id| id == helper.thread().id());
            done.store(true, Ordering::Relaxed);
        });
        // The helper has left. Its place is reserved for a while, and then the worker comes back.
        run_until(&pool, |id| id != caller);
    }

    #[test]
    fn a_helper_leaves_where_it_is_not_needed() {
        // There is no worker whose place it could take: `until` is not even called.
        Pool::new(1).help(&|| unreachable!());
        let pool = Pool::new(2);
        // There is no job.
        pool.help(&|| false);
        assert!(!pool.shared.is_reserved());
        // A helper is there already: the second returns at once, and the first leaves for it.
        pool.help(&|| {
            pool.help(&|| unreachable!());
            false
        });
        assert!(!pool.shared.is_reserved());
        // `until` panics.
        let broken = catch_unwind(AssertUnwindSafe(|| pool.help(&|| panic!("until"))));
        assert!(broken.is_err() && !pool.shared.is_reserved());
    }

    #[test]
    fn workers_that_slept_come_back() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(5));
            let ran = AtomicUsize::new(0);
            pool.run(64, &|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.into_inner(), 64);
        }
    }
}
