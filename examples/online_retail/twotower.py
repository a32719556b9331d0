"""The two-tower model: customers and items as vectors whose cosine says what is bought for the first time soon.

    item  description's directions, numbers ─▶ MLP ─┐
          row ─▶ embedding ─────────────────────────┴─▶ sum ─▶ length 1
    user  last items (padded) ─▶ item embedding + directions + place ─▶ attention ─┐
          numbers ─────────────────────────────────────────────────────────────────┴─▶ MLP ─▶ length 1

It learns from moments before a cut-off, a fortnight apart: the state of users and items at each of them, and what the
users bought for the first time in the four weeks behind it, all of which end before the cut-off. What they buy again
is left to the source `again`: two sources that know different things find more than two that know the same. The loss
is the softmax over the items of a batch with temperature, corrected by the logarithm of how often an item is sampled
(Yi et al., RecSys 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from examples.online_retail import users
from examples.online_retail.clean import Events
from examples.online_retail.items import ItemState
from examples.online_retail.split import DAY_US, WINDOW_US
from examples.online_retail.users import HistoryAt, UserState
from recserve.exporters.errors import TableError
from recserve.exporters.spec import InputSpec, SpaceSpec, TowerSpec
from recserve.kernels.features import MISSING_TIME

RECENT: Final = 64
"""How many of the last items the user tower looks at."""
USER_INPUTS: Final = (
    "orders", "orders_28d", "orders_91d", "items", "basket_items", "value", "mean_price", "repeat_share",
    "new_items_91d", *users.TIMES,
)  # fmt: skip
ITEM_INPUTS: Final = (
    "price", "buyers", "repeat_rate", "buyers_14d", "buyers_28d", "buyers_91d", "buyers_365d",
    "buyers_last_year", "growth_last_year", "age_days",
)  # fmt: skip

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """See the README for what was tried on the validation weeks."""

    dim: int = 64
    hidden: int = 128
    temperature: float = 0.07
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    dropout: float = 0.2
    epochs: int = 6
    moments: int = 26
    """How many moments to learn from, a fortnight apart."""
    users_per_batch: int = 256
    items_per_user: int = 8


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """Customers with what they bought next.

    Attributes:
        recent: int64 [n, RECENT], row + 1 of the last items, latest first, 0 behind them.
        user_numbers: float32 [n, USER_INPUTS].
        item_numbers: float32 [items, ITEM_INPUTS].
        bought: of each customer, rows of the items bought next and never before.
        log_share: float32 [items], logarithm of its share of those purchases.
    """

    recent: Ints
    user_numbers: Floats32
    item_numbers: Floats32
    bought: Sequence[Ints]
    log_share: Floats32


class Scale(nn.Module):
    """log(1 + x), to mean 0 and deviation 1; x below 0 counts as 0."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, numbers: Floats32) -> None:
        super().__init__()
        logs = np.log1p(np.maximum(numbers.astype(np.float64), 0.0))
        self.register_buffer("mean", torch.tensor(logs.mean(axis=0), dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(logs.std(axis=0) + 1e-3, dtype=torch.float32))

    def forward(self, numbers: Tensor) -> Tensor:
        """[n, numbers], within 4 deviations: long tails must not drown the rest."""
        scaled = (torch.log1p(numbers.clamp(min=0.0)) - self.mean) / self.deviation
        return scaled.clamp(-4.0, 4.0)


class ItemTower(nn.Module):
    """Items as vectors."""

    def __init__(self, rows: int, text: int, numbers: Floats32, settings: TowerSettings) -> None:
        super().__init__()
        self.scale = Scale(numbers)
        self.embedding = nn.Embedding(rows, settings.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.Sequential(
            nn.Linear(text + numbers.shape[1], settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.dim),
        )

    def forward(self, text: Tensor, numbers: Tensor, row: Tensor) -> Tensor:
        """[n, dim], of length 1."""
        learnt = self.layers(torch.cat([text, self.scale(numbers)], dim=1))
        return functional.normalize(learnt + self.embedding(row), dim=1)


class UserTower(nn.Module):
    """Customers as vectors."""

    content: Tensor

    def __init__(self, content: Floats32, numbers: Floats32, settings: TowerSettings) -> None:
        super().__init__()
        rows, text = content.shape
        padded = np.concatenate([np.zeros((1, text), np.float32), content])
        self.register_buffer("content", torch.from_numpy(padded))
        self.scale = Scale(numbers)
        self.embedding = nn.Embedding(rows + 1, settings.dim, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.text = nn.Linear(text, settings.dim)
        self.place = nn.Parameter(torch.zeros(RECENT, settings.dim))
        self.attention = nn.Sequential(nn.Linear(settings.dim, settings.dim), nn.Tanh(), nn.Linear(settings.dim, 1))
        self.layers = nn.Sequential(
            nn.Linear(2 * settings.dim + numbers.shape[1], settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.dim),
        )

    def forward(self, recent: Tensor, numbers: Tensor) -> Tensor:
        """[n, dim], of length 1."""
        held = (recent > 0).unsqueeze(2).to(torch.float32)
        each = (self.embedding(recent) + self.text(self.content[recent])) * held
        # Subtracting much is exact enough, and stays finite where a customer has no items.
        weights = torch.softmax(self.attention(each + self.place) - 1e4 * (1 - held), dim=1) * held
        attended = (weights * each).sum(dim=1)
        mean = each.sum(dim=1) / held.sum(dim=1).clamp(min=1.0)
        mixed = self.layers(torch.cat([attended, mean, self.scale(numbers)], dim=1))
        return functional.normalize(mixed + attended, dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class TwoTower:
    """The trained towers."""

    user: UserTower
    item: ItemTower
    text: int

    def space(self) -> SpaceSpec:
        """For the export, with the columns that feed each input."""
        return SpaceSpec(
            name="ann",
            normalized=True,
            user_tower=TowerSpec(
                model=self.user,
                inputs=[
                    InputSpec(name="recent", kind="recent_items", length=RECENT, dtype="int64", offset=1, missing=0),
                    InputSpec(name="numbers", columns=USER_INPUTS, missing=0.0),
                ],
            ),
            item_tower=TowerSpec(
                model=self.item,
                inputs=[
                    InputSpec(name="text", columns=[f"text_{n:02}" for n in range(self.text)], missing=0.0),
                    InputSpec(name="numbers", columns=ITEM_INPUTS, missing=0.0),
                    InputSpec(name="row", columns=["row"], dtype="int64", rank=1),
                ],
            ),
        )


def moments_before(
    events: Events,
    cut_us: int,
    rows: Ints,
    state_at: Callable[[int], tuple[ItemState, UserState]],
    settings: TowerSettings,
) -> Iterator[Moment]:
    """The moments to learn from, latest first; those without customers are left out.

    Args:
        events: of which only those before the cut-off are looked at.
        cut_us: the cut-off.
        rows: numbers of the catalogue's items in its order.
        state_at: what is known at a moment.
        settings: how many moments.
    """
    row_of = np.full(len(events.items), -1)
    row_of[rows] = np.arange(rows.size)
    for step in range(settings.moments):
        time_us = cut_us - WINDOW_US - step * 14 * DAY_US
        if time_us <= events.time_us[0] + WINDOW_US:
            return
        moment = _moment(events, time_us, rows, row_of, *state_at(time_us))
        if moment is not None:
            yield moment


def _moment(events: Events, time_us: int, rows: Ints, row_of: Ints, its: ItemState, theirs: UserState) -> Moment | None:
    window = events.between(time_us, time_us + WINDOW_US)
    fits = theirs.known[window.user] & its.sold[window.item]
    count = len(events.items)
    pairs = np.setdiff1d(
        window.user[fits] * count + window.item[fits], theirs.history.user * count + theirs.history.item
    )
    if pairs.size == 0:
        return None
    user, row = pairs // count, row_of[pairs % count]
    who, starts = np.unique(user, return_index=True)
    share = np.bincount(row, minlength=rows.size) / row.size
    return Moment(
        recent=recent_rows(theirs.history, row_of, who),
        user_numbers=user_numbers(theirs)[who],
        item_numbers=item_numbers(its)[rows],
        bought=np.split(row, starts[1:]),
        log_share=np.log(np.maximum(share, 1e-9)).astype(np.float32),
    )


def recent_rows(history: HistoryAt, row_of: Ints, who: Ints) -> Ints:
    """int64 [who, RECENT]: row + 1 of each customer's last items, latest first, 0 behind them."""
    recent = np.zeros((who.size, RECENT), np.int64)
    starts, ends = np.searchsorted(history.user, [who, who + 1])
    for target, start, end in zip(recent, starts, ends, strict=True):
        mine = row_of[history.item[start:end][:RECENT]] + 1
        target[: mine.size] = mine
    return recent


def user_numbers(state: UserState) -> Floats32:
    """float32 [users, USER_INPUTS], as the exported tower's inputs are filled: missing is 0, times are days since."""
    days = {name: _days(state.time_us, times) for name, times in state.times.items()}
    return _stack({**state.numbers, **days}, USER_INPUTS)


def item_numbers(state: ItemState) -> Floats32:
    """float32 [items, ITEM_INPUTS], likewise."""
    return _stack({**state.numbers, "age_days": _days(state.time_us, state.times["first_sold"])}, ITEM_INPUTS)


def _days(now_us: int, times: Ints) -> NDArray[np.float64]:
    return np.where(times == MISSING_TIME, np.nan, (now_us - times.astype(np.float64)) / DAY_US)


def _stack(columns: dict[str, NDArray[np.float64]], names: Sequence[str]) -> Floats32:
    return np.nan_to_num(np.stack([columns[name] for name in names], axis=1)).astype(np.float32)


def train_towers(
    moments: Sequence[Moment],
    content: Floats32,
    settings: TowerSettings,
    seed: int,
    advance: Callable[[], None],
) -> TwoTower:
    """Train both towers together; `advance` is called after each epoch.

    Raises:
        TableError: there is no moment to learn from.
    """
    if not moments:
        raise TableError(
            "no known customer bought anything new before a cut-off: the towers have nothing to learn from"
        )
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    of_users = np.concatenate([each.user_numbers for each in moments])
    of_items = np.concatenate([each.item_numbers[np.isfinite(each.log_share)] for each in moments])
    user = UserTower(content, of_users, settings)
    item = ItemTower(len(content), content.shape[1], of_items, settings)
    batches = [(m, part) for m in range(len(moments)) for part in range(_parts(moments[m], settings))]
    optimizer = torch.optim.AdamW(
        [*user.parameters(), *item.parameters()], settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * len(batches)
    )
    text = torch.from_numpy(content)
    for _ in range(settings.epochs):
        orders = [rng.permutation(len(moment.bought)) for moment in moments]
        for m, part in rng.permutation(np.array(batches)):
            who = orders[m][part * settings.users_per_batch : (part + 1) * settings.users_per_batch]
            loss = _loss(user, item, moments[m], who, text, settings, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        advance()
    return TwoTower(user.eval(), item.eval(), content.shape[1])


def _parts(moment: Moment, settings: TowerSettings) -> int:
    return -(-len(moment.bought) // settings.users_per_batch)


def _loss(
    user: UserTower,
    item: ItemTower,
    moment: Moment,
    who: Ints,
    text: Tensor,
    settings: TowerSettings,
    rng: np.random.Generator,
) -> Tensor:
    """Softmax of each sampled purchase over the items of the batch, without the customer's other purchases."""
    sampled = [_some(moment.bought[each], settings.items_per_user, rng) for each in who]
    owner = np.repeat(np.arange(who.size), [each.size for each in sampled])
    rows, label = np.unique(np.concatenate(sampled), return_inverse=True)
    taken, owners, labels = torch.from_numpy(rows), torch.from_numpy(owner), torch.from_numpy(label)
    vectors = item(text[taken], torch.from_numpy(moment.item_numbers[rows]), taken)
    queries = user(torch.from_numpy(moment.recent[who]), torch.from_numpy(moment.user_numbers[who]))
    logits = queries @ vectors.T / settings.temperature - torch.from_numpy(moment.log_share[rows])
    others = torch.from_numpy(np.stack([np.isin(rows, moment.bought[each], assume_unique=True) for each in who]))[
        owners
    ]
    others[torch.arange(owner.size), labels] = False
    return functional.cross_entropy(logits[owners].masked_fill(others, -1e9), labels)


def _some(rows: Ints, most: int, rng: np.random.Generator) -> Ints:
    return rows if rows.size <= most else rng.choice(rows, most, replace=False)
