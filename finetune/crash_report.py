"""The full report of a fault that nobody foresaw: what a developer needs, in a file, without secrets."""

import os
import platform
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ISSUES = "https://github.com/zeyuyuyu/Qlora/issues"
PACKAGES = ("finetune", "torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "dvc", "dvclive")
_LONGEST_MESSAGE = 200

_SECRET_NAME = re.compile(r"(?i)token|secret|passw|credential|api_?key|access_?key|private_?key")
_SECRETS = (
    re.compile(r"(?<=://)[^/\s]+(?=@)"),  # user:password@host
    re.compile(r"\b(?:hf|gh[opsu]|github_pat|glpat|pypi|sk|xox[abp])[_-][\w-]{12,}"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),  # an AWS key's id, a JSON web token
    re.compile(r"(?i)(?<=bearer |.basic )[\w+/=.~-]{8,}"),
    re.compile(  # in an address
        r"(?i)[?&][\w-]*(?:token|secret|passw(?:or)?d|key|credentials?|signature|sig|pwd|auth|code)=(?P<secret>[^\s\"'&)]+)"
    ),
)
"""What can be nothing else."""
_LIKELY = (
    re.compile(
        r"(?i)(?:token|secret|passw(?:or)?d|key|credentials?|signature)[\"']?(?:\s*[=:]\s*|\s+)[\"']?(?P<secret>[^\s\"'&]{6,})"
    ),
)
"""What stands behind a word that sounds like one; in a sentence of ours that may be any word."""


def write(error: BaseException) -> str:
    """Write the report on `error`, the exception at hand; return the sentence that says what and where.

    Where it can't be written, it goes to stderr.
    """
    text = without_secrets(_text(error))
    try:
        handle, name = tempfile.mkstemp(prefix="finetune-report-", suffix=".txt", text=True)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        where = f"the full report is in {name}"
    except OSError as unwritten:
        print(text, file=sys.stderr)
        where = f"the full report stands above, as no temporary file can be written ({unwritten.strerror})"
    return f"unexpected {_named(error)}: {where}; please send it to {ISSUES}"


def without_secrets(text: str) -> str:
    """`text` with tokens, passwords, the values of variables that sound like one, and what stands behind a word that
    does, left out."""
    return _without(_LIKELY, sentence_without_secrets(text))


def sentence_without_secrets(text: str) -> str:
    """`text`, which speaks of tokens and keys itself, with all that can be nothing but a secret left out."""
    hidden = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 6}
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, "…")
    return _without(_SECRETS, text)


def _without(patterns: Iterable[re.Pattern[str]], text: str) -> str:
    for pattern in patterns:
        text = pattern.sub(_hide, text)
    return text


def _hide(found: re.Match[str]) -> str:
    secret = found.groupdict().get("secret") or found[0]
    return found[0].replace(secret, "…")


def _named(error: BaseException) -> str:
    """'KeyError ('packed', loss.py:12)', cut to a line."""
    message = " ".join(without_secrets(str(error)).split())
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]}…"
    return f"{type(error).__name__} ({message})" if message else type(error).__name__


def _text(error: BaseException) -> str:
    return "\n".join(
        (
            f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}  {shlex.join(sys.argv)}",
            f"in {_folder()}",
            f"python {platform.python_version()}, {platform.platform()}",
            ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
            "",
            "".join(traceback.format_exception(error)),
            "params.yaml:",
            _params(),
        )
    )


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        return f"a folder that is gone ({error.strerror})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _params() -> str:
    try:
        return Path("params.yaml").read_text(encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return f"can't be read ({error.strerror})"
