// The kernel puts these macros before the prelude.

// A cell that fails by `?` prints the error by exactly this call, in code that evcxr generates. The marks distinguish
// it from other text on stderr. The kernel removes them.
#[allow(unused_macros)]
macro_rules! eprintln {
    ("{}", $error:ident) => { ::std::eprint!("\x1eerror\n{}\n\x1eend\n", $error) };
    ($($any:tt)*) => { ::std::eprintln!($($any)*) };
}

// Each cell is a library with a standard library of its own, so nothing else would flush text that does not end its
// line.
#[allow(unused_macros)]
macro_rules! print {
    ($($any:tt)*) => {{
        ::std::print!($($any)*);
        let _ = ::std::io::Write::flush(&mut ::std::io::stdout());
    }};
}
