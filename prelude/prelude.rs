// What every kernel runs before the first cell.
use kdlab::{Error, Result};
use tch::{Device, Kind, Tensor};
