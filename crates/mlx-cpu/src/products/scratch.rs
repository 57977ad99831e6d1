//! Memory that a thread keeps from one product to the next, so that it is not allocated each time.

use std::cell::Cell;

/// A cache line. Buffers are made of them, so that panels begin at a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

/// A larger buffer is freed after its product. In lines: 64 MiB.
const KEPT: usize = 1 << 20;

thread_local! {
    static BUFFERS: [Cell<Vec<Line>>; 2] = const { [const { Cell::new(Vec::new()) }; 2] };
}

/// What a buffer is for. The two are in use at the same time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// The left factor, shared by all threads.
    Left = 0,
    /// The part of the right factor that one thread works on, or other memory of one task.
    Right = 1,
}

/// Calls `task` with `length` numbers of any value.
pub(crate) fn with_scratch<R>(purpose: Purpose, length: usize, task: impl FnOnce(&mut [f32]) -> R) -> R {
    let lines = length.div_ceil(16);
    // Taken, not borrowed: `task` may call this function again.
    let mut buffer = BUFFERS.with(|buffers| buffers[purpose as usize].take());
    if buffer.len() < lines {
        buffer.resize(lines, Line([0.0; 16]));
    }
    // SAFETY: a line is 16 numbers without padding.
    let numbers = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<f32>(), length) };
    let result = task(numbers);
    if buffer.len() <= KEPT {
        BUFFERS.with(|buffers| buffers[purpose as usize].set(buffer));
    }
    result
}
