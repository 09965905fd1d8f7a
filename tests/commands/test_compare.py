"""`finetune compare` on DVC experiments of the tiny model, as a user queues them."""

import base64
import json
import re
import shlex
from subprocess import CompletedProcess

import pytest
from helpers import ROOT, command, drafts_in, dvc

from finetune.comparison import generated
from finetune.comparison.charts import picture

EXPERIMENTS = {
    "qlora-1": [],
    "qlora-2": ["seed=2"],
    "full-1": ["method=full"],
    "small-rank": ["lora.r=2"],
    "other-data": ["data.seed=5"],
    "broken": ["lora.r=0"],
}


@pytest.fixture(scope="module")
def experiments(clone):
    """The clone after its queue of `EXPERIMENTS` has run, with one more that waits."""
    for name, settings in EXPERIMENTS.items():
        queue(clone, name, *settings)
    dvc(clone, "exp", "run", "--run-all")
    queue(clone, "waiting", "seed=9")
    return clone


def queue(clone, name: str, *settings: str) -> None:
    flags = [flag for setting in settings for flag in ("-S", setting)]
    done = dvc(clone, "exp", "run", "--queue", "-n", name, *flags)
    assert done.returncode == 0, done.stderr


def compare(clone, *arguments) -> CompletedProcess:
    return command("python", "-m", "finetune.commands.main", "compare", *arguments, cwd=clone)


def test_metrics_diff_names_what_the_methods_change(experiments):
    changed = json.loads(dvc(experiments, "metrics", "diff", "qlora-1", "full-1", "--json").stdout)
    assert set(changed) == {"metrics/train.json", "metrics/eval.json"}
    assert changed["metrics/train.json"]["size_gb"]["diff"] > 0


def documented_exp_show() -> list[str]:
    """The words behind `dvc` of the command in docs/results.md."""
    line = re.search(r"^dvc (exp show .*?)\s*#", (ROOT / "docs/results.md").read_text(), flags=re.MULTILINE)[1]
    return shlex.split(line)


@pytest.mark.parametrize(
    "question", [documented_exp_show(), ["metrics", "show"], ["metrics", "diff", "qlora-1", "full-1"]], ids=" ".join
)
def test_dvcs_tables_fit_160_columns(experiments, question):
    # The race changes method and seed; these experiments change more, and some failed.
    pager = ["--no-pager", "--drop", r"State|Executor|lora\.r|data\.seed"] if question[0] == "exp" else []
    done = command("dvc", *question, *pager, cwd=experiments, COLUMNS="160")
    assert done.returncode == 0 and "peak_device_gb" in done.stdout and "test_loss" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160 and "…" not in done.stdout


def test_table_and_page_hold_every_figure(experiments):
    done = compare(experiments, "qlora-*", "full-1", "--out_dir", "report")
    assert done.returncode == 0, done.stderr
    table = (experiments / "report/comparison.md").read_text()
    assert "|  | base | base, 4-bit | qlora | full |" in table and "| Seeds | - | - | 1, 2 | 1 |" in table
    assert "**Note.** Seeds differ: qlora 1, 2; full 1." in table
    assert re.search(
        r"\| ROUGE-L \(0 to 100\) \|( [\d.]+ \[[\d.]+, [\d.]+\] \|){2} [\d.]+ \[[\d.]+, [\d.]+\] ± [\d.]+ \|", table
    )
    for pair in ("qlora against base", "full against base", "qlora against full"):
        assert re.search(rf"\| {pair} (\| [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\], p [<=] [\d.]+ ){{3}}\|", table)

    page = (experiments / "report/comparison.html").read_text()
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == 6 and all(b"<svg" in base64.b64decode(picture) for picture in pictures)
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs other files"
    for name in ("qlora-1", "qlora-2", "full-1"):
        assert f"<td>{name}</td>" in page


def test_every_sentence_of_the_verdict_is_on_the_page(experiments):
    assert compare(experiments, "qlora-1", "full-1", "--out_dir", "report").returncode == 0
    page, text = ((experiments / f"report/comparison.{kind}").read_text() for kind in ("html", "md"))
    sentences = re.findall(r"^- (.+)$", text, flags=re.MULTILINE)
    assert sentences and all(sentence.replace("'", "&#39;") in page for sentence in sentences)


def test_the_documents_tables_their_figures_and_the_picture_are_written_together(experiments, editable):
    done = compare(experiments, "qlora-1", "full-1", "--publish", "--out_dir", "report")
    assert done.returncode == 0, done.stderr
    data = json.loads((experiments / "benchmarks/results/comparison.json").read_text())
    assert data["contenders"]["qlora"]["runs"] == ["qlora-1"]
    assert done.stdout.split("\n\nReport:")[0].strip() == generated.read("summary", experiments)
    assert (experiments / "report/comparison.md").read_text().strip() == generated.read("comparison", experiments)
    for page in ("light", "dark"):
        assert (experiments / f"docs/images/gain-{page}.svg").read_text() == picture(data, page)


def test_a_method_with_two_settings_is_two_contenders(experiments):
    done = compare(experiments, "qlora-1", "small-rank", "full-1", "--out_dir", "report")
    assert done.returncode == 0 and "|  | base | base, 4-bit | qlora-1 | small-rank | full |" in done.stdout
    assert "<td>lora.r</td><td>4</td><td>2</td><td>4</td>" in (experiments / "report/comparison.html").read_text()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["qlora-1", "nobody"], "nobody: no such experiment or revision; `dvc exp list"),
        (["nobody-*"], "nobody-*: no experiment has such a name"),
        (["qlora-1", "broken"], "broken: its run failed; `dvc queue logs broken` says why"),
        (["qlora-1", "waiting"], "waiting: has not ended yet; `dvc queue status`"),
        (["qlora-1", "other-data"], "other-data and qlora-1 were scored on different test sets"),
        (["qlora-1", "HEAD"], "HEAD and qlora-1 have the same settings and seed; name one of them"),
        (["HEAD~1"], "HEAD~1: no plots/live"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_the_last_report_stays(experiments, names, sentence):
    before = {path: path.read_bytes() for path in (experiments / "plots").glob("comparison.*")}
    done = compare(experiments, *names)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in (experiments / "plots").glob("comparison.*")} == before
    assert not drafts_in(experiments / "plots")


def test_results_of_unlike_runs_are_refused(experiments, editable):
    done = dvc(experiments, "exp", "run", "--name", "train-only", "-S", "seed=3", "train")
    assert done.returncode == 0, done.stderr
    refused = compare(experiments, "train-only")
    assert refused.returncode == 1
    assert "train-only: eval did not use the committed models/tuned" in refused.stderr
