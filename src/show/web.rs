//! Pictures with the teacher's answers for the page of a student, which `cargo lab page` makes.

use super::gallery::rgb;
use crate::data::Split;
use crate::store::atomic;
use crate::train::{CachedTensor, soft_targets};
use crate::{Error, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use image::ImageFormat;
use serde_json::json;
use std::io::Cursor;
use std::path::Path;

/// Writes the first `count` images of `split` with their labels and the teacher's probabilities (T = 1) to a JSON file
/// for `cargo lab page --examples`. `teacher` holds logits f32 `[N, C]` of the whole split.
///
/// # Errors
/// When the logits are of another split or have another number of classes, or when the file cannot be written.
pub fn save_examples(
    path: impl AsRef<Path>,
    split: &Split,
    classes: &[String],
    teacher: &CachedTensor,
    count: usize,
) -> Result<()> {
    teacher.check(&split.key, split.len(), "the teacher's logits")?;
    let probabilities = soft_targets(&teacher.tensor, 1.0)?;
    if probabilities.size()[1..] != [classes.len() as i64] {
        let (logits, classes) = (probabilities.size(), classes.len());
        return Err(Error::Input(format!("the teacher's logits are {logits:?}, but there are {classes} classes")));
    }
    let example = |index: i64| {
        let mut png = Cursor::new(Vec::new());
        rgb(split, index)?
            .write_to(&mut png, ImageFormat::Png)
            .map_err(|e| Error::Input(format!("image {index} as PNG: {e}")))?;
        let teacher = Vec::<f32>::try_from(probabilities.f_get(index)?)?;
        Ok(json!({"png": STANDARD.encode(png.into_inner()), "label": split.label(index)?, "teacher": teacher}))
    };
    let examples = (0..count.min(split.len()) as i64).map(example).collect::<Result<Vec<_>>>()?;
    atomic::write_json(path.as_ref(), &json!({"classes": classes, "examples": examples}))
}
