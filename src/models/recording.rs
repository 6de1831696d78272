//! A network as a TorchScript file: libtorch records the operations of one pass.

use super::layers::Mode;
use super::{Model, ModelCard};
use crate::data::Framing;
use crate::store::atomic;
use crate::{Error, Result};
use std::io::Write;
use std::path::Path;
use tch::{CModule, Kind, Tensor};

impl Model {
    /// Writes the network as a TorchScript file, for `torch.jit.load` and `tch::CModule`. It maps images u8 `[N, H, W,
    /// 3]`, as in [`Model::save_onnx`], to logits f32 `[N, classes]`, on the device where the model is.
    ///
    /// # Errors
    /// When the network does not accept images of the card's size, or when the file cannot be written.
    pub fn save_torchscript(&self, path: impl AsRef<Path>, card: &ModelCard) -> Result<()> {
        save(self, path.as_ref(), card)
    }
}

/// Writes the file. The weights become constants of the recorded function.
fn save(model: &Model, path: &Path, card: &ModelCard) -> Result<()> {
    let device = model.device();
    card.check_size()?;
    // Refuses a transform that nothing passes.
    let _ = card.transform.apply(&Tensor::f_zeros([1, 3, 1, 1], (Kind::Uint8, device))?, device)?;
    let column = |values: [f64; 3]| Ok::<_, Error>(Tensor::f_from_slice(&values)?.f_view([3, 1, 1])?);
    let to_float = |t: Tensor| Ok::<_, Error>(t.f_to_kind(Kind::Float)?.f_to_device(device)?);
    let (mean, std) = (to_float(column(card.transform.mean)?)?, to_float(column(card.transform.std)?)?);
    let forward = |images: &Tensor| -> Result<Tensor> {
        let square = |x: &Tensor, size: i64| x.f_internal_upsample_bilinear2d_aa([size, size], false, None, None);
        let x = images.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?;
        // Whole grey levels, as they are stored.
        let stored = match card.framing {
            Framing::Squeeze => square(&x, card.stored_size)?,
            Framing::CentreCrop => cropped(&x, card.stored_size)?,
        };
        let stored = stored.f_add_scalar(0.5)?.f_floor()?;
        let x = match card.transform.size == card.stored_size {
            true => stored,
            false => square(&stored, card.transform.size)?,
        };
        let x = x.f_div_scalar(255.0)?.f_sub(&mean)?.f_div(&std)?;
        let passed = model.layers.walk(&x, Mode::Evaluation, None, &mut |_, _, _| ());
        passed.map_err(|error| model.too_small(&x.size(), x.kind(), error))
    };
    // Two pictures that are no squares: nothing that is recorded depends on their number or their sides.
    let images = Tensor::f_zeros([2, card.stored_size + 1, card.stored_size + 2, 3], (Kind::Uint8, device))?;
    tch::no_grad(|| {
        // First without a recorder, which an error would leave on.
        let logits = forward(&images)?.size();
        card.check_classes(&model.name, &logits[1..])?;
        let folder = tempfile::tempdir().map_err(|e| Error::io("writing", path, e))?;
        let file = folder.path().join("network.pt");
        // What has a gradient can't become a constant.
        let learns = model.trainable();
        let set = |on: bool| learns.iter().for_each(|(_, tensor)| drop(tensor.set_requires_grad(on)));
        set(false);
        let mut record = |inputs: &[Tensor]| inputs.iter().flat_map(&forward).collect();
        let module = CModule::create_by_tracing("__torch__.Network", "forward", &[images], &mut record);
        let saved = module.and_then(|module| module.save(&file));
        set(true);
        saved?;
        atomic::write_bytes(path, &with_card(&file, card).map_err(|e| Error::io("writing", &file, e))?)
    })
}

/// Resizes `x` f32 `[N, 3, H, W]` until its shorter side has `size` pixels, and crops the square in the centre, by a
/// product with a matrix from each side. All sides are tensors, because a number would be recorded as that of the
/// picture at hand.
fn cropped(x: &Tensor, size: i64) -> Result<Tensor> {
    let first = x.f_select(0, 0)?.f_select(0, 0)?.f_to_kind(Kind::Double)?; // [H, W]
    let ones = [first.f_select(1, 0)?.f_ones_like()?, first.f_select(0, 0)?.f_ones_like()?];
    let [height, width] = [ones[0].f_sum(Kind::Double)?, ones[1].f_sum(Kind::Double)?];
    let short = height.f_minimum(&width)?;
    let matrix = |ones: &Tensor, length: &Tensor| -> Result<Tensor> {
        let resized = length.f_mul_scalar(size)?.f_div(&short)?.f_floor()?;
        // Half to even, as torchvision does.
        let left = resized.f_sub_scalar(size)?.f_div_scalar(2)?.f_round()?;
        let scale = length.f_div(&resized)?;
        let centres =
            Tensor::f_arange(size, (Kind::Double, x.device()))?.f_add_scalar(0.5)?.f_add(&left)?.f_mul(&scale)?;
        let positions = ones.f_cumsum(0, Kind::Double)?.f_sub_scalar(0.5)?;
        // Weights fall linearly to zero at the distance of one pixel, old or new, whichever is larger.
        let distance = positions.f_unsqueeze(0)?.f_sub(&centres.f_unsqueeze(1)?)?.f_abs()?; // [size, length]
        let weights = distance.f_div(&scale.f_clamp_min(1.0)?)?.f_neg()?.f_add_scalar(1.0)?.f_relu()?;
        let sums = weights.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Double)?;
        Ok(weights.f_div(&sums)?.f_to_kind(Kind::Float)?)
    };
    let (rows, columns) = (matrix(&ones[0], &height)?, matrix(&ones[1], &width)?);
    Ok(rows.f_matmul(x)?.f_matmul(&columns.f_transpose(0, 1)?)?)
}

/// The bytes of a TorchScript file with the card where `torch.jit.load(..., _extra_files={"card.json": ""})` looks for
/// it.
fn with_card(file: &Path, card: &ModelCard) -> std::io::Result<Vec<u8>> {
    // Not compressed, like the entries before.
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut archive = zip::ZipWriter::new_append(std::fs::File::options().read(true).write(true).open(file)?)?;
    archive.start_file("network/extra/card.json", options)?;
    archive.write_all(&serde_json::to_vec(card)?)?;
    archive.finish()?;
    std::fs::read(file)
}
