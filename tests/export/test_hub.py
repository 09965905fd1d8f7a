"""An export onto a hub on loopback, and what it refuses."""

import hub_uploads
import pytest
from huggingface_hub import constants

from finetune.commands import export
from finetune.errors import UserError


@pytest.fixture
def there(monkeypatch, tmp_path):
    """What serves a hub to this process, whose token is 'hf_write' unless another is given."""

    def serve(token="hf_write", refuse=""):
        served = hub_uploads.serve(tmp_path / "hub", refuse)
        uploads = served.__enter__()
        running.append(served)
        monkeypatch.setattr(constants, "ENDPOINT", uploads.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", token)
        return uploads

    running = []
    yield serve
    for served in running:
        served.__exit__(None, None, None)


def test_the_whole_export_reaches_the_hub(at, there):
    folder, uploads = at(method="full", family="qwen2"), there()
    export.main(["merged", "--push", "org/tiny"])
    names = ["README.md", "config.json", "facts.yaml", "generation_config.json", "model.safetensors", "tokenizer.json"]
    for name in names:
        assert (uploads.folder / "org/tiny" / name).read_bytes() == (
            folder / "models/exported/merged" / name
        ).read_bytes()
    assert 'from_pretrained("org/tiny"' in (uploads.folder / "org/tiny/README.md").read_text()


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("", "org/tiny", "you aren't logged in at the Hugging Face Hub; run `hf auth login`"),
        ("hf_unknown", "org/tiny", "Invalid user token"),
        ("hf_read", "org/tiny", "your token may only read"),
        ("hf_write", "other/tiny", "as me, who doesn't belong to other; give an owner among me, org"),
    ],
)
def test_who_may_not_push_is_told_before_anything_is_made(at, there, monkeypatch, tmp_path, token, name, said):
    folder = at(method="full", family="qwen2")
    there(token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=said):
        export.main(["merged", "--push", name])
    assert not (folder / "models/exported").exists()


@pytest.mark.parametrize(("refused", "said"), [("/repos/create", "refuses me/tiny"), ("/commit/", "refuses me/tiny")])
def test_what_the_hub_refuses_stays_on_the_disk(at, there, refused, said):
    folder = at(method="full", family="qwen2")
    there(refuse=refused)
    with pytest.raises(UserError, match=f"{said} .*the export is whole in models/exported/merged: `hf upload me/tiny"):
        export.main(["merged", "--push", "me/tiny"])
    assert (folder / "models/exported/merged/model.safetensors").exists()


def test_a_hub_that_is_away_is_told_of(at, there, monkeypatch):
    at(method="full", family="qwen2")
    there()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="can't be reached"):
        export.main(["merged", "--push", "me/tiny"])
