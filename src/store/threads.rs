//! Threads of the CPU for a computation. Threads of two programs that want the same cores wait for each other most of
//! the time, so all fits and passes on a machine, of all its users, agree on who takes how many.

use super::variable;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use sysinfo::{CpuRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Pause between two looks at what the others do.
const PAUSE: Duration = Duration::from_millis(250);
/// Time over which the cores that other programs use are measured.
const WINDOW: Duration = Duration::from_secs(1);

/// Cores of the machine, of which a container or a control group may see fewer.
static CORES: LazyLock<usize> = LazyLock::new(|| {
    let cpus = System::new().map(|mut system| {
        system.refresh_cpu_list(CpuRefreshKind::nothing());
        system.cpus().len()
    });
    cpus.unwrap_or(1).max(1)
});

/// The share that a computation has of the cores.
///
/// Each computation holds a lock on a file in a folder that all users can write to; the lock ends with its process.
/// Everybody deals the cores to the claims in the same way, so nobody has to decide.
pub(crate) struct Share {
    folder: PathBuf,
    /// Its name and the lock. `None` if the folder cannot be written to: then nobody knows of this computation.
    file: Option<(OsString, File)>,
    claim: Claim,
    now: usize,
    looked: Instant,
    programs: Option<Programs>,
}

/// What a computation tells the others.
#[derive(Clone, Serialize, Deserialize)]
struct Claim {
    process: u32,
    /// Threads that it takes when it is alone, and when the others want as many as they can get.
    most: usize,
    least: usize,
    /// Its control group, and the cores that this group may use in all.
    group: String,
    limit: usize,
}

impl Share {
    /// Claims cores from now on, as many as libtorch takes. With `OMP_NUM_THREADS` it is always that number.
    pub(crate) fn take() -> Self {
        let shared = Path::new("/dev/shm");
        let parent = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        Self::take_in(&parent.join("kdlab-threads"), variable("OMP_NUM_THREADS").is_some())
    }

    /// [`Share::take`] with another folder. With `fixed` it is always as many as libtorch takes.
    fn take_in(folder: &Path, fixed: bool) -> Self {
        let wanted = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
        let limit = std::thread::available_parallelism().map_or(1, |n| n.get());
        let most = if fixed { wanted } else { wanted.min(limit) };
        let least = if fixed { most } else { 1 };
        let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let claim = Claim { process: std::process::id(), most, least, group, limit };
        let (file, folder, looked) = (claim.write(folder), folder.to_owned(), Instant::now());
        let mut share = Self { folder, file, claim, now: most, looked, programs: None };
        share.agree();
        share
    }

    /// Returns the share in cores, at least 1. It follows what the others do a few times a second.
    pub(crate) fn look(&mut self) -> usize {
        if self.claim.most > self.claim.least && self.looked.elapsed() >= PAUSE {
            let claims = self.agree();
            let mut processes: Vec<Pid> = claims.iter().map(|claim| Pid::from_u32(claim.process)).collect();
            processes.sort();
            processes.dedup();
            match &mut self.programs {
                Some(programs) => programs.measure(processes),
                None => self.programs = Programs::new(processes),
            }
            self.looked = Instant::now();
        }
        self.now
    }

    /// Finds out what all claims leave to this one, and returns them.
    fn agree(&mut self) -> Vec<Claim> {
        let mut claims = claims(&self.folder);
        let own = self.file.as_ref().map(|(name, _)| name);
        let place = claims.iter().position(|(name, _)| Some(name) == own).unwrap_or_else(|| {
            claims.push((OsString::new(), self.claim.clone()));
            claims.len() - 1
        });
        let claims: Vec<Claim> = claims.into_iter().map(|(_, claim)| claim).collect();
        let used = self.programs.as_ref().map_or(0, |programs| programs.used);
        self.now = match (claims.len(), used) {
            (1, 0) => self.claim.most,
            _ => deal(&claims, CORES.saturating_sub(used))[place],
        };
        claims
    }
}

/// libtorch's threads for a computation on this thread: its share. Dropping it gives libtorch back what it had.
pub(crate) struct Threads {
    /// `None` where libtorch has one thread: there is nothing to give up.
    share: Option<Share>,
    before: i32,
    now: usize,
}

impl Threads {
    pub(crate) fn take() -> Self {
        let before = tch::get_num_threads().max(1);
        let mut threads = Self { share: (before > 1).then(Share::take), before, now: before as usize };
        threads.look();
        threads
    }

    /// Follows the share, and returns the number of threads.
    pub(crate) fn look(&mut self) -> usize {
        if let Some(share) = self.share.as_mut().map(Share::look).filter(|share| *share != self.now) {
            self.set(share);
        }
        self.now
    }

    fn set(&mut self, threads: usize) {
        tch::set_num_threads(threads as i32);
        // libtorch also gives the last number to threads that begin later, which is not meant here.
        let before = self.before;
        let restored = std::thread::Builder::new().spawn(move || tch::set_num_threads(before));
        let _ = restored.map(std::thread::JoinHandle::join);
        self.now = threads;
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if self.now != self.before as usize {
            tch::set_num_threads(self.before);
        }
    }
}

impl Claim {
    /// Writes the claim into a file that no running computation holds, and locks it.
    fn write(&self, folder: &Path) -> Option<(OsString, File)> {
        if std::fs::create_dir(folder).is_ok() {
            // As the folder for temporary files: everybody may add a file, and change their own.
            let _ = std::fs::set_permissions(folder, Permissions::from_mode(0o1777));
        }
        let (user, text) = (rustix::process::getuid().as_raw(), serde_json::to_vec(self).ok()?);
        (0..256).find_map(|number| {
            let name = OsString::from(format!("{user}-{number}"));
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true).custom_flags(OFlags::NOFOLLOW.bits() as i32);
            let mut file = options.open(folder.join(&name)).ok()?;
            file.try_lock().ok()?;
            // Others read it, whatever the umask.
            file.set_permissions(Permissions::from_mode(0o644)).ok()?;
            file.set_len(0).and_then(|()| file.write_all(&text)).ok()?;
            Some((name, file))
        })
    }

    /// Reads a claim; `None` if no running computation holds it.
    fn read(path: &Path) -> Option<Self> {
        // Anybody can put anything here: no links, nothing that blocks, nothing long.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
        if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return None;
        }
        let mut text = Vec::new();
        file.take(10_000).read_to_end(&mut text).ok()?;
        let claim: Self = serde_json::from_slice(&text).ok()?;
        let most = claim.most.clamp(1, *CORES);
        Some(Self { most, least: claim.least.clamp(1, most), ..claim })
    }
}

/// The claims of all running computations by the names of their files, which are the order in which cores are dealt.
fn claims(folder: &Path) -> Vec<(OsString, Claim)> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut claims: Vec<_> = files.filter_map(|file| Some((file.file_name(), Claim::read(&file.path())?))).collect();
    claims.sort_by(|(a, _), (b, _)| a.cmp(b));
    claims
}

/// Deals the cores, one at a time in turn, to all claims that may have more.
fn deal(claims: &[Claim], cores: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = claims.iter().map(|claim| claim.least).collect();
    loop {
        let before: usize = dealt.iter().sum();
        let mut left = cores.saturating_sub(before);
        for (at, claim) in claims.iter().enumerate() {
            let group: usize = claims.iter().zip(&dealt).filter(|(c, _)| c.group == claim.group).map(|(_, n)| n).sum();
            if left > 0 && dealt[at] < claim.most && group < claim.limit {
                dealt[at] += 1;
                left -= 1;
            }
        }
        if dealt.iter().sum::<usize>() == before {
            return dealt;
        }
    }
}

/// The cores that programs use which take no part.
struct Programs {
    system: System,
    /// The processes that take part.
    processes: Vec<Pid>,
    since: Instant,
    /// Rounded.
    used: usize,
}

impl Programs {
    fn new(processes: Vec<Pid>) -> Option<Self> {
        let mut programs = Self { system: System::new().ok()?, processes, since: Instant::now(), used: 0 };
        programs.refresh();
        Some(programs)
    }

    fn refresh(&mut self) {
        let (some, what) = (ProcessesToUpdate::Some(&self.processes), ProcessRefreshKind::nothing().with_cpu());
        self.system.refresh_cpu_usage();
        self.system.refresh_processes_specifics(some, true, what);
        self.since = Instant::now();
    }

    fn measure(&mut self, processes: Vec<Pid>) {
        if self.since.elapsed() < WINDOW {
            return;
        }
        let same = processes == self.processes;
        self.processes = processes;
        self.refresh();
        // Of a process that has just begun to take part, nothing is known yet.
        if same {
            let ours: f32 = self.system.processes().values().map(|process| process.cpu_usage()).sum();
            let all = self.system.global_cpu_usage() * self.system.cpus().len() as f32;
            self.used = ((all - ours) / 100.0).round() as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(most: usize, group: &str, limit: usize) -> Claim {
        Claim { process: 1, most, least: 1, group: group.into(), limit }
    }

    #[test]
    fn cores_are_dealt_in_turn() {
        let alike = |n: usize, cores| deal(&vec![claim(16, "", 16); n], cores);
        assert_eq!(alike(1, 16), [16]);
        assert_eq!(alike(3, 16), [6, 5, 5]);
        assert_eq!(alike(4, 2), [1, 1, 1, 1], "nobody gets nothing");
        assert_eq!(alike(2, 0), [1, 1], "other programs use all cores");
        // What one does not want is left to the others.
        assert_eq!(deal(&[claim(1, "", 16), claim(16, "", 16), claim(3, "", 16)], 16), [1, 12, 3]);
        // Two computations of one container share what the container may use.
        assert_eq!(deal(&[claim(4, "a", 4), claim(4, "a", 4), claim(16, "b", 16)], 16), [2, 2, 12]);
        // A number that was set is taken, whatever the others want.
        let fixed = Claim { least: 8, ..claim(8, "", 16) };
        assert_eq!(deal(&[fixed, claim(16, "", 16)], 8), [8, 1]);
    }

    #[test]
    fn computations_share_the_cores_while_they_last() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made by the first");
        let mut first = Share::take_in(&folder, false);
        let alone = first.now;
        // What a dead process or a stranger has left there is nobody's claim.
        std::fs::write(folder.join("7-0"), b"{").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("7-1")).unwrap();
        let second = Share::take_in(&folder, false);
        assert_eq!(first.agree().len(), 2);
        assert_eq!(first.now, CORES.div_ceil(2).min(alone));
        assert_eq!(second.now, (*CORES / 2).clamp(1, alone));
        drop(second);
        assert_eq!((first.agree().len(), first.now), (1, alone));
        let fixed = Share::take_in(&folder, true);
        first.agree();
        assert_eq!((fixed.now, first.now), (tch::get_num_threads() as usize, 1));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&folder), 0o1777);
        assert!(claims(&folder).iter().all(|(name, _)| mode(&folder.join(name)) == 0o644));
        drop(first);
        // Where nobody can write, a computation is alone.
        let nowhere = Share::take_in(Path::new("/dev/null/x"), false);
        assert_eq!((nowhere.file.is_none(), nowhere.now), (true, alone));
    }

    #[test]
    fn a_thread_that_begins_during_a_fit_has_libtorchs_number() {
        let number = || std::thread::spawn(tch::get_num_threads).join().unwrap();
        let before = (tch::get_num_threads(), number());
        let mut threads = Threads { share: None, before: before.0, now: before.0 as usize };
        threads.set(before.0 as usize + 1);
        assert_eq!((tch::get_num_threads(), number()), (before.0 + 1, before.1));
        drop(threads);
        assert_eq!(tch::get_num_threads(), before.0);
    }
}
