//! What happens before the first cell: the processes of a kernel, and what they find.

pub mod inner;
pub mod outline;
