//! The demo checkpoints, which are inside the program, and how a model is named on the command line.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::failure::Failure;
use crate::hub::{HubId, MAIN};

/// A checkpoint: its name, and its files. `demo/NAME/README.md` says how they were made.
struct Demo {
    name: &'static str,
    files: [(&'static str, &'static [u8]); 5],
}

macro_rules! demo {
    ($name:literal) => {
        Demo {
            name: $name,
            files: [
                demo!($name, "config.json"),
                demo!($name, "generation_config.json"),
                demo!($name, "model.safetensors"),
                demo!($name, "tokenizer.json"),
                demo!($name, "tokenizer_config.json"),
            ],
        }
    };
    ($name:literal, $file:literal) => {
        ($file, include_bytes!(concat!("../demo/", $name, "/", $file)))
    };
}

/// All of them, the default first.
static DEMOS: &[Demo] = &[demo!("lille-130m"), demo!("gemma3"), demo!("olmo3"), demo!("phi3")];

/// Where a model comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A checkpoint folder.
    Folder(PathBuf),
    /// A checkpoint inside the program, by its place in [`DEMOS`].
    Demo(usize),
    /// A model on the hub.
    Hub(HubId),
}

impl Default for Source {
    fn default() -> Self {
        Self::Demo(0)
    }
}

impl FromStr for Source {
    type Err = String;

    /// `demo:NAME`, or a folder that exists, or a hub id, or else a folder.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(name) = text.strip_prefix("demo:") else {
            return Ok(match text.parse() {
                Ok(id) if !Path::new(text).exists() => Self::Hub(id),
                _ => Self::Folder(PathBuf::from(text)),
            });
        };
        let found = DEMOS.iter().position(|demo| demo.name == name).map(Self::Demo);
        found.ok_or_else(|| {
            let names: Vec<String> = DEMOS.iter().map(|demo| format!("demo:{}", demo.name)).collect();
            format!("there is no demo {name:?}; there are {}", names.join(", "))
        })
    }
}

impl Source {
    /// How mlx-lm's programs would be given this model.
    pub(crate) fn for_mlx_lm(&self) -> Result<String, Failure> {
        Ok(match self {
            Self::Hub(id) => id.to_string(),
            Self::Folder(folder) => folder.display().to_string(),
            Self::Demo(demo) => DEMOS[*demo].folder()?.display().to_string(),
        })
    }

    /// The checkpoint folder. A demo is written once, into the user's cache folder, and checked every
    /// time; a model of the hub is downloaded once, into the hub's cache.
    pub(crate) fn folder(self) -> Result<PathBuf, Failure> {
        match self {
            Self::Folder(folder) if !folder.exists() => Err(Failure::NoModel { name: folder }),
            Self::Folder(folder) => Ok(folder),
            Self::Hub(id) => match crate::download::fetch(&id, MAIN) {
                Ok(snapshot) => Ok(snapshot.folder),
                Err(source) => Err(Failure::NoFolderNorModel { name: id.to_string(), source }),
            },
            Self::Demo(demo) => DEMOS[demo].folder(),
        }
    }
}

impl Demo {
    /// The checkpoint as a folder, which is what a model is loaded from.
    fn folder(&self) -> Result<PathBuf, Failure> {
        let cache = cache_folder().join("mlx-models");
        let folder = cache.join(format!("demo-{}-{:016x}", self.name, self.fingerprint()));
        if self.is_whole(&folder) {
            return Ok(folder);
        }
        let io = |doing: &str, path: &Path| {
            let doing = format!("{doing} {} for the demo checkpoint", path.display());
            move |source| Failure::Io { doing, source }
        };
        // Under another name first, so that no other run sees half of it.
        let partial = cache.join(format!(".demo-{}-{}", self.name, std::process::id()));
        // What a run that was killed left under this name.
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).map_err(io("creating", &partial))?;
        for (name, contents) in &self.files {
            let file = partial.join(name);
            fs::write(&file, contents).map_err(io("writing", &file))?;
        }
        if folder.exists() && !self.is_whole(&folder) {
            let _ = fs::remove_dir_all(&folder);
        }
        // It fails where another run was faster, whose result is the same.
        if let Err(source) = fs::rename(&partial, &folder) {
            let _ = fs::remove_dir_all(&partial);
            if !self.is_whole(&folder) {
                return Err(io("writing", &folder)(source));
            }
        }
        Ok(folder)
    }

    fn is_whole(&self, folder: &Path) -> bool {
        let whole = |(name, contents): &(&str, &[u8])| {
            fs::read(folder.join(name)).is_ok_and(|found| found == *contents)
        };
        self.files.iter().all(whole)
    }

    /// A name for these contents, so that another version of the program has a folder of its own.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.files.hash(&mut hasher);
        hasher.finish()
    }
}

pub(crate) fn cache_folder() -> PathBuf {
    let named = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("XDG_CACHE_HOME")
        .or_else(|| {
            let home = named("HOME")?;
            Some(home.join(if cfg!(target_vendor = "apple") { "Library/Caches" } else { ".cache" }))
        })
        .unwrap_or_else(env::temp_dir)
}
