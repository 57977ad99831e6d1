//! Threads: libraries that use MLX start none, so that MLX computes on the threads of their callers only. A file that uses
//! nothing of mlx-rs may start threads, to work on bytes.
//!
//! An array that is not computed yet belongs to the thread that made it, and on a GPU each thread has command buffers of
//! its own. See "Why arrays are computed before they are handed out" in `docs/architecture.md`.

use super::circles::without_comments_and_tests;

/// Crates that use MLX and may start threads: programs and tools. Their threads wait for signals, for other programs, or
/// run a whole task.
const PROGRAMS: [&str; 3] = ["mlx-lab", "mlx-models-cli", "mlx-testing"];

/// Code that starts a thread.
const STARTS: [&str; 4] = ["thread::spawn", "thread::scope", "thread::Builder", "rayon"];

/// What starts a thread in this file of a crate that uses MLX.
pub(super) fn started(package: &str, text: &str) -> Option<&'static str> {
    if PROGRAMS.contains(&package) {
        return None;
    }
    let code = without_comments_and_tests(text);
    if !code.contains("mlx_rs") {
        return None;
    }
    STARTS.into_iter().find(|start| code.contains(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_starts_a_thread_is_found() {
        let code = "use mlx_rs::Array;\nfn f() {\n    std::thread::spawn(|| ());\n}\n";
        assert_eq!(started("mlx-generate", code), Some("thread::spawn"));
        assert_eq!(started("mlx-models-cli", code), None);
        let code = "use mlx_rs::Array;\nuse rayon::prelude::*;\n";
        assert_eq!(started("mlx-generate", code), Some("rayon"));
        assert_eq!(started("mlx-generate", "use rayon::prelude::*;\n"), None);
    }

    #[test]
    fn documents_and_tests_may_show_threads() {
        let text = "/// std::thread::spawn(run);\nfn run() {}\n#[cfg(test)]\nmod tests {\n    use std::thread::spawn;\n}\n";
        assert_eq!(started("mlx-generate", text), None);
    }
}
