"""Files as people have them, through stages/prepare.py: read right, or counted by name; the sentences are in faults."""

import csv
import datetime
import io
import json

import pytest
from datasets import load_from_disk
from helpers import refusal, stage, write_params

ROWS = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(20)]


def table(rows: list[dict], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plain(*rows: str) -> str:
    return "".join(f"{row}\n" for row in ("instruction,input,output", *rows))


UNQUOTED = [f"{row['instruction']},,{row['output']}" for row in ROWS]
JSON = json.dumps(ROWS)


@pytest.fixture
def prepare(workspace, tiny_models):
    """Prepare a file (or what a function writes); the counts, and the answers that were kept."""

    def run(name, content, **data) -> tuple[dict, list[str]]:
        target = workspace / "mine" / name
        target.parent.mkdir(exist_ok=True)
        if callable(content):
            content(target)
        else:
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        write_params(workspace, data={"size": 100, "max_length": 400} | data)
        stage("prepare", "--model_name", tiny_models["llama"], "--dataset", target.parent)
        splits = load_from_disk(str(workspace / "data/prepared"))
        answers = [row["reference"] for split in splits.values() for row in split]
        return json.loads((workspace / "metrics/data.json").read_text()), answers

    return run


@pytest.mark.parametrize(
    ("what", "name", "content"),
    [
        (
            "names in capitals",
            "a.csv",
            table(ROWS).replace("instruction,input,output", "Instruction,INPUT, Output ", 1),
        ),
        ("names in capitals", "a.json", JSON.replace('"instruction"', '"Instruction"').replace('"output"', '"OUTPUT"')),
        ("Excel's line", "a.csv", "sep=;\r\n" + table(ROWS, ";")),
        ("semicolons", "a.csv", table(ROWS, ";")),
        ("tabs", "a.tsv", table(ROWS, "\t")),
        ("tabs under another name", "a.csv", table(ROWS, "\t")),
        ("bars", "a.csv", table(ROWS, "|")),
        ("line ends of old Macs", "a.csv", table(ROWS).replace("\r\n", "\r")),
        ("blank lines", "a.csv", table(ROWS).replace("\r\n", "\r\n\r\n")),
        ("UTF-16, as Excel saves it", "a.csv", table(ROWS).encode("utf-16")),
        ("a byte-order mark", "a.json", b"\xef\xbb\xbf" + JSON.encode()),
        ("a byte-order mark on each line", "a.jsonl", "\n".join("\ufeff" + json.dumps(row) for row in ROWS)),
        ("capital suffix", "A.JSONL", "\n".join(map(json.dumps, ROWS))),
        ("lines named .json", "a.json", "\n".join(map(json.dumps, ROWS))),
        ("a list named .jsonl", "a.jsonl", json.dumps(ROWS, indent=1)),
        ("a wrapper", "a.json", json.dumps({"version": "1.0", "data": ROWS})),
        ("NaN, as pandas writes what is missing", "a.json", JSON.replace('"input": ""', '"input": NaN')),
        ("null", "a.json", JSON.replace('"input": ""', '"input": null, "history": null')),
        ("history as text", "a.csv", table([row | {"history": "[]"} for row in ROWS])),
    ],
)
def test_what_is_good_is_read(prepare, what, name, content):
    counts, answers = prepare(name, content)
    assert sorted(answers) == sorted(row["output"] for row in ROWS)
    assert counts["records_read"] == counts["form_alpaca"] == 20
    assert not [key for key in counts if key.startswith(("dropped", "ignored"))]


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("closing", ['"', '",x', '",x,y', '" z', ""])
def test_a_quote_that_swallows_rows_is_found_in_any_column(workspace, tiny_models, column, closing):
    opened = ['"Go.,,Gone.', 'Go.,"there,Gone.', 'Go.,,"Gone.'][column]
    broken = [*UNQUOTED[:5], opened, *UNQUOTED[5:9], UNQUOTED[9] + closing, *UNQUOTED[10:]]
    (workspace / "a.csv").write_text(plain(*broken))
    message = refusal("prepare", "--model_name", tiny_models["llama"], "--dataset", "a.csv")
    assert "the record that starts at line 7" in message and "isn't closed" in message


@pytest.mark.parametrize(
    "answer",
    [
        "Here it is:\na,b,c\n1,2,3\n4,5,6\nThat is all.",
        "Red, blue, green\nOne, two, three\nFour, five, six",
        'He said "a,\nb" and\n"c", d',
        "one\n\n\ntwo",
    ],
)
def test_an_answer_of_lines_and_commas_is_kept_whole(prepare, answer):
    counts, answers = prepare("a.csv", table([*ROWS, ROWS[0] | {"instruction": "Draw.", "output": answer}]))
    assert answer in answers and counts["records_kept"] == 21


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("a.csv", plain(*UNQUOTED, "too,many,cells,here", "too few"), {"dropped_ragged_row": 2}),
        ("a.csv", table(ROWS) + "\ufeff" + table(ROWS).split("\r\n")[0] + "\r\n", {"dropped_repeated_header": 1}),
        ("a.csv", table([{"": n} | row for n, row in enumerate(ROWS)]), {"ignored_column_(no name)": 20}),
        ("a.jsonl", "\n".join([*map(json.dumps, ROWS), '{"output": 1, "output": 2}']), {"dropped_duplicate_key": 1}),
        ("a.jsonl", "\n".join([*map(json.dumps, ROWS), "[" * 10**5]), {"dropped_too_deep": 1}),
        ("a.jsonl", "\n".join([*map(json.dumps, ROWS), '"broken_line"']), {"dropped_not_an_object": 1}),
        ("a.json", json.dumps([*ROWS, {"instruction": "\ud83d", "output": "a"}]), {"dropped_not_unicode": 1}),
        ("a.json", json.dumps([*ROWS, {"instruction": "a", "output": float("inf")}]), {"dropped_wrong_type": 1}),
        ("a.json", json.dumps([*ROWS, {"instruction": "a", "input": 0, "output": "b"}]), {"dropped_wrong_type": 1}),
        ("a.json", json.dumps([row | {"id": 1, "\ud83d": 2} for row in ROWS]), {"ignored_column_\\ud83d": 20}),
        ("a.json", json.dumps([row | {"text": "whole"} for row in ROWS]), {"ignored_column_text": 20}),
        (
            "a.json",
            json.dumps([row | {"messages": [{"role": "user", "content": "a"}]} for row in ROWS]),
            {"ignored_column_messages": 20},
        ),
    ],
)
def test_what_is_not_used_is_counted_by_name(prepare, name, content, count):
    counts, answers = prepare(name, content)
    assert sorted(answers) == sorted(row["output"] for row in ROWS)
    assert counts.items() >= count.items()


def conversation(*turns: tuple[str, str], **more: object) -> dict:
    return {"messages": [{"role": role, "content": text} | more for role, text in turns]}


@pytest.mark.parametrize(
    ("record", "count"),
    [
        (conversation(("user", "a"), ("assistant", "b"), ("user", "c")), {"form_messages": 1, "unanswered_turns": 1}),
        (conversation(("user", "a"), ("assistant", "b"), name="Ann"), {"ignored_column_messages.name": 1}),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "c"}]},
            {"ignored_column_messages.reasoning": 1},
        ),
        (conversation(("user", "a"), ("user", "b"), ("assistant", "c")), {"dropped_template_refused": 1}),
        ({"conversations": [{"from": "Human", "value": "a"}, {"from": "GPT", "value": "b"}]}, {"form_sharegpt": 1}),
        (
            {"conversations": json.dumps([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}])},
            {"form_sharegpt": 1},
        ),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, {"form_prompt_completion": 1}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"dropped_missing_completion": 1}),
        (conversation(("user", "a"), ("assistant", "b")) | {"tools": "[]"}, {"form_messages": 1}),
        (conversation(("user", "a"), ("assistant", "b")) | {"tools": [{"name": "c"}]}, {"dropped_tools": 1}),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {"dropped_wrong_type": 1}),
        ({"messages": "hello"}, {"dropped_wrong_type": 1}),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, {"dropped_wrong_type": 1}),
        ({"text": "a"}, {"dropped_missing_instruction": 1}),
    ],
)
def test_forms_and_their_faults_are_counted_by_name(prepare, record, count):
    assert prepare("a.json", json.dumps([*ROWS, record]))[0].items() >= count.items()


def test_parquet_of_every_type_is_read(prepare):
    import pyarrow
    from pyarrow import parquet

    beyond = pyarrow.array([2**53] * 20, pyarrow.timestamp("ms"))  # a day that Python has not
    texts = {name: pyarrow.array([row[name] for row in ROWS]).dictionary_encode() for name in ROWS[0]}
    counts, answers = prepare(
        "a.parquet", lambda path: parquet.write_table(pyarrow.table(texts | {"at": beyond}), path)
    )
    assert sorted(answers) == sorted(row["output"] for row in ROWS)
    assert counts["ignored_column_at"] == 20


def test_parquet_of_nested_messages_is_read_and_a_path_adds_no_column(prepare):
    import pyarrow
    from pyarrow import parquet

    talks = [conversation(("user", row["instruction"]), ("assistant", row["output"]))["messages"] for row in ROWS]

    def write(path):
        (path.parent / "lang=en").mkdir()
        parquet.write_table(
            pyarrow.table({"messages": talks, "when": [datetime.date.today()] * 20}), path.parent / "lang=en/b.parquet"
        )

    counts, answers = prepare("a.parquet", write)
    assert sorted(answers) == sorted(row["output"] for row in ROWS)
    assert [key for key in counts if key.startswith("ignored")] == ["ignored_column_when"]


@pytest.mark.parametrize("content", ["- a\n", "sources: [x]\n", "sources: {a: 1}\n", "source: mine\n", ""])
def test_a_facts_file_of_the_users_own_is_no_note_of_fetchs(prepare, content):
    def write(path):
        path.write_text(JSON)
        (path.parent / "facts.yaml").write_text(content)

    assert len(prepare("a.json", write)[1]) == 20


def test_a_source_that_gives_nothing_is_named(workspace, tiny_models):
    for name in ("a", "b"):
        (workspace / f"{name}.json").write_text(JSON)
    write_params(workspace, data={"source": ["a.json", "b.json"], "size": 100})
    stage("fetch", "data")
    stage("prepare", "--model_name", tiny_models["llama"])
    counts = json.loads((workspace / "metrics/data.json").read_text())
    assert (counts["source_1-a.json"], counts["dropped_duplicate"]) == (20, 20)


def test_the_size_flag_of_fetch_reads_own_columns(workspace, tiny_models):
    text = table(ROWS).replace("instruction", "Frage", 1).replace("output", "Antwort", 1)
    (workspace / "a.csv").write_text(text)
    write_params(workspace, data={"columns": {"instruction": "Frage", "output": "Antwort"}})
    stage("fetch", "data", "--dataset", "a.csv", "--size", 10)
    stage("prepare", "--model_name", tiny_models["llama"])
    assert json.loads((workspace / "metrics/data.json").read_text())["records_kept"] == 10
