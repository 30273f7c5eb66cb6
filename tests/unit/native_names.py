"""Which attributes of foreign objects a module uses, read from its source.

A module marks what comes from a package by the annotation ``Native``: arguments, variables and fields of dataclasses.
Everything reached from there, by attributes, calls, loops and assignments, is followed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

MARK = "Native"


def native_fields(sources: Iterable[str]) -> set[str]:
    """Names of dataclass fields that are annotated ``Native``."""
    classes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    fields = [field for node in classes for field in node.body if isinstance(field, ast.AnnAssign)]
    return {field.target.id for field in fields if isinstance(field.target, ast.Name) and _marked(field.annotation)}


def used_names(source: str, fields: Iterable[str] = ()) -> set[str]:
    """Attributes that are read, set or called on ``Native`` objects, and the methods that override theirs.

    Args:
        fields: attributes of one's own objects that hold a ``Native`` object.
    """
    found: set[str] = set()
    tree = ast.parse(source)
    for scope in tree.body:
        found |= _Scope(scope, set(fields)).names()
    return found


def _marked(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == MARK


class _Scope:
    """A top-level statement and the variables in it that hold ``Native`` objects."""

    def __init__(self, node: ast.AST, fields: set[str]) -> None:
        self.nodes = list(ast.walk(node))
        self.fields = fields
        self.variables = {a.arg for a in self.nodes if isinstance(a, ast.arg) and _marked(a.annotation)}
        while True:  # until assignments bring nothing new
            grown = self.variables | {name for node in self.nodes for name in self._binds(node)}
            if grown == self.variables:
                break
            self.variables = grown

    def _binds(self, node: ast.AST) -> list[str]:
        if isinstance(node, ast.AnnAssign) and _marked(node.annotation):
            targets = [node.target]
        elif isinstance(node, ast.Assign) and self.native(node.value):
            targets = node.targets
        elif isinstance(node, (ast.NamedExpr, ast.For, ast.comprehension)):
            source = node.value if isinstance(node, ast.NamedExpr) else node.iter
            targets = [node.target] if self.native(source) else []
        else:
            targets = []
        return [target.id for target in targets if isinstance(target, ast.Name)]

    def native(self, node: ast.AST) -> bool:
        """Is the expression a ``Native`` object, or a list of them?"""
        if isinstance(node, ast.Name):
            return node.id in self.variables
        if isinstance(node, ast.Attribute):
            inside = self.native(node.value)
            return not node.attr.startswith("__") if inside else node.attr in self.fields
        if isinstance(node, ast.Call):
            return self.native(node.func) or self._getattr(node) is not None
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return self.native(node.elt)
        return isinstance(node, (ast.Subscript, ast.NamedExpr)) and self.native(node.value)

    def _getattr(self, node: ast.Call) -> str | None:
        called = isinstance(node.func, ast.Name) and node.func.id == "getattr" and self.native(node.args[0])
        return node.args[1].value if called and isinstance(node.args[1], ast.Constant) else None

    def names(self) -> set[str]:
        found: set[str] = set()
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and self.native(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and (name := self._getattr(node)):
                found.add(name)
            elif isinstance(node, ast.ClassDef) and any(self.native(base) for base in node.bases):
                found |= {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
        return {name for name in found if not name.startswith("_")}
