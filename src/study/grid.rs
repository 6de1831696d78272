//! The grid of a sweep: every setting with every seed.

use super::Verdict;
use crate::data::{Augment, Dataset, Views};
use crate::models::{Arch, Precision, Student};
use crate::train::{Criterion, FeatureMethod, KdLoss, Method, Recipe};
use crate::train::{check_alpha, check_learning_rate, check_temperature, six_digits};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A grid of fits: every method with every temperature and alpha, for every share of labels and of noise, every
/// augmentation, every teacher and every recipe. With every seed, each is compared with the student alone under the
/// same conditions.
///
/// A seed decides the first weights, the order of batches, which images have labels and which labels are wrong. The
/// student alone and the distilled one share it, so only the teacher makes their results differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// Name of the sweep and of its folder.
    pub name: String,
    /// Each setting is trained once with each seed; a verdict needs two seeds or more.
    pub seeds: Vec<u64>,
    /// How the student is compared with its teacher: by logits or by features. `"kd".parse()?` reads a name.
    pub methods: Vec<SweepMethod>,
    /// The layers of student and teacher that a method of features compares, by the names of their summaries. `None`
    /// takes `relu4` and the teacher's last layer at a sixteenth of the image's sides; for `relational`, both networks'
    /// features after the average pooling.
    #[serde(default)]
    pub layers: Option<[String; 2]>,
    /// Above 0.
    pub temperatures: Vec<f64>,
    /// Weights of the teacher, in [0, 1].
    pub alphas: Vec<f64>,
    /// Runs each method as its authors did ([`Criterion::published`]), with their temperature and weights instead of
    /// those above.
    #[serde(default)]
    pub published: bool,
    /// Shares of the training images whose label the student gets, in (0, 1]. The teacher gives soft targets for all
    /// images. The student alone sees the labelled images only, repeated to the same number of steps.
    pub labelled: Vec<f64>,
    /// Shares of wrong labels among all training images, in [0, 1). Among the labelled images the share varies by seed.
    pub noise: Vec<f64>,
    /// How the student's images are augmented.
    pub augmentations: Vec<Augmentation>,
    /// Pixels by which augmentation shifts an image left, right, up or down, or not. Each view also exists mirrored.
    pub shift: i64,
    /// What [`Augmentation::Online`] draws.
    #[serde(default)]
    pub augment: Augment,
    /// Which labels the teacher was trained on, or which teacher from elsewhere it is.
    pub teachers: Vec<TeacherLabels>,
    /// Optimizers, schedules and regularisation of the students. A distilled student is compared with the student alone
    /// of the same recipe.
    #[serde(default = "article")]
    pub recipes: Vec<Recipe>,
    /// A class that neither student sees an image of; the teacher knows it. `None` omits none.
    pub omitted: Option<i64>,
    /// Number of training images, from the first; `None` takes all.
    pub images: Option<usize>,
    /// Epochs of each student, at least 1.
    pub epochs: usize,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Learning rate of each student, above 0.
    pub learning_rate: f64,
    /// The network that learns: small, medium (the article's) or large.
    #[serde(default)]
    pub student: Student,
    /// Side of the student's images in pixels.
    pub size: i64,
    /// Precision of the students' forward and backward passes.
    #[serde(default)]
    pub precision: Precision,
}

/// The recipes of a sweep that names none.
fn article() -> Vec<Recipe> {
    vec![Recipe::default()]
}

impl Default for Sweep {
    /// Three seeds of plain distillation at T = 4, alpha = 0.9, with all labels.
    fn default() -> Self {
        Self {
            name: "sweep".into(),
            seeds: vec![0, 1, 2],
            methods: vec![Method::Kd.into()],
            layers: None,
            temperatures: vec![4.0],
            alphas: vec![0.9],
            published: false,
            labelled: vec![1.0],
            noise: vec![0.0],
            augmentations: vec![Augmentation::None],
            shift: 3,
            augment: Augment::default(),
            teachers: vec![TeacherLabels::All],
            recipes: article(),
            omitted: None,
            images: None,
            epochs: 10,
            batch_size: 64,
            learning_rate: 1e-3,
            student: Student::Medium,
            size: 32,
            precision: Precision::F32,
        }
    }
}

/// How a student of a sweep is compared with its teacher.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SweepMethod {
    /// By logits, at each temperature and alpha.
    Logits(Method),
    /// By features of the course's teacher, beside cross-entropy of the labels, as in the comparisons of Tian et al.,
    /// "Contrastive Representation Distillation" (ICLR 2020). Temperature and alpha have no part in it.
    Features(FeatureMethod),
}

impl SweepMethod {
    fn logits(self) -> Option<Method> {
        match self {
            SweepMethod::Logits(method) => Some(method),
            SweepMethod::Features(_) => None,
        }
    }

    pub(super) fn features(self) -> Option<FeatureMethod> {
        match self {
            SweepMethod::Logits(_) => None,
            SweepMethod::Features(method) => Some(method),
        }
    }

    /// Of a network's two layers that are usually compared, the one that this method compares.
    fn usual_layer(self, layers: [&str; 2]) -> String {
        let pooled = matches!(self, SweepMethod::Features(FeatureMethod::Relational { .. }));
        layers[usize::from(pooled)].to_owned()
    }
}

impl From<Method> for SweepMethod {
    fn from(method: Method) -> Self {
        SweepMethod::Logits(method)
    }
}

impl FromStr for SweepMethod {
    type Err = Error;

    /// Reads the names of [`Method`] and of [`FeatureMethod`].
    fn from_str(name: &str) -> Result<Self> {
        let logits = name.parse().map(SweepMethod::Logits);
        logits.or_else(|_| name.parse().map(SweepMethod::Features)).map_err(|_| {
            Error::Input(format!(
                "no method named {name:?}; there are kd, dkd, dkd(1,2), standardised-kd, argmax, hint, attention and \
                 relational"
            ))
        })
    }
}

impl TryFrom<String> for SweepMethod {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<SweepMethod> for String {
    fn from(method: SweepMethod) -> Self {
        method.to_string()
    }
}

impl fmt::Display for SweepMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SweepMethod::Logits(method) => method.fmt(f),
            SweepMethod::Features(method) => method.fmt(f),
        }
    }
}

/// How the student's images are augmented, and which view its teacher sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// No augmentation.
    None,
    /// Draws one view per image and epoch; student and teacher see the same one.
    Same,
    /// Draws one view per image and epoch for the student, and independently one for the teacher.
    Apart,
    /// Draws every image anew in every epoch, from [`Sweep::augment`]; the teacher judges the very batch.
    Online,
}

/// Which labels the teacher was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherLabels {
    /// All labels of the training split, without noise.
    All,
    /// The labels that the student gets, wrong ones included.
    Student,
    /// Those of a teacher that was trained elsewhere: the name of one that [`crate::Lab::sweep_with`] was given.
    Elsewhere(String),
}

/// One point of the grid, without its seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// `None` for the student alone.
    #[serde(rename = "teaching")]
    pub distillation: Option<Distillation>,
    /// Share of the images with a label, in (0, 1].
    pub labelled: f64,
    /// Share of wrong labels, in [0, 1).
    pub noise: f64,
    /// How the images are augmented.
    pub augmentation: Augmentation,
    /// Optimizer, schedule and regularisation.
    #[serde(default, skip_serializing_if = "Recipe::is_default")]
    pub recipe: Recipe,
}

/// How a student is distilled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distillation {
    /// How it is compared with its teacher.
    pub method: SweepMethod,
    /// Above 0; 1 for the methods that have none: `argmax`, and those of features.
    pub temperature: f64,
    /// Weight of the teacher's soft targets, in [0, 1]; 0 for a method of features.
    pub alpha: f64,
    /// Which labels the teacher was trained on.
    pub teacher: TeacherLabels,
    /// Whether it is run as its authors did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub published: bool,
}

impl Distillation {
    /// The method as its authors ran it.
    fn published(method: Method, teacher: TeacherLabels) -> Option<Self> {
        let kd = Criterion::published(method).kd_loss()?;
        let (temperature, alpha, method) = (kd.temperature(), kd.alpha(), method.into());
        Some(Self { method, temperature, alpha, teacher, published: true })
    }

    /// A method of features, which has the weights of its authors or its own.
    fn by_features(method: FeatureMethod, teacher: TeacherLabels) -> Self {
        Self { method: SweepMethod::Features(method), temperature: 1.0, alpha: 0.0, teacher, published: false }
    }

    /// The loss. `layer` is the student's, for a method of features.
    pub(super) fn criterion(&self, layer: &str) -> Result<Criterion> {
        match self.method {
            SweepMethod::Features(method) => Criterion::cross_entropy().with_features(method, layer),
            SweepMethod::Logits(method) if self.published => Ok(Criterion::published(method)),
            SweepMethod::Logits(method) => Ok(Criterion::distil(method, KdLoss::new(self.temperature, self.alpha)?)),
        }
    }
}

impl fmt::Display for TeacherLabels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TeacherLabels::All => "all",
            TeacherLabels::Student => "student",
            TeacherLabels::Elsewhere(name) => name,
        })
    }
}

impl Setting {
    /// Returns the setting of the student alone under the same conditions.
    pub fn alone(&self) -> Self {
        let augmentation = match self.augmentation {
            Augmentation::None => Augmentation::None,
            Augmentation::Same | Augmentation::Apart => Augmentation::Same,
            Augmentation::Online => Augmentation::Online,
        };
        Self { distillation: None, augmentation, ..self.clone() }
    }
}

impl fmt::Display for Setting {
    /// Writes the setting so that it can name a folder: `kd-T4-alpha0.9-labelled0.05`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.distillation {
            None => f.write_str("alone")?,
            Some(t) => {
                let (temperature, alpha) = (six_digits(t.temperature), six_digits(t.alpha));
                match t.method {
                    SweepMethod::Features(method) => write!(f, "{method}")?,
                    SweepMethod::Logits(method) if t.published => write!(f, "{method}-published")?,
                    SweepMethod::Logits(Method::Argmax) => write!(f, "argmax-alpha{alpha}")?,
                    SweepMethod::Logits(method) => write!(f, "{method}-T{temperature}-alpha{alpha}")?,
                }
                match &t.teacher {
                    TeacherLabels::All => {}
                    TeacherLabels::Student => f.write_str("-teacher-of-the-same-labels")?,
                    TeacherLabels::Elsewhere(name) => write!(f, "-taught-by-{name}")?,
                }
            }
        }
        if self.labelled < 1.0 {
            write!(f, "-labelled{}", six_digits(self.labelled))?;
        }
        if self.noise > 0.0 {
            write!(f, "-noise{}", six_digits(self.noise))?;
        }
        match (self.augmentation, &self.distillation) {
            (Augmentation::None, _) => {}
            (Augmentation::Online, None) => f.write_str("-augmented-anew")?,
            (Augmentation::Online, _) => f.write_str("-online")?,
            (_, None) => f.write_str("-augmented")?,
            (Augmentation::Same, _) => f.write_str("-same-view")?,
            (Augmentation::Apart, _) => f.write_str("-other-view")?,
        }
        if self.recipe.is_default() { Ok(()) } else { write!(f, "-{}", self.recipe) }
    }
}

impl Sweep {
    /// Returns all distilled settings of the grid.
    pub fn settings(&self) -> Vec<Setting> {
        let mut all = Vec::new();
        for recipe in &self.recipes {
            for &labelled in &self.labelled {
                for &noise in &self.noise {
                    for &augmentation in &self.augmentations {
                        for teacher in &self.teachers {
                            for distillation in self.distillations(teacher) {
                                let (distillation, recipe) = (Some(distillation), recipe.clone());
                                all.push(Setting { distillation, labelled, noise, augmentation, recipe });
                            }
                        }
                    }
                }
            }
        }
        all
    }

    /// Every method with every temperature and alpha. `argmax` has no temperature. Methods of features have neither,
    /// and compare with the course's teacher alone.
    fn distillations(&self, teacher: &TeacherLabels) -> Vec<Distillation> {
        let mut all = Vec::new();
        for &method in &self.methods {
            match method {
                SweepMethod::Features(method) if *teacher == TeacherLabels::All => {
                    all.push(Distillation::by_features(method, teacher.clone()));
                }
                SweepMethod::Features(_) => {}
                SweepMethod::Logits(method) if self.published => {
                    all.extend(Distillation::published(method, teacher.clone()));
                }
                SweepMethod::Logits(_) => {
                    let temperatures = if method == Method::Argmax.into() { &[1.0][..] } else { &self.temperatures };
                    let grid = temperatures.iter().flat_map(|&t| self.alphas.iter().map(move |&alpha| (t, alpha)));
                    all.extend(grid.map(|(temperature, alpha)| Distillation {
                        method,
                        temperature,
                        alpha,
                        teacher: teacher.clone(),
                        published: false,
                    }));
                }
            }
        }
        all
    }

    /// Whether the grid has a method that compares logits, and so temperatures and alphas.
    pub(crate) fn compares_logits(&self) -> bool {
        self.methods.iter().any(|method| method.logits().is_some())
    }

    /// Returns every run, seed after seed: the whole grid is run once before any of it is repeated.
    pub(super) fn all_runs(&self) -> Vec<(Setting, u64)> {
        let mut once: Vec<Setting> = Vec::new();
        for setting in self.settings() {
            for setting in [setting.alone(), setting] {
                if !once.contains(&setting) {
                    once.push(setting);
                }
            }
        }
        self.seeds.iter().flat_map(|&seed| once.iter().map(move |setting| (setting.clone(), seed))).collect()
    }

    /// The layer of the student that a method compares.
    pub(super) fn student_layer(&self, method: SweepMethod) -> String {
        let usual = || method.usual_layer(Student::COMPARED_LAYERS);
        self.layers.as_ref().map_or_else(usual, |[student, _]| student.clone())
    }

    /// The layer of its teacher that a method compares.
    pub(super) fn teacher_layer(&self, method: SweepMethod, arch: Arch) -> String {
        let usual = || method.usual_layer(arch.compared_layers());
        self.layers.as_ref().map_or_else(usual, |[_, teacher]| teacher.clone())
    }

    /// The names of the teachers from elsewhere.
    pub(super) fn elsewhere(&self) -> impl Iterator<Item = &String> {
        self.teachers.iter().filter_map(|teacher| match teacher {
            TeacherLabels::Elsewhere(name) => Some(name),
            TeacherLabels::All | TeacherLabels::Student => None,
        })
    }

    /// Refuses a grid with a value that is out of its range or does not go together with another one.
    pub(crate) fn check(&self, data: &Dataset) -> Result<()> {
        let (classes, images) = (data.classes.len(), data.train.len());
        let wrong = |what: String| Err(Error::Input(format!("sweep {}: {what}", self.name)));
        if self.published && self.epochs > 0 {
            let logits = self.methods.iter().filter_map(|method| method.logits());
            logits.map(Criterion::published).try_for_each(|criterion| criterion.check(self.epochs))?;
        }
        let axes = [
            ("seeds", faults(&self.seeds)),
            ("methods", faults(&self.methods)),
            ("temperatures", faults(&self.temperatures)),
            ("alphas", faults(&self.alphas)),
            ("labelled", faults(&self.labelled)),
            ("noise", faults(&self.noise)),
            ("augmentations", faults(&self.augmentations)),
            ("teachers", faults(&self.teachers)),
            ("recipes", faults(&self.recipes)),
        ];
        if let Some((axis, fault)) = axes.into_iter().find_map(|(axis, fault)| Some((axis, fault?))) {
            return wrong(format!("{axis} {fault}"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(plain) {
            return wrong(
                "the name names a folder: use letters, digits, -, _ and ., and no dot at the beginning".into(),
            );
        }
        self.methods.iter().filter_map(|method| method.features()).try_for_each(FeatureMethod::check)?;
        self.temperatures.iter().try_for_each(|&t| check_temperature(t).map(drop))?;
        self.alphas.iter().try_for_each(|&a| check_alpha(a).map(drop))?;
        check_learning_rate(self.learning_rate)?;
        if self.epochs > 0 {
            self.recipes.iter().try_for_each(|r| r.check(self.epochs).and(r.check_classes(classes as i64)))?;
        }
        Views::cross(self.shift)?;
        self.augment.check(data.train.size())?;
        let online = self.augmentations.contains(&Augmentation::Online);
        let elsewhere: Vec<&String> = self.elsewhere().collect();
        let of_student = self.teachers.contains(&TeacherLabels::Student);
        let augmented = self.augmentations.iter().any(|a| *a != Augmentation::None);
        let dkd = self.methods.iter().any(|m| matches!(m, SweepMethod::Logits(Method::Dkd { .. })));
        let features = self.methods.iter().find(|method| method.features().is_some());
        let outside = |values: &[f64], range: &dyn Fn(f64) -> bool| values.iter().copied().find(|v| !range(*v));
        let faults = [
            (self.epochs == 0).then(|| "epochs must be at least 1, got 0".into()),
            (self.batch_size == 0).then(|| "a batch must have at least 1 image, got 0".into()),
            outside(&self.labelled, &|share| share > 0.0 && share <= 1.0)
                .map(|share| format!("a labelled share must be in (0, 1], got {share}; try 0.05")),
            outside(&self.noise, &|share| (0.0..1.0).contains(&share))
                .map(|share| format!("a share of wrong labels must be in [0, 1), got {share}; try 0.3")),
            (dkd && self.labelled.iter().any(|share| *share < 1.0))
                .then(|| "dkd looks at the label of every image; leave it out, or set labelled to 1".into()),
            (self.layers.is_some() && features.is_none()).then(|| {
                "layers are compared by hint, attention and relational alone; add one of them, or leave layers out"
                    .into()
            }),
            features.filter(|_| augmented).map(|method| {
                format!("{method} has the teacher's features of the images as they are; sweep it without augmentation")
            }),
            features.filter(|_| !self.teachers.contains(&TeacherLabels::All)).map(|method| {
                format!("{method} compares with features of the course's teacher; add TeacherLabels::All to teachers")
            }),
            (online == (self.augment == Augment::default())).then(|| {
                "the augmentation online draws what augment says, and nothing else does: give both or neither".into()
            }),
            (self.augment.mixup.is_some() && self.labelled.iter().any(|share| *share < 1.0))
                .then(|| "mixup mixes the labels of two images; leave it out, or set labelled to 1".into()),
            (augmented && of_student).then(|| {
                "a teacher of the student's labels has no logits of views; sweep it without augmentation".into()
            }),
            (augmented && !elsewhere.is_empty()).then(|| {
                "a teacher from elsewhere has logits of the images as they are; sweep it without augmentation".into()
            }),
            elsewhere
                .iter()
                .find(|name| name.is_empty() || !name.chars().all(plain))
                .map(|name| format!("the teacher {name:?} is in names of folders: use letters, digits, -, _ and .")),
            self.images
                .filter(|taken| !(1..=images).contains(taken))
                .map(|taken| format!("images must be 1 to {images}, got {taken}; None takes all")),
            (self.omitted.is_some() && self.noise.iter().any(|share| *share > 0.0))
                .then(|| "wrong labels may name the omitted class, so students would see it; leave out noise".into()),
            (self.omitted.is_some() && of_student).then(|| {
                "a teacher of the student's labels does not know the omitted class; take TeacherLabels::All".into()
            }),
            self.omitted
                .filter(|class| !(0..classes as i64).contains(class))
                .map(|class| format!("omitted class {class}; classes are 0 to {}", classes - 1)),
        ];
        faults.into_iter().flatten().next().map_or(Ok(()), wrong)
    }
}

/// Writes how many settings and seeds there are, and what difference they could find.
impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (settings, seeds) = (self.settings().len(), self.seeds.len());
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        write!(f, "{}: {settings} setting{} with {seeds} seed{}", self.name, plural(settings), plural(seeds))?;
        match Verdict::detectable(seeds, settings) {
            None => f.write_str("; one seed gives no verdict, take 3 or more"),
            Some(found) => write!(
                f,
                "; finds differences of {:.1} points or more, if they vary by {:.0} points from seed to seed",
                100.0 * found,
                100.0 * Verdict::SPREAD
            ),
        }
    }
}

/// Returns what is wrong with the values of an axis: it is empty, or holds a value twice.
pub(super) fn faults<T: PartialEq + fmt::Debug>(values: &[T]) -> Option<String> {
    if values.is_empty() {
        return Some("is empty; give at least one value".into());
    }
    let (_, twice) = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value))?;
    Some(format!("holds {twice:?} twice: the same run twice proves nothing; give each value once"))
}
