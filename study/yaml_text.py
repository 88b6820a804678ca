"""Read YAML text safely, keeping the line of every key.

PyYAML's safe loader with three mends: `1e-4` is a number (YAML 1.2; YAML 1.1 reads it as text, and eta axes are written
like that), a key given twice is an error instead of the last one winning, and every key's line is known, so that a
message can point at it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

Path = tuple[str | int, ...]


class YamlError(ValueError):
    """The text is not one YAML mapping; the message is one line and says where."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise YamlError(f"line {line}: the key {key!r} is not text")
            if key in seen:
                raise YamlError(f"line {line}: {key} is given twice (first in line {seen[key]})")
            seen[key] = line
        return super().construct_mapping(node, deep)


# The loader's own table is shared with its parents: copy before adding to it.
_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse(text: str) -> tuple[Any, dict[Path, int]]:
    """The value, and the line (from 1) of every key and list item by its path.

    Raises:
        YamlError: not YAML, a tag that safe YAML does not have, a key twice, or a key that is not text.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[Path, int] = {}
        _walk(node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(f"{where}not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _walk(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*path, i)] = item.start_mark.line + 1
            _walk(item, (*path, i), lines)
