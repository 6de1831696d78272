//! Training examples by sample index: inputs, hard labels and, for distillation, the teacher's logits.

use super::cached::{features_key, pick_views};
use super::group::Share;
use super::loss::{HardLabels, UNLABELLED};
use super::minibatch::Answer;
use super::{CachedTensor, Minibatch, OnlineTeacher};
use crate::data::{Augment, EpochViews, Mixing, Split, Transform, Views};
use crate::models::Backbone;
use crate::store::digest::digest;
use crate::store::tensors::upload;
use crate::{Error, Result};
use tch::{Device, Tensor};

enum Inputs {
    Features(Tensor),
    Images(Box<Images>),
}

struct Images {
    split: Split,
    transform: Transform,
    /// Its features of the images are the inputs.
    backbone: Option<Backbone>,
}

/// A split of at most so many bytes is copied to a GPU. Training and validation then leave room for the network.
const RESIDENT_BYTES: usize = 2 << 30;

/// How training sees the images.
#[derive(Clone)]
enum Seen {
    AsTheyAre,
    /// In one of these views, drawn in every epoch.
    In(Views),
    /// Augmented differently in every epoch.
    Augmented(Augment),
}

/// Where the teacher's logits come from.
enum Teacher {
    Absent,
    /// f32 `[N, C]`, or f16 `[N, V, C]` with the logits of all views; on the CPU or where the examples are.
    Cached(Tensor),
    Online(OnlineTeacher),
}

/// A split as a model sees it: inputs, labels and perhaps the teacher's logits. A sample index is a position in the
/// split, whatever the order of the batches.
pub struct Examples {
    inputs: Inputs,
    labels: Tensor, // i64 [N], CPU; UNLABELLED for images without a label
    partly_labelled: bool,
    teacher: Teacher,
    features: Option<Tensor>, // f32 [N, D] or [N, C, H, W]: of the teacher; CPU
    /// The teacher sees another view than the student, drawn independently.
    apart: bool,
    seen: Seen,
    pub(crate) split_name: String,
    split_key: String,
    key: String,
}

/// What an epoch of a fit draws for its examples.
pub(crate) struct EpochDraws {
    seed: u64,
    epoch: u64,
    views: Option<EpochViews>,
}

impl Examples {
    /// Makes examples of images, which are transformed batch by batch on the device.
    ///
    /// # Errors
    /// When the labels can't be read.
    pub fn images(split: &Split, transform: &Transform) -> Result<Self> {
        let key = digest(&[split.key.as_bytes(), transform.key().as_bytes()]);
        let images = Images { split: split.clone(), transform: transform.clone(), backbone: None };
        Self::new(split, Inputs::Images(Box::new(images)), key)
    }

    /// Makes examples of features that a frozen backbone computed once for every image of the split.
    ///
    /// # Errors
    /// When the features belong to another split.
    pub fn features(split: &Split, features: &CachedTensor) -> Result<Self> {
        features.check(&split.key, split.len(), "features")?;
        Self::new(split, Inputs::Features(features.tensor.shallow_clone()), features.key.clone())
    }

    /// Makes examples of features that a copy of the frozen backbone computes again for every batch of every epoch, as
    /// in the article. They equal [`Examples::features`] up to rounding, at many times the cost.
    ///
    /// # Errors
    /// When the labels can't be read, or the backbone can't be copied.
    pub fn through_backbone(split: &Split, transform: &Transform, backbone: &Backbone) -> Result<Self> {
        let key = features_key(backbone, split, transform)?;
        let images = Images { split: split.clone(), transform: transform.clone(), backbone: Some(backbone.copy()?) };
        Self::new(split, Inputs::Images(Box::new(images)), key)
    }

    /// Adds the teacher's logits `[N, C]`.
    ///
    /// # Errors
    /// When they were computed for other data, or for views, or these examples are augmented: the teacher saw the
    /// images as they are.
    pub fn with_teacher(self, logits: &CachedTensor) -> Result<Self> {
        match self.seen {
            Seen::AsTheyAre => self.with_fixed_teacher(logits),
            _ => Err(teacher_and_augmentation()),
        }
    }

    /// Adds the teacher's logits `[N, C]` of the images as they are to examples that are augmented already: the teacher
    /// then sees other images than the student. Beyer et al. (2022) call this fixed teaching, and found it worse than
    /// showing both the same.
    ///
    /// # Errors
    /// When they were computed for other data, or for views, or the augmentation is mixup.
    pub fn with_fixed_teacher(mut self, logits: &CachedTensor) -> Result<Self> {
        logits.check(&self.split_key, self.len(), "teacher logits")?;
        if logits.views.is_some() {
            return Err(Error::Input("these are logits of several views: use with_teacher_of_views".into()));
        }
        if self.mixes() {
            return Err(Error::Input(
                "mixup shows the student mixed images, and these logits are of whole ones: let the teacher judge each \
                 batch, by taught_by(&OnlineTeacher)"
                    .into(),
            ));
        }
        self.key = digest(&[self.key.as_bytes(), logits.key.as_bytes()]);
        (self.teacher, self.apart) = (Teacher::Cached(logits.tensor.shallow_clone()), false);
        Ok(self)
    }

    /// Adds a teacher that judges each batch as the student sees it, whatever its augmentation. For validation, where
    /// images are seen as they are, logits that are computed once are faster.
    ///
    /// # Errors
    /// When these examples are features, or the teacher refuses their images or has another number of classes.
    pub fn taught_by(mut self, teacher: &OnlineTeacher) -> Result<Self> {
        let Inputs::Images(images) = &self.inputs else {
            return Err(Error::Input(
                "features have no images that a teacher could judge: make these examples with Examples::images, or add \
                 with_teacher(&logits)"
                    .into(),
            ));
        };
        let two = images.split.batch(&[0, self.len() as i64 - 1])?.images;
        teacher.check(&two, images.split.classes())?;
        self.key = digest(&[self.key.as_bytes(), teacher.key.as_bytes()]);
        (self.teacher, self.apart) = (Teacher::Online(teacher.clone()), false);
        Ok(self)
    }

    /// Adds features of the teacher, as [`layer_features`](super::layer_features) computes them, for
    /// [`Criterion::with_features`](super::Criterion::with_features).
    ///
    /// # Errors
    /// When they were computed for other data, or these examples are augmented: the teacher saw the images as they are.
    pub fn with_teacher_features(mut self, features: &CachedTensor) -> Result<Self> {
        features.check(&self.split_key, self.len(), "features")?;
        if !matches!(self.seen, Seen::AsTheyAre) {
            return Err(features_and_views());
        }
        let size: Vec<i64> = match &features.row {
            Some(row) => [&[-1], row.as_slice()].concat(),
            None => features.tensor.size(),
        };
        self.key = digest(&[self.key.as_bytes(), b"features", features.key.as_bytes()]);
        self.features = Some(features.tensor.f_view(size.as_slice())?);
        Ok(self)
    }

    /// Replaces the labels of the split by `labels`, i64 `[N]`: classes, or [`UNLABELLED`] for images without a label.
    /// Cross-entropy and accuracy then leave those images out.
    ///
    /// # Errors
    /// When the number of labels is not that of the images, a label is negative, or no image has a label.
    pub(crate) fn with_labels(mut self, labels: &Tensor) -> Result<Self> {
        let values = Vec::<i64>::try_from(labels.f_to_device(Device::Cpu)?.f_reshape(-1)?)?;
        let labelled = values.iter().filter(|l| **l != UNLABELLED).count();
        if values.len() != self.len() || labelled == 0 || values.iter().any(|l| *l < 0 && *l != UNLABELLED) {
            return Err(Error::Input(format!(
                "labels {:?} for {} images: give one for each, a class from 0 or UNLABELLED (-100), and not only that",
                labels.size(),
                self.len()
            )));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|l| l.to_le_bytes()).collect();
        self.key = digest(&[self.key.as_bytes(), b"labels", &bytes]);
        self.partly_labelled = labelled < values.len();
        self.labels = Tensor::f_from_slice(&values)?;
        Ok(self)
    }

    /// Augments the images: training sees each in one of `views`, drawn for each epoch.
    ///
    /// # Errors
    /// When these examples are features, the images are too small for the views, or their teacher saw other views.
    pub fn with_views(mut self, views: &Views) -> Result<Self> {
        let same = matches!(&self.seen, Seen::In(judged) if judged == views);
        if matches!(&self.teacher, Teacher::Cached(logits) if judges_views(logits)) && !same {
            return Err(Error::Input(
                "the teacher of these examples judged other views; give with_teacher_of_views the logits of these \
                 views instead"
                    .into(),
            ));
        }
        if matches!(self.seen, Seen::Augmented(_)) {
            return Err(self.augmented_already());
        }
        views.check(self.augmentable()?)?;
        self.key = digest(&[self.key.as_bytes(), views.key().as_bytes()]);
        self.seen = Seen::In(views.clone());
        Ok(self)
    }

    /// Augments the images: training sees each as `augment` draws it for the epoch. What it draws depends on seed,
    /// epoch and sample alone. Distillation needs a teacher that judges each batch: [`Examples::taught_by`].
    ///
    /// # Errors
    /// When a value of `augment` is out of its range, these examples are features, their teacher saw the images
    /// otherwise, or [`Augment::original`] is set and they have no files of their own.
    pub fn augmented(mut self, augment: &Augment) -> Result<Self> {
        augment.check(self.augmentable()?)?;
        if let (true, Inputs::Images(images)) = (augment.original, &self.inputs) {
            images.split.check_originals()?;
        }
        if !matches!(self.seen, Seen::AsTheyAre) {
            return Err(self.augmented_already());
        }
        self.key = digest(&[self.key.as_bytes(), b"augmented", augment.key().as_bytes()]);
        self.seen = Seen::Augmented(augment.clone());
        Ok(self)
    }

    fn augmented_already(&self) -> Error {
        Error::Input(format!(
            "these examples are augmented already ({}): begin with Examples::images, and name all in one Augment",
            self.augmentation()
        ))
    }

    /// Height and width of the images, if they may be augmented.
    fn augmentable(&self) -> Result<(i64, i64)> {
        let Inputs::Images(images) = &self.inputs else {
            return Err(Error::Input("features have no views: augment images, with Examples::images".into()));
        };
        match (&self.features, &self.teacher) {
            (Some(_), _) => Err(features_and_views()),
            (None, Teacher::Cached(logits)) if !judges_views(logits) => Err(teacher_and_augmentation()),
            _ => Ok(images.split.size()),
        }
    }

    /// Augments the images as [`Examples::with_views`] does, and adds the teacher's `logits` of all views. The teacher
    /// sees the same view as the student, or with `apart` a view that is drawn independently. Beyer et al., "Knowledge
    /// distillation: A good teacher is patient and consistent" (2022), call the two consistent and independent
    /// teaching.
    ///
    /// # Errors
    /// When `logits` were computed for other data, or not for views.
    pub fn with_teacher_of_views(mut self, logits: &CachedTensor, apart: bool) -> Result<Self> {
        logits.check(&self.split_key, self.len(), "logits of views")?;
        let Some(views) = &logits.views else {
            return Err(Error::Input("these are logits of the images as they are: use with_teacher".into()));
        };
        // This teacher replaces an earlier one.
        self.teacher = Teacher::Absent;
        let mut made = self.with_views(views)?;
        let pairing: &[u8] = if apart { b"apart" } else { b"same" };
        made.key = digest(&[made.key.as_bytes(), logits.key.as_bytes(), pairing]);
        (made.teacher, made.apart) = (Teacher::Cached(logits.tensor.shallow_clone()), apart);
        Ok(made)
    }

    /// The same examples for another thread. They share memory, except for the backbone of
    /// [`Examples::through_backbone`], which is copied.
    pub(super) fn share(&self) -> Result<Self> {
        let inputs = match &self.inputs {
            Inputs::Features(features) => Inputs::Features(features.shallow_clone()),
            Inputs::Images(images) => Inputs::Images(Box::new(Images {
                split: images.split.clone(),
                transform: images.transform.clone(),
                backbone: images.backbone.as_ref().map(Backbone::copy).transpose()?,
            })),
        };
        Ok(Self {
            inputs,
            labels: self.labels(),
            partly_labelled: self.partly_labelled,
            teacher: match &self.teacher {
                Teacher::Absent => Teacher::Absent,
                Teacher::Cached(logits) => Teacher::Cached(logits.shallow_clone()),
                Teacher::Online(teacher) => Teacher::Online(teacher.clone()),
            },
            features: self.features.as_ref().map(Tensor::shallow_clone),
            apart: self.apart,
            seen: self.seen.clone(),
            split_name: self.split_name.clone(),
            split_key: self.split_key.clone(),
            key: self.key.clone(),
        })
    }

    /// The same examples in the memory of `device`, so that a step copies only sample indices to it. `None` if they are
    /// there already, or too large.
    pub(super) fn resident(&self, device: Device) -> Result<Option<Self>> {
        let bytes = match &self.inputs {
            Inputs::Images(images) => images.split.pool_bytes(),
            Inputs::Features(features) => 4 * features.numel(),
        };
        let decoded = matches!(&self.seen, Seen::Augmented(augment) if augment.original);
        if device == Device::Cpu || bytes > RESIDENT_BYTES || decoded {
            return Ok(None);
        }
        let mut moved = self.share()?;
        match &mut moved.inputs {
            Inputs::Images(images) => images.split = images.split.on(device)?,
            Inputs::Features(features) => *features = features.f_to_device(device)?,
        }
        if let Teacher::Cached(rows) = &mut moved.teacher
            && !judges_views(rows)
        {
            *rows = rows.f_to_device(device)?;
        }
        moved.labels = moved.labels.f_to_device(device)?;
        Ok(Some(moved))
    }

    /// Returns the number of samples, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.labels.size().first().map_or(0, |&n| n as usize)
    }

    /// Hard labels, i64 `[N]` in split order.
    pub(crate) fn labels(&self) -> Tensor {
        self.labels.shallow_clone()
    }

    /// Returns the samples at `indices`, without augmentation, on `device`.
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn batch(&self, indices: &[i64], device: Device) -> Result<Minibatch> {
        self.batch_in(indices, indices, None, device)
    }

    /// Says which samples the batch after the next one will have, in this epoch of training; `None` if there is none.
    pub(super) fn read_ahead(&self, indices: Option<&[i64]>, draws: Option<&EpochDraws>) {
        let (Inputs::Images(images), Some(indices)) = (&self.inputs, indices) else { return };
        match (&self.seen, draws) {
            (Seen::Augmented(augment), Some(draws)) if augment.original => {
                images.split.crops_ahead(indices, augment, draws.seed, draws.epoch);
            }
            _ => images.split.read_ahead(indices),
        }
    }

    /// What an epoch draws for these examples.
    pub(crate) fn draw(&self, seed: u64, epoch: usize) -> EpochDraws {
        let epoch = epoch as u64;
        let views = match &self.seen {
            Seen::In(views) => Some(views.draw(self.len(), self.apart, seed, epoch)),
            Seen::AsTheyAre | Seen::Augmented(_) => None,
        };
        EpochDraws { seed, epoch, views }
    }

    /// The samples at `indices` as a step of an epoch sees them, with the teacher's logits of the samples at `others`.
    /// The two are the same, except in [`crate::study::mistakes`]. Without a step, they are as they are.
    pub(super) fn batch_in(
        &self,
        indices: &[i64],
        others: &[i64],
        step: Option<(&EpochDraws, usize)>,
        device: Device,
    ) -> Result<Minibatch> {
        let own = upload(indices, self.labels.device())?;
        let pick = |t: &Tensor, rows: &[i64]| -> Result<Tensor> {
            let at = match rows == indices && t.device() == own.device() {
                true => own.shallow_clone(),
                false => upload(rows, t.device())?,
            };
            Ok(t.f_index_select(0, &at)?.f_to_device(device)?)
        };
        let (inputs, images, mixing) = match &self.inputs {
            Inputs::Features(features) => (pick(features, indices)?, None, None),
            Inputs::Images(inputs) => {
                let (images, mixing) = self.pictures(indices, step)?;
                let transformed = inputs.transform.apply(&images, device)?;
                let x = match &inputs.backbone {
                    Some(backbone) => backbone.features(&transformed)?,
                    None => transformed,
                };
                (x, Some(images), mixing)
            }
        };
        let answer = match (&self.teacher, images) {
            (Teacher::Cached(logits), _) if judges_views(logits) => {
                let drawn = step.and_then(|(draws, _)| draws.views.as_ref());
                let judged = drawn.map_or_else(|| vec![0; others.len()], |drawn| of(&drawn.teacher, others));
                Answer::known(pick_views(logits, others, &judged)?.f_to_device(device)?)
            }
            (Teacher::Cached(rows), _) => Answer::known(pick(rows, others)?),
            (Teacher::Online(teacher), Some(images)) => Answer::later(teacher.clone(), images, device),
            _ => Answer::default(),
        };
        let labels = pick(&self.labels, indices)?;
        let mixed = match mixing {
            Some(Mixing { partners, share }) => Some((labels.f_index_select(0, &upload(&partners, device)?)?, share)),
            None => None,
        };
        let features = self.features.as_ref().map(|rows| pick(rows, others)).transpose()?;
        let partly_labelled = self.partly_labelled;
        Ok(Minibatch { inputs, labels, answer, features, partly_labelled, mixed, label_share: None })
    }

    /// A process's `share` of [`Examples::batch_in`]. Its mean over hard labels counts as in the whole batch.
    pub(super) fn part_in(
        &self,
        indices: &[i64],
        others: &[i64],
        step: Option<(&EpochDraws, usize)>,
        share: &Share,
        hard: &HardLabels,
        device: Device,
    ) -> Result<Minibatch> {
        let range = share.range.clone();
        let batch = self.batch_in(&indices[range.clone()], &others[range], step, device)?;
        if !(self.partly_labelled || hard.is_weighted()) || share.weight == 0.0 || share.weight == 1.0 {
            return Ok(batch);
        }
        let all = self.labels.f_index_select(0, &upload(indices, self.labels.device())?)?.f_to_device(device)?;
        Ok(Minibatch { label_share: Some(hard.part_of(&batch.labels, &all, share.weight)?), ..batch })
    }

    /// The images u8 `[B, 3, H, W]` of the samples at `indices` as a step of an epoch sees them, and how it mixes them.
    ///
    /// # Errors
    /// When these examples are features, or an index is out of range.
    pub(crate) fn pictures(
        &self,
        indices: &[i64],
        step: Option<(&EpochDraws, usize)>,
    ) -> Result<(Tensor, Option<Mixing>)> {
        let Inputs::Images(inputs) = &self.inputs else {
            return Err(Error::Input("these examples are features, and have no images: take Examples::images".into()));
        };
        let images = || Ok::<_, Error>(inputs.split.batch(indices)?.images);
        match (&self.seen, step) {
            (Seen::In(views), Some((EpochDraws { views: Some(drawn), .. }, _))) => {
                Ok((views.apply(&images()?, &of(&drawn.student, indices))?, None))
            }
            (Seen::Augmented(augment), Some((draws, step))) => {
                let images = match augment.original {
                    true => inputs.split.crops(indices, augment, draws.seed, draws.epoch)?,
                    false => images()?,
                };
                let images = augment.apply(&images, indices, draws.seed, draws.epoch)?;
                let mixing = augment.mixing(indices.len(), draws.seed, draws.epoch, step as u64)?;
                Ok((
                    mixing.as_ref().map_or_else(|| Ok(images.shallow_clone()), |mixing| mixing.apply(&images))?,
                    mixing,
                ))
            }
            _ => Ok((images()?, None)),
        }
    }

    /// Digest of the data, its transform, the backbone and the teacher.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Classes of the teacher's logits.
    pub(super) fn teacher_classes(&self) -> Option<i64> {
        match (&self.teacher, &self.inputs) {
            (Teacher::Cached(logits), _) => logits.size().last().copied(),
            // It was checked when it was added.
            (Teacher::Online(_), Inputs::Images(images)) => Some(images.split.classes() as i64),
            _ => None,
        }
    }

    /// Whether the teacher judges each batch.
    pub(crate) fn is_taught_online(&self) -> bool {
        matches!(self.teacher, Teacher::Online(_))
    }

    /// Whether training mixes images.
    pub(super) fn mixes(&self) -> bool {
        matches!(&self.seen, Seen::Augmented(augment) if augment.mixup.is_some())
    }

    /// How training augments the images; empty where it doesn't.
    pub(super) fn augmentation(&self) -> String {
        match &self.seen {
            Seen::AsTheyAre => String::new(),
            Seen::In(views) => views.to_string(),
            Seen::Augmented(augment) => augment.to_string(),
        }
    }

    pub(super) fn is_partly_labelled(&self) -> bool {
        self.partly_labelled
    }

    fn new(split: &Split, inputs: Inputs, key: String) -> Result<Self> {
        let labels = split.labels()?;
        let partly_labelled = labels.f_eq(UNLABELLED)?.f_any()?.f_int64_value(&[])? != 0;
        Ok(Self {
            inputs,
            labels,
            partly_labelled,
            teacher: Teacher::Absent,
            features: None,
            apart: false,
            seen: Seen::AsTheyAre,
            split_name: split.name.clone(),
            split_key: split.key.clone(),
            key,
        })
    }
}

fn features_and_views() -> Error {
    Error::Input(
        "the teacher's features are those of the images as they are, and augmentation shows the student other views: \
         leave one of the two out"
            .into(),
    )
}

fn teacher_and_augmentation() -> Error {
    Error::Input(
        "the teacher's logits are of the images as they are, and augmentation shows the student others: let the \
         teacher judge the same images, by taught_by(&OnlineTeacher) or \
         with_teacher_of_views(&view_logits(...)?, false), or add with_fixed_teacher(&logits) after the augmentation \
         to let the two differ"
            .into(),
    )
}

/// The numbers of the samples at `rows`.
fn of(numbers: &[i64], rows: &[i64]) -> Vec<i64> {
    rows.iter().map(|&i| numbers[i as usize]).collect()
}

/// Whether logits of the teacher are those of several views, `[N, V, C]`.
fn judges_views(logits: &Tensor) -> bool {
    logits.dim() == 3
}
