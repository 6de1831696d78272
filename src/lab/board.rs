//! The class's board: a page for the projector that collects the paired runs of a room. `cargo lab board` starts it.

use crate::show::{Table, counted};
use crate::store::{self, atomic, http};
use crate::study::{Measure, SweepReport};
use crate::{Error, Lab, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Waits before a busy board is asked again.
const RETRIES: [u64; 4] = [1, 2, 3, 4];

/// Who this is for a board, and which board was joined; the file `board.json` in the folder of all runs.
#[derive(Serialize, Deserialize)]
struct Membership {
    /// A secret: whoever knows it may post under the same name.
    id: String,
    board: Option<Board>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Board {
    address: String,
    code: String,
}

#[derive(Deserialize)]
struct Joined {
    seeds: Vec<u64>,
}

#[derive(Deserialize)]
struct Posted {
    /// Number of pairs that the board did not have.
    new: usize,
    /// Pairs that it has with other values.
    differing: Vec<String>,
    /// What the class has found so far in each setting of the report.
    rows: Vec<Vec<String>>,
}

impl Lab {
    /// Joins the board of a class, with the address and the code that `cargo lab board` prints. Returns three
    /// seeds that nobody else in the class gets: runs of the same seed are nearly the same run, so only other seeds
    /// tell the class more. Where `KDLAB_BOARD` and `KDLAB_BOARD_CODE` name the board, [`Lab::post`] needs no `join`.
    ///
    /// # Errors
    /// When no board answers there, or the code is not its code.
    pub fn join(&self, address: &str, code: &str) -> Result<Vec<u64>> {
        // The projector's page has the code behind the address.
        let address = address.split('#').next().unwrap_or_default().trim().trim_end_matches('/');
        let scheme = if address.contains("://") { "" } else { "http://" };
        let board = Board { address: format!("{scheme}{address}"), code: code.trim().to_owned() };
        let id = self.member(true)?.id;
        let joined: Joined = board.send("join", json!({"id": id, "bets": self.kept_bets()?}))?;
        atomic::write_json(&self.member_file(), &Membership { id, board: Some(board) })?;
        Ok(joined.seeds)
    }

    /// Sends the paired runs of a sweep to the class's board, under a name of your choice: of each pair its setting,
    /// its seed and the two test accuracies; and your bets. Returns what the class has found so far in these settings,
    /// and the board's page shows it.
    ///
    /// The first post of a pair stands. Pairs that the board has already do no harm, so a report may be posted again.
    ///
    /// # Errors
    /// When the report holds no pair, or is of another machine; when no board was joined or none answers, and when the
    /// board refuses the post: the error says why. Nothing is lost then: run the cell again.
    pub fn post(&self, name: &str, report: &SweepReport) -> Result<Table> {
        if report.conditions.is_empty() {
            return Err(Error::Input(
                "this report is a stored one or of an earlier version, and does not say on which images it was made; \
                 post one that lab.sweep returned here"
                    .into(),
            ));
        }
        let pairs: Vec<Value> = (report.sweep.settings().iter())
            .flat_map(|setting| {
                let pairs = report.seeds_and_pairs(setting, Measure::Test).into_iter();
                pairs.map(move |(seed, alone, distilled)| {
                    json!({"setting": setting, "seed": seed, "alone": alone, "distilled": distilled})
                })
            })
            .collect();
        if pairs.is_empty() {
            return Err(Error::Input(format!(
                "sweep {} has no pair yet, a student alone and a distilled one of the same seed; run it to its end",
                report.sweep.name
            )));
        }
        let member = self.member(false)?;
        let Some(board) = member.board() else {
            return Err(Error::Input(
                "no board is known here; run `lab.join(\"http://...\", \"CODE\")?` with the address and the code that \
                 the board's page or your instructor shows"
                    .into(),
            ));
        };
        let posted: Posted = board.send(
            "post",
            json!({
                "id": member.id, "name": name, "bets": self.kept_bets()?, "profile": report.profile,
                "data": report.data, "images": report.images, "conditions": report.conditions, "sweep": report.sweep,
                "pairs": pairs,
            }),
        )?;
        println!("posted as {name}: {} at {}/", counted(posted.new, "new pair"), board.address);
        if !posted.differing.is_empty() {
            println!("posted before with other values, which stand: {}", posted.differing.join(", "));
        }
        let header = ["setting", "seeds", "people", "difference, points", "interval", "verdict of the class"];
        Ok(posted.rows.iter().fold(Table::new(&header), |table, row| table.row(row)))
    }

    /// Shows new bets on the board, if one was joined. A board that does not answer gets them with the next post.
    pub(super) fn show_bets(&self, bets: &BTreeMap<String, f64>) -> Result<()> {
        let member = self.member(false)?;
        if let Some(board) = member.board() {
            match board.send::<Joined>("join", json!({"id": member.id, "bets": bets})) {
                Ok(_) => println!("it is on the class's board"),
                Err(error) => println!("not on the class's board yet: {error}"),
            }
        }
        Ok(())
    }

    /// One file for all profiles, because it says who this is.
    fn member_file(&self) -> PathBuf {
        self.folder.with_file_name("board.json")
    }

    /// Reads who this is. Somebody new gets an id, which is kept if there is a board, or soon will be: `joining`.
    fn member(&self, joining: bool) -> Result<Membership> {
        if let Some(member) = self.known_member()? {
            return Ok(member);
        }
        let new = Membership { id: format!("{:032x}", rand::random::<u128>()), board: None };
        if !joining && new.board().is_none() {
            return Ok(new);
        }
        // Two kernels may join at once, and are one person.
        let _lock = atomic::lock(&self.folder.with_file_name(".board.lock"))?;
        if let Some(member) = self.known_member()? {
            return Ok(member);
        }
        atomic::write_json(&self.member_file(), &new)?;
        Ok(new)
    }

    fn known_member(&self) -> Result<Option<Membership>> {
        let path = self.member_file();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| Error::Data(format!("{} does not name a board: {e}; remove it", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("reading", &path, e)),
        }
    }
}

impl Membership {
    /// The board that was joined, or the one of the environment.
    fn board(&self) -> Option<Board> {
        let variable = |name| Some(store::variable(name)?.to_string_lossy().into_owned());
        let named = || Some(Board { address: variable("KDLAB_BOARD")?, code: variable("KDLAB_BOARD_CODE")? });
        self.board.clone().or_else(named)
    }
}

impl Board {
    /// Sends a request with the board's code, again if the board is busy, and reads the answer.
    fn send<T: for<'a> Deserialize<'a>>(&self, what: &str, mut request: Value) -> Result<T> {
        request["code"] = self.code.clone().into();
        let address = &self.address;
        let url = format!("{}/{what}", address.trim_end_matches('/'));
        let mut waits = RETRIES.iter();
        let (status, answer) = loop {
            let (status, answer) = http::post(&url, &request).map_err(|why| {
                Error::Network(format!(
                    "no board answers at {address} ({why}); nothing is lost: run the cell again when `cargo lab board` \
                     runs there, or lab.join(\"http://...\", \"CODE\")? with its new address"
                ))
            })?;
            match waits.next() {
                Some(seconds) if status == 429 => std::thread::sleep(Duration::from_secs(*seconds)),
                _ => break (status, answer),
            }
        };
        if let Some(why) = answer["error"].as_str() {
            return Err(Error::Input(format!("the board at {address} refuses: {why}")));
        }
        serde_json::from_value(answer).map_err(|_| {
            Error::Network(format!(
                "what answers at {address} is no board of this version (status {status}); look up the address again"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_kernels_that_join_at_once_are_one_person() {
        let runs = tempfile::tempdir().unwrap();
        let id = || {
            let mut lab = Lab::open().unwrap();
            lab.folder = runs.path().join("smoke");
            lab.member(true).unwrap().id
        };
        let ids: Vec<String> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(id)).collect();
            all.into_iter().map(|kernel| kernel.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
}
