"""Strings in Markdown, so that they show as they are and break no table."""

import re

__all__ = ["Ready", "address", "code", "code_block", "escape"]


class Ready(str):
    """Markdown that needs no more escaping."""

    __slots__ = ()


def escape(value: object) -> str:
    r"""Text that Markdown shows as it is, on one line, also inside a table.

    Args:
        value: the text; what is `Ready` stays as it is.

    Examples:
        >>> print(escape("a|b\n<c> *d*"))
        a\|b &lt;c&gt; \*d\*
    """
    if isinstance(value, Ready):
        return value
    # A non-breaking space is not what `split` should take away.
    line = " ".join(re.split(r"[ \t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+", str(value)))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", line)


def code(value: object) -> Ready:
    r"""Text as a span of code, also inside a table.

    Args:
        value: the text.

    Examples:
        >>> print(code("clip(max_norm=1.0)"), code("a|b`c"))
        `clip(max_norm=1.0)` ``a\|b`c``
    """
    line = " ".join(str(value).split()).replace("|", "\\|")
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    fence = "`" * (_longest_run(line) + 1)
    return Ready(f"{fence}{pad}{line}{pad}{fence}")


def code_block(value: object) -> Ready:
    r"""Text as a block of code.

    Args:
        value: the text; it may have several lines.

    Examples:
        >>> print(code_block("gradwise compare"))
        ```
        gradwise compare
        ```
    """
    body = "\n".join(str(value).splitlines())
    fence = "`" * max(3, _longest_run(body) + 1)
    return Ready(f"{fence}\n{body}\n{fence}")


def address(value: object) -> Ready:
    """An address to click on.

    Args:
        value: such as https://arxiv.org/abs/2509.03677.

    Examples:
        >>> print(address("https://example.org/a_b"))
        <https://example.org/a_b>
    """
    plain = "".join(str(value).split())
    return Ready("<" + re.sub(r"[<>\\]", "", plain) + ">")


def _longest_run(line: str) -> int:
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", line)), default=0)
