//! Checks that the system lets the program start the threads that a model needs.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;

use mlx_files::Partial;
use mlx_rs::{Array, memory, ops, transforms};
use mlx_safetensors::{Dtype, Header};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::failure::Failure;

/// The threads that MLX starts to read and compute, and those of the program beside it. MLX waits forever for a thread that it
/// could not start, so the program checks first that they can be started.
const NEEDED: usize = 10;

/// The size of the stacks of MLX's threads, in bytes: the system's default.
const STACK: usize = 8 << 20;

/// The size in bytes from which MLX reads a tensor with several threads. It starts them at the first such tensor.
const SHARED_READ: usize = 1 << 25;

/// Starts the threads that a model needs, once, before its weights take the memory for their stacks.
///
/// `cache` is the user's cache folder, one of the places for a file that MLX reads.
pub(crate) fn check(cache: Option<PathBuf>) -> Result<(), Failure> {
    static OUTCOME: OnceLock<Result<(), (String, ErrorKind, String)>> = OnceLock::new();
    let started = || {
        start(NEEDED + workers())?;
        if !memory_is_limited() {
            return Ok(());
        }
        // If no file can be written, MLX starts its threads when it reads the weights.
        let Ok(file) = probe(cache) else { return Ok(()) };
        compute(&file.path().join(PROBE)).map_err(|e| {
            let doing = "starting MLX's threads; allow more memory (`ulimit -v`)".to_owned();
            (doing, ErrorKind::OutOfMemory, e)
        })
    };
    OUTCOME
        .get_or_init(started)
        .clone()
        .map_err(|(doing, kind, problem)| Failure::Io { doing, source: io::Error::new(kind, problem) })
}

/// Whether the program's address space has a limit (`ulimit -v`), which weights may fill before MLX starts its threads.
fn memory_is_limited() -> bool {
    getrlimit(Resource::RLIMIT_AS).is_ok_and(|(limit, _)| limit != RLIM_INFINITY)
}

/// The file in the folder that [`probe`] makes.
const PROBE: &str = "zeros.safetensors";

/// A folder with a file of one tensor. It takes no space on file systems that do not store zeros.
fn probe(cache: Option<PathBuf>) -> io::Result<Partial> {
    let places = [Some(env::temp_dir()), Some(PathBuf::from("/dev/shm")), cache];
    // MLX accepts only names in UTF-8.
    let mut places = places.into_iter().flatten().filter(|place| place.to_str().is_some());
    places.find_map(|place| probe_in(&place).ok()).ok_or_else(|| ErrorKind::PermissionDenied.into())
}

fn probe_in(place: &Path) -> io::Result<Partial> {
    let folder = Partial::folder(place.join("mlx-models-threads"))?;
    let zeros = ("zeros".to_owned(), Dtype::U8, vec![SHARED_READ]);
    let header = Header::new(BTreeMap::new(), [zeros])?;
    let mut file = File::create_new(folder.path().join(PROBE))?;
    file.write_all(&header.to_bytes()?)?;
    file.set_len(header.data_start() + header.data_len())?;
    Ok(folder)
}

/// Lets MLX read a tensor and multiply matrices, so that it starts all of its threads and those of the CPU kernels.
fn compute(file: &Path) -> Result<(), String> {
    let tensors = Array::load_safetensors(file).map_err(|e| e.to_string())?;
    let computed = || {
        let matrix = ops::ones::<f32>(&[128, 128])?;
        transforms::eval(tensors.values().chain([&ops::matmul(&matrix, &matrix)?]))
    };
    computed().map_err(|e| e.to_string())?;
    drop(tensors);
    // This memory must not count as the model's.
    memory::clear_cache().and_then(|()| memory::reset_peak_memory()).map_err(|e| e.to_string())
}

/// The threads of the CPU kernels, besides the one that calls them. Only Linux has these kernels.
fn workers() -> usize {
    #[cfg(target_os = "linux")]
    let threads = mlx_sys::cpu_kernels::threads();
    #[cfg(not(target_os = "linux"))]
    let threads = 1;
    threads - 1
}

/// Starts `count` threads and ends them again.
fn start(count: usize) -> Result<(), (String, ErrorKind, String)> {
    let together = Arc::new(Barrier::new(count + 1));
    let mut threads = Vec::with_capacity(count);
    for number in 0..count {
        let barrier = Arc::clone(&together);
        let thread = thread::Builder::new().stack_size(STACK).spawn(move || _ = barrier.wait());
        // If one cannot be started, the others wait forever, but the program ends.
        threads.push(thread.map_err(|e| {
            let doing = format!(
                "starting thread {number} of the {count} that a model needs; allow more threads or more memory (`ulimit -u`, \
                 `ulimit -v`), or set MLX_CPU_THREADS to a smaller number"
            );
            (doing, e.kind(), e.to_string())
        })?);
    }
    // MLX needs memory for the tensor of the probe and for its threads.
    let mut room: Vec<u8> = Vec::new();
    room.try_reserve_exact(3 * SHARED_READ).map_err(|e| {
        let doing = "allocating memory for the threads that a model needs; allow more memory (`ulimit -v`)"
            .to_owned();
        (doing, ErrorKind::OutOfMemory, e.to_string())
    })?;
    together.wait();
    // Without `black_box` the compiler may remove the allocation.
    drop(std::hint::black_box(room));
    // This frees their memory for the threads of MLX.
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}
