from texts import reference_tokens

from lmbench.data.tokenizer.words import WhiteSpace


def test_every_character_splits_as_in_python():
    for first in range(1, 0x30000, 0x1000):
        characters = [chr(c) for c in range(first, first + 0x1000) if not 0xD800 <= c < 0xE000]
        text = "\n".join(f"x{c}y" for c in characters if c != "\n")
        types, places = WhiteSpace().cut_block(text.encode())
        assert [types[place] for place in places] == reference_tokens(text)


def test_every_length_of_text():
    """Arrow pads its buffers to 64 bytes, and must not read past a text that fills one."""
    for length in range(1, 400):
        text = ("wört " * length).encode()[:length].decode(errors="ignore")
        expected = [*text.split(), "<eos>"]
        for block in (text, text + "\n"):
            for _ in range(5):
                types, places = WhiteSpace().cut_block(block.encode())
                assert [types[place] for place in places] == expected
