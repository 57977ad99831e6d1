//! Records the intermediate results of a model, between tokens and logits.
//!
//! API for authors of layers. When two programs give different logits, the question is in which layer the difference
//! begins. So each layer offers its output to a tap ([`layer`], [`step`]), and [`record`] opens the tap around a call and
//! returns the outputs. While the tap is closed, an offer costs one look at a thread-local variable and keeps nothing.
//!
//! A layer does not know its own name, and the code of a model should not state each name twice. But a layer has a
//! parameter, and the model knows all parameters by name. So the tap identifies a layer by the address of its parameter,
//! and `mlx_causal_lm::trace` replaces the addresses by names.
//!
//! ```
//! use mlx_rs::Array;
//! use mlx_tap::{Site, record};
//!
//! # fn main() -> Result<(), mlx_rs::error::Exception> {
//! struct Double { weight: Array }
//!
//! impl Double {
//!     fn forward(&self, x: &Array) -> Result<Array, mlx_rs::error::Exception> {
//!         let y = x.multiply(&self.weight)?;
//!         mlx_tap::layer(&self.weight, &y);
//!         Ok(y)
//!     }
//! }
//!
//! let double = Double { weight: Array::from_f32(2.0) };
//! let (y, taps) = record(|| double.forward(&Array::from_f32(21.0)));
//! assert_eq!(y?.item::<f32>(), 42.0);
//! assert_eq!(taps[0].site, Site::of(&double.weight));
//! assert_eq!(taps[0].output.item::<f32>(), 42.0);
//! # Ok(())
//! # }
//! ```

use std::cell::{Cell, RefCell};

use mlx_rs::Array;

/// The source of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The layer that owns the parameter at this address.
    Layer {
        /// The address of the parameter's [`Array`], which does not change while the model is borrowed.
        parameter: usize,
    },
    /// A step without parameters, such as a rotation.
    Step(&'static str),
}

impl Site {
    /// The site of the layer that owns this parameter.
    pub fn of(parameter: &Array) -> Self {
        Self::Layer { parameter: std::ptr::from_ref(parameter).addr() }
    }
}

/// A recorded output.
#[derive(Debug, Clone)]
pub struct Tap {
    /// Its source.
    pub site: Site,
    /// The block of the model that it belongs to, counted from 0; `None` before the first block and after the last.
    pub block: Option<usize>,
    /// The output, which may not be computed yet: recording evaluates nothing.
    pub output: Array,
}

thread_local! {
    /// Whether a recording is open. It is a variable of its own so that an offer to a closed tap costs one load.
    static IS_OPEN: Cell<bool> = const { Cell::new(false) };
    static BLOCK: Cell<Option<usize>> = const { Cell::new(None) };
    static TAPS: RefCell<Vec<Tap>> = const { RefCell::new(Vec::new()) };
}

/// Offers the output of the layer that owns this parameter.
#[inline]
pub fn layer(parameter: &Array, output: &Array) {
    if IS_OPEN.get() {
        keep(Site::of(parameter), output);
    }
}

/// Offers the output of a step without parameters. The name distinguishes it from the other steps of its block.
#[inline]
pub fn step(name: &'static str, output: &Array) {
    if IS_OPEN.get() {
        keep(Site::Step(name), output);
    }
}

#[cold]
fn keep(site: Site, output: &Array) {
    let tap = Tap { site, block: BLOCK.get(), output: output.clone() };
    TAPS.with_borrow_mut(|taps| taps.push(tap));
}

/// Enters a block: outputs that are offered until the returned guard is dropped belong to this block.
#[must_use = "the block ends when this is dropped"]
pub fn block(index: usize) -> InBlock {
    InBlock { before: BLOCK.replace(Some(index)) }
}

/// The guard of a block; see [`block`].
#[derive(Debug)]
pub struct InBlock {
    before: Option<usize>,
}

impl Drop for InBlock {
    fn drop(&mut self) {
        BLOCK.set(self.before);
    }
}

/// Calls `run` with the tap open. Returns the result of `run` and, in order, all outputs that were offered on this thread
/// during the call.
///
/// The outputs stay in memory until they are dropped, so a recording needs the memory of all activations. A recording
/// inside another one takes its outputs for itself.
pub fn record<R>(run: impl FnOnce() -> R) -> (R, Vec<Tap>) {
    let _open = Open { was_open: IS_OPEN.replace(true), before: TAPS.take() };
    let answer = run();
    (answer, TAPS.take())
}

/// Restores the state from before the recording, after a panic too.
struct Open {
    was_open: bool,
    before: Vec<Tap>,
}

impl Drop for Open {
    fn drop(&mut self) {
        IS_OPEN.set(self.was_open);
        TAPS.set(std::mem::take(&mut self.before));
    }
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(taps: &[Tap]) -> Vec<(Site, Option<usize>)> {
        taps.iter().map(|tap| (tap.site, tap.block)).collect()
    }

    #[test]
    fn a_closed_tap_keeps_nothing() {
        let x = Array::from_f32(1.0);
        step("before", &x);
        layer(&x, &x);
        let ((), taps) = record(|| {});
        assert!(taps.is_empty());
        step("after", &x);
        assert!(TAPS.take().is_empty());
    }

    #[test]
    fn outputs_come_in_order_with_their_block() {
        let (x, weight) = (Array::from_f32(1.0), Array::from_f32(2.0));
        let (answer, taps) = record(|| {
            step("embeddings", &x);
            for i in 0..2 {
                let _block = block(i);
                layer(&weight, &x);
            }
            step("logits", &x);
            7
        });
        assert_eq!(answer, 7);
        let expected = [
            (Site::Step("embeddings"), None),
            (Site::of(&weight), Some(0)),
            (Site::of(&weight), Some(1)),
            (Site::Step("logits"), None),
        ];
        assert_eq!(names(&taps), expected);
        // Another array is another layer, equal or not.
        assert_ne!(Site::of(&weight), Site::of(&Array::from_f32(2.0)));
    }

    #[test]
    fn recordings_lie_inside_of_each_other() {
        let x = Array::from_f32(1.0);
        let (inner, outer) = record(|| {
            step("first", &x);
            let ((), inner) = record(|| step("inner", &x));
            step("second", &x);
            inner
        });
        assert_eq!(names(&inner), [(Site::Step("inner"), None)]);
        assert_eq!(names(&outer), [(Site::Step("first"), None), (Site::Step("second"), None)]);
    }

    #[test]
    fn a_panic_closes_the_tap() {
        let x = Array::from_f32(1.0);
        let (caught, outer) = record(|| {
            step("first", &x);
            std::panic::catch_unwind(|| {
                record(|| {
                    let _block = block(3);
                    step("lost", &Array::from_f32(1.0));
                    panic!("of a layer");
                })
            })
            .is_err()
        });
        assert!(caught);
        assert_eq!(names(&outer), [(Site::Step("first"), None)]);
        assert!(!IS_OPEN.get());
        assert_eq!(BLOCK.get(), None);
    }
}
