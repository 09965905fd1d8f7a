"""finetune export, as a user runs it, on tiny models."""

from pathlib import Path

from finetune.commands import export


def test_try(checkpoints, monkeypatch, capsys):
    for key in [
        ("qlora", "llama"),
        ("lora", "llama"),
        ("dora", "llama"),
        ("full", "llama"),
        ("qlora", "gpt2"),
        ("lora", "gpt2"),
        ("full", "gpt2"),
    ]:
        folder = checkpoints(*key)
        monkeypatch.chdir(folder)
        for fmt in (["adapter"], ["merged"], ["gguf"], ["gguf", "--type", "f16"], ["gguf", "--type", "q4_0"]):
            if fmt == ["adapter"] and key[0] == "full":
                continue
            print(key, fmt)
            export.main(fmt)
    print((Path("models/exported/gguf-q8_0/README.md")).read_text())
    monkeypatch.chdir(checkpoints())
    print((Path("models/exported/adapter/README.md")).read_text())
