//! The SQLite file of a class: people, their pairs and their bets. What a request wrote is on disk before it is
//! answered.

use crate::post::{Join, Pair, Post, Study, words};
use anyhow::{Context, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Most people of a class, and most of them from one address of the network; a hub's kernels share one.
const MOST_PEOPLE: [u32; 2] = [500, 200];
/// Most pairs of one person.
const MOST_PAIRS: u32 = 1000;
/// Seeds that each person gets. The first are those of every sweep that names none.
const SEEDS_EACH: u64 = 3;

/// Letters of a board's code: none is easily read as another.
const LETTERS: &[u8] = b"ABCDEFGHJKMNPQRSTUVWXYZ23456789";
const CODE_LENGTH: usize = 8;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS class (code TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS person (
        place INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        address TEXT NOT NULL,
        name TEXT,
        folded TEXT UNIQUE
    );
    CREATE TABLE IF NOT EXISTS study (
        number INTEGER PRIMARY KEY,
        text TEXT NOT NULL UNIQUE,
        question TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS pair (
        person INTEGER NOT NULL REFERENCES person ON DELETE CASCADE,
        study INTEGER NOT NULL REFERENCES study,
        setting TEXT NOT NULL,
        seed INTEGER NOT NULL,
        alone REAL NOT NULL,
        distilled REAL NOT NULL,
        time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
        UNIQUE (person, study, setting, seed)
    );
    CREATE TABLE IF NOT EXISTS bet (
        person INTEGER NOT NULL REFERENCES person ON DELETE CASCADE,
        question TEXT NOT NULL,
        points REAL NOT NULL,
        UNIQUE (person, question)
    );
";

/// Why a request changed nothing.
pub enum Refusal {
    /// What the person can do something about.
    Person(String),
    /// The file can't be read or written.
    File(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal::File(error.into())
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Person(why.into()))
}

/// A pair on the board.
pub struct Row {
    pub study: i64,
    pub setting: String,
    pub seed: i64,
    pub alone: f64,
    pub distilled: f64,
    pub name: String,
    pub place: i64,
    pub time: String,
}

/// Everything on the board, in the order in which it came.
pub struct All {
    pub people: u32,
    pub studies: BTreeMap<i64, Study>,
    pub rows: Vec<Row>,
    /// On which sweep, by its words, and points.
    pub bets: Vec<(String, f64)>,
}

/// What became of a post.
pub struct Kept {
    pub study: i64,
    pub new: usize,
    /// Pairs that were there with other values.
    pub differing: Vec<String>,
}

/// A class's file, open.
pub struct Store {
    file: Connection,
    code: String,
}

impl Store {
    /// Opens the file of a class, or begins one with a new code.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> Result<Self> {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let mut file = Connection::open(path)?;
            file.busy_timeout(Duration::from_secs(5))?;
            // A post is answered when it is on disk, so that neither kill -9 nor a power cut loses it.
            file.execute_batch("PRAGMA synchronous = EXTRA; PRAGMA foreign_keys = ON;")?;
            let begin = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
            begin.execute_batch(TABLES)?;
            let code = begin.query_row("SELECT code FROM class", [], |row| row.get(0)).optional()?;
            let code = match code {
                Some(code) => code,
                None => {
                    let letter = |_| char::from(LETTERS[rand::random_range(0..LETTERS.len())]);
                    let code: String = (0..CODE_LENGTH).map(letter).collect();
                    begin.execute("INSERT INTO class VALUES (?)", [&code])?;
                    code
                }
            };
            begin.commit()?;
            Ok(Self { file, code })
        };
        let remedy = "close what else has it open, or give another file with --file, in a folder that you may write to";
        open().with_context(|| format!("cannot open {} as the file of a board; {remedy}", path.display()))
    }

    pub fn code(&self) -> &str {
        &self.code
    }

    /// Adds the people who are new, with their bets, and returns their seeds.
    pub fn join(&mut self, join: &Join, address: &str) -> Result<Vec<u64>, Refusal> {
        self.check_code(&join.code)?;
        let change = self.file.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let place = person(&change, &join.id, address)?;
        bet(&change, place, &join.bets)?;
        change.commit()?;
        let first = place.cast_unsigned() * SEEDS_EACH;
        Ok((first..first + SEEDS_EACH).collect())
    }

    /// Adds the pairs of a post that are not there yet.
    pub fn post(&mut self, post: &Post, address: &str) -> Result<Kept, Refusal> {
        self.check_code(&post.code)?;
        let change = self.file.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let place = person(&change, &post.id, address)?;
        call(&change, place, &post.name)?;
        bet(&change, place, &post.bets)?;
        let study = post.study();
        let text = serde_json::to_string(&study)?;
        let question = words(&study.sweep.name);
        change.execute("INSERT OR IGNORE INTO study (text, question) VALUES (?, ?)", [&text, &question])?;
        let study = change.query_row("SELECT number FROM study WHERE text = ?", [&text], |row| row.get(0))?;
        let (mut new, mut differing) = (0, Vec::new());
        for Pair { setting, seed, alone, distilled } in &post.pairs {
            let (setting, seed) = (setting.to_string(), seed.cast_signed());
            let key = params![place, study, setting, seed];
            let sql = "SELECT alone, distilled FROM pair WHERE person = ? AND study = ? AND setting = ? AND seed = ?";
            match change.query_row(sql, key, |row| Ok((row.get(0)?, row.get(1)?))).optional()? {
                None => {
                    let sql = "INSERT INTO pair (person, study, setting, seed, alone, distilled) VALUES (?,?,?,?,?,?)";
                    change.execute(sql, params![place, study, setting, seed, alone, distilled])?;
                    new += 1;
                }
                Some(there) if there == (*alone, *distilled) => (),
                Some(_) => differing.push(format!("{setting} seed {seed}")),
            }
        }
        let count: u32 = change.query_row("SELECT count(*) FROM pair WHERE person = ?", [place], |row| row.get(0))?;
        if count > MOST_PAIRS {
            return refuse(format!("a person has at most {MOST_PAIRS} pairs on the board"));
        }
        change.commit()?;
        Ok(Kept { study, new, differing })
    }

    fn check_code(&self, code: &str) -> Result<(), Refusal> {
        if code.eq_ignore_ascii_case(&self.code) {
            return Ok(());
        }
        refuse("this is not the board's code; take the one on its page, or ask your instructor")
    }

    /// Removes the people of this name with their pairs and bets, and returns how many they were.
    pub fn remove(&self, name: &str) -> Result<usize> {
        Ok(self.file.execute("DELETE FROM person WHERE folded = ?", [name.to_lowercase()])?)
    }

    /// A number that changes when another connection changes the file.
    pub fn version(&self) -> Result<i64> {
        Ok(self.file.query_row("PRAGMA data_version", [], |row| row.get(0))?)
    }

    /// Reads the whole board.
    pub fn all(&self) -> Result<All> {
        let people = self.file.query_row("SELECT count(*) FROM person", [], |row| row.get(0))?;
        let mut studies = BTreeMap::new();
        let mut found = self.file.prepare("SELECT number, text FROM study")?;
        for study in found.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))? {
            let (number, text) = study?;
            studies.insert(number, serde_json::from_str(&text).context("a study of another version")?);
        }
        let sql = "SELECT study, setting, seed, alone, distilled, name, place, time
                   FROM pair JOIN person ON person = place ORDER BY pair.rowid";
        let mut found = self.file.prepare(sql)?;
        let rows = found.query_map([], |row| {
            Ok(Row {
                study: row.get(0)?,
                setting: row.get(1)?,
                seed: row.get(2)?,
                alone: row.get(3)?,
                distilled: row.get(4)?,
                name: row.get::<_, Option<String>>(5)?.unwrap_or_default(),
                place: row.get(6)?,
                time: row.get(7)?,
            })
        })?;
        let rows = rows.collect::<rusqlite::Result<_>>()?;
        let mut found = self.file.prepare("SELECT question, points FROM bet ORDER BY rowid")?;
        let bets = found.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
        Ok(All { people, studies, rows, bets })
    }
}

/// The place of a person, who gets one if there is none yet.
fn person(change: &Transaction, id: &str, address: &str) -> Result<i64, Refusal> {
    let place = change.query_row("SELECT place FROM person WHERE id = ?", [id], |row| row.get(0)).optional()?;
    if let Some(place) = place {
        return Ok(place);
    }
    let sql = "SELECT count(*), coalesce(sum(address = ?), 0) FROM person";
    let there: [u32; 2] = change.query_row(sql, [address], |row| Ok([row.get(0)?, row.get(1)?]))?;
    if there.iter().zip(MOST_PEOPLE).any(|(there, most)| *there >= most) {
        return refuse("the board is full; tell your instructor, who can take people off it");
    }
    change.execute("INSERT INTO person (id, address) VALUES (?, ?)", [id, address])?;
    Ok(change.last_insert_rowid())
}

/// Gives a person a name that nobody else has.
fn call(change: &Transaction, place: i64, name: &str) -> Result<(), Refusal> {
    let folded = name.to_lowercase();
    let other = "SELECT 1 FROM person WHERE folded = ? AND place <> ?";
    if change.query_row(other, params![folded, place], |_| Ok(())).optional()?.is_some() {
        return refuse(format!("somebody else is called {name} already; take another name, such as \"{name} 2\""));
    }
    change.execute("UPDATE person SET name = ?, folded = ? WHERE place = ?", params![name, folded, place])?;
    Ok(())
}

/// Keeps bets on sweeps of which the person has posted no result yet.
fn bet(change: &Transaction, place: i64, bets: &BTreeMap<String, f64>) -> Result<(), Refusal> {
    let known = "SELECT 1 FROM pair JOIN study ON study = number WHERE person = ? AND question = ?";
    for (name, points) in bets {
        let question = words(name);
        if change.query_row(known, params![place, question], |_| Ok(())).optional()?.is_none() {
            change.execute("INSERT OR REPLACE INTO bet VALUES (?, ?, ?)", params![place, question, points])?;
        }
    }
    Ok(())
}
