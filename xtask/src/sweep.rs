//! `cargo lab sweep`: a grid of fits without Jupyter. What is given here replaces the values of the profile.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::paths::{self, Paths};
use crate::setup;

#[derive(Args)]
pub struct SweepArgs {
    /// Of the sweep and of its folder: one that was run before goes on, with those of its runs that still fit
    name: String,
    /// Each decides first weights, order of batches and which images have labels; 3 are the least [default: 0,1,2]
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// How the student is held to its teacher [default: kd]
    #[arg(long, value_delimiter = ',', value_parser = ["kd", "dkd", "standardised-kd"])]
    method: Vec<String>,
    /// Temperatures, above 0 [default: 4]
    #[arg(short = 'T', long, value_delimiter = ',')]
    temperature: Vec<f64>,
    /// Weights of the teacher, 0 to 1 [default: 0.9]
    #[arg(long, value_delimiter = ',')]
    alpha: Vec<f64>,
    /// Shares of the images that have a label [default: 1]
    #[arg(long, value_delimiter = ',')]
    labelled: Vec<f64>,
    /// Shares of these labels that are wrong [default: 0]
    #[arg(long, value_delimiter = ',')]
    noise: Vec<f64>,
    /// Flips and shifts: none, or the teacher judges the same view as the student sees, or one apart [default: none]
    #[arg(long, value_delimiter = ',', value_parser = ["none", "same", "apart"])]
    augmentation: Vec<String>,
    /// Whose labels the teacher's head was trained on: all of the training split, or the student's [default: all]
    #[arg(long, value_delimiter = ',', value_parser = ["all", "student"])]
    teacher: Vec<String>,
    /// A class, by its number, of which the students see no image
    #[arg(long)]
    omitted: Option<u64>,
    /// Training images [default: all of the profile]
    #[arg(long)]
    images: Option<u64>,
    /// Passes over the training images
    #[arg(long)]
    epochs: Option<u64>,
    /// Side of the student's images in pixels
    #[arg(long)]
    size: Option<u64>,
    /// Adam's learning rate
    #[arg(long)]
    learning_rate: Option<f64>,
    /// article, laptop or smoke [default: KDLAB_PROFILE, else article with a CUDA GPU, laptop without]
    #[arg(long)]
    profile: Option<String>,
}

impl SweepArgs {
    /// What was given, as fields of the crate's `Sweep`.
    fn fields(&self) -> Value {
        let axes = [
            ("seeds", json!(self.seeds)),
            ("methods", json!(self.method)),
            ("temperatures", json!(self.temperature)),
            ("alphas", json!(self.alpha)),
            ("labelled", json!(self.labelled)),
            ("noise", json!(self.noise)),
            ("augmentations", json!(self.augmentation)),
            ("teachers", json!(self.teacher)),
            ("omitted", json!(self.omitted)),
            ("images", json!(self.images)),
            ("epochs", json!(self.epochs)),
            ("size", json!(self.size)),
            ("learning_rate", json!(self.learning_rate)),
        ];
        let given = axes.into_iter().filter(|(_, value)| !value.is_null() && *value != json!([]));
        let mut fields: Map<_, _> = given.map(|(name, value)| (name.to_owned(), value)).collect();
        fields.insert("name".into(), json!(self.name));
        Value::Object(fields)
    }
}

/// Compiles and starts the crate's own program for it: this one knows no tch.
pub fn run(paths: &Paths, args: &SweepArgs) -> Result<()> {
    setup::set_up(paths, None)?;
    let status = paths::as_without_cargo(&mut Command::new(paths::cargo()))
        .args(["run", "--quiet", "--bin", "sweep", "--", &args.fields().to_string()])
        .current_dir(&paths.root)
        .envs(paths.environment()?)
        .env("KDLAB_PROFILE", paths.profile(args.profile.as_deref())?)
        .status()
        .context("cannot start cargo; install Rust from https://rustup.rs")?;
    if !status.success() {
        bail!("the sweep {} is not done: the reason stands above; run it again and it goes on", args.name);
    }
    Ok(())
}
