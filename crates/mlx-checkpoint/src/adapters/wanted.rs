//! What the adapter of one layer is made of.

/// One tensor of an adapter, as its file must hold it.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) key: String,
    pub(crate) shape: Vec<i32>,
    /// Whether its axes are swapped before it is used.
    pub(crate) transposed: bool,
}

/// The tensors and numbers of the adapter of one layer.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) a: Part,
    pub(crate) b: Part,
    /// DoRA's magnitudes.
    pub(crate) m: Option<Part>,
    pub(crate) rank: i32,
    pub(crate) scale: f32,
    /// Why this layer cannot have such an adapter.
    pub(crate) refused: Option<&'static str>,
}
