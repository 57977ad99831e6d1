//! The option that chooses the device, for every subcommand.

use mlx_models::device::{Device, DeviceChoice, DeviceError, select};

use crate::failure::Failure;

/// The device that models run on.
#[derive(Debug, clap::Args)]
pub(crate) struct DeviceArguments {
    /// Run models on this device; auto takes the GPU where there is one [default: the value of MLX_MODELS_DEVICE, or else
    /// auto]
    #[arg(long, global = true, value_name = "DEVICE")]
    device: Option<Named>,
}

/// The devices by name.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Named {
    Auto,
    Gpu,
    Cpu,
}

impl DeviceArguments {
    /// Makes the device the one that models run on. Must come before all use of MLX.
    pub(crate) fn select(&self) -> Result<Device, Failure> {
        let choice = self.device.map(|named| match named {
            Named::Auto => DeviceChoice::Auto,
            Named::Gpu => DeviceChoice::Gpu,
            Named::Cpu => DeviceChoice::Cpu,
        });
        select(choice).map_err(|error| match error {
            DeviceError::Variable { .. } => Failure::Usage(error.to_string()),
            other => Failure::Device(other),
        })
    }
}
