"""`make prove-core`: stages, parity, layouts and resume (tests/prove/core_cases.py)."""

from tests.prove.core_cases import all_cases
from tests.prove.driver import main

if __name__ == "__main__":
    main("core", all_cases)
