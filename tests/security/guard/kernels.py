"""Stands in for the package `kernels`, from which bitsandbytes has compiled code: it asks the Hub, as that does."""

from huggingface_hub import snapshot_download


def get_kernel(name: str, **options: object) -> None:
    """Ask for the kernel called `name`."""
    snapshot_download(name)
