//! What the environment variables `MLX_CPU_ISA`, `MLX_CPU_THREADS` and `MLX_CPU_ACTIVATIONS` ask for.

use std::sync::OnceLock;
use std::thread;

use crate::{ActivationBits, Isa};

/// What [`Cpu::global`](crate::Cpu::global) is made of.
pub(crate) struct Settings {
    pub(crate) isa: Isa,
    /// At least 1, and at most the cores that the process may use.
    pub(crate) threads: usize,
    pub(crate) activations: ActivationBits,
    /// What was asked for and is not used: a sentence for each variable.
    pub(crate) warnings: Vec<String>,
}

/// The settings, read once.
pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let value = |name| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
        let (isa, no_isa) = isa(&value("MLX_CPU_ISA"));
        // More threads than cores would only take cores from each other.
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (threads, no_threads) = threads(&value("MLX_CPU_THREADS"), cores);
        let (activations, no_activations) = activations(&value("MLX_CPU_ACTIVATIONS"));
        let warnings = no_isa.into_iter().chain(no_threads).chain(no_activations).collect();
        Settings { isa, threads, activations, warnings }
    })
}

/// The instruction set that a value of `MLX_CPU_ISA` stands for, and a warning if that is another one.
fn isa(value: &str) -> (Isa, Option<String>) {
    let best = Isa::best();
    let name = value.trim();
    match Isa::available().find(|isa| isa.name() == name) {
        Some(isa) => (isa, None),
        None if name.is_empty() => (best, None),
        None => {
            let available: Vec<_> = Isa::available().map(Isa::name).collect();
            let warning = format!(
                "MLX_CPU_ISA={} is not an instruction set of this processor ({}); {} is used",
                // The value may hold control sequences.
                name.escape_debug(),
                available.join(", "),
                best.name()
            );
            (best, Some(warning))
        }
    }
}

/// The number of threads that a value of `MLX_CPU_THREADS` stands for on `cores` cores, and a warning if that is
/// another number.
fn threads(value: &str, cores: usize) -> (usize, Option<String>) {
    let name = value.trim();
    let problem = match name.parse() {
        Ok(count) if (1..=cores).contains(&count) => return (count, None),
        Ok(0) => "is not a number of threads, which is 1 or more".to_owned(),
        Ok(_) => format!("is more than the {cores} cores of this process"),
        Err(_) if name.is_empty() => return (cores, None),
        Err(_) => "is not a number of threads".to_owned(),
    };
    // The value may hold control sequences.
    let warning = format!("MLX_CPU_THREADS={} {problem}; {cores} threads are used", name.escape_debug());
    (cores, Some(warning))
}

/// The bits of activations that a value of `MLX_CPU_ACTIVATIONS` stands for, and a warning if that is another number.
fn activations(value: &str) -> (ActivationBits, Option<String>) {
    let (name, default) = (value.trim(), ActivationBits::default());
    match [ActivationBits::Eight, ActivationBits::Sixteen].into_iter().find(|x| x.count().to_string() == name)
    {
        Some(bits) => (bits, None),
        None if name.is_empty() => (default, None),
        None => {
            let warning = format!(
                "MLX_CPU_ACTIVATIONS={} is not a number of bits of activations (8, 16); {} are used",
                // The value may hold control sequences.
                name.escape_debug(),
                default.count()
            );
            (default, Some(warning))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_threads_than_cores() {
        for (value, count) in [("", 4), (" 3 ", 3), ("4", 4), ("1", 1)] {
            assert_eq!(threads(value, 4), (count, None), "{value}");
        }
        for (value, needle) in [
            ("5", "more than the 4 cores"),
            ("100000", "more than the 4 cores"),
            ("0", "1 or more"),
            ("-1", "not a number"),
            ("99999999999999999999999", "not a number"),
            ("\u{1b}[2J", "MLX_CPU_THREADS=\\u{1b}[2J is not a number"),
        ] {
            let (count, warning) = threads(value, 4);
            assert!(count == 4 && warning.as_ref().is_some_and(|text| text.contains(needle)), "{warning:?}");
        }
    }

    #[test]
    fn activations_have_8_or_16_bits() {
        for (value, bits) in
            [("", ActivationBits::Sixteen), (" 8 ", ActivationBits::Eight), ("16", ActivationBits::Sixteen)]
        {
            assert_eq!(activations(value), (bits, None), "{value}");
        }
        for (value, needle) in [
            ("4", "MLX_CPU_ACTIVATIONS=4 is not a number of bits of activations (8, 16); 16 are used"),
            ("\u{1b}[2J", "MLX_CPU_ACTIVATIONS=\\u{1b}[2J is not"),
        ] {
            let (bits, warning) = activations(value);
            assert!(bits == ActivationBits::Sixteen);
            assert!(warning.as_ref().is_some_and(|text| text.contains(needle)), "{warning:?}");
        }
    }

    #[test]
    fn an_instruction_set_is_named_or_the_best_is_used() {
        for available in Isa::available() {
            assert_eq!(isa(&format!(" {} ", available.name())), (available, None));
        }
        assert_eq!(isa(" "), (Isa::best(), None));
        for (value, needle) in
            [("avx9", "MLX_CPU_ISA=avx9 is not"), ("\u{1b}[2J", "MLX_CPU_ISA=\\u{1b}[2J is")]
        {
            let (found, warning) = isa(value);
            let warning = warning.unwrap();
            assert!(found == Isa::best() && warning.contains(needle), "{warning}");
            assert!(warning.contains(Isa::best().name()), "{warning}");
        }
    }
}
