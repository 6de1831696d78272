//! A teacher that judges each batch as it comes, instead of every image once beforehand.

use crate::data::Transform;
use crate::error::lock;
use crate::models::{Model, TorchScript};
use crate::store::digest::digest;
use crate::store::tensors::digest_tensors;
use crate::{Error, Result};
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor, no_grad};

/// A frozen teacher that judges the very batch that the student sees: in evaluation mode, without gradients, and with
/// its own preparation of the images.
///
/// Its passes take most of the time of a fit. Where images are seen as they are, or in numbered views, computing its
/// logits once is faster: [`view_logits`](super::view_logits). Clones share one network.
///
/// ```no_run
/// use kdlab::Lab;
/// use kdlab::data::Augment;
/// use kdlab::train::{Examples, OnlineTeacher};
///
/// let lab = Lab::open()?;
/// let data = lab.dataset()?;
/// let teacher = lab.teacher(&data)?;
/// let teacher = OnlineTeacher::network(teacher.backbone.with_head(&teacher.head)?, &teacher.transform)?;
/// let augment = Augment { flip: true, crop: Some(0.5), mixup: Some(0.2), ..Augment::default() };
/// let train = Examples::images(&data.train, &lab.student_transform())?.augmented(&augment)?.taught_by(&teacher)?;
/// # Ok::<(), kdlab::Error>(())
/// ```
#[derive(Clone)]
pub struct OnlineTeacher {
    // A model may move to another thread, but two threads may not use it at once.
    network: Arc<Mutex<Network>>,
    /// Digest of everything that its logits depend on, besides the images.
    pub(super) key: String,
}

enum Network {
    Model(Model, Transform),
    Script(TorchScript),
}

impl OnlineTeacher {
    /// Makes a teacher of a network from images to logits, such as `backbone.with_head(&head)?`. `transform` prepares
    /// its images; the student's may differ.
    ///
    /// # Errors
    /// When its weights can't be read.
    pub fn network(teacher: Model, transform: &Transform) -> Result<Self> {
        let (weights, precision) = (digest_tensors(&teacher.state())?, teacher.precision.to_string());
        let key = digest(&["online", &weights, &transform.key(), &precision].map(str::as_bytes));
        Ok(Self { network: Arc::new(Mutex::new(Network::Model(teacher, transform.clone()))), key })
    }

    /// Makes a teacher of a TorchScript file, with its own preprocessing.
    pub fn script(teacher: TorchScript) -> Self {
        let key = digest(&["online script", &teacher.key()].map(str::as_bytes));
        Self { network: Arc::new(Mutex::new(Network::Script(teacher))), key }
    }

    /// Computes logits `[B, C]`, f64 of a network in f64 and else f32, on `device` for images u8 `[B, 3, H, W]`.
    pub(super) fn logits(&self, images: &Tensor, device: Device) -> Result<Tensor> {
        let logits = match &*lock(&self.network) {
            Network::Model(model, transform) => {
                // Its weights may be f64.
                let x = transform.apply(images, model.device())?.f_to_kind(model.kind())?;
                let logits = no_grad(|| model.forward(&x, false))?;
                if logits.kind() == Kind::Double { logits } else { logits.f_to_kind(Kind::Float)? }
            }
            Network::Script(script) => script.logits(images)?,
        };
        Ok(logits.f_to_device(device)?)
    }

    /// Tries the teacher on two images: it must accept them and give `classes` outputs.
    pub(super) fn check(&self, images: &Tensor, classes: usize) -> Result<()> {
        if let Network::Script(script) = &*lock(&self.network) {
            return script.check(images, classes);
        }
        let found = self.logits(images, Device::Cpu)?.size();
        if found != [images.size()[0], classes as i64] {
            return Err(Error::Input(format!(
                "the online teacher gives {found:?} for {} images and the dataset has {classes} classes: give it a \
                 head for these classes",
                images.size()[0]
            )));
        }
        Ok(())
    }
}
