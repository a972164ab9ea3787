"""YAML that remembers on which line every key stands, so that a sentence about it can say so."""

from collections.abc import Mapping

import yaml

from assay.errors import BadInput

KeyPath = tuple[str | int, ...]


class Where:
    """Puts file, line and key in front of what is wrong."""

    def __init__(self, source: str, lines: Mapping[KeyPath, int]) -> None:
        self._source = source
        self._lines = lines

    def sentence(self, path: KeyPath, said: str) -> str:
        """`file:line: key: what is wrong`."""
        # The value that is wrong may not exist in the file (a missing key): then its parent's line.
        for length in range(len(path), -1, -1):
            line = self._lines.get(path[:length])
            if line is not None:
                return f"{self._source}:{line}: {dotted(path)}: {said}" if path else f"{self._source}:{line}: {said}"
        return f"{self._source}: {dotted(path)}: {said}" if path else f"{self._source}: {said}"


def dotted(path: KeyPath) -> str:
    """`cases[0].options.ops`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read_yaml(text: str, source: str) -> tuple[object, dict[KeyPath, int]]:
    """Plain data, and the line of every key path in it. Raises BadInput, with the line, for what is no strict YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[KeyPath, int] = {}
        if node is not None:
            _note_lines(node, (), lines, source)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise BadInput(f"{place}: is no valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise BadInput(
            f"{source}: is no valid YAML: {str(error).splitlines()[0] if str(error) else 'nested too deep'}"
        ) from None


def _note_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], source: str) -> None:
    line = node.start_mark.line + 1
    # Aliases can make a small file endless; no suite comes near these bounds.
    if len(path) > 40 or len(lines) > 100_000:
        raise BadInput(f"{source}:{line}: nested too deep or too large for a suite; write it without nested aliases")
    lines.setdefault(path, line)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            at = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(f"{source}:{at}: expected a plain key")
            inner = (*path, str(key.value))
            if inner in lines:
                raise BadInput(f"{source}:{at}: {dotted(inner)}: key is given twice")
            lines[inner] = at
            _note_lines(value, inner, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), lines, source)
