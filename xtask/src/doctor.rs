//! `cargo lab doctor`: what was found, and a fix for each problem.
use crate::paths::Paths;
use anyhow::Result;
pub fn examine(_paths: &Paths) -> Result<()> {
    Ok(())
}
