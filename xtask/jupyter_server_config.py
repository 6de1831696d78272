"""Settings of the JupyterLab that `cargo lab` starts: after it saved a notebook, git learns that outputs are no change.

The filter of `.gitattributes` leaves outputs out of what git compares. But before git asks the filter, it takes a file
of another size for a changed one. `git add` corrects that; if the filtered content is the committed one, it changes
nothing else.
"""
import os
import subprocess


def settle_git(model, os_path, **_):
    def git(*command):
        try:
            return subprocess.run(
                ["git", *command, "--", os_path], cwd=os.path.dirname(os_path), capture_output=True, timeout=20
            ).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False

    if model["type"] == "notebook" and git("ls-files", "--error-unmatch") and git("diff", "--quiet"):
        git("add")


c = get_config()  # noqa: F821
c.FileContentsManager.post_save_hook = settle_git
