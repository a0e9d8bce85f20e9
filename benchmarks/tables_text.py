"""What the page of results says in words."""

TITLE = """
# The paper's tables on our networks

This page is written by `python -m benchmarks.tables`, from cells it has computed; do not edit it.
"""

READING = """
## How to read it

- Every cell has four rows: what the [paper](https://arxiv.org/abs/2404.01642v1) prints for its own
  method, then our repair, the constant-bias repair, whose patches look at no input, and the network
  as it was. Rates are per cent; [metrics.md](metrics.md) defines them.
- The paper *defines* DSR and DGSR as the share on which the attack succeeds and *prints* the share
  on which it fails. Here both are shares of defence, the paper's as printed.
- The paper's DGSR stands under DGSR-oracle: its protocol fixes the patches by the clean input.
  **DGSR-oracle is not robustness**; what a deployed network has is DGSR-query.
- **The attack is not the standard one.** A row marked `pgd` is attacked by descent with the options
  above and by one of 40 steps with 2 restarts; a row marked `autoattack` by that and the longer
  descent. The paper uses AutoAttack cut to 10 steps. A weaker attack overstates defence: read every
  DSR and DGSR as an upper bound, but for the DSR of a proved region.
- The unrepaired network has no patches to tell: its DGSR-oracle is its DGSR-query but for the
  attack's random numbers.
- RSR and RGR are from the examples that our search finds on these networks, not the paper's.
- `repair, s` is bounds, training and proof, without the search for examples; the paper's machine is
  another (64 cores and a GPU), so the two are no race. `evaluation, s` is the full evaluation of
  all three subjects. Each time is of one run on a machine that had other work too: rough.
"""

CASE = """
## What a deployed network has: FNN_small, radius 0.1, 1000 repaired examples

The paper prints a DGSR of {} % for this repair. With 95 % intervals over the inputs attacked:
"""

OWN = """
## Tables 1 and 3

One patch for every property, of the kind that the preset says: affine in `default`, the paper's
small one with its optimiser in `paper`.
"""

LIMITS = """
## What was not reproduced

- The rows of the other tools: CARE, PRDNN, APRNN, REASSURE, TRADES and ART are on a page of their
  own, [comparison.md](comparison.md), some of them with footnotes.
- Tables 2 (ACAS Xu) and 4 (CIFAR-10) are not on this page.
- The paper's networks: ours have the layers and the accuracy of its table 6, but are trained anew.
- The 10,000 test inputs of the paper's DGSR: only the first ones are attacked, as many as the table
  at the top says. DD is of all 10,000.
- The transcription is from the text of the paper, in which some rows lack cells of other tools or
  have surplus ones. Where that leaves a choice, the PS column of table 5 agrees with table 3.
"""
