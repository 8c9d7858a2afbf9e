"""Permutation symmetries: the function is kept by the ones that are derived, for every network that is shipped."""

import re
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import torchvision
import yaml
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lowloss import Data, NetworkLandscape
from lowloss.conf import config_folder
from lowloss.errors import LowlossError
from lowloss.landscape import Layout
from lowloss.model import MLP, DenseNet, ResNet
from lowloss.symmetry import Group, Place, align, derive_symmetries, match_activations

NAMES = sorted(file.stem for file in (config_folder() / "model").glob("*.yaml"))


def read(group, name):
    file = config_folder() / group / f"{name}.yaml"
    return yaml.safe_load(file.read_text()) if file.exists() else {}


def small(name):
    """A model of conf/model as scale=tiny makes it, and the shape of its images."""
    changes = read("small", f"tiny_{name}")
    node = {**read("model", name), **changes.get("model", {})}
    size, channels = (changes.get("data", {}).get(key, other) for key, other in (("size", 8), ("channels", 1)))
    return node, (channels, size, size)


# Some differ in what scale=tiny takes away; an LSTM's units keep their order, as is tested below.
MODELS = {
    str(small(name)): name for name in NAMES if not name.startswith("lstm") and not name.startswith("torchvision")
}.values()
# And the ResNet-18 of conf/model/torchvision.yaml.
TORCHVISION = ("resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5")


def configured(name):
    """A model of conf/model in small, and the shape of its images."""
    node, shape = small(name)
    module, _, attribute = node.pop("_target_").rpartition(".")
    return getattr(import_module(module), attribute)(input_shape=shape, num_classes=10, **node), shape


def check(module, x, least):
    """Outputs in evaluation and, for what has BatchNorm, in training mode are those of the permuted network."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # so that no two units are alike, as those of a fresh normalisation are
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += noise * (0.02 + 0.1 * parameter)
    symmetries = derive_symmetries(module, x)
    layout = Layout.of(module)
    theta_P = layout.flatten(dict(module.named_parameters()))
    permuted_P = symmetries.permuted(theta_P, symmetries.random(3))
    # There is something to permute, and it has moved.
    assert len(symmetries.groups) >= least
    assert (permuted_P != theta_P).float().mean() > 0.3
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.train()
                part.momentum = 1.0  # of no effect on the outputs
        before = module(x)
        for name, parameter in module.named_parameters():
            parameter.copy_(layout.views(permuted_P)[name])
        after = module(x)
    assert (after - before).abs().max() <= 1e-9 * before.abs().max()
    return symmetries


@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_its_function(name):
    torch.manual_seed(0)
    module, shape = configured(name)
    found = check(module, torch.randn(3, *shape, dtype=torch.float64), 1)
    assert not found.notes


@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision_keep_theirs(name):
    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(num_classes=10)
    found = check(module, torch.randn(3, 3, 32, 32, dtype=torch.float64), 12)
    assert not found.notes


def test_a_transformer_permutes_widths_heads_and_hidden_units():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 4, 20, dropout=0.0, batch_first=True)
    module = nn.Sequential(nn.Linear(6, 12), nn.TransformerEncoder(layer, 2), nn.Linear(12, 3))
    found = check(module, torch.randn(2, 5, 6, dtype=torch.float64), 5)
    assert [group.size for group in found.groups] == [12, 4, 20, 4, 20]


class Attention(nn.Module):
    """Attention by hand, with a learned position and a norm."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads, self.place = heads, nn.Parameter(torch.randn(5, width))
        self.embed, self.qkv = nn.Linear(3, width), nn.Linear(width, 3 * width)
        self.norm, self.out, self.head = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x):
        x = self.embed(x) + self.place
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(mask, -1e9).softmax(-1)
        return self.head(x + self.out((scores @ v).transpose(1, 2).flatten(2)))


def test_attention_written_by_hand_permutes_its_heads():
    torch.manual_seed(0)
    found = check(Attention(), torch.randn(2, 5, 3, dtype=torch.float64), 2)
    assert [(group.name, group.size) for group in found.groups] == [("embed", 8), ("qkv", 2)]


def test_groups_are_those_of_the_architecture():
    x = torch.randn(2, 1, 8, 8)
    widths = [group.size for group in derive_symmetries(MLP((1, 8, 8), 10, [7, 5], True), x).groups]
    assert widths == [7, 5]
    # Option A pads: a stream of 16 channels goes on as 16 of 32, and these as 32 of 64. Two blocks have one hidden
    # width each.
    widths = [group.size for group in derive_symmetries(ResNet((1, 8, 8), 10, depth=14), x).groups]
    assert sorted(widths) == sorted([16, 16, 32, 16, 16, 32, 32, 64, 64])
    # DenseNet-40: the stem, twelve layers in each of three blocks, and two transitions.
    assert len(derive_symmetries(DenseNet((1, 8, 8), 10, depth=40), x).groups) == 1 + 3 * 12 + 2


class Attended(nn.Module):
    """A gate at each position for all channels, and a scale of all."""

    def __init__(self):
        super().__init__()
        self.gate, self.scale = nn.Conv2d(6, 1, 1), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.gate(x).sigmoid() * self.scale


class Beside(nn.Module):
    def forward(self, x):
        return torch.cat([x, x.new_zeros(len(x), 2, 6, 6)], 1)


HEAD = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()

LAYERS = {
    # Channels permute within each group; a depthwise one's go with its inputs, whatever many they are.
    "grouped": (
        [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), *HEAD, nn.Linear(12, 5)],
        [("0", 4), ("0:2", 4), ("2", 6), ("2:2", 6)],
    ),
    "grouped, transposed": (
        [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 3, groups=2), *HEAD, nn.Linear(12, 5)],
        [("0", 4), ("0:2", 4), ("2", 6), ("2:2", 6)],
    ),
    "depthwise": ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8), *HEAD, nn.Linear(16, 5)], [("0", 8)]),
    "depthwise, transposed": (
        [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 16, 3, groups=8), *HEAD, nn.Linear(16, 5)],
        [("0", 8)],
    ),
    "InstanceNorm": (
        [nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 6, 3), *HEAD, nn.Linear(6, 5)],
        [("0", 8), ("3", 6)],
    ),
    "padded": (
        [nn.ZeroPad2d(1), nn.Conv2d(3, 6, 3), nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(6, 4, 3), *HEAD, nn.Linear(4, 5)],
        [("1", 6), ("4", 4)],
    ),
    "PReLU": (
        [nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 4, 3), nn.PReLU(), *HEAD[1:], nn.Linear(4, 5)],
        [("0", 6), ("2", 4)],
    ),
    "GLU": ([nn.Conv2d(3, 12, 3), nn.GLU(1), *HEAD[1:], nn.Linear(6, 5)], [("0", 6)]),
    "unshuffled": (
        [nn.Conv2d(3, 6, 3), nn.PixelUnshuffle(2), nn.Conv2d(24, 4, 1), *HEAD, nn.Linear(4, 5)],
        [("0", 6), ("2", 4)],
    ),
    "beside constants": ([nn.Conv2d(3, 6, 3), nn.ReLU(), Beside(), *HEAD[1:], nn.Linear(8, 5)], [("0", 6)]),
    "gated": ([nn.Conv2d(3, 6, 3), nn.ReLU(), Attended(), *HEAD[1:], nn.Linear(6, 5)], [("0", 6)]),
    "weight_norm": (
        [
            *(weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), weight_norm(nn.Conv2d(8, 6, 3)), nn.Tanh()),
            *(*HEAD[1:], nn.Linear(6, 5)),
        ],
        [("0", 8), ("2", 6)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_pass_units_on(name):
    torch.manual_seed(0)
    layers, groups = LAYERS[name]
    found = check(nn.Sequential(*layers), torch.randn(3, 3, 8, 8).double(), len(groups))
    assert [(group.name, group.size) for group in found.groups] == groups
    assert not found.notes
    assert [group.name for group in found.groups if group.odd] == (
        {"weight_norm": ["2"], "unshuffled": ["0"]}.get(name, [])
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_weight_norm_is_known_too():
    first, second = (nn.utils.weight_norm(nn.Linear(*size)) for size in ((4, 6), (6, 5)))
    module = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(5, 2))
    module(torch.randn(3, 4))  # which keeps weights that are no leaves
    found = derive_symmetries(module, torch.randn(3, 4))
    assert [(group.name, group.size) for group in found.groups] == [("0", 6), ("2", 5)]
    assert {place.parameter for place in found.groups[0].places} == {"0.weight_g", "0.weight_v", "0.bias", "2.weight_v"}


class Tied(nn.Module):
    """An autoencoder whose decoder has the encoder's weights transposed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x):
        return nn.functional.linear(self.b(self.a(x).relu()).relu() @ self.b.weight, self.a.weight.T)


def test_tied_weights_have_the_units_of_all_their_uses():
    torch.manual_seed(0)
    found = check(Tied(), torch.randn(3, 4).double(), 2)
    assert [(group.name, len(group.places)) for group in found.groups] == [("a", 3), ("b", 2)]
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)]
    layers[4].weight = layers[2].weight
    found = check(nn.Sequential(*layers), torch.randn(3, 4).double(), 1)
    assert [(group.name, len(group.places)) for group in found.groups] == [("0", 7)]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.embedding(x))


def test_an_embedding_read_as_the_last_layers_weight_permutes_its_width():
    found = check(Tokens(), torch.randint(11, (4, 7)), 1)
    assert [(group.size, group.odd, len(group.places)) for group in found.groups] == [(6, True, 1)]


class Halved(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, 0.5 * self.weight, self.bias)


class Mixed(nn.Module):
    """Positions mixed for each channel."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.out = nn.Linear(4, 6), nn.Linear(5, 5), nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x[:, None].expand(-1, 5, -1))
        return self.out((x + self.mix(x.mT).mT).mean(1))


class Interleaved(nn.Module):
    def forward(self, x):
        return x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)


def test_layers_that_keep_an_order_are_told():
    square = nn.Linear(4, 4)
    told = {
        "0: one weight is read 2 times, and its units keep their order": [square, nn.ReLU(), square],
        "2: a weight that is computed from parameters keeps its order": [nn.Linear(4, 6), nn.ReLU(), Halved(6, 4)],
        "1: each channel is alone in its group, and keeps its place": [
            *(nn.Linear(4, 4), nn.GroupNorm(2, 4), Interleaved(), nn.GroupNorm(2, 4), nn.Linear(4, 3))
        ],
    }
    told["0.mix: units beside the axis that it reads keep their order"] = [Mixed()]
    for note, layers in told.items():
        found = derive_symmetries(nn.Sequential(*layers), torch.randn(3, 4))
        assert not found.groups
        assert found.notes[0] == note
    images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(3), *HEAD, nn.Linear(8, 5))
    found = derive_symmetries(images, torch.randn(2, 3, 8, 8))
    assert found.notes == ("1: what goes through local_response_norm keeps its order",)


class Ordered(nn.Module):
    """Its second hidden layer is summed in an order, and its third weighted by a constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.register_buffer("weights", torch.arange(4.0))

    def forward(self, x):
        x = self.b(self.a(x).tanh()).cumsum(-1)
        return self.d(self.c(x) * self.weights)


def test_what_cannot_be_permuted_stays_and_is_told():
    found = derive_symmetries(Ordered(), torch.randn(3, 4))
    assert [group.name for group in found.groups] == ["a"]
    assert found.notes == (
        "the network: numbers that are no parameters tell units apart in mul",
        "b: its units cannot be permuted by themselves",
    )
    recurrent = derive_symmetries(nn.Sequential(nn.Linear(4, 6), nn.LSTM(6, 5)), torch.randn(2, 3, 4))
    assert recurrent.groups == ()
    assert recurrent.notes == ("1: what goes through lstm keeps its order",)


def test_units_in_frozen_parameters_stay():
    layers = [nn.Linear(4, 6).requires_grad_(False), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)]
    module, x = nn.Sequential(*layers), torch.randn(8, 4)
    found = derive_symmetries(module, x)
    assert [group.name for group in found.groups] == ["2"]
    assert found.notes == ("0: its units lie in frozen parameters",)
    y = torch.arange(8) % 3
    landscape = NetworkLandscape(module, Data(x, y, x, y))
    theta_P = landscape.point(module)
    copy_P = found.permuted(theta_P, found.random(1))
    assert not torch.equal(copy_P, theta_P)
    for by in ("weights", "activations"):
        torch.testing.assert_close(align(landscape, theta_P, copy_P, by)[0], theta_P)


def test_signs_change_where_all_that_follows_is_odd():
    torch.manual_seed(0)
    first = (nn.Flatten(0, 1), nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 9), nn.ReLU())
    found = check(
        nn.Sequential(*first, nn.Linear(9, 7), nn.Hardtanh(), nn.Linear(7, 3)), torch.randn(2, 5, 6).double(), 3
    )
    assert [(group.size, group.odd) for group in found.groups] == [(12, True), (9, False), (7, True)]
    flip = torch.stack([torch.arange(9), -torch.ones(9, dtype=torch.long)])
    with pytest.raises(LowlossError, match=r"^what follows 4 is not odd: its units cannot change their signs$"):
        found.permuted(torch.zeros(found.layout.dim), {"4": flip})


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        raise RuntimeError("no way\nthrough")


UNITS = torch.arange(6)[:, None]

WRONG = {
    "lies in 0.wieght, but there is no such parameter (did you mean 0.weight or 2.weight?)": Place(
        "0.wieght", 0, UNITS
    ),
    "lies in x, but there is no such parameter: the parameters are 0.weight, 0.bias, 2.weight, 2.bias": Place(
        "x", 0, UNITS
    ),
    "lies along axis 2 of 0.weight, which has the shape (6, 4): take one of 0, 1, or None for all its numbers": Place(
        "0.weight", 2, UNITS
    ),
    "lies along axis 1 of 0.bias, which has the shape (6,): take one of 0, or None for all its numbers": Place(
        "0.bias", 1, UNITS
    ),
    "has the index 6 in 0.weight, but there are 0 … 5": Place("0.weight", 0, UNITS + 1),
    "has the index -1 in 0.weight, but there are 0 … 5": Place("0.weight", 0, UNITS - 1),
    "has an index in 0.weight twice: give each once": Place("0.weight", 0, UNITS // 2),
    "has 6 units, so their indices in 2.weight are integers of the shape (6, R), got torch.int64 of (4, 1)": Place(
        "2.weight", 1, UNITS[:4]
    ),
    "has 6 units, so their indices in 2.weight are integers of the shape (6, R), got torch.int64 of (6,)": Place(
        "2.weight", 1, UNITS[:, 0]
    ),
    "has 6 units, so their indices in 2.weight are integers of the shape (6, R), got torch.float32 of (6, 1)": Place(
        "2.weight", 1, UNITS.float()
    ),
}


@pytest.mark.parametrize("told", WRONG)
def test_wrong_groups_given_by_hand_are_told(told):
    found = derive_symmetries(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4))
    by_hand = Group("own", (Place("0.bias", None, UNITS), WRONG[told]))
    with pytest.raises(LowlossError, match=f"^the group own {re.escape(told)}$"):
        replace(found, groups=(by_hand,))


def test_groups_given_by_hand_have_names_and_places():
    found = derive_symmetries(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4))
    with pytest.raises(LowlossError, match=r"^two groups are called 0: name each otherwise$"):
        replace(found, groups=(*found.groups, *found.groups))
    with pytest.raises(LowlossError, match=r"^the group own has no places: give at least one$"):
        replace(found, groups=(Group("own", ()),))


def test_bad_input_is_told_in_a_line():
    with pytest.raises(LowlossError, match=r"^Failing cannot be traced: no way$"):
        derive_symmetries(Failing(), torch.randn(2, 3))
    found = derive_symmetries(MLP((3,), 2, [4]), torch.randn(2, 3))
    with pytest.raises(LowlossError, match=r"^no layer 'layers\.2' .* take one of layers\.1$"):
        found.group("layers.2")
    x, net = torch.randn(4, 3), MLP((3,), 2, [4])
    for other, given in ((MLP((3,), 2, [5]), r"\(5, 3\)"), (nn.Linear(3, 2), "none")):
        with pytest.raises(LowlossError, match=rf"networks with layers.1.weight of shape \(4, 3\), got {given}$"):
            match_activations(found, net, other, x)
    with pytest.raises(LowlossError, match=r"^a point of this network has 26 numbers, got \(25,\)$"):
        found.permuted(torch.zeros(25), {"layers.1": torch.arange(4)})
    with pytest.raises(LowlossError, match="units 0 … 3: give each of them once"):
        found.permuted(torch.zeros(26), {"layers.1": torch.tensor([0, 1, 1, 2])})
