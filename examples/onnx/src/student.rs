//! A student in an ONNX file, run by tract.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use tract_onnx::prelude::*;

/// A network that maps the bytes of one square picture to probabilities, and what its file says about it.
pub struct Student {
    pub file: PathBuf,
    pub classes: Vec<String>,
    /// Side of the square in pixels.
    pub size: u32,
    /// Whether pictures that are no squares are cropped.
    pub crop: bool,
    /// Probability of the likeliest class below which the student abstains.
    pub threshold: f64,
    network: Arc<TypedRunnableModel>,
}

impl Student {
    pub fn load(file: &Path) -> Result<Self> {
        let shown = file.display();
        let proto = onnx()
            .proto_model_for_path(file)
            .with_context(|| format!("{shown} is no ONNX file; Model::save_onnx writes one"))?;
        let entry = |name: &str| {
            let text = &proto.metadata_props.iter().find(|entry| entry.key == name)?.value;
            serde_json::from_str::<serde_json::Value>(text).ok()
        };
        let classes = entry("classes").and_then(|classes| serde_json::from_value::<Vec<String>>(classes).ok());
        let size = entry("stored_size").and_then(|size| u32::try_from(size.as_u64()?).ok());
        let (Some(classes), Some(size)) = (classes, size) else {
            bail!("{shown} has no card with classes and stored_size; Model::save_onnx writes one");
        };
        ensure!(size > 0, "{shown} says that pictures have 0 pixels a side (stored_size); save it with 1 or more");
        // The picture's sides are fixed here, so tract computes everything that depends on them only once.
        let side = size as usize;
        let network = onnx()
            .model_for_proto_model(&proto)?
            .with_input_fact(0, u8::fact([1, side, side, 3]).into())?
            .into_optimized()?
            .into_runnable()
            .with_context(|| format!("tract cannot run {shown}"))?;
        let threshold = entry("threshold").and_then(|threshold| threshold.as_f64()).unwrap_or(0.0);
        let crop = entry("framing").is_some_and(|framing| framing == "centre-crop");
        let student = Self { file: file.to_owned(), classes, size, crop, threshold, network };
        let answers = student.probabilities(&vec![0; 3 * side * side])?.len();
        ensure!(answers == student.classes.len() && answers > 0, "{shown} has {answers} outputs and other classes");
        Ok(student)
    }

    /// Returns the probability of each class for the bytes of a picture, `[size, size, 3]`.
    pub fn probabilities(&self, pixels: &[u8]) -> Result<Vec<f32>> {
        let side = self.size as usize;
        let outputs = self.network.run(tvec![Tensor::from_shape(&[1, side, side, 3], pixels)?.into()])?;
        Ok(outputs[1].to_plain_array_view::<f32>()?.iter().copied().collect())
    }

    /// The file's name without its folder.
    pub fn name(&self) -> String {
        self.file.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}
