"""Makes a copy of a module in which mutmut can mutate all functions and constants.

mutmut changes code inside functions. It skips decorated functions and the constants of a module. So the copy applies
decorators by an assignment below the function, and has the value of a constant in place of its name.
"""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst
import libcst.matchers as m

_PLAIN = m.Integer() | m.Float() | m.SimpleString() | m.Name("None") | m.Name("True") | m.Name("False")
_CALLED = m.Call(func=m.Attribute(m.Name("re"), m.Name("compile")) | m.Name("frozenset"))
_CLASS_LEVEL = m.Name("classmethod") | m.Name("staticmethod")


def prepared(source: str) -> str:
    """The same module, with decorators applied by assignment and with values in place of constants in functions."""
    module = cst.parse_module(source)
    constants = {
        line.body[0].targets[0].target.value: line.body[0].value
        for line in module.body
        if m.matches(line, m.SimpleStatementLine([m.Assign([m.AssignTarget(m.Name())])]))
        and _is_constant(line.body[0].value)
    }
    return module.visit(_WrittenOut(constants)).visit(_Undecorated()).code


def _is_constant(value: cst.BaseExpression) -> bool:
    if m.matches(value, m.Tuple() | m.Set()):
        return all(_is_constant(element.value) for element in value.elements)
    if m.matches(value, m.UnaryOperation()):
        return _is_constant(value.expression)
    return m.matches(value, _PLAIN | _CALLED)


class _WrittenOut(m.MatcherDecoratableTransformer):
    """Replaces names of constants by their values, in functions only, because code outside is not mutated."""

    def __init__(self, constants: dict[str, cst.BaseExpression]) -> None:
        super().__init__()
        self.constants, self.depth = constants, 0
        self.kept: set[cst.CSTNode] = set()

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        self.depth += 1
        for decorator in node.decorators:
            self.kept.update(m.findall(decorator, m.Name()))
        return True

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:
        self.depth -= 1
        return updated_node

    def visit_Attribute(self, node: cst.Attribute) -> None:
        self.kept.add(node.attr)

    def visit_Arg(self, node: cst.Arg) -> None:
        if node.keyword is not None:
            self.kept.add(node.keyword)

    def visit_FormattedString(self, node: cst.FormattedString) -> None:
        """A constant in an f-string stays a name, because numbers in messages are not tested."""
        self.kept.update(m.findall(node, m.Name()))

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        if not self.depth or original_node in self.kept or original_node.value not in self.constants:
            return updated_node
        value = self.constants[original_node.value]
        if m.matches(value, m.Tuple()):
            return value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()]).deep_clone()
        return value.deep_clone()


class _Undecorated(cst.CSTTransformer):
    """Changes ``@a def f(): …`` to ``def f(): …`` and ``f = a(f)``, for functions of a module and of its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        self.depth += 1
        return True

    def leave_FunctionDef(
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.FunctionDef | cst.FlattenSentinel[cst.BaseStatement]:
        self.depth -= 1
        decorators = updated_node.decorators
        if self.depth or not decorators or (len(decorators) == 1 and m.matches(decorators[0].decorator, _CLASS_LEVEL)):
            return updated_node
        return cst.FlattenSentinel([updated_node.with_changes(decorators=[]), _applied(decorators, updated_node.name)])


def _applied(decorators: Sequence[cst.Decorator], name: cst.Name) -> cst.BaseStatement:
    value: cst.BaseExpression = name
    for decorator in reversed(decorators):
        value = cst.Call(decorator.decorator, [cst.Arg(value)])
    return cst.SimpleStatementLine([cst.Assign([cst.AssignTarget(name)], value)])
