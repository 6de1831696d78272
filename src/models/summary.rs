//! Shapes, parameters and multiply-adds of a network, layer by layer.

use super::layers::{Layers, Mode, Op};
use crate::{Error, Result};
use std::fmt;
use tch::{Device, Kind, Tensor};

/// One layer of a [`Summary`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SummaryRow {
    /// Full name, such as `layer1.0.conv1`.
    pub layer: String,
    /// Such as `Conv 3x3`, `BatchNorm`, `MaxPool 2x2`, `Function` or `Sum`.
    pub kind: String,
    /// Output shape for one image, with its leading 1.
    pub output: Vec<i64>,
    /// Trainable parameters, frozen or not.
    pub parameters: i64,
    /// Multiply-adds for one image. Counted for convolutions and linear layers; everything else counts as 0.
    pub macs: i64,
}

/// Layers, shapes, parameters and multiply-adds of a network; displays as a text table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Name of the model.
    pub model: String,
    /// Shape `[C, H, W]` of the image that shapes and multiply-adds are for.
    pub input: [i64; 3],
    /// The layers in the order in which they run, innermost first.
    pub(crate) rows: Vec<SummaryRow>,
    /// Number of layers; functions and the sums of residual blocks count too.
    pub layers: usize,
    /// Sum over the layers.
    pub parameters: i64,
    /// Sum over the layers, for one image.
    pub macs: i64,
}

impl Summary {
    /// Runs `layers` on one black image and records the output shape of each.
    pub(crate) fn of(layers: &Layers, model: &str, input: [i64; 3], device: Device, parameters: i64) -> Result<Self> {
        let [c, h, w] = input;
        if input.iter().any(|&n| n < 1) || c.saturating_mul(h).saturating_mul(w) > 1 << 28 {
            return Err(Error::Input(format!(
                "an input of shape [{c}, {h}, {w}] cannot be summarised; give [channels, height, width]"
            )));
        }
        let mut rows = Vec::new();
        let seen = tch::no_grad(|| {
            let x = Tensor::f_zeros([1, c, h, w], (Kind::Float, device))?;
            layers.walk(&x, Mode::Evaluation, None, &mut |place, op, output| {
                rows.push(row(place.to_string(), op, output.size()));
            })
        });
        drop(seen?);
        let listed: i64 = rows.iter().map(|r| r.parameters).sum();
        if let Some(last) = rows.last()
            && listed < parameters
        {
            // A function may hold layers that only the variable store knows.
            let output = last.output.clone();
            let (layer, kind) = ("(inside functions)".to_owned(), "Function".to_owned());
            rows.push(SummaryRow { layer, kind, output, parameters: parameters - listed, macs: 0 });
        }
        let macs = rows.iter().map(|r| r.macs).sum();
        Ok(Summary { model: model.to_owned(), input, layers: rows.len(), rows, parameters, macs })
    }
}

fn row(layer: String, op: &Op, output: Vec<i64>) -> SummaryRow {
    let size = |t: &Tensor| t.numel() as i64;
    let maybe = |t: &Option<Tensor>| t.as_ref().map_or(0, size);
    let (kind, parameters, macs) = match op {
        Op::Conv(conv, _) => {
            let kernel = &conv.ws.size()[2..];
            let places: i64 = output[2..].iter().product();
            let kind = format!("Conv {}x{}", kernel[0], kernel[1]);
            (kind, size(&conv.ws) + maybe(&conv.bs), size(&conv.ws) * places)
        }
        Op::BatchNorm(norm, _) => ("BatchNorm".to_owned(), maybe(&norm.ws) + maybe(&norm.bs), 0),
        Op::Linear(linear) => ("Linear".to_owned(), size(&linear.ws) + maybe(&linear.bs), size(&linear.ws)),
        Op::ReLU => ("ReLU".to_owned(), 0, 0),
        Op::ReLU6 => ("ReLU6".to_owned(), 0, 0),
        Op::MaxPool { kernel, .. } => (format!("MaxPool {kernel}x{kernel}"), 0, 0),
        Op::GlobalAvgPool => ("GlobalAvgPool".to_owned(), 0, 0),
        Op::SamePadding { .. } => ("Padding".to_owned(), 0, 0),
        Op::Flatten => ("Flatten".to_owned(), 0, 0),
        Op::Dropout(_) => ("Dropout".to_owned(), 0, 0),
        Op::Func(_) | Op::Nested(_) => ("Function".to_owned(), 0, 0),
        Op::Residual { .. } => ("Sum".to_owned(), 0, 0),
    };
    SummaryRow { layer, kind, output, parameters, macs }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["layer", "kind", "output", "parameters", "MACs"].map(str::to_owned)];
        rows.extend(self.rows.iter().map(|r| {
            [r.layer.clone(), r.kind.clone(), format!("{:?}", r.output), grouped(r.parameters), grouped(r.macs)]
        }));
        let widths: [usize; 5] = std::array::from_fn(|i| rows.iter().map(|r| r[i].len()).max().unwrap_or(0));
        let rule = "-".repeat(widths.iter().sum::<usize>() + 8);
        let [c, h, w] = self.input;
        writeln!(f, "{} on [1, {c}, {h}, {w}]", self.model)?;
        for (i, [layer, kind, output, parameters, macs]) in rows.iter().enumerate() {
            writeln!(
                f,
                "{layer:<0$}  {kind:<1$}  {output:<2$}  {parameters:>3$}  {macs:>4$}",
                widths[0], widths[1], widths[2], widths[3], widths[4]
            )?;
            if i == 0 {
                writeln!(f, "{rule}")?;
            }
        }
        writeln!(f, "{rule}")?;
        write!(f, "{} parameters, {:.2} million MACs an image", grouped(self.parameters), self.macs as f64 / 1e6)
    }
}

/// 264618 as "264,618"; `n` is not negative.
fn grouped(n: i64) -> String {
    let digits = n.to_string();
    let first = (digits.len() - 1) % 3 + 1;
    let rest = (first..digits.len()).step_by(3).map(|at| format!(",{}", &digits[at..at + 3]));
    digits[..first].to_owned() + &rest.collect::<String>()
}
