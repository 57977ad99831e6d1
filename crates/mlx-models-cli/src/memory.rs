//! The memory that models run in, and whether a model fits into it.

use std::path::{Path, PathBuf};
use std::{fs, process};

use mlx_models::device::DeviceKind;
use serde::Serialize;

use crate::progress::bytes;

/// The memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// What has it, as messages name it.
    of: &'static str,
    total: u64,
    /// `None` where the system does not say it.
    free: Option<u64>,
}

impl Memory {
    /// The memory that models on this device use; `None` where it is not known.
    pub(crate) fn of(device: DeviceKind) -> Option<Self> {
        match device {
            DeviceKind::Gpu if cfg!(target_os = "linux") => gpu(),
            // A Mac has one memory for both.
            _ if cfg!(target_vendor = "apple") => mac(),
            _ => linux(Path::new("/")),
        }
    }
}

#[cfg(target_os = "linux")]
fn gpu() -> Option<Memory> {
    let (total, free) = mlx_sys::gpu::memory()?;
    Some(Memory { of: "the GPU", total, free })
}

#[cfg(not(target_os = "linux"))]
fn gpu() -> Option<Memory> {
    None
}

fn mac() -> Option<Memory> {
    let output = process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    let total = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(Memory { of: "this machine", total, free: None })
}

/// The memory of the machine, or less if a control group limits this process. `root` is the root of the file system.
fn linux(root: &Path) -> Option<Memory> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kibibytes = |key: &str| number_after(&meminfo, key)?.checked_mul(1024);
    let mut memory =
        Memory { of: "this machine", total: kibibytes("MemTotal:")?, free: kibibytes("MemAvailable:") };
    for group in control_groups(root) {
        if let Some(limit) = group.limit().filter(|&limit| limit < memory.total) {
            memory.of = "this process";
            memory.total = limit;
            let free = limit.saturating_sub(group.used());
            memory.free = Some(memory.free.map_or(free, |other| other.min(free)));
        }
    }
    Some(memory)
}

/// The number in the line that begins with this key.
fn number_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A folder of Linux in which the memory of a group of processes is limited. The names of its files depend on the version
/// of the interface.
struct ControlGroup {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// The key of `memory.stat` for cached files, which make room when memory is needed.
    cached: &'static str,
}

impl ControlGroup {
    fn limit(&self) -> Option<u64> {
        // The text `max`, or a number above all memory, means that there is no limit.
        fs::read_to_string(self.folder.join(self.limit)).ok()?.trim().parse().ok()
    }

    fn used(&self) -> u64 {
        let read = |name| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let usage: u64 = read(self.usage).trim().parse().unwrap_or(0);
        usage.saturating_sub(number_after(&read("memory.stat"), self.cached).unwrap_or(0))
    }
}

/// The control groups that this process is in. Those that a container does not see have no folder.
fn control_groups(root: &Path) -> Vec<ControlGroup> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in text.lines() {
        // `4:memory:/path`, and `0::/path` in the second version of the interface.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, limit, usage, cached) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        } else {
            continue;
        };
        // A limit of a group holds for the groups in it.
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            groups.push(ControlGroup { folder: root.join(mount).join(ancestor), limit, usage, cached });
        }
    }
    groups
}

/// What a model needs.
pub(crate) struct Need<'a> {
    /// Bytes of the weights in memory.
    pub(crate) weights: u64,
    /// The context length, in tokens.
    pub(crate) context: i32,
    /// Bytes of the cache of one sequence with this many tokens.
    pub(crate) cache: &'a dyn Fn(i32) -> u64,
}

impl Need<'_> {
    fn bytes(&self, tokens: i32) -> u64 {
        self.weights.saturating_add((self.cache)(tokens))
    }

    /// The longest sequence, up to the context length, that fits into this memory beside the weights. 0 if none does.
    fn fitting_tokens(&self, memory: u64) -> i32 {
        let (mut fitting, mut too_long) = (0, self.context.saturating_add(1));
        while too_long - fitting > 1 {
            let middle = fitting + (too_long - fitting) / 2;
            if self.bytes(middle) <= memory { fitting = middle } else { too_long = middle }
        }
        fitting
    }

    /// What does not fit, if anything. Memory that is in use now counts only where all of it would be enough.
    fn warning(&self, Memory { of, total, free }: Memory) -> Option<String> {
        let full = self.bytes(self.context);
        let (room, place) = match free {
            _ if full > total => (total, format!("{of} has {}", bytes(total))),
            Some(free) if full > free => {
                (free, format!("{of} has {}, of which {} are free now", bytes(total), bytes(free)))
            }
            _ => return None,
        };
        let weights = bytes(self.weights);
        if self.bytes(1) > room {
            return Some(format!(
                "the weights do not fit into memory: they take {weights}, and {place}; fewer bits per weight or a \
                 smaller model may fit"
            ));
        }
        let (context, cache) = (self.context, bytes((self.cache)(self.context)));
        Some(format!(
            "a full context does not fit into memory: the weights take {weights}, the cache of {context} tokens takes \
             {cache}, and {place}; about {} tokens fit",
            self.fitting_tokens(room)
        ))
    }
}

/// Whether a model fits into memory. The fields are keys of a JSON object.
#[derive(Debug, Serialize)]
pub(crate) struct Fit {
    weights_bytes: u64,
    /// The cache of one sequence as long as the context.
    cache_bytes: u64,
    total_bytes: Option<u64>,
    free_bytes: Option<u64>,
    /// The longest sequence that fits into the whole memory, in tokens, up to the context length.
    fitting_tokens: Option<i32>,
    pub(crate) warning: Option<String>,
    /// All of it in one line.
    #[serde(skip)]
    pub(crate) shown: String,
}

impl Fit {
    /// Compares what a model needs with the memory, if that is known.
    pub(crate) fn new(need: &Need<'_>, memory: Option<Memory>) -> Self {
        let cache_bytes = (need.cache)(need.context);
        let mut shown =
            format!("weights {}, cache of a full context {}", bytes(need.weights), bytes(cache_bytes));
        if let Some(Memory { of, total, free }) = memory {
            shown += &format!("; {of} has {}", bytes(total));
            shown += &free.map_or_else(String::new, |free| format!(", {} of it free", bytes(free)));
        }
        Self {
            weights_bytes: need.weights,
            cache_bytes,
            total_bytes: memory.map(|memory| memory.total),
            free_bytes: memory.and_then(|memory| memory.free),
            fitting_tokens: memory.map(|memory| need.fitting_tokens(memory.total)),
            warning: memory.and_then(|memory| need.warning(memory)),
            shown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, contents).unwrap();
        }
        folder
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       16000 kB\nMemFree:  1 kB\nMemAvailable:    9000 kB\n");

    #[track_caller]
    fn assert_linux(files: &[(&str, &str)], of: &'static str, total: u64, free: Option<u64>) {
        let folder = folder(&[&[MEMINFO], files].concat());
        assert_eq!(linux(folder.path()), Some(Memory { of, total, free }));
    }

    #[test]
    fn a_machine_has_its_memory_and_a_process_what_its_control_group_allows() {
        const K: u64 = 1024;
        let machine = "this machine";
        assert_linux(&[], machine, 16_000 * K, Some(9_000 * K));
        let group = ("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/a/b\n0::/\n");
        // No limit is a number above all memory.
        let no_limit = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        assert_linux(&[group, no_limit], machine, 16_000 * K, Some(9_000 * K));
        let files = [
            group,
            no_limit,
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "5000000\n"),
            ("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "3000000\n"),
            ("sys/fs/cgroup/memory/a/b/memory.stat", "inactive_file 7\ntotal_inactive_file 1000000\n"),
        ];
        assert_linux(&files, "this process", 5_000_000, Some(3_000_000));
        // A container sees its own group as the root. The limit of a group holds for those in it.
        for (inside, limit) in [("", "4000000\n"), ("pod/", "max\n")] {
            let limits = [
                ("proc/self/cgroup".to_owned(), "0::/pod/container\n"),
                ("sys/fs/cgroup/memory.max".to_owned(), "4000000\n"),
                ("sys/fs/cgroup/memory.current".to_owned(), "1000000\n"),
                (format!("sys/fs/cgroup/{inside}memory.max"), limit),
            ];
            let files: Vec<(&str, &str)> = limits.iter().map(|(name, text)| (&**name, *text)).collect();
            assert_linux(&files, "this process", 4_000_000, Some(3_000_000));
        }
        // What the whole machine has free is the most that is free.
        let files = [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "16000000\n")];
        assert_linux(&files, "this process", 16_000_000, Some(9_000 * K));
        assert_eq!(linux(folder(&[]).path()), None);
    }

    const GB: u64 = 1_000_000_000;

    /// Two layers, one of them with a window of 1000 tokens; each takes a megabyte for a token.
    fn cache(tokens: i32) -> u64 {
        (tokens + tokens.min(1000)) as u64 * 1_000_000
    }

    fn fit(weights: u64, total: u64, free: Option<u64>) -> Fit {
        let need = Need { weights, context: 10_000, cache: &cache };
        Fit::new(&need, Some(Memory { of: "this machine", total, free }))
    }

    #[test]
    fn a_model_that_fits_needs_no_warning() {
        for free in [None, Some(16 * GB)] {
            let fit = fit(5 * GB, 16 * GB, free);
            assert_eq!((fit.warning, fit.fitting_tokens, fit.cache_bytes), (None, Some(10_000), 11 * GB));
        }
        let fit = Fit::new(&Need { weights: 5 * GB, context: 10_000, cache: &cache }, None);
        assert_eq!((fit.warning, fit.fitting_tokens, fit.total_bytes), (None, None, None));
        assert_eq!(fit.shown, "weights 5.00 GB, cache of a full context 11.00 GB");
    }

    #[test]
    fn the_warning_says_what_does_not_fit_and_what_would() {
        let long = fit(5 * GB, 15 * GB, Some(15 * GB));
        // 10 GB: a thousand for the window, the rest for the other layer.
        assert_eq!(long.fitting_tokens, Some(9_000));
        assert_eq!(
            long.warning.unwrap(),
            "a full context does not fit into memory: the weights take 5.00 GB, the cache of 10000 tokens takes 11.00 GB, \
             and this machine has 15.00 GB; about 9000 tokens fit"
        );
        assert_eq!(
            long.shown,
            "weights 5.00 GB, cache of a full context 11.00 GB; this machine has 15.00 GB, 15.00 GB of it free"
        );
        // In the window, a token takes both layers.
        let now = fit(5 * GB, 16 * GB, Some(6 * GB));
        assert_eq!(now.fitting_tokens, Some(10_000));
        let warning = now.warning.unwrap();
        assert!(
            warning
                .ends_with("this machine has 16.00 GB, of which 6.00 GB are free now; about 500 tokens fit"),
            "{warning}"
        );
        let heavy = fit(17 * GB, 16 * GB, None);
        assert_eq!(heavy.fitting_tokens, Some(0));
        assert_eq!(
            heavy.warning.unwrap(),
            "the weights do not fit into memory: they take 17.00 GB, and this machine has 16.00 GB; fewer bits per weight \
             or a smaller model may fit"
        );
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = Memory::of(DeviceKind::Cpu).unwrap();
        assert!(
            memory.total > 100_000_000 && memory.free.is_none_or(|free| free <= memory.total),
            "{memory:?}"
        );
    }
}
