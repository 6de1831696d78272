//! Three words of memory that the server shares with the child. By the first one, Interrupt stops loops
//! ([`crate::cells::compile::stops`]); in the second one, a loop tells where it stopped; the third one
//! counts runs.

use std::fs::File;
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Names the address of the words in the child.
pub const ADDRESS: &str = "LIVE_KERNEL_INTERRUPT";

/// Name of the file in the private folder that both processes map.
const FILE: &str = "interrupt";
/// What stops; the value of the first word.
#[derive(Clone, Copy)]
pub enum Stop {
    /// Loops, closures and functions that call themselves.
    All = 1,
    /// Loops alone: code behind a fit that has stopped may use closures.
    Loops = 2,
}

/// Mark in the second word: a check has ended the cell, and stored no variables.
pub const LEFT: u32 = u32::MAX;

/// Mark in the second word: a check has ended a thread, or work that the cell goes on without.
pub const THREAD: u32 = u32::MAX - 1;

const LENGTH: usize = size_of::<[AtomicU32; 3]>();

/// The words, as the server sees them.
pub struct Interrupt(&'static [AtomicU32; 3]);

impl Interrupt {
    /// Makes the words in the private folder.
    pub fn new(folder: &Path) -> Result<Self> {
        let file = File::options().create(true).read(true).write(true).truncate(true).open(folder.join(FILE));
        let file = file.context("cannot make a file in the private folder")?;
        file.set_len(LENGTH as u64).context("cannot write in the private folder")?;
        // SAFETY: the mapping lives as long as this process, and is used by atomic operations only.
        Ok(Self(unsafe { map(&file)?.cast().as_ref() }))
    }

    /// Lets loops run, before a cell begins.
    pub fn clear(&self) {
        self.0[..2].iter().for_each(|word| word.store(0, Ordering::SeqCst));
        // Threads of earlier cells know by this number that they do not belong to the next one.
        self.0[2].fetch_add(1, Ordering::SeqCst);
    }

    pub fn set(&self, stop: Stop) {
        self.0[0].store(stop as u32, Ordering::SeqCst);
    }

    pub fn is_set(&self) -> bool {
        self.0[0].load(Ordering::SeqCst) != 0
    }

    /// Returns whether a check has ended the cell.
    pub fn has_ended_cell(&self) -> bool {
        ![0, THREAD].contains(&self.0[1].load(Ordering::SeqCst))
    }

    /// Returns whether a check has ended anything that belongs to the cell.
    pub fn has_ended_something(&self) -> bool {
        self.0[1].load(Ordering::SeqCst) != 0
    }

    /// Returns the number of the place at which a loop stopped that has kept its cell's variables.
    pub fn place(&self) -> Option<usize> {
        let mark = self.0[1].load(Ordering::SeqCst);
        mark.checked_sub(1).filter(|_| mark < THREAD).map(|place| place as usize)
    }
}

/// In the child: maps the words and puts their address into the environment.
pub fn share(folder: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(folder.join(FILE)).context("the kernel made no file")?;
    let words = map(&file)?;
    // SAFETY: called before there are other threads.
    unsafe { std::env::set_var(ADDRESS, (words.as_ptr() as usize).to_string()) };
    Ok(())
}

fn map(file: &File) -> Result<NonNull<std::ffi::c_void>> {
    // SAFETY: a new mapping at an address that the system chooses touches no other memory.
    let address = unsafe { mmap(null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0) };
    NonNull::new(address.context("cannot share memory with the cells")?).context("memory at address 0")
}
