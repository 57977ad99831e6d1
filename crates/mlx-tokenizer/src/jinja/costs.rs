//! What a rendering has used so far, and what it may use.
//!
//! Each rendering has its own thread (see [`super::render`]). So this state is a thread-local variable, and
//! every operation on values can count its cost without an extra parameter.

use std::cell::Cell;

/// The memory of a small object besides its contents: an allocation and reference counts.
pub(super) const OBJECT: usize = 48;

#[derive(Default)]
pub(super) struct Costs {
    pub(super) steps: Cell<u64>,
    pub(super) bytes: Cell<u64>,
    pub(super) depth: Cell<usize>,
    pub(super) most_steps: Cell<u64>,
    pub(super) most_bytes: Cell<u64>,
}

thread_local! {
    static COSTS: Costs = Costs::default();
}

/// Calls a function with the costs of this thread's rendering.
pub(super) fn costs<T>(with: impl FnOnce(&Costs) -> T) -> T {
    COSTS.with(with)
}

/// Counts a small object in a place that cannot return an error: if a limit is reached, the next step fails.
pub(super) fn made(count: usize) {
    costs(|run| run.bytes.set(run.bytes.get().saturating_add(count as u64)));
}

/// Counts the steps of reading a text; if a limit is reached, the next step fails.
pub(super) fn looked(bytes: usize) {
    costs(|run| run.steps.set(run.steps.get().saturating_add(1 + bytes as u64 / 64)));
}
