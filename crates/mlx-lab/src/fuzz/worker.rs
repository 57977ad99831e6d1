//! The process that runs cases one after the other, and the code that watches it.
//!
//! The worker reads the numbers of cases from standard input. On standard output it writes a line for each
//! step, and then one line of JSON with the outcome of the case. A worker that dies or does not respond is
//! replaced.

use std::any::Any;
use std::io::{self, BufRead, BufReader, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::case;
use super::kind::{LARGEST_MEMORY, Settings, Verdict};
use crate::memory;

/// A worker that still uses this much memory after a case is replaced, so that each case is measured alone.
const LARGEST_WORKER: u64 = 1 << 30;
/// The beginning of a line with an outcome.
const ANSWER: &str = "answer ";
/// The stack of the thread that runs cases: the default of threads in Rust programs.
const STACK: usize = 2 << 20;

/// The outcome of a case, as one line.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// `accepted`, `refused` or `fault`.
    verdict: String,
    text: String,
    peak: u64,
}

/// The place and the message of the last panic.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// The worker itself: runs the cases whose numbers it reads, in its own folder.
pub(super) fn work(settings: Settings, root: &Path) -> io::Result<bool> {
    // Panics that a library catches and returns as errors are not faults. `answer` reports the others.
    panic::set_hook(Box::new(|about| {
        if let Ok(mut last) = LAST_PANIC.lock() {
            *last = about.to_string();
        }
    }));
    let folder = root.to_path_buf();
    let work = move || -> io::Result<()> {
        for line in io::stdin().lines() {
            let number = line?.trim().parse().map_err(io::Error::other)?;
            let answer = answer(&settings, number, &folder)?;
            say(&format!("{ANSWER}{}", serde_json::to_string(&answer)?))?;
        }
        Ok(())
    };
    let worker = thread::Builder::new().stack_size(STACK).spawn(work)?;
    worker.join().map_err(|_| io::Error::other("the worker panicked outside of a case"))?.map(|()| true)
}

fn answer(settings: &Settings, number: u64, folder: &Path) -> io::Result<Answer> {
    memory::forget_peak();
    // Mostly the kernels, as for users, and sometimes stock MLX.
    mlx_sys::cpu_kernels::set_enabled(number % 5 != 4);
    let mut tell = |step: &str| {
        let step: String = step.chars().take(2000).collect::<String>().replace('\n', "\\n");
        // If this fails, the watching process has ended, and so the worker ends.
        let _ = say(&step);
    };
    let run = AssertUnwindSafe(|| case::run(settings, number, folder, &mut tell));
    let (verdict, text) = match panic::catch_unwind(run) {
        Ok(verdict) => match verdict? {
            Verdict::Accepted => ("accepted", String::new()),
            Verdict::Refused(message) => ("refused", message.chars().take(2000).collect()),
            Verdict::Fault(fault) => ("fault", fault),
        },
        Err(payload) => ("fault", format!("a panic: {}", panic_text(&*payload))),
    };
    let peak = memory::peak("self");
    Ok(Answer { verdict: verdict.to_owned(), text, peak })
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let last = LAST_PANIC.lock().map(|last| last.clone()).unwrap_or_default();
    if !last.is_empty() {
        return last;
    }
    payload.downcast_ref::<&str>().map_or_else(|| "without a message".to_owned(), |text| (*text).to_owned())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// A worker, seen from the process that watches it.
pub(super) struct Worker<'s> {
    settings: &'s Settings,
    /// The folder that it may write to.
    folder: PathBuf,
    running: Option<Running>,
}

struct Running {
    child: Child,
    lines: Receiver<String>,
}

/// The outcome of a case, and its last steps.
pub(super) struct Ran {
    pub(super) verdict: Verdict,
    /// The steps, with the time when each began.
    pub(super) steps: Vec<(Duration, String)>,
    pub(super) peak: u64,
}

impl<'s> Worker<'s> {
    /// Starts a worker in this folder, which it may fill.
    pub(super) fn new(settings: &'s Settings, folder: PathBuf) -> Self {
        Self { settings, folder, running: None }
    }

    /// Runs a case.
    pub(super) fn run(&mut self, number: u64) -> io::Result<Ran> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        let told = running.child.stdin.as_mut().map(|stdin| writeln!(stdin, "{number}"));
        told.unwrap_or_else(|| Err(io::Error::other("the worker has no input")))?;
        let started = Instant::now();
        let mut steps = Vec::new();
        let fault = |text: String, steps: Vec<(Duration, String)>, peak| Ran {
            verdict: Verdict::Fault(text),
            steps,
            peak,
        };
        loop {
            let peak = memory::peak(&running.child.id().to_string());
            // The program that a worker runs has a lower limit of its own, which is reached first.
            let over = if started.elapsed() > self.settings.longest + Duration::from_secs(10) {
                Some(format!("no end in {} s", started.elapsed().as_secs()))
            } else if peak > LARGEST_MEMORY {
                Some(format!("{} MB of memory", peak >> 20))
            } else {
                None
            };
            if let Some(why) = over {
                running.child.kill()?;
                running.child.wait()?;
                return Ok(fault(why, steps, peak));
            }
            let line = match running.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    let status = running.child.wait()?;
                    return Ok(fault(format!("the process ended by {status}"), steps, peak));
                }
            };
            let Some(answer) = line.strip_prefix(ANSWER) else {
                steps.push((started.elapsed(), line));
                continue;
            };
            let Answer { verdict, text, peak } = serde_json::from_str(answer)?;
            let verdict = match &*verdict {
                "accepted" => Verdict::Accepted,
                "refused" => Verdict::Refused(text),
                _ => Verdict::Fault(text),
            };
            if peak < LARGEST_WORKER && !matches!(verdict, Verdict::Fault(_)) {
                self.running = Some(running);
            } else {
                // Closing its input ends the worker.
                drop(running.child.stdin.take());
                running.child.wait()?;
            }
            return Ok(Ran { verdict, steps, peak });
        }
    }

    fn start(&self) -> io::Result<Running> {
        let [cwd, home, temporary, case] = ["cwd", "home", "tmp", "case"].map(|name| self.folder.join(name));
        for folder in [&cwd, &home, &temporary, &case] {
            let _ = std::fs::remove_dir_all(folder);
            std::fs::create_dir_all(folder)?;
        }
        // This very program, even if another one was built in its place since.
        let this = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
        let mut command = Command::new(this);
        let Settings { seed, longest, program } = self.settings;
        command.args(["fuzz", "--seed", &seed.to_string(), "--longest", &longest.as_secs().to_string()]);
        command.arg("--program").arg(program).arg("--worker").arg(&case).current_dir(cwd);
        command.env("HOME", &home).env("TMPDIR", temporary).env("XDG_CACHE_HOME", home.join("cache"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("the worker has no output"))?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            while let Some(Ok(line)) = lines.next() {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Running { child, lines })
    }

    /// The files that were written where nothing should be written.
    pub(super) fn strays(&self) -> io::Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        for name in ["cwd", "home", "tmp"] {
            for entry in std::fs::read_dir(self.folder.join(name))? {
                strays.push(entry?.path());
            }
        }
        Ok(strays)
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.child.stdin.take());
            // The worker is idle, and ends.
            let _ = running.child.wait();
        }
    }
}
