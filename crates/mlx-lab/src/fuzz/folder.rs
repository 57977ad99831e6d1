//! The folder of a case: an original model, and the changes to it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::json::{self, Word};
use super::random::Random;
use super::tensors::{Tensor, TensorFile};
use super::values::mutate_bytes;
use super::{template, tokenizer, words};

/// The demos in the program, which share a tokenizer.
pub(super) const DEMOS: [&str; 6] = ["gemma3", "lille-130m", "olmo3", "phi3", "gemma2", "smollm3"];

/// Models of parity cases: an architecture without a demo, quantized models, a multimodal config, other
/// rotations.
const CASES: [&str; 17] = [
    "qwen3_f32_whole",
    "qwen3_tied_q4",
    "gemma2_q4_whole",
    "granite_tied_q4",
    "llama_q4_whole",
    "llama_awq",
    "ministral3_q4_whole",
    "olmo2_q8_whole",
    "smollm3_q8_whole",
    "qwen2_q8_whole",
    "phi3_q4_whole",
    "phi3_longrope_mlx_lm",
    "hf_phi3_longrope_short",
    "hf_olmo3_yarn",
    "gemma3_multimodal",
    "gemma3_mxfp4_whole",
    "olmo3_q8_whole",
];

/// Parity cases with adapters in mlx-lm's format.
const MLX_LM_ADAPTERS: [&str; 7] = [
    "lora_f32",
    "lora_q4",
    "lora_bias_q4",
    "lora_qwen3_bf16",
    "dora_phi3_bf16",
    "dora_embedding_f32",
    "full_last_layer_bf16",
];
/// Parity cases with adapters in PEFT's format.
const PEFT_ADAPTERS: [&str; 5] = [
    "peft_dora_phi3",
    "peft_lora_olmo3_saved",
    "peft_rslora_qwen3",
    "peft_lora_qwen3_one_layer",
    "peft_lora_phi3",
];

/// The folders of a case.
#[derive(Debug)]
pub(super) struct Folder {
    /// The folder that contains all others.
    pub(super) root: PathBuf,
    /// The model.
    pub(super) model: PathBuf,
    /// The adapters, if there are any.
    pub(super) adapters: Option<PathBuf>,
}

/// The file or files of a folder that are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Config,
    Generation,
    Tokenizer,
    TokenizerConfig,
    Template,
    Tensors,
    Index,
    Adapters,
    FileSystem,
}

impl Folder {
    /// A working model, without adapters.
    pub(super) fn plain(root: &Path, random: &mut Random) -> io::Result<Self> {
        let name = if random.once_in(4) { random.one(&CASES) } else { random.one(&DEMOS) };
        Self::of(root, name)
    }

    /// A working model with its adapters, mlx-lm's or PEFT's.
    pub(super) fn adapted(root: &Path, from_peft: bool, random: &mut Random) -> io::Result<Self> {
        let name = if from_peft { random.one(&PEFT_ADAPTERS) } else { random.one(&MLX_LM_ADAPTERS) };
        let mut folder = Self::of(root, name)?;
        let adapters = root.join("adapters");
        copy_files(&workspace::root().join("xtask/cases").join(name).join("adapters"), &adapters)?;
        folder.adapters = Some(adapters);
        Ok(folder)
    }

    /// One of the demos or of the parity cases. Parity cases have no tokenizer, and get that of the demos.
    pub(super) fn of(root: &Path, name: &str) -> io::Result<Self> {
        let model = root.join("model");
        let demos = workspace::root().join("crates/mlx-models-cli/demo");
        if DEMOS.contains(&name) {
            copy_files(&demos.join(name), &model)?;
        } else {
            copy_files(&workspace::root().join("xtask/cases").join(name), &model)?;
            for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
                fs::copy(demos.join(DEMOS[0]).join(file), model.join(file))?;
            }
        }
        // Nothing reads these files, so changing them would test nothing.
        for file in ["README.md", "greedy.json", "case.json", "reference.safetensors"] {
            let _ = fs::remove_file(model.join(file));
        }
        Ok(Self { root: root.to_path_buf(), model, adapters: None })
    }

    /// Converts this model to float32.
    pub(super) fn widen(&self) -> io::Result<()> {
        let file = self.model.join("model.safetensors");
        let mut tensors = TensorFile::read(&file)?;
        tensors.widen();
        tensors.write(&file)
    }

    /// Makes one change, and returns where.
    pub(super) fn mutate(&self, target: Target, random: &mut Random) -> io::Result<PathBuf> {
        let in_model = |name: &str| self.model.join(name);
        match target {
            Target::Config if random.once_in(2) => {
                let file = in_model("config.json");
                // A file that an earlier change broke stays broken.
                if let Ok(mut config) = serde_json::from_slice(&fs::read(&file)?) {
                    words::vary(&mut config, random);
                    fs::write(&file, config.to_string())?;
                }
                Ok(file)
            }
            Target::Config => mutate_json(&in_model("config.json"), words::CONFIG, random),
            Target::Generation => mutate_json(&in_model("generation_config.json"), words::GENERATION, random),
            Target::Tokenizer => mutate_json(&in_model("tokenizer.json"), tokenizer::WORDS, random),
            Target::TokenizerConfig => {
                let names = [
                    "tokenizer_config.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "chat_template.json",
                ];
                let file = in_model(random.one(&names));
                if !file.exists() {
                    fs::write(&file, "{}")?;
                }
                mutate_json(&file, words::TOKENIZER_CONFIG, random)
            }
            Target::Template => self.write_template(random),
            Target::Tensors => mutate_tensors(&in_model("model.safetensors"), random),
            Target::Index => {
                let index = in_model("model.safetensors.index.json");
                if !index.exists() {
                    self.split()?;
                }
                if random.once_in(3) {
                    let shard = format!("model-0000{}-of-00002.safetensors", 1 + random.below(2));
                    return mutate_tensors(&in_model(&shard), random);
                }
                mutate_json(&index, words::INDEX, random)
            }
            Target::Adapters => {
                let folder = self.adapters.as_deref().unwrap_or(&self.model);
                let tensors =
                    ["adapters.safetensors", "adapter_model.safetensors"].map(|name| folder.join(name));
                match tensors.iter().find(|file| file.is_file()) {
                    Some(tensors) if random.once_in(2) => mutate_tensors(tensors, random),
                    _ => mutate_json(&folder.join("adapter_config.json"), words::ADAPTERS, random),
                }
            }
            Target::FileSystem => self.replace_file(random),
        }
    }

    /// Writes a random chat template.
    fn write_template(&self, random: &mut Random) -> io::Result<PathBuf> {
        let folder = self.model.join("additional_chat_templates");
        let file = if random.once_in(6) {
            fs::create_dir_all(&folder)?;
            folder.join(random.one(&["default.jinja", "tool_use.jinja", "a b.jinja", "x"]))
        } else {
            self.model.join("chat_template.jinja")
        };
        let mut text = template::template(random).into_bytes();
        if random.once_in(8) {
            mutate_bytes(&mut text, random);
        }
        fs::write(&file, text)?;
        Ok(file)
    }

    /// Splits the tensors into two files with an index.
    fn split(&self) -> io::Result<()> {
        let file = self.model.join("model.safetensors");
        let mut first = TensorFile::read(&file)?;
        let second = first.tensors.split_off(first.tensors.len() / 2);
        let second = TensorFile { tensors: second, metadata: first.metadata.clone() };
        let mut map = json!({});
        for (name, part) in
            [("model-00001-of-00002.safetensors", &first), ("model-00002-of-00002.safetensors", &second)]
        {
            part.write(&self.model.join(name))?;
            for tensor in &part.tensors {
                map[&tensor.name] = json!(name);
            }
        }
        fs::remove_file(file)?;
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        fs::write(self.model.join("model.safetensors.index.json"), index.to_string())
    }

    /// Replaces a file by something else.
    fn replace_file(&self, random: &mut Random) -> io::Result<PathBuf> {
        let mut files = Vec::new();
        for folder in [Some(&self.model), self.adapters.as_ref()].into_iter().flatten() {
            for entry in fs::read_dir(folder)? {
                files.push(entry?.path());
            }
        }
        files.sort();
        let optional = [
            "chat_template.jinja",
            "special_tokens_map.json",
            "model.safetensors.index.json",
            "model-2.safetensors",
            "tokenizer.model",
        ];
        files.push(self.model.join(random.one(&optional)));
        let file = random.one(&files).clone();
        put_in_place(&file, random)?;
        Ok(file)
    }

    /// Writes a file with the tensors that a model asked for, so that a config can have any sizes.
    pub(super) fn give(
        &self,
        missing: &[(String, Vec<i32>)],
        drop: &[String],
        random: &mut Random,
    ) -> io::Result<bool> {
        let file = self.model.join("model.safetensors");
        let mut tensors = TensorFile::read(&file)?;
        let size = |shape: &[i32]| shape.iter().map(|&length| f64::from(length.max(0))).product::<f64>();
        if missing.len() > 300 || missing.iter().map(|(_, shape)| size(shape)).sum::<f64>() > 2e6 {
            return Ok(false);
        }
        let dtype = tensors.tensors.first().map_or("F32".to_owned(), |tensor| tensor.dtype.clone());
        let dtype = if dtype.starts_with('U') { "F32".to_owned() } else { dtype };
        tensors.tensors.retain(|tensor| {
            !drop.contains(&tensor.name) && missing.iter().all(|(key, _)| *key != tensor.name)
        });
        for (key, shape) in missing {
            let scales = key.strip_suffix(".weight").map(|layer| format!("{layer}.scales"));
            let is_quantized = scales.is_some_and(|scales| {
                missing.iter().any(|(key, _)| *key == scales)
                    || tensors.tensors.iter().any(|tensor| tensor.name == scales)
            });
            let mut tensor = Tensor::zeros(key, if is_quantized { "U32" } else { &dtype }, shape);
            tensor.fill_small(random);
            tensors.tensors.push(tensor);
        }
        tensors.write(&file)?;
        Ok(true)
    }
}

/// The state of a path, to see whether it changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    about: String,
}

/// The state of everything in a folder.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<Entry>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let about = fs::symlink_metadata(&path)?;
            let modified = about.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let is_folder = about.is_dir();
            // A folder's own state changes with its contents.
            let (length, modified) = if is_folder { (0, 0) } else { (about.len(), modified.as_nanos()) };
            let about =
                format!("{:?} {:?} {length} {modified}", about.file_type(), about.permissions().mode());
            if is_folder {
                folders.push(path.clone());
            }
            found.push(Entry { path, about });
        }
    }
    found.sort();
    Ok(found)
}

/// Replaces a file by something that is not a regular file.
pub(super) fn put_in_place(file: &Path, random: &mut Random) -> io::Result<()> {
    match fs::symlink_metadata(file) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(file)?,
        Ok(_) => fs::remove_file(file)?,
        Err(_) => {}
    }
    match random.below(13) {
        0 => Ok(()),
        1 => fs::create_dir(file),
        2 => Command::new("mkfifo").arg(file).status().map(drop),
        3 => symlink("absent", file),
        4 => symlink("/dev/zero", file),
        5 => symlink("/dev/null", file),
        6 => symlink(file, file),
        7 => fs::write(file, ""),
        8 => File::create(file)?.set_len(random.one(&[1, 8, 1 << 20, 1 << 40])),
        9 => symlink("/proc/self/mem", file),
        10 => std::os::unix::net::UnixListener::bind(file).map(drop).or_else(|_| fs::write(file, "null")),
        11 => {
            fs::write(file, "{}")?;
            fs::set_permissions(file, PermissionsExt::from_mode(0o000))
        }
        _ => fs::write(file, random.one(&["null", "[]", "\"a\"", "1", "{", "\u{feff}{}", "{}"])),
    }
}

/// Whether the path holds something other than a regular file.
pub(super) fn is_special(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| {
        let kind = about.file_type();
        kind.is_dir() || kind.is_fifo() || kind.is_socket() || kind.is_symlink()
    })
}

fn mutate_json(file: &Path, words: &[Word], random: &mut Random) -> io::Result<PathBuf> {
    let mut text = fs::read(file)?;
    // A file that an earlier mutation broke can only be broken further.
    if let Ok(mut value) = serde_json::from_slice::<Value>(&text)
        && !random.once_in(10)
    {
        json::mutate(&mut value, random, words);
        text = json::to_text(&value).into_bytes();
    } else {
        mutate_bytes(&mut text, random);
    }
    fs::write(file, text)?;
    Ok(file.to_path_buf())
}

pub(super) fn mutate_tensors(file: &Path, random: &mut Random) -> io::Result<PathBuf> {
    match TensorFile::read(file) {
        Ok(mut tensors) if !random.once_in(4) => {
            tensors.mutate(random);
            if !random.once_in(8) {
                tensors.sign();
            }
            tensors.write(file)?;
        }
        Ok(tensors) => fs::write(file, tensors.broken(random))?,
        Err(_) => {
            let mut bytes = fs::read(file)?;
            mutate_bytes(&mut bytes, random);
            fs::write(file, bytes)?;
        }
    }
    Ok(file.to_path_buf())
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
