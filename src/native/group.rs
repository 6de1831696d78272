//! Processes that train together, by libtorch's c10d. `group.cpp` calls it, checked by the C++ compiler.

use super::{Failure, Handle, check, handle, text};
use crate::Result;
use std::ffi::{CString, c_char, c_void};
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::ptr::null_mut;
use std::time::Duration;
use tch::Tensor;

type Raw = *mut c_void;

// The same order and types as in `group.cpp`.
unsafe extern "C" {
    fn kdlab_group_connect(
        host: *const c_char,
        port: u16,
        socket: i32,
        prefix: *const c_char,
        milliseconds: i64,
        result: *mut Raw,
    ) -> Failure;
    fn kdlab_group_first(group: Raw, key: *const c_char, value: *const c_char, result: *mut *mut c_char) -> Failure;
    fn kdlab_group_join(
        group: Raw,
        rank: i32,
        size: i32,
        address: *const c_char,
        is_interface: bool,
        gpu: bool,
        milliseconds: i64,
    ) -> Failure;
    fn kdlab_group_sum(group: Raw, tensor: Handle) -> Failure;
    fn kdlab_group_leave(group: Raw);
}

/// Who keeps the store in which processes find each other.
pub(crate) enum Keeper {
    /// Another process.
    Other,
    /// This one, for every machine that reaches it.
    Everybody,
    /// This one, at a socket that it listens to already.
    Socket(TcpListener),
}

/// Where gloo listens for the others.
pub(crate) enum Listen {
    Address(IpAddr),
    Interface(String),
}

/// A connection to the store and, once joined, to the other processes. Dropping it closes both.
pub(crate) struct Connection(Raw);

// SAFETY: c10d's objects may be used from any thread, by one at a time.
unsafe impl Send for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: it is released once, here.
        unsafe { kdlab_group_leave(self.0) }
    }
}

impl Connection {
    /// Connects to the store; its keys begin with `prefix`.
    pub fn open(host: &str, port: u16, keeper: Keeper, prefix: &str, timeout: Duration) -> Result<Self> {
        let socket = match keeper {
            Keeper::Other => -1,
            Keeper::Everybody => -2,
            Keeper::Socket(listener) => listener.into_raw_fd(),
        };
        let (host, prefix, mut raw) = (c_text(host), c_text(prefix), null_mut());
        // SAFETY: the texts outlive the call, and the pointer is to `raw`.
        check(unsafe {
            kdlab_group_connect(host.as_ptr(), port, socket, prefix.as_ptr(), milliseconds(timeout), &mut raw)
        })?;
        Ok(Self(raw))
    }

    /// Writes a value to the store, if the key has none yet. Returns the value that it has then.
    pub fn first(&self, key: &str, value: &str) -> Result<String> {
        let (key, value, mut found) = (c_text(key), c_text(value), null_mut());
        // SAFETY: as above; the text that is found belongs to this call.
        unsafe {
            check(kdlab_group_first(self.0, key.as_ptr(), value.as_ptr(), &mut found))?;
            Ok(text(found))
        }
    }

    /// Connects to the other processes. All of them call this, and from then on the same functions in the same order.
    pub fn join(&self, rank: usize, size: usize, listen: &Listen, gpu: bool, timeout: Duration) -> Result<()> {
        let (address, is_interface) = match listen {
            Listen::Address(address) => (c_text(&address.to_string()), false),
            Listen::Interface(name) => (c_text(name), true),
        };
        let (rank, size) = (rank as i32, size as i32);
        // SAFETY: the address outlives the call.
        check(unsafe {
            kdlab_group_join(self.0, rank, size, address.as_ptr(), is_interface, gpu, milliseconds(timeout))
        })
    }

    /// Replaces a dense tensor by its sum over all processes.
    pub fn sum(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: the handle is tch's own.
        check(unsafe { kdlab_group_sum(self.0, handle(tensor)) })
    }
}

fn milliseconds(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)
}

/// A text for C++, without the zeros that would end it early.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}
