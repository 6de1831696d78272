//! What participants send, and which of it is refused.

use kdlab::study::{Setting, Sweep, TeacherLabels};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most pairs in one post.
const MOST_PAIRS: usize = 200;
/// Most bets of one person.
const MOST_BETS: usize = 30;
/// JavaScript and SQLite hold seeds below this exactly.
const SEEDS: u64 = 1 << 53;

/// Who joins, with the bets so far.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    pub code: String,
    pub id: String,
    #[serde(default)]
    pub bets: BTreeMap<String, f64>,
}

/// The paired runs of one report.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Post {
    pub code: String,
    pub id: String,
    #[serde(default)]
    pub bets: BTreeMap<String, f64>,
    pub name: String,
    profile: String,
    data: String,
    images: usize,
    conditions: String,
    sweep: Sweep,
    pub pairs: Vec<Pair>,
}

/// Two students of one seed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    pub setting: Setting,
    pub seed: u64,
    /// Test accuracy of the student alone, in [0, 1].
    pub alone: f64,
    /// Test accuracy of the distilled student, in [0, 1].
    pub distilled: f64,
}

/// What pairs have in common that are pooled: everything of the sweep but its seeds, its grid and the precision, which
/// is a matter of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Study {
    pub profile: String,
    pub data: String,
    pub images: usize,
    pub conditions: String,
    pub sweep: Sweep,
}

impl Post {
    pub fn study(&self) -> Study {
        let grid = Sweep::default();
        let sweep = Sweep {
            seeds: grid.seeds,
            methods: grid.methods,
            temperatures: grid.temperatures,
            alphas: grid.alphas,
            published: grid.published,
            labelled: grid.labelled,
            noise: grid.noise,
            augmentations: grid.augmentations,
            teachers: grid.teachers,
            recipes: grid.recipes,
            precision: grid.precision,
            ..self.sweep.clone()
        };
        let (profile, data, conditions) = (self.profile.clone(), self.data.clone(), self.conditions.clone());
        Study { profile, data, images: self.images, conditions, sweep }
    }

    /// Refuses what no report of `lab.sweep` holds, and profiles that this board does not take.
    pub fn check(&self, profiles: &[String]) -> Result<(), String> {
        check_person(&self.id, &self.bets)?;
        check_name(&self.name)?;
        if !profiles.contains(&self.profile) {
            return Err(format!(
                "it takes runs of the profile {}, and these are of {:?}; KDLAB_PROFILE chooses another",
                profiles.join(" or "),
                shown(&self.profile)
            ));
        }
        let digest = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !digest(&self.conditions) {
            return Err("the digest of images and teacher must be 64 hex digits; post what lab.sweep returned".into());
        }
        if self.data.is_empty() || self.data.chars().count() > 80 || self.data.chars().any(char::is_control) {
            return Err("the name of the data set must have 1 to 80 characters; post what lab.sweep returned".into());
        }
        if !plain(&self.sweep.name) {
            return Err("a sweep's name has 1 to 40 letters, digits, -, _ and .".into());
        }
        if !(1..=MOST_PAIRS).contains(&self.pairs.len()) {
            return Err(format!("a post has 1 to {MOST_PAIRS} pairs, and this one has {}", self.pairs.len()));
        }
        self.pairs.iter().try_for_each(Pair::check)
    }
}

impl Pair {
    fn check(&self) -> Result<(), String> {
        let Some(how) = &self.setting.distillation else {
            return Err("a pair's setting must say how its student was distilled".into());
        };
        if let TeacherLabels::Elsewhere(teacher) = &how.teacher
            && !plain(teacher)
        {
            return Err("a teacher's name has 1 to 40 letters, digits, -, _ and .".into());
        }
        if self.setting.to_string().len() > 200 {
            return Err("a setting's name has at most 200 letters".into());
        }
        if self.seed >= SEEDS {
            return Err(format!("a seed must be below 2^53, got {}; take a smaller one", self.seed));
        }
        let outside = [self.alone, self.distilled].into_iter().find(|share| !(0.0..=1.0).contains(share));
        outside.map_or(Ok(()), |share| Err(format!("an accuracy must be 0 to 1, got {share}")))
    }
}

impl Join {
    pub fn check(&self) -> Result<(), String> {
        check_person(&self.id, &self.bets)
    }
}

fn check_person(id: &str, bets: &BTreeMap<String, f64>) -> Result<(), String> {
    if id.len() != 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("an id must be 32 hex digits; remove board.json in the folder of your runs, and join again".into());
    }
    if bets.len() > MOST_BETS {
        return Err(format!("a person has at most {MOST_BETS} bets; remove bets.json in the folder of your runs"));
    }
    if let Some((name, points)) = bets.iter().find(|(_, points)| !(-100.0..=100.0).contains(*points)) {
        return Err(format!("a bet must be -100 to 100 points, got {points} for {:?}", shown(name)));
    }
    Ok(())
}

/// Letters of any alphabet, so that everybody can write their name, and nothing that HTML, a spreadsheet or a terminal
/// takes for more than text.
fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_alphanumeric() || " -_.".contains(c);
    let long = name.chars().count();
    let begins = name.chars().next().is_some_and(char::is_alphanumeric);
    if !(1..=24).contains(&long) || !begins || name.ends_with(' ') || !name.chars().all(allowed) {
        return Err(format!(
            "a name has 1 to 24 letters, digits, spaces, -, _ and ., and begins with a letter or digit; got {:?}",
            shown(name)
        ));
    }
    Ok(())
}

fn plain(name: &str) -> bool {
    (1..=40).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Enough of a text for a message.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The words of a name, by which a bet on `the article's step` finds the sweep `article-step`.
pub fn words(name: &str) -> String {
    let name = name.to_lowercase().replace("'s", "");
    let words = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !["", "the"].contains(word));
    words.collect::<Vec<_>>().join(" ").chars().take(40).collect()
}
