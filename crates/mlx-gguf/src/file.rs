//! A model in one file or in several parts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::header::{Header, ReadError, TensorInfo};
use crate::metadata::Metadata;
use crate::{GgufError, Problem, dequantize};

/// The most parts of a model.
const MOST_PARTS: i64 = 1000;

/// A model in a GGUF file, or in several parts. Opening reads the metadata and the places of the tensors, and no tensor.
#[derive(Debug)]
pub struct Gguf {
    metadata: Metadata,
    tensors: BTreeMap<String, Tensor>,
    parts: Vec<Part>,
}

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// What its file says of it.
    pub info: TensorInfo,
    part: usize,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
}

impl Gguf {
    /// Opens a model. Where the model has several parts (`NAME-00001-of-00003.gguf`), any of them can be given, and the others
    /// lie beside it. A link to a part can have another name: then the others lie beside the part.
    ///
    /// # Errors
    ///
    /// Where a part is missing or is no GGUF file, where the parts do not belong together, and where what a file says of its
    /// content cannot be true.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let (part, header) = Part::open(path)?;
        let split = Split::of(&header.metadata).map_err(|problem| part.wrong(problem))?;
        let Some(split) = split else {
            let tensors = tensors(header.tensors, 0).collect();
            return Ok(Self { metadata: header.metadata, tensors, parts: vec![part] });
        };
        let named = split.named(path);
        let mut model = Self { metadata: Metadata::default(), tensors: BTreeMap::new(), parts: Vec::new() };
        for number in 0..split.count {
            let (part, header) = Part::open(&split.path(&named, number)?)?;
            split.check(number, &header.metadata).map_err(|problem| part.wrong(problem))?;
            for (name, tensor) in tensors(header.tensors, model.parts.len()) {
                if model.tensors.contains_key(&name) {
                    return Err(part.wrong(Problem::Twice { what: "tensor", name }));
                }
                model.tensors.insert(name, tensor);
            }
            if number == 0 {
                model.metadata = header.metadata;
            }
            model.parts.push(part);
        }
        match split.tensors {
            Some(expected) if expected != model.tensors.len() as i64 => {
                let found = model.tensors.len();
                let problem =
                    format!("the parts have {found} tensors, and split.tensors.count is {expected}");
                Err(GgufError::File { path: path.to_owned(), problem: Problem::Parts(problem) })
            }
            _ => Ok(model),
        }
    }

    /// The metadata of the model, which the first part has.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The files, first part first.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| &*part.path)
    }

    /// The error for content that is wrong.
    pub(crate) fn wrong(&self, problem: Problem) -> GgufError {
        let path = self.files().next().unwrap_or(Path::new(""));
        GgufError::File { path: path.to_owned(), problem }
    }

    /// The tensors of all parts, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Reads the bytes of a tensor: blocks of its type.
    ///
    /// # Errors
    ///
    /// [`GgufError::Io`], also where the file was cut since it was opened.
    pub fn read(&self, tensor: &Tensor) -> Result<Vec<u8>, GgufError> {
        let part = &self.parts[tensor.part];
        let range = &tensor.info.bytes;
        let read = || {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            part.file.read_exact_at(&mut bytes, range.start)?;
            Ok(bytes)
        };
        read().map_err(|source| GgufError::Io { path: part.path.clone(), source })
    }

    /// Reads some bytes of a tensor, from this byte of it on.
    ///
    /// # Errors
    ///
    /// [`GgufError::Io`], also where the tensor has fewer bytes.
    pub fn read_at(&self, tensor: &Tensor, start: usize, bytes: &mut [u8]) -> Result<(), GgufError> {
        let part = &self.parts[tensor.part];
        let io = |source| GgufError::Io { path: part.path.clone(), source };
        let range = &tensor.info.bytes;
        let place = range.start.saturating_add(start as u64);
        if place.saturating_add(bytes.len() as u64) > range.end {
            return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        part.file.read_exact_at(bytes, place).map_err(io)
    }

    /// Reads the numbers of a tensor, in the order of its [shape](TensorInfo::shape). See [`dequantize`].
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn numbers(&self, tensor: &Tensor) -> Result<Vec<f32>, GgufError> {
        let mut numbers = Vec::new();
        dequantize(tensor.info.kind, &self.read(tensor)?, &mut numbers);
        Ok(numbers)
    }
}

fn tensors(infos: Vec<TensorInfo>, part: usize) -> impl Iterator<Item = (String, Tensor)> {
    infos.into_iter().map(move |info| (info.name.clone(), Tensor { info, part }))
}

impl Part {
    fn open(path: &Path) -> Result<(Self, Header), GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = mlx_files::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        match Header::read(BufReader::with_capacity(1 << 16, &file), size) {
            Ok(header) => Ok((Self { path: path.to_owned(), file }, header)),
            Err(ReadError::Io(source)) => Err(io(source)),
            Err(ReadError::Problem(problem)) => Err(GgufError::File { path: path.to_owned(), problem }),
        }
    }

    fn wrong(&self, problem: Problem) -> GgufError {
        GgufError::File { path: self.path.clone(), problem }
    }
}

/// How a model is split into parts.
#[derive(Debug, PartialEq, Eq)]
struct Split {
    count: i64,
    /// The number of tensors of all parts together.
    tensors: Option<i64>,
}

impl Split {
    /// What the metadata of a part says; `None` for a model in one file.
    fn of(metadata: &Metadata) -> Result<Option<Self>, Problem> {
        let key = "split.count";
        let tensors = metadata.integer("split.tensors.count")?;
        match metadata.integer(key)? {
            None | Some(0 | 1) => Ok(None),
            Some(count) if (2..=MOST_PARTS).contains(&count) => Ok(Some(Self { count, tensors })),
            Some(count) => {
                let (found, needed) = (count.to_string(), format!("between 1 and {MOST_PARTS}"));
                Err(Problem::Metadata { key: key.to_owned(), found, needed })
            }
        }
    }

    /// What a link points to, if only that has the name of a part. Otherwise the path itself.
    fn named(&self, path: &Path) -> PathBuf {
        let target = || Some(path.with_file_name(fs::read_link(path).ok()?));
        let target = target().filter(|target| self.path(path, 0).is_err() && self.path(target, 0).is_ok());
        target.unwrap_or_else(|| path.to_owned())
    }

    /// The file of a part, counted from 0, beside another part.
    fn path(&self, other: &Path, number: i64) -> Result<PathBuf, GgufError> {
        let wrong = || {
            let expected = format!(
                "this is one of {} parts, and its name must end with -00001-of-{:05}.gguf or the like, \
                 so that the others can be found",
                self.count, self.count
            );
            GgufError::File { path: other.to_owned(), problem: Problem::Parts(expected) }
        };
        let name = other.file_name().and_then(|name| name.to_str()).ok_or_else(wrong)?;
        let stem = name.strip_suffix(&format!("-of-{:05}.gguf", self.count)).ok_or_else(wrong)?;
        let (stem, digits) = stem.rsplit_once('-').ok_or_else(wrong)?;
        if digits.len() != 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        Ok(other.with_file_name(format!("{stem}-{:05}-of-{:05}.gguf", number + 1, self.count)))
    }

    /// Checks that a part says that it is the part with this number, and of how many.
    fn check(&self, number: i64, metadata: &Metadata) -> Result<(), Problem> {
        for (key, expected) in [("split.count", self.count), ("split.no", number)] {
            let found = metadata.integer(key)?;
            if found != Some(expected) {
                let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
                let needed = format!("{expected}, as its name says");
                return Err(Problem::Metadata { key: key.to_owned(), found, needed });
            }
        }
        Ok(())
    }
}
