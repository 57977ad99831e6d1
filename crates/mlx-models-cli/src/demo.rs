//! The demo checkpoints, which are built into the program, and the names of models on the command line.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mlx_files::Partial;
use mlx_hub::{HubId, Revision};

use crate::failure::Failure;
use crate::threads;

/// A demo checkpoint: its name and its files. `demo/NAME/README.md` says how it was made.
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

/// All demo checkpoints, the default first.
static DEMOS: &[Demo] =
    &[demo!("lille-130m"), demo!("gemma3"), demo!("olmo3"), demo!("phi3"), demo!("gemma2"), demo!("smollm3")];

/// Where a model comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A checkpoint folder.
    Folder(PathBuf),
    /// A demo checkpoint: its index in [`DEMOS`].
    Demo(usize),
    /// A model on the Hub.
    Hub(HubId),
}

impl Default for Source {
    fn default() -> Self {
        Self::Demo(0)
    }
}

impl FromStr for Source {
    type Err = String;

    /// Reads `demo:NAME`, the path of a folder or file that exists, or a Hub id. Other texts are the path of a missing folder, or of a
    /// missing GGUF file.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(name) = text.strip_prefix("demo:") else {
            return Ok(match text.parse() {
                Ok(id) if !Path::new(text).exists() && !is_file_name(Path::new(text)) => Self::Hub(id),
                _ => Self::Folder(PathBuf::from(text)),
            });
        };
        let found = DEMOS.iter().position(|demo| demo.name == name).map(Self::Demo);
        found.ok_or_else(|| {
            let names: Vec<String> = DEMOS.iter().map(|demo| format!("demo:{}", demo.name)).collect();
            format!("there is no demo {name:?}; the demos are {}", names.join(", "))
        })
    }
}

/// Whether a path is named as a GGUF file, and not as a folder or a model of the Hub.
fn is_file_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

impl Source {
    /// The name of this model for mlx-lm's programs.
    pub(crate) fn for_mlx_lm(&self) -> Result<String, Failure> {
        Ok(match self {
            Self::Hub(id) => id.to_string(),
            Self::Folder(folder) => folder.display().to_string(),
            Self::Demo(demo) => DEMOS[*demo].folder()?.display().to_string(),
        })
    }

    /// What people call the model.
    pub(crate) fn name(&self) -> Option<String> {
        // The path of the folder where the program runs may have no name.
        let named = |path: &Path| {
            if path.file_name().is_some() { Ok(path.to_path_buf()) } else { path.canonicalize() }
        };
        let of_path =
            |path: &Path| Some(named(path).ok()?.file_name()?.to_str()?.trim_end_matches(".gguf").to_owned());
        match self {
            Self::Folder(folder) => of_path(folder),
            Self::Hub(id) => of_path(Path::new(&id.to_string())),
            Self::Demo(demo) => Some(format!("demo {}", DEMOS[*demo].name)),
        }
    }

    /// The checkpoint folder of a model that is loaded next. A demo is written once into the user's cache folder, and checked
    /// every time. A model of the Hub is downloaded once into the Hub's cache.
    pub(crate) fn folder(self) -> Result<PathBuf, Failure> {
        threads::check(cache_folder())?;
        match self {
            Self::Folder(file) if !file.exists() && is_file_name(&file) => Err(Failure::NoFile { file }),
            Self::Folder(folder) if !folder.exists() => Err(Failure::NoModel { name: folder }),
            Self::Folder(folder) => Ok(folder),
            Self::Hub(id) => match crate::download::fetch(&id, Revision::default()) {
                Ok(snapshot) => Ok(snapshot.folder),
                Err(source) => Err(Failure::NoFolderNorModel { name: id.to_string(), source }),
            },
            Self::Demo(demo) => DEMOS[demo].folder(),
        }
    }
}

impl Demo {
    /// The folder with this checkpoint: in the user's cache folder, or if nothing can be written there, in the system's folder
    /// of temporary files.
    fn folder(&self) -> Result<PathBuf, Failure> {
        let first = match cache_folder() {
            Some(cache) => match self.folder_in(&cache.join("mlx-models")) {
                Ok(folder) => return Ok(folder),
                Err(e) => format!("{}: {e}", cache.display()),
            },
            None => "there is no home folder".to_owned(),
        };
        #[cfg(unix)]
        let temporary = env::temp_dir().join(format!("mlx-models-demos-{}", nix::unistd::geteuid()));
        #[cfg(not(unix))]
        let temporary = env::temp_dir().join("mlx-models-demos");
        private_folder(&temporary).and_then(|()| self.folder_in(&temporary)).map_err(|source| Failure::Io {
            doing: format!(
                "writing the demo checkpoint (name a folder that can be written to in XDG_CACHE_HOME): {first}; {}",
                temporary.display()
            ),
            source,
        })
    }

    fn folder_in(&self, cache: &Path) -> io::Result<PathBuf> {
        let folder = cache.join(format!("demo-{}-{:016x}", self.name, self.fingerprint()));
        if self.is_whole(&folder) {
            return Ok(folder);
        }
        fs::create_dir_all(cache)?;
        if folder.exists() {
            // It is damaged.
            fs::remove_dir_all(&folder)?;
        }
        // Under another name first, so that no other process reads an incomplete checkpoint.
        let partial = Partial::folder(&folder)?;
        for (name, contents) in &self.files {
            fs::write(partial.path().join(name), contents)?;
        }
        match partial.commit() {
            // It fails if another process was faster, whose result is the same.
            Err(e) if !self.is_whole(&folder) => Err(e),
            _ => Ok(folder),
        }
    }

    fn is_whole(&self, folder: &Path) -> bool {
        let whole = |(name, contents): &(&str, &[u8])| {
            mlx_files::read(folder.join(name), contents.len() as u64).is_ok_and(|found| found == *contents)
        };
        self.files.iter().all(whole)
    }

    /// A number for these contents, so that each version of the program has a folder of its own.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.files.hash(&mut hasher);
        hasher.finish()
    }
}

/// Creates a folder that only this user can read, in a folder that every user can write to.
fn private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let about = fs::symlink_metadata(folder)?;
    #[cfg(unix)]
    let is_private = {
        use std::os::unix::fs::MetadataExt;
        about.mode() & 0o777 == 0o700 && about.uid() == nix::unistd::geteuid().as_raw()
    };
    #[cfg(not(unix))]
    let is_private = true;
    if about.is_dir() && is_private {
        return Ok(());
    }
    Err(io::Error::other("it must be a folder of this user alone (mode 700); remove it"))
}

/// The user's folder for files that can be created again, if there is one.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
    mlx_hub::xdg_cache_home(home.as_deref())
        .or_else(|| Some(home?.join(if cfg!(target_vendor = "apple") { "Library/Caches" } else { ".cache" })))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn the_folder_where_the_program_runs_has_its_own_name() {
        let name = |path: &str| Source::Folder(path.into()).name();
        let expected = env::current_dir().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name("."), Some(expected));
        assert_eq!(name("a/b-Q8_0.gguf").as_deref(), Some("b-Q8_0"));
    }

    #[test]
    #[cfg(unix)]
    fn a_private_folder_is_of_one_user_alone() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let all = tempfile::tempdir().unwrap();
        let folder = all.path().join("folder");
        private_folder(&folder).unwrap();
        private_folder(&folder).unwrap();
        for mode in [0o755, 0o770, 0o500, 0o777] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            private_folder(&folder).unwrap_err();
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        let link = all.path().join("link");
        symlink(&folder, &link).unwrap();
        private_folder(&link).unwrap_err();
        // Only who may do everything can give it to somebody else.
        if std::os::unix::fs::chown(&folder, Some(65_534), None).is_ok() {
            private_folder(&folder).unwrap_err();
        }
    }
}
