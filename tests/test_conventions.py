"""The floors of the house: a file imports only from its own floor's list.

And its docstrings: they say all that a caller has to know.
"""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "jaxdet").rglob("*.py"))
DOCUMENTED = [*FILES, *sorted((ROOT / "experiments").rglob("*.py"))]
VERB = re.compile(
    r"(?!Returns |Yields )[A-Z][a-z]+[a-rt-z]s (?!(of|that|with|from|by|in|for) )"
)
SCOPES = ast.FunctionDef | ast.Lambda | ast.ClassDef

BESIDE = {"config", "structs", "ops"}
DATA = {"data", "visualize", "parallel"} | BESIDE
ALLOWED = {
    "__init__": {"detectors", "training", "evaluation", "inference"} | DATA,
    "config": set(),
    "structs": set(),
    "parallel": {"config", "structs"},
    "ops": {"ops", "structs"},
    "visualize": {"structs", "ops"},
    "nn": {"nn", "structs"},
    "data": {"data"} | BESIDE,
    "detectors": {"detectors", "nn"} | BESIDE,
    "evaluation": {"evaluation", "detectors"} | DATA,
    "weights": {"weights", "detectors", "nn"} | DATA,
    "training": {"training", "evaluation", "detectors.detector", "weights.transfer"}
    | DATA,
    "inference": {"inference", "training", "evaluation", "weights", "detectors", "nn"}
    | DATA,
}
# Packages that only these files may import.
OPTIONAL = {
    "tensorflow_datasets": {
        "data/formats/digits.py",
        "data/prepare.py",
        "data/formats/tfds_features.py",
        "data/formats/tfds.py",
    },
    "grain": {"data/batching.py"},
    "cv2": {
        "data/augmentation.py",
        "data/formats/digits.py",
        "data/image_files.py",
        "data/masks.py",
        "data/selective_search.py",
        "data/formats/tfds.py",
        "data/transforms.py",
        "data/video.py",
    },
    "supervision": {"inference/preprocess.py"},
    "pycocotools": {"data/masks.py", "evaluation/coco.py", "evaluation/matches.py"},
    "simplejpeg": {"data/image_files.py"},
    "sklearn": {"data/formats/digits.py"},
    "skimage": {"data/formats/digits.py"},
    "tensorboardX": {"training/log.py", "weights/state_dict.py"},
    "tensorflow": set(),
    "torch": set(),
    "pooch": {"weights/download.py"},
    "requests": set(),
    "safetensors": {"weights/state_dict.py"},
    "flatbuffers": set(),
    "matplotlib": set(),
    "hotcoco": {"evaluation/coco.py"},
}


def imports(path: pathlib.Path) -> set[str]:
    """Full dotted names of everything a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "jaxdet").as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_its_floor(path):
    floor = name_of(path).split("/")[0].removesuffix(".py")
    for name in imports(path):
        package, _, inner = name.partition(".")
        if package == "jaxdet":
            allowed = any((inner + ".").startswith(f"{a}.") for a in ALLOWED[floor])
            assert allowed, f"{floor} may not import {name}"
        users = OPTIONAL.get(package)
        assert users is None or name_of(path) in users, f"{name} in {name_of(path)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_and_inheritance(path):
    assert path.stem not in {"utils", "misc", "common", "helpers"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            outside = {"nn.Module", "NamedTuple", "ValueError", "ArithmeticError"}
            outside |= {"tfds.core.GeneratorBasedBuilder"}
            assert bases <= outside, f"{node.name} inherits from {bases - outside}"


def test_the_core_needs_only_the_jax_family():
    modules = [
        f"jaxdet.{name_of(path)[:-3].replace('/', '.')}"
        for package in ("ops", "nn", "detectors")
        for path in sorted((ROOT / "jaxdet" / package).rglob("[!_]*.py"))
    ]
    modules += ["jaxdet.training.step", "jaxdet.training.optimizer"]
    blocked = [*OPTIONAL, "PIL", "tyro"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
    code += f"import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# By those who use it, and by `nn/backbones/test_laws.py`.
TESTED_ELSEWHERE = {"__init__", "alexnet", "dataset"}


def test_the_tests_mirror_the_package():
    missing = []
    for path in FILES:
        test = ROOT / "tests" / pathlib.Path(name_of(path)).parent / f"test_{path.name}"
        if path.stem not in TESTED_ELSEWHERE and not test.exists():
            missing.append(name_of(path))
    assert not missing


@pytest.mark.parametrize(
    "path", DOCUMENTED, ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_docstrings_are_complete(path):
    lines = path.read_text().splitlines()
    missing = []
    for name, node in public(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ClassDef):
            lacking = lacks_of_class(node, lines)
        else:
            shared = path.parent.name == "detectors" and name in {"loss", "predict"}
            lacking = lacks_of_function(node, shared)
        place = f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        missing += [f"{place} lacks {what}" for what in lacking]
    assert not missing, "\n".join(missing)


def public(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """The functions and classes of a module, and the methods of these, by name."""
    for node in tree.body:
        methods = node.body if isinstance(node, ast.ClassDef) else []
        for inner in (node, *methods):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef):
                name = node.name if inner is node else f"{node.name}.{inner.name}"
                if not re.search(r"(^|\.)_(?!_(init|call)__)", name):
                    yield name, inner


def lacks_of_function(function: ast.FunctionDef, shared: bool) -> Iterator[str]:
    """What a caller has to know, and the docstring does not say.

    What every detector's `loss` and `predict` take, `detector.from_network` says.
    """
    docstring = ast.get_docstring(function) or ""
    parameters = names_of_parameters(function)
    if not docstring and (function.name != "__init__" or len(parameters) >= 3):
        yield "a docstring"
    described = entries(docstring, "Args")
    if described != parameters and (described or (len(parameters) >= 3 and not shared)):
        yield f"`Args:` of {parameters}, in this order; it has {described}"
    raised = raises(function.body) - set(entries(docstring, "Raises"))
    if raised:
        yield f"`Raises:` of {sorted(raised)}"
    if answers(function.body) and not names_answer(function, docstring):
        yield "`Returns:`, or a summary that names the answer and its shape"


def lacks_of_class(node: ast.ClassDef, lines: list[str]) -> Iterator[str]:
    """What somebody who makes one of these has to know, and nothing says.

    Fields are described in `Attributes:`, or each by a comment on its lines or the one
    before, by a string after it, or by the shape in their annotation.
    """
    docstring = ast.get_docstring(node) or ""
    if not docstring:
        yield "a docstring"
    kinds = [ast.unparse(kind) for kind in (*node.bases, *node.decorator_list)]
    if not any("dataclass" in kind or kind == "nn.Module" for kind in kinds):
        return
    fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
    described = entries(docstring, "Attributes")
    if described:
        if described != [field.target.id for field in fields]:
            yield f"`Attributes:` of its fields, in their order; it has {described}"
        return
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        before, *own = lines[field.lineno - 2 : field.end_lineno]
        commented = before.lstrip().startswith("#") or any("  # " in x for x in own)
        followed = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        shaped = field in fields and "Array, " in ast.unparse(field.annotation)
        if field in fields and not (commented or followed or shaped):
            yield f"`Attributes:`, or a comment behind {field.target.id!r}"


def names_of_parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    named = [*given.posonlyargs, *given.args, given.vararg]
    named += [*given.kwonlyargs, given.kwarg]
    names = [each.arg for each in named if each]
    return [name for name in names if name not in {"self", "cls"}]


def entries(docstring: str, section: str) -> list[str]:
    """The names that a section of a docstring describes."""
    text = re.search(rf"^{section}:\n((?:  .*(?:\n|$)|\n)+)", docstring, re.MULTILINE)
    return re.findall(r"^  \*{0,2}(\w+):\s", text[1], re.MULTILINE) if text else []


def raises(nodes: Iterable[ast.AST]) -> set[str]:
    """Names of the errors that nodes make and raise, and do not catch themselves."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            names.add(ast.unparse(node.exc.func))
        elif isinstance(node, ast.Try):
            types = [ast.unparse(each.type) for each in node.handlers if each.type]
            names |= raises(node.body) - set(re.findall(r"\w+", " ".join(types)))
            names |= raises([*node.handlers, *node.orelse, *node.finalbody])
        elif not isinstance(node, SCOPES):
            names |= raises(ast.iter_child_nodes(node))
    return names


def answers(nodes: Iterable[ast.AST]) -> bool:
    """Whether nodes return anything but None, or yield."""
    return any(
        isinstance(node, ast.Yield | ast.YieldFrom)
        or (isinstance(node, ast.Return) and ast.unparse(node)[6:] not in ("", " None"))
        or (not isinstance(node, SCOPES) and answers(ast.iter_child_nodes(node)))
        for node in nodes
    )


def names_answer(function: ast.FunctionDef, docstring: str) -> bool:
    """Whether a docstring says what is answered: in `Returns:`, or before `Args:`.

    As a rule the summary is the answer's name, "Patches of an image"; it is not where
    it begins with a verb, "Cuts patches". Arrays must have a shape, or stand behind an
    arrow; what has no annotation is taken for some.
    """
    if "\nReturns:\n" in docstring:
        return True
    prose = re.split(r"^(?:Args|Raises):$", docstring, flags=re.MULTILINE)[0]
    if "->" in prose:
        return True
    if entries(docstring, "Args") and VERB.match(prose):
        return False
    annotation = ast.unparse(function.returns) if function.returns else "jax.Array"
    # A dict of arrays by name, such as parameters, has no one shape.
    arrays = re.search(r"(?<!str, )(jax\.A|np\.nda)rray", annotation)
    return not arrays or "[" in prose
