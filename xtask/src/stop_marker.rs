// Comes before the prelude on stock evcxr_jupyter, which reports a cell that failed through `?` or a panic as ok.
// Only two control lines on stdout say otherwise, and evcxr_jupyter does not show them. Code that it generates in the
// cell prints them through the macro below, which repeats them on stderr for people and for `cargo lab run`.
// Everything else goes to std. The pause lets the kernel forward stderr before it says that the cell is done; later
// text belongs to no cell.
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
