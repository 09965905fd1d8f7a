"""Mistakes in records and files of data."""

import gzip
import json
from collections.abc import Callable

from faults import Bench, Fault

ROWS = [f"Say {n},,It is {n}." for n in range(8)]
HEADER = "instruction,input,output"
DROP = "-S data.on_bad_record=drop"
KNOWN = "completion, conversations, history, input, instruction, messages, output, prompt, system, tools"


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def a_file(what: str, name: str, content: str | bytes, names: str) -> Fault:
    """A file that can't be read as a whole."""

    def cause(bench: Bench) -> str:
        bench.write(name, content)
        return bench.refused("prepare", "--model_name", bench.models["llama"], "--dataset", name)

    return Fault("data", what, names, cause)


def a_record(what: str, record: object, names: str) -> Fault:
    """A record, the first of its file, where `data.on_bad_record: error` asks for its name."""

    def cause(bench: Bench) -> str:
        bench.params(data={"on_bad_record": "error"})
        bench.write("mine.json", json.dumps([record]))
        return bench.refused("prepare", "--model_name", bench.models["llama"], "--dataset", "mine.json")

    return Fault("data", what, f"mine.json[0]: … {names} … {DROP}", cause)


def a_parquet(what: str, columns: Callable[[], object], names: str) -> Fault:
    """A table that no pipeline can read."""

    def cause(bench: Bench) -> str:
        from pyarrow import parquet

        parquet.write_table(columns(), bench.folder / "a.parquet")
        return bench.refused("prepare", "--model_name", bench.models["llama"], "--dataset", "a.parquet")

    return Fault("data", what, names, cause)


def a_setting(what: str, names: str, model: str = "llama", **changes: object) -> Fault:
    """A setting that the data don't fit."""

    def cause(bench: Bench) -> str:
        bench.params(**changes)
        return bench.refused("prepare", "--model_name", bench.models[model])

    return Fault("data", what, names, cause)


def a_source(what: str, source: object, names: str) -> Fault:
    """A source that is none."""

    def cause(bench: Bench) -> str:
        (bench.folder / "empty").mkdir()
        bench.params(data={"source": source})
        return bench.refused("fetch", "data")

    return Fault("data", what, names, cause)


def twice() -> object:
    from pyarrow import Table, array

    texts = array(["a", "b", "c"])
    return Table.from_arrays([texts, texts, texts], ["instruction", "output", "output"])


def said(role: str, content: object, **more: object) -> dict:
    return {"role": role, "content": content, **more}


def unquoted(at: int, quoted: str, closed: str) -> str:
    return lines(HEADER, *ROWS[:at], quoted, *ROWS[at:-1], ROWS[-1] + closed)


FAULTS = [
    a_file("CSV whose quote is never closed", "a.csv", unquoted(2, 'Go.,,"Gone.', ""), "a.csv … CSV … line 4 … quote"),
    a_file(
        "CSV whose open quote is closed by that of a later row",
        "a.csv",
        unquoted(2, 'Go.,,"Gone.', '"'),
        "a.csv … line 4 … 6 … quote … JSON",
    ),
    a_file(
        "CSV with a quote within a cell that isn't doubled",
        "a.csv",
        lines(HEADER, *ROWS, '"Say "hi" now",,Hi.'),
        "a.csv … CSV … line 10 … quote",
    ),
    a_file(
        "CSV without a line of column names",
        "a.csv",
        lines(*ROWS),
        f"a.csv … first line … {KNOWN} … -S 'data.columns={{instruction: … output:",
    ),
    a_file(
        "CSV with a column named twice",
        "a.csv",
        lines("instruction,output,output", *ROWS),
        "a.csv … 'output' … twice … rename",
    ),
    a_file(
        "CSV that holds zero characters, as UTF-16 without its mark does",
        "a.csv",
        lines(HEADER, *ROWS).encode("utf-16-le"),
        "a.csv … NUL … UTF-8",
    ),
    a_file("CSV in Latin-1", "a.csv", lines(HEADER, "Say café.,,Café.").encode("latin-1"), "a.csv … byte 32 … UTF-8"),
    a_file("CSV of column names alone", "a.csv", lines(HEADER), "a.csv … empty"),
    a_file("an empty file", "a.jsonl", "", "a.jsonl … empty"),
    a_file(
        "JSON that was cut off", "a.json", '[{"instruction": "Say hi.", "outp', "a.json … JSON … line 1 … column 29"
    ),
    a_file(
        "JSON with a comma after its last record",
        "a.json",
        '[{"instruction": "a", "output": "b"},]',
        "a.json … JSON … line 1 … column 38",
    ),
    a_file(
        "JSON with a key twice in one record",
        "a.json",
        '[{"instruction": "a", "output": "b", "output": "c"}]',
        "a.json … object … twice … rename",
    ),
    a_file("JSON nested 100,000 deep", "a.json", "[" * 100_000, "a.json … nested … list of records"),
    a_file(
        "JSON with a whole number of 5,000 digits",
        "a.json",
        f'[{{"instruction": "a", "output": {"9" * 5000}}}]',
        "a.json … digits … text",
    ),
    a_file(
        "JSON that is one record", "a.json", '{"instruction": "a", "output": "b"}', "a.json … list of records … object"
    ),
    a_file(
        "JSON that is a list for each column",
        "a.json",
        '{"instruction": ["a"], "output": ["b"]}',
        "a.json … list of records … object",
    ),
    a_file(
        "JSON with a list for each split",
        "a.json",
        '{"train": [{"instruction": "a", "output": "b"}], "test": []}',
        "a.json … 'train' … 'test'",
    ),
    a_file("JSON that is null", "a.json", "null", "a.json … list of records … null"),
    a_file(
        "JSON lines with commas between them",
        "a.jsonl",
        ",\n".join(json.dumps({"instruction": f"Say {n}.", "output": "Yes."}) for n in range(6)),
        "data: … 1 … 5 broken_line … data.max_length",
    ),
    a_file(
        "a compressed file that was cut off",
        "a.json.gz",
        gzip.compress(b"[1, 2, 3]" * 99, mtime=0)[:-9],
        "a.json.gz … decompressed … gzip",
    ),
    a_file("a file named .gz that isn't compressed", "a.json.gz", "[]", "a.json.gz … decompressed … gzip"),
    a_file("a Parquet file that was cut off", "a.parquet", b"PAR1 and no more", "a.parquet … Parquet"),
    a_parquet("Parquet with a column twice", twice, "a.parquet … 'output' … twice … rename"),
    a_file(
        "a kind of file that isn't read",
        "a.xlsx",
        b"PK",
        "a.xlsx … .json, .jsonl, .csv, .tsv, .parquet, .json.gz, .jsonl.gz, .csv.gz, .tsv.gz",
    ),
    a_file(
        "columns of other names",
        "a.json",
        '[{"question": "a", "answer": "b"}]',
        "a.json … 1 missing_instruction … 'instruction' … 'messages' … 'conversations' … 'prompt' … 'data.columns={instruction: …, output:",
    ),
    a_record("a record that is a text", "hello", "object … 'instruction', 'input', 'output'"),
    a_record("a record without an output", {"instruction": "a"}, "'output'"),
    a_record("a prompt without a completion", {"prompt": "a"}, "'prompt' … no 'completion'"),
    a_record("`output: 0`", {"instruction": "a", "output": 0}, "'output' … no text"),
    a_record("an output of white space", {"instruction": "a", "output": " \n"}, "empty 'output'"),
    a_record(
        "an empty turn of the user",
        {"messages": [said("user", ""), said("assistant", "a")]},
        "empty 'instruction' … user",
    ),
    a_record("half of a surrogate pair", {"instruction": "a \ud83d", "output": "b"}, "surrogate pair … \\ud83d"),
    a_record(
        "a role that isn't known",
        {"messages": [said("user", "a"), said("narrator", "b"), said("assistant", "c")]},
        "role … system, user, assistant … human, gpt",
    ),
    a_record(
        "a system turn in the midst",
        {"messages": [said("user", "a"), said("system", "b"), said("assistant", "c")]},
        "system turn … first",
    ),
    a_record(
        "a conversation that starts with an answer",
        {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]},
        "user … before … first answer",
    ),
    a_record("a conversation without an answer", {"messages": [said("user", "a")]}, "assistant … learn"),
    a_record(
        "an answer that calls a tool",
        {"messages": [said("user", "a"), said("assistant", "b", tool_calls=[{"id": "1"}])]},
        "tools … supported",
    ),
    a_setting(
        "`data.template: chat` for a model without a chat template",
        "data.template … chat template … -S data.template=alpaca",
        model="gpt2",
        data={"template": "chat"},
    ),
    a_file(
        "responses that are all longer than `data.max_length`",
        "a.json",
        json.dumps([{"instruction": f"Say {n}.", "output": "word " * 300} for n in range(8)]),
        "data.max_length … 6 … 256 … raise",
    ),
    a_setting(
        "`data.max_length` that leaves no prompt room for a response",
        "data: … 0 … 48 prompt_too_long … data.max_length",
        data={"max_length": 8},
    ),
    a_setting(
        "answers that the model has no positions for",
        "eval.max_new_tokens … 500 … 512 … lower … data.max_length",
        eval={"max_new_tokens": 500},
    ),
    a_source(
        "a folder without data",
        "empty",
        "data.source … empty … .json, .jsonl, .csv, .tsv, .parquet, .json.gz, .jsonl.gz, .csv.gz, .tsv.gz",
    ),
    a_source("a source twice in a list", ["a.json", "a.json"], "data.source … twice … 'a.json', 'a.json'"),
    a_source("a weight of 0", {"a.json": 0, "b.json": 1}, "data.source … weight … 'a.json' … 1000000000 … 0"),
    a_source("an empty list of sources", [], "data.source … name … list … mapping … []"),
    a_setting("a column that no form has", "data.columns … 'question'", data={"columns": {"question": "instruction"}}),
    a_setting("a column's name that is no text", "data.columns.output … name … 3", data={"columns": {"output": 3}}),
]
