//! Speed and memory beside llama.cpp, on the same GGUF file. The programs take turns.

use std::io;
use std::path::Path;

use crate::real::report::Row;
use crate::speed::{Peers, Program, Tokens, turn_on_file};

/// The prompt whose speed counts, and the tokens that follow it.
const PROMPT: u32 = 512;
const GENERATED: u32 = 64;
/// The prompt for the time from opening the model to the first token.
const SHORT_PROMPT: u32 = 4;
/// What is asked of us: ratios of speed, and memory as a multiple of the file and the cache.
const FASTER: f64 = 1.2;
const MEMORY: f64 = 1.1;
/// Bytes of the cache for a token: 18 layers, one head of 256 keys and values, 2 bytes each.
const CACHE: f64 = 18.0 * 2.0 * 256.0 * 2.0;

/// The turns of one program.
#[derive(Debug, Default)]
struct Turns {
    long: Vec<Tokens>,
    short: Vec<Tokens>,
}

impl Turns {
    fn run(&mut self, program: Program, peers: &Peers, file: &Path) -> io::Result<()> {
        // The time to the first token is that of a new process, without a warm-up. Of two the second counts: the first may wait
        // for the file, or for memory that a virtual machine has given back.
        turn_on_file(program, peers, file, [SHORT_PROMPT, 2, 0])?;
        self.short.push(turn_on_file(program, peers, file, [SHORT_PROMPT, 2, 0])?);
        self.long.push(turn_on_file(program, peers, file, [PROMPT, GENERATED, PROMPT])?);
        Ok(())
    }

    fn decode(&self) -> f64 {
        median(self.long.iter().map(|turn| 1.0 / median(turn.token_s.iter().copied())))
    }

    fn prompt(&self) -> f64 {
        median(self.long.iter().map(|turn| f64::from(PROMPT) / turn.prefill_s))
    }

    fn first_token(&self) -> f64 {
        median(self.short.iter().map(|turn| turn.load_s + turn.prefill_s))
    }

    /// The most memory of the process, in bytes.
    fn peak(&self) -> f64 {
        median(self.long.iter().map(|turn| turn.peak_memory_bytes.unwrap_or(0) as f64))
    }

    /// The most memory of arrays, in bytes.
    fn peak_of_arrays(&self) -> f64 {
        median(self.long.iter().map(|turn| turn.peak_array_bytes.unwrap_or(0) as f64))
    }
}

pub(super) fn rows(file: &Path, turns: u32) -> io::Result<Vec<Row>> {
    let peers = Peers::of(&[Program::LlamaCpp])?;
    let (mut ours, mut theirs) = (Turns::default(), Turns::default());
    for turn in 1..=turns {
        workspace::complain(&format!("turn {turn} of {turns}"));
        ours.run(Program::MlxModels, &peers, file)?;
        theirs.run(Program::LlamaCpp, &peers, file)?;
    }
    let ratio = |what: &str, ours: f64, theirs: f64| {
        let found = format!("{ours:.1}, {theirs:.1} (ratio {:.2})", ours / theirs);
        Row::compared(what, found, ours / theirs >= FASTER)
    };
    let file_bytes = std::fs::metadata(file)?.len() as f64;
    let needed = file_bytes + CACHE * f64::from(PROMPT + GENERATED);
    let megabytes = |bytes: f64| bytes / 1e6;
    Ok(vec![
        ratio("decoded tokens a second: ours, llama.cpp", ours.decode(), theirs.decode()),
        ratio(
            &format!("prompt of {PROMPT}, tokens a second: ours, llama.cpp"),
            ours.prompt(),
            theirs.prompt(),
        ),
        Row::compared(
            &format!(
                "seconds from opening the file to the first token after {SHORT_PROMPT}: ours, llama.cpp"
            ),
            format!("{:.3}, {:.3}", ours.first_token(), theirs.first_token()),
            ours.first_token() < theirs.first_token(),
        ),
        Row::compared(
            &format!(
                "peak memory of our arrays in MB; the file and the cache have {:.0}, {MEMORY} times that is {:.0}",
                megabytes(needed),
                megabytes(MEMORY * needed)
            ),
            format!("{:.0}", megabytes(ours.peak_of_arrays())),
            ours.peak_of_arrays() <= MEMORY * needed,
        ),
        Row::shown(
            "peak memory of the process in MB: ours, llama.cpp with Python",
            format!("{:.0}, {:.0}", megabytes(ours.peak()), megabytes(theirs.peak())),
        ),
    ])
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
