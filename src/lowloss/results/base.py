"""Results as tables and as objects: those of a study that is loaded, and those that the Python API finds.

    study = lowloss.load("outputs/quickstart")
    study.paths.frame                               # a pandas DataFrame, a row a path
    path = study.paths["0000-0001-autoneb"]
    path.barrier_train_loss, path.frame, path.tensors["bends"], path.path.points(t), path.plot()

Nothing is read before it is asked for, and then compared with its digests.

"""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from lowloss.errors import LowlossError, nearest
from lowloss.progress import counted
from lowloss.study import Artifact, Config, Result, Study

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

ROWS = 20
"""Of a table that are printed in a notebook."""


class NoAttributeError(LowlossError, AttributeError):
    """There is nothing of that name."""


class Made:
    """A result in memory, with the face of an artifact.

    Args:
        name: by which it is told.
        make: makes it, when it is first asked for what is not known.
        known: notes that are known before.
    """

    def __init__(self, name: str, make: Callable[[], Result], known: Config) -> None:
        self.name, self.make, self.known = name, make, known

    @cached_property
    def result(self) -> Result:
        return self.make()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {**self.result.tensors}, self.notes()

    def notes(self) -> dict[str, Any]:
        return {**self.result.notes}

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        found = self.result.tables[name]
        return found if columns is None else found[list(columns)].astype(float)


class OneResult:
    """A result of any kind; what is noted of it is an attribute too, as `path.status` or `minimum.test_error`.

    Attributes:
        kind: its kind, the folder of a study that holds such results.
        name: by which the kind knows it.
    """

    main: ClassVar[str] = ""
    """The table that `frame` is."""
    told: ClassVar[tuple[str, ...]] = ()
    """The notes that its line tells; by default the first ones."""

    def __init__(self, kind: str, source: Artifact | Made) -> None:
        self.kind, self.source, self.name = kind, source, source.name

    @cached_property
    def _loaded(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if isinstance(self.source, Artifact):
            source = self.source
            # What it was made from may be damaged, but not another's.
            Study(source.folder.parent.parent).read(lambda study: source.check_inputs(study.left_out))
        return self.source.load()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is kept of it as tensors. Raises LowlossError if the file is damaged."""
        return self._loaded[0]

    @cached_property
    def notes(self) -> dict[str, Any]:
        """All that is noted of it. Raises LowlossError if the file is damaged."""
        return self.source.notes()

    @property
    def tables(self) -> list[str]:
        """The names of its tables."""
        if isinstance(self.source, Made):
            return [*self.source.result.tables]
        return [name for name in self.source.record()[0] if name.endswith(".csv")]

    def table(self, name: str) -> pd.DataFrame:
        """One of its tables. Raises LowlossError if there is none of that name, or the file is damaged."""
        if name not in self.tables:
            raise LowlossError(f"{self.kind}/{self.name} has no table {name or 'of its own'}; {those(self.tables)}")
        return self.source.table(name)

    @property
    def frame(self) -> pd.DataFrame:
        """Its main table; see the class. Raises LowlossError if it has none."""
        return self.table(self.main)

    @property
    def scalars(self) -> dict[str, Any]:
        """The notes that are numbers, texts or truth values."""
        return {name: value for name, value in self.notes.items() if isinstance(value, (int, float, str))}

    def draw(self, figure: Figure) -> None:
        """Draw it into an empty figure."""
        self.draw_all([self], figure)

    @classmethod
    def draw_all(cls, found: Sequence[Any], figure: Figure) -> None:
        """Draw all of these in one figure. Raises LowlossError for kinds of which there is no such figure."""
        if cls.draw is OneResult.draw:
            raise LowlossError(f"there is no figure of {found[0].kind}: their `frame` has the numbers")
        if len(found) > 1:
            raise LowlossError(f"a figure shows one of {found[0].kind}: plot {found[0].name} or another")
        found[0].draw(figure)

    def plot(self, figure: Figure | None = None) -> Any:
        """Draw it as the report does: into an empty matplotlib figure that is given, or a new one of pyplot.

        Returns:
            The array of its axes, colour bars last; `axes[0].figure` is the figure.
        """
        return plotted(self.draw, figure)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if isinstance(own := getattr(type(self), name, None), property) and own.fget:
            return own.fget(self)  # it has said that there is none, in its own words
        known = self.source.known if isinstance(self.source, Made) else {}
        if name in known:
            return known[name]
        if name not in self.notes:
            raise NoAttributeError(f"{self.kind}/{self.name} has no {name}{nearest(name, self.notes)}")
        return self.notes[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.notes]

    def __repr__(self) -> str:
        unmade = isinstance(self.source, Made) and "result" not in vars(self.source)
        try:
            notes = self.source.known if isinstance(self.source, Made) and unmade else self.scalars
        except LowlossError as error:  # a list shows the others too
            return f"{self.kind}/{self.name}: damaged: {error}"
        told = [name for name in self.told or [*notes][:4] if name in notes]
        return f"{self.kind}/{self.name}: " + ", ".join(f"{name} {_short(notes[name])}" for name in told)

    def _repr_html_(self) -> str:
        import pandas as pd

        line = f"<p>{html.escape(repr(self))}</p>"
        try:
            notes = pd.Series({name: _short(value) for name, value in self.scalars.items()}, name="", dtype=object)
        except LowlossError:
            return line
        return line + notes.to_frame().to_html(header=False, max_rows=None)


def plotted(draw: Callable[[Figure], Any], figure: Figure | None) -> Any:
    """The axes of a figure, by default a new one of pyplot, once it is drawn in the report's style."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import numpy as np

    from lowloss.report.pictures import STYLE

    with mpl.rc_context(STYLE):
        figure = plt.figure() if figure is None else figure
        draw(figure)
    return np.array(figure.axes)


def left_out(lines: Sequence[str]) -> None:
    """Warn of what is damaged, a line each."""
    for line in lines:
        warnings.warn(f"left out: {line}", stacklevel=3)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def those(names: Sequence[str]) -> str:
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"there are {listed}" if names else "there is none"


T = TypeVar("T", bound="OneResult")


class Results(Sequence[T], Generic[T]):
    """All results of a kind, by place or by name, and as a table.

    Args:
        frame: makes the table; by default a row has the numbers that are noted of a result.
        none: what is told where there is none.
    """

    def __init__(
        self, kind: str, found: Sequence[T], frame: Callable[[], pd.DataFrame | None] = lambda: None, none: str = ""
    ) -> None:
        self.kind, self._found, self._frame, self._none = kind, list(found), frame, none

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._found]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row a result by its name, or of kinds that have more to tell several, as in the report's tables; a warning
        tells each that is damaged and left out."""
        import pandas as pd

        frame = self._frame()
        if frame is not None:
            return frame.set_axis(self.names) if len(frame) == len(self) else frame
        found = self.readable(lambda one: one.scalars)
        return pd.DataFrame([one.scalars for one in found], index=[one.name for one in found])

    def readable(self, reader: Callable[[T], Any] = lambda one: (one.tensors, one.main and one.frame)) -> list[T]:
        """Those of which can be read what is asked for, by default all; a warning tells each that is damaged."""
        found = []
        for one in self._found:
            try:
                reader(one)
                found.append(one)
            except LowlossError as error:
                left_out([str(error)])
        return found

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[T]:
        return iter(self._found)

    @overload
    def __getitem__(self, key: int | str) -> T: ...
    @overload
    def __getitem__(self, key: slice) -> list[T]: ...
    def __getitem__(self, key: int | str | slice) -> T | list[T]:
        """Raises LowlossError if there is none."""
        if isinstance(key, str) and key in self.names:
            return self._found[self.names.index(key)]
        if isinstance(key, slice) or (isinstance(key, int) and -len(self) <= key < len(self)):
            return self._found[key]
        if not len(self):
            raise LowlossError(self._none)
        raise LowlossError(
            f"{self.kind} has no {key!r}{nearest(str(key), self.names)}; {those(self.names)}, or name a place below "
            f"{len(self)}"
        )

    def plot(self, figure: Figure | None = None) -> Any:
        """All of them in one figure, as the report has it; see OneResult.plot. Raises LowlossError for kinds of which
        there is no such figure."""
        if not self:
            raise LowlossError(self._none)
        if not (found := self.readable()):
            raise LowlossError(f"none of these {self.kind} has what a figure needs")
        return plotted(partial(type(self[0]).draw_all, found), figure)

    def __repr__(self) -> str:
        shown = ", ".join([*self.names[:6], *(["…"] if len(self) > 6 else [])])
        return f"{counted(len(self), self.kind)}: {shown}".rstrip(": ")

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>" + (self.frame.to_html(max_rows=ROWS) if len(self) else "")
