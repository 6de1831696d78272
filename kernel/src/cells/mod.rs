//! Cells: their source, how it is compiled, the process that runs them, and what comes out of it.

pub mod advice;
pub mod child;
pub mod compile;
pub mod failures;
pub mod flood;
pub mod handover;
pub mod names;
pub mod output;
pub mod replaced;
pub mod report;
pub mod stderr;
pub mod syntax;
