//! The demo checkpoint, which is inside the program.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Its files. `demo/lille-130m/README.md` says how they were made.
const FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../demo/lille-130m/config.json")),
    ("generation_config.json", include_bytes!("../demo/lille-130m/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/lille-130m/model.safetensors")),
    ("tokenizer.json", include_bytes!("../demo/lille-130m/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/lille-130m/tokenizer_config.json")),
];

/// The demo checkpoint as a folder, which is what a model is loaded from. It is written once, into
/// the user's cache folder, and checked every time.
pub(crate) fn folder() -> Result<PathBuf, Failure> {
    let cache = cache_folder().join("mlx-models");
    let folder = cache.join(format!("demo-lille-130m-{:016x}", fingerprint()));
    if is_whole(&folder) {
        return Ok(folder);
    }
    let io = |doing: &str, path: &Path| {
        let doing = format!("{doing} {} for the demo checkpoint", path.display());
        move |source| Failure::Io { doing, source }
    };
    // Under another name first, so that no other run sees half of it.
    let partial = cache.join(format!(".demo-{}", std::process::id()));
    // What a run that was killed left under this name.
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).map_err(io("creating", &partial))?;
    for (name, contents) in FILES {
        let file = partial.join(name);
        fs::write(&file, contents).map_err(io("writing", &file))?;
    }
    if folder.exists() && !is_whole(&folder) {
        let _ = fs::remove_dir_all(&folder);
    }
    // It fails where another run was faster, whose result is the same.
    if let Err(source) = fs::rename(&partial, &folder) {
        let _ = fs::remove_dir_all(&partial);
        if !is_whole(&folder) {
            return Err(io("writing", &folder)(source));
        }
    }
    Ok(folder)
}

fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|(name, contents)| fs::read(folder.join(name)).is_ok_and(|found| found == *contents))
}

/// A name for these contents, so that another version of the program has a folder of its own.
fn fingerprint() -> u64 {
    let mut hasher = DefaultHasher::new();
    FILES.hash(&mut hasher);
    hasher.finish()
}

fn cache_folder() -> PathBuf {
    let named = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("XDG_CACHE_HOME")
        .or_else(|| {
            let home = named("HOME")?;
            Some(home.join(if cfg!(target_vendor = "apple") { "Library/Caches" } else { ".cache" }))
        })
        .unwrap_or_else(env::temp_dir)
}
