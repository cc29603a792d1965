"""Models that stream recorded captions, for tests of what is in front of them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from serve.http.protocol import Answer, Choice, Delta, Finish, Part, Question, Refusal, ScoredSentence, Started

BEFORE = (
    "This is a kitchen. There is a red cup on the left. There is a blue chair in the middle. There is a green piano on"
    " the right. There is a yellow kettle at the top."
)
AFTER = "This is a kitchen. There is a red cup on the left. There is a blue fridge in the middle."
UNSEEN = "This is a beach. There is a purple kite at the top left. There is a black guitar at the bottom."


class RecordedModel:
    """Streams ``text``, a word at a time; from h = 0.5 on, a caption that has nothing to do with the picture."""

    def __init__(self, text: str, pause: float = 0.01) -> None:
        self.text, self.pause = text, pause
        self.questions: list[Question] = []
        self.cancelled = 0

    async def caption(self, question: Question) -> Answer | Refusal:
        """The whole caption."""
        self.questions.append(question)
        text = self._text(question)
        return Answer((Choice(text, "stop", len(text.split())),), 30)

    async def stream(self, question: Question) -> AsyncGenerator[Part, None]:
        """The caption in parts."""
        self.questions.append(question)
        words = self._text(question).split()
        yield Started(30)
        try:
            for number, word in enumerate(words, 1):
                await asyncio.sleep(self.pause)
                finish: Finish | None = "stop" if number == len(words) else None
                yield (Delta(0, word if number == 1 else f" {word}", (), number, finish),)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def healthy(self) -> bool:
        """Always."""
        return True

    async def context_length(self) -> int | None:
        """Of a small model."""
        return 256

    def _text(self, question: Question) -> str:
        return UNSEEN if question.ratio >= 0.5 else self.text


class RecordedScorer:
    """Scores sentences by their length, between 0.1 and 0.4."""

    async def score(self, image: bytes, captions: Sequence[str]) -> list[list[ScoredSentence]] | None:
        """The sentences of each caption with their scores; the image is not looked at."""
        del image
        return [
            [ScoredSentence(part.strip() + ".", 0.1 + len(part) % 7 / 20) for part in text.split(".") if part.strip()]
            for text in captions
        ]
