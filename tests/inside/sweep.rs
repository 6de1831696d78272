//! Sweeps: pairs by seed, axes, files that are found again.

use super::{dataset, tiny};
use kdlab::data::{Augment, Dataset, Transform};
use kdlab::models::{Arch, Backbone, Layers, Model, Student, head};
use kdlab::study::*;
use kdlab::train::*;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use tch::{Device, nn};

/// A row of a CSV file by its columns.
type Row = std::collections::HashMap<String, String>;

/// A backbone without trained weights, its features, and a head: all that a sweep needs, and small.
struct Bench {
    data: Dataset,
    backbone: Backbone,
    head: Model,
    train: CachedTensor,
    validation: CachedTensor,
    transform: Transform,
    cache: PathBuf,
    student: fn(&nn::Path) -> Layers,
}

impl Bench {
    fn new(folder: &Path) -> Self {
        let data = dataset(folder, 0);
        let backbone = Backbone::untrained(Arch::ResNet18, Device::Cpu, 1).unwrap();
        let transform = Transform::imagenet(32);
        let quiet = Listener::default();
        let features = |split| backbone_features(&backbone, split, &transform, 64, None, &quiet).unwrap();
        let (train, validation) = (features(&data.train), features(&data.validation));
        let mut head = head(512, 10, Device::Cpu, 0).unwrap();
        let seen = |split, features| Examples::features(split, features).unwrap();
        let (a, b) = (seen(&data.train, &train), seen(&data.validation, &validation));
        let options = FitOptions { epochs: 20, learning_rate: 1e-2, ..FitOptions::default() };
        fit(&mut head, &a, &b, &Criterion::cross_entropy(), &options).unwrap();
        Self { data, backbone, head, train, validation, transform, cache: folder.join("cache"), student: tiny }
    }

    fn run(&self, sweep: &Sweep, folder: &Path) -> kdlab::Result<SweepReport> {
        self.heard(sweep, folder, Arc::new(|_, _| ()))
    }

    fn heard(&self, sweep: &Sweep, folder: &Path, listener: SweepListener) -> kdlab::Result<SweepReport> {
        self.taught(sweep, folder, listener, &[])
    }

    fn taught(
        &self,
        sweep: &Sweep,
        folder: &Path,
        listener: SweepListener,
        others: &[OtherTeacher],
    ) -> kdlab::Result<SweepReport> {
        let inputs = SweepInputs {
            data: &self.data,
            device: Device::Cpu,
            profile: "test",
            backbone: &self.backbone,
            head: &self.head,
            teacher_transform: &self.transform,
            train_features: &self.train,
            validation_features: &self.validation,
            others,
            head_options: &FitOptions { epochs: 3, ..FitOptions::default() },
            student: &self.student,
            cache: &self.cache,
            afterwards: "report",
        };
        sweep.run(&inputs, folder, &listener, None)
    }
}

fn small() -> Sweep {
    Sweep { epochs: 2, batch_size: 16, learning_rate: 1e-2, size: 16, shift: 2, ..Sweep::default() }
}

#[test]
fn a_grid_is_run_once_paired_by_seed_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let sweep =
        Sweep { temperatures: vec![1.0, 4.0], alphas: vec![0.0, 0.5], methods: vec![Method::Kd.into()], ..small() };
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let listener: SweepListener = Arc::new(move |report: &SweepReport, now: &SweepProgress| {
        ear.lock().unwrap().push((report.runs.len(), now.running.len(), now.total));
    });
    let report = bench.heard(&sweep, &folder.path().join("s"), listener).unwrap();
    assert_eq!(report.runs.len(), 3 * 5, "four settings and the student alone, three seeds");
    assert_eq!(report.conditions.len(), 64, "a class's board takes it");
    assert!(heard.lock().unwrap().iter().all(|(done, running, total)| done + running <= 15 && *total == 15));
    // On the CPU a fit takes one thread, and fits run side by side, unless others compute on the machine.
    let most = heard.lock().unwrap().iter().map(|(_, running, _)| *running).max();
    assert!(most.is_some_and(|most| most <= tch::get_num_threads() as usize), "{most:?}");
    assert!(report.runs.iter().all(|run| run.threads == Some(1)));
    let names: Vec<_> = report.runs[..5].iter().map(|r| r.setting.to_string()).collect();
    assert_eq!(names, ["alone", "kd-T1-alpha0", "kd-T1-alpha0.5", "kd-T4-alpha0", "kd-T4-alpha0.5"]);
    // Paired: with alpha = 0 the teacher has no say, and first weights and batches are those of the student alone.
    let compared = report.compare(Measure::Test).unwrap();
    for c in &compared {
        let alpha = c.setting.distillation.as_ref().unwrap().alpha;
        assert_eq!(c.verdict.differences.iter().all(|d| *d == 0.0), alpha == 0.0, "{}", c.setting);
        assert!((c.verdict.confidence - 0.9875).abs() < 1e-12, "four comparisons");
    }
    assert_eq!(compared.len(), 4);
    let grid = report.grid(Measure::Validation);
    assert_eq!((grid.len(), grid[0].len(), grid[0][0], grid[1][0]), (2, 2, Some(0.0), Some(0.0)));
    // Nothing is trained twice, in this grid or in a larger one; nothing that was done is lost in a smaller one.
    let again = bench.run(&sweep, &folder.path().join("s")).unwrap();
    assert_eq!(again, report);
    let more = Sweep { seeds: vec![0, 1, 2, 3], ..sweep.clone() };
    let larger = bench.run(&more, &folder.path().join("s")).unwrap();
    let kept = |run: &SweepRun| report.runs.iter().any(|r| r == run);
    assert_eq!((larger.runs.len(), larger.runs.iter().filter(|r| kept(r)).count()), (20, 15));
    let fewer = Sweep { seeds: vec![0, 1], ..sweep.clone() };
    assert_eq!(bench.run(&fewer, &folder.path().join("s")).unwrap().runs.len(), 10);
    assert_eq!(SweepReport::load(folder.path().join("s/sweep.json")).unwrap().runs.len(), 20);
    assert_eq!(bench.run(&sweep, &folder.path().join("s")).unwrap(), report);
    assert!(!folder.path().join("s/alone-seed0/checkpoint.safetensors").exists());
    assert!(folder.path().join("s/alone-seed0/best.safetensors").exists());
    // Other lengths are other runs.
    let longer = bench.run(&Sweep { epochs: 3, ..sweep }, &folder.path().join("s")).unwrap();
    assert!(longer.runs.iter().all(|r| !kept(r)));
}

#[test]
fn a_failed_fit_ends_the_sweep_and_keeps_the_runs_before_it() {
    static PASSES_LEFT: AtomicI64 = AtomicI64::new(150);
    fn fragile(vs: &nn::Path) -> Layers {
        tiny(vs).func("fragile", |x| {
            assert!(PASSES_LEFT.fetch_sub(1, Ordering::SeqCst) > 0, "this layer broke");
            x.shallow_clone()
        })
    }
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench { student: fragile, ..Bench::new(folder.path()) };
    let sweep = Sweep { seeds: (0..10).collect(), ..small() };
    let error = bench.run(&sweep, &folder.path().join("s")).unwrap_err().to_string();
    assert!(error.contains("this layer broke"), "{error}");
    let before = SweepReport::load(folder.path().join("s/sweep.json")).unwrap().runs;
    assert!((1..20).contains(&before.len()), "{} runs", before.len());
    PASSES_LEFT.store(i64::MAX, Ordering::SeqCst);
    let after = bench.run(&sweep, &folder.path().join("s")).unwrap().runs;
    assert!(after.len() == 20 && before.iter().all(|run| after.contains(run)));
}

#[test]
fn labels_noise_views_and_teachers_are_axes() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let sweep = Sweep {
        seeds: vec![0, 1],
        labelled: vec![0.3],
        noise: vec![0.0, 0.5],
        teachers: vec![TeacherLabels::All, TeacherLabels::Student],
        ..small()
    };
    let report = bench.run(&sweep, &folder.path().join("labels")).unwrap();
    assert_eq!(report.runs.len(), 2 * 2 * 3);
    let teacher = |noise: f64, of: TeacherLabels| {
        let of = |r: &&SweepRun| {
            r.setting.noise == noise && r.setting.distillation.as_ref().is_some_and(|t| t.teacher == of)
        };
        report.runs.iter().find(of).and_then(|r| r.teacher).unwrap()
    };
    assert_eq!(teacher(0.0, TeacherLabels::All), teacher(0.5, TeacherLabels::All));
    assert!(teacher(0.5, TeacherLabels::Student) < teacher(0.5, TeacherLabels::All), "it learned from wrong labels");
    let views = Sweep { seeds: vec![0, 1], augmentations: vec![Augmentation::Same, Augmentation::Apart], ..small() };
    let report = bench.run(&views, &folder.path().join("views")).unwrap();
    let names: Vec<_> = report.runs[..3].iter().map(|r| r.setting.to_string()).collect();
    assert_eq!(names, ["alone-augmented", "kd-T4-alpha0.9-same-view", "kd-T4-alpha0.9-other-view"]);
    assert!(std::fs::read_dir(&bench.cache).unwrap().any(|f| f.unwrap().path().extension().unwrap() == "safetensors"));
    let augment = Augment { flip: true, crop: Some(0.5), mixup: Some(0.5), ..Augment::default() };
    let online = Sweep { seeds: vec![0], augmentations: vec![Augmentation::Online], augment, ..small() };
    let run = |sweep: &Sweep| bench.run(sweep, &folder.path().join("online")).unwrap();
    let report = run(&online);
    let names: Vec<_> = report.runs.iter().map(|r| r.setting.to_string()).collect();
    assert_eq!(names, ["alone-augmented-anew", "kd-T4-alpha0.9-online"]);
    assert_eq!(run(&online), report);
    let other = Augment { crop: Some(0.6), ..online.augment.clone() };
    assert!(run(&Sweep { augment: other, ..online }).runs.iter().all(|run| !report.runs.contains(run)));
}

/// A teacher from elsewhere that knows every label, beside the course's.
#[test]
fn a_teacher_from_elsewhere_is_one_of_the_teachers() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let sure = |split: &kdlab::data::Split| {
        let logits = split.labels().unwrap().one_hot(10).to_kind(tch::Kind::Float) * 8.0;
        CachedTensor::new(split, logits, "sure").unwrap()
    };
    let (train, validation) = (sure(&bench.data.train), sure(&bench.data.validation));
    let others = [OtherTeacher { name: "oracle", train: &train, validation: &validation }];
    let elsewhere = || TeacherLabels::Elsewhere("oracle".into());
    let sweep =
        Sweep { seeds: vec![0, 1], teachers: vec![TeacherLabels::All, elsewhere()], omitted: Some(2), ..small() };
    let run = |sweep: &Sweep, others: &[OtherTeacher]| {
        bench.taught(sweep, &folder.path().join("s"), Arc::new(|_, _| ()), others)
    };
    let report = run(&sweep, &others).unwrap();
    let names: Vec<_> = report.runs[..3].iter().map(|r| r.setting.to_string()).collect();
    assert_eq!(names, ["alone", "kd-T4-alpha0.9", "kd-T4-alpha0.9-taught-by-oracle"]);
    assert_eq!((report.runs[2].teacher, report.runs[1].teacher < Some(1.0)), (Some(1.0), true));
    assert_ne!(report.runs[1].key, report.runs[2].key);
    assert!(report.table(Measure::Test).unwrap().to_string().contains("taught-by-oracle"));
    assert_eq!(SweepReport::load(folder.path().join("s/sweep.json")).unwrap(), report);

    let swapped = [OtherTeacher { name: "oracle", train: &validation, validation: &train }];
    let nine = CachedTensor::new(&bench.data.train, train.tensor.narrow(1, 0, 9), "nine").unwrap();
    let few = [OtherTeacher { name: "oracle", train: &nine, validation: &validation }];
    let augmented = Sweep { augmentations: vec![Augmentation::Same], ..sweep.clone() };
    let odd = Sweep { teachers: vec![TeacherLabels::Elsewhere("a/b".into())], ..sweep.clone() };
    for (sweep, others, says) in [
        (&sweep, &[][..], "no teacher \"oracle\" among those given (none); give it to sweep_with"),
        (&sweep, &swapped, "logits of oracle were computed for other data"),
        (&sweep, &few, "[images, 10] is needed"),
        (&augmented, &others, "logits of the images as they are; sweep it without augmentation"),
        (&odd, &others, "use letters, digits"),
    ] {
        let text = run(sweep, others).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn recipes_are_an_axis_and_older_reports_have_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let sgd = UpdateRule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };
    let cosine = Recipe { optimizer: sgd, schedule: Schedule::Cosine, average: Some(0.5), ..Recipe::default() };
    let sweep = Sweep { seeds: vec![0, 1], recipes: vec![Recipe::default(), cosine.clone()], ..small() };
    let report = bench.run(&sweep, &folder.path().join("s")).unwrap();
    let names: Vec<_> = report.runs[..4].iter().map(|r| r.setting.to_string()).collect();
    let recipe = "sgd0.9-nesterov-cosine-average0.5";
    let wanted = ["alone", "kd-T4-alpha0.9", &format!("alone-{recipe}"), &format!("kd-T4-alpha0.9-{recipe}")];
    assert_eq!((report.runs.len(), names), (8, wanted.map(String::from).to_vec()));
    assert_ne!(report.runs[0].key, report.runs[2].key);
    // Each distilled student is compared with the student alone of its own recipe.
    let compared = report.compare(Measure::Validation).unwrap();
    for (c, alone) in compared.iter().zip([0, 2]) {
        assert_eq!((c.alone.len(), c.alone[0]), (2, report.runs[alone].validation));
    }
    assert_eq!(bench.run(&sweep, &folder.path().join("s")).unwrap(), report, "nothing is trained twice");
    let history = History::load(folder.path().join(format!("s/alone-{recipe}-seed0/history.json"))).unwrap();
    assert_eq!(history.recipe, cosine);
    // Reports that were written before there were recipes.
    let plain = bench.run(&Sweep { seeds: vec![0], ..small() }, &folder.path().join("p")).unwrap();
    let json = serde_json::to_string(&plain).unwrap();
    let start = json.find(r#""recipes":["#).unwrap();
    let end = start + json[start..].find("],").unwrap() + 2;
    let old = json.replace(&json[start..end], "");
    assert_eq!(serde_json::from_str::<SweepReport>(&old).unwrap(), plain);
    for (recipe, says) in [
        (Recipe { warmup: 2.0, ..Recipe::default() }, "fewer than the run, which has 2, got 2"),
        (Recipe { class_weights: Some(vec![1.0]), ..Recipe::default() }, "1 class weights for 10 classes"),
    ] {
        let e = bench.run(&Sweep { recipes: vec![recipe], ..small() }, &folder.path().join("r")).unwrap_err();
        assert!(e.to_string().contains(says), "{e}");
    }
}

#[test]
fn methods_are_swept_as_their_authors_ran_them() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let methods = [Method::Kd, Method::StandardisedKd, Method::Argmax].map(SweepMethod::from).to_vec();
    let sweep = Sweep { seeds: vec![0, 1], methods, published: true, temperatures: vec![1.0, 2.0], ..small() };
    let report = bench.run(&sweep, &folder.path().join("s")).unwrap();
    let names: Vec<_> = report.runs[..4].iter().map(|r| r.setting.to_string()).collect();
    assert_eq!(names, ["alone", "kd-published", "standardised-kd-published", "argmax-published"]);
    let of = |run: usize| report.runs[run].setting.distillation.as_ref().map(|d| (d.temperature, d.alpha));
    assert_eq!((of(1), of(2)), (Some((4.0, 0.9)), Some((2.0, 9.0 / 9.1))));
    assert_eq!((report.runs.len(), report.compare(Measure::Test).unwrap().len()), (8, 3));
    assert!(report.map(Measure::Test).err().unwrap().to_string().contains("its authors' temperature and weights"));
    let dkd = Sweep { methods: vec!["dkd".parse().unwrap()], published: true, ..small() };
    let e = bench.run(&dkd, &folder.path().join("d")).unwrap_err().to_string();
    assert!(e.contains("raises its soft term over 20 epochs, and the run has 2"), "{e}");
}

#[test]
fn methods_of_features_are_swept_beside_those_of_logits() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench { student: |vs| Student::Small.layers(vs, 10, 16), ..Bench::new(folder.path()) };
    let named = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<SweepMethod>>();
    let methods = named(&["kd", "dkd", "hint", "attention(500)", "relational"]);
    let sweep = Sweep { seeds: vec![0, 1], methods, temperatures: vec![1.0, 4.0], ..small() };
    let runs = folder.path().join("s");
    let report = bench.run(&sweep, &runs).unwrap();
    let names: Vec<_> = report.runs[..8].iter().map(|r| r.setting.to_string()).collect();
    let logits = ["alone", "kd-T1-alpha0.9", "kd-T4-alpha0.9", "dkd-T1-alpha0.9", "dkd-T4-alpha0.9"];
    assert_eq!(names, [&logits[..], &["hint", "attention(500)", "relational"]].concat(), "features have no T");
    assert_eq!(report.runs.len(), 16);
    let compared = report.compare(Measure::Test).unwrap();
    assert_eq!((compared.len(), compared[4].alone.len(), compared[4].setting.to_string()), (7, 2, "hint".into()));
    assert!(report.table(Measure::Validation).unwrap().to_string().contains("attention(500)"));
    // Each learns from another loss, so each gets other weights from the same first ones.
    let weights = |name: &str| std::fs::read(runs.join(format!("{name}-seed0/best.safetensors"))).unwrap();
    assert!((0..8).all(|i| (0..i).all(|j| weights(&names[i]) != weights(&names[j]))));
    let history = History::load(runs.join("hint-seed1/history.json")).unwrap();
    assert_eq!((history.criterion.as_str(), history.records[0].hyperparameters.alpha), ("cross-entropy+hint", None));
    assert_eq!(bench.run(&sweep, &runs).unwrap(), report, "nothing is trained twice");
    assert_eq!(SweepReport::load(runs.join("sweep.json")).unwrap(), report);

    let table = folder.path().join("sweep.csv");
    report.save_csv(&table).unwrap();
    let rows = csv::Reader::from_path(&table).unwrap().into_deserialize().collect::<Result<Vec<Row>, _>>().unwrap();
    assert_eq!((rows.len(), &rows[0]["method"], &rows[7]["method"]), (16, &"alone".into(), &"relational".into()));
    for (row, run) in rows.iter().zip(&report.runs) {
        let number = |column: &str| row[column].parse::<f64>().unwrap();
        assert_eq!((row["setting"].clone(), number("seed")), (run.setting.to_string(), run.seed as f64));
        assert_eq!((number("test_accuracy"), number("recall_9")), (run.test, run.recall[9]));
    }
    assert_eq!([&rows[2]["temperature"], &rows[5]["temperature"], &rows[5]["teacher"]], ["4", "", "all"]);

    // Other layers are other runs. Features alone have no map.
    let layers = Some(["relu2".to_owned(), "layer2.1.relu".to_owned()]);
    let other = Sweep { methods: named(&["hint"]), layers, ..sweep.clone() };
    let found = bench.run(&other, &runs).unwrap();
    assert_ne!(found.runs[1].key, report.runs[5].key);
    assert_eq!(found.runs[0], report.runs[0], "the student alone is the same");
    assert!(found.map(Measure::Test).err().unwrap().to_string().contains("compares features"));
    let augmentations = vec![Augmentation::Same];
    let layers = |student: &str, teacher: &str| Some([student.to_owned(), teacher.to_owned()]);
    for (sweep, says) in [
        (Sweep { augmentations, ..other.clone() }, "hint has the teacher's features of the images as they are"),
        (Sweep { teachers: vec![TeacherLabels::Student], ..other.clone() }, "add TeacherLabels::All to teachers"),
        (
            Sweep { layers: layers("relu9", "layer2.1.relu"), ..other.clone() },
            "student has no layer \"relu9\"; it has conv1",
        ),
        (
            Sweep { layers: layers("relu2", "layer9"), ..other.clone() },
            "resnet18 has no layer \"layer9\"; it has conv1",
        ),
        (Sweep { size: 3, ..other.clone() }, "student: images of 3x3 pixels are too small"),
    ] {
        let text = bench.run(&sweep, &folder.path().join("r")).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
        assert!(!folder.path().join("r").exists(), "{says}: something was trained");
    }
    let text = "hints".parse::<SweepMethod>().unwrap_err().to_string();
    assert!(text.contains("no method named \"hints\"; there are kd, dkd") && text.contains("relational"), "{text}");
    for wrong in ["hint(-1)", "relational(1)", "attention()", "hint(1"] {
        assert!(wrong.parse::<SweepMethod>().is_err(), "{wrong}");
    }
}

#[test]
fn an_omitted_class_is_never_seen_and_may_come_back_by_its_bias() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let sweep = Sweep { omitted: Some(3), seeds: vec![0, 1], epochs: 6, ..small() };
    let report = bench.run(&sweep, &folder.path().join("s")).unwrap();
    let of_three =
        Vec::<i64>::try_from(bench.data.train.labels().unwrap()).unwrap().iter().filter(|l| **l == 3).count();
    assert_eq!(report.images, bench.data.train.len() - of_three);
    for run in &report.runs {
        let corrected = run.corrected.as_ref().unwrap();
        assert!(corrected.recall[3] >= run.recall[3] || corrected.bias < 0.0);
    }
    assert!(report.runs.iter().filter(|r| r.setting.distillation.is_none()).all(|r| r.recall[3] == 0.0));
    assert_eq!(report.compare(Measure::CorrectedRecall).unwrap().len(), 1);
    assert!(report.table(Measure::OmittedRecall).unwrap().to_string().contains("omitted class recognised"));
    let plain = bench.run(&Sweep { seeds: vec![0, 1], ..small() }, &folder.path().join("p")).unwrap();
    assert!(plain.compare(Measure::CorrectedTest).unwrap_err().to_string().contains("set omitted in sweep"));
}

#[test]
fn wrong_settings_are_refused_before_anything_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let dkd: Method = "dkd".parse().unwrap();
    for (sweep, says) in [
        (Sweep { seeds: vec![], ..small() }, "seeds is empty"),
        (Sweep { temperatures: vec![4.0, 0.0], ..small() }, "temperature must be > 0, got 0"),
        (Sweep { alphas: vec![1.5], ..small() }, "alpha must be in [0, 1], got 1.5"),
        (Sweep { labelled: vec![0.0], ..small() }, "labelled share must be in (0, 1], got 0"),
        (Sweep { noise: vec![1.0], ..small() }, "wrong labels must be in [0, 1), got 1"),
        (Sweep { methods: vec![dkd.into()], labelled: vec![0.5], ..small() }, "dkd looks at the label of every image"),
        (Sweep { omitted: Some(10), ..small() }, "omitted class 10; classes are 0 to 9"),
        (Sweep { images: Some(1_000), ..small() }, "images must be 1 to 64, got 1000"),
        (Sweep { images: Some(0), ..small() }, "images must be 1 to 64, got 0"),
        (Sweep { omitted: Some(3), noise: vec![0.0, 0.3], ..small() }, "wrong labels may name the omitted class"),
        (
            Sweep { omitted: Some(3), teachers: vec![TeacherLabels::Student], ..small() },
            "does not know the omitted class",
        ),
        (Sweep { augmentations: vec![Augmentation::Online], ..small() }, "give both or neither"),
        (Sweep { augment: Augment { flip: true, ..Augment::default() }, ..small() }, "give both or neither"),
        (
            Sweep { augment: Augment { jitter: 2.0, ..Augment::default() }, ..small() },
            "colour jitter must be in [0, 1), got 2",
        ),
        (
            Sweep {
                augmentations: vec![Augmentation::Online],
                augment: Augment { mixup: Some(0.2), ..Augment::default() },
                labelled: vec![0.5],
                ..small()
            },
            "mixup mixes the labels of two images; leave it out, or set labelled to 1",
        ),
        (Sweep { epochs: 0, ..small() }, "epochs must be at least 1"),
        (Sweep { name: "../out".into(), ..small() }, "letters, digits"),
    ] {
        let error = bench.run(&sweep, &folder.path().join("s")).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!folder.path().join("s").exists(), "{says}");
    }
}

#[test]
fn settings_that_come_to_the_same_fit_are_two_runs_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    // Of 64 images, both shares of wrong labels round to none.
    let sweep = Sweep { seeds: vec![0, 1], noise: vec![0.0, 1e-5], ..small() };
    let first = bench.run(&sweep, &folder.path().join("s")).unwrap();
    let again = bench.run(&sweep, &folder.path().join("s")).unwrap();
    let settings = |report: &SweepReport| report.runs.iter().map(|run| run.setting.to_string()).collect::<Vec<_>>();
    assert_eq!(settings(&first), settings(&again));
    assert_eq!(again.compare(Measure::Test).unwrap().len(), 2);
    let kept = SweepReport::load(folder.path().join("s/sweep.json")).unwrap();
    assert_eq!(settings(&kept), settings(&first));
}

#[test]
fn a_finished_run_is_not_overwritten_by_a_sweep_with_other_settings() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let runs = folder.path().join("s");
    bench.run(&Sweep { seeds: vec![0], ..small() }, &runs).unwrap();
    let weights = std::fs::read(runs.join("alone-seed0/best.safetensors")).unwrap();
    bench.run(&Sweep { seeds: vec![0], epochs: 3, ..small() }, &runs).unwrap();
    assert_eq!(std::fs::read(runs.join("alone-seed0-1/best.safetensors")).unwrap(), weights);
    let before = bench.run(&Sweep { seeds: vec![0], ..small() }, &runs).unwrap();
    assert_eq!(before.runs.len(), 2, "runs of the first sweep are known");
    assert!(!runs.join("alone-seed0-2").exists(), "and not made again");
}

#[test]
fn hard_answers_have_no_temperature() {
    let methods = vec![Method::Kd.into(), Method::Argmax.into()];
    let sweep = Sweep { methods, temperatures: vec![1.0, 4.0], alphas: vec![1.0], ..Sweep::default() };
    let names: Vec<String> = sweep.settings().iter().map(Setting::to_string).collect();
    assert_eq!(names, ["kd-T1-alpha1", "kd-T4-alpha1", "argmax-alpha1"]);
}

/// The table and the verdict of runs whose numbers are given.
#[test]
fn reports_say_what_the_runs_came_to() {
    let sweep = Sweep { name: "given".into(), ..Sweep::default() };
    let run = |setting: &Setting, seed, test| SweepRun {
        setting: setting.clone(),
        seed,
        key: format!("{setting}{seed}"),
        best_epoch: 1,
        validation: test,
        test,
        recall: vec![],
        corrected: None,
        teacher: None,
        seconds: 1.5,
        images_per_second: 100.0,
        threads: Some(1),
        cpu: None,
        resumed_at: 0,
    };
    let setting = &sweep.settings()[0];
    let runs = [(0, 0.40, 0.46), (1, 0.42, 0.475), (2, 0.41, 0.475)];
    let runs = runs.iter().flat_map(|&(s, a, d)| [run(&setting.alone(), s, a), run(setting, s, d)]).collect();
    let (profile, data) = ("laptop".to_owned(), "CIFAR-10".to_owned());
    let report = SweepReport { sweep, profile, data, images: 5_000, conditions: String::new(), runs, stopped: None };
    let table = report.table(Measure::Test).unwrap().to_string();
    // Differences 6, 5.5 and 6.5 points: mean 6, deviation 0.5, 4.303 * 0.5 / sqrt(3) = 1.24.
    for part in ["kd-T4-alpha0.9", "41.0", "47.0", "+6.0 ± 0.5", "+4.8 to +7.2", "95.0", "BETTER"] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
    assert_eq!(report.headline(), "given: CIFAR-10, 5000 images at 32 px, 10 epochs, 6 runs, 9 s of training");
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<SweepReport>(&json).unwrap(), report);
    let twice = SweepReport { sweep: Sweep { seeds: vec![0, 1, 1], ..report.sweep.clone() }, ..report.clone() };
    let error = twice.compare(Measure::Test).unwrap_err().to_string();
    assert!(error.contains("seeds holds 1 twice"), "{error}");
    let unknown = json.replace("\"alphas\"", "\"alpha\"");
    assert!(serde_json::from_str::<SweepReport>(&unknown).is_err(), "a misspelt axis is not passed over");
}

#[test]
fn repeated_values_are_refused_and_no_spread_gives_no_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let cases = [
        (Sweep { seeds: vec![2, 2, 2], ..small() }, "seeds holds 2 twice"),
        (Sweep { temperatures: vec![4.0, 4.0], ..small() }, "temperatures holds 4.0 twice"),
        (Sweep { alphas: vec![0.9, 0.5, 0.9], ..small() }, "alphas holds 0.9 twice"),
        (Sweep { labelled: vec![1.0, 1.0], ..small() }, "labelled holds 1.0 twice"),
    ];
    for (sweep, said) in cases {
        let error = bench.run(&sweep, &folder.path().join("sweep")).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let verdict = Verdict::new(&[0.40, 0.40, 0.40], &[0.42, 0.42, 0.42], 1).unwrap();
    assert_eq!(verdict.decision, Decision::Undecided);
}

#[test]
fn a_damaged_report_is_set_aside_and_its_runs_are_collected_again() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let sweep = folder.path().join("sweep");
    let first = bench.run(&small(), &sweep).unwrap();
    let path = sweep.join("sweep.json");
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    let again = bench.run(&small(), &sweep).unwrap();
    // The same seconds: no run was made anew.
    assert_eq!(again, first);
    assert_eq!(std::fs::read(sweep.join("sweep.json.damaged-1")).unwrap(), text[..text.len() / 2]);
    assert_eq!(SweepReport::load(&path).unwrap(), first);
}

#[test]
fn a_second_sweep_of_the_same_folder_says_who_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new(folder.path());
    let sweep = folder.path().join("sweep");
    std::fs::create_dir(&sweep).unwrap();
    let held = std::fs::File::create(sweep.join("sweep.lock")).unwrap();
    held.lock().unwrap();
    std::fs::write(sweep.join("sweep.lock"), "process 4711 on box\n").unwrap();
    let error = bench.run(&small(), &sweep).unwrap_err().to_string();
    assert!(error.contains("already running: process 4711 on box; wait"), "{error}");
    drop(held);
    bench.run(&small(), &sweep).unwrap();
}
