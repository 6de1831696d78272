//! The model card: what a user of a saved network must know besides its weights.

use crate::data::{Framing, Transform};
use crate::store::tensors;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// What a user of a saved network must know besides its weights.
///
/// It lies inside the weight file, so that neither gets lost. Each field is an entry of the safetensors metadata, as
/// JSON, which other languages can read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Names of the classes; logit `i` belongs to class `i`.
    pub classes: Vec<String>,
    /// Side in pixels of the images before the transform, as [`crate::data::read_image`] returns them.
    pub stored_size: i64,
    /// How a picture of any shape becomes such a square.
    #[serde(default, skip_serializing_if = "Framing::is_squeeze")]
    pub framing: Framing,
    /// The transform before the network; its `size`, `mean` and `std` are entries of their own.
    #[serde(flatten)]
    pub transform: Transform,
    /// Probability of the likeliest class below which a program should abstain, 0 to 1:
    /// [`crate::train::Evaluation::threshold`] chooses it. 0 always answers.
    #[serde(default)]
    pub threshold: f64,
}

impl ModelCard {
    /// Reads the card from a file that [`super::Model::save_with`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read, is not a safetensors file, or holds no card.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (_, entries) = tensors::load_tensors(path).map_err(|e| match e {
            Error::Data(why) => Error::Data(format!("{why}; give the safetensors file of Model::save_with")),
            other => other,
        })?;
        // Other programs write metadata that need not be JSON.
        let parsed = entries.into_iter().filter_map(|(key, text)| Some((key, serde_json::from_str(&text).ok()?)));
        serde_json::from_value(Value::Object(parsed.collect())).map_err(|e| {
            Error::Data(format!(
                "{} holds no card that says how to use it ({e}): save it with Model::save_with",
                path.display()
            ))
        })
    }

    /// Refuses a square without pixels.
    pub(super) fn check_size(&self) -> Result<()> {
        match self.stored_size {
            1.. => Ok(()),
            size => Err(Error::Input(format!(
                "the card's stored_size is {size}, and a picture has at least 1 pixel a side; give the side of the \
                 data's images, data.train.size().0"
            ))),
        }
    }

    /// Refuses a network whose output for each image is not one logit for each class.
    pub(super) fn check_classes(&self, model: &str, output: &[i64]) -> Result<()> {
        let classes = self.classes.len();
        match output {
            &[logits] if logits == classes as i64 => Ok(()),
            _ => Err(Error::Input(format!(
                "{model} gives {output:?} for each image and its card names {classes} classes; give a network that \
                 ends in one logit for each of them"
            ))),
        }
    }

    /// The metadata of the weight file.
    pub(super) fn entries(&self) -> Result<HashMap<String, String>> {
        let card = serde_json::to_value(self).map_err(|e| Error::Data(format!("model card: {e}")))?;
        Ok(card.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.to_string())).collect())
    }
}
