"""`finetune chat` under the name that the seed project gave it: `python stages/infer.py --prompt …`."""

import sys

from finetune.commands.main import main

if __name__ == "__main__":
    main(["chat", *sys.argv[1:]])
