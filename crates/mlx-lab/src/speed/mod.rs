//! `cargo xtask speed`: compares the speed of models on the CPU with other programs, in one call on one machine.
//!
//! The programs take turns, and each turn is a separate process, so a machine that slows down affects all of them. A turn
//! during which other programs used the processor is repeated. Ratios are medians of the ratios of the rounds.
//! `docs/performance.md` has the figures.

mod chart;
mod found;
mod machine;
mod measure;
mod models;
mod peaks;
mod peers;
mod report;
mod spread;
mod turn;
mod work;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use found::Bandwidth;
pub(crate) use found::Tokens;
use measure::{Counts, Drafts};
use models::{Source, Stored};
pub(crate) use peers::{Peers, Program};
use report::{Cell, Measurements};
use work::{Kind, Task, Work};

use crate::interrupt;
use crate::process::this_program;

/// The size of the matrices that are multiplied, and the number of products in a turn.
const MATRIX: usize = 1024;
const PRODUCTS: usize = 20;

/// Arguments of `cargo xtask speed`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What is measured
    #[arg(value_enum, value_name = "WORK", default_values = ["tokens"])]
    works: Vec<Kind>,
    /// The models: the real one, or random weights in the shape of a model; `tiny` is measured at bf16 only
    #[arg(long = "shape", value_enum, value_name = "SHAPE", num_args = 1.., default_values = ["real"])]
    sources: Vec<Source>,
    /// The widths of the weights
    #[arg(long = "width", value_enum, value_name = "WIDTH", num_args = 1.., default_values = ["bf16", "8-bit", "4-bit", "4-bit-32", "q4_k_m"])]
    widths: Vec<Stored>,
    /// The lengths of the prompts, in tokens
    #[arg(long, value_name = "P", num_args = 1.., default_values_t = [128, 1024], value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: Vec<u32>,
    /// The number of greedy tokens after the prompt
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(2..))]
    gen_tokens: u32,
    /// The numbers of rows of the work `batch`
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [2, 4, 8, 16, 32, 64], value_parser = clap::value_parser!(u32).range(1..))]
    rows: Vec<u32>,
    /// Quantize keys and values to 8 bits, or to 4 in this project only
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(i32).range(4..=8))]
    kv_bits: Option<i32>,
    /// The programs
    #[arg(long = "program", value_enum, value_name = "PROGRAM", num_args = 1.., default_values = ["mlx-models", "llama.cpp"])]
    programs: Vec<Program>,
    /// The number of turns of each program; slow programs get one
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// The longest prompt for the slow programs; their rate is also used for longer prompts
    #[arg(long, value_name = "P", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    slow_prompt_tokens: u32,
    /// The number of tokens that the slow programs generate
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..))]
    slow_gen_tokens: u32,
    /// How often a turn is repeated if other processes disturbed it
    #[arg(long, value_name = "K", default_value_t = turn::PATIENCE)]
    patience: u32,
    /// The folder of models with random weights, which are made if needed; the default is below the target folder
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Write one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Measure nothing, and draw the ratios of these runs, each the output of `--json`, into the file of `--chart`
    #[arg(long, value_name = "JSON", num_args = 1.., requires = "chart")]
    from: Vec<PathBuf>,
    /// The SVG file that is drawn
    #[arg(long, value_name = "FILE", requires = "from")]
    chart: Option<PathBuf>,
    #[command(flatten)]
    one: OneArguments,
}

/// The options of a process that does one measurement.
#[derive(clap::Args)]
struct OneArguments {
    /// Run only this measurement, in this process, and print it as JSON
    #[arg(long, value_enum, hide = true)]
    one: Option<One>,
    /// The checkpoint folder or GGUF file
    #[arg(long, value_name = "DIR", hide = true)]
    model: Option<PathBuf>,
    /// The number of prompt tokens in the warm-up of `--one tokens`
    #[arg(long, value_name = "P", hide = true)]
    warm_up_tokens: Option<u32>,
    /// The tokenizer of `--one speculation`
    #[arg(long, value_name = "PATH", hide = true)]
    tokenizer: Option<PathBuf>,
    /// Draft tokens from the text so far
    #[arg(long, hide = true)]
    lookup: bool,
    /// Draft tokens with this model
    #[arg(long, value_name = "DIR", hide = true)]
    draft: Option<PathBuf>,
}

/// A measurement that runs in a process of ours.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum One {
    Tokens,
    Batch,
    FirstToken,
    Speculation,
    Matmul,
    Bandwidth,
    Peaks,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    if let Some(one) = arguments.one.one {
        let found = measure_one(one, arguments).map_err(io::Error::other)?;
        writeln!(io::stdout(), "{found}")?;
        return Ok(true);
    }
    if let Some(chart) = &arguments.chart {
        chart::draw(&arguments.from, chart)?;
        return Ok(true);
    }
    if cfg!(debug_assertions) {
        workspace::complain("note: not an optimized build; `cargo xtask speed` makes one");
    }
    interrupt::install()?;
    let mut programs = arguments.programs.clone();
    if arguments.works.contains(&Kind::Matrices) {
        programs.push(Program::OpenBlas);
    }
    if !arguments.works.iter().any(|&kind| Work::of(kind, arguments).iter().any(|work| work.has_model())) {
        programs.retain(|&program| program == Program::OpenBlas);
    }
    let peers = Peers::of(&programs)?;
    let measurements = measured(arguments, &programs, &peers)?;
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer(&mut out, &report::json(&measurements))?;
        writeln!(out)?;
    } else {
        report::text(&measurements, &mut out)?;
    }
    Ok(true)
}

/// Runs one process's measurement, and returns it as JSON.
fn measure_one(one: One, arguments: &Arguments) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let options = &arguments.one;
    let model = || options.model.as_deref().ok_or("--model is needed");
    let prompt = arguments.prompt_tokens.first().copied().unwrap_or(1);
    Ok(match one {
        One::Tokens => {
            let warm_up = options.warm_up_tokens.unwrap_or(prompt);
            let counts = Counts { prompt, generated: arguments.gen_tokens, warm_up };
            serde_json::to_string(&measure::tokens(model()?, counts, arguments.kv_bits)?)?
        }
        One::Batch => {
            let rows = arguments.rows.first().copied().unwrap_or(1);
            serde_json::to_string(&measure::batch(model()?, rows, prompt, arguments.gen_tokens)?)?
        }
        One::FirstToken => serde_json::to_string(&measure::first_token(model()?)?)?,
        One::Speculation => {
            let drafts = match &options.draft {
                Some(draft) => Drafts::Model(draft.clone()),
                None if options.lookup => Drafts::Lookup,
                None => Drafts::Nothing,
            };
            let tokenizer = options.tokenizer.as_deref().map_or_else(model, Ok)?;
            serde_json::to_string(&measure::speculation(model()?, tokenizer, &drafts, arguments.gen_tokens)?)?
        }
        One::Matmul => serde_json::to_string(&measure::products(MATRIX as i32, PRODUCTS)?)?,
        One::Peaks => serde_json::to_string(&peaks::peaks(machine::cores())?)?,
        One::Bandwidth => serde_json::to_string(&measure::bandwidth(machine::cores()))?,
    })
}

fn measured(arguments: &Arguments, programs: &[Program], peers: &Peers) -> io::Result<Measurements> {
    let works: Vec<Work> = arguments.works.iter().flat_map(|&kind| Work::of(kind, arguments)).collect();
    let has_models = works.iter().any(|work| work.has_model());
    let sources: &[Source] = if has_models { &arguments.sources } else { &[] };
    let models = models::models(sources, &arguments.widths, arguments.models.as_deref(), peers)?;
    let mut all =
        Measurements { machine: machine::description(), models, bandwidth: Vec::new(), cells: Vec::new() };
    for &work in &works {
        let fitting = (0..all.models.len()).filter(|&place| work.fits(&all.models[place])).map(Some);
        let places: Vec<Option<usize>> = if work.has_model() { fitting.collect() } else { vec![None] };
        for model in places {
            let of = work.programs(model.map(|place| &all.models[place]), programs);
            let turns = of.into_iter().map(|program| (program, Vec::new())).collect();
            all.cells.push(Cell { work, model, turns });
        }
    }
    if all.cells.is_empty() {
        return Err(io::Error::other("none of these models has the work that is asked for"));
    }
    for number in 1..=arguments.turns {
        round(number, arguments, peers, &mut all)?;
    }
    Ok(all)
}

/// One turn of every program.
fn round(number: u32, arguments: &Arguments, peers: &Peers, all: &mut Measurements) -> io::Result<()> {
    let say = |what: &str| workspace::complain(&format!("turn {number} of {}: {what}", arguments.turns));
    say("memory");
    let bandwidth =
        || work::parsed::<Bandwidth>(this_program(&["speed", "--one", "bandwidth"])?, "this program");
    let read = turn::turn(arguments.patience, bandwidth)?.found.bytes_per_second;
    all.bandwidth.push(read.into_iter().fold(f64::NAN, f64::max));
    for cell in &mut all.cells {
        let model = cell.model.and_then(|place| all.models.get(place));
        for (program, turns) in &mut cell.turns {
            if program.is_slow() && number > 1 {
                continue;
            }
            let of = model.map_or_else(String::new, |model| {
                format!("{} {} ", model.source.name(), model.stored.name())
            });
            say(&format!("{of}{}: {}", cell.work.name(), program.name()));
            let task = Task { work: cell.work, model, program: *program, arguments, peers };
            turns.push(turn::turn(arguments.patience, || task.run())?);
        }
    }
    Ok(())
}

/// One turn of a program with a GGUF file. A warm-up of no tokens is none.
pub(crate) fn turn_on_file(
    program: Program,
    peers: &Peers,
    file: &Path,
    counts: [u32; 3],
) -> io::Result<Tokens> {
    let tokens = || work::tokens_of(program, peers, file, counts, None);
    Ok(turn::turn(turn::PATIENCE, tokens)?.found)
}
