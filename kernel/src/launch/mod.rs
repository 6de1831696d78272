//! What happens before the first cell: the processes of a kernel, and what they find.

pub mod environment;
pub mod inner;
pub mod kernelspec;
pub mod outline;
