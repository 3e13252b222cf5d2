"""What the READMEs say can be typed, and what they point at is there."""

import argparse
import ast
import functools
import importlib
import pathlib
import re
import runpy
import shlex
import sys

import pytest
import tyro

from experiments import command_line

ROOT = pathlib.Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "experiments" / "README.md"]


def commands_of(text):
    """Every `python -m experiments.…`, in blocks and within sentences, in words."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(python -m experiments\.\w[^`]*)`", text)
    found = []
    for line in lines:
        *_, script = line.partition("python -m experiments.")
        if re.match(r"\w", script):
            found.append(tuple(shlex.split(script, comments=True)))
    return found


COMMANDS = sorted({x for file in READMES for x in commands_of(file.read_text())})


class Parsed(BaseException):
    """A command line was understood; nothing more is to be done."""


@pytest.fixture
def parse(monkeypatch):
    """Runs a script as far as its command line goes."""

    def stand_in(main):
        return functools.wraps(main)(lambda *_, **__: None)

    def run(main):
        if isinstance(main, dict):
            mains = {name: stand_in(one) for name, one in main.items()}
            tyro.extras.subcommand_cli_from_dict(mains)
        else:
            tyro.cli(stand_in(main))
        raise Parsed

    def parse_args(parser, arguments=None):
        understand(parser, arguments)
        raise Parsed

    understand = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(command_line, "run", run)

    def parsed(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.delitem(sys.modules, f"experiments.{script}", raising=False)
        runpy.run_module(f"experiments.{script}", run_name="__main__")

    return parsed


def test_commands_are_found():
    text = """Type `python -m experiments.a
    --b 1`, not `python -m experiments...`:
```bash
pip install c && python -m experiments.d e \\
    --f "g h"  # or i
srun python -m experiments... --j
```
"""
    assert commands_of(text) == [("d", "e", "--f", "g h"), ("a", "--b", "1")]
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_understood(command, parse):
    if "--help" in command:
        with pytest.raises(SystemExit, match=r"^0$"):
            parse(*command)
    else:
        with pytest.raises(Parsed):
            parse(*command)


@pytest.mark.parametrize(
    "command", [("detect", "a.jpg", "--soup"), ("train", "soup"), ("quickstart", "7")]
)
def test_no_others_are(command, parse):
    with pytest.raises(SystemExit, match=r"^2$"):
        parse(*command)


@pytest.mark.parametrize("readme", READMES, ids=["README", "experiments"])
def test_names_that_its_python_uses_are_there(readme):
    for code in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL):
        tree, modules = ast.parse(code), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    if not hasattr(module, name):
                        importlib.import_module(f"{node.module}.{name}")
                    modules[name] = getattr(module, name)
        used = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        ]
        for node in used:
            if node.value.id in modules:
                assert hasattr(modules[node.value.id], node.attr), ast.unparse(node)
        assert modules


@pytest.mark.parametrize("readme", READMES, ids=["README", "experiments"])
def test_links_lead_somewhere(readme):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", readme.read_text()):
        path, _, section = target.partition("#")
        assert (readme.parent / path).exists(), target
        if section:
            text = (readme.parent / path).read_text()
            titles = re.findall("^#+ (.+)", text, re.MULTILINE)
            assert section in [x.lower().replace(" ", "-") for x in titles], target


@pytest.mark.parametrize("readme", READMES, ids=["README", "experiments"])
def test_files_in_tables_are_there(readme):
    """After `a/b.py`, `c.py` is beside it."""
    for line in readme.read_text().splitlines():
        folder = ROOT
        names = re.findall(r"`([\w/.]+)`", line) if line.startswith("|") else []
        for name in names:
            if re.match(r"(jaxdet|experiments|tests)(/|$)", name):
                folder = (ROOT / name).parent
                assert (ROOT / name).exists(), name
            elif name.endswith(".py"):
                assert (folder / name).exists(), name
