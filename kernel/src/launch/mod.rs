//! What happens before the first cell: the kernel's processes and their environment.

pub mod environment;
pub mod interpreter;
pub mod kernelspec;
pub mod outline;
pub mod reserve;
