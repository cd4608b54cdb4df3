"""`make prove-model`: sizes, Hugging Face folders, parts, parity, pictures, positions, clips, FLOPs."""

from tests.prove.driver import main
from tests.prove.model_cases import all_cases

if __name__ == "__main__":
    main("model", all_cases)
