"""Which questions are answered together: order, number, images opened ahead. Knows no model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice

from loguru import logger
from PIL import Image

from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.images import image_hash, rgb
from dualfocus_lmms.models.run import memory
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.types import Question

AUTO = "auto"  # the batch size is found by trial
FIRST_SIZE, LARGEST_SIZE = 8, 64  # of AUTO: where it begins, and where it stops by default

_PIXELS = 2**30  # of the images that are open at a time, 4 GiB in Pillow
_LIKELY_PIXELS = 2**24  # of an image, until the first ones were read

BatchItem = tuple[Request, Question]


class BatchSize:
    """How many questions are answered together: `now`.

    A number is kept until memory runs out: then it is halved, for good. AUTO begins
    with FIRST_SIZE and doubles after every full batch, up to `largest`, until memory runs out once.
    """

    def __init__(self, given: int | str, largest: int = LARGEST_SIZE) -> None:
        self._grows = given == AUTO
        self._largest = largest
        self.now = min(FIRST_SIZE, largest) if self._grows else int(given)

    def fitted(self, count: int) -> None:
        """`count` questions were answered together."""
        if self._grows and count >= self.now:
            self.now = min(2 * self.now, self._largest)

    def halve(self, count: int) -> None:
        """Memory ran out with `count` questions, two or more."""
        self._grows = False
        self.now = count // 2


def in_order(requests: Iterable[Request]) -> list[Request]:
    """The requests with those about one image side by side, and those that take most memory first.

    Where a request does not say which image it is about, its neighbours may be about the same: all of these
    stay together as they came.
    """
    groups: dict[str | None, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.image_name, []).append(request)
    for image_name, group in groups.items():
        if image_name is not None:
            group.sort(key=_size, reverse=True)
    largest_first = sorted(groups.values(), key=lambda group: max(map(_size, group)), reverse=True)
    return [request for group in largest_first for request in group]


class Reader:
    """Opens the images of requests on the threads of a pool, while the model answers those before.

    So that large images do not fill the memory, fewer are opened: _PIXELS at a time, estimated by the
    largest image of the last batch. Where memory runs out all the same, half of what was too much, for good.
    """

    def __init__(self, requests: Iterable[Request], pool: ThreadPoolExecutor) -> None:
        self._waiting = deque(requests)
        self._pool = pool
        self._ahead: deque[tuple[Request, Future[Question]]] = deque()
        self._most_open = _PIXELS // _LIKELY_PIXELS  # images that may be open at a time
        self._room = _PIXELS  # never more than this, once memory ran out; 1: none is opened ahead

    def take(self, most: int) -> list[BatchItem]:
        """The next `most` requests with their questions, fewer where images are large; none at the end.

        Questions about equal images share one image object. As many again are opened meanwhile.
        GenerationError where memory has no room for a single image.
        """
        items = self._read(most)
        if items:
            largest = max(question.image.width * question.image.height for _, question in items)
            self._most_open = min(_PIXELS // largest, self._room)
            if self._room > 1:
                self._open(most)
        return _sharing_images(items)

    def _read(self, most: int) -> list[BatchItem]:
        """The questions of the next batch, taken off those ahead."""
        while True:
            self._open(most)
            ready = list(islice(self._ahead, self._at_once(most)))
            try:
                items = [(request, future.result()) for request, future in ready]
                for _ in items:
                    self._ahead.popleft()
                return items
            except MemoryError as error:
                if self._room == 1:
                    raise GenerationError(
                        f"Out of memory while the image of {ready[0][0].name} was opened alone. Give more "
                        "memory, or a smaller image. With trace=... and resume=True nothing that was "
                        "answered is generated again."
                    ) from error
            del ready
            self._halve()

    def _halve(self) -> None:
        """Drop all images that are open, to open them again, half as many at a time."""
        wait([future for _, future in self._ahead])
        self._room = self._most_open = max(len(self._ahead) // 2, 1)
        self._waiting.extendleft(request for request, _ in reversed(self._ahead))
        self._ahead.clear()
        memory.release()
        logger.warning(f"Out of memory while images were opened: at most {self._room} are open from now on.")

    def _open(self, most: int) -> None:
        while self._waiting and len(self._ahead) < self._at_once(most):
            request = self._waiting.popleft()
            self._ahead.append((request, self._pool.submit(_opened, request)))

    def _at_once(self, most: int) -> int:
        """Questions of a batch: half of the open images belong to the batch that the model answers now."""
        return min(most, max(self._most_open // 2, 1))


def _opened(request: Request) -> Question:
    """The question with the fingerprint of its image."""
    question = request.question()
    return replace(question, image_hash=image_hash(question.image))


def _sharing_images(items: Sequence[BatchItem]) -> list[BatchItem]:
    """The requests and questions; questions about equal images with the first of these images.

    The fingerprint of an image is only a hint: pixels are compared.
    """
    first: dict[str | None, Image.Image] = {}
    shared = []
    for request, question in items:
        image = first.setdefault(question.image_hash, question.image)
        same = image is not question.image and _equal(image, question.image)
        shared.append((request, replace(question, image=image) if same else question))
    return shared


def _equal(first: Image.Image, second: Image.Image) -> bool:
    """Whether two images are the same to a model, which sees RGB."""
    return first.size == second.size and rgb(first).tobytes() == rgb(second).tobytes()


def _size(request: Request) -> tuple[int, int]:
    """What a request needs, before its image is opened: tokens of the answer, characters of the prompt."""
    return request.limits.max_new_tokens, request.length
