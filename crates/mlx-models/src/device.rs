//! The device that models run on: the GPU or the CPU.
//!
//! MLX computes on its default device. There is one for the whole process, so it holds for all threads and all models. At
//! first it is the GPU where there is one; [`select`] changes it.

use std::fmt;
use std::str::FromStr;

/// The environment variable that chooses the device, unless the program does: `auto`, `gpu` or `cpu`.
pub const VARIABLE: &str = "MLX_MODELS_DEVICE";

/// Which device to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The GPU where there is one, and else the CPU.
    #[default]
    Auto,
    /// The GPU. It is an error if there is none.
    Gpu,
    /// The CPU.
    Cpu,
}

impl DeviceChoice {
    /// All choices.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Gpu, Self::Cpu];

    /// The name, which [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let choice = Self::ALL.into_iter().find(|choice| choice.name() == name);
        choice.ok_or_else(|| DeviceError::Unknown { found: name.to_owned() })
    }
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A GPU: Apple's with Metal, or NVIDIA's with CUDA.
    Gpu,
    /// The CPU.
    Cpu,
}

impl DeviceKind {
    /// The name in lower case, as in [`DeviceChoice::name`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpu => "GPU",
            Self::Cpu => "CPU",
        })
    }
}

/// The device that models run on, and why. Its text is a phrase: `CPU, because MLX_MODELS_DEVICE is cpu`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// Which kind of device it is.
    pub kind: DeviceKind,
    /// The reason, a clause that follows the word "because".
    pub reason: String,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, because {}", self.kind, self.reason)
    }
}

/// An error of [`select`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A name that stands for no device.
    #[error("unknown device {found:?}; the devices are auto, gpu and cpu")]
    Unknown {
        /// The name.
        found: String,
    },
    /// The environment variable has another value.
    #[error("{VARIABLE} is {found:?}, and must be auto, gpu or cpu")]
    Variable {
        /// The value.
        found: String,
    },
    /// The GPU was chosen, and there is none.
    #[error("models cannot run on a GPU, because {why}; {REMEDY}")]
    NoGpu {
        /// The reason, a clause.
        why: String,
    },
}

/// What to do where there is no GPU.
const REMEDY: &str = if cfg!(any(target_vendor = "apple", feature = "cuda")) {
    "choose the device cpu or auto"
} else {
    "choose the device cpu or auto, or build with the feature `cuda` for an NVIDIA GPU"
};

/// Makes a device the one that all models of this process run on, and returns which one it is and why.
///
/// Without a choice, the environment variable [`VARIABLE`] decides, and without that [`DeviceChoice::Auto`]. Call this
/// once, when the program starts: the device is changed without a lock, so no other thread may use MLX meanwhile, and a
/// model stays on the device on which it was loaded.
///
/// ```
/// use mlx_models::device::{DeviceChoice, DeviceKind, select};
///
/// let device = select(Some(DeviceChoice::Cpu))?;
/// assert_eq!(device.kind, DeviceKind::Cpu);
/// assert_eq!(device.to_string(), "CPU, because it was chosen");
/// # Ok::<(), mlx_models::device::DeviceError>(())
/// ```
///
/// # Errors
///
/// [`DeviceError::NoGpu`] if the GPU is chosen and there is none, [`DeviceError::Variable`] if the variable has another
/// value.
pub fn select(choice: Option<DeviceChoice>) -> Result<Device, DeviceError> {
    let variable = std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned());
    let device = decide(choice, variable.as_deref(), gpu_refusal)?;
    match device.kind {
        DeviceKind::Gpu => mlx_rs::Device::set_default(&mlx_rs::Device::gpu()),
        DeviceKind::Cpu => use_cpu(),
    }
    Ok(device)
}

/// The device to use. `refusal` says why there is no GPU; it is called only if that matters, since the GPU's driver may
/// take a while to start.
fn decide(
    choice: Option<DeviceChoice>,
    variable: Option<&str>,
    refusal: impl FnOnce() -> Option<String>,
) -> Result<Device, DeviceError> {
    // An empty variable counts as none, as is usual.
    let variable = variable.filter(|value| choice.is_none() && !value.is_empty());
    let named = variable
        .map(|value| value.parse().map_err(|_| DeviceError::Variable { found: value.to_owned() }))
        .transpose()?;
    let chosen = match named {
        Some(named) => format!("{VARIABLE} is {named}"),
        None => "it was chosen".to_owned(),
    };
    let (kind, reason) = match choice.or(named).unwrap_or_default() {
        DeviceChoice::Cpu => (DeviceKind::Cpu, chosen),
        DeviceChoice::Gpu => match refusal() {
            None => (DeviceKind::Gpu, chosen),
            Some(why) => return Err(DeviceError::NoGpu { why }),
        },
        DeviceChoice::Auto => match refusal() {
            None => (DeviceKind::Gpu, "there is one".to_owned()),
            Some(why) => (DeviceKind::Cpu, why),
        },
    };
    Ok(Device { kind, reason })
}

/// Why there is no GPU, or `None` if there is one.
#[cfg(target_os = "linux")]
fn gpu_refusal() -> Option<String> {
    mlx_sys::gpu::refusal()
}

/// Why there is no GPU, or `None` if there is one. It needs no more than the stock `mlx-sys`, which suffices on a Mac.
#[cfg(not(target_os = "linux"))]
fn gpu_refusal() -> Option<String> {
    let stream = mlx_rs::Stream::try_default_on_device(&mlx_rs::Device::gpu());
    stream.is_err().then(|| "Metal finds no GPU on this machine".to_owned())
}

fn use_cpu() {
    // In a build for NVIDIA GPUs, this keeps MLX from starting the driver.
    #[cfg(target_os = "linux")]
    mlx_sys::gpu::turn_off();
    mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_GPU: fn() -> Option<String> = || Some("the test has none".to_owned());

    #[test]
    fn names_are_read_and_written() {
        for choice in DeviceChoice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "tpu".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(error.to_string(), "unknown device \"tpu\"; the devices are auto, gpu and cpu");
        assert!("GPU".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn auto_takes_the_gpu_where_there_is_one() {
        let with = decide(None, None, || None).unwrap();
        assert_eq!((with.kind, &*with.to_string()), (DeviceKind::Gpu, "GPU, because there is one"));
        let without = decide(Some(DeviceChoice::Auto), None, NO_GPU).unwrap();
        assert_eq!(
            (without.kind, &*without.to_string()),
            (DeviceKind::Cpu, "CPU, because the test has none")
        );
    }

    #[test]
    fn the_gpu_is_refused_where_there_is_none() {
        assert_eq!(
            decide(Some(DeviceChoice::Gpu), None, || None).unwrap().to_string(),
            "GPU, because it was chosen"
        );
        let error = decide(None, Some("gpu"), NO_GPU).unwrap_err();
        assert_eq!(error, DeviceError::NoGpu { why: "the test has none".to_owned() });
        let said = error.to_string();
        assert!(
            said.starts_with("models cannot run on a GPU, because the test has none; choose the device cpu"),
            "{said}"
        );
    }

    #[test]
    fn the_cpu_is_chosen_without_a_look_at_the_gpu() {
        let device = decide(None, Some("cpu"), || unreachable!("the driver would start")).unwrap();
        assert_eq!(device.to_string(), "CPU, because MLX_MODELS_DEVICE is cpu");
    }

    #[test]
    fn the_caller_wins_over_the_variable() {
        let device = decide(Some(DeviceChoice::Cpu), Some("gpu"), NO_GPU).unwrap();
        assert_eq!((device.kind, &*device.reason), (DeviceKind::Cpu, "it was chosen"));
        assert!(decide(Some(DeviceChoice::Cpu), Some("tpu"), NO_GPU).is_ok());
    }

    #[test]
    fn a_wrong_variable_is_an_error_and_an_empty_one_is_none() {
        let error = decide(None, Some("tpu"), NO_GPU).unwrap_err();
        assert_eq!(error.to_string(), "MLX_MODELS_DEVICE is \"tpu\", and must be auto, gpu or cpu");
        assert_eq!(decide(None, Some(""), || None).unwrap().kind, DeviceKind::Gpu);
    }
}
