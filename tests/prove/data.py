"""`make prove-data`: object storage, index, plan, video, conversations, loader, and the whole way."""

from tests.prove import data_chat, data_index, data_loader, data_oss, data_plan, data_text, data_video, data_whole
from tests.prove.case import Case
from tests.prove.driver import main

TOPICS = (data_oss, data_index, data_plan, data_loader, data_video, data_text, data_chat, data_whole)


def all_cases() -> dict[str, Case]:
    """Every case by its key."""
    return {key: case for topic in TOPICS for key, case in topic.cases().items()}


if __name__ == "__main__":
    main("data", all_cases)
