"""Round the base model to four bits, once for every QLoRA run."""

from pathlib import Path

from finetune import cli, files, params, places, yaml_file

_ADVICE = "lower quantization.examples or data.max_length, or choose a smaller model.source"
"""What helps when rounding takes more memory than there is."""


def main() -> None:
    """Make models/base-4bit out of models/base, calibrated on training examples of data/prepared."""
    args = cli.parser(__doc__, ["--model_name", "--dataset", "--out_dir"]).parse_args()
    p = params.load()
    out = places.places(args.out_dir, places.BASE_4BIT)
    cli.check_replaceable(out.folder)
    files.check_writable(out.folder)

    from finetune import device
    from finetune.data import prepared
    from finetune.models.base import Base
    from finetune.quantization.quantise import copy_whole, quantise

    base = Base.named(args.model_name)
    splits, _ = prepared.load(Path(args.dataset or places.PREPARED), base.tokenizer)
    rows = splits["train"]["input_ids"][: p.quantization.examples]
    with files.whole_folder(out.folder) as draft, device.enough_memory(_ADVICE):
        if base.bits:
            print(f"{base}: is in 4 bits already ({base.bits}), and stays so; the settings of quantization don't count")
            copy_whole(base, draft)
            calibration = "of whoever rounded it"
        else:
            calibration = quantise(base, rows, p.quantization, draft)
        facts = {
            **base.source,
            "made_of": base.fingerprint,
            "quantization": vars(p.quantization) | {"calibration": calibration},
        }
        yaml_file.write(draft / places.FACTS, facts)


if __name__ == "__main__":
    cli.run(main)
