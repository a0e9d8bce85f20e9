"""What the page of the comparison says in words."""

TITLE = """
# The methods on our networks

This page is written by `python -m benchmarks.comparison`, from cells it has run; do not edit it.
"""

READING = """
## How to read it

- Figures are ours; in parentheses stands what the [paper](https://arxiv.org/abs/2404.01642v1)
  prints for the same cell and method in its tables 1, 2 and 3. Rates are per cent. What the columns
  mean is said in [compare.md](compare.md).
- Its methods are its own implementations with its settings, ours are written anew from the
  papers ([advrepair-baselines](../plugins_contrib/advrepair-baselines/README.md)). Networks,
  counterexamples, attack and machine are others too. So a difference is not an error of either,
  unless a note says so.
- The paper *defines* DSR, DGSR and FDD as the opposite of what it *prints*. Here DSR and DGSR are
  shares of defence and FDD is loss, the paper's as printed.
- **scope** is what a method promises, **certified** is what the core has proved of its model; a
  dash is a model that the core cannot bound. The row `constant-bias` looks at no input: what it
  reaches too says nothing about a method.
- The paper measures DGSR on 10,000 test inputs and DSR on all balls, by AutoAttack cut to ten
  steps. Here it is descent on the first ones, as many as the table says. **Without a proof every
  DSR and DGSR is an upper bound.**
- Seconds are of one thread on a machine that had other work, with the limit above; the paper's are
  of 64 cores and a GPU without a limit.
"""

SHORT = """
## MNIST in short

Means over the networks, of the runs that left a model.
"""

FOUND = ""

CHOOSING = """
## When to choose another method than ours
"""

LIMITS = """
## What was not run

- `trades` on ACAS Xu: it needs a label. APRNN and TRADES are not in the paper's table 2.
- Other numbers of balls than 50 and 200, and the paper's CIFAR-10 (table 4).
- More than one seed. TRADES and CARE change by tens of points with the seed where few inputs are
  repaired.
"""
