//! A build with the feature `cuda`, as far as a machine without a GPU can show it.
//!
//! Each test starts this program again with a `libcuda.so.1` of its own, in place of an NVIDIA driver. A driver that does
//! nothing is enough to show that MLX's library for GPUs is loaded, and that each function in it and in NVIDIA's libraries
//! is found. NVIDIA's compiler needs no driver, so it shows that MLX's kernels find their headers.
#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; a child process prints"
)]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;

/// The folder of MLX's library for GPUs.
const MLX: &str = env!("MLX_SYS_CUDA");

/// What a driver of a test answers.
struct Driver {
    /// Of `cuInit`; a driver without this function if `None`.
    init: Option<i32>,
    version: i32,
    gpus: i32,
    capability: i32,
    /// Whether it has all functions that MLX and NVIDIA's libraries call.
    is_whole: bool,
}

const GOOD: Driver = Driver { init: Some(0), version: 13000, gpus: 1, capability: 90, is_whole: true };

impl Driver {
    fn compile(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/driver.c");
        let own = fs::read_to_string(&here).unwrap();
        let others = if self.is_whole { functions_of_the_driver() } else { BTreeSet::new() };
        let others = others.iter().filter(|name| !own.contains(&format!("int {name}(")));
        let others: String = others.map(|name| format!("OTHER({name})\n")).collect();
        fs::write(folder.path().join("others.h"), others).unwrap();
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o"]);
        compile.arg(folder.path().join("libcuda.so.1")).arg("-I").arg(folder.path()).arg(here);
        compile.args(self.init.map(|error| format!("-DINIT={error}")));
        compile.arg(format!("-DVERSION={}", self.version)).arg(format!("-DCOUNT={}", self.gpus));
        compile.arg(format!("-DCAPABILITY={}", self.capability));
        assert!(compile.status().unwrap().success());
        folder
    }

    /// Why a program with this driver cannot use a GPU.
    fn refusal(&self) -> String {
        child("refusal", self.compile().path())
    }
}

/// MLX's library and all of NVIDIA's.
fn libraries() -> Vec<PathBuf> {
    let mlx = Path::new(MLX);
    let mut found = vec![mlx.join("libmlx.so")];
    let nvidia = mlx.join("../../nvidia").canonicalize().unwrap();
    for package in fs::read_dir(nvidia).unwrap().flatten() {
        for file in fs::read_dir(package.path().join("lib")).into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().contains(".so.") {
                found.push(file.path());
            }
        }
    }
    found
}

/// The names of the functions of `cuda.h` that the libraries call.
fn functions_of_the_driver() -> BTreeSet<String> {
    let answer =
        Command::new("nm").args(["-D", "-j", "--undefined-only"]).args(libraries()).output().unwrap();
    let is_of_the_driver = |name: &&str| {
        name.strip_prefix("cu").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_uppercase()))
    };
    String::from_utf8(answer.stdout).unwrap().lines().filter(is_of_the_driver).map(str::to_owned).collect()
}

/// What this program prints if it does this work in a process of its own, with this folder's `libcuda.so.1`.
fn child(work: &str, folder: &Path) -> String {
    child_on("auto", work, folder)
}

/// [`child`] with this value of `MLX_MODELS_DEVICE`.
fn child_on(device: &str, work: &str, folder: &Path) -> String {
    let answer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "does_the_work_of_a_child", "--ignored", "--nocapture"])
        .env("WORK", work)
        .env("MLX_MODELS_DEVICE", device)
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    let said = String::from_utf8(answer.stdout).unwrap();
    assert!(answer.status.success(), "{said}{}", String::from_utf8_lossy(&answer.stderr));
    let said = said.split("[[").nth(1).and_then(|rest| rest.split("]]").next());
    said.unwrap().to_owned()
}

#[test]
#[ignore = "the others run it in a process of its own"]
fn does_the_work_of_a_child() {
    let said = match &*std::env::var("WORK").unwrap() {
        "refusal" => mlx_sys::gpu::refusal().unwrap_or_default(),
        "turn off" => {
            let is_off = mlx_sys::gpu::turn_off();
            format!("{is_off} {} {}", mlx_sys::gpu::refusal().unwrap_or_default(), sum())
        }
        "turn off late" => {
            let is_refused = mlx_sys::gpu::refusal().is_some();
            format!("{is_refused} {}", mlx_sys::gpu::turn_off())
        }
        "sum" => sum().to_string(),
        "sums" => sums(),
        "loaded" => loaded("libmlxc").join(" "),
        "sum, refusal" => format!("{} {}", sum(), mlx_sys::gpu::refusal().unwrap_or_default()),
        "load" => load_all(),
        "compile" => compile_headers(),
        other => panic!("{other}"),
    };
    println!("[[{said}]]");
}

/// The sum of 1000 ones and 1000 ones, at the last place.
fn sum() -> f32 {
    let ones = mlx_rs::Array::ones::<f32>(&[1000]).unwrap();
    ones.add(&ones).unwrap().as_slice::<f32>()[999]
}

/// The different results of [`sum`] on eight threads, whose first calls of MLX come at the same time.
fn sums() -> String {
    let start = Barrier::new(8);
    let sums: BTreeSet<String> = thread::scope(|scope| {
        let work = || {
            start.wait();
            sum().to_string()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    Vec::from_iter(sums).join(" ")
}

/// The files that this process has loaded whose names begin like this, after a sum.
fn loaded(name: &str) -> Vec<String> {
    sum();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let paths = paths.filter(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with(name)));
    Vec::from_iter(paths.map(str::to_owned).collect::<BTreeSet<_>>())
}

/// Loads each library with all its functions at once. Returns what fails.
fn load_all() -> String {
    libraries().iter().filter_map(|path| load(path).err()).collect()
}

fn load(path: &Path) -> Result<*mut c_void, String> {
    unsafe extern "C" {
        fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
        fn dlerror() -> *const c_char;
    }
    const RTLD_NOW: c_int = 2;
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a path, and the text that belongs to the failed call before it.
    let (library, error) = unsafe {
        let library = dlopen(path.as_ptr(), RTLD_NOW);
        (
            library,
            if library.is_null() {
                CStr::from_ptr(dlerror()).to_string_lossy().into_owned()
            } else {
                String::new()
            },
        )
    };
    if library.is_null() { Err(format!("{error}\n")) } else { Ok(library) }
}

#[test]
fn no_driver() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("libcuda.so.1"), "").unwrap();
    let said = child("refusal", folder.path());
    assert!(said.starts_with("there is no NVIDIA driver on this machine ("), "{said}");
    assert!(said.contains("libcuda.so.1"), "{said}");
    assert_eq!(child("sum", folder.path()), "2", "the CPU computes");
}

#[test]
fn another_library_of_that_name() {
    let said = Driver { init: None, ..GOOD }.refusal();
    assert!(said.starts_with("libcuda.so.1 is not the library of an NVIDIA driver ("), "{said}");
    assert!(said.contains("cuInit"), "{said}");
}

#[test]
fn a_driver_without_a_gpu() {
    for driver in [Driver { init: Some(100), ..GOOD }, Driver { gpus: 0, ..GOOD }] {
        assert_eq!(driver.refusal(), "the NVIDIA driver finds no GPU on this machine");
    }
}

#[test]
fn a_driver_that_does_not_start() {
    let said = Driver { init: Some(3), ..GOOD }.refusal();
    assert_eq!(said, "the NVIDIA driver does not start: initialization error (error 3)");
}

#[test]
fn an_old_driver() {
    let said = Driver { version: 12040, ..GOOD }.refusal();
    assert_eq!(said, "the NVIDIA driver is too old: it knows CUDA 12.4, and MLX needs 13.0");
}

#[test]
fn an_old_gpu() {
    let said = Driver { capability: 61, ..GOOD }.refusal();
    assert_eq!(said, "Old GPU is too old for MLX: its compute capability is 6.1, and MLX needs 7.5");
}

#[test]
fn a_driver_without_what_mlx_needs() {
    let said = Driver { is_whole: false, ..GOOD }.refusal();
    assert!(said.starts_with("MLX's library for NVIDIA GPUs cannot be loaded ("), "{said}");
    assert!(said.contains("libmlx.so"), "{said}");
    let driver = Driver { is_whole: false, ..GOOD }.compile();
    assert_eq!(
        child("sum", driver.path()),
        "2",
        "the CPU computes, though half of the other library was loaded"
    );
}

#[test]
fn first_calls_at_the_same_time() {
    let none = tempfile::tempdir().unwrap();
    assert_eq!(child("sums", none.path()), "2");
}

/// A function that the library of jumps lacks cannot be linked.
#[test]
fn every_function_of_mlx_c_is_handed_on() {
    let none = tempfile::tempdir().unwrap();
    let paths = child("loaded", none.path());
    let functions = |library: &str| -> BTreeSet<String> {
        let path = paths.split(' ').find(|path| path.ends_with(library)).unwrap();
        let answer = Command::new("nm").args(["-D", "-j", "--defined-only", path]).output().unwrap();
        let names = String::from_utf8(answer.stdout).unwrap();
        names
            .lines()
            .filter(|name| name.trim_start_matches('_').starts_with("mlx_"))
            .map(str::to_owned)
            .collect()
    };
    let (all, handed_on) = (functions("/libmlxc-cpu.so"), functions("/libmlxc.so"));
    assert!(all.contains("mlx_pad"));
    assert_eq!(all.difference(&handed_on).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn every_function_is_found() {
    let driver = GOOD.compile();
    assert_eq!(child("load", driver.path()), "", "these libraries cannot be loaded");
    assert_eq!(child("refusal", driver.path()), "", "MLX's library for GPUs is in use");
    assert!(functions_of_the_driver().contains("cuLaunchKernelEx"));
}

#[test]
fn the_cpu_where_the_user_asks_for_it() {
    let driver = GOOD.compile();
    assert_eq!(child("turn off", driver.path()), "true this process uses the CPU 2");
    assert_eq!(child("turn off late", driver.path()), "false false");
    assert_eq!(child_on("cpu", "sum, refusal", driver.path()), "2 this process uses the CPU");
    assert_eq!(child_on("cpu", "refusal", driver.path()), "", "a program that asks for the GPU goes before");
}

#[test]
fn kernels_find_their_headers() {
    assert_eq!(child("compile", Path::new("/")), "", "these headers of MLX's kernels do not compile");
}

/// The files that MLX's kernels include: MLX carries the kernels' sources, and compiles them when they are first used.
fn included_files() -> BTreeSet<String> {
    let library = fs::read(Path::new(MLX).join("libmlx.so")).unwrap();
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_./".contains(byte);
    let mut found = BTreeSet::new();
    let mut rest = &library[..];
    while let Some(at) = rest.windows(10).position(|window| window == b"#include <") {
        rest = &rest[at + 10..];
        let length = rest.iter().take_while(|byte| is_name(byte)).count();
        if rest.get(length) == Some(&b'>') {
            found.insert(String::from_utf8(rest[..length].to_vec()).unwrap());
        }
    }
    found
}

/// What MLX's kernels write before they include these files: names that the files expect in `std`, which NVRTC has not, and
/// the end of macros that the files define again.
const BEFORE: &str = "
#include <cuda/cmath>
#include <cuda/std/type_traits>
namespace std {
using cuda::std::is_pointer_v;
using cuda::std::max;
using cuda::std::void_t;
}
#undef FP_NAN
#undef FP_INFINITE
#undef FP_ZERO
#undef FP_SUBNORMAL
#undef FP_NORMAL
";

/// Compiles each file that kernels include, as MLX does, for an H100. Returns what the compiler says.
fn compile_headers() -> String {
    let nvrtc = Nvrtc::load();
    let files = included_files();
    assert!(files.contains("cuda_fp16.h") && files.contains("cute/tensor.hpp"), "{files:?}");
    files.iter().filter_map(|file| nvrtc.refusal(&format!("{BEFORE}#include <{file}>\n"))).collect()
}

/// A function of a library that stays loaded.
///
/// # Safety
///
/// `F` is a pointer to a function, and the type of this function.
unsafe fn function<F>(library: *mut c_void, name: &CStr) -> F {
    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    // SAFETY: a library that stays loaded.
    let address = unsafe { dlsym(library, name.as_ptr()) };
    assert!(!address.is_null(), "{name:?}");
    // SAFETY: the caller's promise; all pointers have one size.
    unsafe { std::mem::transmute_copy(&address) }
}

type Program = *mut c_void;

/// NVIDIA's compiler, by the names and types of its `nvrtc.h`.
struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    options: Vec<CString>,
}

impl Nvrtc {
    fn load() -> Self {
        let mlx = Path::new(MLX).parent().unwrap();
        let nvidia = mlx.join("../nvidia/cu13");
        let library = load(&nvidia.join("lib/libnvrtc.so.13")).unwrap();
        let folders = [mlx.join("include"), mlx.join("include/cccl"), nvidia.join("include")];
        let folders = folders.iter().map(|folder| format!("--include-path={}", folder.display()));
        let options = ["--gpu-architecture=sm_90a", "--device-as-default-execution-space"];
        let options = options.map(str::to_owned).into_iter().chain(folders);
        // SAFETY: functions of these types.
        unsafe {
            Self {
                create: function(library, c"nvrtcCreateProgram"),
                compile: function(library, c"nvrtcCompileProgram"),
                log_size: function(library, c"nvrtcGetProgramLogSize"),
                log: function(library, c"nvrtcGetProgramLog"),
                options: options.map(|option| CString::new(option).unwrap()).collect(),
            }
        }
    }

    /// What the compiler says about a source that it refuses.
    fn refusal(&self, source: &str) -> Option<String> {
        let text = CString::new(source).unwrap();
        let options: Vec<*const c_char> = self.options.iter().map(|option| option.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        let mut log = Vec::new();
        // SAFETY: texts that live through the calls, and room for as many bytes as the compiler says.
        let answer = unsafe {
            let none = std::ptr::null();
            assert_eq!((self.create)(&mut program, text.as_ptr(), c"test.cu".as_ptr(), 0, none, none), 0);
            let answer = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let mut size = 0;
            (self.log_size)(program, &mut size);
            log.resize(size, 0_u8);
            (self.log)(program, log.as_mut_ptr().cast());
            answer
        };
        (answer != 0).then(|| format!("{source}{}", String::from_utf8_lossy(&log)))
    }
}
