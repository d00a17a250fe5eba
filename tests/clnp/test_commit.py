"""Commits: what they cut, what their fingerprint sees, and the way out and back."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from clnp import commit as commit_module
from clnp.commit import added, commit, fingerprint, restore
from clnp.errors import Damaged, NothingToCommit
from clnp.evaluation import full_width_agrees, logits
from clnp.network import FREE, Network
from clnp.ownership import NORM_ENTRIES, active, lives, norm_entries, reads, weight_classes
from clnp.subnetwork import subnetwork
from clnp.tensors import decode, encode

HEADS = ("single", "multi")


def blank(network, hidden=(7, 6)):
    """A network of the same form with no commit."""
    modules = []
    for before, width in zip((5, *hidden), hidden, strict=False):
        modules += [nn.Linear(before, width), nn.ReLU()]
    return Network(nn.Sequential(*modules, nn.Linear(hidden[-1], 3)), head=network.head)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def numbers(network, task):
    """Every number that the task's sub-network is made of, bit for bit."""
    return torch.cat([p.flatten() for p in subnetwork(network, task).parameters()]).view(torch.int32).tolist()


def flip(tensor, place, bit):
    tensor.view(torch.int32).flatten()[place] ^= 1 << bit if bit < 31 else -(2**31)


sequences = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "hidden": st.lists(st.integers(4, 8), min_size=1, max_size=3),
        "head": st.sampled_from(HEADS),
        "committed": st.integers(1, 3),
        "share": st.sampled_from([0.1, 0.3]),
    }
)


@settings(max_examples=30)
@given(sequence=sequences)
def test_a_commit_severs_every_interference_weight(make_network, sequence):
    """Promise 1, Sec. 2.1: all of W^int is exactly 0, and nothing else was cut."""
    network = make_network(**sequence)
    for layer in network.layers[:-1]:
        classes = weight_classes(network, layer)
        weight = network.weights(layer).weight
        assert not weight[classes.interference].any()
        # Of the active weights only those from units that came later than the unit they go into have been cut.
        if layer.source is not None:
            into, source = network.owner(layer.group).unsqueeze(1), network.owner(layer.source).unsqueeze(0)
            assert bool((weight != 0)[classes.active & (source <= into)].all())
            # The definition once more, since sever() goes by the weight classes itself.
            assert not weight[(into != FREE) & ((source == FREE) | (source > into))].any()
        else:
            assert bool((weight != 0).all())
    if network.head == "multi":
        for task in range(network.task):
            head = network.weights(network.output, task).weight
            read = reads(network, network.output, task)
            assert not head[:, ~read].any()
            assert bool((head[:, read] != 0).all())
    else:
        assert bool((network.weights(network.output).weight != 0).all())


@settings(max_examples=30)
@given(sequence=sequences)
def test_a_commit_gives_the_task_its_units_and_changes_no_other_entry(make_network, claim_some, sequence):
    network = make_network(**sequence)
    task = network.task
    claims = claim_some(network, torch.Generator().manual_seed(sequence["seed"]), 0.2)
    before = state(network)
    assume(all(bool(reads(network, layer, task, claims).any()) for layer in network.layers))  # Else refused, see below.
    commit(network, claims)
    assert network.task == task + 1
    for layer in network.groups:
        owner = before[f"owner_{layer.name}"]
        assert torch.equal(network.owner(layer), torch.where(claims[layer.name], task, owner))
    for name, parameter in network.named_parameters():
        changed = parameter != before[name]
        assert not parameter[changed].any()
        deeper = {f"parts./{group.name}.weight": group.name for group in network.groups[1:]}
        if name in deeper:
            assert not changed[~claims[deeper[name]]].any()
        else:
            assert not changed.any() or name == f"heads.{task}.weight"


@pytest.mark.parametrize("head", HEADS)
def test_the_fingerprint_sees_every_bit_that_the_task_reads(make_network, head):
    """Promise 1: an entry counts exactly if it is a number of the sub-network, or a severed one that is not 0."""
    network = make_network(head=head, committed=3, seed=4)
    prints = [fingerprint(network, task) for task in range(3)]
    read = [numbers(network, task) for task in range(3)]
    for name, parameter in network.named_parameters():
        for place in range(parameter.numel()):
            bit = (7 * place) % 32
            value = parameter.flatten()[place].clone()
            flip(parameter, place, bit)
            for task in range(3):
                is_read = numbers(network, task) != read[task]
                cut_off = not is_read and severed(network, task, name, place)
                # The sign of a severed zero is no difference.
                expected = is_read or (cut_off and bool(parameter.flatten()[place] != 0))
                assert (fingerprint(network, task) != prints[task]) == expected, (name, place, task)
            parameter.view(-1)[place] = value
    assert [fingerprint(network, task) for task in range(3)] == prints


def severed(network, task, name, place):
    """Whether an entry leads into what the task reads: then it must be 0, for the task reads no such unit."""
    kind, key, part = name.split(".")
    if part == "bias":
        return False
    if kind == "heads":
        return int(key) == task
    layer = next(layer for layer in network.layers if f"/{layer.name}" == key)
    return layer != network.output and bool(lives(network, layer.group, task)[place // layer.inputs])


@pytest.mark.parametrize("head", HEADS)
def test_every_bit_of_one_entry(make_network, head):
    network = make_network(head=head, committed=1)
    expected = fingerprint(network, 0)
    layer = network.layers[-2]
    row, column = (int((network.owner(place) == 0).nonzero()[0]) for place in (layer.group, layer.source))
    weight = network.weights(layer).weight
    for bit in range(32):
        flip(weight, row * layer.inputs + column, bit)
        assert fingerprint(network, 0) != expected
        flip(weight, row * layer.inputs + column, bit)
    assert fingerprint(network, 0) == expected


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("value", [1e-30, float("nan"), float("inf"), -1.0])
def test_one_severed_entry_that_is_not_zero(make_network, head, value):
    network = make_network(head=head, committed=2)
    expected = [fingerprint(network, task) for task in range(2)]
    row = int((network.owner(network.last) == 0).nonzero()[0])
    column = int((network.owner(network.groups[0]) == FREE).nonzero()[0])
    network.weights(network.layers[-2]).weight[row, column] = value
    # In a single head task 1 does not read the unit, so its answer does not depend on the entry.
    assert (fingerprint(network, 0) != expected[0], fingerprint(network, 1) != expected[1]) == (True, head == "multi")
    network.weights(network.layers[-2]).weight[row, column] = -0.0
    assert [fingerprint(network, task) for task in range(2)] == expected


@pytest.mark.parametrize("head", HEADS)
def test_an_owner_that_changed(make_network, head):
    network = make_network(head=head, committed=2)
    for layer in network.groups:
        for unit in range(layer.units):
            for owner in {FREE, 0, 1} - {int(network.owner(layer)[unit])}:
                before = [fingerprint(network, task) for task in range(2)]
                was = int(network.owner(layer)[unit])
                network.owner(layer)[unit] = owner
                after = [fingerprint(network, task) for task in range(2)]
                if 0 in (was, owner):
                    assert after[0] != before[0]
                assert (after[1] != before[1]) == (layer != network.last or head == "multi" or 1 in (was, owner))
                network.owner(layer)[unit] = was


@settings(max_examples=30)
@given(sequence=sequences)
def test_later_tasks_change_no_fingerprint_and_no_logit(make_network, draw, claim_some, sequence):
    """Promise 1, whatever later tasks learn and claim."""
    network = make_network(**sequence)
    source = torch.Generator().manual_seed(sequence["seed"])
    x = torch.randn(20, 5, generator=source)
    tasks = range(network.task)
    prints = [fingerprint(network, task) for task in tasks]
    answers = [logits(subnetwork(network, task), x) for task in tasks]
    commits = [added(network, task) for task in tasks]
    draw(network, source)
    if bool((network.owner(network.last) == FREE).any()):
        commit(network, claim_some(network, source, 0.2))
    assert [fingerprint(network, task) for task in tasks] == prints
    for task in tasks:
        assert torch.equal(logits(subnetwork(network, task), x), answers[task])
        assert full_width_agrees(network, x, task)
        assert same(added(network, task), commits[task])


@pytest.mark.parametrize("head", HEADS)
def test_growth_by_zero_columns(make_network, head):
    """A wider network that holds the same tasks has their fingerprints."""
    small = make_network((7, 6), head=head, committed=2)
    wide = blank(small, hidden=(10, 9))
    for task in range(3):
        wide.place_head(task)
    for (name, value), (_, old) in zip(wide.state_dict().items(), small.state_dict().items(), strict=True):
        if name.startswith("owner"):
            value[: len(old)] = old
        elif name == "committed":
            value.copy_(old)
        else:
            # New units have rows of their own, and columns of zeros into the old ones.
            value.copy_(torch.randn(value.shape))
            value[tuple(slice(size) for size in old.shape)] = old
            if old.dim() == 2 and (name.startswith("heads") or len(old) < len(value)):
                value[: len(old), old.shape[1] :] = 0
    assert [fingerprint(wide, task) for task in range(2)] == [fingerprint(small, task) for task in range(2)]


def test_dtype_and_head_are_part_of_it(make_network):
    network = make_network((4,), committed=1, share=1.0)
    network.parts.half().apply(lambda module: [parameter.zero_() for parameter in module.parameters()])
    # The same owners and the same bytes.
    assert fingerprint(network.copy().bfloat16(), 0) != fingerprint(network, 0)
    one, other = (make_network((4,), head=head, committed=1, share=1.0) for head in HEADS)
    assert fingerprint(one, 0) != fingerprint(other, 0)


@pytest.mark.parametrize("function", [fingerprint, added])
@pytest.mark.parametrize("task", [-1, 1])
def test_a_task_that_is_not_committed(make_network, function, task):
    with pytest.raises(IndexError, match="not committed"):
        function(make_network(committed=1), task)


@settings(max_examples=30)
@given(sequence=sequences)
def test_what_was_added_puts_every_task_back(make_network, sequence):
    """Promise 3: commits restored in order give the same network, through bytes."""
    network = make_network(**sequence)
    again = blank(network, hidden=tuple(layer.units for layer in network.groups))
    x = torch.randn(10, 5)
    for task in range(network.task):
        restore(again, decode(encode(added(network, task))))
        assert fingerprint(again, task) == fingerprint(network, task)
    assert again.task == network.task
    for layer in network.groups:
        assert torch.equal(again.owner(layer), network.owner(layer))
        free = ~active(again, layer)
        assert not again.weights(layer).weight[free].any()
    for task in range(network.task):
        assert numbers(again, task) == numbers(network, task)
        assert torch.equal(logits(subnetwork(again, task), x), logits(subnetwork(network, task), x))
        assert same(added(again, task), added(network, task))


def damaged(tensors, owned):
    """Every way in which a commit's tensors can be wrong, with the entry that should be named."""
    for name, tensor in tensors.items():
        yield name, {key: value for key, value in tensors.items() if key != name}
        yield name, {**tensors, name: tensor.to(torch.float64)}
        yield name, {**tensors, name: torch.cat([tensor.reshape(-1), tensor.reshape(-1)[:1]])}
    units = tensors["0.units"]
    yield "task", {**tensors, "task": torch.tensor(5)}
    yield "surplus", {**tensors, "surplus": torch.zeros(1)}
    yield "0.units", {**tensors, "0.units": units.flip(0)}
    yield "0.units", {**tensors, "0.units": units[:1].expand_as(units).clone()}
    yield "0.units", {**tensors, "0.units": units - 7}
    yield "0.units", {**tensors, "0.units": units + 7}
    yield "0.units", {**tensors, "0.units": owned[: len(units)]}


@pytest.mark.parametrize("head", HEADS)
def test_damaged_tensors_are_named_and_change_nothing(make_network, head):
    network = make_network((9, 8), head=head, committed=2, seed=5, share=0.4)
    base = blank(network, hidden=(9, 8))
    restore(base, added(network, 0))
    before = state(base)
    count = 0
    for name, tensors in damaged(added(network, 1), added(network, 0)["0.units"]):
        with pytest.raises(Damaged, match=f"entry '{name}'"):
            restore(base, tensors)
        assert same(state(base), before)
        count += 1
    assert count > 25


def test_a_shared_bias_belongs_to_the_first_task(make_network):
    network = make_network(committed=2)
    assert "4.bias" in added(network, 0)
    assert "4.bias" not in added(network, 1)
    again = blank(network)
    restore(again, added(network, 0))
    with pytest.raises(Damaged, match=r"entry '4.bias' has no place in this network's task 2"):
        restore(again, {**added(network, 1), "4.bias": torch.zeros(3)})


def none(network):
    return {layer.name: torch.zeros(layer.units, dtype=torch.bool) for layer in network.groups}


def test_a_task_that_claims_nothing_new(make_network):
    """Multi-head: the commit adds a head and no unit."""
    network = make_network(head="multi", committed=1)
    first = fingerprint(network, 0)
    commit(network, none(network))
    assert network.task == 2
    assert fingerprint(network, 0) == first
    tensors = decode(encode(added(network, 1)))
    assert tensors["0.weight"].shape == (0, 5)
    again = blank(network)
    restore(again, added(network, 0))
    restore(again, tensors)
    assert fingerprint(again, 1) == fingerprint(network, 1)
    assert full_width_agrees(network, torch.randn(20, 5), 1)


@pytest.mark.parametrize(("head", "committed", "layer"), [("single", 0, "0"), ("multi", 0, "0"), ("single", 1, "2")])
def test_an_empty_layer_is_not_committed(make_network, head, committed, layer):
    network = make_network(head=head, committed=committed)
    before = state(network)
    with pytest.raises(NothingToCommit, match=f"task {committed + 1} would read no unit of {layer}; lower"):
        commit(network, none(network))
    assert same(state(network), before)


def test_claims_that_do_not_fit(make_network):
    network = make_network(committed=1)
    before = state(network)
    good = {layer.name: ~active(network, layer) for layer in network.groups}
    for claims, message in [
        ({"0": good["0"]}, r"hidden layers are \['0', '2'\]"),
        ({**good, "2": good["2"][1:]}, r"claims of 2 are torch.bool \[5\]; give bool \[6\]"),
        ({**good, "2": good["2"].long()}, "torch.int64"),
        ({**good, "0": torch.ones(7, dtype=torch.bool)}, "which task 0 owns"),
    ]:
        with pytest.raises(ValueError, match=message):
            commit(network, claims)
    multi = blank(make_network(head="multi"))
    with pytest.raises(ValueError, match="no head yet"):
        commit(multi, {group.name: ~active(multi, group) for group in multi.groups})
    assert same(state(network), before)


@pytest.mark.parametrize("head", HEADS)
def test_without_severing_it_shows(make_network, claim_some, draw, monkeypatch, head):
    """Promise 1, the safeguard removed: the sub-network's logits stay equal and would hide it; the fingerprint is
    another than a severed network's, and the full width no longer agrees."""
    network = make_network((9, 8), head=head, seed=1)
    source = torch.Generator().manual_seed(0)
    claims = claim_some(network, source, 0.4)
    x = torch.randn(50, 5)
    proper = network.copy()
    commit(proper, claims)
    monkeypatch.setattr(commit_module, "sever", lambda *_: None)
    commit(network, claims)
    before = logits(subnetwork(network, 0), x)
    network.place_head(1)
    draw(network, source)
    assert torch.equal(logits(subnetwork(network, 0), x), before)
    assert torch.equal(before, logits(subnetwork(proper, 0), x))
    assert full_width_agrees(proper, x, 0)
    assert fingerprint(network, 0) != fingerprint(proper, 0)
    assert not full_width_agrees(network, x, 0)


# Every kind of network


def erased(network):
    """A network of the same form with no commit."""
    blank = network.copy()
    blank.heads.clear()
    blank.committed.zero_()
    blank.widen(network.graph)
    return blank


def held(network):
    """Every tensor that a network holds: what kind of entry, of which layer or BatchNorm and task, and the tensor."""
    for layer in network.layers:
        own = network.head == "multi" and layer == network.output
        for task in range(network.task) if own else [None]:
            weights = network.weights(layer, task)
            yield "weight", layer, task, weights.weight
            if weights.bias is not None:
                yield "bias", layer, task, weights.bias
    for norm in network.norms:
        for kind in NORM_ENTRIES:
            if (value := getattr(network.norm(norm), kind)) is not None:
                yield "norm", norm, None, value


def read_bits(network, task):
    """Every number that the task's sub-network is made of, bit for bit."""
    floats = [v.flatten() for v in subnetwork(network, task).state_dict().values() if v.is_floating_point()]
    return torch.cat(floats).view(torch.int32)


def is_severed(network, task, kind, layer, owner, place, size):
    """Whether an entry leads from a unit that the task does not read into what it reads."""
    if kind != "weight" or layer.source is None:
        return False
    row, column = place // (size // layer.units), place % (size // layer.units) // (layer.fan_in // layer.inputs)
    if bool(reads(network, layer, task)[column // layer.positions]):
        return False
    if layer == network.output:
        return owner == task
    return bool(lives(network, layer.group, task)[row])


@settings(max_examples=25)
@given(data=st.data())
def test_the_fingerprint_of_every_kind_sees_what_the_task_depends_on_and_nothing_else(networks, data):
    """Promise 1: an entry counts exactly if it is a number of the sub-network, or a severed one that is not 0."""
    network, _ = data.draw(networks(committed=st.integers(1, 3)))
    tasks = range(network.task)
    prints, read = [fingerprint(network, t) for t in tasks], [read_bits(network, t) for t in tasks]
    entries = list(held(network))
    for kind, layer, owner, tensor in data.draw(st.permutations(entries))[:12]:
        place, bit = data.draw(st.integers(0, tensor.numel() - 1)), data.draw(st.integers(0, 31))
        flip(tensor.data, place, bit)
        for task in tasks:
            expected = not torch.equal(read_bits(network, task), read[task])
            if not expected and is_severed(network, task, kind, layer, owner, place, tensor.numel()):
                expected = bool(tensor.flatten()[place] != 0)
            assert (fingerprint(network, task) != prints[task]) == expected, (kind, layer.name, owner, task)
        flip(tensor.data, place, bit)
    assert [fingerprint(network, task) for task in tasks] == prints


def test_the_fingerprint_sees_every_number_of_a_batchnorm(make_any):
    """Facts: running statistics of active channels that move change an old logit by 0.46."""
    network, _ = make_any("torchvision", 1, committed=1)
    expected = fingerprint(network, 0)
    for norm in network.norms:
        owner = network.owner(norm.group)
        for value in norm_entries(network, norm).values():
            for unit in range(norm.units):
                flip(value, unit, 3)
                assert (fingerprint(network, 0) != expected) == (int(owner[unit]) == 0)
                flip(value, unit, 3)
    assert fingerprint(network, 0) == expected


@settings(max_examples=25)
@given(data=st.data())
def test_a_commit_of_every_kind_severs_the_whole_kernel_and_nothing_else(networks, claim_some, data):
    """Promise 1, Sec. 2.1: by owners alone, every weight from a unit that is free or came later is exactly 0."""
    network, _ = data.draw(networks(committed=st.integers(0, 2)))
    claims = claim_some(network, torch.Generator().manual_seed(0), 0.3)
    task, before = network.task, state(network)
    commit(network, claims)
    for layer in network.layers[:-1]:
        weight = network.weights(layer).weight
        into = network.owner(layer.group).unsqueeze(1)
        if layer.source is None:
            cut_off = torch.zeros_like(weight[:, :, 0, 0] if weight.dim() == 4 else weight, dtype=torch.bool)
        else:
            source = layer.columns(network.owner(layer.source)).unsqueeze(0)
            cut_off = (into != FREE) & ((source == FREE) | (source > into))
        assert not weight[cut_off].any()
        old = before[f"parts./{layer.name.replace('.', '/')}.weight"]
        assert torch.equal(weight[~cut_off], old[~cut_off])
    if network.head == "multi":
        own = network.output.columns(network.owner(network.last) != FREE)
        weight, old = network.weights(network.output, task).weight, before[f"heads.{task}.weight"]
        assert not weight[:, ~own].any()
        assert torch.equal(weight[:, own], old[:, own])
    untouched = {name for name in before if name.endswith(("bias", "running_mean", "running_var"))}
    untouched |= {name for name in before if name.startswith("heads") and not name.startswith(f"heads.{task}.")}
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in untouched)


@settings(max_examples=15)
@given(data=st.data())
def test_what_was_added_puts_every_kind_back(networks, data):
    """Promise 3: commits restored in order give the same network, through bytes."""
    network, x = data.draw(networks(committed=st.integers(1, 3)))
    again = erased(network)
    for task in range(network.task):
        restore(again, decode(encode(added(network, task))))
        assert fingerprint(again, task) == fingerprint(network, task)
    for group in network.groups:
        assert torch.equal(again.owner(group), network.owner(group))
    for task in range(network.task):
        assert torch.equal(logits(subnetwork(again, task), x), logits(subnetwork(network, task), x))
        assert full_width_agrees(again, x, task)
        assert same(added(again, task), added(network, task))


@settings(max_examples=15)
@given(data=st.data())
def test_later_tasks_of_every_kind_change_no_fingerprint_and_no_logit(networks, draw, claim_some, data):
    network, x = data.draw(networks(committed=st.integers(1, 3)))
    source, tasks = torch.Generator().manual_seed(1), range(network.task)
    prints = [fingerprint(network, task) for task in tasks]
    answers = [logits(subnetwork(network, task), x) for task in tasks]
    draw(network, source)
    commit(network, claim_some(network, source, 0.2))
    for task in tasks:
        assert fingerprint(network, task) == prints[task]
        assert torch.equal(logits(subnetwork(network, task), x), answers[task])
        assert full_width_agrees(network, x, task)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["flattened", "averaged", "before", "torchvision"])
def test_damaged_tensors_of_every_kind_are_named_and_change_nothing(make_any, head, kind):
    network, _ = make_any(kind, 9, head=head, committed=2)
    base = erased(network)
    restore(base, added(network, 0))
    before, tensors = state(base), added(network, 1)
    for name, tensor in tensors.items():
        for wrong in (
            {key: value for key, value in tensors.items() if key != name},
            {**tensors, name: tensor.to(torch.float64)},
            {**tensors, name: torch.cat([tensor.reshape(-1), tensor.new_zeros(1)])},
        ):
            with pytest.raises(Damaged, match=f"entry '{name}'"):
                restore(base, wrong)
            assert same(state(base), before)
    with pytest.raises(Damaged, match="entry 'task' is of task 1; the next commit of this network is of task 2"):
        restore(base, added(network, 0))
    restore(base, tensors)
    assert fingerprint(base, 1) == fingerprint(network, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("head", HEADS)
def test_fingerprints_and_tensors_are_those_of_the_cpu(make_network, head):
    network = make_network(head=head, committed=2)
    there = network.copy().to("cuda")
    for task in range(2):
        assert fingerprint(there, task) == fingerprint(network, task)
        assert same(added(there, task), added(network, task))
    again = blank(network).to("cuda")
    for task in range(2):
        restore(again, added(network, task))
        assert fingerprint(again, task) == fingerprint(network, task)
