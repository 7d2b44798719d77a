"""Somebody who looks at a view of a run and presses its keys."""

import asyncio

from gradwise.live.app import LiveApp
from gradwise.live.follow import Seer
from gradwise.live.widgets import Rows

WIDE, USUAL, NARROW = (120, 40), (80, 24), (60, 20)


class Pilot:
    """A view under test: what its screen says, and what a hand does to it."""

    def __init__(self, app, pilot):
        self.app = app
        self.pilot = pilot

    @property
    def lines(self):
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip) for strip in strips]

    @property
    def text(self):
        return "\n".join(self.lines)

    def layers(self):
        """The names in the table, from the top."""
        rows = self.app.screen.query_one("#layers", Rows)
        region = rows.region
        lines = self.lines[region.y : region.bottom]
        return [line[3:].split()[0] for line in lines if line[3:].strip()]

    def line(self, start):
        found = [line for line in self.lines if line.startswith(start)]
        assert found, self.text
        return found[0]

    async def press(self, *keys):
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, condition, seconds=20.0):
        end = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < end, self.text
            await asyncio.sleep(0.02)
            await self.pilot.pause()


def view(folder, act, size=USUAL, **given):
    """Run `act` against a view of a folder."""

    async def go():
        app = LiveApp(Seer(folder), interval=0.05, **given)
        async with app.run_test(size=size) as pilot:
            await act(Pilot(app, pilot))
        return app

    return asyncio.run(go())
