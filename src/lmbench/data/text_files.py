"""Which files a text consists of."""

import re
from pathlib import Path

from lmbench.data.tokenization import SPLITS
from lmbench.errors import UserError

FILE_NAMES = ("{}.txt", "{}.tokens", "wiki.{}.tokens", "ptb.{}.txt")
_SPLIT_WORDS = ("train(ing)?", "valid(ation)?|dev", "test")


def find_files(path: Path) -> dict[str, Path] | list[Path]:
    """The file of each split, or the files of a text that is yet to be split.

    Args:
        path: A file or a folder.

    Raises:
        UserError: It cannot be read, or has no text; a split has no file or several; or files of
            other names look like splits.
    """
    try:
        if path.is_file():
            return [path]
        names = sorted(one.name for one in path.iterdir() if one.name[0] != ".")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Set data.path=… to a text file, or to a "
            "folder of them."
        ) from error
    shown = ", ".join([*names[:10], *(["…"] if len(names) > 10 else [])]) or "no file"
    wanted = {split: [name.format(split) for name in FILE_NAMES] for split in SPLITS}
    found = {split: [name for name in wanted[split] if name in names] for split in SPLITS}
    if not any(found.values()):
        text = [one for one in path.rglob("*") if one.suffix.lower() == ".txt" and one.is_file()]
        text = [one for one in text if not re.search(r"(^|/)\.", one.relative_to(path).as_posix())]
        if not text:
            raise UserError(
                f"{path} has no text: neither train.txt, valid.txt and test.txt nor other .txt "
                f"files. It contains {shown}. Save text as .txt in UTF-8, or set data.path=… to "
                "another file or folder."
            )
        text.sort(key=lambda one: one.relative_to(path).parts)
        places = [one.relative_to(path).as_posix() for one in text]
        words = [re.compile(rf"(?<![a-z])({word})(?![a-z])", re.I) for word in _SPLIT_WORDS]
        named = [next(filter(word.search, places), None) for word in words]
        parts = dict.fromkeys(filter(None, named))
        if len(parts) > 1:  # a single one may be a title, such as A Test of Wills.txt
            raise UserError(
                f"{path}: {' and '.join(parts)} look like parts of a text that is already split. "
                f"Put the splits into one folder as {', '.join(f'{one}.txt' for one in SPLITS)}, "
                "or rename the files if lmbench should split the text itself."
            )
        return text
    for split in SPLITS:
        if len(found[split]) != 1:
            raise UserError(
                f"{path} must have one file for the {split} split: {' or '.join(wanted[split])}. "
                f"It has {', '.join(found[split]) or shown}. Fix that, or set data.path=… to "
                "another folder. A folder with none of these names is split automatically."
            )
    return {split: path / found[split][0] for split in SPLITS}
