//! Cells: their source, its compilation, the child that runs them, and its output.

pub mod advice;
pub mod child;
pub mod compile;
pub mod failures;
pub mod flood;
pub mod handover;
pub mod interrupt;
pub mod names;
pub mod output;
pub mod replaced;
pub mod report;
pub mod stderr;
pub mod syntax;
