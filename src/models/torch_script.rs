//! A network of any kind, from a TorchScript file.

use crate::data::Preprocessing;
use crate::store::digest::{digest, file_sha256};
use crate::{Error, Result};
use std::path::Path;
use tch::{CModule, Device, Kind, TchError, Tensor};

/// The smallest probability whose logarithm is taken. Services round small probabilities to 0, which would become a
/// logit of minus infinity.
const LEAST: f64 = 1e-7;

/// What the numbers are that a teacher gives for each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// Any numbers of which the softmax gives probabilities; also the logarithms of probabilities.
    Logits,
    /// Probabilities, which sum to 1. Their logarithms become the logits; probabilities below 1e-7 count as 1e-7.
    Probabilities,
}

impl Outputs {
    /// Logits f32 of outputs `[N, C]`; else why the outputs are not what this says.
    pub(crate) fn logits(self, outputs: &Tensor) -> std::result::Result<Tensor, String> {
        let torch = |e: TchError| Error::from(e).to_string();
        let row = |t: Tensor| Vec::<f64>::try_from(t).map_err(torch);
        let outputs = outputs.f_to_kind(Kind::Float).map_err(torch)?;
        let sums = row(outputs.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double).map_err(torch)?)?;
        let lowest = outputs.f_min().and_then(|least| least.f_double_value(&[])).map_err(torch)?;
        let far = |tolerance: f64| sums.iter().copied().find(|sum| (sum - 1.0).abs() > tolerance);
        match self {
            // Rounded to three digits or more, such as in a table.
            Outputs::Logits if lowest >= 0.0 && far(5e-3).is_none() => {
                Err("none is negative and every row sums to 1, \
                 so they are probabilities: give Outputs::Probabilities"
                    .to_owned())
            }
            Outputs::Logits => Ok(outputs),
            Outputs::Probabilities if lowest < 0.0 => {
                Err(format!("{lowest} is no probability: give Outputs::Logits, or let the teacher end in a softmax"))
            }
            Outputs::Probabilities => match far(0.05) {
                Some(sum) => Err(format!(
                    "the probabilities of a row sum to {sum:.4} and not to 1: give all classes, as fractions of 1"
                )),
                None => outputs.f_clamp_min(LEAST).and_then(|p| p.f_log()).map_err(torch),
            },
        }
    }
}

/// A frozen network from a TorchScript file: any network that `torch.jit.trace` or `torch.jit.script` accepts.
///
/// The file holds the network's program as well as its weights. Load only files whose source you trust.
///
/// ```no_run
/// use kdlab::data::{DataOptions, Preprocessing, image_folder};
/// use kdlab::models::{Outputs, TorchScript};
/// use kdlab::train::{Examples, Listener, script_logits};
/// use tch::Device;
///
/// // In Python: torch.jit.trace(model.eval(), torch.zeros(2, 3, 224, 224)).save("teacher.pt")
/// let data = image_folder("pictures", 256, &DataOptions::default())?;
/// let teacher = TorchScript::load("teacher.pt", Device::Cpu, Preprocessing::imagenet(), Outputs::Logits)?;
/// let logits = script_logits(&teacher, &data.train, 64, None, &Listener::default())?; // f32 [N, C]
/// # Ok::<(), kdlab::Error>(())
/// ```
#[derive(Debug)]
pub struct TorchScript {
    /// Name of the file, for messages.
    pub name: String,
    /// How its images are prepared.
    pub preprocessing: Preprocessing,
    outputs: Outputs,
    module: CModule,
    pub(crate) device: Device,
    /// SHA-256 of the file.
    sha256: String,
}

impl TorchScript {
    /// Loads a file that `torch.jit.save` wrote, onto `device` and in evaluation mode. Its `forward` must map images
    /// f32 `[B, 3, S, S]` to one tensor of `outputs` `[B, classes]`, in the order of the dataset's classes.
    ///
    /// # Errors
    /// When the file cannot be read or is not TorchScript, or it needs an operation that this libtorch lacks.
    pub fn load(
        path: impl AsRef<Path>,
        device: Device,
        preprocessing: Preprocessing,
        outputs: Outputs,
    ) -> Result<Self> {
        let path = path.as_ref();
        super::model::check_device(device)?;
        let sha256 = file_sha256(path)?;
        let mut module = CModule::load_on_device(path, device)
            .map_err(|e| Error::Data(format!("{} {}", path.display(), why_not(path, &e))))?;
        module.f_set_eval()?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, preprocessing, outputs, module, device, sha256 })
    }

    /// Computes logits f32 `[B, classes]` on the CPU for images u8 `[B, 3, H, W]`, without gradients.
    pub(crate) fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let x = self.preprocessing.apply(images, self.device)?;
        let found = tch::no_grad(|| self.module.forward_ts(&[&x])).map_err(|e| self.refused(&x.size(), &e))?;
        let outputs = found.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        if outputs.dim() != 2 || outputs.size()[0] != images.size()[0] || outputs.size()[1] == 0 {
            return Err(Error::Data(format!(
                "{} gives {:?} for {} images, and [images, classes] is needed: let its forward return the outputs of \
                 the last layer alone, and trace it with a batch of 2",
                self.name,
                outputs.size(),
                images.size()[0]
            )));
        }
        if outputs.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::Data(format!(
                "{} gives numbers that are not finite; check its preprocessing, and trace it in f32: model.float()",
                self.name
            )));
        }
        self.outputs.logits(&outputs).map_err(|why| Error::Data(format!("the outputs of {}: {why}", self.name)))
    }

    /// Tries the network on two images, before hours are spent on all: it must accept them, give `classes` outputs, and
    /// judge an image alike whatever image is beside it.
    pub(crate) fn check(&self, images: &Tensor, classes: usize) -> Result<()> {
        let logits = self.logits(images)?;
        let found = logits.size()[1];
        if found != classes as i64 {
            return Err(Error::Data(format!(
                "{} gives {found} outputs and the dataset has {classes} classes: train its last layer for these \
                 classes, in this order, and trace it again",
                self.name
            )));
        }
        let twice = self.logits(&images.f_narrow(0, 0, 1)?.f_expand(images.size(), false)?.f_contiguous()?)?;
        let largest = |t: Tensor| Ok::<_, Error>(t.f_abs()?.f_max()?.f_double_value(&[])?);
        let gap = largest(logits.f_select(0, 0)?.f_sub(&twice.f_select(0, 0)?)?)?;
        // Far more than rounding.
        if gap > 0.02 * largest(logits)? {
            return Err(Error::Data(format!(
                "{} judges the same image differently beside another image or a second time, by up to {gap:.3}: it was \
                 traced in training mode; call model.eval() and trace it again",
                self.name
            )));
        }
        Ok(())
    }

    /// Digest of everything that its logits depend on, besides the images.
    pub(crate) fn key(&self) -> String {
        let outputs = format!("{:?}", self.outputs);
        digest(&[&self.sha256, &self.preprocessing.key(), &outputs].map(|part| part.as_bytes()))
    }

    /// Why a pass failed, and what to do.
    fn refused(&self, input: &[i64], error: &TchError) -> Error {
        let (name, why) = (&self.name, reason(error));
        let fix = if self.device == Device::Cpu && why.to_lowercase().contains("cuda") {
            "it was traced on a GPU, which is written into it; trace model.cpu() with an input on the CPU"
        } else if why.contains("did not return a tensor") {
            "its forward returns several values or none; wrap the network so that forward returns the logits alone"
        } else {
            "check the size in its preprocessing against the one it was traced at, and trace it in f32"
        };
        Error::Data(format!("{name} refuses images of shape {input:?} ({why}): {fix}"))
    }
}

/// What is wrong with a file that libtorch did not load.
fn why_not(path: &Path, error: &TchError) -> String {
    const FIX: &str = "in Python, write one with torch.jit.trace(model.eval(), torch.zeros(2, 3, 224, 224)).save(...)";
    let archive = std::fs::File::open(path).ok().and_then(|file| zip::ZipArchive::new(file).ok());
    let Some(archive) = archive else {
        return format!("is no TorchScript file, but of another kind, or cut off; {FIX}");
    };
    let is_script = archive.file_names().filter_map(|name| name.ok()).any(|name| name.ends_with("/constants.pkl"));
    match is_script {
        false => format!("is no TorchScript file: it holds weights without their network; {FIX}"),
        true => format!("is a TorchScript file that libtorch does not load ({}); {FIX}", reason(error)),
    }
}

/// The line of a message of TorchScript that says what went wrong. Before it comes the traceback of the script, after
/// it that of C++.
fn reason(error: &TchError) -> String {
    let text = error.to_string();
    let last = text.lines().rev().find_map(|line| line.trim().split_once("Error: "));
    last.map_or_else(|| text.lines().next().unwrap_or_default(), |(_, why)| why).to_owned()
}
