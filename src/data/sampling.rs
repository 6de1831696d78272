//! Seeded random choices: which images belong to which split, which of them have a label, and in which order training
//! visits them. Each function depends on its arguments alone, so the same call returns the same on every machine.

use crate::{Error, Result};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Returns the sample indices `0..len` in random order, the same for the same `(len, seed, epoch)`.
pub fn shuffled(len: usize, seed: u64, epoch: u64) -> Vec<i64> {
    let mut order: Vec<i64> = (0..len as i64).collect();
    order.shuffle(&mut rng(Purpose::EpochOrder, seed, epoch));
    order
}

/// Cuts `order` into batches of `batch_size` sample indices. The last batch may be smaller.
///
/// # Errors
/// When `batch_size` is 0.
pub fn batches(order: &[i64], batch_size: usize) -> Result<Vec<Vec<i64>>> {
    if batch_size == 0 {
        return Err(Error::Input("batch size 0: a batch holds at least one image (64 is usual)".into()));
    }
    Ok(order.chunks(batch_size).map(<[i64]>::to_vec).collect())
}

/// What random numbers are for. Each purpose has its own generator, so that one choice does not change another.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    TestSplit = 1,
    ValidationSplit = 2,
    Subset = 3,
    FolderOrder = 4,
    EpochOrder = 5,
    LabelledSubset = 6,
    LabelNoise = 7,
    StudentView = 8,
    TeacherView = 9,
    NumberedView = 10,
    FreshView = 11,
    Mixing = 12,
    Dropout = 13,
}

/// Returns the generator of a purpose. `part` is the epoch or the class that it is for, or 0.
fn rng(purpose: Purpose, seed: u64, part: u64) -> ChaCha8Rng {
    generator(purpose, seed, part, 0)
}

/// Returns the generator of a purpose for one `item` of a `part`, such as a sample of an epoch.
pub(crate) fn generator(purpose: Purpose, seed: u64, part: u64, item: u64) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
    bytes[16..24].copy_from_slice(&part.to_le_bytes());
    bytes[24..].copy_from_slice(&item.to_le_bytes());
    ChaCha8Rng::from_seed(bytes)
}

/// Returns the seed of dropout for a batch of an epoch, on this process of a group.
pub(crate) fn dropout_seed(seed: u64, epoch: u64, batch: u64, rank: u64) -> i64 {
    let mut rng = generator(Purpose::Dropout, seed, epoch, batch);
    rng.set_stream(rank);
    rng.random()
}

/// Returns a uniform random number in `0..choices` for each of `len` samples.
pub(crate) fn draws(len: usize, choices: usize, purpose: Purpose, seed: u64, epoch: u64) -> Vec<i64> {
    let mut rng = rng(purpose, seed, epoch);
    (0..len).map(|_| rng.random_range(0..choices.max(1) as i64)).collect()
}

/// Returns `labels` with `round(len * fraction)` of them replaced by another class, each with equal probability.
pub(crate) fn noisy(labels: &[i64], classes: usize, fraction: f64, seed: u64) -> Vec<i64> {
    let mut rng = rng(Purpose::LabelNoise, seed, 0);
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.shuffle(&mut rng);
    let mut noisy = labels.to_vec();
    for &i in &order[..(labels.len() as f64 * fraction).round() as usize] {
        let other = rng.random_range(0..classes as i64 - 1);
        noisy[i] = if other >= labels[i] { other + 1 } else { other };
    }
    noisy
}

/// Returns the rows of a folder of images in random order.
pub(crate) fn shuffled_rows(mut rows: Vec<i64>, seed: u64) -> Vec<i64> {
    rows.shuffle(&mut rng(Purpose::FolderOrder, seed, 0));
    rows
}

/// Divides `rows` class by class in proportion into `(n picked rows, the other rows)`, both in the order of `rows`.
/// At least one row of every class is picked. With `Purpose::TestSplit` or `ValidationSplit`, one row stays
/// behind in every class that has at least two.
pub(crate) fn stratified(rows: &[i64], labels: &[i64], n: usize, purpose: Purpose, seed: u64) -> (Vec<i64>, Vec<i64>) {
    let classes = rows.iter().map(|&r| labels[r as usize] as usize + 1).max().unwrap_or(0);
    let mut members = vec![Vec::new(); classes];
    for &row in rows {
        members[labels[row as usize] as usize].push(row);
    }
    let counts: Vec<usize> = members.iter().map(Vec::len).collect();
    let hold_out = matches!(purpose, Purpose::TestSplit | Purpose::ValidationSplit);
    let mut picked = std::collections::HashSet::with_capacity(n);
    for (class, (members, quota)) in members.iter_mut().zip(quotas(&counts, n, hold_out)).enumerate() {
        members.shuffle(&mut rng(purpose, seed, class as u64));
        picked.extend(members[..quota].iter().copied());
    }
    rows.iter().partition(|row| picked.contains(row))
}

/// Returns how many rows of each class to pick for `n` in all: in proportion to `counts`, rounded by the
/// largest-remainder method (ties to the lower class), and at least one of each class that has any. With `leave_one`, a
/// class that has two or more keeps at least one.
fn quotas(counts: &[usize], n: usize, leave_one: bool) -> Vec<usize> {
    let total: usize = counts.iter().sum();
    let n = n.min(total);
    if total == 0 {
        return vec![0; counts.len()];
    }
    let mut quotas: Vec<usize> = counts.iter().map(|c| c * n / total).collect();
    let mut by_remainder: Vec<usize> = (0..counts.len()).collect();
    by_remainder.sort_by_key(|&k| std::cmp::Reverse(counts[k] * n % total));
    let missing = n - quotas.iter().sum::<usize>();
    for &k in by_remainder.iter().take(missing) {
        quotas[k] += 1;
    }
    for k in 0..counts.len() {
        if counts[k] > 0 && quotas[k] == 0 {
            quotas[k] = 1;
            // The class with the largest quota gives one up, if any has more than one.
            if let Some(largest) = (0..counts.len()).filter(|&j| quotas[j] > 1).max_by_key(|&j| (quotas[j], j)) {
                quotas[largest] -= 1;
            }
        }
        if leave_one && counts[k] > 1 && quotas[k] == counts[k] {
            quotas[k] -= 1;
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_proportional_and_leave_no_class_out() {
        let subset = |counts: &[usize], n| quotas(counts, n, false);
        assert_eq!(subset(&[100, 100, 100], 30), [10, 10, 10]);
        assert_eq!(subset(&[100, 100, 100], 31), [11, 10, 10]);
        assert_eq!(subset(&[1000, 10], 101), [100, 1]);
        assert_eq!(subset(&[1000, 3], 10), [9, 1]); // its share of the small class is 0.03
        assert_eq!(subset(&[2, 2], 3), [2, 1]);
        assert_eq!(quotas(&[2, 2], 3, true), [1, 1]);
        assert_eq!(subset(&[4, 0, 4], 4), [2, 0, 2]);
        assert_eq!(subset(&[3, 5], 8), [3, 5]);
        assert_eq!(subset(&[3, 5], 99), [3, 5]);
        assert_eq!(subset(&[5, 5, 5], 2), [1, 1, 1]);
        assert_eq!(subset(&[], 2), [0; 0]);
    }

    #[test]
    fn purposes_and_seeds_draw_different_rows() {
        let labels = vec![0; 100];
        let rows: Vec<i64> = (0..100).collect();
        let pick = |purpose, seed| stratified(&rows, &labels, 10, purpose, seed).0;
        assert_eq!(pick(Purpose::TestSplit, 0), pick(Purpose::TestSplit, 0));
        assert_ne!(pick(Purpose::TestSplit, 0), pick(Purpose::ValidationSplit, 0));
        assert_ne!(pick(Purpose::TestSplit, 0), pick(Purpose::TestSplit, 1));
    }
}
