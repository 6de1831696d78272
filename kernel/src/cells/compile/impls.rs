//! `impl` blocks of earlier cells that a cell defines again.
//!
//! evcxr keeps the `impl` blocks of all cells, so that a cell with one could not be edited and run again. Here the
//! older blocks lose what the present cell defines again, in its compilation and in those of later cells.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use ra_ap_syntax::ast::{HasModuleItem, HasName};
use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, TextRange, ast};

/// Files in the private folder: the present cell, and what later cells do not compile any more.
const CELL: &str = "cell.rs";
const OLD: &str = "old-impls.json";

/// Stands for a whole block.
const WHOLE: &str = "*";

/// The names of the items that were defined again, by the hash of their block's text.
type Old = BTreeMap<String, BTreeSet<String>>;

/// In the server: writes down the code of the next cell.
pub fn announce(folder: &Path, code: &str) {
    // A failure does no harm: rustc then refuses what is there twice.
    let _ = fs::write(folder.join(CELL), code);
}

/// The source of a cell without what it, or an earlier cell, has defined again.
pub struct Latest {
    pub text: String,
    old: Old,
}

impl Latest {
    /// Changes `source`, which evcxr made of the announced cell. All lines and columns stay.
    pub fn of(folder: &Path, source: &str) -> Self {
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let (cell, old) = (read(CELL), serde_json::from_str(&read(OLD)).unwrap_or_default());
        latest(source, &cell, old)
    }

    /// Writes down what was defined again, once the cell has compiled.
    pub fn keep(&self, folder: &Path) {
        if !self.old.is_empty() {
            let _ = serde_json::to_vec(&self.old).map(|text| fs::write(folder.join(OLD), text));
        }
    }
}

fn latest(source: &str, cell: &str, mut old: Old) -> Latest {
    if old.is_empty() && !cell.contains("impl") {
        return Latest { text: source.to_owned(), old };
    }
    let file = SourceFile::parse(source, Edition::CURRENT).tree();
    let blocks: Vec<ast::Impl> = file.items().filter_map(|item| ast::Impl::cast(item.syntax().clone())).collect();
    let text = |block: &ast::Impl| block.syntax().text().to_string();
    let (new, earlier): (Vec<_>, Vec<_>) = blocks.iter().partition(|block| cell.contains(&text(block)));
    for block in &new {
        old.remove(&hash(&text(block)));
    }
    for (block, new) in earlier.iter().flat_map(|block| new.iter().map(move |new| (*block, *new))) {
        if head(block) == head(new) {
            let names = old.entry(hash(&text(block))).or_default();
            match block.trait_() {
                Some(_) => drop(names.insert(WHOLE.to_owned())),
                None => names.extend(items(new).into_iter().map(|(name, _)| name)),
            }
        }
    }
    let mut blanks: Vec<TextRange> = vec![];
    for (index, block) in blocks.iter().enumerate() {
        let names = old.get(&hash(&text(block))).cloned().unwrap_or_default();
        let again = blocks[index + 1..].iter().any(|later| text(later) == text(block));
        if again || names.contains(WHOLE) {
            blanks.push(block.syntax().text_range());
        } else {
            blanks.extend(items(block).into_iter().filter(|(name, _)| names.contains(name)).map(|(_, range)| range));
        }
    }
    let mut left = String::new();
    let mut end = 0;
    for range in blanks {
        left += &source[end..range.start().into()];
        left.extend(source[range].chars().map(|c| if c == '\n' { c } else { ' ' }));
        end = range.end().into();
    }
    Latest { text: left + &source[end..], old }
}

/// Returns what stands before the braces, without comments, attributes and spaces.
fn head(block: &ast::Impl) -> String {
    let outside = [SyntaxKind::ATTR, SyntaxKind::ASSOC_ITEM_LIST, SyntaxKind::COMMENT, SyntaxKind::WHITESPACE];
    let parts = block.syntax().children_with_tokens().filter(|part| !outside.contains(&part.kind()));
    parts.map(|part| part.to_string().split_whitespace().collect::<String>()).collect::<Vec<_>>().join(" ")
}

/// Returns the functions, constants and types of a block, with their places.
fn items(block: &ast::Impl) -> Vec<(String, TextRange)> {
    let items = block.assoc_item_list().into_iter().flat_map(|list| list.assoc_items());
    let name = |item: &ast::AssocItem| match item {
        ast::AssocItem::Fn(item) => item.name(),
        ast::AssocItem::Const(item) => item.name(),
        ast::AssocItem::TypeAlias(item) => item.name(),
        ast::AssocItem::MacroCall(_) => None,
    };
    items.filter_map(|item| Some((name(&item)?.text().to_string(), item.syntax().text_range()))).collect()
}

fn hash(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs cells one after the other, each with the `impl` blocks of all, and returns what is compiled.
    fn play(cells: &[&str]) -> Vec<String> {
        let (mut old, mut all) = (Old::new(), String::new());
        let run = |cell: &&str| {
            all += &format!("{cell}\n");
            let found = latest(&all, cell, std::mem::take(&mut old));
            assert_eq!(found.text.len(), all.len(), "columns stay");
            old = found.old;
            found.text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        cells.iter().map(run).collect()
    }

    #[test]
    fn a_block_that_is_defined_anew_takes_the_place_of_the_older_one() {
        let (one, two) = ("impl Noise for Dog { fn noise() { 1 } }", "impl  Noise for Dog { fn noise() { 2 } }");
        let found = play(&[one, two, "1 + 1", "impl Noise for Cat {}", one, one]);
        let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(found[1], plain(two));
        assert_eq!(found[2], format!("{} 1 + 1", plain(two)));
        assert_eq!(found[3], format!("{} 1 + 1 impl Noise for Cat {{}}", plain(two)));
        // The first one was run again, and again.
        assert_eq!(found[4], format!("1 + 1 impl Noise for Cat {{}} {one}"));
        assert_eq!(found[5], found[4]);
    }

    #[test]
    fn methods_that_are_not_defined_anew_stay() {
        let found = play(&[
            "impl A { fn f() { 1 } fn g() { 1 } }",
            "impl A { fn h() { 2 } }",
            "impl A { fn g() { 3 } }",
            "impl<T> A<T> { fn f() { 4 } }",
        ]);
        assert_eq!(found[1], "impl A { fn f() { 1 } fn g() { 1 } } impl A { fn h() { 2 } }");
        assert_eq!(found[2], "impl A { fn f() { 1 } } impl A { fn h() { 2 } } impl A { fn g() { 3 } }");
        assert_eq!(found[3], format!("{} impl<T> A<T> {{ fn f() {{ 4 }} }}", found[2]));
    }

    #[test]
    fn two_blocks_of_one_cell_are_left_to_rustc() {
        let cell = "#[cfg(a)] impl A for B {} #[cfg(not(a))] impl A for B { }";
        assert_eq!(play(&[cell]), [cell]);
    }
}
