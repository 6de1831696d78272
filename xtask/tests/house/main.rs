//! The structure of the code and its pages: which file uses which, what the crate shows to others, where links lead.

mod arrows;
mod links;
mod public;
mod snippets;
mod sources;

use std::process::Command;

use sources::Krate;

/// The rooms of kdlab. A file uses only its own room and those above it in this list.
const ROOMS: [&str; 11] =
    ["gpu", "error", "native", "store", "data", "models", "train", "study", "show", "profile", "lab"];
/// The rooms of the live kernel, in the same sense.
const KERNEL_ROOMS: [&str; 6] = ["private", "processes", "config", "cells", "launch", "server"];

#[test]
fn files_use_each_other_one_way() {
    let mut circles = Vec::new();
    for krate in Krate::of_workspace() {
        let arrows = arrows::of(&krate);
        assert!(!arrows.is_empty() || krate.files.len() < 3, "{}: no `use` was understood", krate.name);
        circles.extend(arrows::circles(&arrows).into_iter().map(|circle| format!("{}:\n{circle}", krate.name)));
    }
    assert!(circles.is_empty(), "files that need each other:\n{}", circles.join("\n"));
}

#[test]
fn rooms_use_only_those_above_them() {
    for krate in Krate::of_workspace() {
        let order: &[&str] = match krate.name.as_str() {
            "kdlab" => &ROOMS,
            "kernel" => &KERNEL_ROOMS,
            _ => continue,
        };
        let wrong = arrows::against(&arrows::of(&krate), order);
        assert!(wrong.is_empty(), "{}: arrows against the order of the rooms:\n{}", krate.name, wrong.join("\n"));
    }
}

#[test]
fn members_depend_on_no_more_than_they_should() {
    for krate in Krate::of_workspace() {
        let has = |name: &str| krate.dependencies.iter().any(|d| d == name);
        match krate.name.as_str() {
            "kernel" => assert!(!has("kdlab") && !has("tch"), "the kernel knows neither kdlab nor torch"),
            "xtask" => assert!(!has("kdlab") && !has("tch"), "`cargo lab` has to build in seconds on a bare machine"),
            "kdlab-client" => assert_eq!(krate.dependencies, ["serde_json"], "a cell compiles it by `:dep`"),
            _ => {}
        }
    }
}

/// `docs/public-items.md` lists what the crate shows, in groups, each with the reason why it is public.
#[test]
fn public_items_are_the_listed_ones() {
    let krate = Krate::of_workspace().into_iter().find(|k| k.name == "kdlab").expect("it is a member");
    let found = public::items(&krate);
    let page = std::fs::read_to_string(sources::root().join("docs/public-items.md")).expect("the page is there");
    let listed = public::listed(&page);
    let not_listed: Vec<_> = found.iter().filter(|item| !listed.contains(*item)).collect();
    let gone: Vec<_> = listed.iter().filter(|item| !found.contains(*item)).collect();
    assert!(not_listed.is_empty(), "public, but not in docs/public-items.md (make them pub(crate)?): {not_listed:#?}");
    assert!(gone.is_empty(), "in docs/public-items.md, but not public: {gone:#?}");
    assert!(found.len() <= public::MOST, "{} public items; at most {} are wanted", found.len(), public::MOST);
}

/// Kernels are too slow to run the pages in every test; this finds a renamed item, and a variable that nobody makes.
#[test]
fn code_on_pages_names_what_exists() {
    let krate = Krate::of_workspace().into_iter().find(|k| k.name == "kdlab").expect("it is a member");
    let known = snippets::known(&krate, &public::items(&krate));
    let unknown = snippets::unknown(&known);
    assert!(unknown.is_empty(), "Rust code on pages names what is not there:\n{}", unknown.join("\n"));

    let made = "use kdlab::data::Augment; use kdlab::models::Op; let lab = 1;";
    for (code, wrong) in [
        ("lab.nothing()", ".nothing"),
        ("f(&labb)", "labb"),
        ("println!(\"{}\", labb)", "labb"),
        ("use kdlab::data::Augmnt;", "kdlab::data::Augmnt"),
        ("kdlab::show::nothing(1)", "kdlab::show::nothing"),
        ("let a = Augmnt::default();", "Augmnt"),
        ("let a: Vec<Augmnt> = f(lab);", "Augmnt"),
        ("let a = Augment { flp: true, ..Augment::default() };", "Augment::flp"),
        ("g(Op::ReLu)", "Op::ReLu"),
        ("Op::convolution(1)", "Op::convolution"),
        ("let a = Op::ReLU; let b = Augment { flip: true, ..Augment::default() };", ""),
    ] {
        let found = snippets::unknown_in(&known, &[made, "fn f() {} fn g() {}", code]);
        assert_eq!(found.into_iter().collect::<Vec<_>>().concat(), wrong, "{code}");
    }
}

/// CONTRIBUTING.md shows whole changes. They have to fit the present code, and to be short.
#[test]
fn worked_examples_apply() {
    let root = sources::root();
    let page = std::fs::read_to_string(root.join("CONTRIBUTING.md")).expect("the page is there");
    let examples = std::fs::read_dir(root.join("docs/examples")).expect("the examples are there").flatten();
    let mut count = 0;
    for path in examples.map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(page.contains(&format!("(docs/examples/{name})")), "CONTRIBUTING.md does not name {name}");
        let output = Command::new("git").args(["apply", "--check"]).arg(&path).current_dir(&root).output();
        let output = output.expect("git starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} no longer fits; apply it by hand and make it anew: {said}");
        let patch = std::fs::read_to_string(&path).expect("it is text");
        let changed = patch.lines().filter(|line| line.starts_with(['+', '-'])).count();
        assert!(changed < 60 + 2 * patch.matches("\ndiff ").count() + 2, "{name} changes {changed} lines");
        count += 1;
    }
    assert_eq!(count, page.matches("(docs/examples/").count(), "CONTRIBUTING.md names an example that is not there");
}

#[test]
fn links_lead_somewhere() {
    let broken = links::broken(&sources::root());
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}
