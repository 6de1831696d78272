//! The share of a GPU's memory that a kernel may take, where several people use one GPU.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};

use crate::tools;

/// Names the memory of each kernel, such as `8G`.
pub const MEMORY: &str = "KDLAB_GPU_MEMORY";

/// Tells the lab the share in words, for people.
const SHARE: &str = "KDLAB_GPU_SHARE";

/// Where libtorch reads its settings of the GPU's memory.
const SETTINGS: &str = "PYTORCH_CUDA_ALLOC_CONF";

/// Returns the variables with which libtorch takes no more than the memory that `KDLAB_GPU_MEMORY` names. There are
/// none if it is unset, or if there is no GPU.
pub fn limit() -> Result<Vec<(&'static str, OsString)>> {
    let Some(named) = tools::variable(MEMORY) else { return Ok(vec![]) };
    let mine = match size(&named.to_string_lossy()) {
        Ok(size) => size,
        Err(why) => bail!("{MEMORY}: {why}"),
    };
    let query = ["--query-gpu=memory.total", "--format=csv,noheader,nounits"];
    let total = tools::first_line(Command::new("nvidia-smi").args(query)).and_then(|line| line.trim().parse().ok());
    let Some(total) = total else { return Ok(vec![]) };
    let others = tools::variable(SETTINGS).unwrap_or_default().to_string_lossy().into_owned();
    Ok(share(mine, total, &others))
}

/// Returns the variables for this many MiB of a GPU. A share among the other settings for libtorch wins.
fn share(mine: u64, total: u64, others: &str) -> Vec<(&'static str, OsString)> {
    const KEY: &str = "per_process_memory_fraction";
    if mine >= total || others.contains(KEY) {
        return vec![];
    }
    let comma = if others.is_empty() { "" } else { "," };
    let settings = format!("{others}{comma}{KEY}:{:.4}", mine as f64 / total as f64);
    let gigabytes = |size: u64| format!("{:.1}", size as f64 / 1024.0).trim_end_matches(".0").to_owned();
    let words = format!("{} of {} GB", gigabytes(mine), gigabytes(total));
    vec![(SETTINGS, settings.into()), (SHARE, words.into())]
}

/// Reads a size such as `8G` or `800M`, in MiB.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "G" | "GB" | "GIB" => Some(1024),
        "M" | "MB" | "MIB" => Some(1),
        _ => None,
    };
    let size = unit.and_then(|unit| digits.parse::<u64>().ok()?.checked_mul(unit)).filter(|size| *size > 0);
    size.ok_or_else(|| format!("{text:?} is no size: write one such as 8G or 800M"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!((size("8G"), size("8gb"), size("800M")), (Ok(8192), Ok(8192), Ok(800)));
        for wrong in ["", "8", "G", "0G", "-1G", "1.5G", "8T", "99999999999999999999G", "18446744073709551615G"] {
            assert!(size(wrong).is_err_and(|why| why.contains("such as 8G")), "{wrong}");
        }
    }

    #[test]
    fn libtorch_and_people_learn_the_share() {
        let set = |others: &str| share(8 << 10, 80 << 10, others);
        let expected = |settings: &str| vec![(SETTINGS, settings.into()), (SHARE, "8 of 80 GB".into())];
        assert_eq!(set(""), expected("per_process_memory_fraction:0.1000"));
        let others = "expandable_segments:True";
        assert_eq!(set(others), expected(&format!("{others},per_process_memory_fraction:0.1000")));
        assert_eq!(set("per_process_memory_fraction:0.5"), []);
        assert_eq!(share(81559, 81559, ""), [], "all of it");
        assert_eq!(share(6000, 81559, "")[1].1, "5.9 of 79.6 GB");
    }
}
