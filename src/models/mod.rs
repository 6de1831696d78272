//! Networks: the student, the teachers (a frozen backbone and a head), their weight files and their summaries.

mod arch;
mod backbone;
mod card;
mod efficientnet;
mod fetch;
mod inference;
mod int8;
mod layers;
mod model;
mod onednn;
mod onnx;
mod onnx_file;
mod pickle;
mod precision;
mod recording;
mod resnet;
mod state_dict;
mod student;
mod summary;
mod torch_file;
mod torch_script;
mod weights;

pub use arch::Arch;
pub use backbone::Backbone;
pub use card::ModelCard;
pub(crate) use layers::Mode;
pub use layers::{Layers, Op};
pub(crate) use model::device_name;
pub use model::{Model, head};
pub use precision::Precision;
pub use student::{Student, student};
pub use summary::Summary;
pub use torch_script::{Outputs, TorchScript};
pub use weights::{LoadReport, read_weights};

#[cfg(test)]
#[path = "../../tests/models/mod.rs"]
mod tests;
