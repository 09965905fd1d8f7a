r"""Escape sequences in what was typed: a shell passes `\n` on as two characters."""

from __future__ import annotations

import re

from finetune.errors import UserError

_TEX = (
    "nabla|natural|ne|neg|neq|newcommand|newline|ni|nleq|nmid|noindent|not|notin|nu|"
    "tan|tanh|tau|text[a-z]*|tfrac|theta|thickapprox|tilde|times|to|top|triangle|"
    "rangle|rceil|ref|renewcommand|rfloor|rho|right[a-zA-Z]*|rightarrow|rm"
)
_DRIVE = r"(?:[B-PR-Zb-pr-z]:\\|\\\\(?=[\w.-]+\\))"
_TOKENS = re.compile(
    # Kept: a path of Windows or of a share (not A: and Q:, as in 'Q:\nWhy?'), and commands of TeX …
    # In quotes a path may hold spaces; one may also follow an escape, as the first word of a line does.
    rf"(?P<kept>(?<=[\"']){_DRIVE}[^\"']*(?=[\"'])"
    rf"|(?:(?<![^\s\"'(=/])|(?<=\\[ntr])){_DRIVE}(?:(?!(?:\\n)+### )[^\s?*<>|\":])*"
    rf"|\\(?:{_TEX})(?![a-zA-Z]))"
    # … while these become characters.
    r"|\\(?P<escape>[ntr\\\"']|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2})"
)


def unescape(text: str) -> str:
    r"""`text` with \n \t \r \\ \" \' \uXXXX \UXXXXXXXX \xXX turned into characters, where a shell left them so.

    A text that has line breaks is taken as it is: its author could type them. Windows paths and
    commands of TeX that start with such letters stay, as does every other backslash. Raises UserError
    for what is no character, half of a surrogate pair among them.
    """
    if "\n" not in text:
        text = _TOKENS.sub(_character, text)
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeError:
        raise UserError(
            "--prompt: holds half of a surrogate pair (such as \\ud83d alone), which is no character; write both halves, "
            "or the character itself"
        ) from None


def _character(match: re.Match[str]) -> str:
    if match["kept"]:
        return match["kept"]
    try:
        return match[0].encode().decode("unicode_escape")
    except UnicodeDecodeError:
        raise UserError(f"--prompt: {match[0]} is no character of Unicode, whose last one is \\U0010ffff") from None
