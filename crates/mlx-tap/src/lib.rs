//! What a model computes on the way from tokens to logits.
//!
//! API for authors of layers. When two programs answer differently, the question is where that begins. So each
//! layer offers what it answers to a tap ([`layer`], [`step`]), and whoever looks for a difference opens the tap
//! around a call ([`record`]). Closed, it costs one look at a variable of the thread, and keeps nothing.
//!
//! A layer does not know its name, and a model's code should not have to say it twice. What a layer does have is
//! a parameter, and the model knows all parameters by name: so a layer is known by where its parameter lies in
//! memory. `mlx_causal_lm::trace` puts the names in.
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

/// Where an output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The layer that owns the parameter at this address.
    Layer {
        /// Of the [`Array`] of the parameter, which stays where it is as long as the model does.
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

/// An output on the way.
#[derive(Debug, Clone)]
pub struct Tap {
    /// What answered it.
    pub site: Site,
    /// Inside which block of the model, counted from 0; none before the first block and after the last.
    pub block: Option<usize>,
    /// Perhaps not computed yet: recording evaluates nothing.
    pub output: Array,
}

thread_local! {
    /// Whether anybody records; apart from the rest, so that a closed tap is one load.
    static IS_OPEN: Cell<bool> = const { Cell::new(false) };
    static BLOCK: Cell<Option<usize>> = const { Cell::new(None) };
    static TAPS: RefCell<Vec<Tap>> = const { RefCell::new(Vec::new()) };
}

/// Offers what the layer that owns this parameter answers.
#[inline]
pub fn layer(parameter: &Array, output: &Array) {
    if IS_OPEN.get() {
        keep(Site::of(parameter), output);
    }
}

/// Offers what a step without parameters answers. Its name says which, among those of its block.
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

/// What is offered until the answer is dropped comes from inside this block.
#[must_use = "the block ends when this is dropped"]
pub fn block(index: usize) -> InBlock {
    InBlock { before: BLOCK.replace(Some(index)) }
}

/// The inside of a block; see [`block`].
#[derive(Debug)]
pub struct InBlock {
    before: Option<usize>,
}

impl Drop for InBlock {
    fn drop(&mut self) {
        BLOCK.set(self.before);
    }
}

/// Calls `run` with the tap open, and answers with what it answers and all that was offered on this thread
/// meanwhile, in order.
///
/// Every output is kept until the answer is dropped, so the memory is that of all activations. Inside of a
/// recording another one keeps its outputs for itself.
pub fn record<R>(run: impl FnOnce() -> R) -> (R, Vec<Tap>) {
    let _open = Open { was_open: IS_OPEN.replace(true), before: TAPS.take() };
    let answer = run();
    (answer, TAPS.take())
}

/// Puts back what was there before, after a panic too.
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
