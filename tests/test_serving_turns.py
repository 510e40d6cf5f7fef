"""Places, threads and visits of `serve`, which clients get in turn."""

import asyncio
import threading
import time

import pytest

from flashvid_hf.serving.turns import Pace, Places, QueueFull, Visitors, Workers, client_of


def test_places_are_given_in_turn():
    async def test() -> None:
        places, order = Places(1), []

        async def visit(client: str) -> None:
            async with places.take(client):
                order.append(client)
                await asyncio.sleep(0)

        await asyncio.gather(*(visit(client) for client in "aaaabbc"))
        assert "".join(order) == "aabcaba"

    asyncio.run(test())


def test_no_client_takes_more_places_than_it_may():
    async def test() -> None:
        places = Places(3, per_client=2)
        await places.acquire("a")
        await places.acquire("a")
        third = asyncio.create_task(places.acquire("a"))
        await asyncio.wait_for(places.acquire("b"), 10)
        assert not third.done()
        places.release("a")
        await asyncio.wait_for(third, 10)

    asyncio.run(test())


def test_who_stops_waiting_leaves_the_line():
    async def test() -> None:
        places = Places(1)
        await places.acquire("a")
        lines = [asyncio.create_task(places.acquire(client)) for client in "abab"]
        await asyncio.sleep(0)
        for task in lines[:3]:
            task.cancel()
        places.release("a")  # the last one gets the place, and so do those who come after it
        await asyncio.wait_for(lines[3], 10)
        granted = asyncio.create_task(places.acquire("a"))
        await asyncio.sleep(0)
        places.release("b")
        granted.cancel()  # at the moment in which it gets the place
        await asyncio.gather(granted, return_exceptions=True)
        await asyncio.wait_for(places.acquire("c"), 10)
        assert not places._waiting and places._taken == {"c": 1}

    asyncio.run(test())


def test_a_worker_is_busy_until_its_work_ends():
    async def test() -> None:
        workers, goes_on, done = Workers(1), threading.Event(), []
        task = asyncio.create_task(workers.run("a", goes_on.wait, 60))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        second = asyncio.create_task(workers.run("b", done.append, 1))
        await asyncio.sleep(0.01)
        assert not done
        goes_on.set()
        await asyncio.wait_for(second, 10)
        with pytest.raises(ZeroDivisionError):
            await workers.run("b", lambda: 1 / 0)

    asyncio.run(test())


def test_the_greediest_client_loses_its_newest_request():
    async def test() -> None:
        visitors = Visitors(4)
        visits = [visitors.enter("a") for _ in range(4)]
        for visit in visits[:3]:
            visit.work = asyncio.create_task(asyncio.sleep(60))
        with pytest.raises(QueueFull, match="4 requests, and may have 4"):
            visitors.enter("a")
        visitors.enter("b")
        assert [visit.refusal is not None for visit in visits] == [False, False, True, False]
        assert visits[2].work.cancelling()
        visitors.enter("b")
        with pytest.raises(QueueFull):  # now both have two
            visitors.enter("b")
        assert len(visitors) == 4
        for visit in visits[:2]:
            visit.work.cancel()

    asyncio.run(test())


def test_clients_are_known_by_their_networks():
    assert client_of("10.0.0.1") != client_of("10.0.0.2")
    assert client_of("2001:db8::1") == client_of("2001:db8::2:1") != client_of("2001:db8:0:1::1")
    assert client_of("testclient") == "testclient"


def test_bytes_of_a_client_have_a_pace():
    """Another client does not wait for them."""

    async def take() -> list[tuple[str, float]]:
        pace, begin, ends = Pace(1000), time.monotonic(), []

        async def client(name: str, pieces: int) -> None:
            for _ in range(pieces):
                await pace.wait(name, 50)
            ends.append((name, time.monotonic() - begin))

        await asyncio.gather(client("many", 5), client("few", 1))
        return ends

    (first, _), (_, seconds) = asyncio.run(take())
    assert first == "few" and seconds >= 0.19  # 4 of 5 pieces wait 0.05 s each for the one before them
