//! Threads that share one piece of work at a time.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

/// How often a worker looks for work before it sleeps: 130 microseconds where it was measured, longer than what lies between
/// two products of a decoding model, and too short to burn a core while a program is idle. To sleep and
/// be woken costs both threads time, on a virtual machine above all.
/// Few for Miri, so that workers sleep and are woken there too.
const LOOKS: u32 = if cfg!(miri) { 8 } else { 2000 };
/// After so many looks a worker lets other threads have its core: the one that builds the next step's graph
/// among them, or the one that runs the jobs and was woken on the same core.
const YIELDS: u32 = 4;

/// How often a helper looks for work before it leaves: a millisecond or so, longer than what a model does in between
/// on one thread.
const HELPER_LOOKS: u32 = if cfg!(miri) { 8 } else { 10_000 };
/// So many microseconds a helper that left is waited for: it builds the next part of a graph meanwhile, and the first
/// worker would take its core.
const BACK_SOON: u64 = 2000;

/// Of `state`: a job is there to be joined.
const OPEN: u64 = 1 << 31;
/// Of `state`: how many workers are in the job.
const JOINED: u64 = OPEN - 1;

/// Worker threads beside the one that calls.
///
/// Each thread has a part of the tasks, which it takes in order: what follows each other in memory is then read by one
/// thread, as one stream. Who has none left takes the last one of another's. So a call does not wait for workers that
/// sleep: it starts with those that are awake, and wakes the others.
///
/// A thread that waits for what others compute can be in the first worker's place meanwhile: with as many threads as
/// cores, the system then takes none away in the middle of a task.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held while a job runs; who finds it held works alone.
    busy: Mutex<()>,
}

struct Worker {
    /// Its place among those that should have been started.
    index: usize,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

struct Shared {
    /// The number of the job in the upper half, [`OPEN`], and how many workers are in it.
    state: AtomicU64,
    /// The tasks that nobody has taken: a part for each thread, the caller's first.
    parts: Vec<Part>,
    /// Written while no job is open and nobody is in one.
    job: UnsafeCell<Option<Task>>,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    /// For each worker whether it sleeps.
    sleeps: Vec<AtomicBool>,
    /// Whether a helper is in the first worker's place, which then sleeps.
    helped: AtomicBool,
    /// Whether another thread would help.
    wanted: AtomicBool,
    /// Until when the first worker's place is kept for a helper, in microseconds since `start`.
    kept: AtomicU64,
    start: Instant,
    stop: AtomicBool,
}

/// What the tasks of a job call with their numbers.
type Task = *const (dyn Fn(usize) + Sync);

// SAFETY: `job` is read by a worker only between joining an open job and leaving it, and written by
// the caller only when none is open and all have left; `state` orders the two. The task is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is not used outside of a job.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads`, the calling one among them. The others start with the first job.
    pub fn new(threads: usize) -> Self {
        let count = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            parts: (0..=count).map(|_| Part::default()).collect(),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleeps: (0..count).map(|_| AtomicBool::new(false)).collect(),
            helped: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            kept: AtomicU64::new(0),
            start: Instant::now(),
            stop: AtomicBool::new(false),
        });
        let workers = (0..count)
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                let handle = thread::Builder::new()
                    .name(format!("mlx-cpu-{}", index + 1))
                    .spawn(move || shared.work(index))
                    // Without threads to spare the caller does it all.
                    .ok()?;
                Some(Worker { index, thread: handle.thread().clone(), handle: Some(handle) })
            })
            .collect();
        Self { shared, workers, busy: Mutex::new(()) }
    }

    /// The threads, the calling one among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with 0 to `count - 1`, each once, on any of the threads, and returns when all
    /// have returned. A task that panics makes this panic, after the others are done.
    pub fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = || (0..count).for_each(task);
        if count <= 1 || self.workers.is_empty() {
            return alone();
        }
        // A part has its numbers in 32 bits each.
        let Ok(tasks) = u32::try_from(count) else {
            return alone();
        };
        // Held by another thread, or by this one, further up: a task that starts tasks.
        let Ok(_busy) = self.busy.try_lock() else {
            return alone();
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No worker is in a job after this function returns, so
        // none uses the task later.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(task)
        };
        // SAFETY: no job is open and nobody is in one: the previous call has waited for that.
        unsafe { *shared.job.get() = Some(task) };
        shared.share_out(tasks);
        let number = (shared.state.load(Ordering::Relaxed) >> 32) + 1;
        shared.state.store(number << 32 | OPEN, Ordering::SeqCst);
        let needed = self.workers.iter().take(count - 1);
        needed.filter(|worker| worker.index > 0).for_each(|worker| shared.wake(worker));
        // Before each task: who is waited for may stay away.
        shared.take_tasks(task, 0, || {
            if let Some(first) = self.workers.first().filter(|worker| worker.index == 0)
                && !shared.is_kept()
            {
                shared.wake(first);
            }
        });
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0_u32;
        while shared.state.load(Ordering::Acquire) & JOINED != 0 {
            pause(&mut looks, 64);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            drop(_busy);
            resume_unwind(panic);
        }
    }

    /// Works on other threads' jobs until `until` answers yes, in the first worker's place. Returns earlier where that
    /// is taken or not there, or nothing is to be done for a while.
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
        if shared.helped.swap(true, Ordering::SeqCst) {
            // Two threads that wait take turns, or one could keep the other from ever going on.
            return shared.wanted.store(true, Ordering::Relaxed);
        }
        let _place = Place(shared);
        shared.wanted.store(false, Ordering::Relaxed);
        shared.help(until);
    }
}

impl Shared {
    fn wake(&self, worker: &Worker) {
        if self.sleeps[worker.index].load(Ordering::SeqCst) {
            worker.thread.unpark();
        }
    }

    /// Whether the first worker's place is a helper's.
    fn is_kept(&self) -> bool {
        let kept = self.kept.load(Ordering::Relaxed);
        self.helped.load(Ordering::SeqCst) || kept > 0 && kept > self.now()
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Runs the job that `state` says is open, if it still is.
    fn join(&self, state: u64, index: usize) -> bool {
        // Fails where the job was closed or another worker joined: look again.
        if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // SAFETY: joined an open job: it is not written until this worker has left.
        if let Some(task) = unsafe { *self.job.get() } {
            self.take_tasks(task, index + 1, || ());
        }
        self.state.fetch_sub(1, Ordering::AcqRel);
        true
    }

    fn help(&self, until: &dyn Fn() -> bool) {
        let (mut last, mut looks) = (0, 0);
        while !until() {
            let state = self.state.load(Ordering::SeqCst);
            if is_new(state, last) {
                if self.join(state, 0) {
                    last = state >> 32;
                    looks = 0;
                }
            } else if looks < HELPER_LOOKS && !self.wanted.load(Ordering::Relaxed) {
                pause(&mut looks, YIELDS);
            } else {
                // It may sleep elsewhere.
                return self.kept.store(0, Ordering::Relaxed);
            }
        }
        self.kept.store(self.now() + BACK_SOON, Ordering::Relaxed);
    }

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
                if looks < LOOKS && !is_replaced {
                    pause(&mut looks, YIELDS);
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

    /// Sleeps until someone wakes this worker, unless a job has been opened since it looked.
    fn sleep(&self, index: usize, last: u64) {
        self.sleeps[index].store(true, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        if !is_new(state, last) && !self.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        self.sleeps[index].store(false, Ordering::SeqCst);
    }

    /// Gives each thread its part of so many tasks.
    fn share_out(&self, tasks: u32) {
        let threads = self.parts.len().min(tasks as usize) as u64;
        for (part, index) in self.parts.iter().zip(0..) {
            let border = |index: u64| (u64::from(tasks) * index.min(threads) / threads) as u32;
            part.set(border(index), border(index + 1));
        }
    }

    /// Runs the tasks of this thread's part, and then those that are left of the others'; `before` each, that.
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

/// Whether `state` says that a job is open, and not the `last` one.
fn is_new(state: u64, last: u64) -> bool {
    state & OPEN != 0 && state >> 32 != last
}

/// Waits between two looks, of which every `yields`-th lets other threads have the core.
fn pause(looks: &mut u32, yields: u32) {
    *looks += 1;
    if looks.is_multiple_of(yields) {
        thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// Tasks that follow each other: the first in the upper half, and the one behind the last. In a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Part(AtomicU64);

impl Part {
    /// While nobody takes any.
    fn set(&self, first: u32, end: u32) {
        self.0.store(u64::from(first) << 32 | u64::from(end), Ordering::Relaxed);
    }

    fn take_first(&self) -> Option<u32> {
        self.take(|first, end| (first, first + 1, end))
    }

    fn take_last(&self) -> Option<u32> {
        self.take(|first, end| (end - 1, first, end - 1))
    }

    /// Takes the task, and leaves those between, that `which` says of a part with tasks.
    fn take(&self, which: impl Fn(u32, u32) -> (u32, u32, u32)) -> Option<u32> {
        let mut part = self.0.load(Ordering::Relaxed);
        loop {
            let (first, end) = ((part >> 32) as u32, part as u32);
            if first >= end {
                return None;
            }
            let (task, first, end) = which(first, end);
            let left = u64::from(first) << 32 | u64::from(end);
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
                // It caught its panics.
                let _ = handle.join();
            }
        }
    }
}

/// How many threads a program should use: `MLX_CPU_THREADS` if it is a number above 0, else as many as
/// the cores that the process may use. More than these are never of use, and so not had; standard error says it.
pub fn default_threads() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let named = std::env::var_os("MLX_CPU_THREADS").unwrap_or_default();
        let (count, problem) = threads_named(&named.to_string_lossy(), cores);
        if let Some(problem) = problem {
            eprintln!("{problem}");
        }
        count
    })
}

/// The number of threads that `MLX_CPU_THREADS` stands for where there are so many cores, and what is to be said of it.
fn threads_named(named: &str, cores: usize) -> (usize, Option<String>) {
    let named = named.trim();
    match named.parse() {
        Ok(count) if (1..=cores).contains(&count) => (count, None),
        Ok(0) => (cores, Some("MLX_CPU_THREADS=0 is no number of threads; it must be 1 or more".to_owned())),
        Ok(count) => {
            let problem = format!(
                "MLX_CPU_THREADS={count} is more than the {cores} cores of this process, and {cores} threads are used"
            );
            (cores, Some(problem))
        }
        Err(_) if named.is_empty() => (cores, None),
        // Whoever set it may have put anything there, control sequences too.
        Err(_) => (cores, Some(format!("MLX_CPU_THREADS={} is no number of threads", named.escape_debug()))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn there_are_no_more_threads_than_cores() {
        for (named, count) in [("", 4), (" 3 ", 3), ("4", 4), ("1", 1)] {
            assert_eq!(threads_named(named, 4), (count, None), "{named}");
        }
        for (named, needle) in [
            ("5", "more than the 4 cores"),
            ("100000", "more than the 4 cores"),
            ("0", "1 or more"),
            ("-1", "no number"),
            ("99999999999999999999999", "no number"),
            ("\u{1b}[2J", "MLX_CPU_THREADS=\\u{1b}[2J is no number"),
        ] {
            let (count, problem) = threads_named(named, 4);
            assert!(count == 4 && problem.as_ref().is_some_and(|said| said.contains(needle)), "{problem:?}");
        }
    }

    #[test]
    fn a_part_is_taken_from_both_ends() {
        let part = Part::default();
        assert_eq!((part.take_first(), part.take_last()), (None, None));
        part.set(3, 7);
        assert_eq!((part.take_first(), part.take_last(), part.take_first()), (Some(3), Some(6), Some(4)));
        assert_eq!((part.take_last(), part.take_last(), part.take_first()), (Some(5), None, None));
    }

    #[test]
    fn who_is_alone_takes_its_own_tasks_in_order_and_then_the_others() {
        static RAN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
        let pool = Pool::new(3);
        for (tasks, expected) in [(7, vec![0, 1, 3, 2, 6, 5, 4]), (2, vec![0, 1]), (1, vec![0])] {
            pool.shared.share_out(tasks);
            // Nobody else: no job is open.
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

    /// Runs jobs until a task has run on a thread with this property.
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
    fn who_waits_works_in_the_first_workers_place_and_gives_it_back() {
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
        // It left with what it waited for: its place is kept for a while, and not longer.
        run_until(&pool, |id| id != caller);
    }

    #[test]
    fn a_helper_leaves_where_it_is_not_needed() {
        // No place: not even asked.
        Pool::new(1).help(&|| unreachable!());
        let pool = Pool::new(2);
        // Nothing to do, and nothing that it waits for.
        pool.help(&|| false);
        assert!(!pool.shared.is_kept());
        // Another is there already: that one goes.
        pool.help(&|| {
            pool.help(&|| unreachable!());
            false
        });
        assert!(!pool.shared.is_kept());
        // What it asks breaks.
        let broken = catch_unwind(AssertUnwindSafe(|| pool.help(&|| panic!("until"))));
        assert!(broken.is_err() && !pool.shared.is_kept());
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
