//! Links between pages: `cargo lab docs` checks them too, and takes half a minute.

use std::fs;
use std::path::{Path, PathBuf};

const FOLDERS: [&str; 8] =
    ["", "docs", "benches", "kernel", "kernel/client", "notebooks", "notebooks/exercises/source", "notebooks/page"];

/// Every link of a page or notebook that leads nowhere: to a file that is not there, or to a heading that its page
/// lacks.
pub fn broken(root: &Path) -> Vec<String> {
    let entries = FOLDERS.iter().flat_map(|folder| fs::read_dir(root.join(folder)).into_iter().flatten().flatten());
    let pages: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is(path, "md") || is(path, "ipynb")).collect();
    assert!(pages.len() > 40, "only {} pages were found", pages.len());
    let mut broken = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page).expect("a page is text");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '\n']).next()) {
            // What is in brackets and parentheses in code has no such form.
            let local = !link.contains([' ', ':', '"', '\\']) && link.contains(['.', '#']);
            if local && !leads_somewhere(page, link) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    broken
}

fn leads_somewhere(page: &Path, link: &str) -> bool {
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { page.to_owned() } else { page.with_file_name("").join(file) };
    if heading.is_empty() || !is(&target, "md") {
        return target.exists();
    }
    let text = fs::read_to_string(target).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix('#')).any(|line| slug(line) == heading)
}

/// The name that forges give to a heading.
fn slug(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn is(path: &Path, kind: &str) -> bool {
    path.extension().is_some_and(|extension| extension == kind)
}
