//! What a cell's source says of evcxr's store of variables, in a form that compiles faster.
//!
//! evcxr writes the store's code into every cell, and lets every cell take all variables out and put them back. Most of
//! a cell's compilation goes into that.

use std::collections::BTreeSet;

/// evcxr's store, for the library of all crates. Cells without that library compile evcxr's own text, so type and
/// layout are the same.
pub const STORE: &str = include_str!("runtime.rs");

/// Types of Rust's library whose values cells often keep in variables.
const COMMON: [&str; 11] =
    ["String", "bool", "f32", "f64", "i32", "i64", "u64", "usize", "Vec<String>", "Vec<f64>", "Vec<i64>"];

/// Returns code for the library that stores, checks, takes out and drops values of these types. rustc then does not
/// compile that again in every cell that has such a variable, except for cells that are optimised.
pub fn values(types: &[&str]) -> String {
    let each: String = COMMON.iter().chain(types).map(|name| format!("    value::<{name}>();\n")).collect();
    format!(
        "pub fn values() {{
    fn value<T: 'static>() {{
        std::hint::black_box((
            VariableStore::put_variable::<T> as fn(&mut VariableStore, &str, T),
            VariableStore::check_variable::<T> as fn(&mut VariableStore, &str) -> bool,
            VariableStore::take_variable::<T> as fn(&mut VariableStore, &str) -> T,
            drop::<T> as fn(T),
            drop::<Box<T>> as fn(Box<T>),
        ));
    }}
{each}}}\n"
    )
}

/// The module in a cell's source, and what follows it.
const MODULE: &str = "\nmod evcxr_internal_runtime {\n";
const END: &str = "\n}\n}\n";

/// The only field of evcxr's store. A cell whose store looks otherwise keeps it.
const FIELD: &str = "variables: std::collections::HashMap<String, Box<dyn std::any::Any + 'static>>,";

/// Returns `text`, the source that evcxr made of a cell, with the store of the crate `library` in place of its own.
/// All lines keep their numbers.
pub fn shared(text: &str, library: &str) -> Option<String> {
    let start = text.rfind(MODULE)?;
    let length = text[start..].find(END)? + END.len();
    let module = &text[start..start + length];
    let lines = module.matches('\n').count();
    let inside = module.contains(FIELD) && !module.contains("fn run_user_code_");
    inside.then(|| {
        let import = format!("\nuse {library}::evcxr_internal_runtime;{}", "\n".repeat(lines - 1));
        format!("{}{import}{}", &text[..start], &text[start + length..])
    })
}

/// Returns the name of the variable that a line of evcxr's concerns, and whether it takes it out or puts it back.
fn named(line: &str) -> Option<(&str, bool)> {
    let (start, rest) = line.rsplit_once("(stringify!(")?;
    let (name, rest) = rest.split_once(')')?;
    let takes = |before: &str| start.starts_with(&format!("{before}{name} = evcxr_variable_store.take_variable::<"));
    let moves = ["let ", "let mut "].into_iter().any(takes) && rest == ");"
        || start.starts_with("evcxr_variable_store.put_variable::<") && rest == format!(", {name});");
    (moves || start.starts_with("vars_ok &= evcxr_variable_store.check_variable::<")).then_some((name, moves))
}

/// Returns `text` without the statements that take variables out of the store and put them back whose names occur
/// nowhere else in it. All lines keep their numbers.
pub fn unused_stay(text: &str) -> String {
    let others = text.lines().filter(|line| named(line).is_none());
    let used: BTreeSet<&str> = others.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).collect();
    let kept = |line| match named(line) {
        Some((name, true)) if !name.contains('#') && !used.contains(name) => "",
        _ => line,
    };
    text.split('\n').map(kept).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: &str = "fn f() {}\nmod evcxr_internal_runtime {\n// a\n\npub struct VariableStore {\n    \
        variables: std::collections::HashMap<String, Box<dyn std::any::Any + 'static>>,\n}\n}\n#[unsafe(no_mangle)]\n\
        pub extern \"C\" fn run_user_code_7(\n";

    #[test]
    fn the_library_s_store_takes_the_place_of_evcxr_s() {
        let text = shared(CELL, "crates_1").expect("it is known");
        let rest = "#[unsafe(no_mangle)]\npub extern \"C\" fn run_user_code_7(\n";
        assert_eq!(text, format!("fn f() {{}}\nuse crates_1::evcxr_internal_runtime;\n\n\n\n\n\n\n{rest}"));
        assert_eq!(text.lines().count(), CELL.lines().count());
        assert_eq!(shared(&CELL.replace("HashMap", "BTreeMap"), "crates_1"), None, "another store");
        assert_eq!(shared("fn f() {}", "crates_1"), None, "a cell of items alone");
        assert!(STORE.contains(FIELD), "the library's store has the same layout");
    }

    #[test]
    fn variables_that_a_cell_does_not_name_stay_in_the_store() {
        let line = |name: &str, start: &str| {
            let bare = name.trim_start_matches("mut ");
            match start {
                "take" => {
                    format!("let {name} = evcxr_variable_store.take_variable::<Vec<(u8, A)>>(stringify!({bare}));\n")
                }
                "put" => format!("evcxr_variable_store.put_variable::<Vec<(u8, A)>>(stringify!({bare}), {bare});\n"),
                _ => format!("vars_ok &= evcxr_variable_store.check_variable::<Vec<(u8, A)>>(stringify!({bare}));\n"),
            }
        };
        let names = ["mut a", "b", "mut in_text", "mut unused", "ab", "r#fn"];
        let all = |start: &str| names.map(|name| line(name, start)).concat();
        let user = "let c = a.len() + b.len();\nprintln!(\"{in_text}\");\n";
        let found = unused_stay(&format!("{}{}{user}{}", all("check"), all("take"), all("put")));
        let kept = |start: &str| all(start).replace(&line("mut unused", start), "\n").replace(&line("ab", start), "\n");
        assert_eq!(found, format!("{}{}{user}{}", all("check"), kept("take"), kept("put")));
        // evcxr has taken out the statement that puts a moved variable back.
        let moved = format!("{}let d = a;\n", line("a", "take"));
        assert_eq!(unused_stay(&moved), moved);
    }
}
