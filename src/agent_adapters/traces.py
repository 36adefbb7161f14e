"""What the runner leaves in its files while it runs: that it was given a job, and what the job's steps print.

GitHub's runner prints nothing of the steps' output. It writes that into pages, of 8 MiB each
(`_diag/pages/{timeline}_{record}_{number}.log`: a record is a step, its pages count from 1), closes a page
when it is full or the step has ended, uploads it, and removes it; who has opened it before can still read it.
Lines come late: the runner writes 4 KiB at a time. When it is given a job, it says so in `_diag/perf`, where
its environment names that folder.

The folders are the job's to change, and this process may be root's. So below the root no symlink is followed,
and nothing is read but a plain file of the runner's user that has one name.
"""

import asyncio
import codecs
import errno
import os
import pwd
import re
import stat
from collections import deque
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from attrs import Factory, define

from agent_core.lines import LineSplitter
from agent_core.model import Assigned, OutputLine, OutputMissed, StepLine, Trace, WorkerStarted

__all__ = ["Traces"]

_DIAG: Final = "_diag"
_PAGES: Final = "_diag/pages"
_PERF: Final = "_diag/perf"
_FOLDERS: Final = (_DIAG, _PAGES, _PERF)
_PAGE: Final = re.compile(_PAGES + r"/([0-9a-fA-F-]{36}_[0-9a-fA-F-]{36})_([1-9][0-9]{0,8})\.log")
_MARK: Final = codecs.BOM_UTF8
_COUNTERS: Final = "_diag/perf/Runner.perf"
_WORKERS_COUNTERS: Final = "_diag/perf/Worker.perf"
_ASSIGNED: Final = "MessageReceived_RunnerJobRequest"

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Neither a FIFO nor somebody's lease on a file holds up the opening."""
_OWNERS_MODE: Final = 0o700
_NOT_OPEN: Final = -1

_READ_BYTES: Final = 64 * 1024
_TURN_LINES: Final = 1_000
"""After so many of one read, whoever else needs the loop has a turn."""
_LOOK_SECONDS: Final = 1.0
"""From one look to the next, where no watch can be relied upon."""
_OPEN_PAGES: Final = 256
"""At a time; a runner has one or two open, and as many more as wait for their upload."""
_MOST_PAGES: Final = 20_000
"""Of one start: 160 GB of output. Names are remembered, and a job can make any number of them."""


class Traces:
    """What one start of the runner leaves in its files.

    All of it is to be called on the loop's thread. Pages are opened as they appear, whether or not somebody
    reads what `follow` yields.

    Args:
        root: the runner's.
        owner: the user whose files alone are read; None: this process's.
    """

    def __init__(self, root: Path, owner: int | None = None) -> None:
        self._root, self._owner = root.absolute(), os.geteuid() if owner is None else owner
        self._tree: _Tree | None = None
        self._watches: _Watches | None = None
        self._timer: asyncio.TimerHandle | None = None
        """Set from when on something may have happened that no watch told."""
        self._known: set[str] = set()
        self._listener = _Step(0)
        self._steps: dict[str, _Step] = {}
        self._pages: dict[str, _Page] = {}
        """By path: those that are not read to their end, open or waiting."""
        self._waiting: deque[_Page] = deque()
        """To be opened, when others have been read to their end."""
        self._news: dict[_Step, None] = {}
        """The steps that may have something to read; those that had their turn come last."""
        self._missed: set[str] = set()
        self._untold: list[OutputMissed | WorkerStarted] = []
        self._stirred = asyncio.Event()
        self._over = False

    @property
    def environment(self) -> Mapping[str, str]:
        """For the runner's environment: what makes it tell of its job."""
        return {"RUNNER_PERFLOG": str(self._root / _PERF)}

    def open(self) -> None:
        """Places the watches, before the runner starts; what is there already is of an earlier start.

        It makes the folders where they are missing. Whatever goes wrong is told by `follow`.
        """
        try:
            self._tree = _Tree(self._root, self._owner)
        except OSError as exc:
            self._miss(f"{self._root} cannot be looked into: {exc.strerror}")
            return
        for path in _FOLDERS:
            with suppress(OSError):  # it is there, or else looking into it tells why not
                self._tree.make(path)
        with suppress(OSError):  # there are none to be had
            self._watches = _Watches(self._hear)
        is_watched = self._watch()
        self._known.update(filter(_PAGE.fullmatch, self._paths(_PAGES)))
        self._known.update({_WORKERS_COUNTERS} & {*self._paths(_PERF)})
        self._look()
        for page in self._listener.pages.values():
            page.skip()
        if not is_watched:
            self._look_from_now_on()

    async def follow(self) -> AsyncGenerator[Trace, None]:
        """Each trace as it comes, to the end of all when `end` was called. To be iterated once."""
        try:
            while True:
                for number, trace in enumerate(self._next(), 1):
                    yield trace
                    if number % _TURN_LINES == 0:
                        await asyncio.sleep(0)
                if self._untold or self._news:
                    await asyncio.sleep(0)
                elif self._over:
                    return
                else:
                    self._stirred.clear()
                    await self._stirred.wait()
        finally:
            self.close()

    def end(self) -> None:
        """Nothing of the runner lives any more: `follow` reads all that there is, and ends."""
        if not self._over:
            self._hear()
            self._look()
            self._over = True
            self._stop_watching()
            self._stirred.set()

    def close(self) -> None:
        """Gives up all descriptors, and what was not read; `follow` ends."""
        self._over = True
        self._stop_watching()
        for page in self._pages.values():
            page.close()
        for left in (self._pages, self._waiting, self._news):
            left.clear()
        if self._tree is not None:
            self._tree.close()
            self._tree = None
        self._stirred.set()

    # Watching

    def _watch(self) -> bool:
        """Whether all that happens in the folders is told from here on."""
        if self._tree is None or self._watches is None:
            return False
        is_watched = True
        for path in _FOLDERS:
            try:
                with self._tree.folder(path) as folder:
                    self._watches.add(path, folder)
            except OSError:
                is_watched = False
        return is_watched

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watches is not None:
            self._watches.close()
            self._watches = None

    def _hear(self) -> None:
        """Takes what the watches have to tell."""
        if self._watches is None:
            return
        for news in self._watches.read():
            if news is None:
                self._look_from_now_on()
            else:
                self._appear(news.path)
                if page := self._pages.get(news.path):
                    page.is_closed |= news.is_closed
                    self._stir(page.step)

    def _look_from_now_on(self) -> None:
        """A watch was not to be had, or has missed something: if there are some, they are not relied upon."""
        if self._timer is None:
            self._look_again()

    def _look_again(self) -> None:
        self._watch()
        self._look()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_again)

    def _look(self) -> None:
        """Sees what there is, without being told."""
        for path in (*self._paths(_PERF), *self._paths(_PAGES)):
            self._appear(path)
        for page in self._pages.values():
            page.look()
            self._stir(page.step)

    def _paths(self, folder: str) -> Sequence[str]:
        try:
            return self._tree.new_paths(folder, self._known) if self._tree is not None else ()
        except OSError as exc:
            self._miss(f"{self._root / folder} cannot be looked into: {exc.strerror}")
            return ()

    # Pages

    def _appear(self, path: str) -> None:
        """Takes note of a file; if it is a new page, or the Listener's counters, opens it at once."""
        found = _PAGE.fullmatch(path)
        if path == _WORKERS_COUNTERS and path not in self._known:
            self._known.add(path)
            self._untold.append(WorkerStarted())
            self._stirred.set()
        if path in self._known or not (found or path == _COUNTERS):
            return
        if len(self._known) >= _MOST_PAGES:
            self._miss(f"there are more than {_MOST_PAGES:,} pages: the rest is not read")
            return
        self._known.add(path)
        step, number = self._listener, 1
        if found:
            step = self._steps.setdefault(found[1], _Step(len(self._steps) + 1))
            number = int(found[2])
        page = self._pages[path] = _Page(path, step, number)
        self._waiting.append(page)
        self._open_waiting()

    def _open_waiting(self) -> None:
        while self._tree is not None and self._waiting:
            if len(self._pages) - len(self._waiting) >= _OPEN_PAGES:
                return
            page = self._waiting.popleft()
            try:
                page.file = self._tree.open(page.path)
            except FileNotFoundError:
                del self._pages[page.path]
                self._miss(f"{page} was gone before it could be read")
            except OSError as exc:
                del self._pages[page.path]
                self._miss(f"a file in {(self._root / page.path).parent} is not read: {exc.strerror}")
            else:
                page.step.pages[page.number] = page
                self._stir(page.step)

    def _finish(self, page: "_Page") -> None:
        page.close()
        del self._pages[page.path], page.step.pages[page.number]
        self._stir(page.step)
        self._open_waiting()

    # Telling

    def _stir(self, step: "_Step") -> None:
        self._news[step] = None
        self._stirred.set()

    def _miss(self, detail: str) -> None:
        """Tells it, once; what comes again and again has one text."""
        if detail not in self._missed:
            self._missed.add(detail)
            self._untold.append(OutputMissed(detail))
            self._stirred.set()

    def _next(self) -> Iterable[Trace]:
        """What is to be told at once, or else what the next read of the step whose turn it is brings."""
        if self._untold:
            untold, self._untold = self._untold, []
            return untold
        if not self._news:
            return ()
        step = next(iter(self._news))
        del self._news[step]
        if not step.pages:
            return ()
        page = step.pages[min(step.pages)]
        lines = self._read(page)
        if step is not self._listener:
            return [StepLine(step.number, line) for line in lines]
        if any(line.text.partition(":")[0] == _ASSIGNED and not line.continued for line in lines):
            self._finish(page)
            return [Assigned()]
        return ()

    def _read(self, page: "_Page") -> Sequence[OutputLine]:
        """The lines of one read; it stirs the step again if there may be more."""
        # What was written before the page's end was known is there now.
        is_ended = self._over or page.is_closed or len(page.step.pages) > 1
        try:
            data = page.read()
        except OSError as exc:
            self._miss(f"{page} could not be read to its end: {exc.strerror}")
            self._finish(page)
            return ()
        if is_ended and not data:
            self._finish(page)
            return page.splitter.finish() if page.step is not self._listener else ()
        if is_ended or len(data) == _READ_BYTES:
            self._stir(page.step)
        return page.take(data, is_ended=is_ended)


@define(eq=False)
class _Step:
    """One record of the timeline, or the Listener."""

    number: int
    pages: "dict[int, _Page]" = Factory(dict)
    """By number: those that are open."""


@define(eq=False)
class _Page:
    """A file that grows until it is closed."""

    path: str
    """From the root."""
    step: _Step
    number: int
    file: int = _NOT_OPEN
    at: int = 0
    """Bytes that were read."""
    is_closed: bool = False
    """Who wrote it has ended."""
    splitter: LineSplitter = Factory(LineSplitter)
    """Of its own: a page ends with a line's end, and if it does not, then a line ends with the page."""

    def __str__(self) -> str:
        return f"a page of step {self.step.number}" if self.step.number else self.path

    def read(self) -> bytes:
        return os.pread(self.file, _READ_BYTES, self.at)

    def take(self, data: bytes, *, is_ended: bool) -> Sequence[OutputLine]:
        """The lines that `data`, read last, completes; without the mark that a page starts with."""
        is_start = self.at == 0
        if is_start and not is_ended and _MARK.startswith(data):
            return ()  # it is read again when there is more
        self.at += len(data)
        return self.splitter.feed(data.removeprefix(_MARK) if is_start else data)

    def skip(self) -> None:
        """Leaves out what there is so far."""
        with suppress(OSError):
            self.at = os.fstat(self.file).st_size

    def look(self) -> None:
        """Takes a page for closed that is removed, and was read to its end before this look."""
        if self.file != _NOT_OPEN:
            with suppress(OSError):
                status = os.fstat(self.file)
                self.is_closed |= status.st_nlink == 0 and status.st_size <= self.at

    def close(self) -> None:
        if self.file != _NOT_OPEN:
            os.close(self.file)
            self.file = _NOT_OPEN


class _Tree:
    """The runner's root, and what is below it: no symlink there leads anywhere.

    Every method may raise an OSError; making it, too.
    """

    def __init__(self, root: Path, owner: int) -> None:
        self._top, self._owner = os.open(root, _FOLDER), owner

    @contextmanager
    def folder(self, path: str) -> Iterator[int]:
        """The folder, for as long; the path is from the root, whose own is empty."""
        with ExitStack() as stack:
            folder = self._top
            for name in filter(None, path.split("/")):
                folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                stack.callback(os.close, folder)
            yield folder

    def make(self, path: str) -> None:
        """Makes the folder, the owner's; refused where there is something."""
        parent, _, name = path.rpartition("/")
        with self.folder(parent) as folder:
            os.mkdir(name, _OWNERS_MODE, dir_fd=folder)
        if self._owner != os.geteuid():
            with self.folder(path) as made:
                os.chown(f"/proc/self/fd/{made}", self._owner, _group_of(self._owner))

    def open(self, path: str) -> int:
        """A descriptor to read the file; refused unless it is a plain one of the owner's."""
        parent, _, name = path.rpartition("/")
        with self.folder(parent) as folder:
            file = os.open(name, _FILE, dir_fd=folder)
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_uid == self._owner and status.st_nlink <= 1:
            return file
        os.close(file)
        raise PermissionError(errno.EPERM, "it is not a plain file that is the runner's user's alone")

    def new_paths(self, path: str, known: Container[str]) -> Sequence[str]:
        """What is in the folder and not known, a part of it if that is very much; last written last."""
        with self.folder(path) as folder, os.scandir(f"/proc/self/fd/{folder}") as entries:
            new = [each for each in islice(entries, _MOST_PAGES + 1) if f"{path}/{each.name}" not in known]
            return [f"{path}/{each.name}" for each in sorted(new, key=_written)]

    def close(self) -> None:
        os.close(self._top)


def _written(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0  # it is gone


def _group_of(user: int) -> int:
    try:
        return pwd.getpwuid(user).pw_gid
    except KeyError:
        return -1  # the group stays as it is


class _News(NamedTuple):
    """Something happened to a file."""

    path: str
    is_closed: bool
    """Somebody who wrote it has closed it."""


class _Watches:
    """inotify on the folders; it needs a loop that runs.

    Raises:
        OSError: the system has no more of it to give.
    """

    def __init__(self, hear: Callable[[], None]) -> None:
        from inotify_simple import INotify, flags  # noqa: PLC0415 - takes time that a boot needs for other things

        appears = flags.CREATE | flags.MOVED_TO
        self._masks = {
            _DIAG: appears | flags.DELETE | flags.MOVED_FROM | flags.MOVE_SELF,
            _PAGES: appears | flags.MODIFY | flags.CLOSE_WRITE,
            _PERF: appears | flags.MODIFY,
        }
        self._closed = flags.CLOSE_WRITE
        self._lost = flags.Q_OVERFLOW | flags.MOVE_SELF
        self._folders: dict[int, str] = {}
        self._loop = asyncio.get_running_loop()
        self._inotify = INotify(nonblocking=True)
        self._loop.add_reader(self._inotify.fileno(), hear)

    def add(self, path: str, folder: int) -> None:
        """Watches the folder in place of what was there; twice is as good as once.

        Raises:
            OSError: the system has no more watches to give.
        """
        watch = self._inotify.add_watch(f"/proc/self/fd/{folder}", self._masks[path])
        for other in [each for each, its_path in self._folders.items() if its_path == path and each != watch]:
            del self._folders[other]
            with suppress(OSError):  # it went with its folder
                self._inotify.rm_watch(other)
        self._folders[watch] = path

    def read(self) -> Iterator[_News | None]:
        """What has happened since; None: more than is told."""
        for watch, mask, _, name in self._inotify.read(timeout=0):
            path = f"{self._folders.get(watch, '')}/{name}"
            if mask & self._lost or path in _FOLDERS:
                yield None
            else:
                yield _News(path, bool(mask & self._closed))

    def close(self) -> None:
        self._loop.remove_reader(self._inotify.fileno())
        self._inotify.close()
