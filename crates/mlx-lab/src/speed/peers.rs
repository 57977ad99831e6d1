//! The programs that are measured, and where the other ones are.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use workspace::llama_cpp::{LlamaCpp, llama_cpp};
use workspace::python::{self, Environment};

/// A program that runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Program {
    /// This project
    MlxModels,
    /// This project without speculation, in the work of that name
    #[value(skip)]
    Plain,
    /// This project with MLX's own code for the CPU, which is slow
    Stock,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// OpenVINO GenAI
    #[value(name = "openvino")]
    OpenVino,
    /// mlx-lm, which is slow on the CPU
    MlxLm,
    /// OpenBLAS in NumPy, in the work `matrices`
    #[value(skip)]
    OpenBlas,
}

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MlxModels => "mlx-models",
            Self::Plain => "without drafts",
            Self::Stock => "stock",
            Self::LlamaCpp => "llama.cpp",
            Self::OpenVino => "OpenVINO",
            Self::MlxLm => "mlx-lm",
            Self::OpenBlas => "OpenBLAS",
        }
    }

    /// Whether it needs minutes for a prompt that others read in a second.
    pub(super) fn is_slow(self) -> bool {
        matches!(self, Self::Stock | Self::MlxLm)
    }
}

/// Where the other programs are. They are set up if they are asked for.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(super) mlx_lm: Option<PathBuf>,
    /// The interpreter of its script, and its build.
    pub(super) llama_cpp: Option<(PathBuf, LlamaCpp)>,
    pub(super) openvino: Option<PathBuf>,
}

impl Peers {
    pub(crate) fn of(programs: &[Program]) -> io::Result<Self> {
        let wanted = |programs_of: &[Program]| programs.iter().any(|program| programs_of.contains(program));
        let python = |environment| python::interpreter(environment);
        Ok(Self {
            mlx_lm: wanted(&[Program::MlxLm, Program::OpenBlas])
                .then(|| python(Environment::MlxLm))
                .transpose()?,
            llama_cpp: wanted(&[Program::LlamaCpp])
                .then(|| Ok::<_, io::Error>((python(Environment::LlamaCppTools)?, llama_cpp()?)))
                .transpose()?,
            openvino: wanted(&[Program::OpenVino]).then(|| python(Environment::OpenVino)).transpose()?,
        })
    }

    /// A script of an environment that was set up.
    pub(super) fn script(&self, program: Program) -> io::Result<(Command, &'static str)> {
        let absent = || io::Error::other(format!("{} was not set up", program.name()));
        let (python, name) = match program {
            Program::MlxLm => (self.mlx_lm.as_ref(), "bench_tokens_mlx_lm.py"),
            Program::OpenBlas => (self.mlx_lm.as_ref(), "bench_matmul.py"),
            Program::OpenVino => (self.openvino.as_ref(), "bench_openvino.py"),
            _ => (self.llama_cpp.as_ref().map(|(python, _)| python), "bench_llama_cpp.py"),
        };
        let mut script = python::script(python.ok_or_else(absent)?, name);
        if program == Program::LlamaCpp {
            let (_, build) = self.llama_cpp.as_ref().ok_or_else(absent)?;
            script.arg("--library").arg(&build.folder).args(["--build", &build.version]);
        }
        Ok((script, name))
    }

    /// One of llama.cpp's own programs.
    pub(super) fn llama_program(&self, name: &str) -> io::Result<Command> {
        let (_, build) =
            self.llama_cpp.as_ref().ok_or_else(|| io::Error::other("llama.cpp was not set up"))?;
        Ok(Command::new(build.folder.join(name)))
    }

    pub(super) fn llama_version(&self) -> String {
        self.llama_cpp.as_ref().map_or_else(String::new, |(_, build)| build.version.clone())
    }
}
