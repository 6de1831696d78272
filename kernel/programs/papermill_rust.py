"""papermill for Rust notebooks: `python papermill_rust.py IN.ipynb OUT.ipynb -p NAME VALUE`. Options as papermill's.

The cell tagged `parameters` declares each parameter as `let mut`, with its type. papermill adds a cell behind it that
assigns the values, so that a value of another type, or of a parameter that is not declared, is an error.
"""
import re

from papermill.__main__ import papermill
from papermill.models import Parameter
from papermill.translators import Translator, papermill_translators


class Rust(Translator):
    @classmethod
    def translate_escaped_str(cls, value):
        marks = "#" * (str(value).count("#") + 1)
        return f'r{marks}"{value}"{marks}.into()'

    @classmethod
    def translate_list(cls, values):
        return f"vec![{', '.join(map(cls.translate, values))}]"

    @classmethod
    def comment(cls, text):
        return f"// {text}"

    @classmethod
    def assign(cls, name, value):
        return f"{name} = {value};"

    @classmethod
    def inspect(cls, cell):
        found = re.findall(r"^let mut (\w+)(?:: *([^=]+?))? *= *(.+);(?: *// *(.*))?$", cell["source"], re.M)
        return [Parameter(name, kind or "None", value, help) for name, kind, value, help in found]


# The name of the language as in the notebook's `language_info`, and as in the kernelspec.
for language in ["Rust", "rust"]:
    papermill_translators.register(language, Rust)

if __name__ == "__main__":
    papermill()
