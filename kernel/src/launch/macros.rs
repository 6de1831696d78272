// Put before the prelude of the live kernel.

// A cell that fails through `?` prints the error by this very call, in code that evcxr generates; the marks let the kernel
// tell it from all else on stderr. It takes them away, whoever made the call.
#[allow(unused_macros)]
macro_rules! eprintln {
    ("{}", $error:ident) => { ::std::eprint!("\x1eerror\n{}\n\x1eend\n", $error) };
    ($($any:tt)*) => { ::std::eprintln!($($any)*) };
}

// Each cell is a library with a standard library of its own: nobody else would ever flush what has no line end.
#[allow(unused_macros)]
macro_rules! print {
    ($($any:tt)*) => {{
        ::std::print!($($any)*);
        let _ = ::std::io::Write::flush(&mut ::std::io::stdout());
    }};
}
