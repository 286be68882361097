"""``lmbench-generate``: lets a model go on with a text, or score one."""

import sys
from argparse import Namespace
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lmbench.command.ending import run_command
from lmbench.command.generate_options import parse_options
from lmbench.errors import UserError
from lmbench.machine import device_of, set_matmul_precision
from lmbench.stdout import printing

if TYPE_CHECKING:
    from lmbench.saved.loading import Loaded


def generate(options: Namespace) -> None:
    """Writes what the model draws to stdout, word by word.

    Raises:
        UserError: The folder holds no model; there are unknown words and no ``<unk>`` for them.
    """
    import torch

    from lmbench.data.vocabulary import UNK
    from lmbench.evaluation import text
    from lmbench.evaluation.sampling import sample

    model, vocabulary = _load(options)
    ids, unknown = text.encode_prompt(text.read_prompt(options.prompt), vocabulary)
    prompt = torch.from_numpy(ids).to(model.device)
    if unknown:
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        print(f"Read as {UNK}: {', '.join(map(text.shown, unknown[:20]))}{more}", file=sys.stderr)
    suppressed = [] if options.allow_unk or vocabulary.unk_id is None else [vocabulary.unk_id]
    if len(vocabulary) <= len(suppressed):
        raise UserError(f"{options.folder} knows no word but {UNK}. Add --allow-unk.")
    text.set_up_stdout()
    generator = torch.Generator().manual_seed(options.seed)
    if options.temperature > 0:
        print(f"--seed {options.seed}", file=sys.stderr)
    filters = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    with printing():
        for number in range(1, options.num_samples + 1):
            if options.num_samples > 1:
                print(f"--- {number} of {options.num_samples}")
            drawn = sample(model, prompt, generator, suppressed=suppressed, **filters)
            text.write_words(vocabulary.words[word] for word in islice(drawn, options.num_tokens))


def score(options: Namespace) -> None:
    """Says on stdout how probable a text is to the model.

    Raises:
        UserError: The folder holds no model; the text is empty, not UTF-8 or cannot be read; there
            are unknown words and no ``<unk>`` for them.
    """
    from lmbench.data.tokenization import read_parts
    from lmbench.evaluation.text import set_up_stdout, with_progress
    from lmbench.evaluation.text_score import describe, score_text

    from_stdin = options.score == "-"
    name = "stdin" if from_stdin else str(Path(options.score))
    if from_stdin and sys.stdin is None:
        raise UserError("stdin is closed: there is nothing to score.")
    try:
        with nullcontext(sys.stdin.buffer) if from_stdin else Path(name).open("rb") as file:
            model, vocabulary = _load(options)
            size_bytes = None if from_stdin else Path(name).stat().st_size
            parts = with_progress(read_parts(file, name), size_bytes or None)
            scored = score_text(model, vocabulary, parts)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.") from error
    if scored is None:
        raise UserError(f"{name} is empty: there is nothing to score.")
    set_up_stdout()
    with printing():
        print(describe(scored))


def _load(options: Namespace) -> "Loaded":
    from lmbench.saved.loading import load

    device = device_of(options.device)
    set_matmul_precision("auto", device.type)  # as lmbench-evaluate does
    return load(options.folder, device=device)


def main() -> None:
    """Entry point of the console script."""
    options = parse_options(sys.argv[1:])
    run_command(lambda: (generate if options.score is None else score)(options))


if __name__ == "__main__":
    main()
