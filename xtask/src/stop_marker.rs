// Put before the prelude of stock evcxr_jupyter. It reports a cell that failed through `?`, or by a panic, as ok; only its own
// control lines on stdout, which it keeps to itself, say otherwise. Those two lines are printed by generated code in the
// cell, through the macro below: it repeats them on stderr for people and for `cargo lab run`. All else goes to std.
// The pause lets the kernel forward stderr before it says that the cell is done: what comes later belongs to no cell.
#[allow(unused_macros)]
macro_rules! println {
    (@ended by $what:literal) => {
        ::std::eprintln!("^ this {} ended the cell: nothing after it ran", $what);
        ::std::thread::sleep(::std::time::Duration::from_millis(300));
    };
    ("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED) => {
        println!(@ended by "error");
        ::std::println!("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED)
    };
    ("EVCXR_PANIC_NOTIFICATION") => {
        println!(@ended by "panic");
        ::std::println!("EVCXR_PANIC_NOTIFICATION")
    };
    ($($any:tt)*) => { ::std::println!($($any)*) };
}
