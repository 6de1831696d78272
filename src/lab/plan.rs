//! A plan: what the cells of notebooks 2 and 4 chose, as a file from which a program trains the same without Jupyter.

use crate::data::Augment;
use crate::models::{Model, Precision};
use crate::profile::Profile;
use crate::store::atomic;
use crate::train::{
    Criterion, Examples, FitOptions, Group, History, KdLoss, Method, OnlineTeacher, Recipe, check_name, device_of,
    evaluate, fit,
};
use crate::{Error, Lab, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Cuda;

/// What stands above the values.
const HEADER: &str =
    "# A plan of kdlab: the teacher and one distilled student. `cargo lab train` with this file trains them.
# The tables [profile] and [recipe] have the fields of `lab.profile` and of `kdlab::train::Recipe`.
# Without train_images, validation_images or test_images, all images are used; method: kd, dkd,
# standardised-kd or argmax. The teacher's head is kept and found again.
# With a table [augment], of the fields of `kdlab::data::Augment`, the student sees augmented images, and the teacher
# judges each batch: `crop = 0.08` and `original = true` cut crops out of the images' own files.

";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    /// Of the student's fit and its folder.
    name: String,
    method: Method,
    /// Named, because processes on different CPUs would choose differently.
    precision: Precision,
    #[serde(default)]
    recipe: Recipe,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    augment: Option<Augment>,
    profile: Profile,
}

impl Lab {
    /// Writes the values of the lab's profile, and the precision of this device, to a file of which `cargo lab train`,
    /// `torchrun` or `srun` train the same teacher and student without Jupyter, on several processes if you like. The
    /// file is text (TOML), and you may edit it: it also names the fit (`student-distilled`), the method (`kd`) and the
    /// recipe.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_plan(&self, path: impl AsRef<Path>) -> Result<()> {
        let plan = Plan {
            name: "student-distilled".into(),
            method: Method::Kd,
            precision: self.precision_at(self.profile.student_size),
            recipe: Recipe::default(),
            augment: None,
            profile: self.profile.clone(),
        };
        let text = toml::to_string(&plan).map_err(|e| Error::Input(format!("this profile cannot be written: {e}")))?;
        atomic::write_bytes(path.as_ref(), (HEADER.to_owned() + &text).as_bytes())
    }

    /// Trains the teacher's head and the student of a plan that [`Lab::write_plan`] wrote, in the folder of the plan's
    /// profile, and prints how the student does on the test split. Returns the student's curve. Processes that a
    /// launcher started together train together ([`Group::join`]). A plan whose training was stopped goes on after the
    /// last batch, and one that was killed after the last epoch.
    ///
    /// # Errors
    /// When the file is not a plan, a value is out of its range, the training was stopped, and as [`fit`] and
    /// [`Group::join`].
    pub fn train_plan(path: impl AsRef<Path>) -> Result<History> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
        let Plan { name, method, precision, recipe, augment, profile } = toml::from_str(&text).map_err(|e| {
            let (why, path) = (e.to_string(), path.display());
            Error::Data(format!("{path} is no plan: {}; lab.write_plan(\"plan.toml\") writes one", why.trim_end()))
        })?;
        check_name(&name)?;
        check_name(&profile.name)?;
        let group = Group::join()?;
        let mut lab = Lab::open()?;
        lab.folder.set_file_name(&profile.name);
        (lab.profile, lab.precision) = (profile, Some(precision));
        let first = group.as_ref().is_none_or(|group| group.rank() == 0);
        if let Some(group) = group {
            if lab.device.is_cuda() {
                lab.device = device_of(&group, Cuda::device_count())?;
            }
            lab.group = Some(group);
        }
        if first {
            println!("{lab}");
        }
        let kd = KdLoss::new(lab.profile.temperature, lab.profile.alpha)?;
        let data = lab.dataset()?;
        let teacher = lab.teacher(&data)?;
        let (classes, size, transform) = (data.classes.len() as i64, lab.profile.student_size, lab.student_transform());
        let validation = teacher.examples(&data.validation, &transform)?;
        let train = match &augment {
            None => teacher.examples(&data.train, &transform)?,
            Some(augment) => {
                let network = teacher.backbone.with_head(&teacher.head)?;
                let online = OnlineTeacher::network(network, &teacher.transform)?;
                Examples::images(&data.train, &transform)?.augmented(augment)?.taught_by(&online)?
            }
        };
        let network = lab.profile.student;
        let mut student = Model::new("student", lab.device, lab.profile.seed, &|vs| network.layers(vs, classes, size))?;
        let options = FitOptions { recipe, ..lab.fit_options(&name) };
        let history = fit(&mut student, &train, &validation, &Criterion::distil(method, kd), &options)?;
        if let Some(why) = &history.stopped {
            let (done, epochs) = (history.records.len(), history.epochs);
            let why = format!("{name}: {why} after {done} of {epochs} epochs; run it again and it goes on from there");
            return Err(Error::Interrupted(why));
        }
        if first {
            let test = Examples::images(&data.test, &transform)?;
            println!("{name}, on the test split: {}", evaluate(&student, &test, lab.profile.batch_size)?);
        }
        Ok(history)
    }
}
