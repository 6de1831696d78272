// Put before the prelude of every kernel. evcxr reports a cell that failed through `?`, or by a panic, as ok; only its own
// control lines on stdout, which it keeps to itself, say otherwise. Those two lines are printed by generated code in the
// cell, through the macro below: it repeats them on stderr for people and for `cargo lab run`. All else goes to std.
#[allow(unused_macros)]
macro_rules! println {
    ("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED) => {
        ::std::eprintln!("^ this error ended the cell: nothing after it ran");
        ::std::println!("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED)
    };
    ("EVCXR_PANIC_NOTIFICATION") => {
        ::std::eprintln!("^ this panic ended the cell: nothing after it ran");
        ::std::println!("EVCXR_PANIC_NOTIFICATION")
    };
    ($($any:tt)*) => { ::std::println!($($any)*) };
}
