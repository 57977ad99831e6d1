//! What a hub is made with, and the environment variables that say it.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::{HeaderValue, Uri};

use crate::error::HubError;
use crate::names::shortened;

/// Where the Hugging Face Hub is.
pub const ENDPOINT: &str = "https://huggingface.co";

/// The largest file with a token, in bytes.
const LARGEST_TOKEN: u64 = 64 << 10;

/// What a [`Hub`](crate::Hub) is made with.
///
/// [`Settings::from_environment`] reads the variables that the Hub's Python library reads; [`Settings::new`] reads none.
///
/// ```
/// use mlx_hub::Settings;
///
/// let settings = Settings { offline: true, ..Settings::new("models") };
/// assert_eq!(settings.endpoint, "https://huggingface.co");
/// ```
#[derive(Debug, Clone)]
pub struct Settings {
    /// The Hub's address, without a slash at its end.
    pub endpoint: String,
    /// The cache folder, which holds a folder for each model.
    pub cache: PathBuf,
    /// The user's token, for private and gated models.
    pub token: Option<Token>,
    /// Where a user can put a token, for error messages.
    pub token_places: String,
    /// Whether no request is made, so that only models in the cache are found.
    pub offline: bool,
    /// A PEM file of the certificates to trust, in place of the usual ones.
    pub certificates: Option<PathBuf>,
    /// Which `model_type`s of a config are worth a download; `None` for all. A model of another one is refused when
    /// its config has arrived, before its weights.
    pub model_types: Option<Vec<String>>,
    /// The name that the program gives itself in requests.
    pub user_agent: String,
    /// How long the Hub may take.
    pub timeouts: Timeouts,
    /// The largest file whose length the Hub does not announce, in bytes. The weights of large models are in files of
    /// 5 or 10 GB.
    pub largest_unannounced: u64,
}

/// How long the Hub may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// How long a connection may be silent: 30 seconds.
    pub silence: Duration,
    /// How long the list of a model's files may take to arrive: 2 minutes.
    pub listing: Duration,
    /// The pause before the second attempt: 1 second. Each further pause is twice as long.
    pub first_pause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30),
            listing: Duration::from_secs(120),
            first_pause: Duration::from_secs(1),
        }
    }
}

impl Settings {
    /// The Hugging Face Hub without a token, and this cache folder.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: ENDPOINT.to_owned(),
            cache: cache.into(),
            token: None,
            token_places: "the settings".to_owned(),
            offline: false,
            certificates: None,
            model_types: None,
            user_agent: concat!("mlx-hub/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeouts: Timeouts::default(),
            largest_unannounced: 16 << 30,
        }
    }

    /// The settings that the environment gives:
    ///
    /// | variable | gives |
    /// |---|---|
    /// | `HF_ENDPOINT` | [`endpoint`](Self::endpoint) |
    /// | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE` | [`cache`](Self::cache); else `hub` in the folder of the next row |
    /// | `HF_HOME` | a folder for the cache and the token; else `huggingface` in `XDG_CACHE_HOME` or in `~/.cache` |
    /// | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN` | [`token`](Self::token); else the file of the next row |
    /// | `HF_TOKEN_PATH` | a file with the token; else `token` in the folder of `HF_HOME` |
    /// | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | [`offline`](Self::offline), where it is `1`, `on`, `yes` or `true` |
    /// | `SSL_CERT_FILE` | [`certificates`](Self::certificates) |
    ///
    /// Proxies are those of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    ///
    /// [`HubError::Setting`] for a value that cannot be used, or where no variable says where the cache is;
    /// [`HubError::Read`] for a file with a token that cannot be read.
    pub fn from_environment() -> Result<Self, HubError> {
        Environment { variable: &|name| env::var_os(name), home: env::home_dir() }.settings()
    }
}

/// A user's token. It is sent to the Hub only, and shown nowhere.
#[derive(Clone)]
pub struct Token {
    /// `Bearer TOKEN`.
    pub(crate) header: HeaderValue,
    pub(crate) found_in: String,
}

impl Token {
    /// A token, and where it was found, for error messages.
    ///
    /// # Errors
    ///
    /// [`HubError::Setting`] for a token with characters that no request can hold.
    pub fn new(token: &str, found_in: impl Into<String>) -> Result<Self, HubError> {
        let found_in = found_in.into();
        match format!("Bearer {}", token.trim()).parse::<HeaderValue>() {
            Ok(mut header) => {
                header.set_sensitive(true);
                Ok(Self { header, found_in })
            }
            Err(_) => Err(HubError::Setting {
                name: found_in,
                problem: "it has characters that no token has".to_owned(),
            }),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("found_in", &self.found_in).finish_non_exhaustive()
    }
}

/// The user's folder for files that can be downloaded or made again, where `XDG_CACHE_HOME` names it.
///
/// A relative path is ignored, as the rules of that variable say; one that begins with `~/` is in `home`.
pub fn xdg_cache_home(home: Option<&Path>) -> Option<PathBuf> {
    xdg_folder(env::var_os("XDG_CACHE_HOME")?, home)
}

fn xdg_folder(value: OsString, home: Option<&Path>) -> Option<PathBuf> {
    let folder = PathBuf::from(value);
    let folder = match folder.strip_prefix("~") {
        Ok(rest) => home?.join(rest),
        Err(_) => folder,
    };
    Some(folder).filter(|folder| folder.is_absolute())
}

/// Where the settings are read from.
struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    home: Option<PathBuf>,
}

impl Environment<'_> {
    fn settings(&self) -> Result<Settings, HubError> {
        let folder = self.folder()?;
        let cache = match (self.path("HF_HUB_CACHE")?, self.path("HUGGINGFACE_HUB_CACHE")?, &folder) {
            (Some(cache), ..) | (None, Some(cache), _) => cache,
            (None, None, Some(folder)) => folder.join("hub"),
            (None, None, None) => {
                let problem = "there is no folder for models, since HOME is not set; name one in HF_HOME";
                return Err(setting("HF_HOME", problem));
            }
        };
        let token_file = self.path("HF_TOKEN_PATH")?.or_else(|| Some(folder?.join("token")));
        Ok(Settings {
            token: self.token(token_file.as_deref())?,
            token_places: match token_file {
                Some(file) => format!("HF_TOKEN or in {}", file.display()),
                None => "HF_TOKEN or in the file that HF_TOKEN_PATH names".to_owned(),
            },
            endpoint: self.endpoint()?,
            offline: self.is_set("HF_HUB_OFFLINE") || self.is_set("TRANSFORMERS_OFFLINE"),
            certificates: self.path("SSL_CERT_FILE")?,
            ..Settings::new(cache)
        })
    }

    /// The value of a variable; an empty one counts as none.
    fn value(&self, name: &str) -> Option<OsString> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// The value of a variable that is text.
    fn text(&self, name: &str) -> Option<String> {
        self.value(name)?.into_string().ok()
    }

    /// Whether a variable says yes.
    fn is_set(&self, name: &str) -> bool {
        let value = self.value(name).unwrap_or_default().to_string_lossy().to_uppercase();
        ["1", "ON", "YES", "TRUE"].contains(&&*value)
    }

    /// The path that a variable names, in which `~` is the home folder.
    fn path(&self, name: &str) -> Result<Option<PathBuf>, HubError> {
        self.value(name).map(|path| in_home(name, PathBuf::from(path), self.home.as_deref())).transpose()
    }

    /// The folder for the cache and the token; none where nothing says where the home folder is.
    fn folder(&self) -> Result<Option<PathBuf>, HubError> {
        if let Some(folder) = self.path("HF_HOME")? {
            return Ok(Some(folder));
        }
        let home = self.home.as_deref();
        let cache = (self.variable)("XDG_CACHE_HOME").and_then(|value| xdg_folder(value, home));
        Ok(match cache {
            Some(cache) => Some(cache.join("huggingface")),
            None => in_home("HF_HOME", PathBuf::from("~/.cache/huggingface"), home).ok(),
        })
    }

    fn endpoint(&self) -> Result<String, HubError> {
        let endpoint = self.text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        check_endpoint("HF_ENDPOINT", &endpoint)?;
        Ok(endpoint)
    }

    fn token(&self, file: Option<&Path>) -> Result<Option<Token>, HubError> {
        let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| {
            let token = self.text(name).filter(|token| !token.trim().is_empty())?;
            Some((token, name.to_owned()))
        });
        let found = match (named, file) {
            (None, Some(file)) => token_in(file)?,
            (named, _) => named,
        };
        found.map(|(token, found_in)| Token::new(&token, found_in)).transpose()
    }
}

/// The token in a file, where there is one, with the file's name.
fn token_in(file: &Path) -> Result<Option<(String, String)>, HubError> {
    match mlx_files::read_to_string(file, LARGEST_TOKEN) {
        Ok(token) if token.trim().is_empty() => Ok(None),
        Ok(token) => Ok(Some((token, file.display().to_string()))),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(HubError::Read { file: file.to_path_buf(), source }),
    }
}

/// A path in which `~` is the home folder. `name` is the variable that names it.
fn in_home(name: &str, path: PathBuf, home: Option<&Path>) -> Result<PathBuf, HubError> {
    let Ok(rest) = path.strip_prefix("~") else {
        if path.to_string_lossy().starts_with('~') {
            let problem = format!("{} begins with ~; write the home folder out", path.display());
            return Err(setting(name, &problem));
        }
        return Ok(path);
    };
    match home.filter(|home| !home.as_os_str().is_empty()) {
        Some(home) => Ok(home.join(rest)),
        None => Err(setting(name, &format!("{} is in the home folder, and HOME is not set", path.display()))),
    }
}

/// Fails for an address that is not one of the web. `name` is the setting or variable that it comes from.
pub(crate) fn check_endpoint(name: &str, endpoint: &str) -> Result<(), HubError> {
    let address = endpoint.parse::<Uri>().ok().filter(|address| address.host().is_some());
    if address.is_some_and(|address| matches!(address.scheme_str(), Some("http" | "https"))) {
        return Ok(());
    }
    Err(setting(name, &format!("{} is not an http or https address", shortened(&format!("{endpoint:?}")))))
}

fn setting(name: &str, problem: &str) -> HubError {
    HubError::Setting { name: name.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::fs;

    use super::*;

    fn settings(variables: &[(&str, &str)], home: Option<&str>) -> Result<Settings, HubError> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name)?;
            Some(OsString::from(found.1))
        };
        Environment { variable: &variable, home: home.map(PathBuf::from) }.settings()
    }

    #[test]
    fn variables_say_where_the_cache_is() {
        let cache = |variables: &[(&str, &str)]| settings(variables, Some("/h")).unwrap().cache;
        assert_eq!(cache(&[]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "relative")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/a")]), Path::new("/h/a/hub"));
        assert_eq!(cache(&[("HF_HOME", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b")]), Path::new("/b"));
        let both = [("HUGGINGFACE_HUB_CACHE", "/b"), ("HF_HUB_CACHE", "/c")];
        assert_eq!(cache(&both), Path::new("/c"));
        // An empty variable counts as none.
        assert_eq!(cache(&[("HF_HOME", ""), ("HF_HUB_CACHE", "")]), Path::new("/h/.cache/huggingface/hub"));
        for home in [None, Some("")] {
            let error = settings(&[], home).unwrap_err();
            assert!(error.to_string().contains("HOME is not set; name one in HF_HOME"), "{error}");
            assert_eq!(settings(&[("HF_HUB_CACHE", "/c")], home).unwrap().cache, Path::new("/c"));
        }
    }

    #[test]
    fn variables_say_where_the_hub_is_and_whether_it_is_asked() {
        let of = |name: &str, value: &str| settings(&[(name, value)], Some("/h"));
        assert_eq!(of("HF_ENDPOINT", "http://127.0.0.1:9/").unwrap().endpoint, "http://127.0.0.1:9");
        assert_eq!(of("HF_ENDPOINT", "").unwrap().endpoint, ENDPOINT);
        for wrong in ["ftp://hub.example", "hub.example", "https://", "file:///x"] {
            let error = of("HF_ENDPOINT", wrong).unwrap_err().to_string();
            assert!(error.starts_with("HF_ENDPOINT: ") && error.ends_with("not an http or https address"));
        }
        for (value, offline) in
            [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("", false)]
        {
            assert_eq!(of("HF_HUB_OFFLINE", value).unwrap().offline, offline, "{value}");
            assert_eq!(of("TRANSFORMERS_OFFLINE", value).unwrap().offline, offline, "{value}");
        }
    }

    #[test]
    fn a_token_is_read_within_limits() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        assert!(token_in(&file).unwrap().is_none());
        fs::write(&file, " \n").unwrap();
        assert!(token_in(&file).unwrap().is_none());
        fs::write(&file, "secret\n").unwrap();
        assert_eq!(token_in(&file).unwrap().unwrap().0, "secret\n");
        fs::write(&file, vec![b'a'; 100_000]).unwrap();
        assert!(matches!(token_in(&file).unwrap_err(), HubError::Read { .. }));
    }

    #[test]
    fn a_token_is_that_of_the_variable_or_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        fs::write(folder.path().join("token"), "from-file\n").unwrap();
        let token = |variables: &[(&str, &str)]| {
            let settings = settings(&[&[("HF_HOME", home)], variables].concat(), None).unwrap();
            let token = settings.token.unwrap();
            (token.header.to_str().unwrap().to_owned(), token.found_in)
        };
        let file = folder.path().join("token").display().to_string();
        assert_eq!(token(&[]), ("Bearer from-file".to_owned(), file.clone()));
        assert_eq!(token(&[("HF_TOKEN", " ")]).1, file, "a token without characters is none");
        assert_eq!(token(&[("HF_TOKEN", "a")]), ("Bearer a".to_owned(), "HF_TOKEN".to_owned()));
        let error = settings(&[("HF_HOME", home), ("HF_TOKEN", "a\nb")], None).unwrap_err().to_string();
        assert!(error.starts_with("HF_TOKEN: it has characters") && !error.contains("a\nb"), "{error}");
    }

    #[test]
    fn the_home_folder_is_known_or_an_error() {
        let at =
            |path: &str, home: Option<&str>| in_home("HF_HOME", PathBuf::from(path), home.map(Path::new));
        assert_eq!(at("~/x", Some("/h")).unwrap(), Path::new("/h/x"));
        assert_eq!(at("~", Some("/h")).unwrap(), Path::new("/h"));
        for path in ["/x", "x", "x/~"] {
            assert_eq!(at(path, None).unwrap(), Path::new(path));
        }
        for home in [None, Some("")] {
            let error = at("~/x", home).unwrap_err().to_string();
            assert!(error.contains("HOME is not set"), "{error}");
        }
        assert!(at("~someone/x", Some("/h")).unwrap_err().to_string().contains("write the home folder out"));
    }

    #[test]
    fn a_cache_folder_is_absolute_or_in_the_home_folder() {
        let named = |named: &str, home: Option<&str>| xdg_folder(named.into(), home.map(Path::new));
        assert_eq!(named("/c", None).unwrap(), Path::new("/c"));
        assert_eq!(named("~/c", Some("/h")).unwrap(), Path::new("/h/c"));
        assert_eq!(named("~", Some("/h")).unwrap(), Path::new("/h"));
        for (path, home) in [("", Some("/h")), ("c", Some("/h")), ("~someone/c", Some("/h")), ("~/c", None)] {
            assert_eq!(named(path, home), None, "{path}");
        }
    }
}
