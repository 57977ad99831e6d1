//! The real model of `cargo xtask real` and `cargo xtask speed`: Gemma 3 270M, which is downloaded into the user's cache.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_models::{ConvertOptions, Quantization, QuantizeOptions, Weights};
use serde::Deserialize;
use workspace::python::{self, Environment};

use crate::interrupt;

/// The files of the model, as `real_files.py` prints them.
#[derive(Debug, Deserialize)]
pub(crate) struct Files {
    /// The file in Q4_K_M.
    pub(crate) gguf: PathBuf,
    /// The checkpoint folder with the same weights in bfloat16, written with the package gguf.
    pub(crate) bf16: PathBuf,
    pub(crate) sha256: String,
    pub(crate) licence: String,
}

/// The model, and what is made of it.
pub(crate) struct RealModel {
    pub(crate) files: Files,
    /// The folder of our conversions.
    pub(crate) made: PathBuf,
}

impl RealModel {
    /// Downloads what is missing. The scripts run in this environment, which has the package gguf. The default folder is in
    /// the user's cache.
    pub(crate) fn open(folder: Option<&Path>, environment: Environment) -> io::Result<Self> {
        let folder = match folder {
            Some(folder) => std::path::absolute(folder)?,
            None => python::user_cache("real")
                .ok_or_else(|| io::Error::other("there is no home folder; --files may name a folder"))?,
        };
        fs::create_dir_all(&folder)?;
        let mut script = python::script(&python::interpreter(environment)?, "real_files.py");
        // What it downloads is on standard error, for the user to see.
        script.arg("--out").arg(&folder).stderr(std::process::Stdio::inherit());
        let output = script.output()?;
        interrupt::check()?;
        if !output.status.success() {
            return Err(io::Error::other("the model cannot be downloaded"));
        }
        let files: Files = serde_json::from_slice(&output.stdout)?;
        let made = folder.join("made");
        fs::create_dir_all(&made)?;
        Ok(Self { files, made })
    }

    /// One of our conversions, made if it is not there.
    pub(crate) fn converted(&self, name: &str, from: &Path, options: &ConvertOptions) -> io::Result<PathBuf> {
        let out = self.made.join(name);
        if !out.exists() {
            workspace::complain(&format!("making {name}"));
            let go_on = |_: mlx_models::Progress<'_>| {
                if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            mlx_models::convert(from, None, &out, options, go_on).map_err(io::Error::other)?;
        }
        Ok(out)
    }

    /// The bfloat16 folder, quantized in the affine mode.
    pub(crate) fn quantized(&self, name: &str, bits: i32, group: i32) -> io::Result<PathBuf> {
        let quantization = Quantization::affine(bits, group).map_err(io::Error::other)?;
        let weights = Weights::Quantized(QuantizeOptions { quantization, recipe: None, layers: Vec::new() });
        self.converted(name, &self.files.bf16, &ConvertOptions { weights, ..ConvertOptions::default() })
    }

    /// A folder in full precision as a GGUF file with tensors of this type, written by the package gguf and not by our own
    /// code. Made if it is not there.
    pub(crate) fn as_gguf(
        &self,
        folder: &Path,
        kind: &str,
        file: &Path,
        environment: Environment,
    ) -> io::Result<()> {
        if file.exists() {
            return Ok(());
        }
        workspace::complain(&format!("making {}", file.display()));
        let mut script = python::script(&python::interpreter(environment)?, "write_gguf.py");
        script.arg("--model").arg(folder).args(["--type", kind, "--out"]).arg(file);
        crate::process::output(script, "write_gguf.py").map(drop)
    }
}
