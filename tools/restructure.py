"""Move and merge modules and rename what they define, after a table, in the whole tree.

    python tools/restructure.py tools/layout.txt            change the working tree
    python tools/restructure.py tools/layout.txt --check     print what would go wrong: name clashes, circles, long
    files

The table has blocks; names are relative to ``flowportrait``:

    rendering/motion.py: Motion as numbers, and the files that hold it.
        codec.basis codec.motion_file
    rename codec.basis:Identity -> FaceIdentity
    file evaluate/report.html -> evaluation/report.html
    word loudest -> max_std                     an attribute, method, field or keyword, wherever it stands in code

Behaviour does not change: bodies are kept, in an order in which what is needed at import comes first; imports,
dotted names
in strings and documents, and paths follow. Private names that clash get the old module's name; public ones must be
renamed by the
table. Names inside functions are looked up as Python does, so a parameter that is called like a function stays.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "flowportrait"
SOURCE = ROOT / "src" / PACKAGE
LONGEST = 500
OUTSIDE = "tools."
"""Modules of this prefix are scripts beside the package."""
PYTHON_FOLDERS = ("src", "tests", "benchmarks", "tools", "docs", "examples")
TEXT = ("README.md", "docs/**/*.md", "pyproject.toml", "Makefile", "NOTICE", "mkdocs.yml", ".github/**/*.yml",
        "src/**/*.md", "reports/*.md", "*.md", "tests/**/*.jsonl", "tests/**/*.toml", "tests/**/*.md")  # fmt: skip


@dataclass
class Block:
    """One new module: its name, its first sentence, and the old modules that it is made of."""

    name: str
    title: str
    members: list[str]


@dataclass
class Table:
    """What the table file says."""

    blocks: list[Block] = field(default_factory=list)
    renames: dict[tuple[str, str], str] = field(default_factory=dict)
    files: list[tuple[str, str]] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)


@dataclass
class Module:
    """An old module, parsed."""

    name: str
    path: Path
    source: bytes
    tree: ast.Module
    is_package: bool
    lines: list[int] = field(default_factory=list)

    def at(self, line: int, column: int) -> int:
        """Byte offset of a position."""
        return self.lines[line - 1] + column

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Byte offsets of a node."""
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def read_table(path: Path) -> Table:
    """Read the table."""
    table = Table()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.split("#")[0].rstrip() if line.lstrip().startswith("#") else line.rstrip()
        if not text:
            continue
        if found := re.fullmatch(r"rename (\S+):(\S+) -> (\S+)", text):
            table.renames[found[1], found[2]] = found[3]
        elif found := re.fullmatch(r"word (\S+) -> (\S+)", text):
            table.words[found[1]] = found[2]
        elif found := re.fullmatch(r"file (\S+) -> (\S+)", text):
            table.files.append((found[1], found[2]))
        elif text[0].isspace():
            table.blocks[-1].members += text.split()
        elif found := re.fullmatch(r"(\S+)\.py: (.+)", text):
            table.blocks.append(Block(found[1].replace("/", ".").removesuffix(".__init__"), found[2], []))
        else:
            raise SystemExit(f"{path}:{number}: not understood: {line}")
    return table


def parse(name: str, path: Path) -> Module:
    source = path.read_bytes()
    lines, start = [], 0
    for line in source.splitlines(keepends=True):
        lines.append(start)
        start += len(line)
    lines.append(start)
    return Module(name, path, source, ast.parse(source), path.name == "__init__.py", lines)


def load_package() -> dict[str, Module]:
    """Every module of the package by its name without the package's own."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = parse(name, path)
    return found


def definitions(tree: ast.Module) -> dict[str, list[ast.stmt]]:
    """Names that a module binds at its top, other than by import."""
    found: dict[str, list[ast.stmt]] = defaultdict(list)

    def visit(statements: list[ast.stmt]) -> None:
        for node in statements:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found[node.name].append(node)
            elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.With)):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                for target in targets:
                    for part in ast.walk(target) if target is not None else ():
                        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                            found[part.id].append(node)
            elif isinstance(node, (ast.If, ast.Try)) and not is_type_checking(node):
                visit(node.body)
                visit(node.orelse)

    visit(tree.body)
    return found


def has_code(tree: ast.Module) -> bool:
    """Whether a module has more than a docstring."""
    return any(not isinstance(node, ast.Expr) for node in tree.body)


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).startswith("__name__ ==")


class Names(ast.NodeVisitor):
    """Places where names of a module's top are used or bound, scope by scope."""

    def __init__(self, wanted: set[str]) -> None:
        self.wanted, self.found = wanted, []  # type: ignore[var-annotated]
        self.hidden: list[set[str]] = [set()]

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self.wanted and node.id not in self.hidden[-1]:
            self.found.append((node, node.id))

    def visit_Global(self, node: ast.Global) -> None:
        for name in node.names:
            if name in self.wanted:
                self.found.append((node, name))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(part)
        # Names bound in a class body are seen in the body alone, not in its methods.
        bound = {n for statement in node.body for n in bound_here(statement)}
        outer = self.hidden[-1]
        for statement in node.body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                for part in getattr(statement, "decorator_list", []):
                    self.visit(part)
                decorators, statement.decorator_list = statement.decorator_list, []
                self.visit(statement)
                statement.decorator_list = decorators
            else:
                annotation = getattr(statement, "annotation", None)
                if isinstance(statement, ast.AnnAssign):
                    self.visit(annotation)  # type: ignore[arg-type]
                    if statement.value:
                        self.hidden.append(outer | {n for n in bound if n not in names_in(statement.value)})
                        self.visit(statement.value)
                        self.hidden.pop()
                else:
                    self.hidden.append(outer | bound_here(statement))
                    self.visit(statement)
                    self.hidden.pop()

    def _function(self, node: ast.FunctionDef | ast.Lambda) -> None:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [a for a in (arguments.vararg, arguments.kwarg) if a]
        for part in (*getattr(node, "decorator_list", []), *arguments.defaults, *arguments.kw_defaults):
            if part is not None:
                self.visit(part)
        for argument in every:
            if argument.annotation:
                self.visit(argument.annotation)
        if returns := getattr(node, "returns", None):
            self.visit(returns)
        local = {argument.arg for argument in every}
        body = node.body if isinstance(node.body, list) else [node.body]
        shared = {n for s in body for g in ast.walk(s) if isinstance(g, (ast.Global, ast.Nonlocal)) for n in g.names}
        for statement in body:
            local |= bound_here(statement)
        self.hidden.append((self.hidden[-1] | local) - shared)
        for statement in body:
            self.visit(statement)
        self.hidden.pop()

    def _comprehension(self, node: ast.AST) -> None:
        bound = {
            part.id for generator in node.generators for part in ast.walk(generator.target)  # type: ignore[attr-defined]
            if isinstance(part, ast.Name)
        }  # fmt: skip
        self.visit(node.generators[0].iter)  # type: ignore[attr-defined]
        self.hidden.append(self.hidden[-1] | bound)
        for index, generator in enumerate(node.generators):  # type: ignore[attr-defined]
            if index:
                self.visit(generator.iter)
            for condition in generator.ifs:
                self.visit(condition)
        for name in ("elt", "key", "value"):
            if hasattr(node, name):
                self.visit(getattr(node, name))
        self.hidden.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


def names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def bound_here(statement: ast.AST) -> set[str]:
    """Names that a statement binds in its own scope, nested functions and comprehensions left out."""
    bound: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
            return
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            for part in ast.walk(node):
                if isinstance(part, ast.NamedExpr):
                    bound.add(part.target.id)
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            bound.add(node.id)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update((alias.asname or alias.name.split(".")[0]) for alias in node.names)
        if isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        if isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
            bound.add(node.name)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(statement)
    return bound


class Restructure:
    """The whole change."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.modules = load_package()
        self.place = {old: block.name for block in table.blocks for old in block.members}
        self.problems: list[str] = []
        self.final: dict[tuple[str, str], str] = dict(table.renames)
        for module, name in table.renames:
            if module not in self.modules or name not in definitions(self.modules[module].tree):
                self.problems.append(f"rename: {module} has no {name}")
        counted = [old for block in table.blocks for old in block.members]
        for old in counted:
            if old not in self.modules:
                self.problems.append(f"table: there is no module {old}")
            if counted.count(old) > 1:
                self.problems.append(f"table: {old} is listed twice")
        for name, own in self.modules.items():
            if name not in self.place and name and (not own.is_package or has_code(own.tree)):
                self.problems.append(f"not in the table: {name}")
        self.table.blocks = [
            Block(block.name, block.title, [m for m in block.members if m in self.modules]) for block in table.blocks
        ]

    def new_home(self, module: str) -> str:
        return self.place.get(module, module)

    def name_of(self, module: str, name: str) -> str:
        return self.final.get((module, name), name)

    def resolve(self, node: ast.ImportFrom, alias: ast.alias) -> tuple[str, str | None] | None:
        """(old module, name) or (old module, None) for a module; None where it is not of the package."""
        if node.level or not node.module or (node.module + ".").split(".")[0] != PACKAGE:
            return None
        base = node.module.removeprefix(PACKAGE).lstrip(".")
        full = f"{base}.{alias.name}".lstrip(".")
        if full in self.modules and not (base in self.modules and alias.name in definitions(self.modules[base].tree)):
            return full, None
        return base, alias.name

    # -- clashes -----------------------------------------------------------------------------------------------------

    def settle_clashes(self) -> None:
        """Give private names that clash in a new module the old module's name; report public ones."""
        for block in self.table.blocks:
            owners: dict[str, str] = {}
            for old in self.order(block):
                for name, nodes in definitions(self.modules[old].tree).items():
                    final = self.name_of(old, name)
                    if final not in owners:
                        owners[final] = old
                        continue
                    first = definitions(self.modules[owners[final]].tree)
                    first_nodes = next((n for k, n in first.items() if self.name_of(owners[final], k) == final), [])
                    if [ast.dump(n) for n in first_nodes] == [ast.dump(n) for n in nodes]:
                        continue
                    if name.startswith("_") or name == "main":
                        stem = old.split(".")[-1]
                        changed = f"_{stem}_{name.lstrip('_')}" if name.islower() or name[0] == "_" else name
                        if name.lstrip("_").isupper():
                            changed = f"_{stem.upper()}_{name.lstrip('_')}"
                        self.final[old, name] = changed
                        owners[changed] = old
                    else:
                        self.problems.append(
                            f"clash in {block.name}: {name} of {old} and of {owners[final]}: rename one"
                        )

    def order(self, block: Block) -> list[str]:
        """Members with what is needed at import before who needs it."""
        needs: dict[str, list[str]] = {}
        for old in block.members:
            needs[old] = []
            for node in self.modules[old].tree.body:
                if isinstance(node, ast.ImportFrom):
                    for alias in node.names:
                        target = self.resolve(node, alias)
                        if target and target[0] in block.members and target[0] != old:
                            needs[old].append(target[0])
        done: list[str] = []

        def add(name: str, path: tuple[str, ...]) -> None:
            if name in done:
                return
            if name in path:
                self.problems.append(f"{block.name}: members import each other: {' -> '.join((*path, name))}")
                return
            for need in needs[name]:
                add(need, (*path, name))
            if name not in done:
                done.append(name)

        for old in block.members:
            add(old, ())
        return done

    # -- one file ----------------------------------------------------------------------------------------------------

    def edits(
        self, module: Module, home: str | None
    ) -> tuple[list[tuple[int, int, bytes]], list[tuple[bool, str, str, str]]]:
        """Changes in a file's text. For a member of a new module ``home`` top-level imports of the package and of
        others are
        collected (type checking only, module, name, local name) instead of rewritten in place."""
        changes: list[tuple[int, int, bytes]] = []
        collected: list[tuple[bool, str, str, str]] = []
        renamed: dict[str, str] = {}
        modules: dict[str, str] = {}
        """Local names of modules and which old module they are."""
        direct: set[str] = set()
        """Those of them that are replaced by imports of what is used."""
        for own in definitions(module.tree) if self.modules.get(module.name) is module else ():
            if self.name_of(module.name, own) != own:
                renamed[own] = self.name_of(module.name, own)
        top = {id(node) for node in module.tree.body}
        typed = {id(n) for node in module.tree.body if is_type_checking(node) for n in node.body}  # type: ignore[attr-defined]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import) and home and (id(node) in top or id(node) in typed):
                for alias in node.names:
                    collected.append((id(node) in typed, "", alias.name, alias.asname or ""))
                continue
            if isinstance(node, ast.Import):
                for alias in node.names:
                    old = alias.name.removeprefix(PACKAGE + ".")
                    if alias.name.startswith(PACKAGE + ".") and old in self.place:
                        self.problems.append(f"{module.path}: import {alias.name} is not handled")
                continue
            if not isinstance(node, ast.ImportFrom):
                continue
            at_top, in_typed = id(node) in top, id(node) in typed
            grouped: dict[str, list[str]] = defaultdict(list)
            touched = False
            for alias in node.names:
                local = alias.asname or alias.name
                target = self.resolve(node, alias)
                if target is None:
                    dotted = "." * node.level + (node.module or "")
                    if home and (at_top or in_typed) and dotted != "__future__":
                        collected.append((in_typed, dotted, alias.name, local))
                    grouped[dotted].append(alias.name if local == alias.name else f"{alias.name} as {local}")
                    continue
                old, name = target
                new = self.new_home(old)
                if name is None and (used := self.attributes_used(module, local, old)):
                    # A module that is now part of another: its names are imported instead.
                    modules[local] = old
                    direct.add(local)
                    touched = True
                    for attribute in used:
                        final = self.name_of(old, attribute)
                        if new != home and home and (at_top or in_typed):
                            collected.append((in_typed, qualified(new), final, final))
                        if new != home:
                            grouped[qualified(new)].append(final)
                    continue
                if name is None:
                    modules[local] = old
                    if new == home:
                        touched = True
                        continue
                    parent, _, stem = qualified(new).rpartition(".")
                    wording = stem if stem == local else f"{stem} as {local}"
                    touched |= new != old
                    if home and (at_top or in_typed):
                        collected.append((in_typed, parent, stem, local))
                    grouped[parent].append(wording)
                    continue
                final = self.name_of(old, name)
                if new == home:
                    touched = True
                    if local != final:
                        renamed[local] = final
                    continue
                if final != name and local == name:
                    renamed[local] = local = final
                touched |= new != old or final != name
                parent = qualified(new)
                if home and (at_top or in_typed):
                    collected.append((in_typed, parent, final, local))
                grouped[parent].append(final if local == final else f"{final} as {local}")
            if home and (at_top or in_typed):
                continue
            if touched:
                start, end = module.span(node)
                indent = b" " * node.col_offset
                texts = [f"from {where} import {', '.join(dict.fromkeys(names))}" for where, names in grouped.items()]
                if texts:
                    changes.append((start, end, (b"\n" + indent).join(text.encode() for text in texts)))
                else:
                    changes.append((self.at_line_start(module, start), self.line_end(module, end), b""))
        self.renamed_here = renamed
        self._rename_uses(module, renamed, modules, direct, home, changes)
        return changes, collected

    def attributes_used(self, module: Module, local: str, old: str) -> list[str]:
        """What a file uses of a module that it imports, where the new module holds more than that one and the names
        can stand
        alone; else nothing."""
        block = next((b for b in self.table.blocks if old in b.members), None)
        if block is None or len(block.members) == 1:
            return []
        values = [
            n.value for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)
        ]
        inside = {id(v) for v in values}
        bare = [n for n in ast.walk(module.tree) if isinstance(n, ast.Name) and n.id == local and id(n) not in inside]
        used = sorted(
            {n.attr for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
             and n.value.id == local}
        )  # fmt: skip
        own = definitions(self.modules[old].tree)
        taken = {n.id for n in ast.walk(module.tree) if isinstance(n, ast.Name)}
        taken |= {n.arg for n in ast.walk(module.tree) if isinstance(n, ast.arg)}
        taken |= {n.name for n in ast.walk(module.tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        finals = {self.name_of(old, name) for name in used}
        if bare or not used or any(name not in own for name in used) or finals & taken:
            return []
        return used

    def _rename_uses(self, module: Module, renamed: dict[str, str], modules: dict[str, str], direct: set[str],
                     home: str | None, changes: list[tuple[int, int, bytes]]) -> None:  # fmt: skip
        local_imports = {
            (alias.asname or alias.name) for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }  # fmt: skip
        visitor = Names(set(renamed))
        visitor.visit(module.tree)
        places = list(visitor.found)
        # Names that a function imports for itself are local to it, and renamed there all the same.
        for function in ast.walk(module.tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = {
                    (a.asname or a.name) for n in ast.walk(function) if isinstance(n, ast.ImportFrom) for a in n.names
                    if self.resolve(n, a)
                } & set(renamed) & local_imports  # fmt: skip
                places += [(n, n.id) for n in ast.walk(function) if isinstance(n, ast.Name) and n.id in inner]
        seen: set[int] = set()
        for node, name in places:
            if isinstance(node, ast.Global):
                start, end = module.span(node)
                text = module.source[start:end]
                changes.append((start, end, re.sub(rb"\b%s\b" % name.encode(), renamed[name].encode(), text)))
                continue
            start, end = module.span(node)
            if start in seen or module.source[start:end] != name.encode():
                continue
            seen.add(start)
            changes.append((start, end, renamed[name].encode()))
        for node in module.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name in renamed:
                start = module.at(node.lineno, node.col_offset)
                found = re.compile(rb"(?:async\s+)?(?:def|class)\s+(%s)\b" % node.name.encode()).match(
                    module.source, start
                )
                assert found, (module.name, node.name)
                changes.append((*found.span(1), renamed[node.name].encode()))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[0], ast.Name):
                # monkeypatch.setattr(module, "name", …)
                word = node.args[1]
                if node.args[0].id in modules and isinstance(word, ast.Constant) and isinstance(word.value, str):
                    final = self.name_of(modules[node.args[0].id], word.value)
                    if final != word.value:
                        changes.append((*module.span(word), f'"{final}"'.encode()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                old = modules[node.value.id]
                final = self.name_of(old, node.attr)
                start, end = module.span(node)
                if self.new_home(old) == home or node.value.id in direct:
                    changes.append((start, end, final.encode()))
                elif final != node.attr:
                    changes.append((start, end, f"{node.value.id}.{final}".encode()))

    @staticmethod
    def at_line_start(module: Module, offset: int) -> int:
        return module.source.rfind(b"\n", 0, offset) + 1

    @staticmethod
    def line_end(module: Module, offset: int) -> int:
        end = module.source.find(b"\n", offset)
        return len(module.source) if end < 0 else end + 1

    # -- a merged file -----------------------------------------------------------------------------------------------

    def compose(self, block: Block) -> str:
        order = self.order(block)
        paragraphs, bodies = list[str](), list[str]()
        imports: dict[tuple[str, str, str], bool] = {}
        locals_: dict[str, tuple[str, str]] = {}
        defined = {self.name_of(o, n) for o in order for n in definitions(self.modules[o].tree)}
        dumps: set[str] = set()
        futures = False
        for old in order:
            module = self.modules[old]
            changes, collected = self.edits(module, block.name)
            for typed, where, name, local in collected:
                shown = local or name.split(".")[0]
                other = locals_.get(shown)
                if shown in defined:
                    self.problems.append(
                        f"{block.name}: {old} imports {where}.{name} as {shown}, which is defined here"
                    )
                if other and other != (where, name):
                    self.problems.append(f"{block.name}: {shown} is {other} and, in {old}, {(where, name)}")
                locals_[shown] = (where, name)
                key = (where, name, local)
                imports[key] = imports.get(key, True) and typed
            text = apply(module.source, changes)
            tree = ast.parse(text)
            docstring = ast.get_docstring(tree)
            if docstring:
                paragraphs.append(docstring)
            shifted = parse_text(text)
            previous, begun = 0, False
            for index, node in enumerate(shifted.tree.body):
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                last = node.end_lineno or len(shifted.lines)
                start, end = previous, shifted.lines[last] if last < len(shifted.lines) else len(text)
                previous = end
                is_doc = index == 0 and docstring is not None
                is_import = isinstance(node, (ast.Import, ast.ImportFrom))
                futures |= is_import and getattr(node, "module", "") == "__future__"
                if is_doc or is_import or is_type_checking(node):
                    lead = text[start : shifted.lines[first - 1]].strip()
                    if lead and not is_doc and not lead.startswith(b"# fmt"):
                        self.problems.append(f"comment before an import is lost in {old}: {lead.decode()}")
                    continue
                dump = ast.dump(node)
                names = set(definitions(ast.Module([node], [])))
                if names and dump in dumps:
                    continue
                if names and not isinstance(node, ast.Expr):
                    dumps.add(dump)
                piece = text[start:end]
                blank = min(2, max(0, piece[: len(piece) - len(piece.lstrip(b"\n"))].count(b"\n")))
                separator = "" if not bodies else "\n" * (blank if begun else 2)
                begun = True
                bodies.append(separator + piece.strip(b"\n").decode() + "\n")
            tail = text[previous:].strip()
            if tail:
                bodies.append("\n" + tail.decode() + "\n")
        document = block.title if not paragraphs else self._docstring(block.title, paragraphs)
        lines = [f'"""{document}"""' if "\n" not in document else f'"""{document}\n"""', ""]
        lines += ["from __future__ import annotations", ""] if futures else []
        runtime = [written(k) for k, typed in imports.items() if not typed]
        checking = [written(k) for k, typed in imports.items() if typed]
        if checking and ("typing", "TYPE_CHECKING", "TYPE_CHECKING") not in imports:
            runtime.append("from typing import TYPE_CHECKING")
        if not checking:
            runtime = [line for line in runtime if line != "from typing import TYPE_CHECKING"]
        lines += [*runtime, ""]
        if checking:
            lines += ["if TYPE_CHECKING:", *("    " + line for line in checking), ""]
        return "\n".join(lines) + "\n\n" + "".join(bodies)

    @staticmethod
    def _docstring(title: str, paragraphs: list[str]) -> str:
        if len(paragraphs) == 1:
            rest = paragraphs[0].split("\n\n", 1)
            return title if len(rest) == 1 else f"{title}\n\n{rest[1]}"
        return title + "\n\n" + "\n\n".join(p.replace("\\", "\\\\") if "\\" in p else p for p in paragraphs)

    # -- everything --------------------------------------------------------------------------------------------------

    def run(self, check: bool) -> int:
        self.settle_clashes()
        texts = {block.name: self.compose(block) for block in self.table.blocks}
        packages = {name for block in texts for name in parents(block)}
        for name, text in texts.items():
            if text.count("\n") > LONGEST:
                self.problems.append(f"long: {name} has {text.count(chr(10))} lines")
        self.problems += circles(texts, packages)
        for problem in dict.fromkeys(self.problems):
            print(problem)
        print(f"{len(texts)} modules from {len(self.place)}, {len(dict.fromkeys(self.problems))} remarks")
        if check:
            return 1 if self.problems else 0
        others = self._rewrite_others()
        for name, module in self.modules.items():
            if name in self.place or (module.is_package and not has_code(module.tree) and name):
                module.path.unlink()
        for old, new in self.table.files:
            (SOURCE / new).parent.mkdir(parents=True, exist_ok=True)
            (SOURCE / old).rename(SOURCE / new)
        for name, text in texts.items():
            target = place_of(name)
            path = target / "__init__.py" if name in packages else target.with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._dotted(text), encoding="utf-8")
        for path, content in others.items():
            path.write_bytes(content)
        self._packages()
        self._words()
        for pattern in TEXT:
            for path in ROOT.glob(pattern):
                if path.is_file() and "layout" not in path.name:
                    text = path.read_text(encoding="utf-8")
                    if (changed := self._dotted(text)) != text:
                        path.write_text(changed, encoding="utf-8")
        return 0

    def _rewrite_others(self) -> dict[Path, bytes]:
        """Files outside the table: their imports and dotted names."""
        found = {}
        for folder in PYTHON_FOLDERS:
            for path in sorted((ROOT / folder).rglob("*.py")):
                if path == Path(__file__).resolve():
                    continue
                name = next((n for n, m in self.modules.items() if m.path == path), None)
                if name in self.place:
                    continue
                module = self.modules[name] if name is not None else parse(f"?{path}", path)
                changes, _ = self.edits(module, None)
                text = self._quoted(module, self._dotted(apply(module.source, changes).decode())).encode()
                if text != module.source:
                    found[path] = text
        return found

    def _quoted(self, module: Module, text: str) -> str:
        """Renamed names in double backticks, unless something else in the file is called the same."""
        others = {node.arg for node in ast.walk(module.tree) if isinstance(node, (ast.arg, ast.keyword))}
        others |= {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
        for outer in ast.walk(module.tree):
            if isinstance(outer, (ast.FunctionDef, ast.ClassDef)):
                others |= {name for statement in outer.body for name in bound_here(statement)}
        for name, final in self.renamed_here.items():
            if name not in others:
                text = re.sub(rf"(?<=``){re.escape(name)}(?=``|\()", final, text)
        return text

    def _dotted(self, text: str) -> str:
        """Dotted names and paths of old modules in strings and documents."""
        for (module, name), final in self.final.items():
            before = rf"\b{PACKAGE}\.{re.escape(module)}([.:]){re.escape(name)}\b"
            text = re.sub(before, rf"{PACKAGE}.{module}\1{final}", text)
        moved = {old: new for old, new in self.place.items() if old != new}
        for old in sorted(moved, key=len, reverse=True):
            new = moved[old]
            text = re.sub(rf"\b{PACKAGE}\.{re.escape(old)}\b(?!\.py\b)", blocked(qualified(new)), text)
            if "." in old:
                path = old.replace(".", "/")
                prefix = rf"(?:src/{PACKAGE}/)?" if new.startswith(OUTSIDE) else ""
                slashed = blocked(new.replace(".", "/") + ".py")
                text = re.sub(rf"(?<![\w-]){prefix}{re.escape(path)}\.py\b", slashed, text)
                text = re.sub(rf"(?<=``){re.escape(old)}(?=``|\.[A-Za-z_]+``)", blocked(new), text)
                text = re.sub(rf"(?<=`){re.escape(old)}(?=`)", blocked(new), text)
        return text.replace("\0", "")

    def _words(self) -> None:
        """Replace words of the table where they stand in code, and in double backticks."""
        if not self.table.words:
            return
        quoted = re.compile(rf"(?<=``)({'|'.join(map(re.escape, self.table.words))})(?=``|\()")
        for folder in PYTHON_FOLDERS:
            for path in sorted((ROOT / folder).rglob("*.py")):
                if path == Path(__file__).resolve():
                    continue
                text = path.read_text(encoding="utf-8")
                lines = text.splitlines(keepends=True)
                tokens = tokenize.generate_tokens(io.StringIO(text).readline)
                for token in reversed([t for t in tokens if t.type == tokenize.NAME and t.string in self.table.words]):
                    row, start = token.start[0] - 1, token.start[1]
                    line = lines[row]
                    lines[row] = line[:start] + self.table.words[token.string] + line[start + len(token.string) :]
                changed = quoted.sub(lambda found: self.table.words[found[1]], "".join(lines))
                if changed != text:
                    path.write_text(changed, encoding="utf-8")

    def _packages(self) -> None:
        """Every folder with modules is a package; folders without files go."""
        for folder in sorted((p for p in SOURCE.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
            rest = [p for p in folder.iterdir() if p.name != "__pycache__"]
            if not rest:
                subprocess.run(["rm", "-rf", str(folder)], check=True)
        for folder in {path.parent for path in SOURCE.rglob("*.py")}:
            if not (folder / "__init__.py").exists():
                (folder / "__init__.py").write_text("", encoding="utf-8")


def blocked(name: str) -> str:
    """A name with a mark in it, so that it is not taken for an old one that is still to be replaced."""
    return re.sub(r"(?=[A-Za-z_])(?<![A-Za-z_])", "\0", name)


def qualified(name: str) -> str:
    """The name that a module is imported by."""
    return name if name.startswith(OUTSIDE) else f"{PACKAGE}.{name}".rstrip(".")


def place_of(name: str) -> Path:
    """The file of a new module, without its ending."""
    return (ROOT if name.startswith(OUTSIDE) else SOURCE) / Path(*name.split("."))


def parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def written(key: tuple[str, str, str]) -> str:
    where, name, local = key
    if not where:
        return f"import {name}" + (f" as {local}" if local else "")
    return f"from {where} import {name}" + ("" if local == name else f" as {local}")


def parse_text(text: bytes) -> Module:
    lines, start = [], 0
    for line in text.splitlines(keepends=True):
        lines.append(start)
        start += len(line)
    lines.append(start)
    return Module("", Path(), text, ast.parse(text), False, lines)


def apply(source: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Apply changes; of two that overlap the one that begins first and reaches further wins."""
    kept: list[tuple[int, int, bytes]] = []
    for change in sorted(set(changes), key=lambda c: (c[0], -c[1])):
        if not kept or change[0] >= kept[-1][1]:
            kept.append(change)
    for start, end, text in reversed(kept):
        source = source[:start] + text + source[end:]
    return source


def circles(texts: dict[str, str], packages: set[str]) -> list[str]:
    """Circles of imports between new modules, those inside functions included."""
    graph: dict[str, set[str]] = {name: set() for name in texts}
    for name, text in texts.items():
        if name.startswith(OUTSIDE):
            continue
        tree = ast.parse(text)
        typed = {id(inner) for outer in tree.body if is_type_checking(outer) for inner in ast.walk(outer)}
        for node in ast.walk(tree):
            if id(node) in typed:
                continue
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tools."):
                print(f"the package imports a tool: {name} imports {node.module}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE + "."):
                base = (node.module or "").removeprefix(PACKAGE + ".")
                for alias in node.names:
                    target = f"{base}.{alias.name}" if f"{base}.{alias.name}" in texts else base
                    if target in texts and target != name:
                        graph[name].add(target)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []
    sys.setrecursionlimit(10000)

    def connect(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in graph[v]:
            if w not in index:
                connect(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            part = []
            while True:
                w = stack.pop()
                part.append(w)
                if w == v:
                    break
            if len(part) > 1:
                edges = [f"{a}->{b}" for a in part for b in graph[a] if b in part]
                found.append(f"circle: {', '.join(sorted(part))}: {'; '.join(sorted(edges))}")

    for v in graph:
        if v not in index:
            connect(v)
    return found


if __name__ == "__main__":
    sys.exit(Restructure(read_table(Path(sys.argv[1]))).run("--check" in sys.argv))
