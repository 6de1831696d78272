//! Random augmentation: what is drawn for each image, and the images that it makes.

use super::sampling::{Purpose, generator};
use crate::store::tensors::upload;
use crate::{Error, Result};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};
use serde::{Deserialize, Serialize};
use std::fmt;
use tch::{Kind, Tensor};

/// The largest shift in pixels.
pub(super) const MOST_SHIFT: i64 = 64;
/// ImageNet's mean colour, which normalisation brings near 0.
const MEAN_COLOUR: [f32; 3] = [124.0, 116.0, 104.0];

/// How images are augmented at random. Each field is one augmentation, and the default changes nothing.
///
/// [`Views::drawn`](super::Views::drawn) draws numbered views from it: a teacher judges each once.
/// [`Examples::augmented`](crate::train::Examples::augmented) draws other values for every image in every epoch.
///
/// ```
/// use kdlab::data::Augment;
/// let augment = Augment { flip: true, crop: Some(0.5), jitter: 0.3, ..Augment::default() };
/// assert_eq!(augment.to_string(), "flip, crop 0.5, jitter 0.3");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Mirrors an image with probability 1/2.
    pub flip: bool,
    /// Shifts an image by up to so many pixels, 0 to 64, along each axis; its border is repeated.
    pub shift: i64,
    /// Least share of an image's area that a random crop keeps, in (0, 1]. The crop is resized to the whole image:
    /// `RandomResizedCrop(size, scale=(crop, 1))`, with an aspect ratio between 3/4 and 4/3. `None` crops nothing.
    pub crop: Option<f64>,
    /// Cuts the crop out of the image as it lies in its file or shard, which is decoded anew for every batch, and
    /// resizes it to the data's size. Otherwise `crop` cuts the data's squares, which are smaller and may be squeezed.
    /// Only folders of images and shards have such files, and each epoch then takes as long as decoding them, on as
    /// many threads as libtorch takes; their number does not change the images.
    pub original: bool,
    /// Side in pixels of a square that gets ImageNet's mean colour, less than the image's side; 0 for none. Its centre
    /// may be any pixel: DeVries and Taylor, "Improved Regularization of CNNs with Cutout" (2017).
    pub cutout: i64,
    /// Multiplies brightness, contrast and saturation by factors between `1 - jitter` and `1 + jitter`, in this order:
    /// `ColorJitter(jitter, jitter, jitter)`. In [0, 1).
    pub jitter: f64,
    /// Then turns the hue by up to this share of the colour circle either way: `ColorJitter(hue=hue)`. 0 to 0.5; 0.1 is
    /// usual.
    pub hue: f64,
    /// Mixes each image of a batch with a second one, `share * image + (1 - share) * other`, where `share` is drawn for
    /// the batch from Beta(mixup, mixup): Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018).
    /// 0.01 to 100, and 0.2 is usual; `None` mixes nothing.
    ///
    /// The larger share always goes to the image itself. Cross-entropy is mixed in the same way, and the teacher judges
    /// the mixed image. Training accuracy counts the label of the larger share.
    pub mixup: Option<f64>,
}

/// What was drawn for one image; the default is the image as it is. Boxes are left, top, right and bottom in pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct View {
    pub mirrored: bool,
    /// To the right and down.
    pub shift: [i64; 2],
    pub crop: Option<[i64; 4]>,
    pub cutout: Option<[i64; 4]>,
    /// Factors of brightness, contrast and saturation.
    pub colour: Option<[f64; 3]>,
    /// Share of the colour circle by which the hue turns.
    pub hue: f64,
}

/// How the images of one batch are mixed.
pub(crate) struct Mixing {
    /// For each image, the position in the batch of the one that is mixed in.
    pub partners: Vec<i64>,
    /// Share of the image itself, 0.5 to 1.
    pub share: f64,
}

impl Augment {
    /// Refuses values out of range. Images have `size` (height, width).
    pub(crate) fn check(&self, size: (i64, i64)) -> Result<()> {
        let side = size.0.min(size.1);
        let wrong = |what: String| Err(Error::Input(what));
        if !(0..=MOST_SHIFT).contains(&self.shift) {
            return wrong(format!("augmentation by shifts of {} pixels: take 0 to {MOST_SHIFT}", self.shift));
        }
        if let Some(least) = self.crop.filter(|least| !(*least > 0.0 && *least <= 1.0)) {
            return wrong(format!("a crop must keep a share of the image in (0, 1], got {least}; try 0.5"));
        }
        if self.original && self.crop.is_none() {
            return wrong("original says where a crop is cut, and there is none: give crop too, such as 0.08".into());
        }
        if !(0..side).contains(&self.cutout) {
            let cutout = self.cutout;
            return wrong(format!(
                "cutout must be less than the image's {side} pixels, got {cutout}; try {}",
                side / 4
            ));
        }
        if !(0.0..1.0).contains(&self.jitter) {
            return wrong(format!("colour jitter must be in [0, 1), got {}; try 0.3", self.jitter));
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return wrong(format!("hue must turn by 0 to 0.5 of the colour circle, got {}; try 0.1", self.hue));
        }
        if let Some(alpha) = self.mixup.filter(|alpha| !(0.01..=100.0).contains(alpha)) {
            return wrong(format!("mixup must be 0.01 to 100, got {alpha}; try 0.2, or None to mix nothing"));
        }
        Ok(())
    }

    /// Draws a view of an image of `size` (height, width). Every number is drawn whatever the fields are, so that each
    /// augmentation draws the same with and without the others.
    pub(super) fn draw(&self, (height, width): (i64, i64), rng: &mut ChaCha8Rng) -> View {
        let mirrored = rng.random_bool(0.5) && self.flip;
        let shift = [(); 2].map(|()| rng.random_range(-self.shift..=self.shift));
        let centre = [rng.random_range(0..width), rng.random_range(0..height)];
        let colour = [(); 3].map(|()| 1.0 + self.jitter * rng.random_range(-1.0..=1.0));
        // A crop takes as many numbers as it needs, so the hue has a generator of its own.
        let hue = self.hue * ChaCha8Rng::from_rng(&mut rng.clone()).random_range(-1.0..=1.0);
        let crop = self.crop.map(|least| crop(least, height, width, rng));
        let half = self.cutout / 2;
        let [left, top] = centre.map(|at| at - half);
        let [right, bottom] = [left, top].map(|at| at + self.cutout);
        let cutout = [left.max(0), top.max(0), right.min(width), bottom.min(height)];
        View {
            mirrored,
            shift,
            crop,
            cutout: (self.cutout > 0).then_some(cutout),
            colour: (self.jitter > 0.0).then_some(colour),
            hue,
        }
    }

    /// Returns `images` u8 `[B, 3, H, W]` as this epoch draws them, without mixup and without crops of the originals.
    /// Image i is that of sample
    /// `samples[i]`.
    pub(crate) fn apply(&self, images: &Tensor, samples: &[i64], seed: u64, epoch: u64) -> Result<Tensor> {
        let size = size_of(images)?;
        // Those are cropped already.
        let crop = self.crop.filter(|_| !self.original);
        let rest = Augment { crop, ..self.clone() };
        let draw = |sample: &i64| rest.draw(size, &mut generator(Purpose::FreshView, seed, epoch, *sample as u64));
        seen(images, &samples.iter().map(draw).collect::<Vec<_>>())
    }

    /// A text that differs whenever the images may differ.
    pub(crate) fn key(&self) -> String {
        // As it was before there were crops of originals, so that earlier work is found.
        format!("{self:?}").replace(", original: false", "")
    }

    /// Draws how the batch of so many images is mixed in a step of an epoch; `None` without mixup.
    pub(crate) fn mixing(&self, images: usize, seed: u64, epoch: u64, step: u64) -> Result<Option<Mixing>> {
        let Some(alpha) = self.mixup else { return Ok(None) };
        let mut rng = generator(Purpose::Mixing, seed, epoch, step);
        let mut partners: Vec<i64> = (0..images as i64).collect();
        partners.shuffle(&mut rng);
        let beta = Beta::new(alpha, alpha).map_err(|e| Error::Input(format!("mixup {alpha}: {e}")))?;
        let share = beta.sample(&mut rng);
        Ok(Some(Mixing { partners, share: share.max(1.0 - share) }))
    }
}

impl fmt::Display for Augment {
    /// Lists what is augmented: `flip, shift 3, crop 0.5`; nothing for the default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.flip.then(|| "flip".to_owned()),
            (self.shift > 0).then(|| format!("shift {}", self.shift)),
            self.crop.map(|least| format!("crop {least}{}", if self.original { " of the original" } else { "" })),
            (self.cutout > 0).then(|| format!("cutout {}", self.cutout)),
            (self.jitter > 0.0).then(|| format!("jitter {}", self.jitter)),
            (self.hue > 0.0).then(|| format!("hue {}", self.hue)),
            self.mixup.map(|alpha| format!("mixup {alpha}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl Mixing {
    /// Returns `images` u8 `[B, 3, H, W]` mixed, rounded to whole values.
    pub(crate) fn apply(&self, images: &Tensor) -> Result<Tensor> {
        let x = images.f_to_kind(Kind::Float)?;
        let others = x.f_index_select(0, &upload(&self.partners, x.device())?)?;
        Ok(x.f_lerp(&others, 1.0 - self.share)?.f_round()?.f_to_kind(Kind::Uint8)?)
    }
}

/// A box with at least the share `least` of the image's area, as torchvision's `RandomResizedCrop` draws it.
fn crop(least: f64, height: i64, width: i64, rng: &mut ChaCha8Rng) -> [i64; 4] {
    let (narrowest, widest) = (0.75f64, 4.0 / 3.0);
    for _ in 0..10 {
        let area = (height * width) as f64 * rng.random_range(least..=1.0);
        let ratio = rng.random_range(narrowest.ln()..=-narrowest.ln()).exp();
        let [w, h] = [area * ratio, area / ratio].map(|square| square.sqrt().round() as i64);
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let (left, top) = (rng.random_range(0..=width - w), rng.random_range(0..=height - h));
            return [left, top, left + w, top + h];
        }
    }
    // Then as much of the centre as such a ratio allows.
    let [w, h] = match width as f64 / height as f64 {
        ratio if ratio < narrowest => [width, (width as f64 / narrowest).round() as i64],
        ratio if ratio > widest => [(height as f64 * widest).round() as i64, height],
        _ => [width, height],
    };
    let (left, top) = ((width - w) / 2, (height - h) / 2);
    [left, top, left + w, top + h]
}

/// Height and width of images `[B, 3, H, W]`.
pub(super) fn size_of(images: &Tensor) -> Result<(i64, i64)> {
    match images.size()[..] {
        [_, 3, height, width] if images.kind() == Kind::Uint8 => Ok((height, width)),
        _ => Err(Error::Input(format!(
            "augmentation takes images u8 [B, 3, H, W], not {:?} {:?}: give it Batch::images as they are",
            images.kind(),
            images.size()
        ))),
    }
}

/// Returns image i of `images` u8 `[B, 3, H, W]` in view `views[i]`, same shape and device, rounded to whole values.
pub(super) fn seen(images: &Tensor, views: &[View]) -> Result<Tensor> {
    let plain = View::default();
    if views.iter().all(|view| *view == plain) {
        return Ok(images.shallow_clone());
    }
    let size = size_of(images)?;
    let coloured = |v: &View| v.colour.is_some() || v.hue != 0.0 || v.cutout.is_some();
    let [cropped, coloured] = [|v: &View| v.crop.is_some(), coloured].map(|changes| views.iter().any(changes));
    let bytes = if cropped { images.shallow_clone() } else { moved(images, views, size)? };
    if !cropped && !coloured {
        return Ok(bytes);
    }
    let mut x = bytes.f_to_kind(Kind::Float)?;
    if cropped {
        x = x.f_grid_sampler(&grid(views, size, &x)?, 0, 0, false)?; // bilinear
    }
    if views.iter().any(|v| v.colour.is_some()) {
        x = jittered(&x, views)?;
    }
    if views.iter().any(|v| v.hue != 0.0) {
        x = turned(&x, views)?;
    }
    if views.iter().any(|v| v.cutout.is_some()) {
        let colour = upload(&MEAN_COLOUR, x.device())?.f_view([1, 3, 1, 1])?;
        x = colour.f_where_self(&cut_out(views, size, &x)?, &x)?;
    }
    Ok(x.f_round()?.f_to_kind(Kind::Uint8)?)
}

/// Where each pixel of the views lies in the images, in pixels along an axis (0 is x, 1 is y): `length` for each view.
fn places(views: &[View], axis: usize, length: i64) -> impl Iterator<Item = f64> {
    views.iter().flat_map(move |view| {
        let (first, last) = view.crop.map_or((0, length), |sides| (sides[axis], sides[axis + 2]));
        let side = (last - first) as f64;
        (0..length).map(move |i| {
            // Undone in reverse order: the image is cropped, shifted and then mirrored.
            let i = if view.mirrored && axis == 0 { length - 1 - i } else { i };
            let i = (i - view.shift[axis]).clamp(0, length - 1) as f64;
            ((i + 0.5) * side / length as f64 - 0.5).clamp(0.0, side - 1.0) + first as f64
        })
    })
}

/// Images u8 shifted and mirrored. Every place is a whole pixel.
fn moved(images: &Tensor, views: &[View], (height, width): (i64, i64)) -> Result<Tensor> {
    let whole = images.size();
    let pick = |x: &Tensor, axis: usize, length: i64| -> Result<Tensor> {
        let at: Vec<i64> = places(views, axis, length).map(|place| place as i64).collect();
        let shape = if axis == 0 { [whole[0], 1, 1, length] } else { [whole[0], 1, length, 1] };
        let at = upload(&at, x.device())?.f_view(shape)?.f_expand(&whole, false)?;
        Ok(x.f_gather(3 - axis as i64, &at, false)?)
    };
    pick(&pick(images, 0, width)?, 1, height)
}

/// The places of all pixels `[B, H, W, 2]`, x and y on the scale of `F.grid_sample`.
fn grid(views: &[View], (height, width): (i64, i64), like: &Tensor) -> Result<Tensor> {
    let axis = |axis: usize, length: i64| -> Result<Tensor> {
        let scaled = |place: f64| (2.0 * (place + 0.5) / length as f64 - 1.0) as f32;
        upload(&places(views, axis, length).map(scaled).collect::<Vec<_>>(), like.device())
    };
    let (images, whole) = (views.len() as i64, [views.len() as i64, height, width]);
    let x = axis(0, width)?.f_view([images, 1, width])?.f_expand(whole, false)?;
    let y = axis(1, height)?.f_view([images, height, 1])?.f_expand(whole, false)?;
    Ok(Tensor::f_stack(&[x, y], 3)?)
}

/// Images f32 in other colours: brightness, contrast and saturation as torchvision's `adjust_...` compute them, without
/// rounding in between.
fn jittered(images: &Tensor, views: &[View]) -> Result<Tensor> {
    let factors: Vec<f32> =
        (0..3).flat_map(|which| views.iter().map(move |v| v.colour.map_or(1.0, |c| c[which]) as f32)).collect();
    let factors = upload(&factors, images.device())?.f_view([3, views.len() as i64, 1, 1, 1])?;
    let weights = upload(&[0.2989f32, 0.587, 0.114], images.device())?.f_view([1, 3, 1, 1])?;
    let grey = |x: &Tensor| x.f_mul(&weights)?.f_sum_dim_intlist([1i64].as_slice(), true, None::<Kind>);
    // `factor * images + (1 - factor) * other`
    let blend = |images: &Tensor, other: &Tensor, which: i64| -> Result<Tensor> {
        Ok(other.f_lerp_tensor(images, &factors.f_get(which)?)?.f_clamp(0.0, 255.0)?)
    };
    let x = blend(images, &images.f_zeros_like()?, 0)?;
    let x = blend(&x, &grey(&x)?.f_mean_dim([1i64, 2, 3].as_slice(), true, None::<Kind>)?, 1)?;
    blend(&x, &grey(&x)?, 2)
}

/// Images f32 with another hue in HSV, as torchvision's `adjust_hue`.
fn turned(images: &Tensor, views: &[View]) -> Result<Tensor> {
    let turns: Vec<f32> = views.iter().map(|v| 6.0 * v.hue as f32).collect();
    let turns = upload(&turns, images.device())?.f_view([views.len() as i64, 1, 1])?;
    let [red, green, blue] = [0, 1, 2].map(|channel| images.f_select(1, channel));
    let (red, green, blue) = (red?, green?, blue?);
    let (most, least) = (images.f_amax([1i64], false)?, images.f_amin([1i64], false)?);
    let range = most.f_sub(&least)?;
    // Sixths of the colour circle from red, on a scale from -1 to 5; grey has none.
    let sixths = |a: &Tensor, b: &Tensor, from: f64| -> Result<Tensor> {
        Ok(a.f_sub(b)?.f_div(&range.f_clamp_min(1e-6)?)?.f_add_scalar(from)?)
    };
    let hue = sixths(&green, &blue, 0.0)?.f_where_self(
        &most.f_eq_tensor(&red)?,
        &sixths(&blue, &red, 2.0)?.f_where_self(&most.f_eq_tensor(&green)?, &sixths(&red, &green, 4.0)?)?,
    )?;
    let hue = hue.f_add(&turns)?;
    let channel = |first: f64| -> Result<Tensor> {
        let k = hue.f_add_scalar(first)?.f_remainder(6.0)?;
        let share = k.f_minimum(&k.f_neg()?.f_add_scalar(4.0)?)?.f_clamp(0.0, 1.0)?;
        Ok(most.f_sub(&range.f_mul(&share)?)?)
    };
    Ok(Tensor::f_stack(&[channel(5.0)?, channel(3.0)?, channel(1.0)?], 1)?)
}

/// Which pixels are cut out: bool `[B, 1, H, W]`.
fn cut_out(views: &[View], (height, width): (i64, i64), like: &Tensor) -> Result<Tensor> {
    let sides: Vec<i64> =
        (0..4).flat_map(|side| views.iter().map(move |v| v.cutout.map_or(0, |sides| sides[side]))).collect();
    let sides = upload(&sides, like.device())?.f_view([4, views.len() as i64, 1, 1, 1])?;
    let within = |length: i64, first: i64| -> Result<Tensor> {
        let place = Tensor::f_arange(length, (Kind::Int64, like.device()))?;
        let place = if first == 0 { place.f_view([1, 1, 1, length])? } else { place.f_view([1, 1, length, 1])? };
        let [from, to] = [sides.f_get(first)?, sides.f_get(first + 2)?];
        Ok(place.f_ge_tensor(&from)?.f_logical_and(&place.f_lt_tensor(&to)?)?)
    };
    Ok(within(width, 0)?.f_logical_and(&within(height, 1)?)?)
}
