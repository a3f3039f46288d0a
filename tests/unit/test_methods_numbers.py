"""Each method's whole loss, its YAML's defaults included, against its formula in a few lines: value and gradient.

The policy is a vector of logits. `r(log p)` is p / sg(p): a ratio of 1 whose gradient counts.
"""

from __future__ import annotations

from statistics import mean, stdev

import pytest
import torch

from nemo_amft.algorithms.controllers.base import Observation
from tests.unit.toy_policy import (
    LONGEST,
    Tools,
    log_probs,
    method_and_controller,
    theta,
    three_groups,
    total_loss,
)

GROUPS = three_groups()
ROLLOUTS = [s for g in GROUPS for s in g.samples]
DEMONSTRATIONS = [Tools().demonstration(g.example) for g in GROUPS]
REFERENCE = theta(9).detach()


def r(lp):
    return torch.exp(lp - lp.detach())


def entropy(logits):
    p = torch.softmax(logits, -1)
    return -(p * p.log()).sum()


def nll(rows, logits):
    """Token mean."""
    tokens = [lp for row in rows for lp in log_probs(row, logits)]
    return -sum(tokens) / len(tokens)


def standardised(rewards):
    return [(x - mean(rewards)) / (stdev(rewards) + 1e-6) for x in rewards]


def centred(rewards):
    return [x - mean(rewards) for x in rewards]


def surrogate(groups, advantages, logits):
    """(sum over tokens of -A r, tokens, sequences)."""
    pairs = [
        (s.sequence, a) for g, found in zip(groups, advantages, strict=True) for s, a in zip(g.samples, found, strict=True)
    ]
    values = [-a * r(lp) for row, a in pairs for lp in log_probs(row, logits)]
    return sum(values), len(values), len(pairs)


def grpo(logits, groups=GROUPS):
    total, tokens, _ = surrogate(groups, [standardised(g.rewards) for g in groups], logits)
    return total / tokens


def recipe(logits, groups=GROUPS, entropy_coef=0.001):
    """The compared works' RL loss: r - mean, token sum over the longest response, an entropy bonus."""
    total, tokens, sequences = surrogate(groups, [centred(g.rewards) for g in groups], logits)
    return (total - entropy_coef * tokens * entropy(logits)) / (sequences * LONGEST)


def rloo(logits):
    others = [[x - (sum(g.rewards) - x) / (len(g.rewards) - 1) for x in g.rewards] for g in GROUPS]
    total, tokens, _ = surrogate(GROUPS, others, logits)
    return total / tokens


def k3(rows, logits, reference=REFERENCE):
    """Token mean of KL(policy || reference)'s estimate."""
    pairs = [(lp, ref) for row in rows for lp, ref in zip(log_probs(row, logits), log_probs(row, reference), strict=True)]
    return sum(torch.exp(ref - lp) - 1 - (ref - lp) for lp, ref in pairs) / len(pairs)


def sft_kl(logits):
    rows = [d.sequence for d in DEMONSTRATIONS]
    return nll(rows, logits) + 0.2 * k3(rows, logits)


def luffy(logits):
    total, tokens = torch.zeros(()), 0
    for g, d in zip(GROUPS, DEMONSTRATIONS, strict=True):
        *own, demonstrated = centred([*g.rewards, 1.0])  # the demonstrations are right
        for s, a in zip(g.samples, own, strict=True):
            total = total - sum(a * r(lp) for lp in log_probs(s.sequence, logits))
        p = [lp.exp() for lp in log_probs(d.sequence, logits)]
        total = total - sum(demonstrated * x / (x + 0.1) for x in p)
        tokens += len(p) + sum(s.num_tokens for s in g.samples)
    return (total - 0.001 * tokens * entropy(logits)) / (5 * 3 * LONGEST)


def srft(logits):
    h = entropy(logits).detach()
    imitation = 0.5 * torch.exp(-h) * nll([d.sequence for d in DEMONSTRATIONS], logits)
    off = torch.zeros(())
    for g, d in zip(GROUPS, DEMONSTRATIONS, strict=True):
        off = off - standardised([*g.rewards, 1.0])[-1] * sum(lp.exp() for lp in log_probs(d.sequence, logits))
    own, tokens = torch.zeros(()), 0
    for s in ROLLOUTS:
        lps = log_probs(s.sequence, logits)
        own = own - (0.1 * torch.exp(h) if s.verdict.correct else -1.0) * sum(lps)
        tokens += len(lps)
    own = own - 0.001 * tokens * entropy(logits)
    return imitation + off / (len(GROUPS) * LONGEST) + own / (len(ROLLOUTS) * LONGEST)


def hpt(logits):
    return nll([DEMONSTRATIONS[0].sequence], logits) + recipe(logits, GROUPS[1:])


def superrl(logits):
    return nll([DEMONSTRATIONS[0].sequence], logits) + grpo(logits, GROUPS[1:])


def dyme(logits):
    some, shown = GROUPS[1], DEMONSTRATIONS[0].sequence  # which stands in sample 0's place
    tokens = shown.num_trained + sum(s.num_tokens for s in ROLLOUTS[1:])
    return (-sum(log_probs(shown, logits)) + surrogate([some], [standardised(some.rewards)], logits)[0]) / tokens


def chord(logits, mu=0.9):
    return mu * nll([d.sequence for d in DEMONSTRATIONS], logits) + (1 - mu) * grpo(logits)


def chord_phi(logits):
    tokens = [lp for d in DEMONSTRATIONS for lp in log_probs(d.sequence, logits)]
    phi = [(lp.exp() * (1 - lp.exp())).detach() for lp in tokens]
    return -0.1 * sum(w * lp for w, lp in zip(phi, tokens, strict=True)) / len(tokens) + 0.9 * grpo(logits)


def uft(logits):
    return grpo(logits) + 0.001 * k3([s.sequence for s in ROLLOUTS], logits)


REFERENCES = {
    "sft": lambda logits: nll([d.sequence for d in DEMONSTRATIONS], logits),
    "sft_kl": sft_kl,
    "grpo": grpo,
    "dr_grpo": lambda logits: recipe(logits, entropy_coef=0.0),
    "rloo": rloo,
    "sft_then_rl": grpo,
    "luffy": luffy,
    "relift": recipe,
    "tapo": lambda logits: recipe(logits, entropy_coef=0.0),
    "srft": srft,
    "superrl": superrl,
    "dyme": dyme,
    "chord": chord,
    "chord_phi": chord_phi,
    "uft": uft,
    "hpt": hpt,
    "amft_grpo": lambda logits: chord(logits, 0.5),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_loss_and_its_gradient_are_the_formulas(name):
    method, controller = method_and_controller(name)
    terms = method.compose(0, GROUPS, DEMONSTRATIONS)
    found, expected = theta(), theta()
    value = total_loss(terms, found, controller.update(Observation(0, {})), REFERENCE)
    value.backward()
    reference = REFERENCES[name](expected)
    reference.backward()
    assert value.item() == pytest.approx(reference.item(), rel=1e-6)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-9)
    assert found.grad.abs().max() > 1e-3, "a gradient of nothing would compare equal as well"


def test_ppos_term_is_the_clipped_surrogate_of_advantages_that_a_critic_gives():
    method, _ = method_and_controller("ppo")
    (term,) = method.compose(0, GROUPS, [])
    assert term.needs == {"value"}
    assert method.uses_critic
    term.batch.per_token["advantage"] = [torch.arange(len(s.tokens)) / 10 - 0.3 for s in term.batch.sequences]
    found, expected = theta(), theta()
    total_loss([term], found, {}).backward()
    values = [
        -(i / 10 - 0.3) * r(torch.log_softmax(expected, -1)[t])
        for s in ROLLOUTS
        for i, (t, trained) in enumerate(zip(s.sequence.tokens, s.sequence.trained, strict=True))
        if trained
    ]
    (sum(values) / len(values)).backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-7)  # the batch's advantages are float32


def test_sasr_is_sft_or_grpo():
    method, _ = method_and_controller("sasr")
    method.prompts(0, [g.example for g in GROUPS])  # nothing was warmed up: SFT
    found, expected = theta(), theta()
    total_loss(method.compose(0, [], DEMONSTRATIONS), found, {}).backward()
    REFERENCES["sft"](expected).backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-9)
    method.load_state_dict({"warmup_norm": 1.0, "last_norm": 1e-12})  # never SFT again
    assert method.prompts(1, [g.example for g in GROUPS]) == [g.example for g in GROUPS]
    found, expected = theta(), theta()
    total_loss(method.compose(1, GROUPS, DEMONSTRATIONS), found, {}).backward()
    grpo(expected).backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-9)


def test_relifts_own_update_is_sft_on_the_unsolved():
    method, _ = method_and_controller("relift", "method.buffer_size=1")
    rl, own = method.compose(0, GROUPS, [])
    assert (rl.own_update, own.own_update) == (False, True)
    found, expected = theta(), theta()
    total_loss([own], found, {}).backward()
    nll([DEMONSTRATIONS[0].sequence], expected).backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-9)
