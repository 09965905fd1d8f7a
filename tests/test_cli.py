"""How every command begins and ends: flags, the folder it is run from, its streams, signals, and faults of ours."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FAST, ROOT, command, drafts_in, refusal, stage, write_params

PYTHON = shlex.quote(sys.executable)
INFER = f"{PYTHON} -m finetune.commands.main chat"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_models, words) -> Path:
    """A repository with a tiny fine-tuned model: params.yaml, dvc.yaml, models/, data/."""

    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(folder, methods=FAST)
        (folder / "dvc.yaml").write_text("stages: {}\n")
        (folder / "words.json").write_text(json.dumps(words))
        stage("fetch", "--model_name", tiny_models["llama"], "--dataset", "words.json")
        stage("prepare")
        stage("quantize")
        stage("train")
    return folder


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a line of bash, the library importable from anywhere."""
    return command("bash", "-c", line, cwd=cwd, PYTHONPATH=str(ROOT), **environment)


def program(body: str, stdout_is_the_result: bool = False) -> str:
    """A shell word that runs a command whose work is `body`."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"import sys\nfrom finetune import cli\ndef main():\n{lines}cli.run(main, {stdout_is_the_result})\n"
    return f"{PYTHON} -c {shlex.quote(code)}"


def one_sentence(done: subprocess.CompletedProcess, status: int = 1) -> str:
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").strip()


# Streams


def test_an_answer_into_a_closed_pipe_ends_without_a_word(tuned):
    done = shell(f'set -o pipefail; {INFER} --prompt "Name the moon." | head -c 1', tuned)
    assert (done.returncode, done.stderr, len(done.stdout)) == (141, "", 1)


@pytest.mark.parametrize("reader", ["true", "head -c 1", "sleep 0"])
@pytest.mark.parametrize("text", ["'x'", "'x' * 10 ** 6"])
def test_whatever_the_reader_takes_nothing_is_said(tmp_path, reader, text):
    done = shell(f"{program(f'print({text})', True)} | {reader}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
def test_every_character_can_be_printed_to_every_terminal(tmp_path, encoding):
    printed = program(r"print('caf\u00e9 \U0001f600 \udcff end')", True)
    done = subprocess.run(
        ["bash", "-c", printed],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding, "LANG": "C"},
        capture_output=True,
    )
    text = done.stdout.decode(encoding)
    assert (done.returncode, done.stderr) == (0, b"") and text.rstrip().endswith("end")
    assert "\U0001f600" in text or r"\U0001f600" in text


def test_a_sentence_with_an_emoji_reaches_an_ascii_terminal(tuned):
    done = shell(f"{INFER} --prompt x --ckpt 😀", tuned, PYTHONIOENCODING="ascii:strict")
    assert r"'\U0001f600': experiments, revisions and registered models are found in" in one_sentence(done)


def test_an_answer_on_a_full_disk_is_an_error(tuned):
    assert "stdout: can't be written (No space left on device)" in one_sentence(
        shell(f'{INFER} --prompt "Name the moon." > /dev/full', tuned)
    )


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full"])
def test_a_stage_goes_on_whoever_listens(tmp_path, redirect):
    body = "print('x' * 10**5, flush=True)\nprint('y', file=sys.stderr, flush=True)\nopen('made', 'w').write('done')"
    done = shell(f"{program(body)} {redirect}", tmp_path)
    assert done.returncode == 0 and (tmp_path / "made").read_text() == "done"


def test_a_stage_goes_on_when_its_reader_has_gone(tmp_path):
    body = "import time\nfor _ in range(20): print('x' * 10**4, flush=True)\nopen('made', 'w').write('done')"
    done = shell(f"set -o pipefail; {program(body)} | head -c 1", tmp_path)
    assert done.returncode == 0 and (tmp_path / "made").exists()
    assert done.stderr == "warning: stdout can't be written (Broken pipe); continuing without it\n"


def test_help_into_a_closed_pipe_or_a_full_disk(tmp_path):
    for flags in ("--help | true", "chat --help | head -c 1", "--help > /dev/full"):
        assert "Traceback" not in shell(f"{PYTHON} -m finetune.commands.main {flags}", tmp_path).stderr


# Signals


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")]
)
def test_a_signal_ends_with_a_sentence_and_without_a_draft(tmp_path, number, said):
    body = (
        "from finetune.files import whole_folder, whole_file\nfrom pathlib import Path\nimport time\n"
        "with whole_folder(Path('made')) as draft, whole_file(Path('file')) as file:\n"
        "    print('ready', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen(
        ["bash", "-c", f"exec {program(body)}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in the background, their children would ignore some of these.
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (128 + number, f"error: {said}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_signal_stays_ignored(tmp_path):
    body = "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nprint('still here')"
    assert shell(f"trap '' HUP; {program(body)}", tmp_path).stdout == "still here\n"


# Faults of ours


def report_of(done: subprocess.CompletedProcess) -> str:
    path = Path(re.search(r"the full report is in (\S+);", one_sentence(done))[1])
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return text


def test_an_unforeseen_fault_is_one_sentence_and_a_report(tmp_path):
    (tmp_path / "params.yaml").write_text("method: qlora\n")
    done = shell(f"{program('{}[chr(10) + str(7)]')} --a flag", tmp_path, TMPDIR=str(tmp_path))
    assert re.match(
        r"unexpected KeyError \('\\n7'\): the full report is in .+finetune-report-\w+\.txt; ", one_sentence(done)
    )
    report = report_of(done)
    for part in ("Traceback", "KeyError", "torch ", "python 3", "--a flag", "method: qlora", str(tmp_path)):
        assert part in report, part


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuvwxyz",
        "https://user:pa55w0rd@index.example/simple",
        "https://pa55w0rd@github.com/a/b",
        "https://h.example/f?token=pa55w0rd&x=1",
        "--token pa55w0rd",
        "Authorization: Bearer pa55w0rdpa55w0rd",
        "the-value-of-a-variable",
        '{"api_key": "pa55w0rd"}',
        "AWS_SECRET_ACCESS_KEY=pa55w0rd",
        "X-Amz-Signature=pa55w0rd",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "https://user:with@pa55w0rd@index.example/simple",
        "https://h.blob.example/f?sv=2026&sig=pa55w0rd%3D",
        "glpat-abcdefghijklmnopqrst",
        "eyJabcdefghijklmnop.eyJabcdefghijklmnop.abcdefghijklmnop",
    ],
)
def test_no_secret_is_in_the_sentence_or_the_report(tmp_path, secret):
    (tmp_path / "params.yaml").write_text(f"x: '{secret}'\n")
    words = program(f"raise RuntimeError('see ' + {secret!r})")
    done = shell(f"{words} {shlex.quote(secret)}", tmp_path, HF_TOKEN="the-value-of-a-variable", TMPDIR=str(tmp_path))
    everything = done.stderr + report_of(done)
    for part in ("pa55w0rd", "abcdefghijklmnop", "the-value-of-a-variable"):
        assert part not in everything, everything


def test_without_a_place_for_the_report_the_traceback_is_printed(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    body = f"import tempfile\ntempfile.tempdir = {nowhere!r}\n1 / 0"
    done = shell(program(body), tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert (
        "unexpected ZeroDivisionError (division by zero): the full report stands above" in done.stderr.splitlines()[-1]
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("open('/dev/full', 'w').write('x' * 10**6)", "the disk is full"),
        ("open('/etc/passwd/x', 'w')", "/etc/passwd/x: a part of this path is a file"),
        ("open('x' * 300, 'w')", "the name is too long"),
        ("import os; os.symlink('loop', 'loop'); open('loop')", "loop: is a symbolic link that leads to itself"),
        ("raise RuntimeError('write failed: No space left on device (os error 28)')", "the disk is full"),
        (
            "try:\n    open('/dev/full', 'w').write('x' * 10**6)\nexcept OSError as e:\n    raise RuntimeError('x') from e",
            "full",
        ),
    ],
)
def test_what_the_disk_refuses_is_a_sentence_without_a_report(tmp_path, body, said):
    sentence = one_sentence(shell(program(body), tmp_path))
    assert said in sentence and "report" not in sentence


def test_a_sentence_is_one_line_whatever_the_value(tmp_path):
    done = shell(program("from finetune.errors import UserError\nraise UserError('a\\nb\\r\\nc')"), tmp_path)
    assert one_sentence(done) == "a b c"


# Flags


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fetch", "--size", "many"], "--size: invalid int value: 'many'; `fetch.py --help` shows what can be given"),
        (["fetch", "--size", "9" * 5000], "--size: invalid int value: '9999"),
        (["fetch", "--size", "0"], "data.size: must be at least 3, got 0"),
        (["fetch", "--size", "-5"], "data.size: must be at least 3, got -5"),
        (["fetch", "--size", "1e3"], "--size: invalid int value: '1e3'"),
        (["fetch", "--size", str(10**30)], "data.size: must be at most"),
        (["fetch", "--dataset", ""], "--dataset: is empty; give a name or a path"),
        (["fetch", "--model_name", " "], "--model_name: is empty; give a name or a path"),
        (["fetch", "--model_name", "x" * 5000], "' is no name; `fetch.py --help`"),
        (["fetch", "everything"], "what: invalid choice: 'everything'"),
        (["prepare", "--sise", "3"], "unrecognized arguments: --sise 3"),
        (["prepare", "--out_dir"], "--out_dir: expected one argument"),
        (["prepare", "--out_dir", ""], "--out_dir: is empty; give the name of a folder"),
        (["prepare", "--out_dir", "params.yaml"], "params.yaml: is a file, or lies in one; give a folder as --out_dir"),
        (["prepare", "--out_dir", "params.yaml/x"], "params.yaml/x: is a file, or lies in one"),
        (["prepare", "--out_dir", "."], ".: holds this whole repository, which would be lost"),
        (["prepare", "--out_dir", ".."], "..: holds this whole repository, which would be lost"),
        (["prepare", "--out_dir", "/"], "/: holds this whole repository, which would be lost"),
        (["prepare", "--out_dir", "data"], "data: is part of the pipeline's data/raw, or holds it"),
        (["prepare", "--out_dir", "data/raw"], "data/raw: is part of the pipeline's data/raw, or holds it"),
        (["prepare", "--out_dir", "data/raw/x"], "data/raw/x: is part of the pipeline's data/raw, or holds it"),
        (["prepare", "--out_dir", "data/../data/./raw"], "data/raw, or holds it"),
        (["prepare", "--out_dir", "mine"], "mine: holds other files, which would be lost"),
        (["train", "--out_dir", "models"], "models: is part of the pipeline's models/base, or holds it"),
        (["train", "--out_dir", "models/base"], "models/base: is part of the pipeline's models/base, or holds it"),
        (["train", "--out_dir", "models/tuned/x", "--method", "qlorra"], "method: must be one of"),
        (["train", "--out_dir", "plots"], "plots: is part of the pipeline's plots, or holds it"),
        (["train", "--out_dir", ".git"], ".git: is part of the pipeline's .git, or holds it"),
        (["fetch", "--out_dir", "."], ".: holds this whole repository"),
        (["fetch", "--out_dir", "data"], "data: is part of the pipeline's data/raw, or holds it"),
        (["fetch", "--out_dir", "above"], "above/data: holds other files, which would be lost"),
        (["eval", "--out_dir", "."], ".: holds this whole repository"),
        (["infer", "--prompt", "x", "--max_new_tokens", "-1"], "eval.max_new_tokens: must be at least 1, got -1"),
        (["infer", "--prompt", "x", "--ckpt", ""], "--ckpt: is empty"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_bad_flag_gets_one_sentence_and_nothing_is_touched(workspace, words, said):
    for name in ("mine/notes.txt", "above/data/notes.txt"):
        (workspace / name).parent.mkdir(parents=True)
        (workspace / name).write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    assert said in refusal(*words)
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before


def test_an_unknown_command_is_one_sentence(tmp_path):
    done = shell(f"{PYTHON} -m finetune.commands.main infr", tmp_path)
    assert one_sentence(done).startswith("COMMAND: invalid choice: 'infr'")


# The folder that it is run from


def answer(capsys, *flags: object) -> str:
    capsys.readouterr()
    stage("infer", "--prompt", "Name the moon.", *flags)
    return capsys.readouterr().out


def test_an_answer_is_the_same_from_every_folder(tuned, monkeypatch, capsys):
    monkeypatch.chdir(tuned)
    from_the_root = answer(capsys)
    assert from_the_root.strip()
    for folder in ("data", "models/base", "deep/er"):
        (tuned / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tuned / folder)
        assert answer(capsys) == from_the_root
        assert Path.cwd() == tuned / folder


def test_a_path_means_what_it_means_where_the_user_stands(tuned, monkeypatch, capsys):
    there = tuned / "data/deeper"
    there.mkdir()
    monkeypatch.chdir(there)
    assert answer(capsys, "--ckpt", "../../models/tuned").strip()
    # Else it is a name, as docs/sharing.md lists them: `models/tuned` is the repository's from everywhere.
    assert answer(capsys, "--ckpt", "models/tuned") == answer(capsys)


def test_stages_run_from_a_subfolder(tuned):
    there = tuned / "elsewhere"
    there.mkdir(exist_ok=True)
    (there / "few.json").write_text((tuned / "words.json").read_text())
    done = shell(f"{PYTHON} {ROOT}/stages/fetch.py data --dataset few.json --out_dir got", there)
    assert done.returncode == 0 and (there / "got/data/few.json").exists(), done.stderr
    done = shell(f"{PYTHON} {ROOT}/stages/prepare.py --dataset got/data --out_dir prepared", there)
    assert done.returncode == 0 and (there / "prepared/facts.yaml").exists(), done.stderr
    assert (there / "prepared/metrics/data.json").exists()


def test_a_folder_of_its_own_wins_over_one_above(tuned):
    own = tuned / "own"
    own.mkdir()
    (own / "params.yaml").write_text("method: [")
    assert "params.yaml: not valid YAML" in one_sentence(shell(f"{INFER} --prompt x", own))


def test_outside_of_a_repository_the_sentence_says_where_to_go(tmp_path):
    assert "params.yaml: not found; run this from the repository's root" in one_sentence(
        shell(f"{INFER} --prompt x", tmp_path)
    )


def test_a_folder_that_is_gone_is_a_sentence(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f"cd {gone} && rmdir {gone} && {INFER} --prompt x", tmp_path)
    assert "the folder that you stand in was removed" in one_sentence(done)


def test_no_draft_is_left(tuned):
    assert not drafts_in(tuned)
