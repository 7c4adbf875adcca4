"""Every option is read by something."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.small_config import build

import overnight
from overnight.checks import fields_of
from overnight.config import Config
from overnight.verbs.doctor import Doctor
from overnight.verbs.eval import Eval
from overnight.verbs.export import Export
from overnight.verbs.inspect import Inspect
from overnight.verbs.plan import Plan
from overnight.verbs.prepare import Prepare
from overnight.verbs.sample import Sample

SOURCES = Path(overnight.__file__).parent


def fields_read(tree: ast.AST, owners: set[str]) -> set[str]:
    """Names of attributes that code takes from a variable or attribute named in `owners`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if name in owners:
                found.add(node.attr)
    return found


def without(tree: ast.Module, *functions: str) -> ast.Module:
    """Validation reads every field; that alone makes no option useful."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [part for part in node.body if getattr(part, "name", "") not in functions]
    return tree


def test_every_field_of_the_config_is_read() -> None:
    owners = {"config", "wanted", "model", "optim", "loader", "sample", "train"}
    read: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "config.py":
            read |= fields_read(without(tree, "problems"), owners | {"self"})
        elif path.name not in ("presets.py", "checks.py"):
            read |= fields_read(tree, owners)
    leaves_of_config = {name.split(".")[-1] for name, _ in fields_of(build())}
    assert (leaves_of_config | {"colour"}) - read == {"colour"}


VERBS = [Prepare, Eval, Sample, Inspect, Export, Plan, Doctor]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_option_of_a_verb_is_read(verb: Any) -> None:
    source = SOURCES / "verbs" / f"{verb.__name__.lower()}.py"
    read = fields_read(ast.parse(source.read_text(encoding="utf-8")), {"wanted", "config"})
    inherited = {field.name for field in dataclasses.fields(Config)} if issubclass(verb, Config) else set()
    assert {field.name for field in dataclasses.fields(verb)} - inherited - read == set()
