//! Properties of the machine, and how much of its time other processes use.

use std::fs;
use std::thread;

/// Features of x86-64 processors that kernels of this project or of other programs use.
const FEATURES: [&str; 9] = [
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512vbmi",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "avx512_fp16",
];

/// The processor time so far, in the kernel's ticks. It is unknown on systems without `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// All time that passed, over all processors.
    total: u64,
    /// The time in which any process ran.
    busy: u64,
    /// The time in which this process ran, or one that it started and that has ended.
    own: u64,
}

impl Usage {
    pub(super) fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// Parses the texts of `/proc/stat` and `/proc/self/stat`, described in proc(5).
    fn parse(machine: &str, process: &str) -> Option<Self> {
        // user nice system idle iowait irq softirq steal; the fields after these are already included in them.
        let times = machine.lines().next()?.strip_prefix("cpu ")?;
        let times: Vec<u64> = times.split_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
        let total = times.iter().sum();
        let idle = times.get(3)? + times.get(4)?;
        // The second field is a name in brackets that can contain anything. utime, stime, cutime and cstime are
        // the fields 14 to 17.
        let (_, fields) = process.rsplit_once(')')?;
        let own = fields.split_whitespace().skip(11).take(4).map_while(|time| time.parse::<u64>().ok()).sum();
        Some(Self { total, busy: total - idle, own })
    }

    /// The share of the machine's time that other processes used since then.
    pub(super) fn others_since(&self, before: &Self) -> f64 {
        let others = (self.busy - before.busy).saturating_sub(self.own - before.own);
        others as f64 / (self.total - before.total).max(1) as f64
    }
}

/// The number of processors that this process may use.
pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The processor, its instruction sets that matter for kernels, and the date, for the head of a table.
pub(super) fn description() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (name, features) = processor(&text);
    let name = if name.is_empty() { std::env::consts::ARCH.to_owned() } else { name };
    let kernels = format!("the kernels use {}", mlx_cpu::Isa::best().name());
    vec![
        format!("{name}, {} cores; {kernels}; it has {}", cores(), features.join(", ")),
        format!("{}", jiff::Zoned::now().date()),
    ]
}

/// The name of the processor in the text of `/proc/cpuinfo`, and its features of [`FEATURES`].
fn processor(text: &str) -> (String, Vec<&'static str>) {
    let value = |key: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    };
    let flags: Vec<&str> = value("flags").split_whitespace().collect();
    let features = FEATURES.into_iter().filter(|feature| flags.contains(feature)).collect();
    (value("model name").to_owned(), features)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn others_use_what_is_neither_idle_nor_ours() {
        let at = |machine, process| Usage::parse(machine, process).unwrap();
        let before =
            at("cpu  100 10 50 800 20 0 5 15 0 0\ncpu0 1\n", "7 (a) b) R 1 1 1 0 0 0 0 0 0 0 30 5 0 0 20\n");
        assert_eq!(before, Usage { total: 1000, busy: 180, own: 35 });
        let after =
            at("cpu  160 10 60 890 30 0 5 45 9 9\n", "7 (a) b) R 1 1 1 0 0 0 0 0 0 0 30 5 40 10 20\n");
        // 100 of 200 ticks were busy, and 50 of these were ours.
        assert_eq!(after.others_since(&before), 0.25);
    }

    #[test]
    fn the_processor_is_named_with_its_instruction_sets() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9B45\nflags\t\t: fpu avx2 avx512f avx512_bf16 sse\n\nprocessor\t: 1\n";
        assert_eq!(processor(text), ("AMD EPYC 9B45".to_owned(), vec!["avx2", "avx512f", "avx512_bf16"]));
        assert_eq!(processor(""), (String::new(), vec![]));
    }
}
