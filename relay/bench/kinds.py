"""SSE readers of every kind, good ones and bad ones: what each does with its connection.

    target = Target.of("http://127.0.0.1:9000/stream")
    outcome = await read(Kind.STALLED, target, Habits(), until=loop.time() + 20)

A reader ends with its response, with its own leaving, or when its time is over, whichever is first.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from relay.bench.readers import Habits, Kind, Reader, Target
from relay.bench.reception import Ended, OnEvent, Outcome
from relay.errors import RelayError
from relay.sse import Event

_BITE_BYTES = 64  # small enough to stop within an event
_FOR_GOOD_S = 86_400.0  # whoever runs the reader ends it long before


async def fast(reader: Reader) -> None:
    """Reads whatever is there, into buffers of the kernel's own size."""
    reader.receive_buffer = None
    await reader.connect()
    await reader.rest()


async def stalled(reader: Reader) -> None:
    """Reads the first events, then nothing; the connection stays."""
    await reader.connect()
    if await reader.begun():
        await _absence(reader)
        await reader.rest()


async def dripping(reader: Reader) -> None:
    """Reads a few bytes at even intervals, all the time."""
    await reader.connect()
    habits, loop = reader.habits, asyncio.get_running_loop()
    size = max(1, round(habits.drip_bytes_per_s * habits.drip_every_s))
    due = loop.time()
    while await reader.read(size):
        due = max(due + habits.drip_every_s, loop.time() - habits.drip_every_s)  # what was missed is missed
        await asyncio.sleep(max(0.0, due - loop.time()))


async def flapping(reader: Reader) -> None:
    """Reads for `flap_s`, does not for as long, and so on."""
    await reader.connect()
    loop, flap_s = asyncio.get_running_loop(), reader.habits.flap_s
    while not reader.reception.is_over:
        until = loop.time() + flap_s
        # A read is not broken off: what it had just received would be lost. It may so last longer.
        while loop.time() < until:
            if not await reader.read():
                return
        await asyncio.sleep(flap_s)


async def half_closed(reader: Reader) -> None:
    """Closes its sending side as soon as it has asked; the answer is still to come (RFC 9112, 9.6)."""
    await reader.connect()
    reader.socket.shutdown(socket.SHUT_WR)
    await reader.rest()


async def vanished(reader: Reader) -> None:
    """Is gone without a word after the first events; comes back, if at all, on another connection."""
    await reader.connect()
    if not await reader.begun():
        return
    reader.vanish()
    await _stay_away(reader)
    await _return(reader)


async def rst(reader: Reader) -> None:
    """Resets the connection in the middle of an event; comes back, if at all, behind its last id."""
    await reader.connect()
    if not await reader.begun() or not await reader.until(lambda: reader.reception.is_mid_frame, _BITE_BYTES):
        return
    reader.reset()
    await _stay_away(reader)
    await _return(reader)


async def slow_processor(reader: Reader) -> None:
    """Receives at once and processes slowly.

    A relay is told by the ack call what is done, and holds itself to `?window=`. From any other server it
    reads only while less than the window is unprocessed.
    """
    await reader.connect()
    desk = _Desk(reader)
    broken: Exception | None = None
    async with asyncio.TaskGroup() as group:
        processing = group.create_task(desk.process())
        try:
            while await reader.read():
                if reader.target.ack is None:
                    await desk.has_room()
        except (OSError, RelayError) as error:
            broken = error  # raised by itself: the group would wrap it
        processing.cancel()
    if broken is not None:
        raise broken


class _Desk:
    """What a slow processor has received and not dealt with, as sizes of events."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._seen = 0
        self._ends: deque[int] = deque()  # of events, in bytes of the response; bounded by the window
        self._room = asyncio.Event()
        self._inner = reader.reception.on_event
        reader.reception.on_event = self._received

    def _received(self, event: Event, now: float) -> None:
        outcome = self._reader.outcome
        seen = outcome.position if self._reader.target.ack else outcome.text_bytes
        if seen > self._seen:
            self._ends.append(seen)
            self._seen = seen
        if self._inner is not None:
            self._inner(event, now)

    async def has_room(self) -> None:
        """Wait until less than the window is here."""
        self._room.clear()
        if self._ends and self._seen - self._ends[0] >= self._reader.habits.window:
            await self._room.wait()

    async def process(self) -> None:
        """Deal with what is here at the reader's speed, and say so event by event. Until cancelled."""
        habits, done, told = self._reader.habits, 0.0, 0
        while True:
            await asyncio.sleep(habits.process_every_s)
            done = min(float(self._seen), done + habits.process_bytes_per_s * habits.process_every_s)
            before = told
            while self._ends and self._ends[0] <= done:
                told = self._ends.popleft()
            if told > before:
                self._room.set()
                await self._tell(told)

    async def _tell(self, offset: int) -> None:
        ack, consumer = self._reader.target.ack, self._reader.reception.consumer
        if ack is not None and consumer is not None:
            with suppress(RelayError):  # the next one says it too: acks are cumulative
                await ack(consumer, offset)


BEHAVIOUR: dict[Kind, Callable[[Reader], Awaitable[None]]] = {
    Kind.FAST: fast,
    Kind.STALLED: stalled,
    Kind.DRIPPING: dripping,
    Kind.FLAPPING: flapping,
    Kind.HALF_CLOSED: half_closed,
    Kind.VANISHED: vanished,
    Kind.RST: rst,
    Kind.SLOW_PROCESSOR: slow_processor,
}


async def read(
    kind: Kind,
    target: Target,
    habits: Habits,
    *,
    until: float,
    outcome: Outcome | None = None,
    on_event: OnEvent | None = None,
) -> Outcome:
    """One reader from its first connection to its end, at `until` (the loop's time) at the latest.

    `on_event` is called with every event and the loop's time; `outcome` is kept up to date meanwhile.
    Never raises for what the server does: that is told in the outcome.
    """
    reader = Reader(target, habits, outcome=outcome, on_event=on_event)
    told = reader.outcome
    try:
        async with asyncio.timeout_at(until):
            await BEHAVIOUR[kind](reader)
    except TimeoutError:
        pass
    except ConnectionError as error:
        told.ended, told.problem = (Ended.RESET if told.connections else Ended.REFUSED), str(error)
    except (OSError, RelayError) as error:
        told.ended = told.ended if told.events else Ended.REFUSED
        told.problem = f"{type(error).__name__}: {error}"
    finally:
        with suppress(OSError):
            reader.look()
        reader.close()
    return told


async def _absence(reader: Reader) -> None:
    habits = reader.habits
    if habits.called_back is not None:
        await habits.called_back()
    else:
        await asyncio.sleep(_FOR_GOOD_S if habits.absent_s is None else habits.absent_s)


async def _stay_away(reader: Reader) -> None:
    """The absence of one that has no connection meanwhile."""
    before = reader.outcome.ended
    reader.outcome.ended = Ended.LEFT  # unless it comes back
    await _absence(reader)
    reader.outcome.ended = before


async def _return(reader: Reader) -> None:
    await reader.connect()
    await reader.rest()
