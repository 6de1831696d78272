//! The numbers that a network computes in: f32, or bf16 where the hardware multiplies it.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use tch::{Device, Kind, Tensor};

/// What convolutions and matrix products are computed in. Weights, their updates, losses and everything that a network
/// gives are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    /// PyTorch's `torch.autocast(device, torch.bfloat16)`: 8 bits of mantissa instead of 24, with the range of f32.
    Bf16,
}

impl Precision {
    /// What pays on `device` for images with sides of `size` pixels: bf16 on a CPU with AVX512-BF16, and on an NVIDIA
    /// GPU from Ampere on where images are not small: there telling the GPU of casts takes longer than bf16 saves
    /// (docs/log.md).
    pub fn of(device: Device, size: i64) -> Self {
        const SMALL: i64 = 64; // 0.46 s in f32, 0.62 in bf16; 0.30 and 0.24 at 96 px
        let pays = match device {
            Device::Cpu => cpu_has_bf16(),
            Device::Cuda(index) => size > SMALL && gpu_has_bf16(index),
            _ => false,
        };
        if pays { Precision::Bf16 } else { Precision::F32 }
    }

    /// Runs a pass on `device` in this precision; what it gives is f32.
    pub(crate) fn run(self, device: Device, pass: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let type_ = match (self, device) {
            (Precision::F32, _) => return pass(),
            (Precision::Bf16, Device::Cpu) => CPU,
            (Precision::Bf16, Device::Cuda(_)) => CUDA,
            (Precision::Bf16, other) => {
                return Err(Error::Input(format!("bf16 is for CPU and CUDA, not for {other:?}; take Precision::F32")));
            }
        };
        let autocast = Autocast::begin(type_);
        let result = pass()?;
        drop(autocast);
        Ok(result.f_to_kind(Kind::Float)?)
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
    // AMX, which libtorch uses as well, is on no processor without this.
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// As `torch.cuda.is_bf16_supported(including_emulation=False)`: older GPUs than Ampere, of compute capability 8, take
/// bf16 and are slow in it. tch does not tell how old one is, CUDA's runtime does, which libtorch has loaded.
#[cfg(target_os = "linux")]
fn gpu_has_bf16(device: usize) -> bool {
    use std::ffi::{c_char, c_void};
    type GetAttribute = unsafe extern "C" fn(*mut i32, i32, i32) -> i32;
    const COMPUTE_CAPABILITY_MAJOR: i32 = 75;
    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    let mut major = 0;
    // SAFETY: a null library is all that is loaded; the type is that of `cudaDeviceGetAttribute`, which returns 0 where
    // it has written the number.
    unsafe {
        let found = dlsym(std::ptr::null_mut(), c"cudaDeviceGetAttribute".as_ptr());
        let ask: Option<GetAttribute> = std::mem::transmute(found);
        ask.is_some_and(|ask| ask(&mut major, COMPUTE_CAPABILITY_MAJOR, device as i32) == 0) && major >= 8
    }
}

#[cfg(not(target_os = "linux"))]
fn gpu_has_bf16(_: usize) -> bool {
    false
}

/// `c10::DeviceType`.
type DeviceType = i8;
const CPU: DeviceType = 0;
const CUDA: DeviceType = 1;
/// `c10::ScalarType::BFloat16`.
const BFLOAT16: i8 = 15;

// tch's own `autocast` is for CUDA and f16 alone. These are what it calls inside, with the device named
// (`ATen/autocast_mode.h`); they set the state of this thread, take plain numbers and throw for unknown devices only.
unsafe extern "C" {
    #[link_name = "_ZN2at8autocast19is_autocast_enabledEN3c1010DeviceTypeE"]
    fn is_autocast_enabled(device: DeviceType) -> bool;
    #[link_name = "_ZN2at8autocast20set_autocast_enabledEN3c1010DeviceTypeEb"]
    fn set_autocast_enabled(device: DeviceType, enabled: bool);
    #[link_name = "_ZN2at8autocast18get_autocast_dtypeEN3c1010DeviceTypeE"]
    fn get_autocast_dtype(device: DeviceType) -> i8;
    #[link_name = "_ZN2at8autocast18set_autocast_dtypeEN3c1010DeviceTypeENS1_10ScalarTypeE"]
    fn set_autocast_dtype(device: DeviceType, dtype: i8);
}

/// bf16 for this thread while it lives, also when a pass panics.
struct Autocast {
    device: DeviceType,
    before: bool,
    dtype: i8,
}

impl Autocast {
    fn begin(device: DeviceType) -> Self {
        // SAFETY: the declarations above are libtorch's, which torch-sys links.
        unsafe {
            let (before, dtype) = (is_autocast_enabled(device), get_autocast_dtype(device));
            set_autocast_dtype(device, BFLOAT16);
            set_autocast_enabled(device, true);
            torch_sys::at_autocast_increment_nesting();
            Self { device, before, dtype }
        }
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: as above. Weights that were cast are kept for the outermost pass alone: the next step changes them.
        unsafe {
            if torch_sys::at_autocast_decrement_nesting() == 0 {
                torch_sys::at_autocast_clear_cache();
            }
            set_autocast_dtype(self.device, self.dtype);
            set_autocast_enabled(self.device, self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether this thread casts on the CPU, and to what.
    fn state() -> (bool, i8) {
        // SAFETY: as above.
        unsafe { (is_autocast_enabled(CPU), get_autocast_dtype(CPU)) }
    }

    #[test]
    fn a_pass_leaves_autocast_as_it_was_however_it_ends() {
        const FLOAT16: i8 = 5; // `c10::ScalarType::Half`
        let one = || Tensor::f_from_slice(&[1f32]).map_err(Error::from);
        for (enabled, dtype) in [(false, BFLOAT16), (false, FLOAT16), (true, FLOAT16)] {
            // SAFETY: as above.
            unsafe {
                set_autocast_dtype(CPU, dtype);
                set_autocast_enabled(CPU, enabled);
            }
            let run = |pass: &dyn Fn() -> Result<Tensor>| Precision::Bf16.run(Device::Cpu, pass);
            let inside = run(&|| {
                assert_eq!(state(), (true, BFLOAT16));
                one()
            });
            assert!(inside.is_ok());
            assert_eq!(state(), (enabled, dtype), "after a pass");
            assert!(run(&|| Err(Error::Input("a layer that fails".into()))).is_err());
            assert_eq!(state(), (enabled, dtype), "after an error");
            let panicked = std::panic::catch_unwind(|| run(&|| panic!("a layer that panics")));
            assert!(panicked.is_err());
            assert_eq!(state(), (enabled, dtype), "after a panic");
            // A pass within a pass: the inner one hands back what the outer one set.
            let nested = run(&|| {
                assert!(run(&|| Err(Error::Input("inner".into()))).is_err());
                assert_eq!(state(), (true, BFLOAT16));
                one()
            });
            assert!(nested.is_ok());
            assert_eq!(state(), (enabled, dtype), "after nested passes");
        }
    }
}
