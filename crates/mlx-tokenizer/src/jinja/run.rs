//! The limits of a rendering.

use super::costs::{Costs, costs};
pub(super) use super::costs::{OBJECT, looked, made};
use super::error::{Error, Result};

/// The maximum number of steps: an expression, a statement, or an element that is visited. The largest real
/// templates need a few hundred steps per message; this limit is one or two seconds of work.
pub(super) const MOST_STEPS: u64 = 10_000_000;

/// Additional steps for each byte of the conversation, whose length the user chose.
pub(super) const STEPS_PER_BYTE: u64 = 64;

/// The maximum number of bytes that a rendering makes, including values that were freed.
pub(super) const MOST_BYTES: u64 = 256 << 20;

/// Additional bytes for each byte of the conversation.
pub(super) const BYTES_PER_BYTE: u64 = 256;

/// The maximum depth of nested expressions, statements, calls and loops while a template runs. Python has a
/// limit of 1000 frames, which allows about two hundred macros that call each other.
pub(super) const MOST_DEEP: usize = 4000;

/// The stack of the rendering thread. It has 32 KiB for each of the [`MOST_DEEP`] levels, which a build without
/// optimization needs. Memory is only taken for the part that is used.
pub(super) const STACK: usize = 128 << 20;

/// The maximum depth of nested lists, dictionaries and similar values.
pub(super) const MOST_NESTED_VALUES: u32 = 400;

/// The maximum length of a template, in bytes. The longest templates of models have some ten thousand bytes. A
/// syntax tree takes up to a few hundred bytes for each byte of its template.
pub(super) const LONGEST_TEMPLATE: usize = 1 << 20;

/// The maximum number of parameters or arguments in a template's source, and of blocks: each one is searched
/// for among all the others.
pub(super) const MOST_NAMES: usize = 1000;

/// The memory of a list for each element, which is a `Value`.
pub(super) const ELEMENT: u64 = 64;

/// Begins the rendering of a conversation with this many bytes.
pub(super) fn begin(bytes: u64) {
    costs(|run| {
        run.steps.set(0);
        run.bytes.set(0);
        run.depth.set(0);
        run.most_steps.set(MOST_STEPS.saturating_add(bytes.saturating_mul(STEPS_PER_BYTE)));
        run.most_bytes.set(MOST_BYTES.saturating_add(bytes.saturating_mul(BYTES_PER_BYTE)));
    });
}

/// Counts steps.
pub(super) fn steps(count: usize) -> Result<()> {
    costs(|run| {
        let steps = run.steps.get().saturating_add(count as u64);
        run.steps.set(steps);
        let most = run.most_steps.get();
        if steps > most {
            return Err(Error::limit(format!("it takes more than {most} steps")));
        }
        too_many_bytes(run)
    })
}

fn too_many_bytes(run: &Costs) -> Result<()> {
    let most = run.most_bytes.get();
    if run.bytes.get() > most {
        return Err(Error::limit(format!("it makes more than {} MiB of text and values", most >> 20)));
    }
    Ok(())
}

/// Counts the steps of reading a text.
pub(super) fn reads(bytes: usize) -> Result<()> {
    steps(1 + bytes / 64)
}

/// Counts bytes before they are made.
pub(super) fn bytes(count: u64) -> Result<()> {
    costs(|run| {
        let bytes = run.bytes.get().saturating_add(count);
        run.bytes.set(bytes);
        too_many_bytes(run)?;
        // Making many bytes takes time too.
        steps((count / 256) as usize)
    })
}

/// Counts elements of a list before they are made.
pub(super) fn elements(count: usize) -> Result<()> {
    bytes((count as u64).saturating_mul(ELEMENT))
}

/// One level of nesting, which ends when this is dropped.
pub(super) struct Level;

/// Enters a level of nesting.
pub(super) fn deeper() -> Result<Level> {
    costs(|run| {
        let depth = run.depth.get() + 1;
        if depth > MOST_DEEP {
            return Err(Error::limit(format!("it goes more than {MOST_DEEP} levels deep")));
        }
        run.depth.set(depth);
        Ok(Level)
    })
}

impl Drop for Level {
    fn drop(&mut self) {
        costs(|run| run.depth.set(run.depth.get() - 1));
    }
}
