// What every kernel runs before the first cell.
use tch::{Device, Kind, Tensor};
