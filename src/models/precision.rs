//! The type that a network computes in: f32, or bf16 where the hardware multiplies it.

use crate::native::{AutocastGuard, gpu_has_bf16};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use tch::{Device, Kind, Tensor};

/// The type of convolutions and matrix products. Weights, their updates, losses and the network's outputs are f32
/// either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// bf16 by autocast, as `torch.autocast(device, torch.bfloat16)`: 8 bits of mantissa instead of 24, in the range of
    /// f32.
    Bf16,
}

impl Precision {
    /// Returns the faster precision on `device` for images with sides of `size` pixels: bf16 on a CPU with AVX512-BF16,
    /// and on an NVIDIA GPU from Ampere on for sides above 64 px. On smaller images, launching the kernels that cast
    /// takes longer than bf16 saves (docs/log.md).
    pub fn of(device: Device, size: i64) -> Self {
        const SMALL: i64 = 64; // measured: 0.46 s in f32 against 0.62 in bf16; at 96 px 0.30 against 0.24
        let pays = match device {
            Device::Cpu => cpu_has_bf16(),
            Device::Cuda(index) => size > SMALL && gpu_has_bf16(index),
            _ => false,
        };
        if pays { Precision::Bf16 } else { Precision::F32 }
    }

    /// Runs a pass on `device` in this precision and returns its result as f32.
    pub(crate) fn run(self, device: Device, pass: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        match self {
            Precision::F32 => pass(),
            Precision::Bf16 => {
                let guard = AutocastGuard::bf16(device)?;
                let result = pass()?;
                drop(guard);
                Ok(result.f_to_kind(Kind::Float)?)
            }
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Precision::F32, Precision::Bf16]
            .into_iter()
            .find(|precision| precision.to_string() == name)
            .ok_or_else(|| Error::Input(format!("there is no precision {name:?}; choose f32 or bf16")))
    }
}

pub(super) fn cpu_has_bf16() -> bool {
    // libtorch also uses AMX, and every processor with AMX has AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::Autocast;

    /// The CPU's autocast state in this thread.
    fn state() -> Autocast {
        let found = Autocast::BF16.swap(Device::Cpu).unwrap();
        found.swap(Device::Cpu).unwrap();
        found
    }

    #[test]
    fn a_pass_leaves_autocast_as_it_was_however_it_ends() {
        const FLOAT16: i8 = 5; // `c10::ScalarType::Half`
        let one = || Tensor::f_from_slice(&[1f32]).map_err(Error::from);
        for (enabled, dtype) in [(false, Autocast::BF16.dtype), (false, FLOAT16), (true, FLOAT16)] {
            let before = Autocast { enabled, dtype };
            before.swap(Device::Cpu).unwrap();
            let run = |pass: &dyn Fn() -> Result<Tensor>| Precision::Bf16.run(Device::Cpu, pass);
            let inside = run(&|| {
                assert_eq!(state(), Autocast::BF16);
                one()
            });
            assert!(inside.is_ok());
            assert_eq!(state(), before, "after a pass");
            assert!(run(&|| Err(Error::Input("a layer that fails".into()))).is_err());
            assert_eq!(state(), before, "after an error");
            let panicked = std::panic::catch_unwind(|| run(&|| panic!("a layer that panics")));
            assert!(panicked.is_err());
            assert_eq!(state(), before, "after a panic");
            // A pass within a pass: the inner one restores what the outer one set.
            let nested = run(&|| {
                assert!(run(&|| Err(Error::Input("inner".into()))).is_err());
                assert_eq!(state(), Autocast::BF16);
                one()
            });
            assert!(nested.is_ok());
            assert_eq!(state(), before, "after nested passes");
        }
    }
}
