"""`finetune chat` talks to checkpoints: one prompt, many, or a conversation in which adapters are swapped."""

import io
import json
import os
import select
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, refusal, stage

from finetune.commands import chat
from finetune.errors import UserError


@pytest.fixture
def tuned(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def answer(capsys, *arguments) -> str:
    capsys.readouterr()
    stage("infer", *arguments)
    return capsys.readouterr().out


def test_headings_and_escapes_make_the_same_prompt_as_bare_text(tuned, capsys):
    bare = answer(capsys, "--prompt", "Name the moon.")
    assert bare.strip()
    assert answer(capsys, "--prompt", r"### Instruction:\nName the moon.") == bare
    context = answer(capsys, "--prompt", "### Instruction:\nName the moon.\n\n### Input:\nAt night.")
    assert answer(capsys, "--prompt", r"### Instruction:\nName the moon.\n\n### Input:\nAt night.") == context


def test_the_number_of_tokens_is_a_flag(tuned, capsys):
    assert len(answer(capsys, "--prompt", "Name the moon.", "--max_new_tokens", 1)) < len(
        answer(capsys, "--prompt", "Name the moon.", "--max_new_tokens", 30)
    )
    assert "eval.max_new_tokens: must be at least 1, got 0" in refusal("infer", "--prompt", "x", "--max_new_tokens", 0)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--prompt", r"### Instruction:\n"], "--prompt: holds no instruction"),
        (["--prompt", "x", "--file", "y"], "--prompt and --file: give one of them"),
        (["--file", "missing.txt"], "missing.txt: can't be read (No such file or directory)"),
        (["--file", "empty.txt"], "empty.txt: holds no prompt"),
        (["--prompt", "x", "--temperature", "-1"], "temperature: must be from 0 (greedy) to 100, got -1.0"),
        (["--prompt", "x", "--top_p", "0"], "top_p: must be above 0"),
        (["--prompt", "x", "--at_a_time", "0"], "--at_a_time: must be a whole number of 1 or more"),
        (["--prompt", "word " * 2000], "are more than the 512 positions of workspace"),
        (["--prompt", "x", "--ckpt", "data/raw"], "data/raw: no fine-tuned model there"),
    ],
)
def test_bad_input_ends_in_a_sentence(tuned, flags, sentence):
    (tuned / "empty.txt").write_text("\n\n")
    assert sentence in refusal("infer", *flags)


def test_a_file_is_answered_in_batches_as_each_prompt_is_alone(tuned, capsys, monkeypatch):
    prompts = [
        "Name the moon.",
        "Draw old ships.",
        r"### Instruction:\nPraise it.\n### Input:\nThe wind.",
        "Count small cats.",
    ]
    (tuned / "prompts.txt").write_text("\n".join([prompts[0], "", *prompts[1:]]))
    alone = [answer(capsys, "--prompt", prompt).strip() for prompt in prompts]
    assert answer(capsys, "--file", "prompts.txt", "--at_a_time", 2).splitlines() == alone
    stage("infer", "--file", "prompts.txt", "--json")
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["answer"] for row in rows] == alone
    assert rows[0]["model"] == "workspace" and rows[0]["finish_reason"] in ("stop", "length")
    assert f"4 answers, {sum(row['tokens'] for row in rows)} tokens in" in printed.err and "tokens/s" in printed.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("Name the moon.\nDraw old ships.\n"))
    assert answer(capsys).splitlines() == alone[:2]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "standard input: holds no prompt" in refusal("infer")


def test_sampling_repeats_by_its_seed(tuned, capsys):
    drawn = [answer(capsys, "--prompt", "Name the moon.", "--temperature", 3, "--seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def hold(monkeypatch, capsys, *lines: object, flags: tuple = ()) -> tuple[list[str], list[str]]:
    """What a conversation of typed `lines` prints to stdout and stderr; an exception among them is raised there."""
    waiting = iter(lines)

    def typed(_: str) -> str:
        line = next(waiting, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    capsys.readouterr()
    chat.main(flags)
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err.splitlines()


def test_a_conversation_swaps_adapters_over_one_base(tuned, monkeypatch, capsys):
    alone = {
        name: answer(capsys, "--prompt", "Name the moon.", *(["--ckpt", name] if name != "workspace" else [])).strip()
        for name in ("workspace", "other", "full")
    }
    out, err = hold(
        monkeypatch, capsys, "Name the moon.", "/compare workspace other full base", "/reset", "/use other",
        "Name the moon.", "/adapters", "/quit", "never asked",
    )  # fmt: skip
    assert out[0] == alone["workspace"]
    headings = [line.split()[1] for line in out if line.startswith("── ")]
    assert sorted(headings) == ["base", "full", "other", "workspace"]
    for name, text in alone.items():
        assert out[next(i for i, line in enumerate(out) if line.startswith(f"── {name} ")) + 1] == text
    assert out[-5] == alone["other"]
    assert [line.split()[:2] for line in out[-4:]] == [["base", out[-4].split()[1]], ["workspace", out[-3].split()[1]],
        ["*", "other"], ["full", out[-1].split()[1]]]  # fmt: skip
    megabytes = {line.split()[-3]: float(line.split()[-2]) for line in out[-4:]}
    assert 0 < megabytes["other"] < megabytes["base"] < megabytes["full"]
    assert "other answers" in err


def test_history_is_part_of_the_next_prompt(tuned, monkeypatch, capsys):
    from finetune.generation.engine import Engine

    own, asked = Engine.submit, []
    monkeypatch.setattr(Engine, "submit", lambda engine, request: (asked.append(request.prompt), own(engine, request)))
    hold(monkeypatch, capsys, "Name the moon.", "And a river?", "/reset", "And a river?")
    first, second, anew = asked
    assert second[: len(first)] == first and len(second) > len(anew)


def test_what_is_wrong_with_a_line_is_said_and_the_next_one_is_answered(tuned, monkeypatch, capsys):
    lines = ("/use nowhere", "/use", "/compare base", "/fly", KeyboardInterrupt(), "x " * 3000, "Name the moon.")
    out, err = hold(monkeypatch, capsys, *lines)
    assert len(out) == 1 and out[0]
    for sentence in (
        "error: 'nowhere': ", "error: /use: takes one name", "error: /compare: there is no question yet",
        "error: /fly: no such command", "/quit or Ctrl-D leaves", "are more than the 512 positions",
    ):  # fmt: skip
        assert any(sentence in line for line in err), f"{sentence}: {err}"


def test_ctrl_c_stops_the_answer_and_not_the_conversation(tuned, monkeypatch, capsys):
    from finetune.generation.engine import Engine

    own, steps = Engine.step, []

    def interrupted(engine: Engine):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return own(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    out, err = hold(monkeypatch, capsys, "Name the moon.", "/reset", "Name the moon.", flags=("--max_new_tokens", "30"))
    assert "stopped" in err and len(out) == 2 and out[1].startswith(out[0]) and len(out[1]) > len(out[0])


def process(trained, *flags: str, **streams: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "finetune.commands.main", "chat", *flags]
    return subprocess.Popen(command, cwd=trained, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **streams)


def test_a_reader_that_goes_away_ends_it_quietly(trained):
    (trained / "many.txt").write_text("Name the moon.\n" * 400)
    done = process(trained, "--file", "many.txt", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout.readline().strip()
    done.stdout.close()
    assert done.wait(60) == 141 and done.stderr.read() == ""


@pytest.mark.skipif(os.name == "nt", reason="signals and terminals of POSIX")
def test_a_real_terminal(trained):
    """Ctrl-C while nothing is answered ends nothing, and Ctrl-D ends it."""
    import pty

    main, terminal = pty.openpty()
    running = process(trained, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(terminal)
    os.write(main, b"Name the moon.\n")
    assert "Here is" in running.stdout.readline()
    # A signal that comes just before Python begins to wait for a line is heard after that line alone, so it is sent again;
    # what is typed before it is heard is dropped with the line.
    running.send_signal(signal.SIGINT)
    heard = b""
    while b"Ctrl-D leaves" not in heard and b"stopped" not in heard:
        if not select.select([running.stderr], [], [], 2)[0]:
            running.send_signal(signal.SIGINT)
        else:
            heard += (read := os.read(running.stderr.fileno(), 1000))
            assert read
    os.write(main, b"/adapters\n")
    while "workspace" not in (line := running.stdout.readline()):
        assert line
    os.write(main, b"\x04")
    _, err = running.communicate(timeout=60)
    os.close(main)
    assert running.returncode == 0, err


def test_an_adapter_of_another_base_is_refused(tuned, tiny_models, tmp_path, capsys):
    import shutil

    from finetune import yaml_file

    strange = tmp_path / "strange"
    shutil.copytree(tuned / "other", strange)
    facts = yaml_file.read(strange / "facts.yaml") | {"base_fingerprint": "0123456789abcdef"}
    (strange / "facts.yaml").write_text(yaml_file.text(facts))
    assert "was trained over other weights (fingerprint 0123456789abcdef)" in refusal(
        "infer", "--prompt", "x", "--ckpt", strange
    )


def test_an_unknown_model_is_refused(tuned):
    with pytest.raises(UserError, match="nowhere"):
        chat.main(["--prompt", "x", "--ckpt", "nowhere"])
