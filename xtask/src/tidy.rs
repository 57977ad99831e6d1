//! .

pub(crate) fn run() -> std::io::Result<bool> {
    Ok(true)
}
