//! Makes git leave the outputs of notebooks out of what it compares and commits, so that a clone stays clean when its
//! notebooks run. `.gitattributes` names the filter.

use std::path::Path;
use std::process::Command;

/// The filter. Its paths are relative, because all worktrees share the setting.
const CLEAN_NOTEBOOK: &str = "if [ -x .kdlab/venv/bin/python ]; then .kdlab/venv/bin/python xtask/clean_notebook.py %f\
    ; else cat; fi";

/// Tells git about the filter. Does nothing without git, or in a folder that is no clone.
pub fn ignore_outputs(root: &Path) {
    if root.join(".git").exists() {
        let mut git = Command::new("git");
        git.args(["config", "--local", "filter.kdlab-notebook.clean", CLEAN_NOTEBOOK]).current_dir(root);
        let _ = git.output();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::files;
    use crate::setup::jupyter::SERVER_CONFIG;

    #[test]
    fn a_notebook_that_was_run_is_no_change_to_git_and_an_edited_one_is() {
        let clone = tempfile::tempdir().expect("a temporary folder");
        let root = clone.path();
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]).args(args);
            let output = git.current_dir(root).output().expect("git starts");
            assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in ["xtask/clean_notebook.py", ".gitattributes", "notebooks/05_tweak.ipynb"] {
            files::create_dir(root.join(file).parent()).expect("a folder");
            fs::copy(source.join(file), root.join(file)).expect("a copy");
        }
        fs::write(root.join(".gitignore"), "/.kdlab\n").expect("a file");
        git(&["init", "-q"]);
        git(&["add", "-A"]);
        git(&["commit", "-q", "-m", "as it is published"]);
        let python = root.join(".kdlab/venv/bin/python");
        files::create_dir(python.parent()).expect("a folder");
        fs::write(&python, "#!/bin/sh\nexec python3 \"$@\"\n").expect("a file");
        let run = |program: &str, args: &[&str]| Command::new(program).args(args).status().expect("it starts");
        assert!(run("chmod", &["+x", &python.to_string_lossy()]).success());
        ignore_outputs(root);

        let notebook = root.join("notebooks/05_tweak.ipynb");
        let published = fs::read_to_string(&notebook).expect("a notebook");
        let ran = published
            .replacen("\"output_type\": \"stream\"", "\"output_type\": \"stream\", \"seen\": 7", 1)
            .replacen("\"execution_count\": 2", "\"execution_count\": 31", 1)
            .replacen("\"metadata\": {}", "\"metadata\": {\"scrolled\": true}", 1)
            .replacen("\"name\": \"Rust\"", "\"name\": \"Rust\", \"version\": \"\"", 1);
        let save = |text: &str| {
            fs::write(&notebook, text).expect("a run");
            let hook = format!(
                "class Any: pass\nc = Any()\nc.FileContentsManager = Any()\nget_config = lambda: c\n{SERVER_CONFIG}\n\
                 settle_git(model={{'type': 'notebook'}}, os_path='{}', contents_manager=None)",
                notebook.display()
            );
            assert!(run("python3", &["-c", &hook]).success());
        };
        save(&ran);
        assert_eq!(git(&["status", "--porcelain"]), "");
        // Edited text changes one line; outputs stay those that were committed.
        save(&ran.replacen("# 5 · ", "# Five: ", 1));
        assert_eq!(git(&["status", "--porcelain"]), " M notebooks/05_tweak.ipynb\n");
        let changed = git(&["diff", "--stat"]);
        assert!(changed.contains("1 insertion(+), 1 deletion(-)"), "{changed}");
        // Edited code has no outputs yet.
        save(&ran.replacen("temperature: f64 = 4.0", "temperature: f64 = 2.0", 1));
        git(&["add", "-A"]);
        let staged = git(&["show", ":notebooks/05_tweak.ipynb"]);
        assert!(staged.contains("temperature: f64 = 2.0") && !staged.contains("output_type"), "{staged}");
    }

    #[test]
    fn what_is_no_notebook_stays_as_it_is() {
        let filter = Path::new(env!("CARGO_MANIFEST_DIR")).join("clean_notebook.py");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let half_a_letter =
            br#"{"cells": [{"cell_type": "markdown", "metadata": {}, "source": "\ud800"}], "metadata": {}}"#;
        let nested = "[".repeat(200_000);
        for text in [&b""[..], b"{", b"\xff\xfe{\0}\0", b"{\"cells\": 1}", half_a_letter, nested.as_bytes()] {
            fs::write(file.path(), text).expect("a file");
            let filter =
                Command::new("python3").arg(&filter).stdin(File::open(file.path()).expect("it is there")).output();
            let filter = filter.expect("Python");
            assert!(filter.status.success() && filter.stdout == text, "{}", String::from_utf8_lossy(&filter.stderr));
        }
    }

    /// Otherwise the first run of each notebook would be a change. Outputs that are there belong to the code beside
    /// them.
    #[test]
    fn committed_notebooks_are_as_the_filter_leaves_them() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut seen = 0;
        for folder in ["notebooks", "notebooks/exercises", "notebooks/exercises/source"] {
            for entry in fs::read_dir(root.join(folder)).expect("a folder").flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "ipynb") {
                    let mut filter = Command::new("python3");
                    filter.arg(root.join("xtask/clean_notebook.py"));
                    let output = filter.stdin(File::open(entry.path()).expect("a notebook")).output().expect("Python");
                    let name = entry.path();
                    let text = fs::read(&name).expect("a notebook");
                    assert!(
                        output.stdout == text,
                        "{}: git's filter would change it. If it has outputs of other code, take new ones: \
                         `cargo lab docs --outputs-from`; otherwise write what xtask/clean_notebook.py makes of it",
                        name.display()
                    );
                    assert!(
                        text.len() <= 150_000,
                        "{} has {} bytes, and a forge shows at most 150000: let `cargo lab docs --outputs-from` make \
                         its figures smaller",
                        name.display(),
                        text.len()
                    );
                    seen += 1;
                }
            }
        }
        assert!(seen >= 22, "{seen}");
    }
}
