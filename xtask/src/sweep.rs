//! `cargo lab sweep`: a grid of fits without Jupyter. Options replace the values of the profile.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::paths::Paths;
use crate::{program, setup};

const METHODS: [&str; 7] = ["kd", "dkd", "standardised-kd", "argmax", "hint", "attention", "relational"];

#[derive(Args)]
pub struct SweepArgs {
    /// The name of the sweep and of its folder. If the folder is there, the sweep keeps the runs that fit this plan,
    /// and makes those that are missing
    name: String,
    /// Seeds: each decides the first weights, the order of batches and which images have labels; a verdict needs at
    /// least 3 [default: 0,1,2]
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// How the student is compared with its teacher: by logits, or by features (hint, attention, relational)
    /// [default: kd]
    #[arg(long, value_delimiter = ',', value_parser = METHODS)]
    method: Vec<String>,
    /// The layers of student and teacher whose features are compared, such as relu2,_blocks.4 [default: relu4 and the
    /// teacher's last layer at a sixteenth of the image's sides; of relational, the features after the pooling]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// Temperatures, above 0 [default: 4]
    #[arg(short = 'T', long, value_delimiter = ',')]
    temperature: Vec<f64>,
    /// Weights of the teacher's term, 0 to 1 [default: 0.9]
    #[arg(long, value_delimiter = ',')]
    alpha: Vec<f64>,
    /// Run each method as its authors did: with their temperature, weights and warm-up
    #[arg(long, conflicts_with_all = ["temperature", "alpha"])]
    published: bool,
    /// Shares of the images that have a label [default: 1]
    #[arg(long, value_delimiter = ',')]
    labelled: Vec<f64>,
    /// Shares of these labels that are wrong [default: 0]
    #[arg(long, value_delimiter = ',')]
    noise: Vec<f64>,
    /// same, apart: flips and shifts, and the teacher judges the view that the student sees, or another view of the
    /// same image. online: what --augment says, and the teacher judges each batch [default: none]
    #[arg(long, value_delimiter = ',', value_parser = ["none", "same", "apart", "online"])]
    augmentation: Vec<String>,
    /// What --augmentation online draws, as JSON with the fields of kdlab::data::Augment, such as
    /// '{"flip": true, "crop": 0.5, "mixup": 0.2}'
    #[arg(long, value_parser = |text: &str| serde_json::from_str::<Value>(text))]
    augment: Option<Value>,
    /// Labels that the teacher's head is trained on: all of the training split, or the student's [default: all]
    #[arg(long, value_delimiter = ',', value_parser = ["all", "student"])]
    teacher: Vec<String>,
    /// Optimizer, schedule and regularisation as JSON, with the fields of kdlab::train::Recipe that differ from the
    /// default, such as '{"schedule": "Cosine", "warmup": 1}'; once for each recipe [default: Adam at a constant rate]
    #[arg(long, value_parser = |text: &str| serde_json::from_str::<Value>(text))]
    recipe: Vec<Value>,
    /// The number of a class of which the students see no image
    #[arg(long)]
    omitted: Option<u64>,
    /// Training images [default: all of the profile]
    #[arg(long)]
    images: Option<u64>,
    /// Passes over the training images [default: the profile's]
    #[arg(long)]
    epochs: Option<u64>,
    /// The network that learns; medium is the article's [default: medium]
    #[arg(long, value_parser = ["small", "medium", "large"])]
    student: Option<String>,
    /// Side of the student's images in pixels [default: the profile's]
    #[arg(long)]
    size: Option<u64>,
    /// The learning rate [default: the profile's]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// article, laptop or smoke [default: KDLAB_PROFILE, else article with a CUDA GPU, laptop without]
    #[arg(long)]
    profile: Option<String>,
    /// Run the fits on a cluster: local:N workers of this machine; a Dask scheduler, tls://HOST:8786 or
    /// tcp://127.0.0.1:8786; jobs of slurm:N or pbs:N. slurm-array prints a command instead. docs/cluster.md has more
    #[arg(long, value_name = "PLACE")]
    on: Option<String>,
}

impl SweepArgs {
    /// Returns the options that were given, as fields of the crate's `Sweep`.
    fn fields(&self) -> Value {
        let axes = [
            ("seeds", json!(self.seeds)),
            ("methods", json!(self.method)),
            ("layers", json!(self.layers)),
            ("temperatures", json!(self.temperature)),
            ("alphas", json!(self.alpha)),
            ("published", json!(self.published.then_some(true))),
            ("labelled", json!(self.labelled)),
            ("noise", json!(self.noise)),
            ("augmentations", json!(self.augmentation)),
            ("augment", json!(self.augment)),
            ("teachers", json!(self.teacher)),
            ("recipes", json!(self.recipe)),
            ("omitted", json!(self.omitted)),
            ("images", json!(self.images)),
            ("epochs", json!(self.epochs)),
            ("student", json!(self.student)),
            ("size", json!(self.size)),
            ("learning_rate", json!(self.learning_rate)),
        ];
        let given = axes.into_iter().filter(|(_, value)| !value.is_null() && *value != json!([]));
        let mut fields: Map<_, _> = given.map(|(name, value)| (name.to_owned(), value)).collect();
        fields.insert("name".into(), json!(self.name));
        Value::Object(fields)
    }
}

/// Compiles and starts the crate's own program for sweeps, because this one does not use tch.
pub fn run(paths: &Paths, args: &SweepArgs) -> Result<()> {
    setup::set_up(paths, None)?;
    let program = match &args.on {
        Some(place) if place != "slurm-array" => prepare_for_clusters(paths)?,
        _ => program::compiled(paths, "sweep", "sweeps")?, // the jobs of an array run without Dask
    };
    let mut command = Command::new(program);
    command.arg(args.fields().to_string());
    if let Some(place) = &args.on {
        command.args(["--on", place]);
    }
    // In place of this process: a signal to `cargo lab sweep` then ends the training, and nothing goes on in the
    // background.
    let error = command.envs(paths.environment()?).env("KDLAB_PROFILE", paths.profile(args.profile.as_deref())?).exec();
    Err(error).context("cannot start the program for sweeps")
}

/// Installs Dask, unless `KDLAB_DASK` names a Python that has it, and returns the program for sweeps.
pub fn prepare_for_clusters(paths: &Paths) -> Result<PathBuf> {
    if crate::tools::variable("KDLAB_DASK").is_none() {
        setup::python::install_dask(paths)?;
    }
    program::compiled(paths, "sweep", "sweeps")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: SweepArgs,
    }

    fn fields(command: &str) -> Value {
        let words = shlex::split(command).unwrap_or_else(|| panic!("{command}: a quote is never closed"));
        // As clap sees it: the words after `cargo lab`, of which the first names the program.
        let words = words.into_iter().skip(2);
        Alone::try_parse_from(words).unwrap_or_else(|error| panic!("{command}: {error}")).args.fields()
    }

    #[test]
    fn only_what_was_given_replaces_the_profile() {
        assert_eq!(fields("cargo lab sweep few"), json!({"name": "few"}));
        let given = "cargo lab sweep map -T 1,4 --alpha 0.5,1 --method kd,dkd --teacher student --epochs 8 --omitted 3";
        let wanted = json!({"name": "map", "temperatures": [1.0, 4.0], "alphas": [0.5, 1.0], "methods": ["kd", "dkd"],
            "teachers": ["student"], "epochs": 8, "omitted": 3});
        assert_eq!(fields(given), wanted);
        assert_eq!(
            fields("cargo lab sweep s --student small --size 64"),
            json!({"name": "s", "student": "small", "size": 64})
        );
        let given = "cargo lab sweep f --method kd,hint,relational --layers relu2,_blocks.4";
        let wanted = json!({"name": "f", "methods": ["kd", "hint", "relational"], "layers": ["relu2", "_blocks.4"]});
        assert_eq!(fields(given), wanted);
        let wrong =
            Alone::try_parse_from(["sweep", "f", "--method", "hints"]).err().expect("no such method").to_string();
        assert!(METHODS.iter().all(|method| wrong.contains(method)), "{wrong}");
        assert_eq!(fields("cargo lab sweep m --published"), json!({"name": "m", "published": true}));
        let recipes = r#"cargo lab sweep rates --recipe '{}' --recipe '{"schedule": "Cosine", "warmup": 1}' # two"#;
        let wanted = json!({"name": "rates", "recipes": [{}, {"schedule": "Cosine", "warmup": 1}]});
        assert_eq!(fields(recipes), wanted);
        let online = r#"cargo lab sweep online --augmentation online --augment '{"crop": 0.5}'"#;
        let wanted = json!({"name": "online", "augmentations": ["online"], "augment": {"crop": 0.5}});
        assert_eq!(fields(online), wanted);
    }
}
