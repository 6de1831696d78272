//! What goes with a saved network.

use crate::data::Transform;
use crate::store::tensors;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// What a user of a saved network must know besides its weights.
///
/// It travels inside the weight file, so that neither is found without the other: each field is an entry of the
/// safetensors metadata, as JSON, which other languages read as well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Logit `i` is for class `i`.
    pub classes: Vec<String>,
    /// Side in pixels that the images had before the transform, as [`crate::data::read_image`] gives them.
    pub stored_size: i64,
    /// Its `size`, `mean` and `std` are entries of their own.
    #[serde(flatten)]
    pub transform: Transform,
}

impl ModelCard {
    /// The card in a file of [`super::Model::save_with`].
    ///
    /// # Errors
    /// When the file cannot be read, is no safetensors file, or holds no card.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (_, entries) = tensors::load_tensors(path).map_err(|e| match e {
            Error::Data(why) => Error::Data(format!("{why}; give the safetensors file of Model::save_with")),
            other => other,
        })?;
        // Metadata of others need not be JSON.
        let parsed = entries.into_iter().filter_map(|(key, text)| Some((key, serde_json::from_str(&text).ok()?)));
        serde_json::from_value(Value::Object(parsed.collect())).map_err(|e| {
            Error::Data(format!(
                "{} holds no card that says how to use it ({e}): save it with Model::save_with",
                path.display()
            ))
        })
    }

    /// As metadata of a weight file.
    pub(super) fn entries(&self) -> Result<HashMap<String, String>> {
        let card = serde_json::to_value(self).map_err(|e| Error::Data(format!("model card: {e}")))?;
        Ok(card.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.to_string())).collect())
    }
}
