//! Tables as CSV files.

use super::atomic;
use crate::{Error, Result};
use std::path::Path;

/// Writes a table with a row of names above the others, which have as many cells.
pub(crate) fn write_csv(path: &Path, names: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let mut table = csv::Writer::from_writer(Vec::new());
    let failed = |e: String| Error::Io(format!("writing {}: {e}", path.display()));
    table.write_record(names).map_err(|e| failed(e.to_string()))?;
    rows.iter().try_for_each(|row| table.write_record(row)).map_err(|e| failed(e.to_string()))?;
    let bytes = table.into_inner().map_err(|e| failed(e.to_string()))?;
    atomic::write_bytes(path, &bytes)
}

/// The shortest text that reads back as the same number; empty for `None`.
pub(crate) fn cell(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}
