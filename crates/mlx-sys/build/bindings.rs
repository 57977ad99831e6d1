//! The Rust declarations of mlx-c and of `native/abi.h`, by bindgen.
//!
//! They are committed, so that a build needs neither bindgen nor libclang. The feature `bindgen` checks them, on Linux. They
//! are right for Macs too: mlx-c declares functions, and structs of pointers and numbers that have the same sizes there.

use std::path::Path;

use crate::failure::{Failure, Result, run, variable};
use crate::platform::Platform;
use crate::upstream;

/// The declarations of mlx-c.
fn of_mlx_c(mlx_c: &Path) -> Result<bindgen::Builder> {
    let mut builder = bindgen::Builder::default().clang_arg(format!("-I{}", mlx_c.display()));
    for header in upstream::headers(mlx_c)? {
        builder = builder.header(header.display().to_string());
    }
    // They are the C library's, and bindgen declares their sizes as `c_ulong`, which rustc does not expect.
    Ok(builder.blocklist_function("malloc").blocklist_function("realloc"))
}

/// Writes the declarations into the build's folder, and compares them with the committed ones.
pub fn check(platform: Platform, home: &Path, compiler: &cc::Tool) -> Result<()> {
    if !platform.is_linux() {
        return Ok(());
    }
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    let here = std::path::PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = std::path::PathBuf::from(variable("OUT_DIR")?);
    let native = crate::packages::native()?;
    let clang_args = clang_args(platform, home, compiler)?;

    let mlx_c = of_mlx_c(&upstream::mlx_c()?)?
        .clang_args(&clang_args)
        .clang_args(["-include".to_owned(), native.join("forced.h").display().to_string()])
        // mlx-rs expects a newtype over u16, different from bfloat16_t, which is a plain u16.
        .new_type_alias("float16_t")
        // Declared in src/lib.rs, as mlx-rs calls it.
        .blocklist_function("mlx_pad")
        // Of the C library. Its fields differ from system to system, and mlx-c only takes pointers to it.
        .blocklist_type("FILE|_IO_.*|__off.*")
        .raw_line("#[repr(C)]\npub struct FILE {\n    _private: [u8; 0],\n}")
        // What the headers of the C library declare is not the same on every machine.
        .allowlist_file(".*/mlx/c/[^/]*\\.h|.*/forced\\.h");
    generate(mlx_c, "the headers of mlx-c", &out.join("bindings.rs"))?;

    // Its enumerations become enums of Rust, since both sides are compiled from the same list of values.
    let abi = bindgen::Builder::default()
        .header(native.join("abi.h").display().to_string())
        .clang_args(["-x", "c++", "-std=c++20"])
        .clang_args(&clang_args)
        .allowlist_file(".*/(abi\\.h|operations\\.def)")
        .disable_name_namespacing()
        .rustified_enum(".*")
        // Rust passes a table whose type it does not know.
        .blocklist_function(".*");
    generate(abi, "native/abi.h", &out.join("abi.rs"))?;

    for (file, committed) in
        [("bindings.rs", here.join("generated")), ("abi.rs", here.join("../mlx-kernels/generated"))]
    {
        let (new, committed) = (out.join(file), committed.join(file));
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| Failure::io(format!("reading {}", path.display()), e))
        };
        if read(&new)? != read(&committed)? {
            return Err(Failure::new(
                format!("{} is not what bindgen writes today", committed.display()),
                format!("copy {} to it", new.display()),
            ));
        }
    }
    Ok(())
}

/// Finds libclang, or downloads it. Returns what bindgen has to tell it.
fn clang_args(platform: Platform, home: &Path, compiler: &cc::Tool) -> Result<Vec<String>> {
    let mut clang_args = vec![format!("--target={}-unknown-linux-gnu", platform.arch())];
    if let Err(missing) = clang_sys::load() {
        let folder = match std::env::var_os("LIBCLANG_PATH") {
            Some(path) => {
                return Err(Failure::new(
                    format!("no libclang at LIBCLANG_PATH={} ({missing})", Path::new(&path).display()),
                    "correct it, or unset it to have libclang downloaded",
                ));
            }
            None => crate::python::Wheel {
                keep_as: format!("libclang-18.1.1-{}", std::env::consts::ARCH),
                requirements: "libclang.txt",
                proof: &["libclang-18.1.1.data/platlib/clang/native/libclang.so"],
                platform: match std::env::consts::ARCH {
                    "x86_64" => "manylinux2010_x86_64".to_owned(),
                    arch => format!("manylinux2014_{arch}"),
                },
                instead: "install libclang (Debian and Ubuntu: `apt install libclang-dev`) or name its folder in LIBCLANG_PATH",
            }
            .fetch(home)?
            .join("libclang-18.1.1.data/platlib/clang/native"),
        };
        // SAFETY: this program has one thread here, so no other reads the environment.
        unsafe { std::env::set_var("LIBCLANG_PATH", folder) };
        // The package has no headers. Those that come with a compiler are taken from the C++ compiler.
        let answer = run(compiler.to_command().arg("-print-file-name=include"))?;
        if let Some(answer) = answer.filter(|answer| answer.status.success()) {
            clang_args.push(format!("-I{}", String::from_utf8_lossy(&answer.stdout).trim()));
        }
    }
    Ok(clang_args)
}

fn generate(builder: bindgen::Builder, what: &str, to: &Path) -> Result<()> {
    let bindings = builder.generate().map_err(|e| {
        Failure::new(
            format!("bindgen cannot read {what}: {e}"),
            "use libclang 14 or newer (LIBCLANG_PATH names its folder), or unset LIBCLANG_PATH",
        )
    })?;
    bindings.write_to_file(to).map_err(|e| Failure::io(format!("writing {}", to.display()), e))
}
