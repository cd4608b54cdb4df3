from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models

from model.hf_config import SPECIAL_TOKENS


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose special ids are unlike Qwen's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    tokens = [*dict.fromkeys(SPECIAL_TOKENS.values()), "<|im_start|>", "<|vision_pad|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in reversed(tokens)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder
